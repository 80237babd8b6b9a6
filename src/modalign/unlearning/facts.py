"""Check that facts to forget and to retain are disjoint, and known to the model, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modalign.data.records import Record
from modalign.data.reformatting import facts_of
from modalign.errors import DataError, grouped
from modalign.evaluation.likelihood import score_options
from modalign.numbers.estimate import Estimate
from modalign.numbers.shares import share
from modalign.progress import Progress, within

FEW = 10  # other answers that a fact's own is compared with


def check_apart(forget: Sequence[Record], retain: Sequence[Record]) -> None:
    """Refuse records to be both forgotten and retained, in the same words or with the same subject and relation.

    Raises:
        DataError: there are such records; the message gives their rows in both files.
    """
    kept = {key: record for record in retain for key in _keys(record)}
    both = [(r, kept[key]) for r in forget for key in _keys(r) if key in kept]
    if not both:
        return
    lines = [(f"{own.source} and {other.source}", "ask the same fact") for own, other in both]
    shown = "\n  ".join(grouped(list(dict.fromkeys(lines))))
    raise DataError(
        f"{len({id(own) for own, _ in both})} of {len(forget)} records are to be forgotten and retained:\n  "
        f"{shown}\nleave them out of one of the files"
    )


def _keys(record: Record) -> set[tuple[Any, ...]]:
    asked = (
        " ".join(record.messages[-2].text.split()).casefold() if len(record.messages) > 1 else ""
    )
    shown = tuple(medium.content_hash() for medium in record.media())
    found: set[tuple[Any, ...]] = {("question", asked, shown)}
    relation, subject = record.skill or record.extra.get("relation"), record.extra.get("subject")
    if relation and subject and not shown:
        found.add(("fact", str(relation), str(subject)))
    return found


def knowledge(
    model: Any,
    reader: Any,
    forget: Sequence[Record],
    retain: Sequence[Record],
    progress: Progress | None = None,
) -> Estimate | None:
    """Return the share of facts whose answer the model prefers to others; None if there are no others.

    Every fact is compared with up to ten other answers, from its relation or else from the whole files. The
    estimate includes chance.
    """
    facts = facts_of(forget, retain)
    everything = sorted({record.answer for record in (*forget, *retain)})
    rng = np.random.default_rng(0)
    offered = []
    for fact in facts:
        others = list(fact.others) or [text for text in everything if text != fact.answer]
        chosen = [others[i] for i in rng.permutation(len(others))[:FEW]]
        offered.append((fact.answer, *chosen))
    known = [place for place, options in enumerate(offered) if len(options) > 1]
    if not known:
        return None
    tell = within("what the model knows", progress)
    asked, options = [forget[i] for i in known], [offered[i] for i in known]
    scores = score_options(model, reader, asked, options, tell)
    right = [
        float(all(each[0].loglikelihood > other.loglikelihood for other in each[1:]))
        for each in scores
    ]
    chance = float(np.mean([1 / len(each) for each in options]))
    found = share(right, [forget[i].group for i in known], over="facts")
    return found.model_copy(update={"chance": chance})


def check_known(found: Estimate | None, anyway: bool) -> str | None:
    """Refuse facts that the model never knew; return a note if they were allowed.

    Raises:
        DataError: the share of known facts is not above chance.
    """
    if found is None or found.chance is None:
        return "all answers are the same, so it cannot be said whether the model knows what it is to forget"
    if found.low > found.chance:
        return None
    said = (
        f"the model does not know what it is to forget: it prefers the right answer for {found.value:.0%} of "
        f"{found.n} facts (interval {found.low:.0%} to {found.high:.0%}), and guessing gives {found.chance:.0%}"
    )
    if not anyway:
        raise DataError(f"{said}; nothing was trained (--anyway goes on)")
    return said


def as_role(records: Sequence[Record], role: str) -> list[Record]:
    """Return records marked with a role, for the stage's selectors."""
    return [
        replace(record, id=f"{role}/{record.id}", skill=role, extra={}) for record in records
    ]  # fmt: skip
