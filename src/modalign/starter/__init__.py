"""The embedded default: handwriting scenes, a small language model and a small vision encoder."""
