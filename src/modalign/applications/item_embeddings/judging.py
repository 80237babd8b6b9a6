"""Judge the search for items by photographs, and for related items, beside colours and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from modalign.applications.item_embeddings.data import (
    Item,
    Photo,
    Shown,
    asked,
    histogram,
    overlap,
)
from modalign.applications.judged import Judged, ScoreRow, ScoreTable, decided, judged, mean
from modalign.index.lexical import Lexical, Scores
from modalign.index.vectors import unit_vectors
from modalign.models.pooled import Pooling, pooled
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
        owners = np.array([places[each.item] for each in train])
        best = np.full((len(tests), len(items)), -1.0)
        for place in range(len(items)):
            best[:, place] = near[:, owners == place].max(1, initial=-1.0)
        scores = {PHOTOS: best, **scores}
    rule, models = next(iter(scores)), list[str]()
    if opened is not None:
        queries = _vectors(
            [asked(p.picture, "", "picture", p.source) for p in tests], opened, pooling
        )
        for shown in get_args(Shown):
            own = _vectors(
                [asked(i.picture, i.text, shown, i.source) for i in items], opened, pooling
            )
            models.append(f"a model, {shown}")
            scores[models[-1]] = (queries @ own.T).astype(np.float64).round(9)
        others = [asked(b.picture, a.text, "picture + text", a.source) for a, b in _turned(items)]
        own = _vectors(others, opened, pooling)
        scores[ABLATED] = (queries @ own.T).astype(np.float64).round(9)
    rows = [_row("chance", "reference", None, gold, groups, len(items), seed)]
    for name, found in scores.items():
        kind = "model" if name in models else "reference" if name == ABLATED else "rule"
        rows.append(_row(name, kind, found, gold, groups, len(items), seed))
    notes = [f"{len(tests)} photographs, {len(items)} items; intervals are over items."]
    if ABLATED in scores:
        pair = {name: among_first(scores[name], gold, 1) for name in (models[-1], ABLATED)}
        (drop,) = decided(ABLATED, pair, groups, seed)[2]
        said = f"{words.value(drop.difference)} {words.interval(drop.difference)}"
        notes.append(f"Picture ablation: an item's own picture against another's, top-1: {said}.")
    tables = [ScoreTable(title="The item on a photograph", rows=rows, notes=notes)]
    tables += _related(items, pictures, seed)
    first = {n: among_first(s, gold, 1) for n, s in scores.items() if n in (rule, *models)}
    default, reason, differences = decided(rule, first, groups, seed)
    return judged("items", "Items by pictures and texts", data, seed, default=default, reason=reason,
                  tables=tables, differences=differences)  # fmt: skip


def _turned(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Pair each item with the next one, whose picture it gets."""
    return list(zip(items, [*items[1:], items[0]], strict=True))


def _vectors(records: Sequence[Any], opened: tuple[Any, Any], pooling: Pooling | Prompt) -> Scores:
    """Return (n, D) vectors of length 1; zeros where there is nothing to embed."""
    there = [place for place, record in enumerate(records) if record is not None]
    made = unit_vectors(pooled(*opened, [records[place] for place in there], pooling).numpy())
    found = np.zeros((len(records), made.shape[1]))
    found[there] = made
    return found


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


def _related(items: Sequence[Item], pictures: np.ndarray, seed: int) -> list[ScoreTable]:
    """Whether the nearest other item is of the same kind."""
    kinds = np.array([item.kind for item in items])
    same = (
        (kinds[:, None] == kinds[None]) & (kinds != "")[:, None] & ~np.eye(len(items), dtype=bool)
    )
    having = np.flatnonzero(same.any(1))
    if not len(having):
        return []
    rows, others = [], len(items) - 1
    chance = float(np.mean(same[having].sum(1) / others))
    rows.append(ScoreRow(name="chance", kind="reference",
                         figures={"same kind": exactly(chance, len(having), over="items")}))  # fmt: skip
    ways = {"words of the texts": Lexical([item.text or "?" for item in items], "words").scores(
        [item.text or "?" for item in items]), "colours": overlap(pictures, pictures)}  # fmt: skip
    for name, scores in ways.items():
        own = np.where(np.eye(len(items), dtype=bool), -1.0, scores)[having]
        top = own == own.max(1, keepdims=True)
        hits = (top & same[having]).sum(1) / top.sum(1)
        rows.append(
            ScoreRow(
                name=name, kind="rule", figures={"same kind": mean(hits, over="items", seed=seed)}
            )
        )
    return [ScoreTable(title="The nearest other item", rows=rows)]
