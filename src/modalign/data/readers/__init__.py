"""Readers turn files in common formats into records.

A file's container (JSON, JSON Lines, CSV, Parquet, a saved Hugging Face data set, a WebDataset tar)
and the shape of its rows (chat, LLaVA, flat) are independent: any shape may come in any container.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from modalign.data.modalities import DEFAULT, modality_of
from modalign.data.readers.arrow_files import (
    is_saved_dataset,
    read_parquet,
    read_saved_dataset,
)
from modalign.data.readers.columns import parse_columns, renamed
from modalign.data.readers.csv_files import read_csv
from modalign.data.readers.json_files import read_json, read_jsonl
from modalign.data.readers.result import Kind, Problem, RawRows, ReadResult, RowError
from modalign.data.readers.rows import Context, build_record
from modalign.data.readers.tar_files import read_tar
from modalign.data.readers.writer import write_records
from modalign.data.records import Source
from modalign.errors import DataError

__all__ = ["Kind", "Problem", "ReadResult", "locate", "open_rows", "read_records", "write_records"]

FORMATS = ".json, .jsonl, .csv, .tsv, .parquet, .tar, or a folder written by datasets' save_to_disk"
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib")


def read_records(
    path: str | Path,
    *,
    media_root: str | Path | None = None,
    modalities: Sequence[str] = DEFAULT,
    columns: Mapping[str, str] | None = None,
) -> ReadResult:
    """Read a data set in any supported format.

    Args:
        path: a file, or a folder written by `save_to_disk`, followed by `:split` if it has
            splits.
        media_root: the base folder of relative media paths (default: the data's own).
        modalities: modalities whose columns (`image`, `images`) hold media; other columns go to `extra`.
        columns: column that is read -> its name in the file.

    Returns:
        The records, and one problem for each row that could not be read.

    Raises:
        DataError: the file cannot be read at all: missing, empty, of an unknown format, a pickle.
        UsageError: an unknown modality.
    """
    rows, context = open_rows(path, media_root=media_root, modalities=modalities, columns=columns)
    result = _collect(rows, context)
    if result.total == 0:
        raise DataError(f"{path}: holds no rows")
    return result


def open_rows(
    path: str | Path,
    *,
    media_root: str | Path | None = None,
    modalities: Sequence[str] = DEFAULT,
    columns: Mapping[str, str] | None = None,
) -> tuple[RawRows, Context]:
    """Iterate over the rows of a data set, without holding all in memory.

    Returns:
        The rows as in the file, read on demand, and the context that `build_record` needs to turn a row
        into a record.

    Raises:
        DataError, UsageError: as `read_records`, possibly only while the rows are read.
    """
    for modality in modalities:
        modality_of(modality)  # an unknown one is an error
    file, split = locate(path)
    folder = file if file.is_dir() else file.parent
    root = Path(media_root) if media_root is not None else folder
    context = Context(str(path), Path(os.path.abspath(root)), tuple(modalities))
    rows = _rows(file, split, modalities)
    return renamed(rows, parse_columns(columns), str(path)) if columns else rows, context


def _collect(rows: RawRows, context: Context) -> ReadResult:
    result = ReadResult()
    for number, fields in rows:
        try:
            if isinstance(fields, RowError):
                raise fields
            result.records.append(build_record(fields, context, number))
        except RowError as error:
            source = Source(context.file, number)
            result.problems.append(Problem(source, error.kind, str(error)))
    return result


def locate(path: str | Path) -> tuple[Path, str | None]:
    """Separate `folder:split`; an existing path is used unchanged."""
    file = Path(path)
    if file.exists():
        return file, None
    folder, colon, split = str(path).rpartition(":")
    if colon and Path(folder).is_dir():
        return Path(folder), split
    raise DataError(f"{path}: no such file or folder")


def _rows(file: Path, split: str | None, modalities: Sequence[str]) -> RawRows:
    if file.is_dir():
        if not is_saved_dataset(file):
            raise DataError(f"{file}: a folder not written by save_to_disk. Give {FORMATS}.")
        return read_saved_dataset(file, split)
    try:
        with file.open("rb") as opened:
            head = opened.read(512)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    return _reader(file, head, modalities)(file)


def _reader(file: Path, head: bytes, modalities: Sequence[str]) -> Callable[[Path], RawRows]:
    """Choose a reader by content if possible, else by the file's extension."""
    suffix = file.suffix.lower()
    if suffix in PICKLES or head[:2] in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}:
        raise DataError(
            f"{file}: pickles are not read, because reading one can run any code. Give {FORMATS}."
        )
    if head[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise DataError(f"{file}: UTF-16 text. Save it as UTF-8.")
    if not head.strip():
        raise DataError(f"{file}: holds no rows")
    if head[:4] == b"PAR1" or suffix == ".parquet":
        return read_parquet
    if head[257:262] == b"ustar" or suffix in {".tar", ".tgz"} or file.name.endswith(".tar.gz"):
        return partial(read_tar, modalities=modalities)
    if suffix in {".csv", ".tsv"}:
        return read_csv
    if suffix in {".jsonl", ".ndjson"}:
        return read_jsonl
    if suffix == ".json":
        return read_json
    raise DataError(f"{file}: unknown data format. Give {FORMATS}.")
