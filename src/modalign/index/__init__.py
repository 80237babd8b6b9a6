"""Vectors and ids: add, search, save; and ``modalign embed``, which writes them from a data file."""
