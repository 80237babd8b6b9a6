"""A chain: every tool looks once per medium, results survive, costs and problems are counted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from modalign.data.records import Media
from modalign.errors import DataError, UsageError
from modalign.tools.base import Tool
from modalign.tools.cache import FILE, ResultCache
from modalign.tools.chain import ToolChain, Use


class Counting(Tool):
    """Says how often it was called, and what it was given; does what it is told before."""

    def __init__(self, name: str = "tool", version: int = 1, **settings: Any) -> None:
        super().__init__(name, "counts", timeout=0.2, **settings)
        self.version = version
        self.before: Callable[[], Any] = lambda: None

    def run(self, medium: Media, **arguments: Any) -> Any:
        self.before()
        return f"{self.name} {medium.annotations or ''}".strip()

    def identity(self, hash_file: Any) -> Any:
        return [self.name, self.version]

    @property
    def parameters(self) -> int | None:
        return 10 if self.version else None


def chain(*tools: Tool, folder: Path | None = None, **arguments: Any) -> ToolChain:
    uses = [Use(tool, arguments) for tool in tools]
    return ToolChain(uses, None, 50, lambda text: len(text.split()), ResultCache(folder))


def test_a_tool_looks_once_at_equal_media(tmp_path: Path) -> None:
    data = tiny.png_bytes(1)
    (tmp_path / "same.png").write_bytes(data)
    media = [
        Media("image", data=data),
        Media("image", path=str(tmp_path / "same.png")),
        tiny.image(2),
    ]
    tool = Counting()
    assert chain(tool).fill(media * 2) == 2
    assert tool.calls == 2


def test_results_survive_the_process_and_keep_their_seconds(tmp_path: Path) -> None:
    first, media = chain(Counting(), folder=tmp_path), [tiny.image(1), tiny.image(2)]
    told: list[tuple[str, int, int]] = []
    assert first.fill(media, lambda *step: told.append(step)) == 2
    assert told == [("tools", 1, 2), ("tools", 2, 2)]
    again = chain(Counting(), folder=tmp_path)
    assert again.fill(media) == 0
    assert again.text(media[0]) == first.text(media[0]) == "tool: tool\n"
    assert again.cost() == first.cost()
    assert again.cost().seconds > 0


def test_costs_are_of_different_media_and_of_all_tools() -> None:
    made = chain(Counting("one"), Counting("two", version=0))
    made.fill([tiny.image(1), tiny.image(2), tiny.image(1)])
    cost = made.cost()
    assert (cost.parameters, cost.calls, cost.unstated) == (10, 2, ("two",))
    assert cost.mean_tokens == len(["one:", "one", "two:", "two"])
    assert cost.seconds == pytest.approx(sum(use.tool.seconds for use in made.uses))


def test_another_version_or_argument_is_asked_anew(tmp_path: Path) -> None:
    medium = tiny.image(1)
    chain(Counting(), folder=tmp_path).fill([medium])
    assert chain(Counting(version=2), folder=tmp_path).fill([medium]) == 1
    assert chain(Counting(name="other"), folder=tmp_path).fill([medium]) == 1


def test_annotations_count_where_they_are_read() -> None:
    media = [
        Media("image", data=b"x", annotations=notes) for notes in ({"a": 1}, {"a": 2}, {"a": 1})
    ]
    reading, blind = chain(Counting(reads_annotations=True)), chain(Counting())
    assert reading.fill(media) == 2
    assert reading.text(media[1]) == "tool: tool {'a': 2}\n"
    assert blind.fill(media) == 1


def fail() -> None:
    raise ValueError("no such luck")


def test_failures_are_counted_and_told_to_the_model(tmp_path: Path) -> None:
    tool, media = Counting(), [tiny.image(number) for number in range(3)]
    tool.before = fail
    made = chain(tool, folder=tmp_path)
    made.fill(media)
    (problem,) = made.problems()
    assert (problem.tool, problem.kind, problem.count) == ("tool", "raised", 3)
    assert "no such luck" in problem.example
    assert made.text(media[0]) == "tool: no result\n"
    assert chain(Counting(), folder=tmp_path).fill(media) == 0  # it is the tool's answer


def test_what_hung_is_tried_again_by_the_next_fill(tmp_path: Path) -> None:
    import threading

    tool, medium = Counting(), tiny.image(1)
    tool.before = lambda: threading.Event().wait(2)
    hung = chain(tool, folder=tmp_path)
    hung.fill([medium, medium])
    assert tool.calls == 1
    assert [one.kind for one in hung.problems()] == ["timeout"]
    better = chain(Counting(), folder=tmp_path)
    assert better.text(medium) == "tool: no result\n"  # reading alone changes nothing
    assert better.fill([medium]) == 1
    assert better.text(medium) == "tool: tool\n"
    assert better.problems() == []


def test_an_interrupted_fill_keeps_what_was_done(tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    media = [tiny.image(number) for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        chain(Counting(), folder=tmp_path).fill(media, stop)
    assert chain(Counting(), folder=tmp_path).fill(media) == 2


def test_a_tool_is_given_only_what_it_takes() -> None:
    eyes, ears = Counting("eyes", modalities=("image",)), Counting("ears", modalities=("audio",))
    made = chain(eyes, ears)
    assert made.modalities == {"image", "audio"}
    assert made.text(Media("image", data=b"x")) == "eyes: eyes\n"
    assert made.text(Media("audio", data=b"x")) == "ears: ears\n"
    with pytest.raises(UsageError, match="no tool of this chain takes table"):
        made.fill([Media("table", data=b"x")])


def test_chains_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="two tools are called 'tool'"):
        chain(Counting(), Counting())
    with pytest.raises(UsageError, match="tool tool: unknown argument 'size'"):
        chain(Counting(), size=1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        chain(Counting()).text(Media("image", path=str(tmp_path / "gone.png")))


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="delete it"):
        chain(Counting(), folder=tmp_path).text(tiny.image(1))


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path) -> None:
    cache, file = ResultCache(tmp_path / "cache"), tmp_path / "weights"
    file.write_bytes(b"one")
    first = cache.file_hash(file)
    with sqlite3.connect(tmp_path / "cache" / FILE) as database:
        assert database.execute("SELECT hash FROM files").fetchall() == [(first,)]
        database.execute("UPDATE files SET hash = 'remembered'")
    assert cache.file_hash(file) == "remembered"
    file.write_bytes(b"another")
    assert cache.file_hash(file) not in {first, "remembered"}
