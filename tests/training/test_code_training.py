"""Stages of connectors with a code: their terms over micro-batches, and what batches without media do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_session import Plan

from modalign.connectors.codes import DiscreteCode, GaussianCode
from modalign.connectors.registry import connector_class
from modalign.errors import UsageError
from modalign.training.learners import ModelLearner, stage_one_learner
from modalign.training.methods import method_names, resolve_method
from modalign.training.objectives import term
from modalign.training.settings import Stage

Make = Callable[..., Plan]
NAMES = ("vq_codes", "vocabulary_codes", "variational")


@pytest.mark.parametrize("name", NAMES)
def test_the_connector_says_what_its_stages_are(name: str) -> None:
    assert {name, f"{name}_no_stage_one"} <= set(method_names())
    first, last = resolve_method(name).stages
    cls = connector_class(name)
    assert first.objective == cls.stage_one_terms()
    assert last.objective == {"cross_entropy": 1.0, **cls.model_terms()}
    (only,) = resolve_method(f"{name}_no_stage_one").stages
    assert only.objective == last.objective


def test_options_and_recipes_have_their_say() -> None:
    first, last = resolve_method("variational[beta=0.5]").stages
    assert first.objective == {"reconstruction": 1.0, "kl_latent": 0.5}
    assert last.objective["kl_latent"] == 0.5
    recipe = [Stage(objective={"cross_entropy": 1.0, "commitment": 0.0}, llm="full")]
    assert resolve_method("vq_codes", recipe).stages[-1].objective == {
        "cross_entropy": 1.0,
        "codebook": 1.0,
        "commitment": 0.0,
    }
    assert resolve_method("vq_codes", recipe).stages[-1].llm == "full"
    assert {stage.llm for stage in resolve_method("vocabulary_codes", recipe).stages[1:]} == {
        "frozen"
    }


def codes(count: int, seed: int) -> list[Any]:
    """A discrete and a Gaussian code of so many media, some places missing."""
    torch.manual_seed(seed)
    values = torch.randn(4, count, 5, 3)
    mask = torch.rand(count, 5) < 0.7
    ids = torch.zeros(count, 5, dtype=torch.long)
    return [
        DiscreteCode(values[0], mask, values[0], values[1], ids),
        GaussianCode(values[2], mask, values[2], values[3]),
    ]


@pytest.mark.parametrize("name", ["codebook", "commitment", "kl_latent", "reconstruction"])
def test_terms_of_parts_add_up_to_the_whole(name: str) -> None:
    def outputs(rows: slice) -> SimpleNamespace:
        def cut(code: Any) -> Any:
            tensors = {k: v[rows] for k, v in vars(code).items() if isinstance(v, torch.Tensor)}
            return replace(code, **tensors)

        torch.manual_seed(1)
        rebuilt, target = torch.randn(2, 7, 6, 4)
        mask = torch.rand(7, 6) < 0.5
        return SimpleNamespace(
            codes=[cut(code) for code in codes(7, 0)],
            rebuilt=rebuilt[rows],
            target=target[rows],
            mask=mask[rows],
        )

    batch = SimpleNamespace(num_media=7.0)
    whole = term(name)(outputs(slice(None)), batch, {})
    parts = [term(name)(outputs(rows), batch, {}) for rows in (slice(0, 2), slice(2, 7))]
    assert float(whole) > 0
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("name", ["vq_codes", "variational"])
def test_gradients_do_not_depend_on_micro_batches(
    name: str, plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of no, one and two media, cut in every way; a draw would differ, so it is left out."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    made = plan(method=f"{name}_no_stage_one", val=0)
    found = []
    for accumulate in (1, 2, 8):
        session = made.session(accumulate=accumulate, clip_norm=1e9)
        seen: dict[str, torch.Tensor] = {}

        class CutOffError(Exception):
            pass

        def step(*_: Any, session: Any = session, seen: Any = seen, **__: Any) -> None:
            for key, parameter in session.model.connectors.named_parameters():
                seen[key] = parameter.grad.clone()
            raise CutOffError

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", step)
            with pytest.raises(CutOffError):
                made.run(tmp_path / str(accumulate), session)
        found.append(seen)
    assert any(float(gradient.abs().sum()) > 0 for gradient in found[0].values())
    for other in found[1:]:
        for key, gradient in found[0].items():
            torch.testing.assert_close(other[key], gradient, atol=1e-6, rtol=1e-4)


def test_media_made_up_to_keep_in_step_are_not_charged(plan: Make) -> None:
    session = plan(method="vq_codes_no_stage_one").session()
    learner = ModelLearner(session, session.method.stages[-1])
    with_media = [i for i, s in enumerate(session.train_samples) if s.media][:3]
    without = [i for i, s in enumerate(session.train_samples) if not s.media][:3]
    for batch, count in (
        (learner.collate(with_media), 1),
        (learner.collate(without), 0),
        (learner.idle(), 0),
    ):
        outputs = learner.outputs(session.model, batch)
        assert len(outputs.codes) == count
        value = term("codebook")(outputs, batch, {})
        assert (float(value.detach()) > 0) is bool(count)
        assert session.model.connector("image").take_code() is None


def test_stage_one_is_of_connectors_that_have_one(plan: Make) -> None:
    session = plan(method="vq_codes").session()
    source = session._stage_one_source()
    assert len(stage_one_learner(session.model, session.train_samples, source, 0).samples) > 2
    alone = [sample for sample in session.train_samples if not sample.media]
    with pytest.raises(UsageError, match="one medium each"):
        stage_one_learner(session.model, alone, source, 0)
    other = plan(method="mlp").session()
    with pytest.raises(UsageError, match="'mlp' has no stage one"):
        stage_one_learner(other.model, other.train_samples, source, 0)


@pytest.mark.parametrize("name", NAMES)
def test_both_stages_train_and_the_terms_are_finite(name: str, plan: Make, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {}
    rates = {"learning_rates": {"connector": 1e-2}}
    made = plan(method=name, budget="320samples", settings=rates)
    session = made.session(lambda stage, step: losses.setdefault(stage, []).append(step.loss))
    before = {k: v.clone() for k, v in session.model.connectors.named_parameters()}
    made.run(tmp_path, session)
    assert set(losses) == {"stage_one", "train"}
    assert sum(losses["stage_one"][-3:]) < sum(losses["stage_one"][:3])
    for key, value in session.model.connectors.named_parameters():
        assert not torch.equal(before[key], value), key
