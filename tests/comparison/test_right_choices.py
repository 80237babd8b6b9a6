"""bench/recommendation.py on made-up comparisons: regret, right or not, baselines; and how records are split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.recommendation import SIDES, TASKS, Task, choices, judged, tables, write_data

from comparison.fixture import make_comparison


@pytest.fixture(scope="module")
def truth():
    return make_comparison()


def test_the_best_is_right_and_without_regret(truth):
    best = max((m for m in truth.methods if m.accuracy), key=lambda m: m.accuracy)
    found = judged(truth, best.name)
    assert (found.regret, found.right) == (0, True)
    assert judged(truth, None) is None


def test_far_below_is_wrong_by_its_distance(truth):
    reached = {m.name: m.accuracy for m in truth.methods if m.accuracy}
    best, worst = max(reached.values()), min(reached, key=lambda name: reached[name])
    found = judged(truth, worst)
    assert found.regret == pytest.approx(100 * (best - reached[worst]))
    assert not found.right


def test_every_way_of_choosing_is_told(truth):
    chosen = choices(truth)
    assert chosen["always mlp"] == ["mlp"]
    assert chosen["fewest parameters"] == ["captions_as_text"]  # none trainable
    assert len(chosen["at random"]) == 19  # one failed
    text = tables({"one": (truth, truth), "two": (truth, truth)})
    assert text.count("| one |") == 1
    assert "| always mlp | " in text
    assert "cannot tell" in text  # nothing was planned for


def test_what_belongs_together_stays_on_one_side(tmp_path: Path):
    def rows(_: Path):
        for n in range(400):
            yield {"table": {"a": n}, "question": "?", "answer": "yes", "group": str(n // 4)}

    write_data(tmp_path, Task("table", rows))
    groups = {
        side: {json.loads(line)["group"] for line in (tmp_path / f"{side}.jsonl").open()}
        for side, _ in SIDES
    }
    assert sum(map(len, groups.values())) == 100
    assert len(groups["train"]) > len(groups["eval"]) > 5


def test_there_are_ten_tasks_at_least():
    assert len(TASKS) >= 10
