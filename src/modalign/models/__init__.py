"""Configuration, model and processor of a composed multimodal model, and its export."""
