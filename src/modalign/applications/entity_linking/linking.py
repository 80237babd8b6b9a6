"""Retrieve entities by letters of names and descriptions, let a model choose among them, or choose none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel

from modalign.applications.entity_linking.data import Entity, Mention
from modalign.data.records import Message, Record
from modalign.evaluation.choosing import choose_all
from modalign.index.lexical import Lexical, Scores

Way = Literal["name n-grams", "sentence n-grams", "name + sentence n-grams"]
WAYS: tuple[Way, ...] = get_args(Way)
NAME, SENTENCE, BOTH = WAYS
PART = 256  # mentions linked at once
SELECTED = 5  # candidates that a model chooses among
TEMPLATE = '{sentence}\nWho or what is "{mention}" in this text?'
Opened = tuple[Any, Any]  # a model and its reader


class Retriever:
    """Scores of entities, one or more, for mentions."""

    def __init__(self, entities: Sequence[Entity]) -> None:
        self.entities = entities
        self._names = Lexical([each.name for each in entities])
        self._texts = Lexical([f"{each.name} {each.description}".strip() for each in entities])

    def scores(self, mentions: Sequence[Mention]) -> dict[Way, Scores]:
        """Return way -> (mentions, entities): the mention against names, the sentence against descriptions."""
        names = self._names.scores([each.mention for each in mentions])
        texts = self._texts.scores([each.sentence for each in mentions])
        return {NAME: names, SENTENCE: texts, BOTH: names + texts}


class Linker(BaseModel):
    """How mentions are linked, as ``modalign app link train`` finds it.

    Attributes:
        threshold: a mention whose best entity scores less is not in the base.
        way: how entities are scored.
    """

    threshold: float = 0.0
    way: Way = BOTH


@dataclass(frozen=True)
class Link:
    """A linked mention: an entity's id or None, its score, and the best candidates (id, name, score)."""

    mention: str
    entity: str | None
    score: float
    candidates: tuple[tuple[str, str, float], ...]


def link(
    mentions: Sequence[Mention],
    entities: Sequence[Entity],
    linker: Linker,
    *,
    opened: Opened | None = None,
    seed: int = 0,
) -> list[Link]:
    """Link mentions; if a model (with its reader) is given, it chooses among the five best candidates."""
    retriever, found = Retriever(entities), list[Link]()
    for start in range(0, len(mentions), PART):
        part = mentions[start : start + PART]
        scores = retriever.scores(part)[linker.way]
        best = best_places(scores)
        first = best[:, 0] if opened is None else chosen(part, entities, best, opened, seed)
        for mention, row, places, own in zip(part, scores, best, first, strict=True):
            top = float(row[places[0]])
            there = top > 0 and top >= linker.threshold
            candidates = tuple((entities[a].id, entities[a].name, float(row[a])) for a in places)
            found.append(Link(mention.id, entities[own].id if there else None, top, candidates))
    return found


def best_places(scores: Scores) -> np.ndarray:
    """Return (n, 5) places of the best entities, equal ones in the base's order."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :SELECTED]


def chosen(
    mentions: Sequence[Mention],
    entities: Sequence[Entity],
    best: np.ndarray,
    opened: Opened,
    seed: int,
    tell: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return (n,) places of the entities that a model chooses; candidates of equal text are one option."""
    found = best[:, 0].copy()
    for number, (mention, places) in enumerate(zip(mentions, best.tolist(), strict=True)):
        options = {_shown(entities[at]): at for at in reversed(places)}
        if len(options) > 1:
            turn = Message("user", (TEMPLATE.format(**asdict(mention)),))
            record = Record(mention.id, (turn,), mention.source, options=tuple(options))
            (choice,) = choose_all(*opened, [record], seed=seed)
            found[number] = options[choice.answer]
        if tell:
            tell(number + 1, len(best))
    return found


def _shown(entity: Entity) -> str:
    return f"{entity.name}: {entity.description[:60]}" if entity.description else entity.name
