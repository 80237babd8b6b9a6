"""Records for comparing an exported model: given ones, those of its run, or the starter's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modalign.configuration import read_yaml
from modalign.data.readers import read_records
from modalign.data.records import Record
from modalign.errors import DataError
from modalign.models.asking import modalities_of
from modalign.runs import RECORD
from modalign.starter.build import located, starter


def records_for(
    folder: Path,
    processor: Any,
    data: str | None,
    count: int,
    columns: Mapping[str, str] | None = None,
) -> tuple[list[Record], str]:
    """Return records for the comparison, preferring those with media, and their origin.

    Raises:
        DataError: there are none; the message says what to give.
    """
    taken = modalities_of(processor)
    origin = data or run_data(folder)
    if origin is None and taken == ["image"]:
        origin = str(starter().val)
    if origin is None:
        raise DataError(
            f"there are no records to compare the export of {folder} on: give records of "
            f"{' and '.join(taken) or 'text'} with --data"
        )
    found = read_records(origin, modalities=taken or ["image"], columns=columns).records
    found = [record for record in found if record.messages[0].role != "assistant"]
    chosen = [record for record in found if any(True for _ in record.media())] or found
    if not chosen:
        raise DataError(f"{origin} holds no record to compare on")
    return chosen[:count], origin


def run_data(folder: Path) -> str | None:
    """Return the validation or training data of the run that contains this model folder, if any."""
    try:
        values = read_yaml((folder.resolve().parent / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    named = values.get("data") if isinstance(values, dict) else None
    for key in ("val", "train"):
        path = named.get(key) if isinstance(named, dict) else None
        if isinstance(path, str) and Path(located(path)).exists():
            return located(path)
    return None
