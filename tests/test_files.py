"""Files appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modalign import files
from modalign.files import new_folder, replacing, write_atomically


def test_text_and_bytes_take_the_place_of_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_atomically(target, "é\n")
    assert target.read_bytes() == "é\n".encode()
    write_atomically(target, b"\x00")
    assert target.read_bytes() == b"\x00"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "")
    finally:
        os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_block_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")

    def fail() -> None:
        with replacing(target) as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert target.read_text() == "old"


def test_a_failing_rename_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    target.write_text("old")

    def refuse(self: Path, other: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert target.read_text() == "old"


def made(folder: Path, content: str) -> None:
    with new_folder(folder) as new:
        (new / "a").write_text(content)


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_folder_takes_the_place_of_another(
    exchanging: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanging:
        monkeypatch.setattr(files, "_exchanged", lambda *given: False)
    for content in ("old", "new"):
        made(tmp_path / "x", content)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["x", "x/a"]
    assert (tmp_path / "x" / "a").read_text() == "new"


def test_what_a_killed_process_left_is_put_back_or_deleted_but_not_a_living_ones(
    tmp_path: Path,
) -> None:
    with new_folder(tmp_path / "x") as living:
        (living / "a").write_text("first")
        killed = tmp_path / ".x.0123abcd.part"
        (killed / "new").mkdir(parents=True)
        (killed / ".lock").write_text("")
        (killed / "old").mkdir()  # where two renames are needed, a kill may come between them
        (killed / "old" / "a").write_text("old")
        with pytest.raises(KeyError), new_folder(tmp_path / "x"):
            raise KeyError
        assert (tmp_path / "x" / "a").read_text() == "old"
        assert not killed.exists()
        assert living.exists()
    assert (tmp_path / "x" / "a").read_text() == "first"
