"""Archives whose members do not say what their writer meant.

``scene.1.json`` and ``scene.2.json`` became one row and one answer was lost; members of one
key that were not adjacent got a misleading reason, and with ``--skip-broken`` rows trained without their pictures.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from modalign.data.readers import read_records
from modalign.data.readers.result import ReadResult
from modalign.data.validation import BrokenData, validate
from reports.threads import reported, tried

PNG = tiny.png_bytes(0)


def row(answer: str) -> bytes:
    return json.dumps({"question": "q", "answer": answer}).encode()


def packed(path: Path, members: list[tuple[str, bytes | None]]) -> Path:
    """An archive; a member without content is a link."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.LNKTYPE, "elsewhere"
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return path


def read(folder: Path, *members: tuple[str, bytes | None], **options: Any) -> ReadResult:
    return read_records(packed(folder / "data.tar", list(members)), **options)


@reported("webdataset/webdataset#237", "webdataset/webdataset#288")
@pytest.mark.parametrize("ending", ["json", "txt"])
def test_two_answers_in_one_row_are_refused(tmp_path: Path, ending: str) -> None:
    found = read(
        tmp_path,
        ("ok.png", PNG),
        ("ok.json", row("fine")),
        (f"x/scene.1.{ending}", row("one")),
        ("x/scene.1.png", PNG),
        (f"x/scene.2.{ending}", row("two")),
        ("x/scene.2.png", PNG),
    )
    assert [record.answer for record in found.records] == ["fine"]
    (problem,) = found.problems
    assert problem.source.row == 2
    assert f"several .{ending} members (x/scene.1.{ending}, x/scene.2.{ending})" in problem.message
    assert f"x/scene-1.{ending}" in problem.message


@reported("webdataset/webdataset#20")
def test_several_pictures_of_one_row_stay(tmp_path: Path) -> None:
    found = read(tmp_path, ("a.left.png", PNG), ("a.right.png", PNG), ("a.json", row("yes")))
    assert not found.problems
    assert len(list(found.records[0].media())) == 2


@reported("webdataset/webdataset#157")
def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    found = read(tmp_path, ("a.png", PNG), ("a.json", row("yes")), ("a.png", PNG))
    assert "a.png is there 2 times" in found.problems[0].message
    assert not found.records


@reported("webdataset/webdataset#140", "ray-project/ray#63407")
@pytest.mark.parametrize("first", ["png", "json"])
def test_members_that_are_apart_are_no_rows(tmp_path: Path, first: str) -> None:
    """Whichever part comes first: neither trains, also where broken rows are skipped."""
    parts = {"png": PNG, "json": row("yes")}
    second = "json" if first == "png" else "png"
    found = read(
        tmp_path,
        (f"a.{first}", parts[first]),
        ("b.png", PNG),
        ("b.json", row("no")),
        (f"a.{second}", parts[second]),
    )
    (problem,) = found.problems
    assert problem.source.row == 1
    assert f"others stand between a.{first} and a.{second}" in problem.message
    assert "--sort=name" in problem.message
    assert found.total == 2
    kept = validate(found, skip_broken="50%").records
    assert [(record.id, len(list(record.media()))) for record in kept] == [("b", 1)]


@tried("archives with links among their members")
def test_a_picture_that_is_a_link_is_no_row_without_picture(tmp_path: Path) -> None:
    found = read(tmp_path, ("a.json", row("yes")), ("a.png", None), ("b.json", row("no")))
    assert "a.png is a link" in found.problems[0].message
    assert [record.id for record in found.records] == ["b"]


@tried("archives with members of other kinds")
def test_media_that_the_model_does_not_take_are_named(tmp_path: Path) -> None:
    found = read(tmp_path, ("a.json", row("yes")), ("a.wav", b"RIFF"))
    with pytest.raises(BrokenData, match="holds audio, but the model takes image"):
        validate(found, modalities=("image",))


@reported("ray-project/ray#63407")
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5))
def test_no_order_of_members_loses_a_picture_or_an_answer(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int
) -> None:
    members: list[tuple[str, bytes | None]] = []
    for number in range(rows):
        members += [(f"{number}.png", PNG), (f"{number}.json", row(str(number)))]
    random.Random(seed).shuffle(members)
    found = read(tmp_path_factory.mktemp("order"), *members)
    assert found.total == rows
    for record in found.records:
        assert len(list(record.media())) == 1
        assert record.answer == record.id


@reported("webdataset/webdataset#237")
def test_the_command_line_names_both_answers(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    members: list[tuple[str, bytes | None]] = []
    for key, answer in (("ok", "fine"), ("scene.1", "one"), ("scene.2", "two")):
        members += [(f"{key}.json", row(answer)), (f"{key}.png", PNG)]
    data = packed(tmp_path / "data.tar", members)
    code, _, err = cli("data", "curate", data, "-o", tmp_path / "kept.jsonl")
    assert code == 3
    assert "data.tar:2: has several .json members (scene.1.json, scene.2.json)" in err
    assert not (tmp_path / "kept.jsonl").exists()
    code, _, err = cli(
        "data", "curate", data, "-o", tmp_path / "kept.jsonl", "--skip-broken", "50%"
    )
    assert code == 0, err
    (kept,) = read_records(tmp_path / "kept.jsonl").records
    assert kept.answer == "fine"  # neither of the two stands for both
