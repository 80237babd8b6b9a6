"""Text suites: what a language model can do without media, from local files."""
