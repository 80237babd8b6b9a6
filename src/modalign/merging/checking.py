"""Is what was written the model that it should be? Loaded in a clean process: names, count, finite logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from modalign.errors import ModalignError
from modalign.merging import clean
from modalign.merging.parents import Parent

LENGTH = 12  # tokens of the text that is run
TIMEOUT = 1200  # seconds


def check_loads(folder: Path, like: Parent) -> int:
    """Load a merged model where modalign cannot be imported, and compare its tensors with its class's.

    Args:
        folder: the merged model.
        like: the parent whose class it has.

    Returns:
        The number of tensors.

    Raises:
        ModalignError: it does not load, its tensors are others, or something is not finite.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    job = {
        "folder": str(folder.resolve()),
        "media": like.media,
        "trust": "auto_map" in config,
        "length": LENGTH,
    }
    with tempfile.TemporaryDirectory() as modules:
        done = subprocess.run(
            [sys.executable, "-I", str(Path(clean.__file__)), json.dumps(job)],
            capture_output=True,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules},
            timeout=TIMEOUT,
            check=False,
        )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModalignError(f"the merged model does not load without modalign: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    for what in ("missing", "unexpected", "mismatched"):
        if names := found[f"{what}_keys"]:
            raise ModalignError(f"the merged model: {names[0]} is {what} ({len(names)} in all)")
    if odd := sorted(set(found["tensors"]) ^ set(like.model.state_dict())):
        raise ModalignError(f"the merged model: {odd[0]} is only there or only in its class")
    if found["not_finite"] or not found["finite_logits"]:
        where = found["not_finite"][0] if found["not_finite"] else "the logits of a text"
        raise ModalignError(f"the merged model: {where} holds values that are not finite")
    return len(found["tensors"])
