"""Tools: they describe media as text, which the language model reads."""
