"""Every verb with usable things but one: a bad model beside good data, bad data beside a good model, a bad place.

``tests/cli/test_rubbish.py`` gives rubbish as everything at once, so that only the first reader meets it. Here
each place of each call meets ``MODALIGN_RUBBISH`` kinds of rubbish (one), others for each place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

import usable
from cli.test_rubbish import DEEP, FILES
from modalign.cli import main
from reports.threads import tried

KINDS = int(os.environ.get("MODALIGN_RUBBISH", "1"))  # for each place of each call

# What a model's folder may be instead: file -> its content; None: deleted; a number: cut to so many bytes.
FOLDERS: dict[str, dict[str, bytes | int | None]] = {
    "no configuration": {"config.json": None},
    "a null configuration": {"config.json": b"null"},
    "a deep configuration": {"config.json": DEEP.encode()},
    "a configuration of NaN": {"config.json": b'{"model_type": "llama", "hidden_size": NaN}'},
    "an unknown type": {"config.json": b'{"model_type": "nothing"}'},
    "sizes below nothing": {
        "config.json": b'{"model_type": "llama", "hidden_size": -1, "architectures": ["LlamaForCausalLM"]}'
    },
    "no weights": {"model.safetensors": None},
    "cut weights": {"model.safetensors": 300},
    "empty weights": {"model.safetensors": b""},
    "a null tokenizer": {"tokenizer.json": b"null"},
    "a cut tokenizer": {"tokenizer.json": 200},
    "no tokenizer": {"tokenizer.json": None, "tokenizer_config.json": None},
    "a tokenizer's list": {"tokenizer_config.json": b"[]"},
    "a generation's list": {"generation_config.json": b"[1]"},
    "an odd template": {"chat_template.jinja": b"{% for m in messages %}{{ m.nothing.more }}{% endfor %}{{"},
}  # fmt: skip
MODELS = {"llm", "other", "media", "adapter", "patched"}
PLACES = ("a file", "below a file", "/proc/nowhere/out", "ä" * 300)
TEXTS = {"poem"}  # whatever is in a file is a text


@pytest.fixture(scope="module")
def given(
    tmp_path_factory: pytest.TempPathFactory,
    llm_folder: Callable[..., Path],
    tower_folder: Callable[..., Path],
    compose_tiny: Callable[..., Any],
    small_data: Path,
    small_cache: Path,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("usable")
    data = small_data / "data.jsonl"
    made = usable.things(folder, llm_folder(), tower_folder(), compose_tiny, data)
    rubbish = folder / "rubbish"
    rubbish.mkdir()
    for name, content in FILES.items():
        (rubbish / name).write_bytes(content)
    return made | {"rubbish": rubbish}


def _spoiled(model: Path, kind: str, place: Path) -> Path:
    shutil.copytree(model, place)
    for name, content in FOLDERS[kind].items():
        file = place / name
        if content is None:
            file.unlink(missing_ok=True)
        elif isinstance(content, int):
            file.write_bytes(file.read_bytes()[:content] if file.exists() else b"{")
        else:
            file.write_bytes(content)
    return place


def _bad(slot: str, given: dict[str, Path], place: Path) -> Iterator[tuple[str, Path]]:
    """Every kind of rubbish for a place of a call."""
    if given[slot].is_dir():
        yield "not there", place / "nothing"
        yield "a file", given["rubbish"] / "zeros.bin"
        (place / "empty").mkdir(exist_ok=True)
        yield "empty", place / "empty"
    else:
        yield "not there", place / "nothing.jsonl"
        yield "a folder", given["rubbish"]
        for kind in () if slot in TEXTS else FILES:
            yield kind, given["rubbish"] / kind
    if slot in MODELS:
        for number, kind in enumerate(FOLDERS):
            yield kind, _spoiled(given[slot], kind, place / f"{slot}-{number}")


def _outs(place: Path) -> Iterator[tuple[str, str]]:
    (place / "file").write_text("x")
    for kind in PLACES:
        names = {"a file": place / "file", "below a file": place / "file" / "out"}
        yield kind, str(names.get(kind, kind))


_numbers = count()
T = TypeVar("T")


def _some(kinds: list[T]) -> list[T]:
    """So many of the kinds, others at each call."""
    step = max(1, len(kinds) // KINDS)
    return kinds[next(_numbers) % step :: step]


def _spoilt(verb: str, given: dict[str, Path], place: Path) -> Iterator[tuple[str, list[str]]]:
    """Calls of a verb with one thing wrong, and what it is."""
    slots = [slot for slot in given if f"{{{slot}}}" in usable.CALLS[verb]]
    for slot in slots:
        kinds = list(_bad(slot, given, place))
        for kind, path in _some(kinds):
            out = place / f"out-{next(_numbers)}"
            yield f"{slot}: {kind}", usable.words(verb, given | {slot: path}, out)
    if "OUT" in usable.CALLS[verb]:
        for kind, name in _some(list(_outs(place))):
            yield f"OUT: {kind}", usable.words(verb, given, Path(name))


@tried("every verb with one wrong argument")
@pytest.mark.timeout(120 * KINDS)
@pytest.mark.parametrize("verb", usable.CALLS)
def test_one_wrong_thing_is_refused_in_words(
    verb: str,
    given: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = []
    for what, words in _spoilt(verb, given, tmp_path):
        monkeypatch.setattr("sys.argv", ["modalign", *words])
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            code = repr(error)
        _, err = capsys.readouterr()
        said = [line for line in err.splitlines() if line.strip()]
        if (
            code not in (0, 1, 2, 3)
            or "Traceback" in err
            or "This is a bug" in err
            or "--debug" in err
        ):
            wrong.append((what, code, said[-3:]))
        elif code and not said:
            wrong.append((what, code, "nothing is said"))
    assert not wrong
