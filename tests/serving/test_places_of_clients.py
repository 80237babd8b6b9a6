"""Whoever fills the server does not keep out those who come later."""

from __future__ import annotations

import pytest

from modalign.serving import shares
from modalign.serving.shares import Shares


def test_alone_all_and_beside_others_three_quarters(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(shares.time, "monotonic", lambda: now[0])
    served = Shares(96)
    for _ in range(96):
        assert served.free("a")
        served.take("a")
    assert served.free("b")  # the server's own limit refuses it: all places are taken
    assert not served.free("a")
    for _ in range(96 - 71):
        served.give_back("a")
        served.free("b")
    assert served.free("a")
    served.take("a")
    assert not served.free("a")  # 72: the last quarter is others'
    assert served.free("b")
    now[0] = 61.0  # nobody else asked for a minute
    assert served.free("a")


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_small_server_leaves_nobody_out(most: int) -> None:
    served = Shares(most)
    for _ in range(most):
        assert served.free("a")
        assert served.free("b")
        served.take("a")
    assert not served.free("a")
    assert served.free("b")
