"""Curation as a whole: what is written, what the card says, replay, and work that is cut short."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_files import png

import tiny
from modalign.data.curation import Card, Request, curate, inputs, load_card, load_operators, replay
from modalign.data.curation.card import card_markdown
from modalign.data.curation.operators import (
    AnswerBalance,
    Contamination,
    ExactDuplicates,
    ImageSize,
    Length,
    NearImages,
    NearTexts,
    Operator,
)
from modalign.data.curation.pipeline import segments
from modalign.data.readers import read_records
from modalign.errors import DataError, ModalignError, UsageError

TEXT_OPERATORS: tuple[Operator, ...] = (
    ExactDuplicates(),
    Length(min_chars=12),
    NearTexts(threshold=0.7),
    AnswerBalance(max_share=0.5, min_rows=2),
)


def text_rows() -> list[dict[str, Any]]:
    """Sixty rows with exact and near duplicates, short ones, and too many of one answer."""
    letters = np.random.default_rng(0).integers(97, 123, (60, 30)).astype(np.uint8)
    rows = []
    for number, codes in enumerate(letters):
        question = "is it " + codes.tobytes().decode()
        if number % 7 == 3:
            question = rows[-1]["question"] + "!"
        if number % 11 == 5:
            question = "?"
        rows.append({"question": question, "answer": "yes" if number % 3 else "no"})
        if number % 13 == 6:
            rows.append(rows[number // 2])
    return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_jsonl(tmp_path / "data.jsonl", text_rows())


def request(data: Path, *operators: Operator, **options: Any) -> Request:
    out = options.pop("out", data.parent / "out.jsonl")
    return Request((str(data),), out, operators or TEXT_OPERATORS, **options)


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- what is written ----------------------------------------------------------------------------


def test_operators_that_wait_end_a_pass() -> None:
    numbers = [[index for index, _ in part] for part in segments(TEXT_OPERATORS)]
    assert numbers == [[0, 1, 2], [3]]


def test_kept_rows_are_as_they_were_in_their_order(data: Path) -> None:
    result = curate(request(data))
    rows = text_rows()
    kept = written(result.out)
    places = [rows.index(row) for row in kept]
    assert places == sorted(places)
    assert 0 < len(kept) < len(rows)
    dropped = [done.dropped for done in result.card.operators]
    assert all(dropped)
    assert result.card.output.rows == len(kept) == len(rows) - sum(dropped)
    in_out = [(done.rows_in, done.rows_out) for done in result.card.operators]
    assert [a for a, _ in in_out[1:]] == [b for _, b in in_out[:-1]]


def test_several_inputs_are_one_data_set(tmp_path: Path) -> None:
    rows = [{"question": f"question {n}", "answer": "a"} for n in range(3)]
    tiny.write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps([rows[1], {**rows[0], "answer": "b"}]))
    paths = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.json"))
    card = curate(Request(paths, tmp_path / "out.jsonl", (ExactDuplicates(),))).card
    (example,) = card.operators[0].examples
    assert (example.file, example.row) == (paths[1], 1)
    assert example.reason == f"equal to {paths[0]}:2"
    assert example.text == "question 1\na"
    assert [item.rows for item in card.inputs] == [3, 2]


def test_media_are_found_from_the_output(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "deep" / "out"
    source.mkdir()
    (source / "a.png").write_bytes(png((1, 2, 3)))
    absolute = tmp_path / "b.png"
    absolute.write_bytes(png((4, 5, 6)))
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "what?"}]
    rows: list[dict[str, Any]] = [
        {"image": "a.png", "question": "what?", "answer": "a", "note": {"k": [1, None]}},
        {"images": ["a.png", str(absolute)], "caption": "two"},
        {"image": {"path": "a.png", "annotations": [1]}, "caption": "noted"},
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "b"}]},
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image> c?"},
                                             {"from": "gpt", "value": "d"}]},
    ]  # fmt: skip
    data = tiny.write_jsonl(source / "data.jsonl", rows)
    out = target / "out.jsonl"
    curate(Request((str(data),), out, (ImageSize(min_side=1),)))
    before, after = read_records(data).records, read_records(out).records
    assert [[m.read() for m in r.media()] for r in after] == [
        [m.read() for m in r.media()] for r in before
    ]
    lines = written(out)
    assert lines[0] == rows[0] | {"image": "../../in/a.png"}
    assert lines[1]["images"][1] == str(absolute)
    assert lines[2]["image"] == {"path": "../../in/a.png", "annotations": [1]}


def test_media_held_in_rows_are_stored_beside_the_output(tmp_path: Path) -> None:
    images = [png((n, n, n)) for n in (1, 1, 200)]
    table = pa.table(
        {
            "image": [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)],
            "caption": ["dark", "dark", "light"],
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    out = tmp_path / "out.jsonl"
    curate(Request((str(tmp_path / "data.parquet"),), out, (ExactDuplicates(),)))
    records = read_records(out).records
    assert [r.answer for r in records] == ["dark", "light"]
    assert [next(r.media()).read() for r in records] == [images[0], images[2]]


def test_csv_cells_that_hold_lists(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    with (tmp_path / "in" / "data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["images", "question", "answer"])
        writer.writerow(['["a.png", "a.png"]', "same?", "yes"])
    out = tmp_path / "out.jsonl"
    curate(Request((str(tmp_path / "in" / "data.csv"),), out, (ExactDuplicates(),)))
    assert written(out)[0]["images"] == ["in/a.png", "in/a.png"]


def test_distributions_count_all_rows_and_kept_rows(tmp_path: Path) -> None:
    for n, side in enumerate((5, 5, 40)):
        Image.effect_noise((side, side), 50).save(tmp_path / f"{n}.png")
    rows = [{"image": f"{n}.png", "caption": "x" * (n + 1)} for n in range(3)]
    data = tiny.write_jsonl(tmp_path / "data.jsonl", rows)
    card = curate(request(data, Length(min_chars=2), ImageSize(max_side=30))).card
    assert [(b.name, b.before, b.after) for b in card.distributions.longer_side] == [
        ("4 to 7", 2, 1), ("8 to 15", 0, 0), ("16 to 31", 0, 0), ("32 to 63", 1, 0),
    ]  # fmt: skip
    assert [(b.name, b.before, b.after) for b in card.distributions.characters] == [
        ("1", 1, 0), ("2 to 3", 2, 1),
    ]  # fmt: skip
    assert {b.name: (b.before, b.after) for b in card.distributions.answers} == {
        "x": (1, 0), "xx": (1, 1), "xxx": (1, 0),
    }  # fmt: skip


def test_the_card_in_markdown_stays_a_table(tmp_path: Path) -> None:
    rows = [{"question": "a | b\n\n# c", "answer": "yes"}] * 2
    card = curate(request(tiny.write_jsonl(tmp_path / "d.jsonl", rows), ExactDuplicates())).card
    (line,) = [line for line in card_markdown(card).splitlines() if "equal to" in line]
    assert line.endswith("| a \\| b # c yes |")
    assert (tmp_path / "out.card.md").read_text(encoding="utf-8") == card_markdown(card)


# --- broken rows --------------------------------------------------------------------------------


def broken_file(folder: Path) -> Path:
    lines = [json.dumps(row) for row in text_rows()[:8]]
    lines[2] = "{"
    lines[4] = json.dumps({"image": "nowhere.png", "caption": "gone"})
    path = folder / "broken.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_broken_rows_are_named_counted_and_limited(tmp_path: Path) -> None:
    data = broken_file(tmp_path)
    with pytest.raises(DataError, match=r"2 of 8 rows[^$]*broken\.jsonl:3: not valid JSON") as no:
        curate(request(data, ExactDuplicates(), skip_broken="20%"))
    assert "broken.jsonl:5: image " in str(no.value)
    assert os.listdir(tmp_path) == ["broken.jsonl"]
    card = curate(request(data, ExactDuplicates(), skip_broken="25%")).card
    assert card.broken.kinds == {"row": 1, "missing-media": 1}
    assert [example.row for example in card.broken.examples] == [3, 5]
    assert card.operators[0].rows_in == 6
    assert card.operators[0].rows_out == len(written(tmp_path / "out.jsonl")) == 5


def test_media_are_not_opened_where_no_operator_asks(tmp_path: Path) -> None:
    card = curate(request(broken_file(tmp_path), Length(min_chars=1), skip_broken="20%")).card
    assert card.broken.rows == 1
    assert card.media is None


def test_nothing_left_writes_nothing(data: Path) -> None:
    with pytest.raises(DataError, match=r"no row of \d+ is left: length dropped"):
        curate(request(data, Length(min_chars=10_000)))
    assert os.listdir(data.parent) == [data.name]


def test_an_input_is_never_overwritten(data: Path) -> None:
    with pytest.raises(UsageError, match="both input and output"):
        curate(request(data, out=data))
    assert written(data) == text_rows()


def test_an_input_that_changes_meanwhile(data: Path) -> None:
    def append(name: str, done: int, total: int) -> None:
        if name == "write":
            with data.open("a") as file:
                file.write("\n")

    with pytest.raises(DataError, match="changed while it was read"):
        curate(request(data), append)
    assert os.listdir(data.parent) == [data.name]


# --- replay -------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Request:
    """A request with every operator that reads other files, media and text."""
    for n in range(6):
        patches = np.random.default_rng(n % 4).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(patches).resize((64 + n, 64 + n), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{n}.png")
    rows = [{"image": f"{n}.png", "question": "what?", "answer": str(n % 4)} for n in range(6)]
    data = tiny.write_jsonl(tmp_path / "data.jsonl", rows)
    evaluation = tiny.write_jsonl(tmp_path / "eval.jsonl", [rows[3]])
    operators = (ExactDuplicates(), Contamination(against=(str(evaluation),)), NearImages())
    return Request((str(data),), tmp_path / "out.jsonl", operators)


def test_replay_writes_the_same_bytes_and_card(data: Path) -> None:
    result = curate(request(data))
    files = (result.out, result.card_path, result.card_path.with_suffix(".md"))
    before = [file.read_bytes() for file in files]
    result.out.unlink()
    replay(result.card_path)
    assert [file.read_bytes() for file in files] == before


def test_replay_with_media_from_a_moved_folder(pictures: Request, tmp_path: Path) -> None:
    card = curate(pictures).card
    assert [done.dropped for done in card.operators] == [0, 1, 2]
    before = pictures.out.read_bytes()
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    result = replay(moved / "out.card.json", moved / "again.jsonl")
    assert result.out.read_bytes() == before
    elsewhere = replay(moved / "out.card.json", moved / "deeper" / "out.jsonl").out
    assert [next(r.media()).read() for r in read_records(elsewhere).records] == [
        next(r.media()).read() for r in read_records(result.out).records
    ]
    moved.rename(tmp_path)


@pytest.mark.parametrize("name", ["data.jsonl", "eval.jsonl"])
def test_replay_names_what_changed(pictures: Request, tmp_path: Path, name: str) -> None:
    result = curate(pictures)
    before = result.out.read_bytes()
    with (tmp_path / name).open("a") as file:
        file.write('{"caption": "new", "image": "0.png"}\n')
    with pytest.raises(DataError, match=rf"{name}: changed since the card was written"):
        replay(result.card_path)
    assert result.out.read_bytes() == before


def test_replay_notices_other_pictures(pictures: Request, tmp_path: Path) -> None:
    result = curate(pictures)
    before = result.out.read_bytes()
    (tmp_path / "0.png").write_bytes(png())
    with pytest.raises(DataError, match="media files of the inputs differ from those"):
        replay(result.card_path)
    assert result.out.read_bytes() == before


def test_replay_names_other_versions_where_the_rows_differ(data: Path) -> None:
    result = curate(request(data))
    content = json.loads(result.card_path.read_text())
    content["output"]["selection"] = "0" * 64
    content["operators"][2]["versions"] = {"numpy": "0.1"}
    result.card_path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"or others; other versions: numpy 0\.1 \(now "):
        replay(result.card_path)


def test_a_card_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="not a data card: modalign: Field required"):
        load_card(tmp_path / "card.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_card(tmp_path / "none.json")


# --- work that is cut short ---------------------------------------------------------------------


class _CutError(Exception):
    pass


def cut_after(calls: int, action: Callable[[], None]) -> Callable[[str, int, int], None]:
    """Progress that ends the work at a call."""
    count = iter(range(calls))

    def progress(name: str, done: int, total: int) -> None:
        if next(count, None) is None:
            action()

    return progress


def test_work_cut_anywhere_goes_on_to_the_same_end(data: Path, monkeypatch) -> None:
    monkeypatch.setattr(inputs, "BATCH_ROWS", 16)
    calls: list[str] = []
    result = curate(request(data), lambda name, done, total: calls.append(name))
    expected = (result.out.read_bytes(), result.card_path.read_bytes())
    assert len(calls) > 12

    def raise_it() -> None:
        raise _CutError

    for cut in range(len(calls)):
        result.out.unlink()
        result.card_path.unlink()
        with pytest.raises(_CutError):
            curate(request(data), cut_after(cut, raise_it))
        assert not result.out.exists()
        assert not list(data.parent.glob("*.part"))
        again = curate(request(data, resume=True))
        assert (again.out.read_bytes(), again.card_path.read_bytes()) == expected
    assert sorted(os.listdir(data.parent)) == [
        "data.jsonl", "out.card.json", "out.card.md", "out.jsonl",
    ]  # fmt: skip


def _killed(work: Request, calls: int) -> None:
    inputs.BATCH_ROWS = 16
    curate(work, cut_after(calls, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_a_killed_process_is_taken_up(data: Path, monkeypatch) -> None:
    monkeypatch.setattr(inputs, "BATCH_ROWS", 16)
    out = data.parent / "expected.jsonl"
    expected = curate(request(data, out=out)).out.read_bytes()
    for calls in (4, 8, 14):
        process = multiprocessing.get_context("fork").Process(
            target=_killed, args=(request(data), calls)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (data.parent / "out.jsonl").exists()
        result = curate(request(data, resume=True))
        assert result.out.read_bytes() == expected
        assert not list(data.parent.glob(".*"))
        result.out.unlink()


def test_resuming_does_not_do_again_what_is_done(data: Path, monkeypatch) -> None:
    monkeypatch.setattr(inputs, "BATCH_ROWS", 16)
    seen: list[int] = []
    build = inputs.build_record

    def counted(fields: Any, context: Any, row: int) -> Any:
        seen.append(row)
        return build(fields, context, row)

    def raise_it() -> None:
        raise _CutError

    with pytest.raises(_CutError):
        curate(request(data, Length(min_chars=1)), cut_after(4, raise_it))
    monkeypatch.setattr(inputs, "build_record", counted)
    curate(request(data, Length(min_chars=1), resume=True))
    # Calls 0 and 1 hash; 2, 3 and 4 follow a batch of 16 each: the fourth batch begins with row 49.
    assert seen[0] == 49


def test_resuming_another_request_is_refused(data: Path) -> None:
    def raise_it() -> None:
        raise _CutError

    with pytest.raises(_CutError):
        curate(request(data), cut_after(3, raise_it))
    with pytest.raises(UsageError, match="the interrupted run had other operators: run it"):
        curate(request(data, Length(), resume=True))
    with data.open("a") as file:
        file.write("\n")
    with pytest.raises(UsageError, match="the interrupted run had other inputs"):
        curate(request(data, resume=True))
    assert curate(request(data)).card.output.rows > 0


def test_a_damaged_working_file_is_named(data: Path) -> None:
    (data.parent / ".out.jsonl.curation").write_bytes(b"no database" * 100)
    with pytest.raises(ModalignError, match="run again without resuming"):
        curate(request(data, resume=True))
    assert curate(request(data)).card.output.rows > 0


# --- configuration ------------------------------------------------------------------------------


def test_operators_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "ops.yaml"
    path.write_text(
        "- near_texts: {threshold: 0.9}\n- exact_duplicates\n- length: {min_chars: 2}\n"
    )
    assert load_operators(path) == (
        NearTexts(threshold=0.9), ExactDuplicates(), Length(min_chars=2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- fuzzy", "no operator 'fuzzy': choose from exact_duplicates, length"),
        ("- length: {shortest: 3}", "length: shortest: there is no such field; choose from"),
        ("- near_texts: {threshold: 2}", "near_texts: threshold: Input should be less than"),
        ("- answer_balance", "answer_balance: max_share: Field required"),
        ("length: 3", "expected a list of operators"),
        ("- [length]", "neither a name nor one name with its settings"),
        ("- {", "not a readable YAML file"),
    ],
)
def test_wrong_configurations(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ops.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_operators(path)


def test_a_card_reads_back(data: Path) -> None:
    result = curate(request(data))
    assert isinstance(load_card(result.card_path), Card)
    assert load_card(result.card_path) == result.card
