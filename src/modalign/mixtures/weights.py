"""Mixtures as weights: which there are, what they are called, and the samples that follow them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from modalign.data.supervision import Sample
from modalign.training.recipes import drawn


def lattice(names: Sequence[str], parts: int) -> list[dict[str, float]]:
    """Return all mixtures of multiples of 1 / ``parts`` that sum to one."""

    def split(left: int, places: int) -> Iterator[tuple[int, ...]]:
        if places == 1:
            yield (left,)
            return
        for own in range(left, -1, -1):
            for rest in split(left - own, places - 1):
                yield (own, *rest)

    return [
        {name: count / parts for name, count in zip(names, counts, strict=True)}
        for counts in split(parts, len(names))
    ]


def normalised(weights: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Return weights of all names that sum to one."""
    whole = sum(weights.values())
    return {name: weights.get(name, 0.0) / whole for name in names}


def named(weights: Mapping[str, float]) -> str:
    """Name a mixture by its weights in percent: ``drama 50, web 50``."""
    said = {name: f"{100 * weight:.4g}" for name, weight in weights.items() if weight}
    return ", ".join(f"{name} {percent}" for name, percent in said.items())


def mixed(
    sources: Mapping[str, Sequence[Sample]],
    weights: Mapping[str, float],
    count: int,
    seed: Sequence[int],
) -> list[Sample]:
    """Draw samples from sources by their weights, each of a source's samples equally often (within one).

    Counts are rounded by largest remainders, so that they sum to ``count``.
    """
    names = list(sources)
    wanted = np.array([weights[name] * count for name in names])
    counts = np.floor(wanted).astype(int)
    for place in np.argsort(counts - wanted, kind="stable")[: count - counts.sum()]:
        counts[place] += 1
    rng = np.random.default_rng((*seed, 13))
    return [
        sample
        for name, own in zip(names, counts.tolist(), strict=True)
        if own
        for sample in drawn(sources[name], own, rng)
    ]


def spread(ranked: Sequence[str], first: Sequence[str], count: int) -> list[str]:
    """Return ``first`` and others evenly over a ranking, ``count`` in all if there are so many."""
    chosen = list(first[:count])
    rest = [name for name in ranked if name not in chosen]
    left = min(count - len(chosen), len(rest))
    places = np.linspace(len(rest) - 1, 0, max(left, 0)).round().astype(int)  # one: the worst
    return [*chosen, *(rest[place] for place in sorted(places.tolist()))]
