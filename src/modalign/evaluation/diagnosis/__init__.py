"""The gap between a modality and text inside a model, one diagnostic a file, and what they need to see."""
