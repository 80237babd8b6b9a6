"""Every container and every row shape, and what is said about the ones that cannot be read."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_files import png

from modalign.data.readers import ReadResult, read_records
from modalign.data.records import Media, Record, Source
from modalign.errors import DataError, UsageError

Lines = Callable[..., Path]


def only(result: ReadResult) -> Record:
    assert result.problems == []
    (record,) = result.records
    return record


def shape(record: Record) -> list[tuple[str, list[Any]]]:
    """Roles with texts and media file names."""
    return [
        (m.role, [Path(p.path).name if isinstance(p, Media) and p.path else p for p in m.parts])
        for m in record.messages
    ]


def problem(path: Path | str, row: int, **options: Any) -> str:
    """The message of the only problem, which must lie in this row."""
    result = read_records(path, **options)
    (found,) = result.problems
    assert found.source == Source(str(path), row)
    assert str(found).startswith(f"{path}:{row}: ")
    return f"{found.kind}: {found.message}"


GOOD = {"question": "q", "answer": "a"}


# --- row shapes ---------------------------------------------------------------------------------


def test_llava_list(folder: Path) -> None:
    path = folder / "data.json"
    row = {
        "id": 7,
        "image": ["a.png", "img/b.png"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>\nand <image>?"},
            {"from": "gpt", "value": "Two."},
        ],
        "origin": {"page": 3},
    }
    path.write_text(json.dumps([row]))
    record = only(read_records(path))
    assert record.id == "7"
    assert record.source == Source(str(path), 1)
    assert record.extra == {"origin": {"page": 3}}
    assert shape(record) == [
        ("system", ["Be brief."]),
        ("user", ["a.png", "\nand ", "b.png", "?"]),
        ("assistant", ["Two."]),
    ]
    assert [m.read() for m in record.media()] == [png(), png((200, 0, 0))]


def test_chat_typed_parts(lines: Lines, folder: Path) -> None:
    data_url = "data:image/png;base64," + base64.b64encode(png()).decode()
    parts = [
        {"type": "text", "text": "x"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "path": str(folder / "img/b.png")},
        {"type": "image", "url": (folder / "a.png").as_uri()},
        {"type": "image_url", "image_url": {"url": data_url}},
        {"type": "image_url", "image_url": {"url": "a.png"}},
    ]
    row = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "fine"},
        ]
    }
    record = only(read_records(lines(row)))
    names = ["x", "a.png", "b.png", "a.png", Media("image", data=png()), "a.png"]
    assert shape(record)[1] == ("user", names)
    assert record.id == "data.jsonl:1"
    assert all(Path(m.path).is_file() for m in record.media() if m.path)


def test_chat_marks_untyped_parts_and_text_only_rows(lines: Lines) -> None:
    answer = {"role": "assistant", "content": "y"}
    path = lines(
        {
            "messages": [{"role": "user", "content": "<image> or <image>"}, answer],
            "images": ["a.png", {"path": "img/b.png", "bytes": None}],
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image"},
                        {"type": "text", "text": "?"},
                        {"type": "image"},
                    ],
                },
                answer,
            ],
            "images": ["a.png", "img/b.png"],
        },
        {"messages": [{"role": "user", "content": "just text with a <table>"}, answer]},
    )
    result = read_records(path)
    assert result.problems == []
    assert [shape(r)[0][1] for r in result.records] == [
        ["a.png", " or ", "b.png"],
        ["a.png", "?", "b.png"],
        ["just text with a <table>"],
    ]


def test_flat_rows(lines: Lines) -> None:
    path = lines(
        {"image": "a.png", "question": "What?", "answer": "this", "skill": "color", "group": 4},
        {"image": "a.png", "caption": "a cat"},
        {"image": ["a.png", "img/b.png"], "question": "<image> vs <image>", "answer": 2},
        {"image": "", "question": "2+2?", "answer": "4", "options": ["3", 4], "answers": "four"},
    )
    result = read_records(path)
    assert result.problems == []
    first, caption, two, text = result.records
    assert shape(first) == [("user", ["a.png", "What?"]), ("assistant", ["this"])]
    assert (first.skill, first.group) == ("color", "4")
    assert shape(caption) == [("user", ["a.png"]), ("assistant", ["a cat"])]
    assert shape(two) == [("user", ["a.png", " vs ", "b.png"]), ("assistant", ["2"])]
    assert shape(text) == [("user", ["2+2?"]), ("assistant", ["4"])]
    assert (text.options, text.answers) == (("3", "4"), ("four",))


def test_other_modalities_are_read_when_named(lines: Lines) -> None:
    row = {"audio": "a.png", "question": "<audio> in a <table>", "answer": "x"}
    record = only(read_records(lines(row), modalities=("audio",)))
    assert [m.modality for m in record.media()] == ["audio"]
    plain = only(read_records(lines(row)))
    assert plain.extra == {"audio": "a.png"}
    assert shape(plain)[0] == ("user", ["<audio> in a <table>"])
    with pytest.raises(UsageError, match="no modality 'smell'"):
        read_records(lines(row), modalities=("smell",))


# --- values in the row --------------------------------------------------------------------------

INLINE: dict[str, tuple[str, Any, list[Any]]] = {  # column value -> each medium: path or value
    "one vector": ("vectors", [1, 2.5], [[1, 2.5]]),
    "several vectors": ("vectors", [[1, 2], [3, 4]], [[[1, 2], [3, 4]]]),
    "two signals": ("vectors", [[[1, 2]], [[3, 4]]], [[[1, 2]], [[3, 4]]]),
    "files": ("vectors", ["a.npy#3", "b.npy"], ["a.npy#3", "b.npy"]),
    "file and values": ("vectors", ["a.npy", [[1, 2]]], ["a.npy", [[1, 2]]]),
    "missing steps": ("series", [1, None, 3], [[1, None, 3]]),
    "channels": ("series", [[1, None], [2, 3]], [[[1, None], [2, 3]]]),
    "table": ("table", {"age": 3, "sex": "f"}, [{"age": 3, "sex": "f"}]),
    "tables": ("tables", [{"age": 3}, {"age": None}], [{"age": 3}, {"age": None}]),
    "table reference": ("table", {"path": "t.csv#1"}, ["t.csv#1"]),
    "table with a path": ("table", {"path": "x", "age": 3}, [{"path": "x", "age": 3}]),
    "empty table": ("table", {}, [{}]),
}


def values(record: Record, folder: Path) -> list[Any]:
    """Each medium's path below a folder, or the value it holds."""
    return [
        str(Path(m.path).relative_to(folder)) if m.path else json.loads(m.data or b"")
        for m in record.media()
    ]


