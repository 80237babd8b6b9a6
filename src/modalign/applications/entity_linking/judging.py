"""Judge linking: the whole base, the ambiguous subset as the headline, and 'not in the base'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modalign.applications.entity_linking.data import Entity, Mention, ambiguous
from modalign.applications.entity_linking.linking import (
    BOTH,
    SELECTED,
    Linker,
    Opened,
    Retriever,
    Way,
    best_places,
    chosen,
)
from modalign.applications.judged import (
    Judged,
    ScoreRow,
    ScoreTable,
    decided,
    judged,
    mean,
    separation,
)
from modalign.errors import DataError
from modalign.index.lexical import Scores
from modalign.numbers.estimate import Estimate, exactly
from modalign.numbers.ranking import among_first, threshold_between
from modalign.progress import Progress

KS = (1, 5, 10, 100)
OUTSIDE = 0.2  # share of the entities taken away to ask what is not in the base
OTHERS = 9  # random candidates besides the right one


def judge(
    mentions: Sequence[Mention],
    entities: Sequence[Entity],
    *,
    opened: Opened | None = None,
    limit: int = 200,
    seed: int = 0,
    data: Sequence[str] = (),
    progress: Progress | None = None,
) -> Judged:
    """Evaluate every way of linking on mentions whose entity is known.

    Args:
        mentions, entities: see ``data``.
        opened: a model, which chooses among the best five entities of ambiguous mentions, and its reader.
        limit: how many of these mentions, drawn by the seed.
        progress: called with what is done.

    Raises:
        DataError: no mention has an entity of the base.
    """
    places = {entity.id: place for place, entity in enumerate(entities)}
    known = [each for each in mentions if each.entity in places]
    if not known:
        raise DataError("no mention has an entity that is in the base: there is nothing to score")
    gold = np.array([places[str(each.entity)] for each in known])
    holders = ambiguous(known, entities)
    hard = np.array([len(own) > 1 and at in own for own, at in zip(holders, gold, strict=True)])
    fitting = [len(own) for own, yes in zip(holders, hard, strict=True) if yes]
    groups, scores = [str(each.entity) for each in known], Retriever(entities).scores(known)
    rows = [_by_chance(fitting, len(known), len(entities))]
    rows += [
        ScoreRow(name=way, kind="rule", figures=_figures(own, gold, hard, groups, seed))
        for way, own in scores.items()
    ]
    tables = [
        ScoreTable(
            title="Which entity",
            rows=rows,
            notes=[
                f"{int(hard.sum())} of {len(known)} mentions are ambiguous: their words are in two or more names, "
                "the right one among them. They are the headline: of the others the name decides.",
                "Recall is over the whole base; entities of equal score come in any order. 'Among 10' draws nine "
                "at random beside the right one, which says little.",
                f"{len(mentions) - len(known)} mentions without an entity of the base were left out.",
            ],
        )
    ]
    places_asked = np.flatnonzero(hard)
    if opened is not None and len(places_asked):
        places_asked = np.sort(np.random.default_rng(seed).permutation(places_asked)[:limit])
    own = scores[BOTH][places_asked]
    right: dict[str, np.ndarray] = {
        BOTH: among_first(own, gold[places_asked], 1) if len(own) else np.zeros(0)
    }
    if opened is not None and len(own):
        asked = [known[at] for at in places_asked]
        tell = (lambda done, total: progress("choose", done, total)) if progress else None
        picked = chosen(asked, entities, best_places(own), opened, seed, tell)
        right["a model's choice"] = (picked == gold[places_asked]).astype(float)
        subset = [groups[at] for at in places_asked]
        made = [
            ScoreRow(name=name, kind="rule" if name == BOTH else "model",
                     figures={"right": mean(values, subset, seed, "mentions")})
            for name, values in right.items()
        ]  # fmt: skip
        tables.append(
            ScoreTable(title=f"Choice among the best {SELECTED}, ambiguous mentions", rows=made)
        )
    tables += _not_in_the_base(known, entities, scores, seed)
    subset = [groups[at] for at in places_asked]
    default, reason, differences = decided(BOTH, right, subset, seed)
    return judged("link", "Entity linking", data, seed, default=default, reason=reason, tables=tables,
                  differences=differences)  # fmt: skip


def _by_chance(fitting: Sequence[int], n: int, base: int) -> ScoreRow:
    """Score a random entity of the base or, for ambiguous mentions, a random one whose name fits."""
    figures = {}
    if fitting:
        share = float(np.mean([1 / count for count in fitting]))
        figures["ambiguous"] = exactly(share, len(fitting), over="mentions")
    figures |= {f"recall@{k}": exactly(min(k / base, 1.0), n, over="mentions") for k in KS}
    figures["among 10"] = exactly(1 / (OTHERS + 1), n, over="mentions")
    return ScoreRow(name="a random entity that fits", kind="reference", figures=figures)


def _figures(
    scores: Scores, gold: np.ndarray, hard: np.ndarray, groups: Sequence[str], seed: int
) -> dict[str, Estimate]:
    figures = {}
    if hard.any():
        own = [group for group, yes in zip(groups, hard, strict=True) if yes]
        hits = among_first(scores[hard], gold[hard], 1)
        figures["ambiguous"] = mean(hits, own, seed, "mentions")
    for k in KS:
        figures[f"recall@{k}"] = mean(among_first(scores, gold, k), groups, seed, "mentions")
    others = np.random.default_rng(seed).integers(0, scores.shape[1], (len(scores), OTHERS))
    beside = np.take_along_axis(scores, np.concatenate([gold[:, None], others], axis=1), 1)
    beside[:, 1:][others == gold[:, None]] = -1
    first = among_first(beside, np.zeros(len(scores), dtype=int), 1)
    figures["among 10"] = mean(first, groups, seed, "mentions")
    return figures


def _without_some(
    mentions: Sequence[Mention], entities: Sequence[Entity], seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Remove a fifth of the entities; return the others' places, and (n,) whether each mention's is left."""
    order = np.random.default_rng(seed).permutation(len(entities))
    left = np.sort(order[round(OUTSIDE * len(entities)) :])
    there = {entities[at].id for at in left}
    inside = np.array([each.entity in there for each in mentions])
    return (left, inside) if inside.any() and not inside.all() else None


