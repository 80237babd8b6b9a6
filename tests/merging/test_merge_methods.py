"""Merge methods on one tensor: formulas, a model with itself, blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modalign.errors import DataError, UsageError
from modalign.merging.deltas import Deltas
from modalign.merging.registry import method_named

# Options under which a model merged with itself is that model, whatever the weights.
ITSELF = {
    "linear": {},
    "slerp": {},
    "ties": {"density": 1.0},
    "sce": {},
    "model_stock": {},
    "dare_ties": {"density": 1.0},
    "dare_linear": {"density": 1.0},
}
DRAWING = ("dare_linear", "dare_ties", "della")


def tensors(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(24, 8, generator=generator)
    return base, *(base + 0.1 * torch.randn(24, 8, generator=generator) for _ in range(2))


def merged(
    name: str,
    base: Tensor,
    parents: dict[str, Tensor],
    weights: dict[str, float],
    block: int = 40,
    **options: float,
) -> Tensor:
    method = method_named(name)
    origin = base if method.needs_base else next(iter(parents.values()))
    deltas = Deltas("layers.0.mlp", origin, parents, block=block)
    found = torch.cat(list(method.merged(deltas, weights, method.checked(options))))
    return (origin.double() + found).to(base.dtype)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(ITSELF)), st.integers(0, 999), st.floats(0.05, 2), st.floats(0.05, 2))
def test_a_model_with_itself_is_that_model(name: str, seed: int, one: float, two: float) -> None:
    base, model, _ = tensors(seed)
    again = {"a": model, "b": model.clone()}
    assert torch.equal(merged(name, base, again, {"a": one, "b": two}, **ITSELF[name]), model)


def test_formulas() -> None:
    base, a, b = tensors(0)
    both, ones = {"a": a, "b": b}, {"a": 1.0, "b": 1.0}
    mean = merged("linear", base, both, {"a": 0.3, "b": 0.7})
    torch.testing.assert_close(mean, 0.3 * a + 0.7 * b)
    summed = merged("task_arithmetic", base, both, ones, scale=0.7)
    torch.testing.assert_close(summed, base + 0.7 * (a + b - 2 * base))
    one, two = (a - base).double().flatten(), (b - base).double().flatten()
    c = float(torch.cosine_similarity(one, two, dim=0))
    t = 2 * c / (1 + c)
    torch.testing.assert_close(
        merged("model_stock", base, both, ones), t * (a + b) / 2 + (1 - t) * base
    )


def test_ties_by_hand() -> None:
    base = torch.zeros(4)
    parents = {"a": torch.tensor([4.0, 1.0, -3.0, 2.0]), "b": torch.tensor([2.0, -5.0, 4.0, 0.5])}
    found = merged("ties", base, parents, {"a": 1.0, "b": 1.0}, density=0.5)
    # Trimmed: a 4, 0, -3, 0; b 0, -5, 4, 0. Signs: +, -, +.
    assert found.tolist() == [4.0, -5.0, 4.0, 0.0]


@pytest.mark.parametrize("name", ["ties", "sce", "model_stock", "breadcrumbs", "slerp"])
def test_blocks_change_nothing(name: str) -> None:
    base, a, b = tensors(1)
    both, ones = {"a": a, "b": b}, {"a": 1.0, "b": 1.0}
    small, whole = (merged(name, base, both, ones, block=size) for size in (8, 10_000))
    torch.testing.assert_close(small, whole, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", DRAWING)
def test_what_is_drawn_is_drawn_again(name: str) -> None:
    base, a, b = tensors(2)
    first, second = (merged(name, base, {"a": a, "b": b}, {"a": 1.0, "b": 1.0}) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, base)


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    base, a, b = tensors(3)
    b[5, 5] = torch.nan
    with pytest.raises(DataError, match=r"layers\.0\.mlp of b holds values that are not finite"):
        merged("linear", base, {"a": a, "b": b}, {"a": 0.5, "b": 0.5})


def test_wrong_names_and_options_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean ties"):
        method_named("tie")
    with pytest.raises(UsageError, match="its options are density, scale"):
        method_named("ties").checked({"lambda": 1.0})