@pytest.mark.parametrize("case", INLINE)
@pytest.mark.parametrize("container", ["jsonl", "json", "csv", "parquet", "saved"])
def test_values_in_the_row(folder: Path, case: str, container: str) -> None:
    column, value, expected = INLINE[case]
    if container in {"parquet", "saved"} and case in {"file and values", "empty table"}:
        pytest.skip("an Arrow column has one type")
    path = folder / f"data.{container}"
    row = {column: value, **GOOD}
    if container == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow({**row, column: json.dumps(value)})
    elif container == "parquet":
        pq.write_table(pa.table({key: [item] for key, item in row.items()}), path)
    elif container == "saved":
        datasets.Dataset.from_list([row]).save_to_disk(str(path))
    else:
        path.write_text(json.dumps([row] if container == "json" else row))
    root = path if container == "saved" else folder
    modality = column.removesuffix("s") if column == "tables" else column
    record = only(read_records(path, modalities=["image", modality]))
    assert values(record, root) == expected
    assert {m.modality for m in record.media()} == {modality}
    assert {m.label for m in record.media() if m.data} <= {str(record.source)}


def test_typed_parts_hold_values_and_notes(lines: Lines, folder: Path) -> None:
    content = [
        {"type": "table", "table": {"age": 3}},
        {"type": "series", "series": [1, 2]},
        {"type": "image", "path": "a.png", "annotations": {"boxes": [1]}},
        {"type": "image", "image": {"path": "img/b.png", "annotations": "red"}},
    ]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    }
    record = only(read_records(lines(row)))
    assert values(record, folder) == [{"age": 3}, [1, 2], "a.png", "img/b.png"]
    assert [m.annotations for m in record.media()] == [None, None, {"boxes": [1]}, "red"]


def test_notes_in_a_column(lines: Lines, folder: Path) -> None:
    scene = {"path": "a.png", "annotations": [{"x": 1}]}
    for row in ({"image": scene}, {"images": [scene]}, {"image": json.dumps(scene)}):
        (media,) = only(read_records(lines({**GOOD, **row}))).media()
        assert media.annotations == [{"x": 1}]
        assert media == Media("image", path=str(folder / "a.png"))


