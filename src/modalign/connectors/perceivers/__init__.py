"""Perceivers: learnt queries or layers that improve how the language model perceives."""
