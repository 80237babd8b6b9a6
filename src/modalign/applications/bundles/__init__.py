"""``modalign app bundle``: complete a bundle of items."""
