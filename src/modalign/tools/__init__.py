"""Tools: somebody else perceives, and the language model reads text."""
