"""Samples in a mapped file are the samples that were written, and opening it decodes none."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.data import stored
from modalign.data.batching import BatchOrder
from modalign.data.modalities import modality_names
from modalign.data.records import Media, Message, Record, Source
from modalign.data.stored import MediaOf, StoredSamples, write_samples
from modalign.data.supervision import Sample
from modalign.errors import DataError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)
sources = st.builds(Source, texts, st.integers(1, 10**6))
media = st.builds(
    Media,
    st.sampled_from(modality_names()),
    path=st.none() | st.just("/place/a#1"),
    data=st.none() | st.binary(max_size=8),
    annotations=plain,
    source=st.none() | sources,
)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant"]),
    st.lists(texts | media, max_size=3).map(tuple),
)
records = st.builds(
    Record,
    id=texts,
    messages=st.lists(messages, max_size=3).map(tuple),
    source=sources,
    skill=st.none() | texts,
    group=st.none() | texts,
    options=st.lists(texts, max_size=2).map(tuple),
    answers=st.lists(texts, max_size=2).map(tuple),
    extra=st.dictionaries(texts, plain | st.binary(max_size=4), max_size=3),
)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    record = draw(records)
    ids = draw(st.lists(st.integers(0, 2**40), max_size=6))
    flags = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return Sample(record, np.array(ids, np.int64), np.array(flags, bool), tuple(record.media()))


def same(one: Sample, other: Sample) -> bool:
    shown = [(m.annotations, m.source) for m in one.media]
    return (
        one.record == other.record
        and one.record.extra == other.record.extra
        and one.media == other.media
        and shown == [(m.annotations, m.source) for m in other.media]
        and np.array_equal(one.ids, other.ids)
        and one.ids.dtype == other.ids.dtype
        and np.array_equal(one.supervised, other.supervised)
        and one.supervised.dtype == other.supervised.dtype
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(samples(), max_size=7), st.integers(1, 4))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, given: list[Sample], rows: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "stored.arrow"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "ROWS", rows)
        write_samples(path, given)
        found = StoredSamples(path)
        assert len(found) == len(given)
        assert all(same(one, other) for one, other in zip(given, found, strict=True))
        assert all(same(one, other) for one, other in zip(given[::-2], found[::-2], strict=True))
        assert found.lengths.tolist() == [len(sample.ids) for sample in given]
        assert list(MediaOf(found)) == list(MediaOf(given))


def numbered(count: int) -> list[Sample]:
    return [
        Sample(
            Record(str(n), (Message("user", ("a",)),), Source("f", n + 1)),
            np.arange(n % 5 + 1),
            np.ones(n % 5 + 1, bool),
        )
        for n in range(count)
    ]


def test_batches_are_known_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = numbered(50)
    write_samples(tmp_path / "a.arrow", given)
    found = StoredSamples(tmp_path / "a.arrow")
    monkeypatch.setattr(stored, "_record", lambda text: pytest.fail("a record was decoded"))
    orders = [BatchOrder.of(samples, 4, seed=1) for samples in (given, found)]
    assert orders[0].epoch(2) == orders[1].epoch(2)


def test_paths_become_absolute_and_numbers_are_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [sample] = numbered(1)
    medium = Media("image", path="images/a.png#2")
    sample.record = Record("1", (Message("user", (medium,)),), Source("f", 1))
    write_samples(tmp_path / "deep" / "a.arrow", [sample])
    [found] = StoredSamples(tmp_path / "deep" / "a.arrow")
    assert found.media[0].path == os.path.join(tmp_path, "images/a.png#2")
    found.ids[0] = 7


def test_fields_without_a_form_in_json_are_told_or_become_text(tmp_path: Path) -> None:
    [sample] = numbered(1)
    sample.record.extra["day"] = datetime.date(2026, 1, 2)
    write_samples(tmp_path / "a.arrow", [sample])
    assert StoredSamples(tmp_path / "a.arrow")[0].record.extra == {"day": "2026-01-02"}
    sample.record.extra["odd"] = object()
    with pytest.raises(DataError, match="f:1: cannot be stored"):
        write_samples(tmp_path / "b.arrow", [sample])
    assert not (tmp_path / "b.arrow").exists()
