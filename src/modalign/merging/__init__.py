"""Merging: models of one form become one model; see :mod:`modalign.merging.registry` for the methods."""
