"""Measured comparisons: ratios of two things run side by side, one command each."""
