"""Stages' objectives: what is declared, what is computed, and parts of a batch that add up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_work import CutOffError
from tiny_session import WORDS, Plan, assert_same
from torch import Tensor

from modalign.errors import UsageError
from modalign.models.parts import decoder_layers
from modalign.training import objectives
from modalign.training.doctor.preflight import preflight_session
from modalign.training.learners import ModelLearner
from modalign.training.objectives import Objective, check_stages, objective_term, term
from modalign.training.outputs import read
from modalign.training.settings import Stage
from modalign.training.trainer import Trainer

Make = Callable[..., Plan]
PAIRED = {"roles": {"a": "domain:a", "b": "domain:b"}, "matched": True}
CONTRAST = {"info_nce": {"anchor": "a", "positive": "b", "temperature": 0.5}}


@pytest.fixture(autouse=True)
def _forget_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    term("cross_entropy")  # loads all
    monkeypatch.setattr(objectives, "_TERMS", dict(objectives._TERMS))


# ---------------------------------------------------------------------- what a stage declares


def test_a_bare_number_is_a_weight_and_options_are_checked_and_filled_in() -> None:
    stage = Stage(
        objective={
            "cross_entropy": 1.0,
            "kl_answer": {"weight": 0.5, "temperature": 2},
            "hidden": {"layer": 2, "reference": "start"},
        },
        references={"teacher": "folder"},
    )
    plain, kl, hidden = Objective.of(stage).terms
    assert (plain.weight, plain.options, plain.reference) == (1.0, {}, None)
    assert kl.weight == 0.5
    assert kl.options == {"reference": "teacher", "temperature": 2.0, "beta": 0.0}
    assert hidden.needs == {"hidden:2:answers"} == hidden.reads
    assert Objective.of(stage).reads("teacher") == {"logits"}
    assert Objective.of(stage).references == ["start", "teacher"]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"objective": {"cros_entropy": 1}}, "did you mean cross_entropy"),
        (
            {"objective": {"cross_entropy": {"smoothing": 1}}},
            "smoothing: there is no such field; its options are weight",
        ),
        ({"objective": {"cross_entropy": {"weight": "much"}}}, "weight: .*valid number"),
        ({"objective": {"kl_answer": {"temperature": 0}}}, "temperature: .*greater than 0"),
        ({"objective": {"hidden": {"reference": "start"}}}, "layer: Field required"),
        ({"objective": {}}, "has no term"),
        ({"objective": {"kl_answer": 1}}, "'teacher'; name its folder"),
        ({"references": {"teacher": "x"}}, "no term reads the reference 'teacher'"),
        ({"objective": {"ascent": {"role": "forget"}}}, "'forget', which is not in roles"),
        (
            {"objective": {"ascent": {"role": "a"}}, "roles": {"a": "all", "b": "all"}},
            "no term reads the role 'b'",
        ),
        ({"objective": {"info_nce": 1}}, "set roles and matched"),
        ({"objective": {"proximal": {"role": "a"}}, "roles": {"a": "all"}}, "takes no role"),
        ({"objective": {"reconstruction": 1}}, "belongs to a connector's own stage one"),
        ({"objective": {"cross_entropy": 1}, "runs": "stage_one"}, "needs the language model"),
    ],
)
def test_what_would_end_in_the_first_step_is_refused(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_stages([Stage(name="tune", **stage)])


@pytest.mark.parametrize(
    "fields",
    [
        {"roles": {"a": "all"}, "data": "media"},
        {"roles": {"a": "nonsense"}},
        {"references": {"start": "folder"}},
        {"runs": "stage_one", "references": {"teacher": "folder"}},
        {"matched": True, "roles": {"a": "all"}},
    ],
)
def test_stages_that_contradict_themselves(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Stage"):
        Stage(**fields)


def test_terms_of_this_process_alone_are_refused_where_others_train() -> None:
    @objective_term("mine")
    def mine(outputs: Any, batch: Any, references: Any, *, power: float = 2.0) -> Tensor:
        return outputs.logits.pow(power).sum()

    stage = Stage(objective={"mine": {"power": 3}})
    check_stages([stage])
    with pytest.raises(UsageError, match=r"this process only.*modalign\.objective_terms"):
        check_stages([stage], everywhere=True)
    with pytest.raises(UsageError, match="'logit'; there are logits"):
        objective_term("other", needs={"logit"})(mine)


THIRD_PARTY = """
from modalign.training.objectives import objective_term

