"""Whether facts are gone: recovery, INVALID, attacks, TOFU's numbers against its logs, the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

import tiny
from modalign.data.readers import write_records
from modalign.data.reformatting import read_questions, reformat
from modalign.models.open import open_model
from modalign.unlearning.attacks import attacked, prune_to, relearned, round_to
from modalign.unlearning.measures import (
    forget_quality,
    membership,
    recovery,
    rouge_recall,
    truth_ratios,
    utility,
)

LOGS = tiny.SHARED / "data" / "tofu_logs"


def test_recovery_is_a_share_of_what_there_was_to_forget() -> None:
    rng = np.random.default_rng(0)
    knew, never = np.ones(200), (rng.random(200) < 0.1).astype(float)
    half = (rng.random(200) < 0.55).astype(float)
    found, valid = recovery(knew, never, half)
    assert valid
    assert found is not None
    assert found.value == pytest.approx((half.mean() - never.mean()) / (1 - never.mean()))
    assert found.low < 0.5 < found.high
    assert recovery(knew, never, knew)[0].value == pytest.approx(1)  # type: ignore[union-attr]
    assert recovery(knew, never, never)[0].value == pytest.approx(0)  # type: ignore[union-attr]


def test_a_form_that_cannot_tell_is_invalid_and_seldom_by_chance() -> None:
    rng = np.random.default_rng(1)
    told = [recovery(*(rng.random((3, 60)) < 0.25).astype(float))[1] for _ in range(100)]
    assert sum(told) <= 12
    wrong = np.tile([1.0, 0, 0, 0], 50)  # guessing, where one that never knew is always wrong
    assert recovery(wrong, 0 * wrong, wrong)[1]
    assert not recovery(wrong, 0 * wrong, wrong, chance=0.25)[1]
    one = ["only"] * 60  # one subject says nothing about others
    assert not recovery(np.ones(60), np.zeros(60), np.zeros(60), one)[1]


def test_rounding_and_pruning_by_their_definitions() -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    for bits, levels in ((4, 7), (8, 127)):
        found = round_to(bits)(weight)
        for start in range(0, 70, 32):
            own, rounded = weight[:, start : start + 32], found[:, start : start + 32]
            scale = own.abs().amax(1, keepdim=True) / levels
            assert (own - rounded).abs().max() <= scale.max() / 2 + 1e-6
            assert torch.allclose(rounded / scale, (rounded / scale).round(), atol=1e-3)
    pruned = prune_to(0.25)(weight)
    assert int((pruned == 0).sum()) == int(350 * 0.25)
    assert weight[pruned == 0].abs().max() < weight[pruned != 0].abs().min()


def test_an_attack_leaves_the_model_as_it_was(knowing: Path) -> None:
    model, _ = open_model(knowing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with attacked(model, round_to(4)):
        assert any(not torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_relearning_is_of_a_copy_and_learns(knowing: Path, facts: Path) -> None:
    model, reader = open_model(knowing)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taught = reformat(read_questions(facts / "forget.jsonl"), ["cloze"]).records[:2]
    copy, _ = relearned(model, reader, taught, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in copy.state_dict().items())


def test_membership_is_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.random(30), rng.random(40) + 0.3
    found = membership(inside, outside)
    flags, losses = [1] * 30 + [0] * 40, np.concatenate([inside, outside])
    assert found.value == pytest.approx(roc_auc_score(flags, -losses))
    assert found.value == pytest.approx(mannwhitneyu(outside, inside).statistic / 1200)
    assert found.low < found.value < found.high


def test_words_recalled() -> None:
    assert rouge_recall("the cat sat on", "the dog sat") == pytest.approx(2 / 3)
    assert rouge_recall("", "a") == 0
    assert rouge_recall("A b.", "a B") == 1  # no word has a full stop in it


@pytest.mark.skipif(not LOGS.exists(), reason=f"{LOGS} is not there")
def test_tofus_own_logs_give_its_numbers() -> None:
    def log(name: str) -> list[dict[str, Any]]:
        return json.loads((LOGS / f"phi_{name}.json").read_text())  # type: ignore[no-any-return]

    def ratios(rows: list[dict[str, Any]]) -> np.ndarray:
        return truth_ratios(
            [row["avg_paraphrased_loss"] for row in rows],
            [row["average_perturb_loss"] for row in rows],
        )  # fmt: skip

    full, without = log("full_forget"), log("retain90_forget")
    for rows in (full, without):
        assert ratios(rows) == pytest.approx([row["truth_ratio"] for row in rows], rel=1e-4)
    assert np.median(ratios(full)) == pytest.approx(0.470, abs=1e-3)
    assert np.median(ratios(without)) == pytest.approx(0.753, abs=1e-3)
    assert forget_quality(ratios(full), ratios(without)) == pytest.approx(2.2e-16, rel=0.05)
    kept, own = log("full_retain"), log("retain90_retain")
    assert forget_quality(ratios(kept), ratios(own)) == pytest.approx(1.0, abs=0.01)
    probability = [math.exp(-row["avg_gt_loss"]) for row in full]
    assert np.mean(probability) == pytest.approx(0.928, abs=1e-3)
    recalls = [row["rougeL_recall"] for row in kept]
    chances = [math.exp(-row["avg_gt_loss"]) for row in kept]
    parts = [np.mean(chances), np.mean(recalls), np.mean(np.maximum(0, 1 - ratios(kept)))]
    assert utility(chances, recalls, ratios(kept)) == pytest.approx(3 / sum(1 / p for p in parts))


def test_four_rows_from_the_command_line(
    knowing: Path, facts: Path, llm_folder: Any, tmp_path: Path, cli: Any
) -> None:
    forget, retain = (read_questions(facts / f"{name}.jsonl") for name in ("all", "retain"))
    forms = reformat(forget, ["cloze", "choice2", "paraphrase", "free"], pool=retain).records
    write_records(forms, tmp_path / "forms.jsonl")
    args = ["eval", knowing, tmp_path / "forms.jsonl", "--task", "unlearning", "--json"]
    assert cli(*args)[0] == 2  # the model before is missing
    code, out, err = cli(
        *args, "--knew", knowing, "--retrained", knowing, "--retain", facts / "retain.jsonl",
        "--attacks", "8 bits", "--out", tmp_path / "report",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    by = {row["form"]: row for row in found["forms"]}
    assert by["cloze"]["valid"]
    assert by["cloze"]["recovery"]["value"] == pytest.approx(1)  # nothing was forgotten
    assert not by["choice2"]["valid"]  # a toy knows no letters
    assert by["choice2"]["recovery"] is None
    assert any("choice2 is INVALID" in note for note in found["notes"])
    assert any("8 bits changes no answer" in note for note in found["notes"])
    assert found["forget_quality"] == pytest.approx(1)
    assert found["membership"]["knew"]["value"] > 0.8
    assert found["utility"]["knew"] > 0.5
    page = (tmp_path / "report" / "report.md").read_text()
    assert "INVALID" in page
    assert "Do not ship the patch" in page
    assert (
        cli("eval", knowing, facts / "all.jsonl", "--task", "unlearning", "--knew", knowing)[0] == 3
    )
    assert cli(*args, "--knew", knowing, "--attacks", "9 bits")[0] == 2
    assert cli("eval", knowing, facts / "all.jsonl", "--knew", knowing)[0] == 2
