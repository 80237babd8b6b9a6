"""Vectors from every file that holds them; what is said about those that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from modalign.data.arrays import MAX_VALUES
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.data.vectors import blank_vectors, check_vectors, open_vectors

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=(5, 3)).astype(np.float32)  # five signals of one vector
DEEP = RNG.normal(size=(5, 2, 3)).astype(np.float32)  # five signals of two vectors


def inline(value: Any) -> Media:
    return Media("vectors", data=json.dumps(value).encode())


def at(path: Path, part: str | None = None) -> Media:
    return Media("vectors", path=str(path) + (f"#{part}" if part is not None else ""))


def fault(media: Media, **options: Any) -> str:
    with pytest.raises(SignalError) as caught:
        open_vectors(media, **options)
    assert caught.value.media == media
    assert str(caught.value).startswith(f"{media.label}: ")
    return f"{caught.value.kind}: {caught.value.reason}"


def npy(folder: Path, array: np.ndarray) -> Callable[[int | None], Media]:
    np.save(folder / "x.npy", array)
    return lambda row: at(folder / "x.npy", None if row is None else str(row))


def safetensors(folder: Path, array: np.ndarray) -> Callable[[int | None], Media]:
    save_file({"a:b": torch.from_numpy(array), "c": torch.ones(1)}, folder / "x.safetensors")
    return lambda row: at(folder / "x.safetensors", "a:b" + (f":{row}" if row is not None else ""))


def parquet(folder: Path, array: np.ndarray) -> Callable[[int | None], Media]:
    table = pa.table({"feature": array.tolist(), "id": list(range(len(array)))})
    pq.write_table(table, folder / "x.parquet", row_group_size=2)
    return lambda row: at(folder / "x.parquet", f"feature:{row}")


@pytest.mark.parametrize("form", [npy, safetensors, parquet])
@pytest.mark.parametrize("array", [FLAT, DEEP], ids=["one", "several"])
def test_a_row_of_a_file(form: Any, array: np.ndarray, tmp_path: Path) -> None:
    medium = form(tmp_path, array)
    for row in (0, 1, 4):
        assert np.array_equal(open_vectors(medium(row)), np.atleast_2d(array[row]))
    assert fault(medium(5)) == "broken-media: has no row 5: it has 5, counted from 0"


@pytest.mark.parametrize("form", [npy, safetensors])
def test_a_whole_file(form: Any, tmp_path: Path) -> None:
    assert np.array_equal(open_vectors(form(tmp_path, FLAT)(None)), FLAT)
    assert np.array_equal(open_vectors(form(tmp_path, FLAT[0])(None)), FLAT[:1])
    assert "5 x 2 x 3" in fault(form(tmp_path, DEEP)(None))


def test_the_only_tensor_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"h": torch.from_numpy(FLAT).bfloat16()}, path)
    expected = torch.from_numpy(FLAT).bfloat16().float().numpy()
    assert np.array_equal(open_vectors(at(path)), expected)
    assert np.array_equal(open_vectors(at(path, ":2")), expected[2:3])
    assert "select one of its tensors with '#': h" in fault(at(path, "g:2"))


def test_a_json_file_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(FLAT.tolist()))
    assert np.array_equal(open_vectors(at(tmp_path / "x.json")), FLAT)
    assert np.array_equal(open_vectors(at(tmp_path / "x.json", "3")), FLAT[3:4])
    np.save(tmp_path / "x.npy", FLAT.astype(np.float64))
    content = (tmp_path / "x.npy").read_bytes()
    assert np.array_equal(open_vectors(Media("vectors", data=content)), FLAT)
    assert fault(Media("vectors", data=content[:-5])).startswith("broken-media: cannot be read")


def test_a_name_that_holds_the_mark(tmp_path: Path) -> None:
    np.save(tmp_path / "a#1.npy", FLAT)
    assert np.array_equal(open_vectors(at(tmp_path / "a#1.npy")), FLAT)
    assert np.array_equal(open_vectors(at(tmp_path / "a#1.npy", "2")), FLAT[2:3])


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(
                st.floats(width=32, allow_nan=False, allow_infinity=False),
                min_size=width,
                max_size=width,
            ),
            min_size=1,
            max_size=5,
        )
    )
)
def test_inline_lists_are_taken_as_they_are(rows: list[list[float]]) -> None:
    assert np.array_equal(open_vectors(inline(rows)), np.array(rows, dtype=np.float32))
    assert np.array_equal(open_vectors(inline(rows[0])), np.array(rows[:1], dtype=np.float32))
    blank = open_vectors(blank_vectors(inline(rows)))
    assert blank.shape == (len(rows), len(rows[0]))
    assert not blank.any()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1, 2], [3, float("nan")]], "value 1 of vector 1 is nan"),
        ([1, float("inf")], "value 1 of vector 0 is inf"),
        ([1, 1e300], "value 1 of vector 0 is inf"),
        ([1, None], "value 1 of vector 0 is nan"),
        ([[1, 2], [3]], "lists of unequal length"),
        ([["1", "2"]], "not an array of numbers"),
        ({"a": 1}, "not an array of numbers"),
        ([], "is empty"),
        ([[], []], "is empty"),
        ([[[1.0]], [[2.0]]], "has shape 2 x 1 x 1"),
    ],
)
def test_values_that_are_no_vectors(value: Any, message: str) -> None:
    assert fault(inline(value)).startswith("broken-media")
    assert message in fault(inline(value))
    with pytest.raises(SignalError):
        check_vectors(inline(value))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    assert fault(at(path, "0")).startswith("missing-media")
    assert fault(at(tmp_path / "x.parquet", "c:0")).startswith("missing-media")
    assert fault(at(tmp_path / "x.safetensors", "c:0")).startswith("missing-media")
    for content in (b"", b"text", b"\x93NUMPY"):
        path.write_bytes(content)
        assert fault(at(path, "0")).startswith("broken-media: cannot be read")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert fault(at(path, "0")).startswith("broken-media: cannot be read")
    np.save(path, np.array([1 + 2j]))
    assert "complex" in fault(at(path))
    for name in ("x.safetensors", "x.parquet"):
        (tmp_path / name).write_bytes(b"no such thing")
        assert "broken-media" in fault(at(tmp_path / name, "a:0"))
    assert "from .npy" in fault(at(tmp_path / "x.csv", "0"))


def test_parts_that_are_none(tmp_path: Path) -> None:
    medium = parquet(tmp_path, FLAT)
    np.save(tmp_path / "x.npy", FLAT)
    assert "'-1' is not a row number" in fault(at(tmp_path / "x.npy", "-1"))
    assert "'name' is not a row number" in fault(at(tmp_path / "x.npy", "name"))
    assert "give column and row" in fault(at(tmp_path / "x.parquet"))
    assert "choose from feature, id" in fault(at(tmp_path / "x.parquet", "features:0"))
    assert medium(0).path == str(tmp_path / "x.parquet#feature:0")


def test_a_whole_data_set_is_not_one_signal(tmp_path: Path) -> None:
    shape = (MAX_VALUES // 4 + 1, 4)
    np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=shape)
    assert "select one row" in fault(at(tmp_path / "x.npy"))
    assert open_vectors(at(tmp_path / "x.npy", "7")).shape == (1, 4)


def test_another_width() -> None:
    assert "width 2, but the model's are 3 wide" in fault(inline([1, 2]), width=3)
    assert open_vectors(inline([1, 2]), 2).shape == (1, 2)
