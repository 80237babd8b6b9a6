"""CSV (comma, semicolon or tab). Rows are numbered as in a spreadsheet: the header is row 1."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from modalign.data.readers.result import Fields, RawRows, RowError
from modalign.errors import DataError


def read_csv(path: Path) -> RawRows:
    """Yield the rows of a CSV file with a header.

    Raises:
        DataError: the header is missing, unreadable or names a column twice.
    """
    # Bytes that are not UTF-8 become lone surrogates, which `build_record` reports with their row.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, (_, fields) in enumerate(csv_rows(file, path), start=2):
            if fields is not None:
                yield number, fields


def csv_rows(file: TextIO, path: Path) -> Iterator[tuple[int, Fields | RowError | None]]:
    """Yield every row after the header: the line it starts on, and its cells by column.

    Args:
        file: at its start.
        path: for error messages.

    Yields:
        None for an empty row, and an error for an unreadable one.

    Raises:
        DataError: as `read_csv`.
    """
    delimiter = max(",;\t", key=file.readline().count)
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    header = _header(reader, path)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, RowError("row", f"not valid CSV ({error}): check the quotation marks")
            continue
        if cells and len(cells) != len(header):
            message = (
                f"{len(cells)} cells under {len(header)} columns: quote cells with {delimiter!r}"
            )
            yield line, RowError("row", message)
        else:
            yield line, dict(zip(header, cells, strict=True)) if cells else None


def _header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except (StopIteration, csv.Error) as error:
        raise DataError(f"{path}:1: unreadable CSV header ({error})") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}:1: duplicate column names: {', '.join(twice)}. Rename one of each."
        )
    return header
