"""What the cache holds, and what may go: by kind, by age, down to a size; never what a process is using.

Only what modalign itself writes is listed and cleared, whatever else the folder holds.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.cache import USED, cache_directory
from modalign.errors import UsageError, choose

DEPTHS = {"covariance": 1, "edit-settings": 1, "features": 1, "imported": 1, "values": 2}
WHOLE = {  # entries that are the first level themselves: name -> kind
    r"starter-\d+": "starter",
    r"digit-reader-\d+\.safetensors": "digit-reader",
    r"tools": "tools",
    r"real": "real",
}
KINDS = {
    "covariance": "statistics of a model's keys, for editing",
    "digit-reader": "the fitted reader of digits",
    "edit-settings": "settings found for a model, for editing",
    "features": "features of frozen encoders",
    "imported": "unpacked GGUF files",
    "real": "models and environment of bench.real",
    "starter": "data of the starter",
    "tools": "results of tools",
    "values": "values found for edits",
}
LOCKS = (USED, "lock", ".lock")
SPANS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Entry:
    """One thing in the cache.

    Attributes:
        path: file or folder.
        kind: one of ``KINDS``.
        size: bytes, of all its files.
        used: seconds since the epoch: when a process last said that it uses it, else last read or written.
        busy: whether a process holds it.
    """

    path: Path
    kind: str
    size: int
    used: float
    busy: bool

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values, with the time in ISO 8601."""
        used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.used))
        return {
            "kind": self.kind,
            "path": str(self.path),
            "bytes": self.size,
            "used": used,
            "busy": self.busy,
        }


def cache_entries(cache: Path | None = None) -> list[Entry]:
    """List what a cache holds, by kind, the last used first.

    Args:
        cache: the folder; None: the user's own.
    """
    found = [_entry(kind, path) for kind, path in _places(cache or cache_directory())]
    return sorted(found, key=lambda each: (each.kind, -each.used))


def to_clear(
    entries: Collection[Entry],
    *,
    kinds: Collection[str] = (),
    unused: float | None = None,
    down_to: int | None = None,
) -> list[Entry]:
    """Choose entries, the longest unused first; what is busy stays, but counts.

    Args:
        entries: of the cache.
        kinds: only these; empty: all.
        unused: only those not used for so many seconds.
        down_to: only until the entries of these kinds have so many bytes together.

    Raises:
        UsageError: there is no such kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"the cache keeps nothing of the kind {kind!r}: {choose(kind, KINDS)}")
    within = [each for each in entries if not kinds or each.kind in kinds]
    total = sum(each.size for each in within)
    chosen = []
    for entry in sorted(within, key=lambda each: each.used):
        if down_to is not None and total <= down_to:
            break
        if entry.busy or (unused is not None and time.time() - entry.used < unused):
            continue
        chosen.append(entry)
        total -= entry.size
    return chosen


def clear(entry: Entry) -> bool:
    """Delete an entry; return whether it went: a process may have taken it up since it was listed."""
    if not entry.path.is_dir():
        entry.path.unlink(missing_ok=True)
        return True
    with _held_alone(entry.path) as free:
        if not free:
            return False
        gone = entry.path.with_name(f".{entry.path.name}.cleared")
        shutil.rmtree(gone, ignore_errors=True)
        entry.path.rename(gone)  # at once, so that nobody reads half of it
    shutil.rmtree(gone)
    return True


def seconds_of(text: str) -> float:
    """Read a span of time: ``12h``, ``30d``.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mhdw])", text.strip().lower())
    if not found:
        raise UsageError(f"{text!r} is no span of time: write 30m, 12h, 30d or 4w")
    return float(found[1]) * SPANS[found[2]]


def _places(cache: Path) -> Iterator[tuple[str, Path]]:
    for kind, depth in DEPTHS.items():
        found = cache.glob("/".join([kind, *["*"] * depth]))
        yield from ((kind, path) for path in found if not path.name.startswith("."))
    for path in cache.iterdir() if cache.is_dir() else ():
        kinds = [kind for name, kind in WHOLE.items() if re.fullmatch(name, path.name)]
        yield from ((kind, path) for kind in kinds)


def _entry(kind: str, path: Path) -> Entry:
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    size, used, told = 0, 0.0, None
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # written and renamed while we look
            found = file.stat()
            size += found.st_size
            if file.name == USED:
                told = found.st_mtime
            else:
                used = max(used, found.st_mtime, found.st_atime)
    if not path.is_dir():
        return Entry(path, kind, size, used, False)
    with _held_alone(path) as free:
        return Entry(path, kind, size, told or used or path.stat().st_mtime, not free)


@contextlib.contextmanager
def _held_alone(folder: Path) -> Iterator[bool]:
    """Hold every lock of an entry; whether that was possible."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl
        except ImportError:  # not POSIX: what is open cannot be deleted there
            yield True
            return
        try:
            for name in LOCKS:
                for lock in sorted(folder.glob(name)):
                    file = stack.enter_context(lock.open("rb"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
