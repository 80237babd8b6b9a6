"""Smaller models: pruned by structure, or distilled from a larger one."""
