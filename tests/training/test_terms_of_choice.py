"""Options offered and classes: the terms by loops, batches of whole groups, and a head that is saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss

import tiny
from modalign.data.supervision import tokenise
from modalign.errors import DataError, UsageError
from modalign.evaluation.likelihood import score_options
from modalign.models.heads import Head, classified, heads_of, load_head
from modalign.models.open import open_model
from modalign.models.saved import open_composed
from modalign.training.budget import Budget
from modalign.training.learners import ModelLearner
from modalign.training.objectives import term
from modalign.training.outputs import Everyone, Outputs
from modalign.training.roles import Roles
from modalign.training.settings import Stage, TrainSettings
from modalign.training.terms.choosing import choice_loss
from modalign.training.tuning import Tuning

Folder = Callable[..., Path]
COLOURS = ("red", "green", "dark blue")


def slow_choice(scores: list[float], right: list[bool], keys: list[int]) -> float:
    total = 0.0
    for key in set(keys):
        own = [place for place, other in enumerate(keys) if other == key]
        whole = sum(math.exp(scores[place]) for place in own)
        total -= math.log(sum(math.exp(scores[place]) for place in own if right[place]) / whole)
    return total / len(set(keys))


OFFERED = st.tuples(st.integers(0, 3), st.integers(-30, 0), st.booleans())


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OFFERED, min_size=1, max_size=9))
def test_the_share_of_the_right_options_by_loops(options: list[tuple[int, int, bool]]) -> None:
    keys, scores = [each[0] for each in options], [each[1] / 3 for each in options]
    right = [own or keys.index(key) == place for place, (key, _, own) in enumerate(options)]
    found = choice_loss(
        torch.tensor(scores, dtype=torch.float64), torch.tensor(right), torch.tensor(keys)
    )
    assert float(found) == pytest.approx(slow_choice(scores, right, keys), abs=1e-9)
    assert float(found) >= -1e-12


def test_one_right_option_of_k_is_torchs_cross_entropy() -> None:
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 1, 1, 2])
    right = torch.nn.functional.one_hot(targets, 4).bool().flatten()
    found = choice_loss(scores.flatten(), right, torch.arange(5).repeat_interleave(4))
    assert float(found) == pytest.approx(
        float(torch.nn.functional.cross_entropy(scores, targets)), abs=1e-6
    )


def offered(question: str, right: str, row: int) -> list[Any]:
    """A question's options as records of one group; the right one has the skill ``right``."""
    return [
        replace(
            tiny.record(question, option, row=row * 10 + place),
            group=f"q{row}",
            skill="right" if option == right else "wrong",
        )
        for place, option in enumerate(COLOURS)
    ]


STAGE = Stage(
    objective={"choice": 1.0},
    roles={"right": "domain:right", "wrong": "domain:wrong"},
    matched="all",
    llm="full",
)


@pytest.mark.parametrize("length", ["summed", "per byte"])
def test_the_term_is_what_evaluation_scores(llm_folder: Folder, length: str) -> None:
    """Against likelihoods that the evaluation computes, one question after the other."""
    folder = llm_folder()
    opened = open_composed(folder)
    records = [r for n in range(3) for r in offered(f"what is {n}?", COLOURS[n], n)]
    samples = [tokenise(record, opened.tokenizer) for record in records]
    stage = STAGE.model_copy(update={"objective": {"choice": {"length": length}}})
    tuning = Tuning(opened, [stage], TrainSettings(batch_size=9, device="cpu"), samples)
    learner = ModelLearner(tuning, stage)
    opened.model.eval()
    indices = learner.order(9, 0).batch(0)
    assert len(set(indices)) == 9
    batch = learner.collate(indices)
    with torch.no_grad():
        found = term("choice")(learner.outputs(opened.model, batch), batch, {}, length=length)
    model, reader = open_model(folder)
    asked = [tiny.record(f"what is {n}?", COLOURS[n], row=n) for n in range(3)]
    expected = []
    for n, options in enumerate(score_options(model, reader, asked, [COLOURS] * 3)):
        values = np.array([
            each.loglikelihood / (len(each.text.encode()) if length == "per byte" else 1)
            for each in options
        ])  # fmt: skip
        expected.append(math.log(np.exp(values - values[n]).sum()))
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)


def test_batches_hold_whole_groups() -> None:
    groups = [0] * 3 + [1] * 2 + [2] * 4 + [3]  # the last has no wrong option
    rows = [
        SimpleNamespace(
            record=SimpleNamespace(
                skill="right" if place in (0, 3, 5, 6, 9) else "wrong", group=str(group), id="", options=()
            ),
            ids=np.zeros(4),
            media=(),
            length=4,
        )
        for place, group in enumerate(groups)
    ]  # fmt: skip
    roles = Roles(
        ("right", "wrong"), rows, np.array([int(r.record.skill == "wrong") for r in rows]),  # type: ignore[arg-type]
        np.array(groups), "all",
    )  # fmt: skip
    assert roles.largest_group() == 4
    with pytest.raises(UsageError, match="no room for a group of 4 records"):
        roles.order(3, 0)
    order = roles.order(4, 0)
    seen = [order.batch(step) for step in range(3)]
    assert sorted(map(sorted, seen)) == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]