@objective_term("theirs", needs={"hidden:{layer}"})
def theirs(outputs, batch, references, *, layer: int = 1):
    return outputs.hidden(layer).square().mean()
"""
USE = """
from modalign.training.objectives import check_stages
from modalign.training.settings import Stage
check_stages([Stage(objective={"theirs": {"layer": 2}})], everywhere=True)
"""


USE_HERE = "; ".join(USE.strip().splitlines())


def test_a_third_partys_term_comes_by_entry_point(tmp_path: Path) -> None:
    (tmp_path / "their_terms.py").write_text(THIRD_PARTY)
    info = tmp_path / "their_terms-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-terms\nVersion: 1\n")
    for name, code in (("theirs", 0), ("misnamed", 1)):
        points = f"[modalign.objective_terms]\n{name} = their_terms:theirs\n"
        (info / "entry_points.txt").write_text(points)
        program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{USE}"
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        if name == "theirs":  # the same file as a script: found once more by its entry point
            script = tmp_path / "their_terms.py"
            script.write_text(f"{THIRD_PARTY}\nif __name__ == '__main__':\n    {USE_HERE}")
            done = subprocess.run(
                [sys.executable, str(script)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    assert "'misnamed' (their_terms:theirs) registers no objective term" in done.stderr


# ---------------------------------------------------------------------- what is computed


def learner(plan: Plan, objective: dict[str, Any], **fields: Any) -> tuple[Any, ModelLearner]:
    """A session's model in evaluation mode, and the learner of a stage."""
    session = plan.session()
    stage = Stage(objective=objective, **fields)
    session.model.eval()
    return session, ModelLearner(session, stage)


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_rows_are_those_of_the_whole_output(plan: Make, packed: bool) -> None:
    made = plan(settings={"packing": packed, "pack_length": 96})
    session, own = learner(made, {"kl_visual": {"reference": "start"}, "cross_entropy": 1.0})
    batch = own.collate([0, 1, 2, 3, 4, 5])
    inputs = batch.model_inputs() | {"logits_to_keep": 0}
    whole = session.model(**inputs, use_cache=False, output_hidden_states=True)
    needs = ["logits", "media_logits", "pooled:last", "pooled:mean", "pooled:prompt"]
    needs += [
        f"hidden:{layer}:{at}" for layer in (0, 2, -2) for at in ("answers", "media", "tokens")
    ]
    found = read(session.model, session.model, batch, needs)
    media = torch.zeros_like(batch.keep)
    media[batch.input_ids == session.processor.image_token_id] = True
    filled = batch.segments >= 0
    places = {"answers": batch.keep, "media": media, "tokens": filled}
    assert media.sum() == 16 * sum(len(s.media) for s in batch.samples)
    torch.testing.assert_close(found.logits, whole.logits[batch.keep])
    torch.testing.assert_close(found.media_logits, whole.logits[media])
    for layer in (0, 2, -2):
        for at, where in places.items():
            states = whole.hidden_states[layer][
                where
            ]  # transformers' last is after the norm: not -1
            torch.testing.assert_close(found.hidden(layer, at), states)  # type: ignore[arg-type]
    for number in range(6):
        states = whole.hidden_states[-1][batch.segments == number]
        torch.testing.assert_close(found.pooled()[number], states[-1])
        torch.testing.assert_close(found.pooled("mean")[number], states.mean(0))
        first = int(batch.keep[batch.segments == number].nonzero()[0])
        torch.testing.assert_close(found.pooled("prompt")[number], states[first])
    with pytest.raises(UsageError, match="reads layer 9, but the language model has 4"):
        read(session.model, session.model, batch, ["hidden:9:answers"])


