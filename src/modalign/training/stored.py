"""A stored teacher: its most likely words at every position, read from disk instead of computed.

A store is a folder: the tokenizer's files, ``store.json`` and shards of consecutive records in safetensors. For
each position it holds the k most likely words with their log-probabilities at one temperature, and the
log-probability of all others together, so that a divergence from it is one between distributions over k + 1
outcomes: never more than the whole one. Records are found by their content (tokens, what is supervised, media),
whatever their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modalign.data.modalities import modality_names
from modalign.data.records import mark
from modalign.data.supervision import Sample
from modalign.errors import DataError

HEADER = "store.json"
SHARDS = "shard-*.safetensors"
Place = Literal["answers", "media"]
NEEDS: dict[Place, str] = {"answers": "logits", "media": "media_logits"}
READERS = ("kl_answer", "kl_visual")  # terms that a divergence over k + 1 outcomes is enough for


class StoreHeader(BaseModel):
    """What a store is of.

    Attributes:
        teacher: its folder, for people.
        sha256: of the teacher's weights.
        parameters: how many it has.
        data: hash of the records, in order.
        records: how many.
        at: positions that are stored.
        top: k.
        temperature: of the stored log-probabilities.
        vocabulary: V, the words that they are about.
        moved: nats that blank media move the teacher's answers by, per record looked at.
    """

    model_config = ConfigDict(extra="forbid")

    teacher: str
    sha256: str
    parameters: int
    data: str
    records: int
    at: list[Place]
    top: int
    temperature: float
    vocabulary: int
    moved: list[float] = []


def is_store(folder: str | Path) -> bool:
    """Whether a folder is a finished store."""
    return (Path(folder) / HEADER).is_file()


def sample_keys(samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what records are found by: a hash of their tokens, what is supervised, and their media."""
    known = tokenizer.get_vocab()
    marks = {known[mark(m)]: -1 - n for n, m in enumerate(modality_names()) if mark(m) in known}
    return [_key(sample, marks) for sample in samples]


def _key(sample: Sample, marks: dict[int, int]) -> str:
    ids = np.array([marks.get(token, token) for token in sample.ids.tolist()], dtype="<i8")
    digest = hashlib.sha256(ids.tobytes() + np.packbits(sample.supervised).tobytes())
    for medium in sample.media:
        digest.update(medium.content_hash().encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class _Rows:
    """Where a record's rows stand: the shard, and its first row and their number by place."""

    shard: Path
    spans: dict[Place, tuple[int, int]]


class Store:
    """A finished store.

    Raises:
        DataError: its header or a shard cannot be read, or a shard is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.header = StoreHeader.model_validate_json((folder / HEADER).read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{folder / HEADER}: cannot be read ({error}); store it again"
            ) from error

    @cached_property
    def places(self) -> dict[str, _Rows]:
        """Record -> its rows."""
        found: dict[str, _Rows] = {}
        total = 0
        for shard in sorted(self.folder.glob(SHARDS)):
            with _opened(shard) as file:
                keys = file.metadata()["keys"].split(",")
                counts = {at: file.get_tensor(f"{at}.counts").tolist() for at in self.header.at}
            total += len(keys)
            ends = {at: np.cumsum(values).tolist() for at, values in counts.items()}
            for number, key in enumerate(keys):
                spans = {at: (ends[at][number] - n[number], n[number]) for at, n in counts.items()}
                found[key] = _Rows(shard, spans)
        if total != self.header.records:
            raise DataError(
                f"{self.folder} should hold {self.header.records} records, but its shards hold {total}; store "
                "them again"
            )
        return found

    def rows(self, key: str, at: Place) -> tuple[Tensor, Tensor]:
        """Return a record's words (R, k) and their log-probabilities (R, k + 1), the rest's last."""
        rows = self.places[key]
        first, count = rows.spans[at]
        with _opened(rows.shard) as file:
            ids, values = (
                file.get_slice(f"{at}.{name}")[first : first + count] for name in ("ids", "values")
            )
        return ids, values


def _opened(shard: Path) -> Any:
    try:
        return safe_open(shard, "pt")
    except Exception as error:  # safetensors raises its own
        raise DataError(f"{shard}: cannot be read ({error}); delete it and store again") from error
