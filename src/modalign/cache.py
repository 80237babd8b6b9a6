"""The folder for everything that can be recomputed: features, statistics, tools' results, the starter's data.

A process holds the entries that it reads (:func:`in_use`): clearing leaves them alone, on shared storage, too.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import IO

USED = ".in-use"  # held by whoever reads an entry; its time is that of the last use


def cache_directory() -> Path:
    """``$MODALIGN_CACHE``, else ``$XDG_CACHE_HOME/modalign``, else ``~/.cache/modalign``."""
    if chosen := os.environ.get("MODALIGN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modalign"


_held: dict[Path, IO[bytes]] = {}  # for as long as the process lives; its children hold them, too


def in_use(entry: Path) -> None:
    """Make an entry's folder if it is not there, and keep it from being cleared while this process lives.

    A cache that cannot be written is read without holding anything: nobody clears it either.
    """
    with contextlib.suppress(OSError):
        while True:
            entry.mkdir(parents=True, exist_ok=True)
            marker = entry / USED
            known = _held.get(marker)
            if known is None:
                known = _held[marker] = marker.open("ab")
                _lock_shared(known)
            if marker.exists() and os.path.samestat(os.fstat(known.fileno()), marker.stat()):
                os.utime(marker)
                return
            _held.pop(marker).close()  # cleared between two looks: a new one


def _lock_shared(file: IO[bytes]) -> None:
    with contextlib.suppress(ImportError):  # not POSIX: files that are open cannot be deleted there
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
