"""Plain text: documents of any file the user names, and windows of them to train on or to measure by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.records import Message, Record, Source
from modalign.data.supervision import Sample
from modalign.errors import DataError, first_line
from modalign.strict_json import loads

TEXT_KEYS = ("text", "content", "document")
INSTRUCTION_KEYS = ("instruction", "input", "output")  # read as one text where a row has no other


@dataclass(frozen=True)
class Corpus:
    """Documents, and a name and hash that say which.

    Attributes:
        name: for people.
        documents: in the order in which they are read.
        sha256: of the documents.
    """

    name: str
    documents: Sequence[str]

    @property
    def sha256(self) -> str:
        """Hash over all documents."""
        digest = hashlib.sha256()
        for document in self.documents:
            data = document.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return digest.hexdigest()


def read_corpus(source: Path) -> Corpus:
    """Read documents from a text file, a JSON or JSON Lines file, or a datasets folder.

    A text file is split at blank lines; JSON holds strings or objects with a ``text`` field,
    or with an ``instruction``, its ``input`` and its ``output``.

    Raises:
        DataError: the file is missing, holds no text, or a row has no text field.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source}: there is no such text file")
    if source.is_dir():
        documents = list(_dataset(source))
    elif source.suffix in {".json", ".jsonl"}:
        documents = list(_json(source))
    elif source.suffix == ".parquet":
        documents = list(_dataset(source))
    else:
        documents = _paragraphs(source)
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise DataError(f"{source}: holds no text")
    return Corpus(source.name, documents)


def is_corpus(source: Path) -> bool:
    """Whether a file holds plain text, not records: a text file, or JSON Lines whose first row has only a text."""
    if source.suffix in {".txt", ".md"}:
        return True
    if source.suffix != ".jsonl" or not source.is_file():
        return False
    with source.open(encoding="utf-8", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    try:
        row = loads(first)
    except ValueError:
        return False
    keys = set(row) if isinstance(row, dict) else set()
    return isinstance(row, str) or (bool(keys & set(TEXT_KEYS)) and keys <= {*TEXT_KEYS, "id"})


def windows(corpus: Corpus, tokenizer: Any, length: int) -> list[Sample]:
    """Cut documents into samples for language modelling: plain text, in which every token is supervised.

    Each document begins as the tokenizer begins a text; no window holds two documents.

    Args:
        corpus: the documents.
        tokenizer: the model's.
        length: tokens of a window; the last of a document may be shorter.

    Raises:
        DataError: no document has two tokens, so that nothing could be predicted.
    """
    samples = []
    for number, document in enumerate(corpus.documents, 1):
        ids = np.asarray(tokenizer(document)["input_ids"], dtype=np.int64)
        for start in range(0, len(ids), length):
            window = ids[start : start + length]
            if len(window) < 2:
                continue
            text = tokenizer.decode(window, skip_special_tokens=True)
            record = Record(
                id=f"{corpus.name}:{number}:{start}",
                messages=(Message("assistant", (text,)),),
                source=Source(corpus.name, number),
                group=f"{corpus.name}:{number}",
            )
            samples.append(Sample(record, window, np.ones(len(window), dtype=bool)))
    if not samples:
        raise DataError(f"{corpus.name}: no document has two tokens or more")
    return samples


def _text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not UTF-8 text at byte {error.start}") from error


def _paragraphs(source: Path) -> list[str]:
    return _text(source).replace("\r\n", "\n").split("\n\n")


def _json(source: Path) -> Iterator[str]:
    text = _text(source)
    if source.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield _text_of(_parsed(line, f"{source}:{number}"), f"{source}:{number}")
        return
    rows = _parsed(text, str(source))
    if not isinstance(rows, list):
        raise DataError(f"{source}: expected a list of texts")
    for number, row in enumerate(rows):
        yield _text_of(row, f"{source}, entry {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return loads(text)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON ({error})") from error


def _text_of(row: Any, where: str) -> str:
    if isinstance(row, str):
        return row
    if isinstance(row, dict):
        for key in TEXT_KEYS:
            if isinstance(row.get(key), str):
                return str(row[key])
        if INSTRUCTION_KEYS[0] in row:
            parts = [row.get(key) for key in INSTRUCTION_KEYS]
            return "\n".join(part for part in parts if isinstance(part, str) and part)
    raise DataError(f"{where}: no text; expected a string or a field {' or '.join(TEXT_KEYS)}")


def _dataset(source: Path) -> Iterable[str]:
    import datasets

    try:
        if source.is_dir():
            data = datasets.load_from_disk(str(source))
            if isinstance(data, datasets.DatasetDict):
                data = data["train"] if "train" in data else data[next(iter(data))]
        else:
            data = datasets.Dataset.from_parquet(str(source))
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        kind = "a folder that datasets saved" if source.is_dir() else "Parquet"
        raise DataError(f"{source}: cannot be read as {kind} ({first_line(error)})") from error
    for number, row in enumerate(data):
        yield _text_of(row, f"{source}, row {number}")