def test_marks_place_values(lines: Lines, folder: Path) -> None:
    row = {"table": {"age": 3}, "vectors": [1], "question": "<vectors> of <table>?", "answer": "a"}
    record = only(read_records(lines(row), modalities=["table", "vectors"]))
    assert values(record, folder) == [[1], {"age": 3}]
    row = {"question": "is <table> HTML?", "answer": "yes"}
    assert shape(only(read_records(lines(row), modalities=["table"])))[0][1] == ["is <table> HTML?"]


def test_dates_and_decimals_of_a_parquet_table(folder: Path) -> None:
    import datetime
    import decimal

    row = {"day": datetime.date(2020, 1, 2), "price": decimal.Decimal("1.50"), "bytes": None}
    path = folder / "data.parquet"
    pq.write_table(pa.table({"table": [row], "question": ["q"], "answer": ["a"]}), path)
    record = only(read_records(path, modalities=["table"]))
    assert values(record, folder) == [{"day": "2020-01-02", "price": 1.5, "bytes": None}]
    pq.write_table(pa.table({"table": [{"x": b"\0", "y": 1}], "answer": ["a"]}), path)
    assert "holds bytes" in problem(path, 1, modalities=["table"])


def test_a_part_of_a_file_is_found_and_hashed_by_content(lines: Lines, folder: Path) -> None:
    (folder / "x.npy").write_bytes(b"one")
    (folder / "y.npy").write_bytes(b"one")
    names = ["x.npy#0", "x.npy#1", f"file://{folder}/x.npy#1", "y.npy#1"]
    record = only(read_records(lines({**GOOD, "vectors": names}), modalities=["vectors"]))
    first, second, third, other = record.media()
    assert second == third
    assert first.content_hash() != second.content_hash() == other.content_hash()
    assert first.content_hash() != Media("vectors", path=str(folder / "x.npy")).content_hash()


def test_media_root(lines: Lines, folder: Path) -> None:
    path = lines({"image": "b.png", "caption": "c"})
    record = only(read_records(path, media_root=folder / "img"))
    assert [m.read() for m in record.media()] == [png((200, 0, 0))]


# --- containers ---------------------------------------------------------------------------------


def test_json_file_with_one_object_per_line(folder: Path) -> None:
    path = folder / "data.json"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "answer": "b"}) + "\n")
    result = read_records(path)
    assert [(r.source.row, r.answer) for r in result.records] == [(1, "a"), (3, "b")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(folder: Path, delimiter: str) -> None:
    path = folder / "data.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["image", "question", "answer", "options", "note"])
        writer.writerow(["a.png", "Who,\nwhere; or what?", "é", '["é", "ê"]', "n"])
        writer.writerow(['["a.png", "img/b.png"]', "Both?", "yes", "", ""])
    result = read_records(path)
    assert result.problems == []
    first, second = result.records
    assert shape(first)[0] == ("user", ["a.png", "Who,\nwhere; or what?"])
    assert (first.options, first.extra) == (("é", "ê"), {"note": "n"})
    assert shape(second)[0] == ("user", ["a.png", "b.png", "Both?"])
    assert [r.source.row for r in result.records] == [2, 3]


def test_parquet(folder: Path) -> None:
    path = folder / "data.parquet"
    images = [{"bytes": png(), "path": "x.png"}, {"bytes": None, "path": "a.png"}, None]
    table = {"image": images, "question": ["q"] * 3, "answer": ["a"] * 3, "n": [1, 2, 3]}
    pq.write_table(pa.table(table), path)
    result = read_records(path)
    assert result.problems == []
    first, second, third = result.records
    assert [m.data for m in first.media()] == [png()]
    assert shape(second)[0] == ("user", ["a.png", "q"])
    assert (list(third.media()), third.extra, third.source.row) == ([], {"n": 3}, 3)


def test_parquet_with_chat_messages_and_raw_bytes(folder: Path) -> None:
    path = folder / "data.parquet"
    content = [{"type": "text", "text": "q"}, {"type": "image", "text": None}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
    ]
    pq.write_table(pa.table({"messages": [messages], "images": [[png()]]}), path)
    record = only(read_records(path))
    assert record.messages[0].parts == ("q", Media("image", data=png()))


def test_saved_dataset(folder: Path) -> None:
    from PIL import Image

    columns = {"image": [Image.new("RGB", (2, 2))], "question": ["q"], "answer": ["a"]}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    data.save_to_disk(str(folder / "plain"))
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(folder / "split"))
    record = only(read_records(folder / "plain"))
    (media,) = record.media()
    assert media.read().startswith(b"\x89PNG")
    record = only(read_records(f"{folder}/split:test"))
    assert record.source == Source(f"{folder}/split:test", 1)
    with pytest.raises(DataError, match=r"several splits; name one of .*split:train, .*split:test"):
        read_records(folder / "split")
    with pytest.raises(DataError, match="has no split 'val'"):
        read_records(f"{folder}/split:val")
    with pytest.raises(DataError, match="has no splits"):
        read_records(f"{folder}/plain:train")


