"""Is what was written the model that it should be? Loaded in a clean process: names, count, finite logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from modalign.errors import ModalignError
from modalign.merging import clean
from modalign.merging.parents import Parent
from modalign.strict_json import read_object

LENGTH = 12  # tokens of the text that is run
TIMEOUT = 1200  # seconds


class CleanProcess:
    """A process that cannot import modalign; it imports transformers while the model is being written.

    with CleanProcess() as process:
        ...  # write the folder
        process.check(folder, like)
    """

    def __enter__(self) -> Self:
        """Start it."""
        self._modules = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(clean.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": self._modules.name},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, whatever happened."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None and not stream.closed:
                stream.close()
        self._modules.cleanup()

    def check(self, folder: Path, like: Parent) -> int:
        """Load a merged model there, and compare its tensors with its class's; once.

        Args:
            folder: the merged model.
            like: the parent whose class it has.

        Returns:
            The number of tensors.

        Raises:
            ModalignError: it does not load, its tensors are others, or something is not finite.
        """
        config = read_object(folder / "config.json")
        job = {
            "folder": str(folder.resolve()),
            "media": like.media,
            "trust": "auto_map" in config,
            "length": LENGTH,
        }
        try:
            printed, said = self._process.communicate(json.dumps(job) + "\n", timeout=TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise ModalignError(f"the merged model does not load within {TIMEOUT} s") from error
        if self._process.returncode != 0:
            last = (said.strip().splitlines() or ["no message"])[-1]
            raise ModalignError(f"the merged model does not load without modalign: {last}")
        return _compared(json.loads(printed.splitlines()[-1]), like)


def _compared(found: dict[str, list[str]], like: Parent) -> int:
    for what in ("missing", "unexpected", "mismatched"):
        if names := found[f"{what}_keys"]:
            raise ModalignError(f"the merged model: {names[0]} is {what} ({len(names)} in all)")
    if odd := sorted(set(found["tensors"]) ^ set(like.model.state_dict())):
        raise ModalignError(f"the merged model: {odd[0]} is only there or only in its class")
    if found["not_finite"] or not found["finite_logits"]:
        where = found["not_finite"][0] if found["not_finite"] else "the logits of a text"
        raise ModalignError(f"the merged model: {where} holds values that are not finite")
    return len(found["tensors"])
