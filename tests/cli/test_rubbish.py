"""No verb ends in a traceback: forty kinds of rubbish stand in place of every required argument."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modalign.cli import command, main

DEEP = "[" * 100_000
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 9]}}).encode()

FILES: dict[str, bytes] = {
    "empty.json": b"",
    "spaces.jsonl": b" \n\n\t\n",
    "null.json": b"null",
    "number.json": b"17",
    "text.json": b'"text"',
    "list.json": b"[]",
    "list of nulls.json": b"[null, null]",
    "object.json": b"{}",
    "lists.jsonl": b"[1]\n[2]\n",
    "half.json": b'{"image": "a.png", "quest',
    "deep.json": DEEP.encode(),
    "deep.jsonl": DEEP.encode() + b"\n",
    "nan.jsonl": b'{"question": "a", "answer": NaN}\n',
    "infinite.jsonl": b'{"question": Infinity, "answer": -Infinity}\n',
    "twice.jsonl": b'{"question": "a", "question": "b", "answer": "c"}\n',
    "wrong types.jsonl": b'{"question": 1, "answer": [], "image": {"a": 1}}\n',
    "surrogate.jsonl": b'{"question": "\\ud800", "answer": "\\udfff"}\n',
    "latin.jsonl": '{"question": "ä", "answer": "ö"}\n'.encode("latin-1"),
    "utf16.json": '{"question": "a"}'.encode("utf-16"),
    "bom.jsonl": b"\xef\xbb\xbf" + b'{"question": "a"}\n',
    "zeros.bin": bytes(5000),
    "noise.bin": bytes(range(256)) * 40,
    "long line.jsonl": b"a" * 300_000,
    "semicolons.csv": b"question;answer\na;b\n",
    "only a head.csv": b"question,answer\n",
    "quotes.csv": b'question,answer\n"a,b\n',
    "list.yaml": b"- 1\n- 2\n",
    "tabs.yaml": b"a:\n\t- b\n",
    "anchors.yaml": b"a: &a [*a]\n",
    "object tag.yaml": b"!!python/object/apply:os.getcwd []\n",
    "short.safetensors": b"\x01",
    "huge header.safetensors": struct.pack("<Q", 2**60) + b"{}",
    "bad offsets.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(8),
    "no patch.safetensors": struct.pack("<Q", 2) + b"{}",
    "cut.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "cut.tar": b"scene.json" + bytes(700),
    "cut.zip": b"PK\x03\x04 half",
    "cut.parquet": b"PAR1" + bytes(20),
    "pickle.bin": b"\x80\x04\x95.",
}
ELSEWHERE = ("folder", "not there.json", "", "a\nb", "/proc/self/mem", "ä" * 300, "-")
USABLE = {("data reformat", "semicolons.csv")}  # a question with its answer, which is enough there
NEEDLESS = {
    "cache list",
    "serve",
    "starter build",
    "starter show",
    "tools list",
    "methods",
    "app transform run",
}  # they take no file


def _verbs() -> Iterator[tuple[str, Any]]:
    waiting: list[tuple[str, Any]] = [("", command())]
    while waiting:
        name, verb = waiting.pop()
        children = getattr(verb, "commands", {})
        waiting += [(f"{name} {child}".strip(), value) for child, value in children.items()]
        if not children and name not in NEEDLESS:
            yield name, verb


VERBS = dict(sorted(_verbs()))


@pytest.fixture(scope="module")
def rubbish(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of every kind of rubbish."""
    place = tmp_path_factory.mktemp("rubbish")
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    (place / "folder").mkdir()
    return [str(place / name) for name in FILES] + [
        str(place / name) if name in {"folder", "not there.json"} else name for name in ELSEWHERE
    ]


def _given(verb: str, options: Any, thing: str, out: Path) -> list[str]:
    """A call of the verb with one thing as every required argument and data option."""
    words = verb.split()
    for parameter in options.params:
        names = [name for name in parameter.opts if name.startswith("--")]
        if parameter.name == "out" or "--out" in names:
            words += [names[0] if names else "-o", str(out / "out")]
        elif names and names[0] in {"--train", "--edits", "--text"}:
            words += [names[0], thing]
        elif not names and not parameter.opts[0].startswith("-") and parameter.required:
            words.append(thing)
    return words


@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", VERBS)
def test_rubbish_is_refused_in_words(
    verb: str,
    rubbish: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_cache: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, thing in enumerate(rubbish[:: 4 if verb.startswith("app ") else 1]):  # one reader
        words = _given(verb, VERBS[verb], thing, tmp_path / str(number))
        monkeypatch.setattr("sys.argv", ["modalign", *words])
        with pytest.raises(SystemExit) as end:
            main()
        _, err = capsys.readouterr()
        usable = (verb, Path(thing).name) in USABLE
        assert end.value.code in ({0} if usable else {1, 2, 3}), (words, err)
        assert "Traceback" not in err, (words, err)
        assert "This is a bug" not in err, (words, err)


def test_what_nobody_foresaw_is_one_line_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect\nof several lines")

    monkeypatch.setattr("modalign.cli.command", lambda: broken)
    run: Callable[..., None] = main
    monkeypatch.setattr("sys.argv", ["modalign", "methods"])
    with pytest.raises(SystemExit) as end:
        run()
    err = capsys.readouterr().err
    assert end.value.code == 1
    assert len(err.strip().splitlines()) == 1
    assert "ZeroDivisionError at cli/__init__.py:" in err
    assert "a defect" in err
    assert "--debug" in err
    monkeypatch.setattr("sys.argv", ["modalign", "methods", "--debug"])
    with pytest.raises(ZeroDivisionError):
        run()