@pytest.mark.parametrize(
    ("objective", "fields", "projected", "layers", "pools"),
    [
        ({"cross_entropy": 1.0}, {}, "answers", set(), False),
        ({"kl_visual": {"reference": "start"}}, {}, "media", set(), False),
        ({"cross_entropy": 1.0, "relation": {"reference": "start"}}, {}, "both", set(), False),
        ({"hidden": {"layer": 2, "reference": "start"}}, {}, "none", {1}, False),
        (CONTRAST, PAIRED, "none", set(), True),
        ({"proximal": 1.0}, {}, "none", set(), False),
    ],
)
def test_only_what_a_term_needs_is_computed(
    plan: Make,
    objective: dict[str, Any],
    fields: dict[str, Any],
    projected: str,
    layers: set[int],
    pools: bool,
) -> None:
    session, own = learner(plan(paired=True), objective, **fields)
    llm = session.model.language_model
    seen: dict[str, Any] = {"layers": set()}

    def look(_: Any, given: Any) -> None:
        """Within the forward pass: how many rows are projected, and where hooks sit."""
        seen["rows"] = len(given[0])
        seen["layers"] = {i for i, each in enumerate(decoder_layers(llm)) if each._forward_hooks}
        seen["pools"] = bool(llm.base_model._forward_hooks)

    llm.lm_head.register_forward_pre_hook(look)
    batch = own.collate([0, 1, 2, 3])
    own.outputs(session.model, batch)
    answers = len(batch.targets)
    media = int((batch.input_ids == session.processor.image_token_id).sum())
    expected = {"answers": answers, "media": media, "both": answers + media, "none": 0}
    assert seen == {"rows": expected[projected], "layers": layers, "pools": pools}
    assert not any(each._forward_hooks for each in decoder_layers(llm))


def test_no_position_of_media_is_said_before_step_0(plan: Make) -> None:
    made = plan(method="gated_cross_attention")
    with pytest.raises(UsageError, match=r"gated_cross_attention: stage .* puts none into"):
        learner(made, {"kl_visual": {"reference": "start"}})


# ---------------------------------------------------------------------- parts add up