def make_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(("name", "mode"), [("d.tar", "w"), ("d.tar.gz", "w:gz")])
def test_webdataset(folder: Path, name: str, mode: str) -> None:
    path = make_tar(
        folder / name,
        [
            ("../x/1.jpg", png()),
            ("../x/1.txt", "a cät".encode()),
            (
                "x/2.json",
                b'{"question": "q <image>?", "answer": "yes", "image": "old.png", "k": 1}',
            ),
            ("x/2.PNG", png()),
            ("x/2.cls", b"3"),
            ("x/._2.png", b"junk"),
        ],
        mode,
    )
    result = read_records(path)
    assert result.problems == []
    first, second = result.records
    assert first.messages[0].parts == (Media("image", data=png()),)
    assert (first.id, first.answer) == ("../x/1", "a cät")
    assert second.messages[0].parts == ("q ", Media("image", data=png()), "?")
    assert second.extra == {"k": 1, "json_image": "old.png", "other_members": ["x/2.cls"]}
    assert second.source == Source(str(path), 2)


# --- bad rows: reported with file and row, the others are read ---------------------------------

BAD_LINES: dict[str, tuple[object, str]] = {
    "undecodable JSON": (b'{"question": ', "row: not valid JSON at column"),
    "invalid UTF-8": (b'{"question": "\xff", "answer": "a"}', "encoding: byte 15 of the line"),
    "lone surrogate": (
        b'{"question": "\\ud800", "answer": "a"}',
        "row: not usable JSON .*half a character",
    ),
    "deep nesting": (b"[" * 100_000, "row: not"),
    "huge number": (b'{"n": ' + b"9" * 5000 + b"}", "row: not usable JSON"),
    "not an object": ([1], "row: a list, not an object"),
    "unknown columns": ({"q": "x"}, r"row: no messages.*\(columns found: q\)"),
    "no question": ({"answer": "a"}, "row: neither a question nor a medium"),
    "empty answer": ({"question": "q", "answer": None}, "empty-answer: "),
    "answer list": ({"question": "q", "answer": ["a"]}, "row: answer is a list.*answers"),
    "options text": ({**GOOD, "options": "a,b"}, "row: options is text: write a list"),
    "options broken": ({**GOOD, "options": "[a,b"}, "row: options is text but not a JSON list"),
    "two columns": ({**GOOD, "image": "a.png", "images": ["a.png"]}, "row: both image and images"),
    "web address": ({**GOOD, "image": "https://x.org/a.png"}, "url: https://x.org/a.png .*fetch"),
    "bucket": ({**GOOD, "image": "s3://x/a.png"}, "url: s3://x/a.png is not downloaded"),
    "empty path": ({**GOOD, "image": [""]}, "missing-media: the path of the image is empty"),
    "image number": ({**GOOD, "image": 3}, "row: the image is a int"),
    "image mapping": ({**GOOD, "image": {"bytes": "abc"}}, "row: the image is a mapping"),
    "data URL": ({**GOOD, "image": "data:image/png;base64,@"}, "broken-media: .*base64"),
    "data URL comma": ({**GOOD, "image": "data:image/png"}, "broken-media: .*lacks a comma"),
    "mark, no image": (
        {"question": "<image> q", "answer": "a"},
        r"placeholder: 1 <image> placeholder\(s\) but 0 image file",
    ),
    "image, no mark": (
        {"image": "a.png", "conversations": [{"from": "human", "value": "q"}]},
        r"placeholder: 1 image file\(s\) but 0 <image>",
    ),
    "no turns": ({"messages": [], "conversations": {}}, "row: conversations is a mapping"),
    "turn text": ({"messages": ["hi"]}, "row: messages holds text where a turn"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, "row: role is 'tool': choose from"),
    "content": ({"messages": [{"role": "user", "content": None}]}, "row: .*content is missing"),
    "value": ({"conversations": [{"from": "gpt", "value": 1}]}, "row: the value of a assistant"),
    "part": ({"messages": [{"role": "user", "content": ["x"]}]}, "row: a content part is text"),
    "part type": (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        "row: a content part has type 'smell'",
    ),
    "part text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "row: a text part holds missing",
    ),
    "part url": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "http://x/y"}]}]},
        "url: http://x/y is not downloaded",
    ),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_reported_and_others_are_read(lines: Lines, case: str) -> None:
    import re

    bad, pattern = BAD_LINES[case]
    path = lines(GOOD, bad, GOOD)
    assert re.match(pattern, problem(path, 2))
    assert [r.source.row for r in read_records(path).records] == [1, 3]
    assert read_records(path).total == 3


