"""Facts that a model is asked for: read from a file of facts or of edits, and kept if it knows them.

Tracing a fact that the model does not know traces noise, so only facts whose attribute is the most
likely continuation, token by token, are used; the others are counted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from modalign.editing.edits import Edit
from modalign.editing.engine.forward import Row, logits_at
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.tokens import encode_prompt, encode_target
from modalign.editing.readers import read_edits
from modalign.editing.readers.placing import place_subject
from modalign.editing.readers.rows import read_rows, shown
from modalign.errors import DataError, ModalignError
from modalign.models.projections import evaluating
from modalign.progress import Progress

ATTRIBUTE_FIELDS = ("attribute", "truth", "target")  # the first one present is used
BATCH = 32


class NoneKnownError(ModalignError):
    """The model knows none of the facts it was asked for."""


@dataclass(frozen=True)
class Fact:
    """A fact that a model may know.

    Attributes:
        subject: the words the fact is about.
        prompt: the full text that the attribute continues.
        subject_at: offset of the subject in ``prompt``.
        attribute: the right answer.
        other: an answer that an edit would put in its place, if the file names one.
        source: ``file:line``.
    """

    subject: str
    prompt: str
    subject_at: int
    attribute: str
    other: str | None = None
    source: str = ""

    @property
    def relation(self) -> str:
        """The prompt with ``{}`` for the subject."""
        return self.edit("").relation

    def edit(self, target: str) -> Edit:
        """Make the edit that gives this fact another answer."""
        return Edit(
            id=self.source,
            subject=self.subject,
            prompt=self.prompt,
            subject_at=self.subject_at,
            target=target,
            truth=self.attribute,
            source=self.source,
        )


@dataclass(frozen=True)
class KnownFact:
    """A fact the model knows, tokenised.

    Attributes:
        fact: the fact itself.
        ids: token ids of the prompt, T of them.
        first: position of the subject's first token.
        last: position of the subject's last token.
        answer: ids of the attribute.
        probability: of the whole attribute after the prompt.
    """

    fact: Fact
    ids: tuple[int, ...]
    first: int
    last: int
    answer: tuple[int, ...]
    probability: float = 0.0

    @property
    def row(self) -> Row:
        """The prompt and the attribute without its last token: here all of its tokens are predicted."""
        return Row(self.ids + self.answer[:-1], self.last)

    @property
    def predicting(self) -> range:
        """Positions that predict the attribute's tokens."""
        return range(len(self.ids) - 1, len(self.ids) - 1 + len(self.answer))


class AskedFacts(BaseModel):
    """How many facts a model was asked for and knew, for reports.

    Attributes:
        known: number of facts it knows.
        asked, unknown, unreadable, total: see :class:`Known`.
    """

    known: int
    asked: int
    unknown: int
    unreadable: int
    total: int


@dataclass(frozen=True)
class Known:
    """The facts a model knows.

    Attributes:
        probes: the known ones, in random order.
        asked: number of facts the model was asked for.
        unreadable: how many of these the tokenizer cannot place.
        total: number of facts in the file.
    """

    probes: tuple[KnownFact, ...]
    asked: int
    unreadable: int
    total: int

    @property
    def unknown(self) -> int:
        """Number of facts asked for whose attribute is not the most likely continuation."""
        return self.asked - self.unreadable - len(self.probes)

    @property
    def counts(self) -> dict[str, int]:
        """The fields of :class:`AskedFacts`."""
        counted = {"known": len(self.probes), "asked": self.asked, "unknown": self.unknown}
        return counted | {"unreadable": self.unreadable, "total": self.total}

    def describe(self) -> str:
        """Say in one sentence what was left out."""
        words = f"{len(self.probes)} of the {self.asked} facts asked for are known"
        parts = [
            f"{self.unknown} are not the model's most likely answer" if self.unknown else "",
            f"{self.unreadable} cannot be placed in its tokens" if self.unreadable else "",
        ]
        left = " and ".join(part for part in parts if part)
        return f"{words}; left out: {left}" if left else words


def read_facts(path: str | Path) -> list[Fact]:
    """Read facts from a file of facts, or the truths of a file of edits.

    A file of facts (JSON, JSON Lines or CSV) has ``subject``, a ``prompt`` with the subject in it or
    a ``template`` (either may mark it with ``{}``), and the ``attribute``, or ``truth`` or ``target``
    instead. Other fields are ignored (ROME's ``known_1000.json`` can be read as it is).

    Raises:
        DataError: a record lacks these (the message gives its line), or there is no record at all.
    """
    file = Path(path)
    rows = read_rows(file)
    if not any(row.fields is not None and _is_fact(row.fields) for row in rows):
        facts = [
            fact for edit in read_edits(file, conflicting="first") if (fact := _from_edit(edit))
        ]
        if not facts:
            raise DataError(
                f"{file}: no edit has both a subject in its text and a truth to ask for"
            )
        return facts
    facts, problems = [], []
    for row in rows:
        source = f"{file}:{row.line}"
        try:
            facts.append(_fact(row.fields, row.problem, source))
        except ValueError as error:
            problems.append(f"  {source}: {error}")
    if problems:
        head = f"{file}: {len(problems)} of {len(rows)} facts:"
        raise DataError("\n".join([head, *shown(problems)]))
    return facts


