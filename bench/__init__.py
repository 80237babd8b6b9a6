"""Measured comparisons, one command each; where two things are compared, they run side by side."""