def test_training_makes_the_right_option_likeliest(llm_folder: Folder, tmp_path: Path) -> None:
    folder = llm_folder()
    opened = open_composed(folder)
    records = [r for n in range(3) for r in offered(f"what is {n}?", COLOURS[n], n)]
    samples = [tokenise(record, opened.tokenizer) for record in records]
    settings = TrainSettings(batch_size=9, device="cpu", val_points=1)
    tuning = Tuning(opened, [STAGE], settings, samples)
    tuning.check()
    tuning.run(Budget.parse("540samples"), tmp_path / "run", factor=100)
    tuning.save(tmp_path / "model")
    asked = [tiny.record(f"what is {n}?", COLOURS[n], row=n) for n in range(3)]
    for n, options in enumerate(
        score_options(*open_model(tmp_path / "model"), asked, [COLOURS] * 3)
    ):
        values = [each.loglikelihood for each in options]
        assert values.index(max(values)) == n


# ---------------------------------------------------------------------- classes


def test_a_head_by_scikit_learns_log_loss() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 3)
    states, labels = torch.randn(4, 5), [2, 0, 1, 1]
    samples = [SimpleNamespace(record=tiny.record("?", COLOURS[label])) for label in labels]
    batch = SimpleNamespace(
        samples=[*samples, samples[0]], numbers=torch.tensor([0, 1, 2, 3, -1]), num_samples=8.0
    )
    more = torch.cat([states, torch.full((1, 5), 99.0)])  # an uncounted record
    outputs = Outputs(
        None, None, {"pooled:prompt": more}, maps=torch.nn.ModuleDict({"classes": head})
    )
    found = term("classify")(outputs, batch, {}, classes=COLOURS)
    shares = head(states).softmax(-1).detach().double().numpy()
    expected = log_loss(labels, shares / shares.sum(1, keepdims=True), labels=[0, 1, 2])
    assert found.item() == pytest.approx(expected * 4 / 8, rel=1e-5)
    with pytest.raises(DataError, match="'dark blue' is not one of the classes red, green"):
        term("classify")(outputs, batch, {}, classes=("red", "green"))


def test_the_head_is_learnt_resumed_and_saved_with_the_model(
    llm_folder: Folder, tmp_path: Path
) -> None:
    """Over a frozen model: only the head trains, the model's weights stay, and its folder still loads."""
    folder = llm_folder()
    records = [tiny.record(f"what is {n % 3}?", COLOURS[n % 3], row=n) for n in range(12)]
    stage = Stage(objective={"classify": {"classes": list(COLOURS), "head": "colour"}})

    def tuned(place: Path, budget: str) -> Tuning:
        opened = open_composed(folder)
        samples = [tokenise(record, opened.tokenizer) for record in records]
        settings = TrainSettings(batch_size=6, device="cpu", val_points=1)
        tuning = Tuning(opened, [stage], settings, samples)
        tuning.check()
        tuning.run(Budget.parse(budget), place, factor=50)
        return tuning

    once = tuned(tmp_path / "run", "600samples")
    again = tuned(tmp_path / "run", "600samples")  # resumed at its end
    assert torch.equal(once.heads["colour"].weight, again.heads["colour"].weight)
    once.save(tmp_path / "model")
    assert heads_of(tmp_path / "model") == ["colour"]
    head = load_head(tmp_path / "model", "colour")
    assert torch.equal(head.weight, once.heads["colour"].weight)
    model, reader = open_model(tmp_path / "model")
    before = open_model(folder)[0].state_dict()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    shares = classified(model, reader, head, records[:3])
    assert shares.sum(1).tolist() == pytest.approx([1.0] * 3)
    assert shares.argmax(1).tolist() == [0, 1, 2]


def test_heads_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no head 'x'; it has none"):
        load_head(tmp_path, "x")
    head = Head(("a", "b"), torch.ones(2, 3), torch.zeros(2))
    file = head.save(tmp_path, "x")
    assert load_head(tmp_path, "x").probabilities(torch.zeros(1, 3)).tolist() == [[0.5, 0.5]]
    with pytest.raises(UsageError, match="width 3, the model's have width 4"):
        head.probabilities(torch.zeros(1, 4))
    with pytest.raises(UsageError, match="did you mean x"):
        load_head(tmp_path, "xx")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(DataError, match="is not a head"):
        load_head(tmp_path, "x")


def test_a_learnt_temperature_starts_where_it_was_given() -> None:
    from modalign.training.outputs import SCALE, Scale

    torch.manual_seed(0)
    rows = {"pooled:last": torch.randn(6, 4)}
    batch = SimpleNamespace(
        everyone=Everyone(dict(rows), torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(3).repeat(2)),
        numbers=torch.arange(6),
        role_names=("anchor", "positive"),
        share=1.0,
    )
    scale = Scale(math.log(1 / 0.2))
    outputs = Outputs(None, None, rows, maps=torch.nn.ModuleDict({SCALE: scale}))
    plain = term("info_nce")(outputs, batch, {}, temperature=0.2)
    learnt = term("info_nce")(outputs, batch, {}, temperature=0.2, learn_temperature=True)
    assert float(learnt) == pytest.approx(float(plain), rel=1e-5)
    learnt.backward()
    assert scale.log_scale.grad is not None
    step = 1e-3
    near = [
        float(term("info_nce")(outputs, batch, {}, temperature=0.2 * math.exp(-sign * step)))
        for sign in (1, -1)
    ]
    assert float(scale.log_scale.grad) == pytest.approx((near[0] - near[1]) / (2 * step), rel=1e-2)
    assert float(Scale(math.log(1e4))()) == pytest.approx(100)