def holds_facts(path: str | Path) -> bool:
    """Return whether a file holds facts rather than edits."""
    return any(row.fields is not None and _is_fact(row.fields) for row in read_rows(Path(path)))


def _is_fact(fields: dict[str, Any]) -> bool:
    return (
        "attribute" in fields
        or "template" in fields
        or (not fields.get("target") and "truth" in fields)
    )


def _fact(fields: dict[str, Any] | None, problem: str, source: str) -> Fact:
    if fields is None:
        raise ValueError(problem)
    subject = str(fields.get("subject") or "").strip()
    if not subject:
        raise ValueError("subject is missing")
    attribute = next((str(fields[n]).strip() for n in ATTRIBUTE_FIELDS if fields.get(n)), "")
    if not attribute:
        raise ValueError(f"the answer is missing: give one of {', '.join(ATTRIBUTE_FIELDS)}")
    text = str(fields.get("prompt") or fields.get("template") or "").strip(" ")
    if not text:
        raise ValueError("prompt is missing: the text before the answer, or a template with {}")
    prompt, at = place_subject(text, subject)
    other = fields.get("target") if fields.get("attribute") or fields.get("truth") else None
    return Fact(subject, prompt, at, attribute, str(other).strip() if other else None, source)


def _from_edit(edit: Edit) -> Fact | None:
    if edit.subject_at is None or edit.truth is None:
        return None
    return Fact(edit.subject, edit.prompt, edit.subject_at, edit.truth, edit.target, edit.source)


def known_facts(
    spec: ModelSpec,
    tokenizer: Any,
    facts: Sequence[Fact],
    *,
    wanted: int,
    seed: int = 0,
    progress: Progress = lambda name, done, total: None,
) -> Known:
    """Ask the model for facts in random order until ``wanted`` are known.

    Raises:
        NoneKnownError: it knows none; the message gives what was asked and what the model said.
    """
    order = list(facts)
    random.Random(seed).shuffle(order)
    found: list[KnownFact] = []
    said = ""
    asked = unreadable = 0
    for start in range(0, len(order), BATCH):
        if len(found) >= wanted:
            break
        batch = order[start : start + BATCH]
        placed = [probe for fact in batch if (probe := locate(tokenizer, fact)) is not None]
        asked += len(batch)
        unreadable += len(batch) - len(placed)
        for probe, probability, words in _answers(spec, tokenizer, placed):
            if probability is not None and len(found) < wanted:
                found.append(replace(probe, probability=probability))
            elif probability is not None:
                asked -= 1  # known but not needed, so it counts as not asked
            elif not said:
                said = (
                    f"; after {probe.fact.prompt!r} it says {words!r}, not {probe.fact.attribute!r}"
                )
        progress("asking for facts", min(len(found), wanted), wanted)
    if not found:
        raise NoneKnownError(
            f"the model knows none of the {asked} facts it was asked for{said}. Give facts it knows: "
            "their attributes must be its most likely continuations"
        )
    return Known(tuple(found), asked, unreadable, len(facts))


def locate(tokenizer: Any, fact: Fact) -> KnownFact | None:
    """Tokenise a fact; None if the subject or the attribute has no tokens of its own."""
    try:
        prompt = encode_prompt(tokenizer, fact.prompt, fact.subject, fact.subject_at)
        answer = encode_target(tokenizer, fact.attribute, fact.prompt)
    except DataError:
        return None
    offsets = tokenizer(fact.prompt, return_offsets_mapping=True)["offset_mapping"]
    covering = [i for i, (a, b) in enumerate(offsets) if a <= fact.subject_at < b]
    first = covering[0] if covering else prompt.lookup
    return KnownFact(fact, prompt.ids, min(first, prompt.lookup), prompt.lookup, answer)


def _answers(
    spec: ModelSpec, tokenizer: Any, probes: Sequence[KnownFact]
) -> Iterator[tuple[KnownFact, float | None, str]]:
    """Yield each probe, the probability of its attribute if it is known, and what the model says."""
    if not probes:
        return
    with torch.no_grad(), evaluating(spec.language):
        places = [list(probe.predicting) for probe in probes]
        logits = logits_at(spec, [probe.row for probe in probes], places)
    for row, probe in zip(logits, probes, strict=True):
        log_probs = row.log_softmax(-1)
        best = log_probs.argmax(-1).tolist()
        wanted = torch.tensor(probe.answer, device=log_probs.device)
        joint = float(log_probs.gather(1, wanted[:, None]).sum().exp())
        same = [ours == theirs for ours, theirs in zip(best, probe.answer, strict=True)]
        if all(same):
            yield probe, joint, ""
        else:  # after the first wrong token, the rest is no longer the model's own answer
            yield probe, None, tokenizer.decode(best[: same.index(False) + 1]).strip()
