"""Atomic files: readers see either the old content or the new one."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from modalign.errors import UsageError
from modalign.memory import readable

_REPOSITORY = re.compile(r"(?!.{97})\w[\w.-]*(/[\w.-]+)?", re.ASCII)  # what the hub takes as a name
PROBE = 4096  # bytes written to test the disk before any work


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write to a file beside ``path`` that replaces it if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
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
    """Write to a folder beside ``folder`` that replaces it if the block succeeds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
