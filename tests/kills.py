"""What kill -9 or a full disk leave behind, at every write of a verb.

Before each operation on a file or folder (an event of the interpreter) the folder is copied: the copy holds what a
process killed at that moment leaves. Files that were written since the event before are cut in half in a second
copy, as a kill in the middle of writing leaves them. A full disk is the same event, raising.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
DRAWN = re.compile(r"\.[0-9a-z_]{8}(?=\.part|/|$)")  # random parts of names


def held(folder: Path) -> dict[str, bytes]:
    """Path below a folder -> content, of every file."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _watch(folder: Path, told: Callable[[str], None]) -> None:
    """Call ``told`` just before everything that changes the folder; for the rest of the process."""
    busy = False

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal busy
        writes = event in CHANGES or (event == "open" and (given[2] or 0) & WRITING)
        if busy or not writes or not str(given[0]).startswith(str(folder)):
            return
        busy = True
        try:
            told(event)
        finally:
            busy = False

    sys.addaudithook(hook)


def in_child(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Run in a forked process; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def states(folder: Path, kept: Path, work: Callable[[], Any]) -> list[Path]:
    """Run a verb that writes below ``folder``; copies of what a kill at each of its writes leaves, in order.

    Args:
        folder: that it writes to, and what is there before.
        kept: folder for the copies.
        work: runs it; in a process of its own.
    """
    before: dict[str, bytes] = held(folder)
    seen: set[str] = set()
    last, count = "", 0

    def keep(state: Path) -> None:
        nonlocal count
        digest = hashlib.sha256()
        for path in sorted(state.rglob("*")):
            digest.update(DRAWN.sub("", str(path.relative_to(state))).encode())
            digest.update(path.read_bytes() if path.is_file() else b"")
        if digest.hexdigest() in seen:
            shutil.rmtree(state)
        else:
            seen.add(digest.hexdigest())
            state.rename(kept / f"{count:04}")
            count += 1

    def told(event: str) -> None:
        nonlocal before, last
        now = held(folder)
        written = [name for name, value in now.items() if before.get(name) != value]
        if last != "os.rename" and any(now[name] for name in written):
            torn = kept / "torn"
            shutil.copytree(folder, torn)
            for name in written:
                (torn / name).write_bytes(now[name][: len(now[name]) // 2])
            keep(torn)
        shutil.copytree(folder, kept / "next")
        keep(kept / "next")
        before, last = now, event

    def watched() -> None:
        _watch(folder, told)
        work()

    kept.mkdir()
    assert in_child(watched) == 0
    return sorted(kept.iterdir())


def restore(state: Path, folder: Path) -> None:
    """Make the folder what it was at a kill."""
    shutil.rmtree(folder)
    shutil.copytree(state, folder)


def full_from(folder: Path, number: int) -> None:
    """Refuse the n-th opening for writing below the folder, and all that follow, as a full disk does; for good."""
    left = number

    def told(event: str) -> None:
        nonlocal left
        if event in ("open", "os.mkdir"):
            left -= 1
            if left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")

    _watch(folder, told)


def spread(found: list[Path], count: int) -> list[Path]:
    """So many of them, evenly over all; ``MODALIGN_EVERY_KILL=1``: all."""
    if os.environ.get("MODALIGN_EVERY_KILL") or len(found) <= count:
        return found
    return [found[round(i * (len(found) - 1) / (count - 1))] for i in range(count)]


def same(one: Mapping[str, bytes], other: Mapping[str, bytes], names: str) -> None:
    """Files whose names match have equal bytes in both; safetensors leaves the order of its metadata to chance."""
    chosen = [
        {n: _ordered(n, v) for n, v in each.items() if re.search(names, n)} for each in (one, other)
    ]
    assert chosen[0].keys() == chosen[1].keys(), chosen[0].keys() ^ chosen[1].keys()
    differ = [name for name, value in chosen[0].items() if chosen[1][name] != value]
    assert not differ, differ


def _ordered(name: str, content: bytes) -> tuple[str, bytes]:
    if not name.endswith(".safetensors"):
        return "", content
    (size,) = struct.unpack("<Q", content[:8])
    return json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True), content[8 + size :]
