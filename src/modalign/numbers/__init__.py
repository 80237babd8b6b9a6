"""Estimates and their intervals, tests of differences, and the formatting of numbers."""
