"""Tables as a whole: every form gives the same cells, as text and as a picture."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny
from modalign.data.readers import read_records, write_records
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.tables import open_table
from modalign.data.validation import validate
from modalign.data.whole_tables import SERIALISATIONS, WholeTable, drawn, open_whole, with_tables_as
from modalign.errors import UsageError

ROWS = [["town", "people"], ["Aa", "12"], ["Bb", "7"]]
CELLS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=6)


def whole(value: Any) -> WholeTable:
    return open_whole(Media("table", data=json.dumps(value).encode()))


def test_every_form_is_the_same_table(tmp_path: Path) -> None:
    table = WholeTable(("town", "people"), (("Aa", "12"), ("Bb", "7")))
    (tmp_path / "x.csv").write_text("town,people\nAa,12\nBb,7\n")
    pq.write_table(pa.table({"town": ["Aa", "Bb"], "people": [12, 7]}), tmp_path / "x.parquet")
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    for name in ("x.csv", "x.parquet", "x.json"):
        assert open_whole(Media("table", path=str(tmp_path / name))) == table, name
    assert (
        whole(ROWS) == whole([{"town": "Aa", "people": 12}, {"town": "Bb", "people": 7}]) == table
    )
    assert whole({"columns": ROWS[0], "rows": ROWS[1:]}) == table
    assert open_whole(Media("table", path=f"{tmp_path / 'x.csv'}#1")).rows == (("Bb", "7"),)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4))
def test_csv_and_json_lose_nothing(rows: list[tuple[str, str]]) -> None:
    table = whole([["a", "b"], *rows])
    again = list(csv.reader(io.StringIO(SERIALISATIONS["csv"](table))))
    assert [tuple(row) for row in again] == [("a", "b"), *table.rows]
    lines = SERIALISATIONS["json"](table).splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == list(table.rows)


def test_a_picture_shows_every_cell() -> None:
    small, large = (Image.open(io.BytesIO(drawn(whole(ROWS[:n])))) for n in (2, 3))
    assert (large.width, small.height * 3) == (small.width, large.height * 2 + 1)
    assert len(set(large.convert("L").tobytes())) > 2


def test_records_hold_text_or_pictures_afterwards(tmp_path: Path) -> None:
    rows = [{"table": ROWS, "question": f"q{n}", "answer": "Aa", "id": str(n)} for n in range(2)]
    source = tiny.write_jsonl(tmp_path / "x.jsonl", rows)
    records = read_records(source, modalities=("image", "table")).records
    texts = [with_tables_as(record, "markdown") for record in records]
    assert (
        texts[0].messages[0].text
        == "| town | people |\n| --- | --- |\n| Aa | 12 |\n| Bb | 7 |\n\nq0"
    )
    assert texts[0].group == texts[1].group is not None
    write_records([with_tables_as(record, "picture") for record in records], tmp_path / "out.jsonl")
    again, _ = validate(read_records(tmp_path / "out.jsonl"))
    assert [[m.modality for m in record.media()] for record in again] == [["image"]] * 2
    with pytest.raises(UsageError, match="did you mean markdown"):
        with_tables_as(records[0], "markdwn")


@pytest.mark.parametrize("value", [ROWS, {"columns": ["a"], "rows": [["b"]]}])
def test_a_row_is_asked_for_with_the_way_in(value: Any) -> None:
    with pytest.raises(SignalError, match=r"whole table.*modalign data tables DATA -o NEW\.jsonl"):
        open_table(Media("table", data=json.dumps(value).encode()))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([["a", "b"], ["c"]], "row 0 has 1 cells, not 2"),
        ([], "no table|without rows"),
        ("x", "is no table"),
    ],
)
def test_what_is_no_table_says_so(value: Any, said: str) -> None:
    with pytest.raises(SignalError, match=said):
        whole(value)
