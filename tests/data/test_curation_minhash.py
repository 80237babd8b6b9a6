"""MinHash, bands and the search by shared keys: against formulas, and against all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench.curation import recall
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.data.curation import neighbours
from modalign.data.curation.minhash import (
    MAX_BANDS,
    MinHasher,
    choose_bands,
    jaccard,
    normalise,
    shingles,
)
from modalign.data.curation.neighbours import Neighbours
from modalign.data.curation.operators.near_images import band_keys
from modalign.data.curation.store import Store

NO_SALT = np.zeros(1, dtype=np.uint64)


def test_normalise_unifies_forms_case_and_space() -> None:
    assert normalise("  ＦＵＬＬ\twidth \n STRASSE ") == "full width strasse"


def test_jaccard_of_counted_sets() -> None:
    # abcd -> ab bc cd; bcde -> bc cd de: two of four.
    assert jaccard(shingles("abcd", 2), shingles("bcde", 2)) == 0.5
    assert shingles("ab", 5) == {"ab"}


@given(st.floats(0.05, 0.99), st.floats(0.5, 0.999))
def test_bands_reach_the_recall_asked_for(threshold: float, wanted: float) -> None:
    b, r = choose_bands(threshold, wanted)
    found = 1 - (1 - threshold**r) ** b
    assert found >= wanted - 1e-9
    assert b <= MAX_BANDS or r == 1


def test_agreement_of_signatures_is_the_jaccard_similarity() -> None:
    """Over 2048 functions the share of equal minima is within 4 standard errors."""
    generator = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz ")
    base = "".join(generator.choice(letters, 300))
    hasher = MinHasher(5, bands=512, rows=4, seed=1)
    for cut in (0, 10, 40, 120):
        other = "".join(generator.choice(letters, cut)) + base[cut:]
        expected = jaccard(shingles(base, 5), shingles(other, 5))
        first, second = hasher.signatures([base, other])
        error = 4 * np.sqrt(expected * (1 - expected) / 2048)
        assert np.mean(first == second) == pytest.approx(expected, abs=error + 1e-12)


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=8))
def test_a_signature_does_not_depend_on_the_batch(texts: list[str]) -> None:
    hasher = MinHasher(5, bands=3, rows=2, seed=0)
    together = hasher.signatures(texts)
    alone = np.concatenate([hasher.signatures([text]) for text in texts])
    np.testing.assert_array_equal(together, alone)


def test_long_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = MinHasher(3, bands=2, rows=2, seed=0)
    texts = ["abcdefgh" * 3, "x", "hello world", "y" * 50]
    whole = hasher.signatures(texts)
    monkeypatch.setattr("modalign.data.curation.minhash.CHARACTERS", 12)
    np.testing.assert_array_equal(hasher.signatures(texts), whole)


def test_salt_separates_equal_texts() -> None:
    hasher = MinHasher(5, bands=4, rows=2, seed=0)
    first, second, third = hasher.keys(["same text"] * 3, np.array([0, 0, 7], dtype=np.uint64))
    assert (first == second).all()
    assert not (first == third).any()


@given(
    st.integers(0, 2**64 - 1),
    st.sets(st.integers(0, 63), max_size=15),
    st.integers(0, 15),
)
def test_hashes_within_the_distance_share_a_band(value: int, flips: set[int], extra: int) -> None:
    """The pigeonhole: d flipped bits cannot touch all of d + 1 bands."""
    bands = min(len(flips) + extra, 15) + 1
    other = value ^ sum(1 << bit for bit in flips)
    keys = band_keys(np.array([value, other], dtype=np.uint64), bands, NO_SALT.repeat(2))
    assert (keys[0] == keys[1]).any()


def test_different_bits_give_different_keys_in_that_band_only() -> None:
    keys = band_keys(np.array([0, 1], dtype=np.uint64), 4, NO_SALT.repeat(2))
    assert (keys[0] == keys[1]).tolist() == [False, True, True, True]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=20),
    st.integers(1, 6),
)
def test_search_equals_all_pairs(
    tmp_path_factory: pytest.TempPathFactory, keys: list[list[int]], part: int
) -> None:
    """A row goes exactly if an earlier kept row shares one of its keys."""
    store = Store(tmp_path_factory.mktemp("store") / "s.sqlite")
    search = Neighbours(store, "t", 2)
    # Bands never compare: their keys differ.
    array = np.array(keys, dtype=np.int64) + np.array([0, 100])
    for start in range(0, len(keys), 3):
        chunk = array[start : start + 3]
        search.add(np.arange(start, start + len(chunk)), chunk)
    expected: set[int] = set()
    for row in range(len(keys)):
        kept = [other for other in range(row) if other not in expected]
        if any((array[row] == array[other]).any() for other in kept):
            expected.add(row)
    before = neighbours.SORTED_KEYS
    try:
        neighbours.SORTED_KEYS = part
        drops = search.drops(lambda row, candidates: "near" if candidates else None)
        assert {drop.position for drop in drops} == expected
    finally:
        neighbours.SORTED_KEYS = before
        store.close()


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_recall_against_all_pairs(tmp_path: Path, threshold: float) -> None:
    found = recall(tmp_path, 1500, threshold)
    assert found["pairs"] > 100
    assert found["pair_recall"] >= 0.95
    assert found["row_recall"] >= 0.95
    assert found["false_drops"] == 0
