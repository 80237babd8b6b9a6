"""``modalign app documents``: typed values from long documents with tables, each with its exact quote."""
