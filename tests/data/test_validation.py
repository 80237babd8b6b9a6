"""All problems at once, with file and row; a stated quota of broken rows and nothing beyond it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_files import png

from modalign.data.images import check_image
from modalign.data.readers import read_records
from modalign.data.records import Media, Message, Record, Source
from modalign.data.validation import BrokenData, parse_share, validate
from modalign.errors import DataError, UsageError

Lines = Callable[..., Path]
GOOD = {"image": "a.png", "question": "q", "answer": "a"}


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def typed(text: str) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    }


BAD_ROWS = {
    "missing image": ({**GOOD, "image": "no.png"}, "missing-media", "no.png: the file does not"),
    "truncated image": ({**GOOD, "image": "cut.png"}, "broken-media", "cut.png: truncated"),
    "text as image": (
        {**GOOD, "image": "text.png"},
        "not-an-image",
        "starts with the text 'hello'",
    ),
    "empty file": ({**GOOD, "image": "empty.png"}, "not-an-image", "the file is empty"),
    "image bomb": ({**GOOD, "image": "big.png"}, "image-too-large", "100 x 40 = 4,000 pixels"),
    "empty answer": ({**GOOD, "answer": "  \n"}, "empty-answer", "fill it in"),
    "one empty turn": (
        chat(("user", "q"), ("assistant", ""), ("user", "q"), ("assistant", "a")),
        "empty-answer",
        "the answer is empty",
    ),
    "no assistant": (chat(("user", "q")), "no-supervision", "no assistant turn"),
    "open end": (
        chat(("user", "q"), ("assistant", "a"), ("user", "q")),
        "no-supervision",
        "ends with a user turn",
    ),
    "mark without image": ({"question": "<image>", "answer": "a"}, "placeholder", "0 image file"),
    "typed mark": (typed("<image> q"), "placeholder", "placeholder without an image"),
    "image without mark": (
        {**chat(("user", "q"), ("assistant", "a")), "image": "a.png"},
        "placeholder",
        "1 image file(s) but 0 <image>",
    ),
    "duplicate id": ({**GOOD, "id": "one"}, "duplicate-id", "'one' is taken by "),
    "not UTF-8": (b'{"question": "\xff", "answer": "a"}', "encoding", "is not UTF-8"),
    "not JSON": (b"{", "row", "not valid JSON"),
}


@pytest.fixture
def faulty(folder: Path) -> Path:
    """Broken images next to the good ones."""
    whole = png(size=(50, 50))
    (folder / "cut.png").write_bytes(whole[: len(whole) - 40])
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").touch()
    (folder / "big.png").write_bytes(png(size=(100, 40)))
    return folder


small_enough = partial(check_image, max_pixels=3000)


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_names_file_and_row(lines: Lines, faulty: Path, case: str) -> None:
    row, kind, text = BAD_ROWS[case]
    path = lines({**GOOD, "id": "one"}, row, GOOD)
    with pytest.raises(BrokenData) as caught:
        validate(read_records(path), check=small_enough)
    (problem,) = caught.value.problems
    assert (problem.source, problem.kind) == (Source(str(path), 2), kind)
    assert f"{path}:2: " in str(caught.value)
    assert text in str(caught.value)
    assert isinstance(caught.value, DataError)
    kept, report = validate(read_records(path), check=small_enough, skip_broken="34%")
    assert [record.source.row for record in kept] == [1, 3]
    assert (report.total, report.kept, report.dropped, report.kinds) == (3, 2, 1, {kind: 1})


def test_all_problems_come_together(lines: Lines, faulty: Path) -> None:
    rows = [row for row, *_ in BAD_ROWS.values()]
    path = lines({**GOOD, "id": "one"}, *rows, *[b"{"] * 20)
    with pytest.raises(BrokenData) as caught:
        validate(read_records(path), check=small_enough)
    message = str(caught.value)
    assert message.startswith("35 of 36 rows (97.22%) cannot be used:\n")
    assert message.count(f"{path}:") == len(rows) + 1  # one names the row that took its id
    assert re.search(r"not valid JSON .*\(and \d+ more rows like it: ", message), message
    assert "rows by kind: row 21, " in message
    assert "no row may be skipped" in message
    assert [p.source.row for p in caught.value.problems] == list(range(2, 37))


def test_row_with_two_problems_counts_once(lines: Lines) -> None:
    path = lines({"image": ["no.png", "nope.png"], "question": "q", "answer": " "}, GOOD)
    kept, report = validate(read_records(path), skip_broken=0.5)
    assert len(kept) == 1
    assert (report.dropped, len(report.problems)) == (1, 3)
    assert report.kinds == {"empty-answer": 1, "missing-media": 1}


def test_quota_is_a_limit_and_is_reported(lines: Lines) -> None:
    path = lines(*[GOOD] * 97, *[b"{"] * 3)
    assert validate(read_records(path), skip_broken="3%").report.dropped == 3
    with pytest.raises(BrokenData, match=r"\(3.00%\)[^$]*at most 2.00% may be skipped"):
        validate(read_records(path), skip_broken="2%")
    with pytest.raises(BrokenData, match=r"100\.00%"):
        validate(read_records(lines(b"{")), skip_broken=0.99)


def test_no_rows() -> None:
    with pytest.raises(BrokenData, match="no rows at all"):
        validate([])


@pytest.mark.parametrize(
    ("value", "share"), [("1%", 0.01), (0.01, 0.01), ("0.01", 0.01), (0, 0), (" 0.5 % ", 0.005)]
)
def test_parse_share(value: float | str, share: float) -> None:
    assert parse_share(value) == pytest.approx(share)


@pytest.mark.parametrize("value", ["", "%", "x", -0.1, 1, "100%", float("nan"), "inf"])
def test_parse_share_refuses(value: float | str) -> None:
    with pytest.raises(UsageError, match="is not a share"):
        parse_share(value)


def test_modalities() -> None:
    turns = (
        Message("user", (Media("vectors", data=b"[[0.5, 1.0]]"), "q")),
        Message("assistant", ("a",)),
    )
    record = Record("x", turns, Source("made", 4))
    assert validate([record]).records == [record]
    with pytest.raises(BrokenData, match="made:4: holds vectors, but the model takes image"):
        validate([record], modalities=("image",))
    with pytest.raises(BrokenData, match="the model takes text only"):
        validate([record], modalities=())
    beside = Record(
        "x", (Message("user", ("q",)), turns[1]), Source("made", 6), extra={"audio": "a.wav"}
    )
    empty = replace(beside, extra={"audio": None, "note": "kept"})
    assert validate([empty], modalities=("image",)).records == [empty]
    with pytest.raises(BrokenData, match=r"made:6: holds audio, .*--encoder audio=none"):
        validate([beside], modalities=("image",))
    for media, text in (
        (Media("vectors", data=b""), "not JSON"),
        (Media("vectors", path="/no.npy"), "does not exist"),
    ):
        broken = Record("x", (Message("user", (media,)), turns[1]), Source("made", 5))
        with pytest.raises(BrokenData, match=f"made:5: vectors .*{text}"):
            validate([broken])


def test_records_of_one_source_stand_for_themselves() -> None:
    answer = Message("assistant", ("a",))
    good = Record("x", (Message("user", ("q",)), answer), Source("made", 1))
    bad = Record("y", (Message("user", ("q",)),), Source("made", 1))
    assert validate([good, bad], skip_broken=0.5).records == [good]


def test_report_is_json(lines: Lines, tmp_path: Path) -> None:
    path = lines(GOOD, b"{")
    report = validate(read_records(path), skip_broken=0.5).report
    report.save(tmp_path / "report.json")
    loaded = json.loads((tmp_path / "report.json").read_text())
    assert loaded == report.to_json()
    assert (loaded["share"], loaded["kinds"]) == (0.5, {"row": 1})
    (problem,) = loaded["problems"]
    assert (problem["file"], problem["row"], problem["kind"]) == (str(path), 2, "row")


def test_five_thousand_images_take_seconds(tmp_path: Path) -> None:
    rows = []
    for i in range(5000):
        (tmp_path / f"{i}.png").write_bytes(png((i % 256, i // 256, 0), size=(32, 32)))
        rows.append(json.dumps({**GOOD, "image": f"{i}.png"}))
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(rows))
    seen: list[tuple[int, int]] = []
    start = time.perf_counter()
    kept, _ = validate(
        read_records(path), progress=lambda done, total: seen.append((done, total)), workers=4
    )
    assert time.perf_counter() - start < 20
    assert len(kept) == 5000
    assert seen[-1] == (5000, 5000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_media_that_others_disagree_with(folder: Path) -> None:
    """One encoder reads one width: the odd rows are told by row, and count under the quota."""
    rows = [
        {"vectors": [1, 2], "series": [1, 2]},
        {"vectors": [[1, 2], [3, 4]], "series": [[1, 2]]},
        {"vectors": [3, 4, 5], "series": [2]},
        {"vectors": "x.npy#1", "series": [3]},
    ]
    np.save(folder / "x.npy", np.zeros((2, 7)))
    path = folder / "data.jsonl"
    text = (json.dumps({**row, "question": "q", "answer": "a"}) + "\n" for row in rows)
    path.write_text("".join(text))
    found = read_records(path, modalities=["vectors", "series"])
    with pytest.raises(BrokenData) as caught:
        validate(found)
    assert [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems] == [
        "data.jsonl:2: series: number of channels 2, where 3 of 4 have 1",
        "data.jsonl:3: vectors: width 3, where 2 of 4 have 2",
        f"data.jsonl:4: vectors {folder}/x.npy#1: width 7, where 2 of 4 have 2",
    ]
    assert len(validate(found, skip_broken=0.8).records) == 1
