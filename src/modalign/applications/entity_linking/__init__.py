"""``modalign app link``: mentions in sentences to entities of a base, or to none of them."""
