"""A process that decodes media for a server: ``python -m modalign.serving.decoder MEMORY SECONDS``.

In comes a line ``{"media": [{"modality", "bytes"}]}`` with the media's bytes behind it, out goes ``{"begun":
true}`` and then ``{"amounts": [...]}``, what a server limits. In comes ``{"specs": {modality: spec}}``, or
``{}`` where that is too much; out goes ``{"signals": [...]}`` with the decoded signals' bytes behind it. Before
each medium is looked at goes ``{"at": its number}``, and ``{"error": ..., "at": ...}`` ends the conversation at
any place. Nothing here imports torch, so that the process starts quickly and is small.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from modalign.data.modalities import modality_of
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.video import Clip
from modalign.errors import DataError, UsageError, first_line
from modalign.memory import return_freed_memory, virtual
from modalign.tools.channel import own_channel
from modalign.tools.sandbox.inside.confine import limit_resources

MODALITIES = ("image", "audio", "video")  # imported before memory is limited
NICE = 5  # the model goes first
Form = dict[str, Any]


def main() -> None:
    """Decode what comes until the input ends."""
    requests, answers = own_channel()
    memory, seconds = map(int, sys.argv[1:])
    _prepare(memory)
    for line in requests:
        _allow(seconds)
        _answer(json.loads(line), requests, answers)


def _prepare(memory: int) -> None:
    for name in MODALITIES:
        modality_of(name)
    for library in ("av", "soundfile", "soxr"):  # of extras
        with suppress(ImportError):
            __import__(library)
    Image.init()
    return_freed_memory()
    with suppress(OSError):
        os.nice(NICE)
    # What is mapped already (libraries, mostly) does not count as the media's.
    limit_resources({"AS": virtual() + memory, "FSIZE": 0, "CORE": 0})


def _allow(seconds: int) -> None:
    """Allow a request's CPU time: whoever asks keeps the wall clock, but may be gone."""
    until = math.ceil(time.process_time()) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))


def _answer(request: dict[str, Any], requests: BinaryIO, answers: BinaryIO) -> None:
    media = [
        Media(item["modality"], data=requests.read(item["bytes"])) for item in request["media"]
    ]
    at = 0
    _send(answers, {"begun": True})
    try:
        amounts = []
        for at, medium in enumerate(media):
            _send(answers, {"at": at})
            measure = modality_of(medium.modality).amounts
            amounts.append([vars(amount) for amount in measure(medium)] if measure else [])
        _send(answers, {"amounts": amounts})
        specs = json.loads(requests.readline()).get("specs")
        if specs is None:
            return
        signals = []
        for at, medium in enumerate(media):
            _send(answers, {"at": at})
            signals.append(_decoded(medium, specs.get(medium.modality)))
    except Exception as error:
        _send(answers, {"at": at, **_failure(error)})
        return
    _send(answers, {"signals": [form for form, _ in signals]})
    for _, arrays in signals:
        for array in arrays:
            answers.write(np.ascontiguousarray(array).data)
    answers.flush()


def _decoded(medium: Media, spec: Mapping[str, Any] | None) -> tuple[Form, Sequence[np.ndarray]]:
    """A signal's form and its arrays; without an encoder's description it is only looked at."""
    modality = modality_of(medium.modality)
    if spec is None:
        modality.check(medium)
        return {"kind": "checked", "bytes": 0}, ()
    assert modality.decode is not None
    found = modality.decode(medium, dict(spec))
    if isinstance(found, Image.Image):
        pixels = np.asarray(found)
        return {"kind": "image", "size": found.size, "bytes": pixels.nbytes}, (pixels,)
    array = found.frames if isinstance(found, Clip) else found
    form = {"kind": "array", "shape": array.shape, "type": array.dtype.str, "bytes": array.nbytes}
    return form, (array,)


def _failure(error: Exception) -> dict[str, str]:
    if isinstance(error, MemoryError):
        return {
            "kind": "data",
            "error": "decoding it takes more memory than this server gives it: shrink it",
        }
    if isinstance(error, UsageError):
        return {"kind": "usage", "error": str(error)}
    if isinstance(error, DataError):
        return {
            "kind": "data",
            "error": error.reason if isinstance(error, SignalError) else str(error),
        }
    return {"kind": "data", "error": f"cannot be decoded ({first_line(error)}): save it anew"}


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
