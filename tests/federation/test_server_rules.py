"""Server rules against their published formulas in plain numpy, and against what robustness means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from modalign.errors import UsageError
from modalign.federation.rules import Tensors, Update, server_rule

ROUNDS, CLIENTS, SHAPE = 5, 4, (3, 2)
DRAW = np.random.default_rng(7)
DELTAS = DRAW.normal(size=(ROUNDS, CLIENTS, *SHAPE))
RECORDS = (10, 30, 5, 55)


def stepped(rule: str, deltas: np.ndarray = DELTAS) -> np.ndarray:
    """The server's weights after all rounds, from zero."""
    found, state, weights = server_rule.entry(rule).function, {}, torch.zeros(*SHAPE).double()
    for values in deltas:
        updates = [
            Update(f"c{k}", {"w": torch.from_numpy(value)}, RECORDS[k])
            for k, value in enumerate(values)
        ]
        step, state = found(updates, state)
        weights = weights + step["w"]
    return weights.numpy()


def formula(rule: str, weighted: bool) -> np.ndarray:
    """The same by section 5.1's formulas; b1 .9, b2 .99, eta = tau = 1e-3, v0 = tau^2."""
    shares = np.array(RECORDS if weighted else [1] * CLIENTS, dtype=float)
    w, m, v = np.zeros(SHAPE), np.zeros(SHAPE), np.full(SHAPE, 1e-6)
    for values in DELTAS:
        d = np.tensordot(shares / shares.sum(), values, 1)
        if rule == "fedavg":
            w = w + d
            continue
        m = 0.9 * m + 0.1 * d
        if rule == "fedavgm":
            w = w + m
            continue
        v = {
            "fedadagrad": v + d**2,
            "fedyogi": v - 0.01 * d**2 * np.sign(v - d**2),
            "fedadam": 0.99 * v + 0.01 * d**2,
        }[rule]
        w = w + 1e-3 * m / (np.sqrt(v) + 1e-3)
    return w


@pytest.mark.parametrize("rule", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_rules_are_their_formulas(rule: str) -> None:
    expected = formula(rule, weighted=rule in ("fedavg", "fedavgm"))
    np.testing.assert_allclose(stepped(rule), expected, atol=1e-12)


def test_median_and_trimmed_mean_are_numpys() -> None:
    np.testing.assert_allclose(stepped("median"), np.median(DELTAS, axis=1).sum(0), atol=1e-12)
    inner = np.sort(DELTAS, axis=1)[:, 1:-1].mean(1).sum(0)
    np.testing.assert_allclose(stepped("trimmed_mean[share=0.25]"), inner, atol=1e-12)


def updates(values: Sequence[float]) -> list[Update]:
    return [Update(f"c{k}", {"w": torch.full((4,), v)}, 1) for k, v in enumerate(values)]


@pytest.mark.parametrize("rule", ["median", "trimmed_mean[share=0.3]", "krum"])
@pytest.mark.parametrize("attack", [1e6, -1e6])
def test_robust_rules_stay_among_the_honest(rule: str, attack: float) -> None:
    honest = [1.0, 1.1, 1.2, 1.05]
    step, _ = server_rule.entry(rule).function(updates([*honest, attack]), {})
    assert 1.0 <= float(step["w"].min()) <= float(step["w"].max()) <= 1.2 + 1e-9
    mean, _ = server_rule.entry("fedavg").function(updates([*honest, attack]), {})
    assert abs(float(mean["w"][0])) > 1e5


def test_krum_takes_the_update_with_the_nearest_neighbours() -> None:
    step, _ = server_rule.entry("krum[faulty=1]").function(updates([0.0, 1.0, 1.1, 1.3, 9.0]), {})
    assert float(step["w"][0]) == pytest.approx(1.1)  # distances to its two nearest: .01 + .04


@pytest.mark.parametrize("rule", server_rule.names())
def test_one_client_and_equal_clients_change_nothing_but_the_count(rule: str) -> None:
    one, _ = server_rule.entry(rule).function(updates([0.5]), {})
    many, _ = server_rule.entry(rule).function(updates([0.5] * 5), {})
    torch.testing.assert_close(one, many)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("fedavgg", "did you mean fedavg"),
        ("fedadam[rate=1]", "its options are momentum, decay, eta, tau, start, weighted"),
        ("trimmed_mean[share=0.5]", "less than 0.5"),
        ("fedadam[eta]", "not option=value"),
    ],
)
def test_unknown_rules_and_options_are_named(rule: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        server_rule.entry(rule)


def test_a_name_is_taken_once() -> None:
    def other(updates: Sequence[Update], state: Tensors) -> tuple[Tensors, Tensors]:
        return {}, {}

    with pytest.raises(UsageError, match="registered twice"):
        server_rule("fedavg")(other)
