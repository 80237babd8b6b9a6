"""Judge completion as one of ten, split by shopping session; a split that leaks is shown for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from modalign.applications.bundles.completing import (
    BOTH,
    POPULAR,
    TITLES,
    TOGETHER,
    Completer,
    likeness,
    record_of,
)
from modalign.applications.bundles.data import Catalogue, Question, questions, split
from modalign.applications.judged import Judged, ScoreRow, ScoreTable, decided, judged, mean
from modalign.applications.rows import Relations
from modalign.data.records import Record
from modalign.evaluation.choosing import choose_all
from modalign.numbers.estimate import exactly
from modalign.numbers.ranking import among_first
from modalign.progress import Progress

KINDS = ("random others", "look-alikes")


def judge(
    catalogue: Catalogue,
    *,
    opened: tuple[Any, Any] | None = None,
    relations: Relations | None = None,
    separated: bool = False,
    limit: int = 200,
    seed: int = 0,
    data: Sequence[str] = (),
    progress: Progress | None = None,
) -> Judged:
    """Evaluate on the held-out sessions; a model chooses among the titles of at most ``limit`` questions."""
    alike = likeness(catalogue)
    train, test = split(catalogue.bundles, lambda bundle: bundle.session, seed)
    leaky, leaked = split(catalogue.bundles, lambda bundle: bundle, seed)
    count = len(catalogue.ids)
    asked = dict(zip(KINDS, (questions(test, count, seed, a) for a in (None, alike)), strict=True))
    leaking = dict(
        zip(KINDS, (questions(leaked, count, seed, a) for a in (None, alike)), strict=True)
    )
    honest = Completer(catalogue, train, alike)
    rows = [_chance(asked)]
    for way in (POPULAR, TOGETHER, TITLES, BOTH):
        hits = {kind: _hits(honest, own, way) for kind, own in asked.items()}
        rows.append(_row(way, "rule", hits, asked, seed))
    leak = Completer(catalogue, leaky, alike)
    hits = {kind: _hits(leak, own, TOGETHER) for kind, own in leaking.items()}
    rows.append(_row(f"{TOGETHER}, split by bundle: leaks", "reference", hits, leaking, seed))
    notes = [
        f"One hidden item of a bundle among {len(asked[KINDS[0]][0].candidates)}; {len(test)} bundles of sessions "
        f"that are not among the {len(train)} known ones.",
        "Split by bundle, bundles of one session stand on both sides and share items: that row is leakage.",
        f"Left out: {catalogue.single} bundles of one item, {catalogue.repeated} that repeat another.",
    ]
    tables = [ScoreTable(title="Which item belongs to the bundle", rows=rows, notes=notes)]
    kind = KINDS[1]
    chosen = np.arange(len(asked[kind]))
    scores = {TITLES: _hits(honest, asked[kind], TITLES)}
    if opened is not None:
        given = {"a model's choice": relations}
        if relations is not None:
            given["the same, relations shuffled"] = relations.shuffled(seed)
        records = [record_of(question, catalogue, n) for n, question in enumerate(asked[kind])]
        usable = [n for n, record in enumerate(records) if record is not None]
        chosen = np.sort(np.random.default_rng(seed).permutation(usable)[:limit])
        scores, said = {TITLES: scores[TITLES][chosen]}, list[str]()
        own = {kind: [asked[kind][n] for n in chosen]}
        for name, vectors in given.items():
            tell = partial(progress, name) if progress else None
            told = [
                record_of(asked[kind][n], catalogue, n, vectors, separated) for n in chosen.tolist()
            ]
            by_letter, by_words, agreement = _by_model([r for r in told if r], opened, seed, tell)
            scores |= {f"{name}, by letter": by_letter, f"{name}, by words": by_words}
            said.append(
                f"{name}: the likeliest letter stayed with its item in {agreement:.0%} of the orders."
            )
        made = [
            _row(name, "rule" if name == TITLES else "model", {kind: values}, own, seed)
            for name, values in scores.items()
        ]
        tables.append(ScoreTable(title="A model's choice, letters turned", rows=made, notes=said))
        scores = {name: values for name, values in scores.items() if "shuffled" not in name}
    sessions = [asked[kind][n].session for n in chosen]
    default, reason, differences = decided(TITLES, scores, sessions, seed)
    return judged("bundle", "Completing bundles", data, seed, default=default, reason=reason, tables=tables,
                  differences=differences)  # fmt: skip


def _hits(completer: Completer, asked: Sequence[Question], way: str) -> np.ndarray:
    scores = [completer.score(way, each.shown, each.candidates)[None] for each in asked]
    return np.array([float(among_first(own, [0], 1)[0]) for own in scores])


def _row(
    name: str, kind: str, hits: dict[str, np.ndarray], asked: dict[str, list[Question]], seed: int
) -> ScoreRow:
    figures = {
        which: mean(values, [q.session for q in asked[which]], seed, "bundles")
        for which, values in hits.items()
    }
    return ScoreRow(name=name, kind=kind, figures=figures)


def _chance(asked: dict[str, list[Question]]) -> ScoreRow:
    figures = {
        kind: exactly(
            float(np.mean([1 / len(q.candidates) for q in own])), len(own), over="bundles"
        )
        for kind, own in asked.items()
    }
    return ScoreRow(name="chance", kind="reference", figures=figures)


def _by_model(
    records: Sequence[Record], opened: tuple[Any, Any], seed: int, tell: Any
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return hits by letters and by likelihood of words per byte, and how often the orders agreed."""
    found = []
    for number, record in enumerate(records):
        found += choose_all(*opened, [record], seed=seed)
        if tell:
            tell(number + 1, len(records))
    letters, words = (
        np.array(
            [float(getattr(own, way) == r.answer) for own, r in zip(found, records, strict=True)]
        )
        for way in ("answer", "by_words")
    )
    return letters, words, float(np.mean([own.agreement for own in found])) if found else 0.0
