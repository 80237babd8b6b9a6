"""Two comparisons side by side: what was changed, and differences of estimates made apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from compared import Compared
from modalign.comparison.side_by_side import apart, read_comparison, sentences, side_by_side
from modalign.errors import DataError, UsageError
from modalign.numbers.shares import share


def copied(compared: Compared, out: Path, **changes) -> Path:
    """A comparison's report with changed settings, and one method less."""
    out.mkdir()
    shutil.copy(compared.out / "report.json", out)
    values = json.loads((out / "report.json").read_text())
    values["setting"] |= changes
    values["methods"] = values["methods"][:-1]
    (out / "report.json").write_text(json.dumps(values))
    return out


def test_the_interval_holds_the_difference_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        one, two = (share(list(rng.random(80) < p), [None] * 80) for p in (0.5, 0.7))
        found = apart(one, two)
        assert found.low < found.value < found.high
        held += found.low <= 0.2 <= found.high
    assert 930 <= held <= 970


def test_it_is_the_rule_of_newcombe():
    one, two = (share([True] * k + [False] * (n - k), [None] * n) for k, n in ((48, 80), (56, 70)))
    found = apart(one, two)  # his example (a), method 10
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=2e-3)


def test_settings_and_methods_of_both(compared: Compared, tmp_path: Path, cli):
    other = copied(compared, tmp_path / "other", budget="12samples", llm_mode="full")
    found = side_by_side(compared.out, other)
    was = compared.comparison.setting
    assert found.changed == [
        f"budget was {was.budget}, now 12samples",
        f"llm_mode was {was.llm_mode}, now full",
    ]
    assert found.data == []
    *both, last = found.methods
    assert last.second is None
    assert last.difference is None
    assert all(pair.difference is not None and pair.difference.value == 0 for pair in both)
    code, out, _ = cli("report", compared.out, other, "--out", tmp_path / "page", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "page" / "report.json").read_text())
    assert "budget was" in (tmp_path / "page" / "report.md").read_text()


def test_other_questions_have_no_difference(compared: Compared, tmp_path: Path):
    hashes = compared.comparison.setting.hashes | {"eval": "0"}
    found = side_by_side(compared.out, copied(compared, tmp_path / "other", hashes=hashes))
    assert found.data == ["eval"]
    assert all(pair.difference is None for pair in found.methods)
    assert any("same questions" in sentence for sentence in sentences(found))


def test_what_is_no_comparison_says_so(tmp_path: Path):
    with pytest.raises(UsageError, match=r"holds no report\.json"):
        read_comparison(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(DataError, match="no report of a comparison by this version"):
        read_comparison(tmp_path)
