"""Columns by other names: those that a user says, those that other tools write, and those misspelt.

Other tools' flat rows are read as they stand: alpaca (``instruction``, ``input``, ``output``), Dolly
(``instruction``, ``context``, ``response``), ``prompt`` with ``response`` or ``completion`` (TRL, also as
lists of turns), ``query`` with ``response`` (ms-swift); beside them ``system`` and ``history``, pairs of
earlier questions and answers.
"""

from __future__ import annotations

import mimetypes
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from modalign.data.modalities import modality_names
from modalign.data.readers.result import Fields, RawRows
from modalign.data.records import Record, media_columns
from modalign.errors import DataError, UsageError, choose, meant

PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
)
CONTEXT = ("input", "context")  # what an instruction is about, behind it
READ = (
    *("messages", "conversations", "question", "answer", "caption", "system", "history"),
    *("id", "skill", "group", "options", "answers"),
)
ANNOTATED = ("captions", "text", "boxes", "objects", "annotations", "items", "scene", "attributes")


def parse_columns(text: str | Mapping[str, str] | None) -> dict[str, str]:
    """Read ``question=prompt,answer=response``: the column that is read, and its name in the file.

    Raises:
        UsageError: another form, or a column that nothing reads.
    """
    if not text:
        return {}
    if isinstance(text, str):
        pairs = [item.partition("=") for item in text.split(",")]
        if wrong := [name for name, sign, own in pairs if not (sign and own.strip())]:
            raise UsageError(f"--columns {wrong[0]}: write OURS=YOURS, as in question=prompt")
        text = {name.strip(): own.strip() for name, _, own in pairs}
    media = [column for modality in modality_names() for column in media_columns(modality)]
    known = (*READ, *ANNOTATED, *media)
    for name in text:
        if name not in known:
            raise UsageError(
                f"--columns {name}=...: no column {name!r} is read; {choose(name, known)}"
            )
    return dict(text)


def renamed(rows: RawRows, columns: Mapping[str, str], file: str) -> RawRows:
    """The rows with columns under the names that are read.

    Raises:
        DataError: no row has a column that was named.
    """
    missing, seen = set(columns), Counter[str]()
    for number, fields in rows:
        if isinstance(fields, dict):
            seen.update(map(str, fields))
            missing -= {name for name in missing if columns[name] in fields or name in fields}
            moved = {name: fields[own] for name, own in columns.items() if own in fields}
            rest = {key: value for key, value in fields.items() if key not in columns.values()}
            fields = {**rest, **moved}
        yield number, fields
    if missing and seen:
        name = min(missing)
        raise DataError(
            f"{file}: no row has the column {columns[name]!r} that --columns {name}={columns[name]} names; "
            f"{choose(columns[name], seen)}"
        )


def translated(fields: Fields) -> Fields:
    """The fields of a flat row of another tool as a question and an answer, or as turns."""
    if any(fields.get(name) for name in ("messages", "conversations", "answer", "caption")):
        return fields
    pair = next((pair for pair in PAIRS if all(name in fields for name in pair)), None)
    if pair is None:
        return fields
    asked, said = (fields[name] for name in pair)
    rest = {key: value for key, value in fields.items() if key not in pair}
    if isinstance(asked, list) and isinstance(said, list):
        return {**rest, "messages": [*asked, *said]}
    if not isinstance(asked, str):
        return fields
    about = [
        rest.pop(name)
        for name in CONTEXT
        if isinstance(rest.get(name), str | None) and name in rest
    ]
    question = "\n".join(text for text in (asked, *about) if text)
    return {**rest, "question": question, "answer": said}


def unread(records: Sequence[Record]) -> list[str]:
    """Say which unread columns are named almost like one that is read, or name media that the rows lack."""
    names = Counter(name for record in records for name in record.extra)
    media = [column for modality in modality_names() for column in media_columns(modality)]
    hints = dict(_hints(names, (*READ, *media)))
    misspelt = [
        f"The column {name!r} of {names[name]} rows is not read: {hint}"
        for name, hint in hints.items()
    ]
    return [*misspelt, *_unread_media(records, hints)]


def _unread_media(records: Sequence[Record], misspelt: Container[str]) -> Iterator[str]:
    found = Counter(
        (name, kind.partition("/")[0])
        for record in records
        if not any(record.media())
        for name, value in record.extra.items()
        if isinstance(value, str) and (kind := mimetypes.guess_type(value)[0])
    )
    for (name, modality), count in found.items():
        if modality in modality_names() and name not in misspelt:
            yield (
                f"The column {name!r} of {count} rows without media is not read, and names files of {modality}: "
                f"give --columns {modality}={name}"
            )


def _hints(names: Iterable[str], known: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        alike = [each for each in known if abs(len(each) - len(name)) < 2 and each != name]
        if name not in known and (hint := meant(name, alike, least=0.8)):
            yield name, hint


def turn_of(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn by ``from`` and ``value``, or by ``role`` and ``content``, in the second form."""
    names = {"from": "role", "value": "content"}
    return {names.get(key, key): value for key, value in turn.items()}
