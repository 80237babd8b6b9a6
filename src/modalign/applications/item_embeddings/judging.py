"""Judge the search for items by photographs and for related items, compared with colours and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from modalign.applications.item_embeddings.data import Item, Photo, Shown, asked
from modalign.applications.judged import (
    Judged,
    ScoreRow,
    ScoreTable,
    decided,
    judged,
    mean,
    nearest,
)
from modalign.index.colours import best_of, histogram, overlap
from modalign.index.embedding import vectors_or_none
from modalign.index.lexical import Lexical, Scores
from modalign.models.pooled import Pooling
from modalign.models.prompts import Prompt
from modalign.numbers import words
from modalign.numbers.estimate import exactly
from modalign.numbers.ranking import among_first

KS = (1, 5)
ABLATED = "a model, picture + text, another item's picture"
PHOTOS, PICTURES = "colours against photographs", "colours against product pictures"


def judge(
    items: Sequence[Item],
    photos: Sequence[Photo],
    *,
    opened: tuple[Any, Any] | None = None,
    pooling: Pooling | Prompt = "last",
    seed: int = 0,
    data: Sequence[str] = (),
) -> Judged:
    """Evaluate the search for each test photograph's item among all, and for items of one kind.

    Args:
        items, photos: see ``data``.
        opened: a model that takes pictures, and its reader.
        pooling: of its vectors, or its prompt.
        seed: of the intervals.
        data: names of the files.
    """
    tests = [each for each in photos if each.test]
    train = [each for each in photos if not each.test]
    places = {item.id: place for place, item in enumerate(items)}
    gold, groups = np.array([places[each.item] for each in tests]), [each.item for each in tests]
    colours = np.stack([histogram(each.picture) for each in tests])
    pictures = np.stack([histogram(item.picture) for item in items])
    scores: dict[str, Scores] = {PICTURES: overlap(colours, pictures)}
    if train:
        near = overlap(colours, np.stack([histogram(each.picture) for each in train]))
        owners = [places[each.item] for each in train]
        scores = {PHOTOS: best_of(near, owners, len(items)), **scores}
    rule, models = next(iter(scores)), list[str]()
    if opened is not None:
        queries = vectors_or_none(
            [asked(p.picture, p.text, "picture + text", p.source) for p in tests], opened, pooling
        )
        for shown in get_args(Shown):
            own = vectors_or_none(
                [asked(i.picture, i.text, shown, i.source) for i in items], opened, pooling
            )
            models.append(f"a model, {shown}")
            scores[models[-1]] = (queries @ own.T).astype(np.float64).round(9)
        others = [asked(i.picture, i.text, "picture + text", i.source) for i in turned(items)]
        own = vectors_or_none(others, opened, pooling)
        scores[ABLATED] = (queries @ own.T).astype(np.float64).round(9)
    rows = [_row("chance", "reference", None, gold, groups, len(items), seed)]
    for name, found in scores.items():
        kind = "model" if name in models else "reference" if name == ABLATED else "rule"
        rows.append(_row(name, kind, found, gold, groups, len(items), seed))
    notes = [f"{len(tests)} photographs, {len(items)} items; intervals are over items."]
    if ABLATED in scores:
        pair = {name: among_first(scores[name], gold, 1) for name in (models[-1], ABLATED)}
        (drop,) = decided(ABLATED, pair, groups, seed)[2]
        said = f"{words.interval(drop.difference)}"
        notes.append(f"Picture ablation: an item's own picture against another's, top-1: {said}.")
    tables = [ScoreTable(title="The item on a photograph", rows=rows, notes=notes)]
    texts = [item.text or "?" for item in items]
    ways = {
        "words of the texts": Lexical(texts, "words").scores(texts),
        "colours": overlap(pictures, pictures),
    }
    tables += nearest([item.kind for item in items], ways, seed)
    first = {n: among_first(s, gold, 1) for n, s in scores.items() if n in (rule, *models)}
    default, reason, differences = decided(rule, first, groups, seed)
    return judged("items", "Items by pictures and texts", data, seed, default=default, reason=reason,
                  tables=tables, differences=differences)  # fmt: skip


def turned(items: Sequence[Item]) -> list[Item]:
    """Return the items, each with the picture of the next one."""
    after = [*items[1:], items[0]]
    return [replace(a, picture=b.picture) for a, b in zip(items, after, strict=True)]


def _row(
    name: str,
    kind: str,
    scores: Scores | None,
    gold: np.ndarray,
    groups: list[str],
    count: int,
    seed: int,
) -> ScoreRow:
    figures = {
        f"top-{k}": exactly(min(k / count, 1.0), len(gold), over="photographs")
        if scores is None
        else mean(among_first(scores, gold, k), groups, seed, "photographs")
        for k in KS
    }
    return ScoreRow(name=name, kind=kind, figures=figures)
