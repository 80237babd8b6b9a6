"""Converters turn the modality into embeddings of the language model (family 1 of the survey)."""
