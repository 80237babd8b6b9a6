"""Perceivers: learnt queries or layers through which the language model perceives a modality."""
