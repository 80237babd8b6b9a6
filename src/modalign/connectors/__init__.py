"""Connectors: encoder features in, something the language model reads out."""

ENTRY_POINT_GROUP = "modalign.connectors"  # by which third parties add theirs
