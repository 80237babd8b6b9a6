"""The loop: loss over tokens, numbers that are none, frozen tensors, precision, curves, trackers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_work import CutOffError, stop_before
from tiny_session import EVERY_STEP, Plan, assert_same, trained
from torch import Tensor

from modalign.errors import ModalignError, UsageError
from modalign.training import checkpoint, tracking
from modalign.training.budget import Budget
from modalign.training.learners import ModelLearner
from modalign.training.session import Session
from modalign.training.sources import Parts
from modalign.training.trainer import NonFiniteLossError, StepProgress, cosine, trapezoid

Make = Callable[..., Plan]


def losses_of(plan: Plan, folder: Path, **settings: Any) -> list[float]:
    losses: list[float] = []

    def report(_: str, step: StepProgress) -> None:
        losses.append(step.loss)

    plan.run(folder, plan.session(report, **settings))
    return losses


def gradients(
    plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> dict[str, Tensor]:
    """Of the first step."""
    session = plan.session(clip_norm=1e9, **settings)
    found: dict[str, Tensor] = {}

    def step(self: Any, *_: Any) -> None:
        own = session.model.named_parameters()
        found.update({name: p.grad.clone() for name, p in own if p.grad is not None})
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(CutOffError):
            plan.run(folder, session)
    return found


def test_loss_is_the_mean_over_tokens_whatever_the_micro_batches(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(settings={"llm": "full", "val_points": 1}, val=0)
    counts = {len(sample.ids[sample.supervised]) for sample in made.session().train_samples}
    assert len(counts) > 2
    whole = gradients(made, tmp_path / "1", monkeypatch)
    assert sum(float(gradient.abs().sum()) for gradient in whole.values()) > 1
    for accumulate in (2, 4, 64):
        parts = gradients(made, tmp_path / str(accumulate), monkeypatch, accumulate=accumulate)
        assert_same(whole, parts, tolerance=1e-6)
    packed = {"packing": True, "pack_length": 96}
    assert_same(whole, gradients(made, tmp_path / "p", monkeypatch, **packed), tolerance=1e-5)


def poison(monkeypatch: pytest.MonkeyPatch, row: str, how: Callable[[Tensor], Tensor]) -> None:
    """Change the logits of batches that hold a row."""
    outputs = ModelLearner.outputs

    def poisoned(self: ModelLearner, call: Any, batch: Any) -> Any:
        output = outputs(self, call, batch)
        if any(sample.record.id == row for sample in batch.samples):
            output.logits = how(output.logits)
        return output

    monkeypatch.setattr(ModelLearner, "outputs", poisoned)


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("loss", lambda logits: logits * float("nan")),
        ("gradient", lambda logits: logits + (logits.sum() * 0).sqrt()),
    ],
)
def test_a_number_that_is_none_stops_the_run(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, how: Any
) -> None:
    made, run = plan(), tmp_path / "run"
    clean, _ = trained(made, tmp_path / "clean")
    session = made.session()
    order = session._trainer(session.method.stages[0], Budget("samples", 1), run, 0).order
    bad = [session.train_samples[index].record.id for index in order.batch(3)]
    with monkeypatch.context() as patch:
        poison(patch, bad[0], how)
        with pytest.raises(NonFiniteLossError, match=f"the {what} became nan at step 3.*{bad[1]}"):
            made.run(run)
        found = json.loads((run / "train/nonfinite.json").read_text())
        assert (found["step"], found["batch"]) == (3, bad)
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        session = made.session()
        with pytest.raises(CutOffError):
            made.run(tmp_path / "cut", session)
    saved = checkpoint.load_checkpoint(checkpoint.checkpoints(run / "train")[-1])
    assert saved[2]["step"] == 3
    assert_same(saved[0], session.trained_state())

    steps: list[object] = []
    with pytest.raises(NonFiniteLossError, match="delete the file"):  # not even without the poison
        made.run(run, made.session(lambda *step: steps.append(step)))
    assert not steps
    (run / "train/nonfinite.json").unlink()
    assert_same(clean, trained(made, run)[0])


def test_a_connector_that_writes_to_the_language_model_is_caught(
    plan: Make, tmp_path: Path
) -> None:
    made = plan(budget="8samples")
    session = made.session()
    weight = session.model.language_model.model.layers[0].mlp.up_proj.weight

    def write(*_: Any) -> None:
        with torch.no_grad():
            weight[0, 0] += 1e-3

    session.model.connectors["image"].register_forward_hook(write)
    with pytest.raises(ModalignError, match=r"1 frozen tensors changed .*up_proj"):
        made.run(tmp_path, session)


def test_text_alone_trains_nothing_but_what_may_train(plan: Make, tmp_path: Path) -> None:
    made = plan(budget="16samples", val=0)
    session = made.session()
    session.train_samples = [sample for sample in session.train_samples if not sample.media]
    before = session.trained_state()
    assert made.run(tmp_path, session).steps == 2
    assert_same(before, session.trained_state())


@pytest.mark.parametrize("llm", ["frozen", "full"])
def test_gradient_checkpointing_changes_no_loss(plan: Make, tmp_path: Path, llm: str) -> None:
    made = plan(method="gated_cross_attention", budget="40samples", settings={"llm": llm}, val=0)
    plain = losses_of(made, tmp_path / "plain")
    session = made.session(gradient_checkpointing=True)
    calls = []
    inner = session.model.language_model.model.layers[0].mlp
    inner.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    result = made.run(tmp_path / "saved", session)
    assert len(calls) == 2 * result.steps  # every layer ran again in the backward pass
    again = losses_of(made, tmp_path / "again", gradient_checkpointing=True)
    assert again == pytest.approx(plain, rel=1e-6)


def test_bfloat16_follows_float32(plan: Make, tmp_path: Path) -> None:
    made = plan(budget="40samples", settings={"llm": "lora"})
    exact = losses_of(made, tmp_path / "float32")
    session = made.session(dtype="bfloat16")
    result = made.run(tmp_path / "bfloat16", session)
    assert {tensor.dtype for tensor in session.trained_state().values()} == {torch.float32}
    half = losses_of(made, tmp_path / "again", dtype="bfloat16")
    assert half == pytest.approx(exact, rel=0.02)
    assert half != exact
    assert result.steps == len(exact)


@pytest.mark.parametrize("points", [1, 3, 8])
def test_the_curve_has_a_point_at_the_start_at_every_part_and_at_the_end(
    plan: Make, tmp_path: Path, points: int
) -> None:
    made = plan(budget="192samples", settings={"val_points": points, "batch_size": 4})
    curve = made.run(tmp_path).curve
    assert len(curve) == points + 1
    spent = [point["samples"] for point in curve]
    assert spent[0] == 0
    assert spent[-1] >= 192  # too little for trials
    for number, samples in enumerate(spent[:-1]):
        assert number * 192 / points <= samples < number * 192 / points + 4
    assert curve[0]["train_loss"] is None
    assert all(point["train_loss"] and point["val_loss"] for point in curve[1:])


def test_schedules() -> None:
    for schedule in (cosine, trapezoid):
        assert 0 < schedule(0.0, 0.1) < 0.2
        assert schedule(0.1, 0.1) == 1.0
        assert schedule(1.0, 0.1) == pytest.approx(0.0)
        assert schedule(0.0, 0.0) == 1.0
    assert cosine(0.5, 0.0) == pytest.approx(0.5)
    assert trapezoid(0.7, 0.1) == 1.0
    assert trapezoid(0.85, 0.1) == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "schedule"), [("cosine", cosine), ("trapezoid", trapezoid)])
def test_the_schedule_is_the_settings_and_of_trials_the_trapezoid(
    plan: Make, tmp_path: Path, name: str, schedule: Callable[[float, float], float]
) -> None:
    made = plan()
    session = made.session(schedule=name)
    stage, budget = session.method.stages[0], Budget("samples", 1)
    assert session._trainer(stage, budget, tmp_path, 0).schedule is schedule
    assert session._trainer(stage, budget, tmp_path, 0, trial_seed=1).schedule is trapezoid


def test_no_copy_is_made_unless_a_checkpoint_is(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, state = [], checkpoint.trainable_state
    monkeypatch.setattr(
        checkpoint, "trainable_state", lambda model: copies.append(1) or state(model)
    )
    made = plan()
    made.run(tmp_path / "seldom")
    assert len(copies) == 1
    result = made.run(tmp_path / "often", made.session(checkpoint_seconds=EVERY_STEP))
    assert 1 + result.steps <= len(copies) <= 2 + result.steps


def test_tensorboard_logs_in_the_run_folder(plan: Make, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = plan(budget="32samples")
    result = made.run(tmp_path, made.session(tracker="tensorboard"))
    files = list((tmp_path / "tensorboard").iterdir())
    assert files
    assert all("tfevents" in file.name for file in files)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(events.Scalars("train/loss")) == result.steps
    assert events.Scalars("train/val_loss")[-1].value == pytest.approx(result.curve[-1]["val_loss"])


def test_a_missing_tracker_says_how_to_install_it(
    plan: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "is_tensorboard_available", lambda: False)
    monkeypatch.setattr(Session, "_sources", lambda _: pytest.fail("too late"))
    with pytest.raises(UsageError, match=r"pip install '\.\[tensorboard\]'"):
        plan().session(tracker="tensorboard")


def test_another_number_of_processes_is_refused_before_anything_is_loaded(
    plan: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(settings={"processes": 2})
    monkeypatch.setattr(Parts, "load_llm", lambda _: pytest.fail("too late"))
    message = "2 processes were requested, but 1 are connected.*torchrun"
    with pytest.raises(UsageError, match=message):
        made.session()
