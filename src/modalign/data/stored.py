"""Tokenised samples in a memory-mapped file: opening it costs the same for ten rows and ten million.

An Arrow file, read with pyarrow: columns are read in place, so the lengths of all samples are known
without decoding any. Everything in a row besides its tokens is JSON.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from modalign.data.readers.writer import plain_json
from modalign.data.records import Media, Message, Part, Record, Source
from modalign.data.supervision import Sample
from modalign.errors import DataError
from modalign.files import replacing

ROWS = 4096  # per batch of the file
BYTES = "$base64"  # the JSON key for bytes

SCHEMA = pa.schema(
    {
        "ids": pa.large_list(pa.int64()),
        "supervised": pa.large_list(pa.uint8()),
        "media": pa.int32(),
        "record": pa.large_utf8(),
    }
)


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples whose media are those of their records, atomically.

    Relative media paths become absolute, so that the file can be read from anywhere.

    Raises:
        DataError: a field of a record cannot be represented in JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = iter(samples)
    with replacing(path) as file, pa.ipc.new_file(file, SCHEMA) as out:
        while chunk := list(islice(rows, ROWS)):
            columns = {
                "ids": [sample.ids for sample in chunk],
                "supervised": [sample.supervised.astype(np.uint8) for sample in chunk],
                "media": [len(sample.media) for sample in chunk],
                "record": [_text(sample.record) for sample in chunk],
            }
            arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
            out.write_batch(pa.record_batch(arrays, SCHEMA))


class StoredSamples(Sequence[Sample]):
    """The samples of such a file, decoded on demand.

    Attributes:
        lengths: (n,) tokens of every sample.
        media: (n,) number of media of every sample.
    """

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._batches = [_Batch.of(batch) for batch in batches]
        none = np.zeros(0, dtype=np.int64)
        self.lengths = np.concatenate([none, *(np.diff(batch.starts) for batch in self._batches)])
        self.media = np.concatenate([none, *(batch.media for batch in self._batches)])

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        number, row = divmod(range(len(self))[index], ROWS)
        return self._batches[number].sample(row)


@dataclass(frozen=True)
class _Batch:
    ids: np.ndarray
    supervised: np.ndarray
    starts: np.ndarray
    media: np.ndarray
    records: Any

    @classmethod
    def of(cls, batch: Any) -> _Batch:
        ids, supervised, media, records = (batch.column(name) for name in SCHEMA.names)
        return cls(
            ids.values.to_numpy(),
            supervised.values.to_numpy().view(bool),
            ids.offsets.to_numpy(),
            media.to_numpy(),
            records,
        )

    def sample(self, row: int) -> Sample:
        start, stop = self.starts[row], self.starts[row + 1]
        record = _record(self.records[row].as_py())
        # Copies, because mapped memory is read-only and torch needs writable arrays.
        ids, supervised = self.ids[start:stop].copy(), self.supervised[start:stop].copy()
        return Sample(record, ids, supervised, tuple(record.media()))


class MediaOf:
    """The media of samples, decoded sample by sample on every iteration."""

    def __init__(self, *samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Media]:
        return (medium for some in self.samples for sample in some for medium in sample.media)


# --- records as JSON ----------------------------------------------------------------------------


def _text(record: Record) -> str:
    values = {
        "id": record.id,
        "messages": [[m.role, [_part(part) for part in m.parts]] for m in record.messages],
        "source": _place(record.source),
        "skill": record.skill,
        "group": record.group,
        "options": record.options,
        "answers": record.answers,
        "extra": record.extra,
    }
    try:
        return json.dumps(values, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise DataError(f"{record.source}: cannot be stored ({error})") from None


def _record(text: str) -> Record:
    values = json.loads(text, object_hook=_bytes_back if BYTES in text else None)
    messages = tuple(
        Message(role, tuple(_part_back(part) for part in parts))
        for role, parts in values.pop("messages")
    )
    options, answers = tuple(values.pop("options")), tuple(values.pop("answers"))
    source = Source(*values.pop("source"))
    return Record(messages=messages, source=source, options=options, answers=answers, **values)


def _part(part: Part) -> Any:
    if isinstance(part, str):
        return part
    values = {
        "modality": part.modality,
        "path": None if part.path is None else os.path.abspath(part.path),
        "data": part.data,
        "annotations": part.annotations,
        "source": part.source and _place(part.source),
    }
    return {name: value for name, value in values.items() if value is not None}


def _part_back(part: Any) -> Part:
    if isinstance(part, str):
        return part
    source = part.pop("source", None)
    return Media(**part, source=Source(*source) if source else None)


def _place(source: Source) -> tuple[str, int]:
    return source.file, source.row


def _plain(value: Any) -> Any:
    return (
        {BYTES: base64.b64encode(value).decode()} if isinstance(value, bytes) else plain_json(value)
    )


def _bytes_back(values: dict[str, Any]) -> Any:
    return base64.b64decode(values[BYTES]) if list(values) == [BYTES] else values
