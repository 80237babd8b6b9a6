"""The cache: what is in it, what goes and in which order, and that nothing in use goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modalign.cache import USED, in_use
from modalign.cache_entries import (
    Entry,
    cache_entries,
    clear,
    seconds_of,
    to_clear,
)
from modalign.errors import UsageError
from modalign.memory import bytes_of

Cli = Callable[..., tuple[int, str, str]]
DAY = 86400
HOLD = (
    "import sys; from pathlib import Path; from modalign.cache import in_use\n"
    "in_use(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five entries of four kinds, used 1 to 5 days ago, of 100 to 500 bytes; and files of somebody else."""
    places = ("features/a/x.npy", "features/b/x.npy", "covariance/c.safetensors",
              "values/de/def/v.safetensors", "starter-3/train.jsonl")  # fmt: skip
    for number, place in enumerate(places, 1):
        file = tmp_path / "cache" / place
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(100 * number))
        then = time.time() - number * DAY
        os.utime(file, (then, then))
    (tmp_path / "cache" / "holidays.jpg").write_bytes(bytes(9999))
    (tmp_path / "cache" / "features" / ".part").write_bytes(bytes(9))
    monkeypatch.setenv("MODALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sizes(entries: list[Entry]) -> list[int]:
    return [entry.size for entry in entries]


def test_entries_have_kind_size_and_last_use(cache: Path) -> None:
    found = {entry.path.relative_to(cache).as_posix(): entry for entry in cache_entries()}
    kinds = {name: entry.kind for name, entry in found.items()}
    assert kinds == {
        "features/a": "features", "features/b": "features", "starter-3": "starter",
        "covariance/c.safetensors": "covariance", "values/de/def": "values",
    }  # fmt: skip
    assert found["values/de/def"].size == 400
    assert found["features/b"].used == pytest.approx(time.time() - 2 * DAY, abs=60)
    assert not any(entry.busy for entry in found.values())


def test_the_longest_unused_goes_first(cache: Path) -> None:
    entries = cache_entries()
    assert sizes(to_clear(entries)) == [500, 400, 300, 200, 100]
    assert sizes(to_clear(entries, unused=2.5 * DAY)) == [500, 400, 300]
    assert sizes(to_clear(entries, down_to=600)) == [500, 400]  # 1,500 bytes together
    assert sizes(to_clear(entries, down_to=1500)) == []
    assert sizes(to_clear(entries, kinds=["features"], down_to=250)) == [200]
    with pytest.raises(UsageError, match=r"'feature'.*did you mean features"):
        to_clear(entries, kinds=["feature"])


def test_what_a_process_uses_stays(cache: Path) -> None:
    place = cache / "features" / "b"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        (entry,) = [each for each in cache_entries() if each.path == place]
        assert entry.busy
        assert entry.used == pytest.approx(time.time(), abs=60)  # the use is noted
        assert entry not in to_clear(cache_entries())
        assert not clear(entry)  # nor if it is taken up after the list was made
        assert (place / "x.npy").exists()
        holder.communicate("")
    (entry,) = [each for each in cache_entries() if each.path == place]
    assert not entry.busy
    assert clear(entry)
    assert not place.exists()


def test_an_entry_that_was_cleared_is_held_anew(cache: Path) -> None:
    place = cache / "imported" / "k"
    in_use(place)
    (place / USED).unlink()
    in_use(place)
    (entry,) = [each for each in cache_entries() if each.path == place]
    assert entry.busy


def test_the_verb_lists_and_clears(cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_CACHE", str(cache))
    code, out, _ = cli("cache", "list", "--json")
    told = json.loads(out)
    assert (code, told["bytes"], told["kinds"]["features"]) == (0, 1500, 300)
    code, out, _ = cli("cache", "clear", "--down-to", "1KB", "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["bytes"], [each["kind"] for each in told["cleared"]]) == (
        0,
        500,
        ["starter"],
    )
    assert (cache / "starter-3" / "train.jsonl").exists()
    code, out, _ = cli("cache", "clear", "values", "--unused", "1h")
    assert (code, "cleared 1 entries, 400 B" in out) == (0, True)
    assert not (cache / "values" / "de" / "def").exists()
    for arguments in ([], ["photos"], ["--unused", "soon"], ["--down-to", "little"]):
        code, _, err = cli("cache", "clear", *arguments)
        assert (code, "error" in err) == (2, True)
    assert cli("cache", "clear", "--all")[0] == 0
    assert cache_entries() == []
    assert (cache / "holidays.jpg").exists()
    assert "0 entries" in cli("cache", "list")[1]


def test_spans_and_sizes() -> None:
    assert [seconds_of(text) for text in ("30m", "12h", "1.5d", "4w")] == [
        1800,
        43200,
        129600,
        2419200,
    ]
    sizes = [bytes_of(text, "--down-to") for text in ("7B", "500MB", "1.5gb", "2 KiB")]
    assert sizes == [7, 500_000_000, 1_500_000_000, 2048]