def first_step(
    plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of the first step, all weights moved a little away from the stage's start."""
    session = plan.session(clip_norm=1e9, **settings)
    found: dict[str, Tensor] = {}
    losses: list[float] = []
    whole = Trainer._sum

    def noted(self: Trainer, value: float) -> float:
        losses.append(value)
        return whole(self, value)

    def moved(self: Trainer) -> None:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.02

    def step(self: Any, *_: Any) -> None:
        own = session.model.named_parameters()
        found.update({name: p.grad.clone() for name, p in own if p.grad is not None})
        raise CutOffError

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        patch.setattr(Trainer, "_restore", moved)
        patch.setattr(Trainer, "_sum", noted)
        with pytest.raises(CutOffError):
            plan.run(folder, session)
    return losses[-2], found


def objectives_of_parts() -> Iterator[Any]:
    start = {"reference": "start"}
    media = {
        "kl_answer": start,
        "kl_visual": start | {"beta": 0.5},
        "relation": start,
        "hidden": start | {"layer": 2, "at": "tokens"},
        "proximal": 0.5,
    }
    roles = {
        "ascent": {"role": "a", "weight": 0.3},
        "npo": {"role": "a"},
        "cross_entropy": {"role": "b"},
        "kl_visual": start | {"role": "b"},
        "hidden": start | {"role": "b", "layer": 1, "at": "media", "distance": "mse"},
    }
    shared = {"roles": PAIRED["roles"]}
    yield pytest.param({"objective": media}, id="references")
    yield pytest.param({"objective": roles, **shared}, id="roles")
    yield pytest.param({"objective": CONTRAST, **PAIRED}, id="pairs")
    mean = {"info_nce": {**CONTRAST["info_nce"], "pooling": "mean"}, "cross_entropy": 1.0}
    yield pytest.param({"objective": mean, **PAIRED}, id="pairs, mean, words")
    prompt = {"info_nce": {**CONTRAST["info_nce"], "pooling": "prompt"}}
    yield pytest.param({"objective": prompt, **PAIRED}, id="pairs, prompts")
    warm = {"info_nce": {**CONTRAST["info_nce"], "learn_temperature": True}}
    yield pytest.param({"objective": warm, **PAIRED}, id="pairs, learnt temperature")
    fused = {"info_nce": {**CONTRAST["info_nce"], "pooling": "prompt", "fusion": True}}
    fused["info_nce/again"] = {**CONTRAST["info_nce"], "weight": 0.1, "fusion": True}
    yield pytest.param({"objective": fused, **PAIRED}, id="pairs, fused, twice")
    options = {"choice": {"right": "a", "wrong": "b"}, "cross_entropy": {"role": "a"}}
    offered = {"roles": PAIRED["roles"], "matched": "all"}
    yield pytest.param({"objective": options, **offered}, id="options")
    yield pytest.param({"objective": {"classify": {"classes": WORDS}}}, id="classes")


@pytest.mark.parametrize("stage", objectives_of_parts())
def test_loss_and_gradient_do_not_depend_on_micro_batches(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: dict[str, Any]
) -> None:
    """Records of no, one and two media, cut in every way, and packed."""
    made = plan(recipe=[stage], settings={"llm": "full", "val_points": 1}, val=0, paired=True)
    loss, whole = first_step(made, tmp_path / "1", monkeypatch)
    assert loss != 0
    assert sum(float(gradient.abs().sum()) for gradient in whole.values()) > 0.1
    for accumulate in (2, 3, 8):
        parts = first_step(made, tmp_path / str(accumulate), monkeypatch, accumulate=accumulate)
        assert parts[0] == pytest.approx(loss, rel=1e-5)
        assert_same(whole, parts[1], tolerance=1e-5)
    packed = {"packing": True, "pack_length": 96, "accumulate": 2}
    rows = first_step(made, tmp_path / "packed", monkeypatch, **packed)
    assert rows[0] == pytest.approx(loss, rel=1e-4)
    assert_same(whole, rows[1], tolerance=1e-4)


def test_a_term_under_a_role_is_the_term_on_those_records(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-entropy of one role, in batches of two, against a training that sees that role alone."""
    terms = {"cross_entropy": {"role": "b"}, "ascent": {"role": "a", "weight": 0}}
    roles = {"roles": PAIRED["roles"], "objective": terms}
    both = plan(recipe=[roles], val=0, paired=True, settings={"batch_size": 16})
    alone = plan(recipe=[{"data": "domain:b"}], val=0, paired=True, settings={"batch_size": 8})
    one = first_step(both, tmp_path / "both", monkeypatch)
    other = first_step(alone, tmp_path / "alone", monkeypatch)
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert_same(one[1], other[1], tolerance=1e-6)


def test_counts_of_roles_add_up(plan: Make) -> None:
    stage = {"ascent": {"role": "a"}, "cross_entropy": {"role": "b"}}
    _, own = learner(plan(paired=True), stage, roles=PAIRED["roles"])
    indices = own.order(10, 0).batch(0)
    batch = own.collate(indices)
    counts = batch.count()
    skills = [own.samples[index].record.skill for index in indices]
    assert [counts[f"num_samples/{role}"] for role in "ab"] == [5, 5]
    assert skills == ["a"] * 5 + ["b"] * 5
    for name in ("num_supervised", "num_media", "num_samples", "num_positions"):
        assert counts[name] == counts[f"{name}/a"] + counts[f"{name}/b"] > 0
    assert set(own.idle().count().values()) == {0.0}


def test_a_stage_without_roles_counts_no_roles(plan: Make) -> None:
    _, own = learner(plan(), {"cross_entropy": 1.0})
    assert not [name for name in own.collate([0, 1]).count() if "/" in name]


def test_text_from_a_file_of_its_own_is_known_before_step_0(plan: Make) -> None:
    session = plan(recipe=[{"data": "media", "mix": {"text": 0.2}}]).session()
    every = session.train_samples
    session.train_samples = [sample for sample in every if sample.media]
    with pytest.raises(UsageError, match="no record without media"):
        preflight_session(session)
    session.text_samples = [sample for sample in every if not sample.media]
    preflight_session(session)
