"""modalign: connect a language model to other modalities, and measure which way is worth its cost."""

__version__ = "0.1.0"
