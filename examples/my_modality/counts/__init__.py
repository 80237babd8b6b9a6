"""Counts as a modality of modalign."""
