"""Instruction records from captions, boxes or structured annotations, by templates or a chat model."""

from modalign.data.synthesis.annotations import From, Item, read_items
from modalign.data.synthesis.build import Outputs, build_by_model, build_by_templates
from modalign.data.synthesis.card import Card

__all__ = [
    "Card",
    "From",
    "Item",
    "Outputs",
    "build_by_model",
    "build_by_templates",
    "read_items",
]
