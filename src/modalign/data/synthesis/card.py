"""The card of a build: inputs, records, and rejected items with reasons."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modalign.data.records import Record
from modalign.files import sha256
from modalign.version import __version__

SHOWN_ANSWERS = 12


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Made(_Model):
    """Records of one template, or of one skill if a model wrote them.

    Attributes:
        answers: the most frequent ones.
        majority: share of the most frequent answer: the score of always guessing it.
    """

    records: int
    skill: str | None = None
    distinct_answers: int
    majority: float
    answers: dict[str, int]


class Card(_Model):
    """The contents of ``OUT.card.json``.

    Attributes:
        rows, unusable: rows of the input, and those without usable annotations by kind.
        groups: of the records: images, unless the templates group them otherwise.
        rejected: what was asked or written and could not be used, by reason.
        warnings: what is most likely not meant so.
        duplicates: questions a model asked twice about one image.
        hashes: sha256 of the input, of templates or prompt, and of the output.
        usage: requests to the endpoint in this call; cached replies cost nothing.
    """

    format: Literal[1] = 1
    modalign: str = __version__
    input: str
    annotations: str
    maker: Literal["templates", "model"]
    settings: dict[str, Any]
    rows: int
    unusable: dict[str, int]
    groups: int
    records: int
    made: dict[str, Made]
    skills: dict[str, int]
    rejected: dict[str, int]
    warnings: list[str] = Field(default_factory=list)
    duplicates: int = 0
    retried: int = 0
    hashes: dict[str, str]
    usage: dict[str, float] = Field(default_factory=dict)


def tally(records: Sequence[Record]) -> dict[str, Made]:
    """Count records by template, or by skill if a model wrote them."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    skills: dict[str, str | None] = {}
    for record in records:
        name = record.extra["made"].get("template") or record.skill or "no skill"
        answers[name][record.answer] += 1
        skills[name] = record.skill
    return {
        name: Made(
            records=counts.total(),
            skill=skills[name],
            distinct_answers=len(counts),
            majority=round(counts.most_common(1)[0][1] / counts.total(), 4),
            answers=_few(counts),
        )
        for name, counts in sorted(answers.items())
    }


def one_answer(made: Mapping[str, Made]) -> list[str]:
    """Warn of templates, or skills, whose answer is always the same: nobody need look to know it."""
    return [
        f"{name}: all {found.records} answers are {next(iter(found.answers))!r}; a model learns to say it "
        "without looking. Look at the annotations, or add templates that ask for more"
        for name, found in made.items()
        if found.records > 1 and found.distinct_answers == 1
    ]


def _few(counts: Counter[str]) -> dict[str, int]:
    """Return the most frequent answers; none if answers hardly repeat, as with captions."""
    common = counts.most_common(SHOWN_ANSWERS)
    return dict(common) if common[0][1] > 1 and len(counts) < counts.total() / 2 else {}


def by_skill(records: Iterable[Record]) -> dict[str, int]:
    """Count records per skill, sorted by name."""
    return dict(sorted(Counter(record.skill or "no skill" for record in records).items()))


def sha256_of(content: Path | str) -> str:
    """Return the sha256 of a file's bytes, or of a text."""
    if isinstance(content, str):
        return hashlib.sha256(content.encode("utf-8")).hexdigest()
    return sha256(content)
