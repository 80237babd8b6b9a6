"""Series from every file that holds them, with gaps; what is said about those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalign.data.records import Media
from modalign.data.series import blank_series, check_series, open_series
from modalign.data.signals import SignalError

NAN = float("nan")


def inline(value: Any) -> Media:
    return Media("series", data=json.dumps(value).encode())


def at(path: Path, part: int | str | None = None) -> Media:
    return Media("series", path=str(path) + (f"#{part}" if part is not None else ""))


def same(media: Media, expected: Any) -> bool:
    found = open_series(media)
    assert found.dtype == np.float32
    return np.array_equal(found, np.array(expected, dtype=np.float32), equal_nan=True)


def fault(media: Media, **options: Any) -> str:
    with pytest.raises(SignalError) as caught:
        open_series(media, **options)
    assert str(caught.value).startswith(f"{media.label}: ")
    return f"{caught.value.kind}: {caught.value.reason}"


def test_lists() -> None:
    assert same(inline([1, None, 3.5]), [[1], [NAN], [3.5]])
    assert same(inline([[1, None], [NAN, 4]]), [[1, NAN], [NAN, 4]])
    assert same(inline([7]), [[7]])  # a series of one point


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("time,temp, wind\n09:00,20.5,\n10:00,NA,3\n\n11:00,21,1e300\n")
    assert same(at(path, "temp"), [[20.5], [NAN], [21]])
    assert "'09:00', not a number" in fault(at(path))
    assert "step 2 of channel 1 is infinite" in fault(at(path, "temp,wind"))
    assert "no column 'wint'; its columns: time, temp, wind" in fault(at(path, "wint"))
    path.write_text("1;2\n3;\n")  # no header
    assert same(at(path), [[1, 2], [3, NAN]])
    assert "it has no header" in fault(at(path, "a"))
    path.write_text("5\n")
    assert same(at(path), [[5]])
    path.write_text("a,b\n1,2\n3\n")
    assert "row 1 has 1 cells, not 2" in fault(at(path))
    path.write_text("a,b\n")
    assert "holds no steps" in fault(at(path))
    path.write_bytes(b"")
    assert "broken-media" in fault(at(path))
    path.write_bytes(b"a\n\xff\n")
    assert fault(at(path)).startswith("broken-media: cannot be read")
    assert fault(at(tmp_path / "none.tsv")).startswith("missing-media")


def test_arrays(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float64).reshape(2, 3, 2)
    values[0, 1, 0] = NAN
    np.save(tmp_path / "x.npy", values)
    assert same(at(tmp_path / "x.npy", 0), values[0])
    assert "has shape 2 x 3 x 2" in fault(at(tmp_path / "x.npy"))
    np.save(tmp_path / "x.npy", values[:, :, 1])
    assert same(at(tmp_path / "x.npy", 1), values[1][:, 1:])
    cells = [[[1.0, None], [2.0, 3.0]], [[4.0, 5.0]]]
    pq.write_table(pa.table({"s": cells}), tmp_path / "x.parquet")
    assert same(at(tmp_path / "x.parquet", "s:0"), [[1, NAN], [2, 3]])
    assert same(at(tmp_path / "x.parquet", "s:1"), [[4, 5]])
    assert same(Media("series", data=(tmp_path / "x.npy").read_bytes()), values[:, :, 1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "is empty"),
        (3, "has shape of one number"),
        ([None, None], "every value is missing"),
        ([1, float("inf")], "step 1 of channel 0 is infinite"),
        ([[1, 2], [3]], "lists of unequal length"),
        (["a"], "not an array of numbers"),
        ([[[1]]], "has shape 1 x 1 x 1"),
    ],
)
def test_values_that_are_no_series(value: Any, message: str) -> None:
    assert fault(inline(value)).startswith("broken-media")
    assert message in fault(inline(value))
    with pytest.raises(SignalError):
        check_series(inline(value))


def test_another_number_of_channels() -> None:
    assert "2 channels, but the model takes 1" in fault(inline([[1, 2]]), channels=1)


@given(st.integers(1, 20), st.integers(1, 4))
def test_a_blank_has_the_same_size(steps: int, channels: int) -> None:
    blank = open_series(blank_series(inline([[1.5] * channels] * steps)))
    assert blank.shape == (steps, channels)
    assert not blank.any()