def _not_in_the_base(
    known: Sequence[Mention], entities: Sequence[Entity], scores: Mapping[Way, Scores], seed: int
) -> list[ScoreTable]:
    taken = _without_some(known, entities, seed)
    if taken is None:
        return []
    (left, inside), found = taken, dict[str, Any]()
    for way, every in scores.items():
        own = every[:, left]
        second = np.partition(own, -2, axis=1)[:, -2] if len(left) > 1 else 0 * own[:, 0]
        values = {"best score": own.max(1), "margin": own.max(1) - second}
        found[way] = {name: (each[inside], each[~inside]) for name, each in values.items()}
    gone = int((~inside).sum())
    note = f"{gone} of {len(known)} mentions mean one of the entities taken away, a fifth."
    return [separation("Is it in the base at all?", found, [note], seed)]


def fitted(mentions: Sequence[Mention], entities: Sequence[Entity], seed: int = 0) -> Linker:
    """Find the threshold of 'not in the base', with a fifth of the base removed.

    Raises:
        DataError: too few mentions with a known entity.
    """
    known = [each for each in mentions if each.entity is not None]
    taken = _without_some(known, entities, seed)
    if taken is None:
        raise DataError(
            "the threshold needs mentions whose entity is known, of several entities: with a fifth of the base "
            "taken away, some must still be there and some not"
        )
    left, inside = taken
    best = Retriever(entities).scores(known)[BOTH][:, left].max(1)
    return Linker(threshold=threshold_between(best[inside], best[~inside]))
