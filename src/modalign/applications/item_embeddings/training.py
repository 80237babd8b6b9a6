"""The recipe of item vectors: photographs find their items among those of the batch, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modalign.applications.item_embeddings.data import Item, Photo, asked
from modalign.data.records import Record
from modalign.errors import DataError
from modalign.training.settings import Stage

STAGE = Stage(
    name="items",
    llm="lora",
    objective={"info_nce": {"anchor": "photo", "positive": "item", "pooling": "prompt"}},
    roles={"photo": "domain:photo", "item": "domain:item"},
    matched=True,
)


def stage(learn_temperature: bool = False) -> Stage:
    """Return the stage; its temperature may be learnt, from 0.05 on (NoteLLM-2 starts there, too)."""
    term = STAGE.objective["info_nce"]
    assert isinstance(term, dict)
    objective: Any = {"info_nce": term | {"learn_temperature": learn_temperature}}
    return STAGE.model_copy(update={"objective": objective})


def pairs(items: Sequence[Item], photos: Sequence[Photo]) -> list[Record]:
    """Return photographs for training and the items on them, with picture and text, grouped by item.

    Raises:
        DataError: fewer than two items have a photograph for training.
    """
    own = [each for each in photos if not each.test]
    shown = {each.item for each in own}
    if len(shown) < 2:
        raise DataError("fewer than two items have a photograph for training (split: train)")
    made = [(asked(p.picture, "", "picture", p.source), "photo", p.item) for p in own]
    made += [
        (asked(i.picture, i.text, "picture + text", i.source), "item", i.id)
        for i in items
        if i.id in shown
    ]
    return [
        replace(record, skill=role, group=item) for record, role, item in made if record is not None
    ]
