"""Small files that the tests of the data package share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_files import png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images, `a.png` and `img/b.png`."""
    (tmp_path / "img").mkdir()
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "img" / "b.png").write_bytes(png((200, 0, 0)))
    return tmp_path


@pytest.fixture
def lines(folder: Path) -> Callable[..., Path]:
    """Write rows (or raw bytes for a line) as `data.jsonl`."""

    def write(*rows: object) -> Path:
        path = folder / "data.jsonl"
        raw = (r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
        path.write_bytes(b"".join(line + b"\n" for line in raw))
        return path

    return write
