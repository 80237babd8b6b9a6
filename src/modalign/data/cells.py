"""Read single rows, columns and cells of CSV and Parquet files.

Of a Parquet file only the row group is read, and cached for nearby rows; a CSV file is read whole.
"""

from __future__ import annotations

import csv
import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from modalign.data.readers.csv_files import read_csv
from modalign.data.readers.result import RowError
from modalign.data.records import Media
from modalign.data.signals import SignalError, missing
from modalign.errors import DataError, choose

T = TypeVar("T")

KEPT = 4  # files and row groups
READING = threading.Lock()  # media are checked in threads; only one of them should read a file
MISSING = {"", "na", "n/a", "nan", "null", "none"}  # spellings of an empty cell, in any case


def cell(text: str) -> float | str | None:
    """Parse a cell: a number, None if it is empty, else the text without outer spaces."""
    text = text.strip()
    if text.lower() in MISSING:
        return None
    try:
        return text if "_" in text else float(text)  # only Python reads 1_000 as a number
    except ValueError:
        return text


def csv_row(media: Media, file: Path, row: int) -> dict[str, str]:
    """Read one row (from 0, after the header) of a CSV file.

    Raises:
        SignalError: the file cannot be read, or has no such row.
    """
    rows = _opened(media, _csv_rows, file)
    if row >= len(rows):
        raise SignalError(media, _no_row(row, len(rows)))
    found = rows[row]
    if isinstance(found, RowError):
        raise SignalError(media, str(found))
    return found


def csv_columns(media: Media, file: Path) -> tuple[list[str] | None, list[list[str]]]:
    """Read the header (None if the first row is all numbers) and the rows of a CSV file.

    Raises:
        SignalError: the file cannot be read, or its rows have unequal lengths.
    """
    first, *rows = _opened(media, _csv_cells, file) or [[]]
    header = None if all(isinstance(cell(text), float | None) for text in first) else first
    if header is None:
        rows = [first, *rows]
    for number, row in enumerate(rows):
        if len(row) != len(first):
            raise SignalError(media, f"row {number} has {len(row)} cells, not {len(first)}")
    return header, rows


def parquet_names(media: Media, file: Path) -> list[str]:
    """Read the column names of a Parquet file.

    Raises:
        SignalError: the file is missing or not a Parquet file.
    """
    return list(_opened(media, _footer, file)[0])


def parquet_row(media: Media, file: Path, row: int, columns: Sequence[str]) -> dict[str, Any]:
    """Read some columns of one row (from 0).

    Raises:
        SignalError: the file cannot be read, or has no such row or column.
    """
    names, ends = _opened(media, _footer, file)
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise SignalError(media, f"has no column {unknown[0]!r}: {choose(unknown[0], names)}")
    if row >= ends[-1]:
        raise SignalError(media, _no_row(row, ends[-1]))
    group = next(number for number, end in enumerate(ends) if row < end)
    read = functools.partial(_group, group=group, columns=tuple(columns))
    table: Any = _opened(media, read, file)
    place = row - (ends[group - 1] if group else 0)
    return {name: table.column(name)[place].as_py() for name in columns}


def _no_row(row: int, rows: int) -> str:
    return f"has no row {row}: it has {rows}, counted from 0"


def _opened(media: Media, read: Callable[[str, int], T], file: Path) -> T:
    """Read a file, again only if it changed."""
    import pyarrow as pa  # type: ignore[import-untyped]

    try:
        with READING:
            return read(str(file), file.stat().st_mtime_ns)
    except FileNotFoundError:
        raise missing(media) from None
    except (pa.ArrowException, csv.Error, DataError, OSError, UnicodeDecodeError) as error:
        raise SignalError(media, f"cannot be read ({error})") from None


@functools.lru_cache(maxsize=KEPT)
def _csv_rows(file: str, _changed: int) -> list[dict[str, str] | RowError]:
    return [fields for _, fields in read_csv(Path(file))]


@functools.lru_cache(maxsize=KEPT)
def _csv_cells(file: str, _changed: int) -> list[list[str]]:
    with open(file, encoding="utf-8-sig", newline="") as opened:
        delimiter = max(",;\t", key=opened.readline().count)
        opened.seek(0)
        return [row for row in csv.reader(opened, delimiter=delimiter, strict=True) if row]


@functools.lru_cache(maxsize=KEPT)
def _footer(file: str, _changed: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Read the column names and, for each row group, the number of rows up to its end."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with pq.ParquetFile(file) as opened:
        meta = opened.metadata
        sizes = (meta.row_group(group).num_rows for group in range(meta.num_row_groups))
        return tuple(opened.schema_arrow.names), tuple(itertools.accumulate(sizes)) or (0,)


@functools.lru_cache(maxsize=KEPT)
def _group(file: str, _changed: int, group: int, columns: tuple[str, ...]) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=list(columns))


def parquet_cells(media: Media, file: Path) -> list[list[Any]]:
    """The names of a Parquet file's columns, and all rows.

    Raises:
        SignalError: the file is missing or no Parquet file.
    """
    names = parquet_names(media, file)
    import pyarrow.parquet as pq

    columns = pq.read_table(file).to_pydict()
    return [names, *map(list, zip(*(columns[name] for name in names), strict=True))]
