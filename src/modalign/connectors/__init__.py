"""Connectors: encoder features in, something the language model reads out."""
