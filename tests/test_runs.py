"""A run's folder: free or refused, one writer, recorded, resumed with the same configuration only."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modalign.errors import UsageError
from modalign.files import check_free
from modalign.runs import RECORD, run_folder

GIVEN = {"seed": 0, "training": {"rate": 0.1, "layers": [1, 2]}}


def begun(path: Path, **changes: object) -> None:
    with run_folder(path, {**GIVEN, **changes}) as folder:
        folder.begin()
        (path / "result").write_text("of the run")


def test_a_run_is_recorded_and_refused_a_second_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    begun(path)
    assert yaml.safe_load((path / RECORD).read_text()) == GIVEN
    with pytest.raises(UsageError, match="--resume continues it, --overwrite starts again"):
        begun(path)
    assert (path / "result").read_text() == "of the run"


def test_a_run_is_resumed_with_its_own_configuration_only(tmp_path: Path) -> None:
    begun(tmp_path)
    with run_folder(tmp_path, GIVEN, resume=True) as folder:
        folder.begin()
        assert (tmp_path / "result").exists()
    other = {"seed": 1, "training": {"rate": 0.1, "layers": [1]}}
    changes = r"seed was 0, now 1; training.layers was \[1, 2\], now \[1\]"
    with pytest.raises(UsageError, match=changes), run_folder(tmp_path, other, resume=True):
        pass
    with run_folder(tmp_path, {**GIVEN, "seed": 1}, resume=True, free=["seed"]):
        pass
    with (
        pytest.raises(
            UsageError, match=r"configuration: training.layers was \[1, 2\], now \[1\]\."
        ),
        run_folder(tmp_path, other, resume=True, free=["seed"]),
    ):
        pass
    with run_folder(tmp_path, other, resume=True, fixed=False) as folder:
        folder.begin()
    assert yaml.safe_load((tmp_path / RECORD).read_text()) == other


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("of the user")
    begun(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with run_folder(tmp_path, {"seed": 1}, overwrite=True) as folder:
        assert {path.name for path in tmp_path.glob("[!.]*")} == {"log.txt"}
        folder.begin()
    assert yaml.safe_load((tmp_path / RECORD).read_text()) == {"seed": 1}
    with (
        pytest.raises(UsageError, match="give only one of them"),
        run_folder(tmp_path, GIVEN, resume=True, overwrite=True),
    ):
        pass


@pytest.mark.parametrize("again", ["resume", "overwrite"])
def test_a_run_whose_deletion_was_killed_is_deleted_not_resumed(
    again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.txt").write_text("of the user")
    begun(tmp_path)
    (tmp_path / "checkpoints").mkdir()

    def killed(path: Path) -> None:
        assert path.name != RECORD  # is deleted last
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("modalign.runs.delete", killed)
        with pytest.raises(KeyboardInterrupt), run_folder(tmp_path, GIVEN, overwrite=True):
            pass
    with pytest.raises(UsageError, match="--overwrite starts again"):
        begun(tmp_path)
    options = {again: True}
    with run_folder(tmp_path, GIVEN, **options):
        assert {path.name for path in tmp_path.glob("[!.]*")} == {"log.txt"}


def test_what_a_killed_process_left_half_written_goes_with_the_next_one(tmp_path: Path) -> None:
    begun(tmp_path)
    deep, other = tmp_path / "deep", tmp_path / "other"
    with run_folder(other, GIVEN) as folder:
        folder.begin()
        kept = other / ".a.0123abcd.part"
        kept.write_text("of another run")
        deep.mkdir()
        (deep / ".model.0123abcd.part").mkdir()
        (deep / ".model.0123abcd.part" / "half").write_text("")
        (tmp_path / ".result.89abcdef.part").write_text("half")
        with run_folder(tmp_path, GIVEN, resume=True):
            assert list(deep.iterdir()) == []
            assert not (tmp_path / ".result.89abcdef.part").exists()
            assert kept.exists()


def test_a_users_own_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text("mine: 1")
    for options in ({}, {"overwrite": True}):
        with (
            pytest.raises(UsageError, match="another --out"),
            run_folder(tmp_path, GIVEN, **options),
        ):
            pass
    assert (tmp_path / RECORD).read_text() == "mine: 1"


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with run_folder(path, GIVEN):
            raise KeyError

    (tmp_path / "held").mkdir()
    for name in ("new", "held"):
        with pytest.raises(KeyError):
            fail(tmp_path / name)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "held").iterdir()) == []


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from modalign.runs import run_folder\n"
        "with run_folder(Path(sys.argv[1]), {}, resume=True): print('in')"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with run_folder(tmp_path, GIVEN) as folder:
        folder.begin()
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"is being written by process {os.getpid()} on " in other.stderr
        assert "UsageError" in other.stderr
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "started with another configuration" in other.stderr  # the lock is free again


@pytest.mark.parametrize("place", ["a file", "in a file", "/proc/x", "full"])
def test_a_place_that_cannot_be_written_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    if place == "full":
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(error))
        path, said = tmp_path / "out", "No space left"
    elif place == "/proc/x":
        path, said = Path(place), "cannot be written"
    else:
        (tmp_path / "file").write_text("")
        path, said = tmp_path / "file", "is a file"
        if place == "in a file":
            path, said = path / "out", "cannot be written"
    with pytest.raises(UsageError, match=said) as told, run_folder(path, GIVEN):
        pass
    assert "\n" not in str(told.value)
    if place != "a file":
        with pytest.raises(UsageError, match=said):
            check_free(path / "x.json")


def test_a_file_is_free_or_refused(tmp_path: Path) -> None:
    check_free(tmp_path / "new" / "deep" / "a.json", tmp_path / "b.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b.json").write_text("old")
    with pytest.raises(UsageError, match=r"b.json exists already: --overwrite"):
        check_free(tmp_path / "a.json", tmp_path / "b.json")
    check_free(tmp_path / "b.json", overwrite=True)
    with pytest.raises(UsageError, match="is a folder"):
        check_free(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        check_free(tmp_path / "b.json", overwrite=True, folders=True)
    with pytest.raises(UsageError, match="exists already"):
        check_free(tmp_path, folders=True)
    check_free(tmp_path, folders=True, overwrite=True)
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty", folders=True)
    assert (tmp_path / "b.json").read_text() == "old"
