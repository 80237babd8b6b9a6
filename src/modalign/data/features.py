"""The feature cache: a frozen encoder encodes every medium once, for all methods and seeds.

A store belongs to one encoder (weights, configuration and processor, hashed) and holds shards: a
raw array of all tokens and a JSON index ``content hash -> (first row, tokens, h, w)``. Shards are
memory-mapped. A shard exists only once its index does, and the index is renamed into place after
the array, so an interrupted write is never read. Writers of one store take turns with a file lock, on shared
storage, too; who reads one holds it (``modalign.cache.in_use``), so that it is not cleared meanwhile.

Features may be kept in half precision: half the space. What rounding changed is measured as they are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from modalign.cache import in_use
from modalign.data.records import Media
from modalign.errors import DataError
from modalign.files import replacing, write_atomically

FORMAT = 1
SHARD_BYTES = 256 * 2**20
Grid = tuple[int, int]
Progress = Callable[[int, int], None]
Kept = Literal["float32", "float16"]


class Encode(Protocol):
    """Computes features: a batch of media -> one (N, d) array and grid each."""

    def __call__(self, media: Sequence[Media]) -> list[tuple[np.ndarray, Grid | None]]:
        """Return features in the order of the media."""


@dataclass(frozen=True)
class _Place:
    shard: int
    start: int
    count: int
    grid: Grid | None


def encoder_key(module: nn.Module, spec: dict[str, Any], processor: Any) -> str:
    """Hash everything that features depend on besides the media: weights, description, processor."""
    digest = hashlib.sha256()
    settings = processor.to_dict() if hasattr(processor, "to_dict") else {}
    digest.update(json.dumps([FORMAT, spec, settings], sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().flatten().contiguous()  # a scalar cannot be viewed as bytes
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


class FeatureStore:
    """Features of one encoder, by content hash of the medium.

    Args:
        root: cache directory; the store lives in ``root/key``.
        key: from :func:`encoder_key`.
        kept: the type that features are kept in; they are given as float32.
    """

    def __init__(self, root: Path, key: str, kept: Kept = "float32") -> None:
        self.folder = root / (key if kept == "float32" else f"{key}-{kept}")
        self.folder.mkdir(parents=True, exist_ok=True)
        in_use(self.folder)
        self.kept = np.dtype(kept)
        self._squares: list[
            tuple[float, float]
        ] = []  # per shard: what rounding changed, and the whole
        self._arrays: list[np.ndarray] = []
        self._places: dict[str, _Place] = {}
        self._known: set[str] = set()
        self._hashes: dict[Media, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Load shards that other processes have finished; ignore unreadable ones."""
        for index_path in sorted(self.folder.glob("*.json")):
            if index_path.name in self._known:
                continue
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError):
                index = json.loads(index_path.read_text())
                array = np.load(index_path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
                if index["format"] != FORMAT or list(array.shape) != index["shape"]:
                    continue
                number = len(self._arrays)
                self._places |= {
                    content: _Place(number, start, count, (h, w) if h else None)
                    for content, (start, count, h, w) in index["rows"].items()
                }
                self._arrays.append(array)
                self._squares.append(tuple(index.get("rounding", (0.0, 0.0))))
                self._known.add(index_path.name)  # an unreadable one may be rewritten

    def hash_of(self, medium: Media) -> str:
        """Return a medium's content hash, computed once."""
        known = self._hashes.get(medium)
        if known is None:
            known = self._hashes[medium] = medium.content_hash()
        return known

    def __contains__(self, medium: Media) -> bool:
        return self.hash_of(medium) in self._places

    @property
    def rounding(self) -> float:
        """Norm of what rounding to the kept type changed, over the norm of the features; 0: nothing."""
        changed, whole = (
            (sum(each) for each in zip(*self._squares, strict=True)) if self._squares else (0, 0)
        )
        return math.sqrt(changed / whole) if whole else 0.0

    def ensure(
        self,
        media: Sequence[Media],
        encode: Encode,
        batch: int = 64,
        progress: Progress | None = None,
    ) -> int:
        """Compute missing features; return how many media were encoded."""
        with _lock(self.folder / "lock"):
            self.refresh()
            missing = list({self.hash_of(m): m for m in media if m not in self}.values())
            shard: dict[str, tuple[np.ndarray, Grid | None]] = {}
            size, squares = 0, np.zeros(2)
            for first in range(0, len(missing), batch):
                chunk = missing[first : first + batch]
                for medium, (array, grid) in zip(chunk, encode(chunk), strict=True):
                    kept, lost = self._rounded(array, medium)
                    shard[self.hash_of(medium)] = (kept, grid)
                    squares += lost
                    size += kept.nbytes
                if size >= SHARD_BYTES:
                    self._write(shard, squares)
                    shard, squares, size = {}, np.zeros(2), 0
                if progress:
                    progress(first + len(chunk), len(missing))
            if shard:
                self._write(shard, squares)
            self.refresh()
        return len(missing)

    def _rounded(self, array: np.ndarray, medium: Media) -> tuple[np.ndarray, np.ndarray]:
        """Features as they are kept; the squares of what that changed and of the whole.

        Raises:
            DataError: a feature is beyond the range of the type.
        """
        if self.kept == np.float32:
            return array, np.zeros(2)
        with np.errstate(over="ignore"):
            kept = array.astype(self.kept)
        if not np.isfinite(kept).all():
            raise DataError(
                f"{medium.label}: a feature of {np.abs(array).max():.3g} is beyond {self.kept.name}: keep these "
                "features in float32 (parts.features)"
            )
        exact = array.astype(np.float64)
        return kept, np.array([np.square(kept - exact).sum(), np.square(exact).sum()])

    def _write(self, shard: dict[str, tuple[np.ndarray, Grid | None]], squares: np.ndarray) -> None:
        arrays = [array for array, _ in shard.values()]
        joined = np.concatenate(arrays)
        rows, start = {}, 0
        for content, (array, grid) in shard.items():
            rows[content] = [start, len(array), *(grid or (0, 0))]
            start += len(array)
        name = hashlib.sha256("".join(shard).encode()).hexdigest()[:16]
        index = {"format": FORMAT, "shape": list(joined.shape), "rows": rows}
        index |= {"rounding": squares.tolist()} if self.kept != np.float32 else {}
        with replacing(self.folder / f"{name}.npy") as file:
            np.save(file, joined, allow_pickle=False)
        write_atomically(self.folder / f"{name}.json", json.dumps(index))

    def _place(self, medium: Media) -> _Place:
        place = self._places.get(self.hash_of(medium))
        if place is None:
            raise DataError(
                f"{medium.label} has no cached features; its file changed during the run"
            )
        return place

    def count(self, medium: Media) -> int:
        """Return the number of features of a medium.

        Raises:
            DataError: as :meth:`gather`.
        """
        return self._place(medium).count

    def gather(self, media: Sequence[Media]) -> tuple[Tensor, Tensor, Grid | None]:
        """Return the features of media: values (n, N, d), mask (n, N), and the grid if they share one.

        Raises:
            DataError: a medium was never encoded (its file changed after validation).
        """
        places = [self._place(medium) for medium in media]
        longest = max(place.count for place in places)
        first = self._arrays[places[0].shard]
        values = np.zeros((len(places), longest, first.shape[1]), dtype=first.dtype)
        mask = np.zeros((len(places), longest), dtype=bool)
        for row, place in enumerate(places):
            values[row, : place.count] = self._arrays[place.shard][
                place.start : place.start + place.count
            ]
            mask[row, : place.count] = True
        grids = {place.grid for place in places}
        return (
            torch.from_numpy(values).float(),
            torch.from_numpy(mask),
            grids.pop() if len(grids) == 1 else None,
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock; on platforms without one, writers may do the work twice."""
    with path.open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except ImportError:  # not POSIX
            pass
        yield
