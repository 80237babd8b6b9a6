"""Sessions: learning-rate trials by successive halving, stages, what is spent."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_session import Plan, assert_same, trained

from modalign.errors import ModalignError, UsageError
from modalign.training.budget import Budget
from modalign.training.learners import ModelLearner
from modalign.training.trainer import StepProgress, Trainer
from modalign.training.trials import (
    NEXT_SEED,
    TRIAL_FACTORS,
    TRIAL_SEEDS,
    TRIAL_SHARE,
    LearningRateTrial,
    TrialRun,
    best,
    new_connectors,
    trial_share,
)

Make = Callable[..., Plan]
BATCH = 8


def test_trials_spend_their_share_and_leave_no_trace(plan: Make, tmp_path: Path) -> None:
    made = plan(factor=None, budget="768samples")
    losses: dict[str, list[float]] = defaultdict(list)
    seen: dict[str, int] = {}

    def report(name: str, step: StepProgress) -> None:
        losses[name].append(step.loss)
        seen[name] = step.ledger.samples

    session = made.session(report)
    result = made.run(tmp_path / "trials", session)
    share, main = 768 * TRIAL_SHARE, 768 * (1 - TRIAL_SHARE)
    spent = {name: samples for name, samples in seen.items() if name.startswith("trial")}
    each = share / (TRIAL_SEEDS * len(TRIAL_FACTORS))
    assert len(spent) == TRIAL_SEEDS * len(TRIAL_FACTORS)
    assert all(each <= samples < each + BATCH for samples in spent.values())
    assert sum(trial.samples for trial in result.trials) == sum(spent.values())
    assert main <= seen["train"] < main + BATCH
    assert result.ledger.samples == sum(seen.values())
    starts = [
        {loss[0] for name, loss in losses.items() if name.endswith(f"seed-{seed}")}
        for seed in (0, NEXT_SEED)
    ]
    assert [len(each) for each in starts] == [1, 1]  # factors share weights and batches
    assert starts[0] != starts[1]  # seeds do not
    kept = [trial for trial in result.trials if trial.kept]
    assert [trial.factor for trial in kept] == [result.factor]
    assert [path.name for path in sorted((tmp_path / "trials").iterdir())] == [
        "train",
        "trials.json",
    ]

    given = plan(factor=result.factor, budget="768samples")
    weights, alone = trained(given, tmp_path / "given")
    assert_same(session.trained_state(), weights)
    assert [point["val_loss"] for point in alone.curve] == [
        point["val_loss"] for point in result.curve
    ]
    assert alone.ledger.samples == seen["train"]


def break_trials(monkeypatch: pytest.MonkeyPatch, *factors: float, after: int = 1) -> None:
    """Let the loss of some trials become NaN."""
    whole = Trainer._step

    def step(self: Trainer, fraction: float) -> Any:
        tried = [f"trial-x{factor:.3g}-seed-" for factor in factors]
        if self.step == after and self.folder.name.startswith(tuple(tried)):
            self._stop("loss", math.nan, [0])
        return whole(self, fraction)

    monkeypatch.setattr(Trainer, "_step", step)


@pytest.mark.parametrize("after", [1, 2])
def test_a_trial_that_breaks_down_is_survived(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    break_trials(monkeypatch, 3.0, after=after)
    result = plan(factor=None, budget="768samples").run(tmp_path)
    broken = next(trial for trial in result.trials if trial.factor == 3.0)
    assert broken.val_loss is None
    assert broken.samples == TRIAL_SEEDS * after * BATCH
    assert result.factor in {1 / 3, 1.0}
    assert result.ledger.samples >= 768 * (1 - TRIAL_SHARE) + sum(t.samples for t in result.trials)


def test_no_trial_left_is_an_error_also_when_resumed(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_trials(monkeypatch, *TRIAL_FACTORS)
    made = plan(factor=None, budget="768samples")
    for _ in range(2):
        with pytest.raises(ModalignError, match="mlp: every learning-rate trial"):
            made.run(tmp_path)


def test_without_validation_data_the_middle_factor_is_kept(plan: Make, tmp_path: Path) -> None:
    result = plan(factor=None, budget="1024samples", val=0).run(tmp_path)
    assert result.factor == 1.0
    assert result.ledger.samples == 768
    assert all(point["val_loss"] is None for point in result.curve)


def test_a_budget_of_few_steps_is_not_spent_on_trials(plan: Make, tmp_path: Path) -> None:
    """Six trials share a quarter: 24 x 4 steps of 8 samples are the least."""
    short = plan(factor=None, budget="760samples").run(tmp_path / "short")
    assert (short.factor, short.trials, short.search.samples) == (1.0, [], 0)
    assert short.ledger.samples == 760
    assert trial_share(Budget.parse("768samples"), 8) == TRIAL_SHARE
    assert trial_share(Budget.parse("768samples"), 9) == 0
    assert trial_share(Budget.parse("1s"), 8) == TRIAL_SHARE  # what a step takes is not known


def test_text_alone_costs_nothing_where_it_trains_nothing(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights, bit for bit, as when the whole model runs on it; with LoRA it trains, and runs."""
    calls: list[int] = []
    whole = ModelLearner.outputs

    def outputs(self: ModelLearner, call: Any, batch: Any) -> Any:
        calls.append(sum(len(sample.media) for sample in batch.samples))
        return whole(self, call, batch)

    monkeypatch.setattr(ModelLearner, "outputs", outputs)
    short = {"budget": "96samples", "settings": {"batch_size": 2}}
    weights, spared = trained(plan(**short), tmp_path / "spared")
    assert calls
    assert all(calls)
    assert all(point["train_loss"] is not None for point in spared.curve[1:])
    steps = len(calls)
    calls.clear()
    trained(plan(**{**short, "settings": {"batch_size": 2, "llm": "lora"}}), tmp_path / "lora")
    assert 0 in calls
    calls.clear()
    monkeypatch.setattr(ModelLearner, "idles", lambda *_: False)
    same, spent = trained(plan(**short), tmp_path / "run")
    assert 0 in calls
    assert len(calls) > steps
    assert_same(weights, same)
    assert spared.ledger.samples == spent.ledger.samples
    assert spared.ledger.flops < spent.ledger.flops


