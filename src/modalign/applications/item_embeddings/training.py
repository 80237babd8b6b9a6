"""The recipe of item vectors: photographs find their items among those of the batch, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modalign.applications.item_embeddings.data import Item, Photo, Shown, asked
from modalign.data.records import Record
from modalign.errors import DataError
from modalign.training.settings import LLMMode, Stage

FIRST = 0.1  # weight of the loss at the first note, the picture alone (NoteLLM-2: L_v of (9 L_m + L_v) / 10)


def stage(
    learn_temperature: bool = False,
    notes: bool = False,
    fusion: bool = False,
    llm: LLMMode = "lora",
) -> Stage:
    """Return the stage; with two notes each of both states finds its like.

    Args:
        learn_temperature: from 0.05 on (NoteLLM-2 starts there, too).
        notes: records are shown as two notes.
        fusion: late fusion of every state.
        llm: what of the language model trains.
    """
    term: dict[str, Any] = {"anchor": "photo", "positive": "item", "pooling": "prompt"}
    term |= {"learn_temperature": learn_temperature, "fusion": fusion}
    objective: dict[str, float | dict[str, Any]] = {"info_nce": term}
    if notes:
        objective["info_nce"] = term | {"weight": 1 - FIRST}
        objective["info_nce/picture"] = term | {"weight": FIRST, "pooling": "separator"}
    roles = {"photo": "domain:photo", "item": "domain:item"}
    return Stage(name="items", llm=llm, objective=objective, roles=roles, matched=True)


def pairs(
    items: Sequence[Item], photos: Sequence[Photo], of: Shown = "picture + text"
) -> list[Record]:
    """Return photographs for training and the items on them, with what is shown ``of`` them, grouped by item.

    Raises:
        DataError: fewer than two items have a photograph for training.
    """
    own = [each for each in photos if not each.test]
    shown = {each.item for each in own}
    if len(shown) < 2:
        raise DataError("fewer than two items have a photograph for training (split: train)")
    made = [(asked(p.picture, p.text, of, p.source), "photo", p.item) for p in own]
    made += [(asked(i.picture, i.text, of, i.source), "item", i.id) for i in items if i.id in shown]
    return [
        replace(record, skill=role, group=item) for record, role, item in made if record is not None
    ]
