"""Tables: columns, kinds, categories and scales come from the training data."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import PositiveInt

from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.tables import Row, Value, open_table
from modalign.encoders.table import MAX_CATEGORIES, TableEncoder, build, category
from modalign.errors import DataError, UsageError
from modalign.models.encoders.options import Options

KINDS = {None: "fixed", "none": "fixed", "columns": "columns"}
QUANTILES = 33  # knots of a column with `numbers: quantile`


class TableOptions(Options):
    """Options of table encoders.

    Attributes:
        columns: columns to read, in this order; others are ignored (default: all, and at inference an
            additional one is an error).
        numeric: columns whose values are numbers, whatever they look like.
        categorical: columns whose values are categories, such as codes written as numbers.
        numbers: standardised, or their rank among the training data's quantiles (for long tails).
        min_count: categories seen less often count as unseen, which trains the embedding of unseen ones.
        width: d of the ``columns`` encoder.
    """

    columns: tuple[str, ...] | None = None
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    numbers: Literal["standard", "quantile"] = "standard"
    min_count: PositiveInt = 1
    width: PositiveInt = 64


def load(
    name: str | None, media: Sequence[Media], options: dict[str, Any], allow_pickle: bool = False
) -> tuple[dict[str, Any], TableEncoder]:
    """Configure and build a table encoder for training rows.

    A column without any value in training is dropped, and named in a warning and in ``spec["dropped"]``.

    Args:
        name: None or "none": fixed features; "columns": trained embeddings.
        media: training media.
        options: see :class:`TableOptions`.
        allow_pickle: not used.

    Raises:
        UsageError: an unknown name, option or column, or no media.
        SignalError: a row cannot be read, or has text in a numeric column.
        DataError: no column has a value.
    """
    if name not in KINDS:
        raise UsageError(f"no table encoder {name!r}: choose none or columns")
    chosen = TableOptions.read("table", options)
    if not media:
        raise UsageError("no tables in the training data, which determine the columns")
    rows = [open_table(medium) for medium in media]
    names = _names(rows, chosen)
    columns, dropped = [], []
    for column in names:
        values = [row.get(column) for row in rows]
        if all(value is None for value in values):
            dropped.append(column)
        else:
            columns.append({"name": column, **_describe(column, values, media, chosen)})
    if dropped:
        _report(dropped, chosen)
    if not columns:
        raise DataError(
            f"none of the tables' {len(names)} columns has a value in the training data"
        )
    spec = {
        "kind": KINDS[name],
        "columns": columns,
        "dropped": dropped,
        "ignores_others": chosen.columns is not None,
    }
    if spec["kind"] == "columns":
        spec["width"] = chosen.width
    return spec, build(spec).eval()


def decode(media: Media, spec: dict[str, Any]) -> Row:
    """Read a row for the model.

    Raises:
        SignalError: a column that training did not have, or text where it had numbers.
    """
    row = open_table(media)
    known = {column["name"]: column for column in spec["columns"]}
    others = [name for name in row if name not in known and name not in spec["dropped"]]
    if others and not spec["ignores_others"]:
        raise SignalError(
            media,
            f"has a column {others[0]!r} that training did not have; its columns: "
            f"{', '.join(known)}. Rename it, or train with columns=[...] to ignore others",
        )
    for name, value in row.items():
        if isinstance(value, str) and name in known and "categories" not in known[name]:
            raise SignalError(media, f"column {name!r} is {value!r}; it had numbers in training")
    return row


def _names(rows: Sequence[Row], chosen: TableOptions) -> list[str]:
    """Return the columns to read, in order of first occurrence."""
    found = list(dict.fromkeys(name for row in rows for name in row))
    asked = [*(chosen.columns or ()), *chosen.numeric, *chosen.categorical]
    unknown = [name for name in asked if name not in found]
    if unknown:
        raise UsageError(f"no column {unknown[0]!r} in the tables; columns: {', '.join(found)}")
    both = set(chosen.numeric) & set(chosen.categorical)
    if both:
        raise UsageError(f"column {both.pop()!r} cannot be numeric and categorical")
    return found if chosen.columns is None else list(chosen.columns)


def _report(dropped: list[str], chosen: TableOptions) -> None:
    asked = {*(chosen.columns or ()), *chosen.numeric, *chosen.categorical} & set(dropped)
    if asked:
        raise UsageError(
            f"column {asked.pop()!r} has no value in the training data: do not request it"
        )
    logging.getLogger(__name__).warning(
        "table: left out, because the training data has no value there: %s", ", ".join(dropped)
    )


def _describe(
    column: str, values: Sequence[Value], media: Sequence[Media], chosen: TableOptions
) -> dict[str, Any]:
    """Describe a column: its categories, or the scale of its numbers."""
    text = next((i for i, value in enumerate(values) if isinstance(value, str)), None)
    if column in chosen.numeric and text is not None:
        raise SignalError(
            media[text], f"column {column!r} is {values[text]!r}, but it was declared numeric"
        )
    if text is not None or column in chosen.categorical:
        return {"categories": _categories(column, values, chosen.min_count)}
    numbers = np.array([value for value in values if value is not None], dtype=np.float64)
    if chosen.numbers == "quantile":
        return {"knots": np.unique(np.quantile(numbers, np.linspace(0, 1, QUANTILES))).tolist()}
    scale = float(numbers.std())
    return {"mean": float(numbers.mean()), "scale": scale if scale > 0 else 1.0}


def _categories(column: str, values: Sequence[Value], min_count: int) -> list[str]:
    """Return sufficiently frequent categories, most frequent first, at most as many as there are codes."""
    counts = Counter(category(value) for value in values if value is not None)
    ordered = sorted(counts, key=lambda name: (-counts[name], name))
    kept = [name for name in ordered if counts[name] >= min_count]
    if len(kept) > MAX_CATEGORIES:
        logging.getLogger(__name__).warning(
            "table: column %r has %d categories; the %d most frequent are distinguished, others count "
            "as unseen",
            column,
            len(kept),
            MAX_CATEGORIES,
        )
    return kept[:MAX_CATEGORIES]