def test_stages_share_the_budget_and_hand_on_the_connector(plan: Make, tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def report(name: str, step: StepProgress) -> None:
        seen[name] = step.ledger.samples

    with_stage = plan(method="qformer", budget="320samples", settings={"encoder": "full"})
    session = with_stage.session(report)
    before = session.trained_state()
    result = with_stage.run(tmp_path / "with", session)
    main = 320  # too little for trials
    assert 0.3 * main <= seen["stage_one"] < 0.3 * main + BATCH
    assert 0.7 * main <= seen["train"] < 0.7 * main + BATCH
    assert result.ledger.samples == sum(seen.values())
    without = plan(method="qformer_no_stage_one", budget="224samples", settings={"encoder": "full"})
    other = without.session()
    assert_same(before, other.trained_state())
    first = without.run(tmp_path / "without", other).curve[0]["val_loss"]
    assert result.curve[0]["val_loss"] != first  # stage one has changed the connector


def test_stage_one_needs_two_texts(plan: Make, tmp_path: Path) -> None:
    made = plan(method="qformer")
    session = made.session()
    text = next(s for s in session.train_samples if s.media).record.answer
    session.train_samples = [s for s in session.train_samples if s.record.answer == text]
    with pytest.raises(UsageError, match="two different texts"):
        made.run(tmp_path, session)


def test_lora_is_merged_into_a_plain_language_model(plan: Make, tmp_path: Path) -> None:
    made = plan(settings={"llm": "lora"})
    session = made.session()
    made.run(tmp_path, session)
    names = set(session.trained_state())
    assert any("lora_" in name for name in names)
    batch = session.collator(session.val_samples)
    before = session.model(**batch.model_inputs()).logits.detach()
    session.merge_lora()
    assert not any("lora_" in name for name, _ in session.model.named_parameters())
    after = session.model(**batch.model_inputs()).logits.detach()
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def tried(factor: float, *losses: list[float]) -> LearningRateTrial:
    return LearningRateTrial(factor, [TrialRun(float(np.mean(each)), each) for each in losses])


def test_a_factor_must_be_clearly_better_than_the_given_rate_under_every_seed() -> None:
    even = [1.0, 1.0, 1.0, 1.0]
    base = tried(1.0, even, even)
    # A gain of 0.1 everywhere is clear; the same gain on average, from one sample, is not.
    clear, noisy = tried(3.0, [0.9] * 4, [0.9] * 4), tried(1 / 3, [0.6, 1, 1, 1], [0.6, 1, 1, 1])
    assert best([noisy, base, clear]) is clear
    assert best([noisy, base]) is base
    once = tried(3.0, [0.5] * 4, [1.1] * 4)  # better on average, worse under the second seed
    assert best([once, base, noisy]) is base
    broken = LearningRateTrial(3.0, [TrialRun(0.5, [0.5] * 4), TrialRun(failure="not finite")])
    assert best([base, broken]) is base
    assert best([broken]) is None
    assert best([LearningRateTrial(1.0, [TrialRun()]), noisy]) is noisy


def test_a_factor_is_charged_for_its_spread() -> None:
    base = tried(1.0, [1.0] * 4, [1.0] * 4)
    steady, jumpy = tried(1 / 3, [0.8] * 4, [0.8] * 4), tried(3.0, [0.5] * 4, [0.9] * 4)
    assert jumpy.val_loss < steady.val_loss  # and 0.7 plus a standard deviation of 0.28
    assert jumpy.charged == pytest.approx(0.7 + 0.2 * math.sqrt(2))
    assert best([steady, base, jumpy]) is steady
    assert LearningRateTrial.of(jumpy.state()) == jumpy


def test_trials_of_another_seed_begin_with_its_connectors(plan: Make) -> None:
    own, other = plan().session(), plan(seed=NEXT_SEED).session()
    new = new_connectors(own.model, NEXT_SEED)
    assert_same(new, new_connectors(other.model, NEXT_SEED))  # whatever the model's own are
    names = [name for name in own.trained_state() if name.startswith("connectors.")]
    assert sorted(new) == sorted(names)
    for name, old in own.trained_state().items():
        assert not torch.equal(new[name], old)
        assert 0.5 < new[name].std() / old.std() < 2


def test_what_an_earlier_stage_trained_is_kept_and_rebuilt(plan: Make, tmp_path: Path) -> None:
    rates = {"connector": 1e-2, "llm": 1e-2}
    recipe = [
        {"name": "tune", "llm": "lora", "learning_rates": rates},
        {"name": "align", "llm": "frozen", "learning_rates": {"connector": 1e-2, "llm": 0.0}},
    ]
    staged = plan(recipe=recipe, budget="96samples")
    session = staged.session()
    staged.run(tmp_path, session)
    state = session.trained_state()
    adapters = {name: value for name, value in state.items() if "lora_B" in name}
    assert adapters
    assert all(value.abs().sum() > 0 for value in adapters.values())  # zero before the first stage
    again = staged.session()
    again.load_trained(state)
    for name, parameter in session.model.named_parameters():
        assert torch.equal(parameter, dict(again.model.named_parameters())[name]), name
    with pytest.raises(ModalignError, match="do not fit"):
        again.load_trained({"nowhere": torch.zeros(1)})
