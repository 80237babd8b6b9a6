"""Atomic files and folders: readers see either the old content or the new one, after a kill, too."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from modalign.errors import UsageError
from modalign.memory import readable

_REPOSITORY = re.compile(r"(?!.{97})\w[\w.-]*(/[\w.-]+)?", re.ASCII)  # what the hub takes as a name
PROBE = 4096  # bytes written to test the disk before any work
_LEFT = re.compile(r"\..+\.[0-9a-f]{8}\.part")  # what is being written, or was when a process died
_BUSY = ".lock"  # in a folder being written, held by its process
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux


def _beside(path: Path) -> Path:
    """Return a new name beside a path, for what will replace it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write to a file beside ``path`` that replaces it if the block succeeds."""
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically; text as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def appears(path: Path, seconds: float = 60.0) -> bool:
    """Wait until a file that another machine has written is seen here, and say whether it is.

    Clients of shared storage remember for a while that a file was not there; listing its folders makes them look.
    """
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            for folder in (path.parent.parent, path.parent):
                os.listdir(folder)
        if path.exists():
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free(*paths: Path, overwrite: bool = False, folders: bool = False) -> None:
    """Refuse files that exist or cannot be written: before the work.

    Args:
        paths: files to write; parent folders may be missing.
        overwrite: existing files may be replaced.
        folders: paths are folders, not files; empty ones are free.

    Raises:
        UsageError: with what to do.
    """
    for path in paths:
        _check_one(path, overwrite, folders)


def _check_one(path: Path, overwrite: bool, folder: bool) -> None:
    try:
        if path.exists() and path.is_dir() != folder:
            raise UsageError(f"{path} is a {'file' if folder else 'folder'}: choose another name")
        if path.exists() and not overwrite and not (folder and not any(path.iterdir())):
            raise UsageError(
                f"{path} exists already: --overwrite replaces it, or choose another name"
            )
        above = next(folder for folder in path.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=above) as probe:
            probe.write(bytes(PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise unusable(path, error) from None


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuse a disk that does not take what will be written: before the work.

    Args:
        folder: that it goes to; may be missing.
        needed: bytes.
        what: is written, for the message: "the trained model takes".

    Raises:
        UsageError: there is less room.
    """
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UsageError(
            f"{folder}: {what} {readable(needed)}, and {readable(free)} are free: choose another place"
        )


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder, at any depth; 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def unusable(path: Path, error: OSError) -> UsageError:
    """Create the error for a path that cannot be written."""
    return UsageError(f"{path} cannot be written ({error.strerror}): choose another place")


def leads_nowhere(name: Path | str) -> bool:
    """Whether a name that may be the hub's can only be a path, and nothing is there."""
    text, path = str(name), Path(name)
    try:
        if path.exists():
            return False
    except (OSError, ValueError):  # too long for a file, or with a zero byte
        return True
    if path.suffix.lower() == ".gguf" and text.count("/") == 2:
        text = text.rpartition("/")[0]  # a file of a repository
    elif path.suffix.lower() == ".gguf":
        return True
    return not _REPOSITORY.fullmatch(text) or ".." in text or "--" in text


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Write to a folder beside ``folder`` that replaces it if the block succeeds.

    A process killed at any moment leaves the old folder or the new one under this name; what it leaves beside it
    is deleted by the next call.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_beside(folder)
    work = _beside(folder)
    work.mkdir(mode=0o700)
    try:
        with FileLock(work / _BUSY):
            new = work / "new"
            new.mkdir()
            yield new
            _put(new, folder)
    finally:
        for part in ("new", "old", ""):  # the lock last, so that what a kill leaves is found by it
            shutil.rmtree(work / part, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """Whether a name is of something half-written: by a living process, or left by a killed one."""
    return bool(_LEFT.fullmatch(path.name))


def clear_beside(path: Path) -> None:
    """Delete what killed processes left half-written of a file or folder, and put back a folder they moved away.

    A folder that a living process writes is kept. Files have no lock: nobody else may be writing this one.
    """
    start = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(start)}*.part"):
        if len(left.name) != len(_beside(path).name) or not is_leftover(left):
            continue
        if not left.is_dir():
            left.unlink()
        elif (left / _BUSY).exists():
            _clear_folder(left, path)


def _clear_folder(left: Path, folder: Path) -> None:
    try:
        with FileLock(left / _BUSY, timeout=0):
            old = left / "old"
            if old.exists() and not folder.exists():
                old.rename(folder)
            delete(left)
    except (Timeout, OSError):  # a living process writes there, or it is another user's
        return


def delete(path: Path) -> None:
    """Delete a file, or a folder with what is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put(new: Path, folder: Path) -> None:
    """Give a folder its name, in one step where the system can; the one that had it is beside it then."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchanged(new, folder):
        old = new.with_name("old")
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise


def _exchanged(first: Path, second: Path) -> bool:
    """Let two folders change names in one step; False where the system or the disk cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)
