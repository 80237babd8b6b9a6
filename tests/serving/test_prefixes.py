"""Pages against a plain list of sequences: what is known is what was kept, stored once, within its bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.serving.prefixes import OVERHEAD, PAGE, Prefixes, content_key
from modalign.serving.requests import Prompt

LAYERS, H, WIDE, NARROW = 3, 2, 4, 3
BYTES = OVERHEAD + LAYERS * H * PAGE * (WIDE + NARROW) * 4  # of a page
pieces = st.lists(st.integers(0, 2), min_size=1, max_size=5)  # of PAGE // 2 equal ids each


def ids(parts: list[int]) -> tuple[int, ...]:
    return tuple(part for part in parts for _ in range(PAGE // 2))


def states(key: np.ndarray, begin: int, end: int) -> list[Any]:
    """Keys and values that tell their position and all that came before it, per layer of two widths."""
    seen = [hash(key[: place + 1].tobytes()) % 2**20 for place in range(begin, end)]
    made = torch.tensor(seen, dtype=torch.float32)[None, None, :, None]
    return [
        (made.expand(1, H, -1, WIDE) + layer, made.expand(1, H, -1, NARROW) - layer)
        for layer in range(LAYERS)
    ]


def keep(prefixes: Prefixes, prompt: Prompt) -> np.ndarray:
    key = content_key(prompt)
    prefixes.keep(key, lambda begin, end: states(key, begin, end))
    return key


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(pieces, max_size=12), st.integers(0, 6))
def test_what_is_known_is_what_was_kept(asked: list[list[int]], pages: int) -> None:
    prefixes = Prefixes(pages * BYTES)
    for parts in asked:
        prompt = Prompt(ids(parts))
        key = keep(prefixes, prompt)
        assert prefixes.size == len(prefixes) * BYTES <= pages * BYTES
        # What was just kept is there as far as there is room for it.
        whole = len(key) // PAGE
        assert prefixes.known(prompt, key) == min(min(whole, pages) * PAGE, len(key) - 1)
    for parts in asked:
        prompt = Prompt(ids(parts))
        key = content_key(prompt)
        known = prefixes.known(prompt, key)
        for begin in range(0, known, 7):
            for ours, theirs in zip(
                prefixes.get(key, begin, known), states(key, begin, known), strict=True
            ):
                assert torch.equal(ours[0], theirs[0])
                assert torch.equal(ours[1], theirs[1])


def test_a_beginning_that_is_shared_is_stored_once() -> None:
    prefixes = Prefixes(100 * BYTES)
    common = [0, 0, 1, 1, 2, 2]  # three pages
    for last in range(5):
        keep(prefixes, Prompt(ids(common) + (100 + last,) * PAGE))
    assert len(prefixes) == 3 + 5


def test_what_was_not_used_for_longest_goes_first_and_the_end_of_a_sequence_before_its_beginning() -> (
    None
):
    prefixes = Prefixes(6 * BYTES)
    first, second, third = (Prompt((number,) * (3 * PAGE + 1)) for number in (1, 2, 3))
    a, b = keep(prefixes, first), keep(prefixes, second)
    prefixes.get(a, 0, 3 * PAGE)  # now the second is the older one
    c = content_key(third)
    prefixes.keep(c[: 2 * PAGE], lambda begin, end: states(c, begin, end))
    assert prefixes.known(first, a) == 3 * PAGE
    assert prefixes.known(second, b) == PAGE
    assert prefixes.known(third, c) == 2 * PAGE
    assert prefixes.evicted == 2


def test_a_sequence_larger_than_the_cache_keeps_its_beginning() -> None:
    prefixes = Prefixes(4 * BYTES)
    key = keep(prefixes, prompt := Prompt(tuple(range(10 * PAGE))))
    assert prefixes.known(prompt, key) == 4 * PAGE
    assert prefixes.evicted == 0


def test_nothing_is_kept_where_nothing_may_be() -> None:
    prefixes = Prefixes(0)
    key = keep(prefixes, prompt := Prompt((1,) * 50))
    assert prefixes.known(prompt, key) == prefixes.size == len(prefixes) == 0


@pytest.mark.parametrize(
    ("span", "known"), [((20, 30), 20), ((0, 64), 0), ((3, 13), 48), ((47, 1), 48)]
)
def test_no_medium_is_split(span: tuple[int, int], known: int) -> None:
    prefixes = Prefixes(100 * BYTES)
    prompt = Prompt((7,) * 70, media=(("image", "abc"),), spans=(span,))
    key = content_key(prompt)
    prefixes.keep(key[:48], lambda begin, end: states(key, begin, end))
    assert prefixes.known(prompt, key) == known
    other = Prompt(prompt.ids, media=(("image", "xyz"),), spans=(span,))
    assert prefixes.known(other, content_key(other)) <= span[0]  # the same ids, another picture
