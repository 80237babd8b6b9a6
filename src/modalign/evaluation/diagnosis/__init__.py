"""The gap between a modality and text inside a model, one diagnostic per file, and what they share."""
