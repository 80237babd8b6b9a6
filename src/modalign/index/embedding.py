"""Embed a data file: every record becomes a vector of an index, written as the work goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modalign.chat_templates import let_through
from modalign.data.curation.inputs import hash_path
from modalign.data.modalities import DEFAULT
from modalign.data.readers import locate, open_rows
from modalign.data.readers.columns import translated
from modalign.data.readers.result import Fields, Problem, ReadResult, RowError
from modalign.data.readers.rows import Context, build_record
from modalign.data.records import Message, Record, Source
from modalign.data.validation import BrokenData, listed, parse_share, validate
from modalign.errors import DataError, UsageError
from modalign.files import bytes_in, check_room
from modalign.hashing import model_hash, tokenizer_hash
from modalign.index.vectors import Index, Writer, unit_vectors, written
from modalign.models.asking import modalities_of, tokenizer_of
from modalign.models.open import open_model
from modalign.models.parts import embedding
from modalign.models.pooled import TOKENS, Pooling, pooled
from modalign.models.prompts import FILE, Prompt, load_prompt
from modalign.models.quiet import quietly
from modalign.patches import patches_of, with_patches
from modalign.progress import Progress
from modalign.runs import run_folder

ROWS = 512  # records between two writes
FLOAT = 4  # bytes of a vector's number
Saved = Literal["saved"]
_SHAPES = ("messages", "conversations", "answer", "caption")


@dataclass(frozen=True)
class Embedded:
    """What ``modalign embed`` wrote.

    Attributes:
        folder: of the index.
        records, size: vectors and their width.
        resumed: how many of them were there already.
        skipped: broken rows left out.
        pooling: how a record became a vector; ``saved``: by the prompt saved with the model.
    """

    folder: Path
    records: int
    size: int
    resumed: int
    skipped: int
    pooling: Pooling | Saved

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def reading(folder: Path | str, pooling: Pooling | Saved | None) -> Pooling | Prompt:
    """Return how a model's vectors are read: as asked, else by the prompt saved with it, else ``last``.

    Raises:
        UsageError: its own prompt is asked for, but it has none.
    """
    if pooling is not None and pooling != "saved":
        return pooling
    prompt = load_prompt(folder)
    if prompt is None and pooling == "saved":
        raise UsageError(f"{folder} has no {FILE}: train one, or take another --pooling")
    return prompt or "last"


def makes(model: Any, reader: Any, pooling: Pooling | Prompt) -> dict[str, Any]:
    """Return what makes a model's vectors: equal for two that may be compared."""
    patches = [each.sha256 for each in patches_of(model)]
    return {
        "model": model_hash(model),
        "tokenizer": tokenizer_hash(tokenizer_of(reader)),
        "patches": patches,
        "pooling": f"saved {pooling.hash}" if isinstance(pooling, Prompt) else pooling,
    }


def vectors_or_none(
    records: Sequence[Record | None], opened: tuple[Any, Any], pooling: Pooling | Prompt
) -> np.ndarray:
    """Return (n, D) vectors of length 1 of a model's and its reader's; zeros where there is no record."""
    there = [place for place, record in enumerate(records) if record is not None]
    made = unit_vectors(
        pooled(*opened, [each for each in records if each is not None], pooling).numpy()
    )
    found = np.zeros((len(records), made.shape[1]))
    found[there] = made
    return found


