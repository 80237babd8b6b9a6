"""The OpenAI API over HTTP: requests in, an engine's events out."""
