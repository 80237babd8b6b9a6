"""Find where a model can be edited, and what its attention and FFN do with a fact."""
