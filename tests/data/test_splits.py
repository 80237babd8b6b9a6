"""No image on both sides of a split, whatever the order or the names of the files."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.data.records import Media, Message, Record, Source
from modalign.data.splits import drawn_over_skills, leakage, split_validation
from modalign.errors import DataError, UsageError

ANSWER = Message("assistant", ("a",))


def record(number: int, images: list[bytes | Path], group: str | None = None) -> Record:
    media = tuple(
        Media("image", data=i) if isinstance(i, bytes) else Media("image", path=str(i))
        for i in images
    )
    turns = (Message("user", (*media, "q")), ANSWER)
    return Record(str(number), turns, Source("made", number), group=group)


@st.composite
def data_sets(draw: st.DrawFn) -> list[Record]:
    images = st.lists(st.integers(0, 40).map(lambda i: b"%d" % i), max_size=2)
    group = st.none() | st.sampled_from("abcdef")
    rows = draw(st.lists(st.tuples(images, group), min_size=2, max_size=60))
    return [record(number, *row) for number, row in enumerate(rows)]


def ties(records: list[Record]) -> set[object]:
    media = {m.content_hash() for r in records for m in r.media()}
    return media | {("group", r.group) for r in records if r.group is not None}


def reachable(records: list[Record]) -> list[Record]:
    """All records tied to the first one, directly or through others."""
    found = records[:1]
    while True:
        more = [r for r in records if r in found or ties([r]) & ties(found)]
        if more == found:
            return found
        found = more


@settings(deadline=None)
@given(data_sets(), st.floats(0.05, 0.9), st.randoms(use_true_random=False))
def test_split_is_disjoint_complete_and_independent_of_order(
    records: list[Record], share: float, shuffler: random.Random
) -> None:
    try:
        train, held = split_validation(records, share)
    except DataError:
        assert reachable(records) == records
        return
    assert train
    assert held
    assert not ties(train) & ties(held)
    assert sorted((*train, *held), key=lambda r: r.source.row) == records
    assert leakage(train, held) == []
    shuffled = list(records)
    shuffler.shuffle(shuffled)
    _, again = split_validation(shuffled, share)
    assert {r.id for r in again} == {r.id for r in held}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10**6), st.floats(0.05, 0.5))
def test_size_is_near_the_share(salt: int, share: float) -> None:
    records = [record(i, [b"%d %d" % (salt, i // 3)]) for i in range(300)]
    _, held = split_validation(records, share)
    assert abs(len(held) - share * 300) <= 1.5 + 1e-6
    train, other = split_validation(records, share, seed=salt)
    assert abs(len(other) - share * 300) <= 1.5 + 1e-6
    assert {r.id for r in other} != {r.id for r in held}
    assert not ties(train) & ties(other)


def test_default_is_a_tenth_in_the_order_of_the_rows() -> None:
    records = [record(i, []) for i in range(100)]
    train, held = split_validation(records)
    assert (len(train), len(held)) == (90, 10)
    assert held == sorted(held, key=lambda r: r.source.row)
    assert split_validation(records) == (train, held)


def test_a_copy_under_another_name_is_the_same_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"same")
    (tmp_path / "b.png").write_bytes(b"same")
    (tmp_path / "c.png").write_bytes(b"other")
    a, b, c = (record(i, [tmp_path / f"{n}.png"]) for i, n in enumerate("abc"))
    train, held = split_validation([a, b, c], 0.5)
    assert {len(train), len(held)} == {1, 2}
    assert c in (held if len(held) == 1 else train)
    (leak,) = leakage([a, c], [b])
    assert (leak.train, leak.evaluation) == (a.source, b.source)
    assert leak.content == next(a.media()).content_hash()


def test_giant_group_stays_in_training() -> None:
    records = [record(i, [], group="big" if i < 95 else None) for i in range(100)]
    _, held = split_validation(records)
    assert len(held) == 5
    assert all(r.group is None for r in held)
    halves = [record(i, [], group=str(i // 50)) for i in range(100)]
    assert len(split_validation(halves)[1]) == 50


def test_one_group_cannot_be_split() -> None:
    chain = [record(1, [b"x", b"y"]), record(2, [b"y", b"z"]), record(3, [b"z"], "g")]
    with pytest.raises(DataError, match=r"3 record\(s\) in 1 group: nothing can be held out"):
        split_validation(chain)


def test_errors_name_the_row_and_the_share(tmp_path: Path) -> None:
    missing = record(7, [tmp_path / "none.png"])
    for call in (lambda: split_validation([missing]), lambda: leakage([missing], [])):
        with pytest.raises(DataError, match=r"made:7: .*none\.png cannot be read"):
            call()
    with pytest.raises(UsageError, match="share is 1"):
        split_validation([missing], 1)


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 3)
)
def test_a_draw_over_skills_holds_each_by_its_share(
    skills: list[str], limit: int, seed: int
) -> None:
    turns = (Message("user", ("q",)), Message("assistant", ("a",)))
    records = [Record(str(n), turns, Source("x", n), skill=skill) for n, skill in enumerate(skills)]
    found = drawn_over_skills(records, limit, seed)
    assert len(found) == min(limit, len(records))
    assert [records.index(r) for r in found] == sorted(records.index(r) for r in found)
    counts = Counter(record.skill for record in found)
    if limit >= len(set(skills)):
        assert set(counts) == set(skills)
    for skill, count in Counter(skills).items():
        assert abs(counts[skill] - count * len(found) / len(skills)) <= 3
