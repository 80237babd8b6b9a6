"""Parquet files and data sets saved by Hugging Face `datasets`: both are Arrow tables.

Rows come from the raw Arrow batches, so images are encoded bytes or paths and are not decoded here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from modalign.data.readers.result import RawRows
from modalign.errors import DataError

BATCH_ROWS = 256


def read_parquet(path: Path) -> RawRows:
    """Yield the rows of a Parquet file.

    Raises:
        DataError: it is not a Parquet file, or is damaged.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches(batch_size=BATCH_ROWS))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_saved_dataset(path: Path, split: str | None) -> RawRows:
    """Yield the rows of a data set written by `save_to_disk`.

    Raises:
        DataError: it cannot be read, or the split is missing or not one of its splits.
    """
    import datasets
    import pyarrow as pa

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable saved data set ({error})") from None
    table = _select_split(loaded, path, split)
    batches = table.with_format("arrow").iter(batch_size=BATCH_ROWS)
    yield from _numbered(batches)


def _select_split(loaded: Any, path: Path, split: str | None) -> Any:
    splits = list(loaded) if isinstance(loaded, dict) else None
    if splits is None:
        if split is not None:
            raise DataError(f"{path}: has no splits, so {split!r} cannot be chosen; drop it")
        return loaded
    if split not in splits:
        wrong = f"has no split {split!r}" if split else "has several splits"
        choices = ", ".join(f"{path}:{name}" for name in splits)
        raise DataError(f"{path}: {wrong}; name one of {choices}")
    return loaded[split]


def _numbered(batches: Iterable[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = (row for batch in batches for row in batch.to_pylist())
    yield from zip(itertools.count(1), rows, strict=False)
