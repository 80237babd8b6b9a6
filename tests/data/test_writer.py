"""What is written is read back as it was, from wherever it came."""

from __future__ import annotations

import dataclasses
import datetime
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_files import png

from modalign.data.readers import read_records, write_records
from modalign.data.records import Media, Message, Record, Source
from modalign.errors import DataError

TURNS = (Message("user", ("q",)), Message("assistant", ("a",)))


def comparable(record: Record) -> Any:
    """All of a record but its source and where its media lie."""
    return (
        record.id,
        [
            (m.role, [p if isinstance(p, str) else (p.modality, p.content_hash()) for p in m.parts])
            for m in record.messages
        ],
        (record.skill, record.group, record.options, record.answers),
        record.extra,
    )


def round_trip(records: list[Record], folder: Path) -> None:
    path = folder / "out" / "data.jsonl"
    write_records(records, path)
    result = read_records(path)
    assert result.problems == []
    assert [comparable(r) for r in result.records] == [comparable(r) for r in records]
    again = folder / "out" / "again.jsonl"
    write_records(result.records, again)
    assert again.read_bytes() == path.read_bytes()


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
value = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda v: st.lists(v) | st.dictionaries(text, v),
)
numbers = st.lists(st.integers(-9, 9) | st.none(), min_size=1)
media = st.builds(
    Media, st.sampled_from(["image", "audio", "video", "table"]), st.none(), st.binary(min_size=1)
) | st.one_of(
    st.dictionaries(text, st.integers() | text).map(lambda v: ("table", v)),
    numbers.map(lambda v: ("series", v)),
    st.lists(numbers, min_size=1).map(lambda v: ("vectors", v)),
).map(lambda pair: Media(pair[0], data=json.dumps(pair[1], ensure_ascii=False).encode()))
messages = st.lists(
    st.builds(
        Message,
        st.sampled_from(["system", "user", "assistant"]),
        st.lists(text | media, max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=4,
).map(tuple)
records = st.builds(
    Record,
    id=text,
    messages=messages,
    source=st.just(Source("made", 1)),
    skill=st.none() | text,
    group=st.none() | text,
    options=st.lists(text).map(tuple),
    answers=st.lists(text).map(tuple),
    extra=st.dictionaries(text.map(lambda name: f"x{name}"), value),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(records, min_size=1, max_size=3))
def test_any_record(made: list[Record]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        round_trip(made, Path(folder))


FLAT = {
    "id": ["r1", "r2"],
    "image": ["a.png", "img/b.png"],
    "question": ["q", "Where is <image>?"],
    "answer": ["é\n", "there"],
    "skill": ["s", None],
    "note": ["x", None],
}
ROWS = [dict(zip(FLAT, row, strict=True)) for row in zip(*FLAT.values(), strict=True)]


def as_json(folder: Path) -> str:
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    (folder / "d.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
    return "d.json"


def as_jsonl(folder: Path) -> str:
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return "d.jsonl"


def as_csv(folder: Path) -> str:
    lines = ["image,caption,options", 'a.png,"a, b","[""x"", ""y""]"']
    (folder / "d.csv").write_text("\n".join(lines))
    return "d.csv"


def as_parquet(folder: Path) -> str:
    images = [{"bytes": png(), "path": None}, {"bytes": None, "path": "a.png"}]
    pq.write_table(pa.table({**FLAT, "image": images}), folder / "d.parquet")
    return "d.parquet"


def as_saved(folder: Path) -> str:
    datasets.DatasetDict({"x": datasets.Dataset.from_dict(FLAT)}).save_to_disk(str(folder / "d"))
    for name in ("a.png", "img/b.png"):
        target = folder / "d" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((folder / name).read_bytes())
    return "d:x"


def as_tar(folder: Path) -> str:
    from test_readers import make_tar

    make_tar(folder / "d.tar", [("1.png", png()), ("1.txt", b"c"), ("1.json", b'{"k": [1]}')])
    return "d.tar"


@pytest.mark.parametrize("make", [as_json, as_jsonl, as_csv, as_parquet, as_saved, as_tar])
def test_every_reader(folder: Path, make: Callable[[Path], str]) -> None:
    result = read_records(f"{folder}/{make(folder)}")
    assert result.problems == []
    round_trip(result.records, folder)


def test_paths_are_relative_and_move_with_the_folder(folder: Path) -> None:
    write_records(
        [
            Record(
                "1",
                (Message("user", (Media("image", path=str(folder / "img/b.png")),)), TURNS[1]),
                Source("made", 1),
            )
        ],
        folder / "data.jsonl",
    )
    row = json.loads((folder / "data.jsonl").read_text())
    assert row["messages"][0]["content"] == [{"type": "image", "path": "img/b.png"}]
    moved = folder.rename(folder.with_name("moved"))
    (found,) = read_records(moved / "data.jsonl").records
    assert next(found.media()).read() == png((200, 0, 0))


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    good = Record("1", TURNS, Source("made", 1))
    path = tmp_path / "data.jsonl"
    write_records([good], path)
    before = path.read_bytes()
    for extra, pattern in (
        ({"messages": 1}, "made:2: the extra field.s. messages would be read"),
        ({"x": b"1"}, "made:2: cannot be written as JSON .a field holds bytes"),
        ({"x": "\ud800"}, "made:2: cannot be written"),
    ):
        bad = dataclasses.replace(good, source=Source("made", 2), extra=extra)
        with pytest.raises(DataError, match=pattern):
            write_records([good, bad], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


def test_dates_are_written_as_text(tmp_path: Path) -> None:
    extra = {"day": datetime.date(2024, 5, 1)}
    write_records([Record("1", TURNS, Source("m", 1), extra=extra)], tmp_path / "d.jsonl")
    (record,) = read_records(tmp_path / "d.jsonl").records
    assert record.extra == {"day": "2024-05-01"}
