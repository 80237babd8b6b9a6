"""``modalign tools``: lists, and questions answered with tools, end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from modalign.errors import UsageError
from modalign.tools.sandbox.run import fence_for

from stand_in import Answer, StandIn, said, serving  # isort: skip

TOOL = '''
"""A tool of the tests."""


def shades(medium, least: int = 0) -> list:
    """How dark the picture's corners are.

    least: darkness that is told at all
    """
    return [value for value in (10, 200, 30) if value >= least]
'''
CHAIN = """
tools:
  - {kind: callable, target: "PLACE/shades.py:shades", name: shades, modalities: [image]}
"""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "shades.py").write_text(TOOL)
    (tmp_path / "tools.yaml").write_text(CHAIN.replace("PLACE", str(tmp_path)))
    (tmp_path / "scene.png").write_bytes(tiny.png_bytes(3))
    return tmp_path


def arguments(place: Path, server: StandIn, way: str, *more: str) -> list[str]:
    return [
        *("tools", "ask", "how many corners are dark?", "--way", way, "--json"),
        *("--media", str(place / "scene.png"), "--tools", str(place / "tools.yaml")),
        *("--endpoint", server.url, "--model", "m", *more),
    ]


def test_list(cli: Callable[..., Any], place: Path) -> None:
    _, out, _ = cli("tools", "list", "--json")
    assert "starter_tools" in json.loads(out)
    _, out, _ = cli("tools", "list", str(place / "tools.yaml"), "--json")
    (tool,) = json.loads(out)["tools"]
    assert (tool["name"], tool["modalities"]) == ("shades", ["image"])
    assert "least" in tool["parameters"]["properties"]


def test_code(cli: Callable[..., Any], place: Path) -> None:
    try:
        fence_for()
    except UsageError as error:
        pytest.skip(str(error))
    program = "```python\nanswer = len(shades(least=20))\n```"
    with serving([said(program)]) as server:
        steps = place / "steps.json"
        code, out, err = cli(*arguments(place, server, "code", "--transcript", str(steps)))
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["text"], answer["failures"], answer["cost"]["calls"]) == ("2", {}, 1)
    assert json.loads(steps.read_text()) == answer
    with serving([]) as server:
        code, out, _ = cli(*arguments(place, server, "code", "--transcript", str(steps)))
        assert (code, server.bodies) == (2, [])
    assert "exists already: --overwrite" in json.loads(out)["error"]


def test_plan(cli: Callable[..., Any], place: Path) -> None:
    with serving([said(calls=[("shades", '{"least": 20}')]), said("two")]) as server:
        _, out, _ = cli(*arguments(place, server, "plan"))
    assert json.loads(out)["text"] == "two"
    assert json.loads(server.bodies[1]["messages"][-1]["content"]) == [200, 30]


def test_text(cli: Callable[..., Any], place: Path) -> None:
    with serving([said("three")]) as server:
        _, out, _ = cli(*arguments(place, server, "text", "--max-tokens", "5"))
    assert json.loads(out)["text"] == "three"
    assert "shades: 10; 200; 30" in server.bodies[0]["messages"][0]["content"]
    assert server.bodies[0]["max_tokens"] == 5


def test_a_local_model(
    cli: Callable[..., Any], place: Path, llm_folder: Callable[..., Path]
) -> None:
    code, out, err = cli(
        *("tools", "ask", "how many?", "--media", f"image={place / 'scene.png'}", "--json"),
        *("--tools", str(place / "tools.yaml"), "--llm", str(llm_folder()), "--max-tokens", "4"),
    )
    assert code in {0, 1}, err
    assert json.loads(out)["cost"]["completion_tokens"] <= 4


def test_no_answer_is_exit_code_1(cli: Callable[..., Any], place: Path) -> None:
    with serving(lambda *_: said("")) as server:
        code, out, _ = cli(*arguments(place, server, "plan"))
    assert code == 1
    assert json.loads(out)["failures"] == {"empty-reply": 1, "no-answer": 1}


@pytest.mark.parametrize(
    ("more", "expected", "words"),
    [
        (["--llm", "x"], 2, "give one language model"),
        (["--way", "dream"], 2, "choose text, code, plan"),
        (["--tools", "starter_toolz"], 2, "did you mean starter_tools"),
        (["--key-variable", "NO_SUCH_KEY"], 2, "NO_SUCH_KEY is not set"),
        (["--media", "none.png"], 3, "no such file"),
        (["--media", "data.csv"], 2, "MODALITY=data.csv"),
    ],
)
def test_wrong_usage(
    more: list[str], expected: int, words: str, cli: Callable[..., Any], place: Path
) -> None:
    with serving([]) as server:
        code, out, _ = cli(*arguments(place, server, "plan", *more))
    assert code == expected
    assert words in json.loads(out)["error"]


def test_a_wrong_model_name(cli: Callable[..., Any], place: Path) -> None:
    with serving([Answer({"error": {"message": "no m"}}, 404)]) as server:
        server.models = ["qwen"]
        code, out, _ = cli(*arguments(place, server, "plan"))
    assert code == 2
    assert "it has qwen" in json.loads(out)["error"]
