"""The final form: a folder that holds no changed tensor's old values, and no patch that would restore them.

A removable patch is for people who may remove it. Without the patch the model still knows, so shipping the patch,
or a patched folder with its originals, ships what was to be forgotten.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modalign.errors import ModalignError
from modalign.hashing import little_endian
from modalign.patches.folder_weights import FolderWeights
from modalign.progress import Progress

WINDOW = 256  # bytes searched for
WINDOWS = 16  # per changed tensor, besides its first and last
WHY = (
    "Do not ship the patch, nor a folder with patches: base and patch together are the model before and the model "
    "after, so whoever has one of them and the patch has both. Ship the final folder alone."
)


def leaks(
    folder: Path, base: Path, changed: Iterable[str], progress: Progress | None = None
) -> list[str]:
    """List what in a folder would restore old tensors; empty if nothing would.

    Every file is searched for bytes of the old tensors: windows of 256 bytes in which old and new differ, spread
    over each changed tensor. Windows of one repeated value prove nothing and are left out.

    Args:
        folder: the one to be shipped.
        base: the model before.
        changed: names of the tensors that were changed.
        progress: told how many tensors were searched for.

    Raises:
        ModalignError: a changed tensor has its old values after all.
    """  # fmt: skip
    found = [str(path) for path in folder.rglob("patches") if path.is_dir()]
    before, after = FolderWeights(base), FolderWeights(folder)
    own = set(after.files)
    for path in folder.rglob("*.safetensors"):
        if str(path.relative_to(folder)) not in own:
            found.append(f"{path}: weights that the model does not read")
    names = sorted(changed)
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    for number, name in enumerate(names):
        if progress:
            progress("searching for old bytes", number, len(names))
        old, new = little_endian(before.read(name)), little_endian(after.read(name))
        if old == new:
            raise ModalignError(f"{folder}: {name} is as it was before")
        wanted = windows(old, new)
        for path in files:
            if _holds(path, wanted):
                found.append(f"{path}: bytes of {name} as it was before")
    return found


def windows(old: bytes, new: bytes) -> list[bytes]:
    """Return windows of the old bytes in which the new ones differ, spread over the tensor."""
    size = min(WINDOW, len(old))
    count = max(len(old) // size, 1)
    first = np.frombuffer(old[: count * size], np.uint8).reshape(count, size)
    second = np.frombuffer(new[: count * size].ljust(count * size, b"\0"), np.uint8)
    differ = (first != second.reshape(count, size)).any(1) & (first != first[:, :1]).any(1)
    places = np.flatnonzero(differ)
    chosen = places[np.linspace(0, len(places) - 1, min(len(places), WINDOWS + 2)).astype(int)]
    return [first[place].tobytes() for place in chosen.tolist()]


def _holds(path: Path, wanted: list[bytes]) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(window) >= 0 for window in wanted)


def check_final(
    folder: Path, base: Path, changed: Iterable[str], progress: Progress | None = None
) -> None:
    """Refuse a folder that would restore what was forgotten.

    Raises:
        ModalignError: it would; the message says which file holds what.
    """  # fmt: skip
    found = leaks(folder, base, changed, progress)
    if found:
        raise ModalignError(f"{folder} must not be shipped:\n  " + "\n  ".join(found[:20]))
