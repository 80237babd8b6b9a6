"""Read edits: CounterFact, zsRE or a plain list, all checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from modalign.chat_templates import plain_ids
from modalign.editing.edits import Edit
from modalign.editing.engine.tokens import encode_prompt, encode_target
from modalign.editing.readers.conflicts import conflict_free, conflicts, repetitions
from modalign.editing.readers.layouts import build
from modalign.editing.readers.rows import FileRow, read_rows, shown
from modalign.errors import DataError
from modalign.lengths import check_length

__all__ = ["conflict_free", "read_edits", "validate_against_tokenizer"]

Warn = Callable[[str], None]
Problem = tuple[int, str]  # line, message


def read_edits(
    path: str | Path,
    *,
    conflicting: Literal["refuse", "first"] = "refuse",
    limit: int | None = None,
    warn: Warn | None = None,
) -> list[Edit]:
    """Read and check a file of edits.

    Args:
        path: JSON (a list, or an object that holds one), JSON Lines or CSV.
        conflicting: what to do about edits that give one fact two targets: refuse the file, or keep
            the first of each and tell ``warn`` how many were left out.
        limit: only the first edits (all are checked).
        warn: told what is odd but not wrong: an edit that occurs twice.

    Raises:
        DataError: something is wrong; the message lists every problem with its line.
    """
    file = Path(path)
    rows = read_rows(file)
    edits, problems = _build(file, rows)
    if conflicting == "refuse":
        problems += [_conflict(*pair) for pair in conflicts(edits)]
    if problems:
        raise DataError(_describe(file, len(rows), problems))
    tell = warn or (lambda _: None)
    if conflicting == "first":
        edits, left_out = conflict_free(edits)
        if left_out:
            tell(f"{file}: edits left out because they give a fact a second target: {left_out}")
    for first, later in repetitions(edits):
        tell(f"{later.source}: the same edit as {first.source}")
    return edits[:limit]


def _build(file: Path, rows: Sequence[FileRow]) -> tuple[list[Edit], list[Problem]]:
    edits: list[Edit] = []
    problems: list[Problem] = []
    places: list[int] = []
    taken: dict[str, int] = {}
    headers: set[str] = set()
    for place, row in enumerate(rows, start=1):
        if row.fields is None:
            problems.append((row.line, row.problem))
            continue
        edit, name, found = build(
            row.fields, cells=row.cells, folder=file.parent, source=f"{file}:{row.line}"
        )
        if name is not None and name in taken:
            found.append(f"the id {name!r} is taken by line {taken[name]}: make ids unique")
        elif name is not None:
            taken[name] = row.line
        for message in found:
            if row.cells and message.startswith("unknown field"):  # a column, said once
                if message not in headers:
                    problems.append((1, message))
                headers.add(message)
            else:
                problems.append((row.line, message))
        if edit is not None and not found:
            edits.append(edit)
            places.append(place)
    return _named(edits, places, set(taken)), problems


def _named(edits: list[Edit], places: list[int], taken: set[str]) -> list[Edit]:
    """Give edits without an id their place in the file, from 1, as their id."""
    named = []
    for edit, place in zip(edits, places, strict=True):
        name = edit.id or (str(place) if str(place) not in taken else f"row-{place}")
        named.append(replace(edit, id=name))
    return named


def _conflict(first: Edit, later: Edit) -> Problem:
    line = int(later.source.rpartition(":")[2])
    message = (
        f"the target {later.target!r} contradicts {first.target!r} of line "
        f"{first.source.rpartition(':')[2]} for the same prompt {later.prompt!r}: keep one"
    )
    return line, message


def _describe(file: Path, total: int, problems: Sequence[Problem]) -> str:
    ordered = sorted(problems, key=lambda problem: problem[0])
    wrong = len({line for line, _ in ordered})
    counted = f"{len(ordered)} problem{'s' if len(ordered) > 1 else ''}"
    lines = [f"{file}: {counted} on {wrong} line{'s' if wrong > 1 else ''}, of {total} edits:"]
    lines += shown([f"  {file}:{line}: {message}" for line, message in ordered])
    return "\n".join(lines)


def validate_against_tokenizer(
    edits: Sequence[Edit], tokenizer: Any, limit: int | None = None
) -> None:
    """Check that every edit can be written in a model's tokens.

    The subject's last token must be found, each answer must have tokens of its own, and no prompt may be
    longer than the model reads.

    Args:
        edits: as read from the file.
        tokenizer: the model's.
        limit: how many positions the model reads; None for what the tokenizer says.

    Raises:
        DataError: something is wrong; the message lists every problem with its file and line.
    """
    limit = limit or getattr(tokenizer, "model_max_length", None)
    problems = [
        f"  {edit.source or edit.id}: {message}"
        for edit in edits
        for message in _token_problems(edit, tokenizer, limit)
    ]
    if problems:
        head = f"{len(problems)} problems with {type(tokenizer).__name__}:"
        raise DataError("\n".join([head, *shown(problems)]))


def _token_problems(edit: Edit, tokenizer: Any, limit: int | None) -> list[str]:
    problems: list[str] = []
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown == getattr(tokenizer, "eos_token_id", None):
        unknown = (
            None  # GPT-2 uses its end of text as the unknown token, although it knows every byte
        )
    try:
        prompt = encode_prompt(tokenizer, edit.prompt, edit.subject, edit.subject_at)
        answers = {"target": edit.target} | ({"truth": edit.truth} if edit.truth else {})
        for name, answer in answers.items():
            ids = encode_target(tokenizer, answer, edit.prompt)
            if unknown is not None and unknown in ids:
                problems.append(
                    f"the {name} {answer!r} has characters the tokenizer has no token for"
                )
            check_length(len(prompt.ids), limit, f"prompt and {name}", len(ids))
        others = [("paraphrase", text) for text in edit.paraphrases]
        others += [("neighbour", each.prompt) for each in edit.neighbours]
        for name, text in others:
            check_length(len(plain_ids(tokenizer, text)), limit, f"the {name} {text[:40]!r}")
    except DataError as error:
        problems.append(str(error))
    return problems
