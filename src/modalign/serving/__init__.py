"""A model behind the OpenAI API: an engine that batches continuously, and the HTTP server before it."""
