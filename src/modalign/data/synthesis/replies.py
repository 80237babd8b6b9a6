"""Read a chat model's reply: JSON of one schema, with every pair checked separately."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modalign.data.synthesis.by_template import holds_mark
from modalign.strict_json import loads

QUESTION_LENGTH, ANSWER_LENGTH, SKILL_LENGTH = 300, 1000, 40  # characters

# Wording that reveals that an annotation was read instead of an image.
LEAKS = re.compile(
    r"\b(?:according to|based on|as (?:stated|described|mentioned|given|noted) in|from|in|by|per)\s+"
    r"(?:the|this|these|its)\s+(?:\w+\s+)?"
    r"(?:captions?|annotations?|descriptions?|bounding box(?:es)?|metadata|attributes|text)\b"
    r"|\bthe (?:captions?|annotations?|bounding box(?:es)?|metadata)\b"
    r"|\b(?:provided|given) (?:captions?|annotations?|descriptions?|information|context|boxes)\b",
    re.IGNORECASE,
)


class Pair(BaseModel):
    """A question about the image and its answer."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    question: str = Field(min_length=5, max_length=QUESTION_LENGTH)
    answer: str = Field(min_length=1, max_length=ANSWER_LENGTH)
    skill: str | None = Field(default=None, max_length=SKILL_LENGTH)


class Pairs(BaseModel):
    """The whole reply."""

    model_config = ConfigDict(extra="ignore")

    pairs: list[Pair]


@dataclass
class Checked:
    """The usable content of a reply.

    Attributes:
        pairs: usable ones.
        faults: (reason, content); few distinct reasons, so that they can be counted.
        duplicates: pairs dropped because their question was asked before.
    """

    pairs: list[Pair] = field(default_factory=list)
    faults: list[tuple[str, Any]] = field(default_factory=list)
    duplicates: int = 0


def read_reply(text: str, known: set[str], limit: int) -> Checked:
    """Check a reply; a fault in one pair affects only that pair.

    Args:
        text: the reply, with or without a code fence.
        known: normalised questions already asked about this image; new ones are added.
        limit: maximum number of pairs.
    """
    checked = Checked()
    try:
        value = loads(_unfenced(text))
    except ValueError:
        checked.faults.append(("not JSON", text))
        return checked
    rows = value.get("pairs") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not rows:
        checked.faults.append(("no list of pairs", text))
        return checked
    for row in rows:
        if len(checked.pairs) == limit:
            break
        try:
            pair = Pair.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "pair"
            checked.faults.append((f"{where}: {first['type'].replace('_', ' ')}", row))
            continue
        if fault := _fault(pair):
            checked.faults.append((fault, row))
        elif (key := normalised(pair.question)) in known:
            checked.duplicates += 1
        else:
            known.add(key)
            checked.pairs.append(pair)
    return checked


def _fault(pair: Pair) -> str | None:
    for text in (pair.question, pair.answer):
        if found := LEAKS.search(text):
            return f"reveals its source ({found[0].lower()!r})"
    marked = holds_mark(pair.question, pair.answer)
    return f"contains the placeholder {marked}" if marked else None


def normalised(question: str) -> str:
    """Keep only letters and digits, in lower case, so that near-identical questions are equal."""
    return " ".join(re.findall(r"\w+", question.lower()))


def _unfenced(text: str) -> str:
    """Extract the JSON from a Markdown fence, or between the first and last brace."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    inner = fenced[1] if fenced else text
    start, end = inner.find("{"), inner.rfind("}")
    outer = inner.lstrip().startswith("[")
    return inner if outer or start < 0 or end < start else inner[start : end + 1]