def test_bad_utf8_in_json_list(folder: Path) -> None:
    path = folder / "data.json"
    path.write_bytes(b'[{"question":"q","answer":"a"},{"question":"\xe9","answer":"a"}]')
    assert problem(path, 2).startswith("encoding: ")
    assert len(read_records(path).records) == 1


def test_bad_csv_rows(folder: Path) -> None:
    path = folder / "data.csv"
    path.write_bytes(b'question,answer\nq,a\n\xe9,a\n"q"x,a\nq,a,b\n\nq,a\n"open,a\n')
    result = read_records(path)
    assert [(p.source.row, p.kind) for p in result.problems] == [
        (3, "encoding"),
        (4, "row"),
        (5, "row"),
        (8, "row"),
    ]
    assert "3 cells under 2 columns" in result.problems[2].message
    assert [r.source.row for r in result.records] == [2, 7]


def test_bad_tar_rows(folder: Path) -> None:
    members = [
        ("1.json", b"{"),
        ("2.json", b"[]"),
        ("3.txt", b"\xff"),
        ("4.png", png()),
        ("5.txt", b"ok"),
        ("5.png", png()),
    ]
    result = read_records(make_tar(folder / "d.tar", members))
    assert [(p.source.row, p.kind) for p in result.problems] == [
        (1, "row"),
        (2, "row"),
        (3, "encoding"),
        (4, "row"),
    ]
    assert [r.source.row for r in result.records] == [5]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_truncated_tar_keeps_the_rows_before(folder: Path, mode: str) -> None:
    import random

    noise = random.Random(0)
    members = [
        member
        for i in range(4)
        for member in ((f"{i}.json", b'{"caption": "c"}'), (f"{i}.png", noise.randbytes(3000)))
    ]
    path = make_tar(folder / "d.tar", members, mode)
    path.write_bytes(path.read_bytes()[: 9000 if mode == "w" else 7000])
    result = read_records(path)
    (found,) = result.problems
    assert "is truncated" in found.message
    assert found.source.row == len(result.records) + 1 > 1


# --- files that cannot be read at all -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("d.pt", b"PK", "pickle"),
        ("d.jsonl", pickle.dumps([1]), "pickle"),
        ("d.json", b"", "no rows"),
        ("d.json", b"[]", "no rows"),
        ("d.csv", b"question,answer\n", "no rows"),
        ("d.csv", b"a,b,a\n1,2,3\n", "duplicate column names: a"),
        ("d.json", b'[{"a": 1},\n{"a": }]', r"d\.json:2: not valid JSON at column 7"),
        ("d.json", b"[" * 100_000, "not valid JSON at column 2"),
        ("d.json", b'{\n"data": []\n}', r"one JSON value \(data\), not a list of rows"),
        ("d.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16"),
        ("d.parquet", b"PAR1 but no more", "not a readable Parquet file"),
        ("d.tar", b"no tar", "not a readable tar archive"),
        ("d.xlsx", b"PK", r"unknown data format. Give \.json"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, content: bytes, pattern: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=pattern) as caught:
        read_records(path)
    assert str(caught.value).startswith(str(path))


def test_missing_file_and_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json: no such file"):
        read_records(tmp_path / "x.json")
    with pytest.raises(DataError, match="not written by save_to_disk"):
        read_records(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="not a readable saved data set"):
        read_records(tmp_path)
