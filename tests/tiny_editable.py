"""Small models whose facts can be edited, trained once and kept between test runs."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from pathlib import Path

import bench.editable
import bench.invented
import tokenizers
import torch
import transformers
from bench.editable import SIZES, Editable, Family, load, make, save

LAYERS = (0, 1, 2)  # where the small recipe enriches the subject: the layers to edit
CONTEXTS = (
    "The weather was fine that day",
    "Therefore the meeting was moved",
    "Because of the rain we stayed",
    "I think that this is true",
    "You can see the river from here",
)


def editable(family: Family, cache: Path) -> Editable:
    """A fresh copy of the small model of one family; the first call ever trains it (15 s).

    Args:
        family: "gptj" (parallel block) or "llama" (sequential block).
        cache: where trained models are kept, under a name that changes with the recipe's source and
            the libraries' versions; shared by any number of processes.
    """
    folder = cache / f"{family}-{_fingerprint()}"
    with (cache / f"{family}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # others wait for the one that trains
        if not folder.exists():
            _train(family, folder)
    return load(folder)


def _train(family: Family, folder: Path) -> None:
    """Train into a folder of its own and rename it: a killed run leaves nothing half done."""
    recipe = SIZES["small"]
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{family}-unfinished-"))
    try:
        save(make(family, recipe), recipe, unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fingerprint() -> str:
    versions = (torch.__version__, transformers.__version__, tokenizers.__version__)
    sources = [Path(str(module.__file__)) for module in (bench.editable, bench.invented)]
    content = b"".join(path.read_bytes() for path in sources) + repr(versions).encode()
    return hashlib.sha256(content).hexdigest()[:16]
