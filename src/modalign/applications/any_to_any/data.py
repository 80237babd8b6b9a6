"""Read instructions with the calls that they ask for, and make records to train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.applications.rows import Row, read_all
from modalign.data.records import Message, Record, Source
from modalign.endpoints.call_grammar import CLOSE, OPEN
from modalign.tools.generators import PROMPT, Generator

NOTHING = "I can answer that in words."


@dataclass(frozen=True)
class Instruction:
    """An instruction, and what it asks for.

    Attributes:
        text: its words.
        calls: generator and prompt of each, in order; none if words are asked for.
        kind: ``paraphrase`` if it is said without the usual words; else anything.
        answer: the words asked for.
        source: file and row.
    """

    text: str
    calls: tuple[tuple[str, str], ...]
    kind: str
    answer: str
    source: Source

    @property
    def route(self) -> tuple[str, ...]:
        """Return the generators that it asks for, sorted."""
        return tuple(sorted(name for name, _ in self.calls))


def read_instructions(path: str | Path, known: Sequence[str]) -> list[Instruction]:
    """Read rows of ``instruction``, ``calls`` (``name``, ``prompt``; empty: none), ``kind`` and ``answer``.

    Raises:
        DataError: some rows are unusable: no text, unknown generators, or calls without a prompt.
    """

    def read(row: Row) -> Instruction:
        given = row.fields.get("calls") or []
        if not isinstance(given, list):
            raise ValueError(f"calls is {given!r}, not a list")
        calls = []
        for call in given:
            name = call.get("name") if isinstance(call, dict) else None
            if name not in known:
                raise ValueError(f"calls {name!r}; there are {', '.join(known)}")
            if not isinstance(call.get(PROMPT), str) or not call[PROMPT].strip():
                raise ValueError(f"its call of {name} has no {PROMPT}")
            calls.append((str(name), str(call[PROMPT])))
        said = str(row.fields.get("answer") or NOTHING)
        kind = str(row.fields.get("kind") or "")
        return Instruction(row.text("instruction"), tuple(calls), kind, said, row.source)

    return read_all(path, read)


def said_calls(calls: Sequence[tuple[str, str]]) -> str:
    """Return calls as a model writes them."""
    made = ({"name": name, "arguments": {PROMPT: prompt}} for name, prompt in calls)
    return "\n".join(f"{OPEN}{json.dumps(call, ensure_ascii=False)}{CLOSE}" for call in made)


def records_of(
    instructions: Sequence[Instruction], generators: Sequence[Generator]
) -> list[Record]:
    """Return records to train on: the tools offered, the instruction, and its calls or its answer."""
    tools: tuple[dict[str, Any], ...] = tuple(each.schema() for each in generators)
    return [
        Record(
            str(each.source),
            (
                Message("user", (each.text,)),
                Message("assistant", (said_calls(each.calls) or each.answer,)),
            ),
            each.source,
            tools=tools,
        )
        for each in instructions
    ]
