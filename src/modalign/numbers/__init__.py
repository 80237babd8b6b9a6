"""Estimates, how their intervals are made, which differences count, and how numbers are shown."""