@quietly()
def embed_data(
    folder: Path,
    data: str,
    out: Path,
    *,
    pooling: Pooling | Saved | None = None,
    tokens: int = TOKENS,
    columns: Mapping[str, str] | None = None,
    skip_broken: str = "0%",
    patches: Sequence[Path] = (),
    control_tokens: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Embedded:
    """Embed every record of a data file; see :mod:`modalign.models.pooled`.

    All rows are checked before the first is embedded. Memory holds one batch and the ids, not the data.

    Args:
        folder: model folder.
        data: records in any format; or items, rows with a ``text``, media, or both. Answers are left out.
        out: folder of the index.
        pooling: ``last``, ``mean`` or ``word``; ``saved``: the model's own prompt; None: that if it has one,
            else ``last``.
        tokens: most positions of a batch.
        columns: expected column -> its name in the file.
        skip_broken: share of broken rows to leave out.
        patches: patch files to apply to the loaded model.
        control_tokens: special tokens that are such where a text holds them, too.
        device: to compute on.
        resume, overwrite: an index that the folder holds.
        progress: called with the rows checked, and the records embedded.

    Raises:
        DataError: unusable rows; the message names them.
        UsageError: no model, or a folder that is taken.
    """
    locate(data)
    way = reading(folder, pooling)
    loaded, reader = open_model(folder, device=device)
    let_through(tokenizer_of(reader), control_tokens)
    model = with_patches(loaded, tokenizer_of(reader), patches)
    accepted = modalities_of(reader)
    taken = accepted or list(DEFAULT)  # which a language model then refuses
    made = makes(model, reader, way)
    configuration = {
        "model": str(folder), "made": made, "data": str(data), "sha256": hash_path(locate(data)[0]),
        "columns": dict(columns or {}), "skip_broken": skip_broken,
    }  # fmt: skip
    with run_folder(out, configuration, resume=resume, overwrite=overwrite, free=["model"]) as run:
        total, broken = _checked(data, taken, accepted, columns, skip_broken, progress)
        check_room(
            out,
            FLOAT * total * embedding(model).weight.shape[1] - bytes_in(out),
            "the vectors take",
        )
        run.begin()
        kept = written(out, made)
        good = (record for record in _records(data, taken, columns) if record.source not in broken)
        size = 0
        with Writer(out, made, kept) as writer:
            for batch in _in_parts(islice(good, len(kept), None)):
                vectors = pooled(model, reader, batch, way, tokens=tokens)
                writer.add([record.id for record in batch], vectors.numpy())
                size = vectors.shape[1]
                if progress:
                    progress("embed", writer.count, total)
    named: Pooling | Saved = "saved" if isinstance(way, Prompt) else way
    return Embedded(out, total, size or _size(out), len(kept), len(broken), named)


def _size(folder: Path) -> int:
    return int(Index.load(folder).vectors.shape[1])


def _rows(
    data: str, modalities: Sequence[str], columns: Mapping[str, str] | None
) -> Iterator[Record | Problem]:
    rows, context = open_rows(data, modalities=modalities, columns=columns)
    for number, fields in rows:
        try:
            if isinstance(fields, RowError):
                raise fields
            yield _record(fields, context, number)
        except RowError as error:
            yield Problem(Source(context.file, number), error.kind, str(error))


def _records(
    data: str, modalities: Sequence[str], columns: Mapping[str, str] | None
) -> Iterator[Record]:
    return (each for each in _rows(data, modalities, columns) if isinstance(each, Record))


def _record(fields: Fields, context: Context, row: int) -> Record:
    """Build a record whose answer, if any, will be left out; an item's text is its question."""
    fields = translated(fields) if isinstance(fields, dict) else fields
    if isinstance(fields, dict) and not any(fields.get(name) for name in _SHAPES):
        text = fields.get("question") or fields.get("text")
        fields = {**fields, "question": text, "answer": "?"}
    record = build_record(fields, context, row)
    if record.messages[-1].role != "assistant":
        record = replace(record, messages=(*record.messages, Message("assistant", ("?",))))
    asked = [part for message in record.messages[:-1] for part in message.parts]
    if not any(not isinstance(part, str) or part.strip() for part in asked):
        raise RowError("row", "has neither text nor a medium, so it has no vector: fill it in")
    return record


def _checked(
    data: str,
    modalities: Sequence[str],
    accepted: Sequence[str],
    columns: Mapping[str, str] | None,
    skip_broken: str,
    progress: Progress | None,
) -> tuple[int, set[Source]]:
    """Check every row, media included; return the usable ones' number and the places of the others."""
    allowed, problems, rows = parse_share(skip_broken), list[Problem](), 0
    first: dict[str, Source] = {}
    for part in _in_parts(_rows(data, modalities, columns)):
        rows += len(part)
        records = [each for each in part if isinstance(each, Record)]
        problems += [each for each in part if isinstance(each, Problem)]
        for record in records:
            before = first.setdefault(record.id, record.source)
            if before.row != record.source.row:
                said = f"the id {record.id!r} is taken by {before}: make ids unique"
                problems.append(Problem(record.source, "duplicate-id", said))
        try:
            validate(ReadResult(records), modalities=accepted)
        except BrokenData as error:
            problems += error.problems
        if progress:
            progress("check", rows, rows)
    if not rows:
        raise DataError(f"{data}: holds no rows")
    broken = {problem.source for problem in problems}
    if len(broken) > allowed * rows + 1e-9 or len(broken) == rows:
        lines = "\n  ".join(listed(sorted(set(problems), key=lambda each: each.source.row)))
        raise DataError(
            f"{data}: {len(broken)} of {rows} rows cannot be embedded:\n  {lines}\ncorrect them, or allow a "
            "share with --skip-broken"
        )
    return rows - len(broken), broken


def _in_parts(rows: Iterable[Any]) -> Iterator[list[Any]]:
    waiting = iter(rows)
    while part := list(islice(waiting, ROWS)):
        yield part
