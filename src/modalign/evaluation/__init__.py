"""Task metrics and diagnostics of a trained model."""
