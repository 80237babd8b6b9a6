"""``modalign app items``: find a product by a photograph of it, and related products."""
