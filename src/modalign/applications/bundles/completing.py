"""Complete a bundle: by titles, by what was bought together, by a model's choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from modalign.applications.bundles.data import Bundle, Catalogue, Question
from modalign.applications.rows import Relations
from modalign.chat_templates import SEPARATOR, without_separator
from modalign.data.records import Media, Message, Record, Source
from modalign.index.lexical import Lexical, Scores

POPULAR, TOGETHER, TITLES, BOTH = (
    "popularity",
    "co-occurrence",
    "title TF-IDF",
    "title TF-IDF + co-occurrence",
)
TEMPLATE = "A bundle of products holds:\n{shown}\nWhich product belongs to it?"


class Completer:
    """Scores of items for a bundle.

    Args:
        catalogue: all items.
        train: bundles that are known.
        alike: (items, items) cosines of titles, if they were computed before.
    """

    def __init__(
        self, catalogue: Catalogue, train: Sequence[Bundle], alike: Scores | None = None
    ) -> None:
        self.alike = likeness(catalogue) if alike is None else alike
        self.popular = Counter(item for bundle in train for item in bundle.items)
        self.together: Counter[tuple[int, int]] = Counter(
            (a, b) for bundle in train for a in bundle.items for b in bundle.items if a != b
        )

    def score(self, way: str, shown: Sequence[int], candidates: Sequence[int]) -> np.ndarray:
        """Return (candidates,) scores."""
        titles = self.alike[np.ix_(list(shown), list(candidates))].mean(0)
        pairs = np.array([sum(self.together[s, c] for s in shown) for c in candidates], dtype=float)
        if way == POPULAR:
            return np.array([float(self.popular[c]) for c in candidates])
        return {TOGETHER: pairs, TITLES: titles, BOTH: titles + pairs / (1 + pairs)}[way].round(9)

    def best(self, shown: Sequence[int], k: int) -> list[tuple[int, float]]:
        """Return the k likeliest items and their scores, by both titles and pairs."""
        others = [item for item in range(len(self.alike)) if item not in set(shown)]
        scores = self.score(BOTH, shown, others)
        order = np.argsort(-scores, kind="stable")[:k]
        return [(others[at], float(scores[at])) for at in order]


def likeness(catalogue: Catalogue) -> Scores:
    """Return (items, items) cosines of titles, by words and pairs of words."""
    return Lexical(catalogue.titles, "words").scores(catalogue.titles)


def record_of(
    question: Question,
    catalogue: Catalogue,
    number: int,
    relations: Relations | None = None,
    separated: bool = False,
) -> Record | None:
    """Return the question for a model, with the right title as answer; None if two candidates share a title.

    With relations, each item shown and each candidate has its vector after its title; ``separated``: with a soft
    separator between the two, as in Bundle-MLLM.
    """
    between = SEPARATOR if separated else ""
    named = {
        at: without_separator(catalogue.titles[at])
        for at in (*question.shown, *question.candidates)
    }
    titles = [named[item] for item in question.candidates]
    if len({title.casefold().strip() for title in titles}) < len(titles) or len(titles) < 2:
        return None
    shown = "\n".join(f"- {named[item]}" for item in question.shown)
    parts: tuple[str | Media, ...] = (TEMPLATE.format(shown=shown),)
    if relations is not None:
        order = sorted(question.candidates, key=lambda item: named[item])
        told = [
            (f"\n{named[item]}: {between}", relations.of(item))
            for item in (*question.shown, *order)
        ]
        parts = (*parts, *(part for pair in told for part in pair))
    turns = (Message("user", parts), Message("assistant", (titles[0],)))
    return Record(f"bundle-{number}", turns, Source("the bundles", number), options=tuple(titles))
