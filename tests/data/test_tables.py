"""A row from wherever it stands: numbers, categories, gaps; what is said about rows that are none."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalign.data.cells import cell
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.tables import blank_table, check_table, open_table


def inline(value: Any) -> Media:
    return Media("table", data=json.dumps(value).encode())


def at(path: Path, part: int | str | None = None) -> Media:
    return Media("table", path=str(path) + (f"#{part}" if part is not None else ""))


def fault(media: Media) -> str:
    with pytest.raises(SignalError) as caught:
        check_table(media)
    assert str(caught.value).startswith(f"{media.label}: ")
    return f"{caught.value.kind}: {caught.value.reason}"


def test_a_mapping() -> None:
    row = {
        "age": 3,
        "dose": 0.5,
        "sex": "f",
        "smokes": True,
        "note": " ",
        "x": None,
        "y": float("nan"),
    }
    expected = {"age": 3.0, "dose": 0.5, "sex": "f", "smokes": "true", "note": None}
    assert open_table(inline(row)) == {**expected, "x": None, "y": None}
    assert open_table(inline({"code": "7"})) == {"code": "7"}  # JSON says that it is text


CSV = 'age;sex;code\n3;f;01\n4,5;"m;w";x_1\n;NA;-2e3\n\n7\n8;f;1_0\n'


def test_rows_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeff" + CSV, encoding="utf-8")
    assert open_table(at(path, 0)) == {"age": 3.0, "sex": "f", "code": 1.0}
    assert open_table(at(path, 1)) == {"age": "4,5", "sex": "m;w", "code": "x_1"}
    assert open_table(at(path, 2)) == {"age": None, "sex": None, "code": -2000.0}
    assert "1 cells under 3 columns" in fault(at(path, 3))
    assert open_table(at(path, 4))["code"] == "1_0"
    assert fault(at(path, 5)) == "broken-media: has no row 5: it has 5, counted from 0"
    path.write_text("age\n9\n")  # a changed file is read anew
    assert open_table(at(path, 0)) == {"age": 9.0}


def test_rows_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {
        "n": [1, None, 3],
        "x": [0.5, float("nan"), 2.5],
        "day": [datetime.date(2020, 1, 2), None, None],
        "price": [decimal.Decimal("1.50"), None, decimal.Decimal("2.25")],
        "flag": [True, None, False],
    }
    pq.write_table(pa.table(columns), path, row_group_size=2)
    first = {"n": 1.0, "x": 0.5, "day": "2020-01-02", "price": 1.5, "flag": "true"}
    assert open_table(at(path, 0)) == first
    assert open_table(at(path, 1)) == dict.fromkeys(columns)
    assert open_table(at(path, 2)) == {
        **first,
        "n": 3.0,
        "x": 2.5,
        "day": None,
        "price": 2.25,
        "flag": "false",
    }
    assert "has no row 3: it has 3" in fault(at(path, 3))


def test_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text('{"age": 3}')
    assert open_table(at(path)) == {"age": 3.0}
    path.write_text("{")
    assert fault(at(path)).startswith("broken-media: cannot be read")
    assert fault(at(tmp_path / "none.json")).startswith("missing-media")


@given(
    st.dictionaries(
        st.text(min_size=1), st.floats(-1e30, 1e30) | st.integers(-9, 9) | st.none(), min_size=1
    )
)
def test_numbers_come_back_as_they_are(row: dict[str, float | None]) -> None:
    assert open_table(inline(row)) == row
    assert open_table(blank_table(inline(row))) == dict.fromkeys(row)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "is list, not a row of columns"),
        ({}, "has no columns"),
        ({"a": [1]}, "column 'a' holds a list"),
        ({"a": {"b": 1}}, "column 'a' holds a dict"),
        ({"a": float("inf")}, "column 'a' is inf"),
        ({"a": 10**400}, "column 'a' is inf"),
        ({"a": 1e200}, "column 'a' is 1e+200"),
    ],
)
def test_values_that_are_no_row(value: Any, message: str) -> None:
    assert fault(inline(value)).startswith(f"broken-media: {message}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "broken-media" in fault(Media("table", data=b"\0"))
    for name in ("t.csv", "t.parquet"):
        assert fault(at(tmp_path / name, 0)).startswith("missing-media")
        (tmp_path / name).write_bytes(b"")
        assert fault(at(tmp_path / name, 0)).startswith("broken-media: cannot be read")
        assert "name a row of a file" in fault(at(tmp_path / name))
    assert "name a row of a file" in fault(at(tmp_path / "t.xlsx", 0))
    assert "'a' is not a row number" in fault(at(tmp_path / "t.csv", "a"))


def test_a_parquet_file_whose_data_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [f"text {i}" for i in range(500)]}), path)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)  # the footer still says what should be there
    assert fault(at(path, 0)).startswith("broken-media: cannot be read")


def test_what_a_cell_means() -> None:
    assert [cell(text) for text in (" 1.5 ", "-2", "1e3")] == [1.5, -2.0, 1000.0]
    assert {cell(text) for text in ("", " ", "NA", "n/a", "NaN", "null", "None")} == {None}
    assert [cell(text) for text in ("a b", "1_000", "1,5")] == ["a b", "1_000", "1,5"]
