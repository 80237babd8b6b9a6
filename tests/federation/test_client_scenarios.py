"""Who holds which records, and what they lack: pure, seeded, and never more than was said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from modalign.data.records import Record
from modalign.errors import DataError, UsageError
from modalign.federation.clients import RecordPool, folders_of, split
from modalign.federation.config import Clients
from modalign.federation.scenarios import agnostic, applied, modalities_in, parse
from modalign.federation.strategies import parse as parse_strategy

IMAGE = tiny.image(1)


def records(count: int, first: int = 0) -> list[Record]:
    made = [
        tiny.record((IMAGE, f"what is {n}?"), "yes", row=n) for n in range(first, first + count)
    ]
    return [replace(record, skill="abc"[n % 3]) for n, record in enumerate(made)]


def clients(count: int = 4, each: int = 50) -> dict[str, list[Record]]:
    return {f"c{k}": records(each, k * each) for k in range(count)}


def test_aligned_is_the_identity() -> None:
    assert applied("aligned", clients()) == clients()


@given(p=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_missing_loses_at_its_rate_and_keeps_one_modality_and_every_answer(
    p: float, seed: int
) -> None:
    given = clients(2, 100)
    found = applied(f"missing:{p}", given, seed)
    for name, own in found.items():
        assert [r.id for r in own] == [r.id for r in given[name]]
        assert all(modalities_in(r) and r.answer == "yes" for r in own)
    lost = np.mean([2 - len(modalities_in(r)) for own in found.values() for r in own]) / 2
    assert lost == pytest.approx(p - p * p / 2, abs=0.12)  # both lost: one is kept
    assert applied(f"missing:{p}", given, seed) == found


def test_single_gives_k_clients_media_alone_and_the_others_text_alone() -> None:
    found = applied("single:1", clients())
    kinds = [{tuple(modalities_in(r)) for r in own} for own in found.values()]
    assert sorted(map(tuple, kinds)) == [(("image",),)] + [(("text",),)] * 3
    text_only = {"a": [tiny.record("what?", "yes")], "b": records(2)}
    assert applied("single:2", text_only)["a"] == []  # it cannot hold what it never had


def test_mix_takes_whole_modalities_from_clients() -> None:
    for seed in range(5):
        for own in applied("mix:0.5", clients(), seed).values():
            assert len({tuple(modalities_in(r)) for r in own}) == 1


@pytest.mark.parametrize(
    "name", ["missing", "missing:1", "single:0.5", "mix:x", "aligned:1", "none"]
)
def test_unknown_scenarios_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no scenario is called"):
        parse(name)


def test_the_prompt_stands_before_the_words_and_after_the_media() -> None:
    (record,) = records(1)
    parts = agnostic(record, "Go.").messages[0].parts
    assert parts == (IMAGE, "Go. ", "what is 0?")
    wordless = applied("single:1", {"a": [record]})["a"][0]
    assert agnostic(wordless, "Go.").messages[0].parts == (IMAGE, "Go. ")


def test_strategies_join_and_unknown_ones_are_refused() -> None:
    assert parse_strategy("prompt+proximal:adaptive").adaptive
    assert parse_strategy("proximal:0.5").mu == 0.5
    for wrong in ("proximity", "proximal:-1", "prompt:x"):
        with pytest.raises(UsageError):
            parse_strategy(wrong)


# ---------------------------------------------------------------------- splits


def pool(count: int = 120, **changes: Any) -> RecordPool:
    held = np.zeros(count, dtype=bool)
    held[::10] = True
    return RecordPool(records(count), changes.get("owners"), held)


@pytest.mark.parametrize("by", ["dirichlet:0.3", "shards:2", "column:skill"])
def test_every_record_has_one_owner(by: str) -> None:
    found = split(Clients(by=by, count=3), pool(), 1)
    ids = [record.id for c in found for record in (*c.train, *c.held)]
    assert sorted(ids) == sorted(record.id for record in pool().records)
    assert split(Clients(by=by, count=3), pool(), 1) == found
    assert all(c.train for c in found)


def test_a_small_alpha_is_more_uneven_than_a_large_one() -> None:
    def spread(alpha: float) -> float:
        counts = [
            [sum(r.skill == s for r in c.train) for s in "abc"]
            for seed in range(5)
            for c in split(Clients(by=f"dirichlet:{alpha}", count=3), pool(), seed)
        ]
        return float(np.std(counts))

    assert spread(0.2) > 2 * spread(100)


def test_a_client_without_records_is_named() -> None:
    owners = ["a"] * 119 + ["b"]
    made = pool(120, owners=owners)
    made.held[119] = True
    with pytest.raises(DataError, match="client 'b' has no usable records"):
        split(Clients(by="folders"), made, 0)


def test_rows_without_the_column_are_named() -> None:
    with pytest.raises(DataError, match=r"data\.jsonl:0: the row has no 'ward'"):
        split(Clients(by="column:ward"), pool(), 0)


def test_folders_are_clients(tmp_path: Path, tokenizer: Any, tokenizer_folder: Path) -> None:
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        tiny.write_jsonl(tmp_path / name / "train.jsonl", [{"question": "q", "answer": "a"}])
    assert [name for name, _ in folders_of(tmp_path, tokenizer)] == ["north", "south"]
    tokenizer.save_pretrained(tmp_path / "south")  # the same one is fine
    folders_of(tmp_path, tokenizer)
    tokenizer.add_tokens(["ward"])
    tokenizer.save_pretrained(tmp_path / "south")
    tokenizer = type(tokenizer).from_pretrained(tokenizer_folder)
    with pytest.raises(UsageError, match=r"client 'south'.*another vocabulary.*'ward'"):
        folders_of(tmp_path, tokenizer)
    (tmp_path / "north" / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"client 'north'.*no file of records"):
        folders_of(tmp_path, tokenizer)
