"""The same questions under several conditions: examples first, corrupted media, a rationale."""
