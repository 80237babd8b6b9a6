"""The folder of a run: checked before the work, written by one process, recorded, resumable.

One rule for every verb that writes a folder: an existing run is refused, ``--resume`` continues it, and
``--overwrite`` starts again. A verb that writes a file calls :func:`modalign.files.check_free`.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from filelock import FileLock, Timeout

from modalign.configuration import read_yaml
from modalign.differences import differences
from modalign.errors import UsageError
from modalign.files import delete, is_leftover, unusable, write_atomically

if TYPE_CHECKING:
    from pydantic import BaseModel

R = TypeVar("R", bound="BaseModel")

RECORD = "config.yaml"  # the run's configuration
WRITER = ".run.json"  # the writing process, and the earlier contents
LOCK = ".run.lock"


@dataclass(frozen=True)
class RunFolder:
    """A folder owned by this process while :func:`run_folder` holds it.

    Attributes:
        path: of the folder.
        configuration: what the run depends on, as plain values.
    """

    path: Path
    configuration: dict[str, Any]

    def begin(self) -> None:
        """Record the configuration: from now on the folder contains a run.

        Call it when all inputs have proved usable, so that a corrected command finds the folder free.
        """
        write_atomically(self.path / RECORD, yaml.safe_dump(self.configuration, sort_keys=False))


@contextmanager
def run_folder(
    path: Path,
    configuration: dict[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    fixed: bool = True,
    free: Collection[str] = (),
) -> Iterator[RunFolder]:
    """Hold a folder for one run; if no run began, it is left unchanged.

    Args:
        path: of the folder; made if it is not there.
        configuration: recorded by :meth:`RunFolder.begin`, compared when the run is taken up.
        resume: go on with the run that the folder holds, if any.
        overwrite: delete the run that the folder holds, if any. Files that were there before it stay.
        fixed: a run is resumed with the same configuration only; else another one is recorded.
        free: fields of it that may be others all the same: they change no finished work.

    Raises:
        UsageError: the folder contains a run, or one with another configuration; another process writes
            to it; or it cannot be written.
    """
    if resume and overwrite:
        raise UsageError("--resume continues, --overwrite starts again: give only one of them")
    try:
        made = not path.exists()
        if not made and not path.is_dir():
            raise UsageError(f"{path} is a file, but --out must be a folder")
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{path} is being written by {_writer(path)}: choose another --out"
        ) from None
    except OSError as error:
        raise unusable(path, error) from None
    folder = RunFolder(path, configuration)
    try:
        _admit(folder, resume, overwrite, fixed, free)
        yield folder
    finally:
        if not (path / RECORD).exists():
            for name in (WRITER, LOCK):
                (path / name).unlink(missing_ok=True)
            if made and not any(path.iterdir()):
                path.rmdir()
        lock.release()


def _admit(
    folder: RunFolder, resume: bool, overwrite: bool, fixed: bool, free: Collection[str]
) -> None:
    """Refuse, continue or clear what the folder holds, and say who writes there from now on."""
    path, record = folder.path, folder.path / RECORD
    for left in path.glob(f".{WRITER}.*.part"):  # of a process killed before all else
        left.unlink()
    found, clearing = _found(path)
    if record.exists():
        if overwrite and found is None:
            raise UsageError(
                f"{record} may belong to something other than a run: choose another --out"
            )
        if found is not None and (overwrite or (resume and clearing)):
            _write_writer(path, found, clearing=True)  # if killed, the next call goes on deleting
            _clear(path, found)
        elif not resume:
            raise UsageError(
                f"{path} already contains a run: --resume continues it, --overwrite starts again; or "
                "choose another --out"
            )
        elif fixed:
            _refuse_changes(folder, free)
    if found is not None:
        _clear_leftovers(path)
    held = [entry.name for entry in path.iterdir()] if found is None else found
    _write_writer(path, held)


def _write_writer(path: Path, found: Collection[str], *, clearing: bool = False) -> None:
    """Say who writes to the folder, what was in it before its run, and whether that run is being deleted."""
    writer = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "found": sorted({*found} - {LOCK, WRITER}),
        "clearing": clearing,
    }
    try:
        write_atomically(path / WRITER, json.dumps(writer, indent=1) + "\n")
    except OSError as error:
        raise unusable(path, error) from None


def _refuse_changes(folder: RunFolder, free: Collection[str]) -> None:
    record = folder.path / RECORD
    try:
        before = read_yaml(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{record} cannot be read ({error}); choose another --out") from error
    now = _plain(folder.configuration)
    if isinstance(before, dict):
        before |= {name: now[name] for name in free}
    if changed := differences(before, now):
        raise UsageError(
            f"{folder.path} was started with another configuration: {'; '.join(changed)}. Resume it "
            "with the same options, or choose another --out"
        )


def _plain(values: Any) -> Any:
    """Return the values as they would be read back."""
    return yaml.safe_load(yaml.safe_dump(values))


def _clear(path: Path, found: list[str]) -> None:
    """Delete the run's files; its record last, so that it stays a run until all are gone."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == RECORD):
        if entry.name not in (*found, LOCK, WRITER):
            delete(entry)


def _clear_leftovers(path: Path) -> None:
    """Delete what killed processes left half-written in a run's folder, but not in that of another run."""
    for place, folders, files in os.walk(path):
        here = Path(place)
        if LOCK in files and here != path:
            folders.clear()
            continue
        for name in (*folders, *files):
            if is_leftover(here / name):
                delete(here / name)
        folders[:] = [name for name in folders if (here / name).exists()]


def _found(path: Path) -> tuple[list[str] | None, bool]:
    """Return what the folder contained before a run, if there was one; and whether it is being deleted."""
    try:
        told = json.loads((path / WRITER).read_text("utf-8"))
        return [str(name) for name in told["found"]], bool(told.get("clearing"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, False


def _writer(path: Path) -> str:
    try:
        told = json.loads((path / WRITER).read_text(encoding="utf-8"))
        return "process {process} on {host} since {since} ({command})".format(**told)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def read_result(file: Path, kind: type[R]) -> R | None:
    """Read a finished result; None if there is none, or one of another form."""
    try:
        return kind.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValueError):  # pydantic's refusals are ValueErrors
        return None


def command_line() -> str:
    """Return the command line, as far as it is known."""
    return " ".join([_program(), *map(shlex.quote, sys.argv[1:])])


def command_with(verb: str, options: Mapping[str, str]) -> str:
    """Return the present command line with other values of some options, into a folder of its own.

    Args:
        verb: the verb that the command must be for.
        options: option with its dashes -> value; replaced where it is given, else added. ``--resume`` and
            ``--overwrite`` are left out.

    Returns:
        A command to copy; empty if the process was not started by ``modalign VERB``.
    """
    if sys.argv[1:2] != [verb]:
        return ""
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
    for option, value in options.items():
        for place, word in enumerate(words):
            if word == option and place + 1 < len(words):
                words[place + 1] = value
                break
            if word.startswith(f"{option}="):
                words[place] = f"{option}={value}"
                break
        else:
            words += [option, value]
    return " ".join([_program(), *map(shlex.quote, words)])


def _program() -> str:
    program = Path(sys.argv[0])
    return "python -m modalign" if program.name == "__main__.py" else program.name
