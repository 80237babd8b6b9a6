"""Which samples go together: coverage, seeds, padding, packing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modalign.data.batching import WINDOW, BatchOrder, pack
from modalign.data.readers import read_records
from modalign.data.supervision import Sample, tokenise_all
from modalign.data.validation import validate
from modalign.models.compose import prepare_tokenizer
from modalign.starter import build

orders = st.tuples(
    st.lists(st.integers(1, 60), min_size=1, max_size=400), st.integers(1, 7), st.integers(0, 3)
)


@given(orders, st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_every_sample_once_per_epoch(order: tuple[list[int], int, int], number: int) -> None:
    lengths, size, seed = order
    media = [length % 3 for length in lengths]
    made = BatchOrder(lengths, size, seed, media)
    batches = made.epoch(number)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)
    assert made.batches_per_epoch == len(batches)
    assert BatchOrder(lengths, size, seed, media).epoch(number) == batches
    per_epoch = made.batches_per_epoch
    steps = [made.batch(number * per_epoch + step) for step in range(per_epoch)]
    assert steps == batches


def test_seeds_and_epochs_differ() -> None:
    lengths = list(range(100))
    first = BatchOrder(lengths, 4, 0)
    assert first.epoch(0) != first.epoch(1)
    assert first.epoch(0) != BatchOrder(lengths, 4, 1).epoch(0)


def test_steps_in_any_order_give_the_same_batches() -> None:
    """A resumed run asks for a later step first."""
    order = BatchOrder(list(range(1, 200)), 8, 3)
    steps = [order.batch(step) for step in range(80)]
    fresh = BatchOrder(list(range(1, 200)), 8, 3)
    assert [fresh.batch(step) for step in reversed(range(80))] == steps[::-1]


def test_every_sample_may_meet_every_window() -> None:
    """Which samples share a batch changes with the epoch, not only the order of the batches."""
    order = BatchOrder([5] * (8 * WINDOW * 2), 8, 0)
    partners = {frozenset(b) for b in order.epoch(0)} & {frozenset(b) for b in order.epoch(1)}
    assert not partners


def starter_samples(folder: Path, tokenizer: Any, scenes: int) -> list[Sample]:
    build.write_data(folder, {"train": scenes})
    records, _ = validate(read_records(str(folder / "train.jsonl"), media_root=None))
    return tokenise_all(records, tokenizer)


@pytest.fixture(scope="module")
def starters(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> list[Sample]:
    """The starter's training data, all of it."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    prepare_tokenizer(tokenizer)
    return starter_samples(tmp_path_factory.mktemp("starter"), tokenizer, build.SCENES["train"])


def padding(samples: list[Sample], tokenizer: Any, batch_size: int, tokens: int) -> float:
    token = tokenizer.convert_tokens_to_ids("<image>")
    full = np.asarray([len(s.ids) + (s.ids == token).sum() * (tokens - 1) for s in samples])
    order = BatchOrder.of(samples, batch_size, 0)
    return 1 - full.sum() / sum(len(batch) * full[batch].max() for batch in order.epoch(0))


@pytest.mark.parametrize("batch_size", [16, 32])
@pytest.mark.parametrize("tokens_per_image", [1, 9, 36])
def test_padding_of_the_starters_data_is_under_a_twentieth(
    batch_size: int, tokens_per_image: int, starters: list[Sample], tokenizer: Any
) -> None:
    assert padding(starters, tokenizer, batch_size, tokens_per_image) < 0.05


def test_padding_of_few_scenes_is_under_a_tenth(tmp_path: Path, tokenizer: Any) -> None:
    assert padding(starter_samples(tmp_path, tokenizer, 300), tokenizer, 16, 1) < 0.10


def test_batches_of_the_starters_data_are_shuffled(starters: list[Sample]) -> None:
    """Lengths do not rise along an epoch, and hardly two samples stay together in the next."""
    order = BatchOrder.of(starters, 16, 0)
    batches = order.epoch(0)
    lengths = [np.mean([len(starters[i].ids) for i in batch]) for batch in batches]
    assert abs(np.corrcoef(np.arange(len(lengths)), lengths)[0, 1]) < 3 / len(lengths) ** 0.5
    pairs = [
        {pair for batch in order.epoch(n) for pair in itertools.combinations(sorted(batch), 2)}
        for n in (0, 1)
    ]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(10, 60))
@settings(deadline=None, max_examples=100)
def test_packing_places_all_and_wastes_little(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= capacity or len(row) == 1
    # First-fit decreasing takes at most 11/9 of the optimum and one row more.
    fitting = [length for length in lengths if length <= capacity]
    long = len(lengths) - len(fitting)
    least = -(-sum(fitting) // capacity)
    sparse = sum(sum(lengths[i] for i in row) * 2 <= capacity for row in rows)
    assert sparse <= 1  # two rows that are half empty would have been one
    assert len(rows) - long <= 2 * least


def test_packing_by_hand() -> None:
    assert pack([5, 3, 4, 2, 6], 10) == [[4, 2], [0, 1, 3]]
    assert pack([12, 3], 10) == [[0], [1]]
