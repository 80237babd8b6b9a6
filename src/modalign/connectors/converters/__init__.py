"""Converters: the modality becomes embeddings of the language model (survey, family 1)."""
