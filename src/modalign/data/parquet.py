"""One row of a Parquet file, without reading the rest of it: only its row group, kept while rows are near."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modalign.data.records import Media
from modalign.data.signals import SignalError

GROUPS_KEPT = 4


def parquet_columns(media: Media, file: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        SignalError: the file is missing or no Parquet file.
    """
    return list(_shape(media, file)[0])


def parquet_row(media: Media, file: Path, row: int, columns: Sequence[str]) -> dict[str, Any]:
    """The values of one row (from 0) in some columns.

    Raises:
        SignalError: the file cannot be read, or has no such row or column.
    """
    names, ends = _shape(media, file)
    unknown = [name for name in columns if name not in names]
    if unknown:
        raise SignalError(
            "broken-media",
            media,
            f"has no column {unknown[0]!r}: choose from {', '.join(names)}",
        )
    if row >= ends[-1]:
        raise SignalError("broken-media", media, f"has {ends[-1]} rows, 0 to {ends[-1] - 1}")
    group = next(number for number, end in enumerate(ends) if row < end)
    table = _group(str(file), file.stat().st_mtime_ns, group, tuple(columns))
    place = row - (ends[group - 1] if group else 0)
    return {name: table.column(name)[place].as_py() for name in columns}


def _shape(media: Media, file: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Column names, and for each row group the number of rows up to its end."""
    import pyarrow as pa  # type: ignore[import-untyped]

    try:
        return _footer(str(file), file.stat().st_mtime_ns)
    except FileNotFoundError:
        raise SignalError(
            "missing-media", media, "the file does not exist: put it there or correct the path"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise SignalError("broken-media", media, f"no readable Parquet file ({error})") from None


@functools.lru_cache(maxsize=GROUPS_KEPT)
def _footer(file: str, _changed: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with pq.ParquetFile(file) as opened:
        meta = opened.metadata
        sizes = (meta.row_group(group).num_rows for group in range(meta.num_row_groups))
        return tuple(opened.schema_arrow.names), tuple(itertools.accumulate(sizes)) or (0,)


@functools.lru_cache(maxsize=GROUPS_KEPT)
def _group(file: str, _changed: int, group: int, columns: tuple[str, ...]) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=list(columns))
