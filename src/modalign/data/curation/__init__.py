"""Curate data sets: operators choose the rows to keep, and a card records them so that it can be replayed."""

from __future__ import annotations

from modalign.data.curation.card import Card, load_card
from modalign.data.curation.config import Request, load_operators
from modalign.data.curation.curate import Curated, curate, replay
from modalign.data.curation.operators import OPERATORS, ExactDuplicates, Operator

__all__ = [
    "OPERATORS",
    "Card",
    "Curated",
    "ExactDuplicates",
    "Operator",
    "Request",
    "curate",
    "load_card",
    "load_operators",
    "replay",
]
