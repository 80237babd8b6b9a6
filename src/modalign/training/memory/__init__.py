"""Estimate the memory of a training."""
