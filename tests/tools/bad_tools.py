"""Callables that tools are made of in tests: good ones, and all the ways of being bad."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from PIL import Image

from modalign.data.records import Media


def size(picture: Image.Image, unit: str = "pixels") -> str:
    """Say how large a picture is.

    Not part of the description.
    """
    return f"{picture.width} x {picture.height} {unit}"


def length(data: bytes) -> int:
    return len(data)


def suffix(path: Path) -> str:
    return f"{path.suffix} {path.read_bytes()[:4]!r}"


def notes(medium: Media) -> list[str]:
    return [f"{key}={value}" for key, value in sorted((medium.annotations or {}).items())]


notes.reads_annotations = True  # type: ignore[attr-defined]


def process_id(medium: Media) -> int:
    return os.getpid()


def raises(medium: Media) -> str:
    raise ValueError("no such luck")


def leaves(medium: Media) -> str:
    sys.exit(3)


def dies(medium: Media) -> str:
    os._exit(5)


def hangs(medium: Media, marker: str = "") -> str:
    if marker:
        Path(marker).write_text(str(os.getpid()))
    while True:
        time.sleep(0.05)


def prints_binary(medium: Media) -> str:
    os.write(1, b"\x00\xff" * 100_000)
    sys.stdout.buffer.write(b"\x00\xff")
    sys.stdout.flush()
    return "fine"


def gives_binary(medium: Media) -> bytes:
    return bytes(range(256)) * 8


def gives_too_much(medium: Media) -> str:
    return "word " * 2_000_000


def gives_many_lines(medium: Media) -> list[str]:
    return [f"line {number}" for number in range(500_000)]


def gives_an_object(medium: Media) -> object:
    return object()


def no_medium() -> str:
    return ""


def typed(medium: Media, count: int, names: list[str], ratio: float = 0.5) -> str:
    return f"{count} {names} {ratio}"
