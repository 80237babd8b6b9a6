"""Connectors: they turn encoder features into something that the language model can read."""

ENTRY_POINT_GROUP = "modalign.connectors"  # through which third parties add theirs
