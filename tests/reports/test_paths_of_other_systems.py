"""Paths that mean something else elsewhere: ``C:\\data\\a.png``, ``file://im/a.png``.

Both were read as other paths of this machine.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from modalign.data.readers import read_records
from reports.threads import reported


def read(folder: Path, image: str) -> tuple[str, str]:
    """The path that a row's image is read from, or what is said about it."""
    row = {"image": image, "question": "q", "answer": "a"}
    found = read_records(tiny.write_jsonl(folder / "data.jsonl", [row]))
    if found.problems:
        return "", found.problems[0].message
    (medium,) = found.records[0].media()
    return str(medium.path), ""


@reported("pasteurlabs/tesseract-core#558", "silx-kit/silx#1399")
@pytest.mark.parametrize("path", ["C:\\data\\a.png", "c:/data/a.png", "\\\\server\\share\\a.png"])
def test_paths_of_windows_are_named(tmp_path: Path, path: str) -> None:
    assert "is a Windows path" in read(tmp_path, path)[1]


@reported("vibe-d/vibe.d#2048")
def test_a_host_in_a_file_address_is_no_folder(tmp_path: Path) -> None:
    said = read(tmp_path, "file://im/a.png")[1]
    assert "on the machine 'im'" in said
    assert "file:///im/a.png" in said


@reported("vibe-d/vibe.d#2048")
@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///im/a%20b.png", "/im/a b.png"),
        ("file://localhost/im/a.png", "/im/a.png"),
        ("FILE:///im/a.npy#3", "/im/a.npy#3"),
        ("file:/im/a.png", "/im/a.png"),
    ],
)
def test_addresses_of_files_here(tmp_path: Path, address: str, path: str) -> None:
    assert read(tmp_path, address) == (path, "")


@reported("vibe-d/vibe.d#2048")
def test_a_relative_address_has_no_meaning(tmp_path: Path) -> None:
    assert "not an absolute path" in read(tmp_path, "file:im/a.png")[1]


@reported("pasteurlabs/tesseract-core#558")
@pytest.mark.parametrize("name", ["a:b.png", "C.png", "12:30.png"])
def test_ordinary_names_stay(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, name) == (str(tmp_path / name), "")
