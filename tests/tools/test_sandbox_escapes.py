"""Programs that try to escape: each fails, or does no harm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modalign.errors import UsageError
from modalign.tools.sandbox.limits import Limits
from modalign.tools.sandbox.run import Function, fence_for, run_program

from escapes import ESCAPES, Escape  # isort: skip

SECRET = "swordfish-4711"
LIMITS = Limits(seconds=20, cpu=1, memory=160)


@pytest.fixture
def bait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A secret in a file, in the home folder and in the environment; nothing may be added to them."""
    (tmp_path / "secret.txt").write_text(SECRET)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODALIGN_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    assert (tmp_path / "secret.txt").read_text() == SECRET


def look(_: dict[str, Any]) -> Any:
    return [{"text": "a cat", "score": 0.5}]


def test_there_are_ninety_five() -> None:
    """Of those that are restricted; the fence alone has its own."""
    assert len({escape.program for escape in ESCAPES}) == len(ESCAPES) >= 95
    assert len({escape.name for escape in ESCAPES}) == len(ESCAPES)


@pytest.mark.parametrize("escape", ESCAPES, ids=[escape.name for escape in ESCAPES])
def test_escape(escape: Escape, bait: Path) -> None:
    try:
        fence = fence_for()
    except UsageError as error:
        pytest.skip(str(error))
    program = escape.program.replace("{secret}", str(bait / "secret.txt"))
    program = program.replace("{written}", str(bait / "written.txt"))
    ran = run_program(program, {"look": Function(("at",), look)}, LIMITS, fence=fence)
    assert SECRET not in repr(ran)
    assert len(ran.output) <= LIMITS.output
    assert ran.seconds < LIMITS.seconds + 5
    if escape.kind is None:
        assert (ran.kind, ran.answer) == (None, escape.words)
    else:
        assert ran.answer is None
        assert re.fullmatch(escape.kind, ran.kind or "answered"), ran
        assert re.search(escape.words, ran.message), ran
