"""``modalign embed`` and ``modalign choose`` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny
from modalign.index import embedding
from modalign.index.vectors import Index
from modalign.models.pooled import pooled

Cli = Callable[..., tuple[int, str, str]]
ROWS = [{"id": f"i{n}", "text": text} for n, text in enumerate(("one", "is it odd?", "one", "two"))]


def test_items_become_an_index(cli: Cli, llm_folder: Callable[..., Path], tmp_path: Path) -> None:
    items, out = tiny.write_jsonl(tmp_path / "items.jsonl", ROWS), tmp_path / "vectors"
    code, said, err = cli("embed", llm_folder(), items, "-o", out, "--json", "--pooling", "mean")
    assert code == 0, err
    assert json.loads(said)["records"] == 4
    index = Index.load(out)
    assert index.ids == ["i0", "i1", "i2", "i3"]
    assert np.allclose(np.linalg.norm(index.vectors, axis=1), 1)
    hits = index.search(index.vectors[:1], 2)[0]
    assert [hit.id for hit in hits] == ["i0", "i2"]  # two identical items
    code, _, err = cli("embed", llm_folder(), items, "-o", out)
    assert (code, "--resume" in err) == (2, True)


def test_resuming_gives_the_same_vectors(
    cli: Cli, llm_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = tiny.write_jsonl(tmp_path / "items.jsonl", ROWS)
    monkeypatch.setattr(embedding, "ROWS", 2)
    assert cli("embed", llm_folder(), items, "-o", tmp_path / "whole")[0] == 0
    seen = []

    def once(model: object, reader: object, records: list, *rest: object, **more: object) -> object:
        seen.append([record.id for record in records])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return pooled(model, reader, records, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(embedding, "pooled", once)
    assert cli("embed", llm_folder(), items, "-o", tmp_path / "part")[0] == 130
    code, said, err = cli(
        "embed", llm_folder(), items, "-o", tmp_path / "part", "--resume", "--json"
    )
    assert code == 0, err
    assert json.loads(said)["resumed"] == 2
    assert seen == [["i0", "i1"], ["i2", "i3"], ["i2", "i3"]]
    whole, part = Index.load(tmp_path / "whole"), Index.load(tmp_path / "part")
    assert whole.ids == part.ids
    assert np.array_equal(whole.vectors, part.vectors)
    tiny.write_jsonl(items, ROWS[:3])
    code, _, err = cli("embed", llm_folder(), items, "-o", tmp_path / "part", "--resume")
    assert (code, "another configuration" in err) == (2, True)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "a"}], "neither a question nor a medium"),
        ([{"id": "a", "text": " "}, ROWS[0]], "items.jsonl:1: has neither text nor a medium"),
        ([ROWS[0], ROWS[0]], "items.jsonl:2: the id 'i0' is taken by"),
        ([{"id": "a", "text": "b", "image": "none.png"}], "none.png"),
    ],
)
def test_unusable_items_are_refused(
    rows: list, words: str, cli: Cli, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    items = tiny.write_jsonl(tmp_path / "items.jsonl", rows)
    code, _, err = cli("embed", llm_folder(), items, "-o", tmp_path / "vectors")
    assert code == 3, err
    assert words in err
    assert not (tmp_path / "vectors").exists()


def test_broken_items_may_be_left_out_and_are_counted(
    cli: Cli, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    items = tiny.write_jsonl(tmp_path / "items.jsonl", [*ROWS, {"id": "empty", "text": ""}])
    arguments = ("embed", llm_folder(), items, "-o", tmp_path / "vectors", "--skip-broken", "20%")
    code, said, err = cli(*arguments)
    assert code == 0, err
    assert "4 vectors of 32 numbers" in said
    assert "1 broken rows left out" in said


def test_one_item_is_enough(cli: Cli, llm_folder: Callable[..., Path], tmp_path: Path) -> None:
    items = tiny.write_jsonl(tmp_path / "items.jsonl", ROWS[:1])
    code, said, _ = cli("embed", llm_folder(), items, "-o", tmp_path / "vectors")
    assert (code, said[:8]) == (0, "1 vector")


def test_choose_prints_the_spread(cli: Cli, llm_folder: Callable[..., Path]) -> None:
    options = ("--option", "yes", "--option", "no")
    code, said, err = cli("choose", llm_folder(), "is it odd?", *options)
    assert code == 0, err
    for words in ("probability", "over orders", "yes", "no", "likeliest in"):
        assert words in said
    first, second = (cli("choose", llm_folder(), "is it?", *options, "--json")[1] for _ in range(2))
    assert first == second
    assert json.loads(first)["answer"] in {"yes", "no"}
    code, _, err = cli("choose", llm_folder(), "is it odd?", "--option", "yes")
    assert (code, "1 options" in err) == (2, True)
