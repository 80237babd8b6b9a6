"""Bad tools: whatever they do, the caller gets a bounded outcome that says so, and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bad_tools
import pytest

import tiny
from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.tools.base import Tool
from modalign.tools.callables import callable_tool
from modalign.tools.guard import GIVE_UP_AFTER, MAX_MESSAGE, NO_RESULT, call_safely

FILE = Path(bad_tools.__file__)
LIMIT = 500
Make = Callable[..., Tool]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Tool] = []

    def tool(name: str, trusted: bool, **settings: Any) -> Tool:
        given = {"timeout": 20.0, "max_characters": LIMIT, **settings}
        made.append(callable_tool(f"{FILE}:{name}", trusted, **given))
        return made[-1]

    yield tool
    for one in made:
        one.close()


both = pytest.mark.parametrize("trusted", [True, False], ids=["in process", "isolated"])


@both
@pytest.mark.parametrize(
    ("name", "problem", "message"),
    [
        ("raises", "raised", "ValueError: no such luck"),
        ("leaves", "raised", "SystemExit: 3"),
        ("gives_binary", "not-text", "2,048 bytes that are not UTF-8 text"),
        ("gives_an_object", "not-text", "contains a object"),
        ("gives_too_much", "too-long", "10,000,000 characters, cut at 500"),
        ("gives_many_lines", "too-long", "characters, cut at 500"),
        ("hangs", "timeout", "no answer within 0.3 s"),
    ],
)
def test_bad_tools(make: Make, name: str, problem: str, message: str, trusted: bool) -> None:
    tool = make(name, trusted, timeout=0.3 if name == "hangs" else 60.0)
    outcome = call_safely(tool, tiny.image(0))
    assert outcome.problem == problem
    assert message in outcome.message
    assert len(outcome.text) <= LIMIT + MAX_MESSAGE
    assert outcome.failed == (problem != "too-long")
    if outcome.failed:
        assert outcome.result is None
        assert [line.text for line in outcome.lines] == [NO_RESULT]
    assert tool.calls == 1
    assert tool.seconds == outcome.seconds > 0


def test_what_an_isolated_tool_prints_goes_nowhere(
    make: Make, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    outcome = call_safely(make("prints_binary", trusted=False), tiny.image(0))
    assert (outcome.result, outcome.problem) == ("fine", None)
    assert capfdbinary.readouterr() == (b"", b"")


def test_a_hanging_process_is_ended_and_the_next_call_has_a_new_one(
    make: Make, tmp_path: Path
) -> None:
    tool = make("hangs", trusted=False, timeout=1.0)
    marker = tmp_path / "pid"
    assert call_safely(tool, tiny.image(0), marker=str(marker)).problem == "timeout"
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)
    assert call_safely(tool, tiny.image(0), marker=str(tmp_path / "again")).problem == "timeout"
    assert (tmp_path / "again").exists()


def test_a_dying_process_is_told_and_the_next_call_has_a_new_one(make: Make) -> None:
    tool = make("dies", trusted=False)
    for _ in range(2):
        outcome = call_safely(tool, tiny.image(0))
        assert outcome.problem == "died"
        assert "exit code 5" in outcome.message


def test_a_tool_that_hangs_again_and_again_is_given_up(make: Make) -> None:
    tool = make("hangs", trusted=True, timeout=0.05)
    problems = [call_safely(tool, tiny.image(0)).problem for _ in range(GIVE_UP_AFTER + 2)]
    assert problems == ["timeout"] * GIVE_UP_AFTER + ["given-up"] * 2
    assert tool.calls == GIVE_UP_AFTER


def test_wrong_arguments_are_an_outcome_too(make: Make) -> None:
    outcome = call_safely(make("typed", trusted=True), tiny.image(0), count="x")
    assert outcome.problem == "arguments"


# --- callables ------------------------------------------------------------------------------


@both
def test_the_first_parameters_annotation_says_what_it_gets(make: Make, trusted: bool) -> None:
    medium = tiny.image(3)
    data = medium.read()
    assert call_safely(make("size", trusted), medium, unit="px").result == "32 x 32 px"
    assert call_safely(make("length", trusted), medium).result == len(data)
    assert call_safely(make("suffix", trusted), medium).result == ".png b'\\x89PNG'"
    noted = Media("image", data=data, annotations={"a": [1]})
    assert call_safely(make("notes", trusted), noted).result == ["a=[1]"]


@both
def test_a_callable_tells_its_signature(make: Make, trusted: bool) -> None:
    tool = make("typed", trusted)
    assert tool.signature.properties == {
        "count": {"type": "integer"},
        "names": {"type": "array", "items": {"type": "string"}},
        "ratio": {"type": "number", "default": 0.5},
    }
    assert tool.signature.required == ("count", "names")
    assert make("size", trusted).description == "Say how large a picture is."
    assert make("notes", trusted).reads_annotations
    assert not make("notes", trusted, reads_annotations=False).reads_annotations


def test_only_an_isolated_callable_runs_elsewhere(make: Make) -> None:
    assert call_safely(make("process_id", trusted=True), tiny.image(0)).result == os.getpid()
    isolated = make("process_id", trusted=False)
    first, second = (call_safely(isolated, tiny.image(0)).result for _ in range(2))
    assert first == second != os.getpid()


@both
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.py:f", "there is no file"),
        ("json", "is not a callable"),
        ("json:nothing", "has no 'nothing'"),
        ("no_such_module:f", "cannot be imported"),
        (f"{FILE}:FILE", "has no 'FILE'"),
        (f"{FILE}:no_medium", "no parameter for the medium"),
    ],
)
def test_what_cannot_be_loaded_is_refused(target: str, message: str, trusted: bool) -> None:
    with pytest.raises(UsageError, match=message):
        callable_tool(target, trusted, max_characters=LIMIT)


def test_an_equal_source_is_an_equal_tool(make: Make, tmp_path: Path) -> None:
    prints = []
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "own.py"
        file.write_text(f"def say(medium):\n    return {text!r}\n")
        prints.append(callable_tool(f"{file}:say", True).fingerprint(str))
    assert prints[0] == prints[1] != prints[2]
    versions = [callable_tool(f"{file}:say", True, v).fingerprint(str) for v in ("1", "2")]
    assert versions[0] != versions[1]


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "from modalign.tools.callables import callable_tool\n"
        "from modalign.tools.guard import call_safely\n"
        "from modalign.data.records import Media\n"
        f"tool = callable_tool({f'{FILE}:process_id'!r}, max_characters=100)\n"
        "print(call_safely(tool, Media('image', data=b'')).result)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
    pytest.fail("the tool's process outlived the program")
