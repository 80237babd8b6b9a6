"""LoRA's aggregation: exact where it says so, the best of its rank where it cuts, also for unequal ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalign.errors import ModalignError, UsageError
from modalign.federation import lora
from modalign.federation.lora import A, B
from modalign.federation.rules import Tensors
from modalign.federation.server import Noise, Server, Trained, check_choice, step

OUT, IN, RANK = 7, 9, 4


def pair(rank: int, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "m" + A: torch.randn(rank, IN, generator=generator),
        "m" + B: torch.randn(OUT, rank, generator=generator),
        "c": torch.randn(3, generator=generator),
    }


def answers(ranks: list[int], records: list[int]) -> list[Trained]:
    return [
        Trained(f"c{k}", pair(rank, k), n)
        for k, (rank, n) in enumerate(zip(ranks, records, strict=True))
    ]


def exact(given: list[Trained]) -> torch.Tensor:
    total = sum(each.records for each in given)
    return sum(  # type: ignore[return-value]
        each.records / total * each.tensors["m" + B].double() @ each.tensors["m" + A].double()
        for each in given
    )


def start() -> Server:
    first, second = lora.fresh(OUT, IN, RANK, torch.Generator().manual_seed(0))
    return Server({"m" + A: first, "m" + B: second, "c": torch.zeros(3)})


ranks = st.lists(st.integers(1, RANK), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(ranks=ranks, data=st.data())
@pytest.mark.parametrize("way", ["into_base", "stack"])
def test_exact_ways_are_exact_for_unequal_ranks(way: Any, ranks: list[int], data: Any) -> None:
    records = data.draw(st.lists(st.integers(1, 50), min_size=len(ranks), max_size=len(ranks)))
    given = answers(ranks, records)
    outcome = step(start(), given, "fedavg", way, RANK, 0)
    after, wanted = outcome.server, exact(given)
    found = lora.product(after.tensors, "m") + after.base["m"].double()
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-6
    assert outcome.lora_error <= 1e-6
    if way == "stack":
        assert len(after.sent["m" + A]) == sum(ranks)
        torch.testing.assert_close(lora.product(after.sent, "m"), wanted, rtol=1e-5, atol=1e-5)
        assert not lora.product(after.tensors, "m").any()  # a new pair


def test_svd_is_the_best_of_its_rank_and_says_what_it_lost() -> None:
    given = answers([4, 4, 2], [3, 5, 2])
    outcome = step(start(), given, "fedavg", "svd", RANK, 0)
    wanted = exact(given)
    sizes = torch.linalg.svdvals(wanted)
    lost = float(sizes[RANK:].norm() / sizes.norm())  # Eckart and Young
    assert outcome.lora_error == pytest.approx(lost, abs=1e-6)
    assert lost > 0.01
    for rank in (1, 2, 3):  # a client of a smaller rank gets the first directions
        smaller = lora.product(lora.cut(outcome.server.tensors, rank), "m")
        best = float((wanted - smaller).norm() / wanted.norm())
        assert best == pytest.approx(float(sizes[rank:].norm() / sizes.norm()), abs=1e-6)


def test_the_naive_mean_prints_its_error() -> None:
    given = answers([4, 4], [1, 1])
    outcome = step(start(), given, "fedavg", "naive", RANK, 0)
    mean_a = sum(each.tensors["m" + A].double() for each in given) / 2
    mean_b = sum(each.tensors["m" + B].double() for each in given) / 2
    wanted = exact(given)
    assert outcome.lora_error == pytest.approx(
        float((mean_b @ mean_a - wanted).norm() / wanted.norm())
    )
    assert outcome.lora_error > 0.1
    torch.testing.assert_close(outcome.server.tensors["m" + A], mean_a.float())


def test_a_direction_that_is_not_used_still_learns() -> None:
    first, second = lora.factors(torch.zeros(OUT, IN), RANK)
    assert not second.any()
    torch.testing.assert_close(first.norm(dim=1), torch.full((RANK,), lora.FRESH).double())


def test_padding_adds_nothing() -> None:
    tensors = pair(2, 0)
    wide = lora.padded(tensors, RANK)
    torch.testing.assert_close(lora.product(wide, "m"), lora.product(tensors, "m"))
    back = lora.cut(wide, 2)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


# ---------------------------------------------------------------------- bad answers, noise


def broken() -> list[Trained]:
    given = answers([4, 4, 4], [1, 1, 1])
    given[1].tensors["c"][0] = float("nan")
    return given


def test_numbers_that_are_not_finite_are_named() -> None:
    with pytest.raises(ModalignError, match="client 'c1' sent c with numbers that are not finite"):
        step(start(), broken(), "fedavg", "svd", RANK, 0)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_robust_rules_survive_them(rule: str) -> None:
    outcome = step(start(), broken(), rule, "svd", RANK, 0)
    assert outcome.left_out == ["c1"]
    assert all(torch.isfinite(t).all() for t in outcome.server.tensors.values())


def test_noise_of_zero_is_no_privacy_but_the_same_mean() -> None:
    given = answers([4, 4, 4], [1, 1, 1])
    plain = step(start(), given, "fedavg", "svd", RANK, 0).server
    private = step(start(), given, "fedavg", "svd", RANK, 0, Noise(1e9, 0.0, 3.0)).server
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(private.tensors[name], tensor)


def test_noise_has_the_stated_size_and_updates_the_stated_bound() -> None:
    server = Server({"w": torch.zeros(20_000)})
    given = [Trained("c0", {"w": torch.full((20_000,), 5.0)}, 1)]
    bounded = step(server, given, "fedavg", "svd", RANK, 0, Noise(2.0, 0.0, 1.0)).server
    assert float(bounded.tensors["w"].norm()) == pytest.approx(2.0, rel=1e-5)
    noisy = step(server, given, "fedavg", "svd", RANK, 0, Noise(2.0, 1.5, 4.0)).server
    spread = float((noisy.tensors["w"] - bounded.tensors["w"] / 4).std())
    assert spread == pytest.approx(2.0 * 1.5 / 4, rel=0.03)


@pytest.mark.parametrize(
    ("rule", "way", "private", "said"),
    [("median", "svd", True, "single updates"), ("fedadam", "stack", False, "take svd"),
     ("fedavg", "stack", True, "noise would change")],
)  # fmt: skip
def test_what_cannot_be_combined_is_refused(rule: str, way: Any, private: bool, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_choice(rule, way, private)


# ---------------------------------------------------------------------- epsilon


def test_epsilon_of_the_plain_gaussian_is_the_analytic_one() -> None:
    """Balle and Wang (2018): T rounds with all clients are one Gaussian mechanism of noise z / sqrt(T)."""
    pytest.importorskip("dp_accounting")
    from scipy.optimize import brentq
    from scipy.stats import norm

    from modalign.federation.privacy import epsilon

    z, rounds, delta = 4.0, 9, 1e-3
    sigma = z / rounds**0.5

    def excess(e: float) -> float:
        high, low = norm.cdf([0.5 / sigma - e * sigma, -0.5 / sigma - e * sigma])
        return float(high - math.exp(e) * low - delta)

    assert epsilon(z, 1.0, rounds, delta) == pytest.approx(brentq(excess, 0, 50), rel=2e-3)
    assert epsilon(z, 0.1, rounds, delta) < epsilon(z, 1.0, rounds, delta)
    assert epsilon(0.0, 1.0, rounds, delta) == math.inf
