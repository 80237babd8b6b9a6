"""Slots against a plain list of rows: whatever joins, steps and leaves, each row reads its own keys."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.serving.slots import Slots

H, D = 2, 3
moves = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, 40)),
        st.tuples(st.just("step"), st.integers(1, 9)),
        st.tuples(st.just("leave"), st.integers(0, 99)),
    ),
    max_size=30,
)


def keys(generator: torch.Generator, length: int) -> list[Any]:
    def draw() -> torch.Tensor:
        return torch.randn(1, H, length, D, generator=generator)

    return [(draw(), draw()) for _ in range(2)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(moves)
def test_rows_are_those_of_a_plain_list(asked: list[tuple[str, int]]) -> None:
    import modalign.serving.slots as module

    generator = torch.Generator().manual_seed(0)
    slots, plain = Slots(), list[Any]()
    kept = module.COLUMNS
    module.COLUMNS = 8  # so that room is made often
    try:
        for move, number in asked:
            if move == "join":
                new = keys(generator, number)
                slots.join(new)
                plain.append(new)
            elif move == "leave" and plain:
                place = number % len(plain)
                slots.leave(place)
                plain[place] = plain[-1]
                plain.pop()
            elif move == "step" and plain:
                for _ in range(number):
                    step(slots, plain, generator)
            assert slots.lengths() == [row[0][0].shape[2] for row in plain]
            for place, row in enumerate(plain):
                length = row[0][0].shape[2]
                begin = length // 3
                for ours, theirs in zip(slots.part(place, begin, length), row, strict=True):
                    assert torch.equal(ours[0], theirs[0][:, :, begin:])
                    assert torch.equal(ours[1], theirs[1][:, :, begin:])
    finally:
        module.COLUMNS = kept


def step(slots: Slots, plain: list[Any], generator: torch.Generator) -> None:
    """One column of all rows, as a decoder's layers write it; what they are given to read is checked."""
    slots.ready()
    mask = slots.mask(torch.device("cpu"))[:, 0, 0]
    for layer in range(2):
        new = keys(generator, 1)[0]
        states = [torch.cat([each] * len(plain)) for each in new]
        seen = slots.update(states[0], states[1], layer)
        for place in range(len(plain)):
            row = plain[place] = list(plain[place])
            row[layer] = tuple(
                torch.cat([old, one], dim=2) for old, one in zip(row[layer], new, strict=True)
            )
            for ours, theirs in zip(seen, row[layer], strict=True):
                assert torch.equal(ours[place][:, mask[place]], theirs[0])
    slots.advance()


def test_a_window_reads_its_last_positions_only() -> None:
    slots = Slots()
    generator = torch.Generator().manual_seed(0)
    slots.join(keys(generator, 5))
    slots.join(keys(generator, 2))
    mask = slots.mask(torch.device("cpu"), reach=4)[:, 0, 0]
    assert mask.tolist() == [
        [False, False, True, True, True, True],
        [False, False, False, True, True, True],
    ]


def test_the_width_is_that_of_the_longest_row() -> None:
    """Rows end at one column: a batch is never wider than its longest row, however they came."""
    slots = Slots()
    generator = torch.Generator().manual_seed(0)
    slots.join(keys(generator, 300))
    slots.join(keys(generator, 3))
    slots.leave(0)
    slots.join(keys(generator, 7))
    assert slots.mask(torch.device("cpu")).shape[-1] == 7 + 1


def test_what_an_earlier_row_left_reaches_nobody() -> None:
    """A row of NaN leaves; a product of zero and NaN would be NaN."""
    slots = Slots()
    generator = torch.Generator().manual_seed(0)
    slots.join([(k * torch.nan, v * torch.nan) for k, v in keys(generator, 9)])
    slots.join(keys(generator, 9))
    slots.leave(0)
    slots.join(keys(generator, 2))
    slots.ready()
    for layer in range(2):
        new = torch.zeros(2, H, 1, D)
        for seen in slots.update(new, new, layer):
            assert torch.isfinite(seen).all()
