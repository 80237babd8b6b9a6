"""Records, their readers and validation, batching, and the feature cache."""
