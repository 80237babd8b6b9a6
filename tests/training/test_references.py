"""Reference models: what they give, what is refused, what they cost; and what each term trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_work import CutOffError, stop_before
from test_objectives import CONTRAST, PAIRED
from tiny_session import EVERY_STEP, Plan, assert_same, paired, trained
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaForConditionalGeneration,
)

import tiny
from modalign.data.corpus import Corpus, windows
from modalign.data.modalities import modality_names
from modalign.data.supervision import Sample
from modalign.errors import UsageError
from modalign.models.export import save_model
from modalign.models.saved import open_composed
from modalign.training import references
from modalign.training.budget import Budget
from modalign.training.learners import ModelLearner
from modalign.training.outputs import Outputs, TrainBatch
from modalign.training.references import FolderReference
from modalign.training.session import Session
from modalign.training.settings import Stage, TrainSettings
from modalign.training.tuning import Tuning

Make = Callable[..., Plan]
ANSWERS = ["logits"]


@pytest.fixture(scope="session")
def teacher(plan: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Method -> folder of a saved model whose connector is not the student's."""

    def make(method: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"teacher-{method}"
        if not folder.exists():
            session = plan(method=method, seed=7).session()
            save_model(session.model.eval(), session.processor, folder)
        return folder

    return make


def batch_of(session: Session, **fields: Any) -> tuple[ModelLearner, TrainBatch]:
    """A learner whose terms read media positions, and a batch of records of 0, 1 and 2 images."""
    stage = Stage(objective={"kl_visual": {"reference": "start"}}, **fields)
    own = ModelLearner(session, stage)
    return own, own.collate([0, 1, 2, 3, 4])


def loaded(session: Session, folder: Path | str) -> FolderReference:
    stage = Stage(objective={"kl_answer": 1.0}, references={"teacher": str(folder)})
    (found,) = session.references.of(stage, session.model).values()
    assert isinstance(found, FolderReference)
    return found


# ---------------------------------------------------------------------- what they give


@torch.no_grad()
def test_a_llava_gives_what_transformers_makes_of_it(plan: Make, teacher: Any) -> None:
    folder = teacher("mlp")
    session = plan().session()
    _, batch = batch_of(session)
    llava = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    images = [medium for sample in batch.samples for medium in sample.media]
    pixels = session.encoders[0].prepare(images).values
    expected = llava(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        pixel_values=pixels,
    ).logits
    found = loaded(session, folder).outputs(batch, ["logits", "media_logits"])
    torch.testing.assert_close(found.logits, expected[batch.keep], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.media_logits, expected[batch.places], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_rows_stand_in_the_students_order(
    plan: Make, teacher: Any, packed: bool, tmp_path: Path
) -> None:
    """A student's own saved model says at every position what the student says, packed or not."""
    session = plan(method="resampler", settings={"packing": packed, "pack_length": 96}).session()
    save_model(session.model.eval(), session.processor, tmp_path / "own")
    own, batch = batch_of(session)
    needs = ["logits", "media_logits", "hidden:2:tokens", "pooled:last"]
    found = loaded(session, tmp_path / "own").outputs(batch, needs)
    own.needs = frozenset(needs)
    same: Outputs = own.outputs(session.model, batch)
    for one, other in (
        (found.logits, same.logits),
        (found.media_logits, same.media_logits),
        (found.hidden(2, "tokens"), same.hidden(2, "tokens")),
        (found.pooled(), same.pooled()),
    ):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_the_start_is_the_model_before_its_weights_moved(plan: Make) -> None:
    session = plan(settings={"llm": "full"}).session()
    own, batch = batch_of(session)
    stage = Stage(objective={"npo": 1.0})
    start = session.references.of(stage, session.model)["start"]
    session.model.eval()
    before = own.outputs(session.model, batch)
    session.model.train()
    for parameter in session.model.parameters():
        parameter += 0.1 * parameter.requires_grad
    modes = [part.training for part in session.model.modules()]
    found = start.outputs(batch, ["media_logits"])
    assert torch.equal(found.media_logits, before.media_logits)
    assert not torch.equal(own.outputs(session.model, batch).media_logits, before.media_logits)
    assert [part.training for part in session.model.modules()] == modes


@torch.no_grad()
def test_a_picture_that_is_blanked_changes_what_the_teacher_says(plan: Make, teacher: Any) -> None:
    session = plan(method="avgpool_mlp").session()
    _, batch = batch_of(session)
    reference = loaded(session, teacher("mlp"))
    seen = reference.outputs(batch, ANSWERS).logits
    blank = [
        replace(sample, media=tuple(tiny.image(99) for _ in sample.media))
        for sample in batch.samples
    ]
    other = reference.outputs(replace(batch, samples=blank), ANSWERS).logits
    changed = (seen != other).any(-1)
    with_media = torch.tensor([bool(s.media) for s in batch.samples])[batch.owner]
    assert torch.equal(changed, with_media)


@torch.no_grad()
def test_a_language_model_reads_records_without_media(plan: Make, teacher: Any) -> None:
    session = plan(method="text_only:full").session()
    llm = loaded(session, plan().llm)
    own = ModelLearner(session, Stage())
    text = [i for i, sample in enumerate(session.train_samples) if not sample.media][:3]
    batch = own.collate(text)
    plain = AutoModelForCausalLM.from_pretrained(plan().llm).eval()
    expected = plain(batch.input_ids, attention_mask=batch.attention_mask).logits[batch.keep]
    found = llm.outputs(batch, ANSWERS).logits
    torch.testing.assert_close(found, expected[:, : found.shape[1]], atol=1e-4, rtol=1e-4)
    with pytest.raises(
        UsageError, match=r"'teacher' takes text only, but data.jsonl.* holds image"
    ):
        llm.outputs(own.collate([0]), ANSWERS)


# ---------------------------------------------------------------------- what is refused


def test_another_vocabulary_is_refused_before_weights_are_read(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = plan().session()
    other = AutoTokenizer.from_pretrained(plan().llm)
    other.add_tokens(["quokka"])
    other.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr(references, "open_composed", lambda *_: pytest.fail("read weights"))
    with pytest.raises(UsageError, match=r"'teacher' .*another vocabulary.*'quokka'"):
        loaded(session, tmp_path)
    with pytest.raises(UsageError, match=r"the reference teacher, in '.*' cannot be loaded"):
        loaded(session, tmp_path / "nowhere")


@torch.no_grad()
def test_sizes_that_differ_by_padding_are_cut_to_the_common_part(
    plan: Make, tmp_path: Path
) -> None:
    session = plan(method="text_only:full").session()
    model = AutoModelForCausalLM.from_pretrained(plan().llm).eval()
    words = len(AutoTokenizer.from_pretrained(plan().llm))
    model.resize_token_embeddings(words + 40)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(plan().llm).save_pretrained(tmp_path)
    own = ModelLearner(session, Stage())
    text = [i for i, sample in enumerate(session.train_samples) if not sample.media][:2]
    batch = own.collate(text)
    found = loaded(session, tmp_path).outputs(batch, ANSWERS).logits
    whole = model(batch.input_ids, attention_mask=batch.attention_mask).logits[batch.keep]
    assert (
        words - len(modality_names()) <= found.shape[1] <= words
    )  # marks of media are not compared
    torch.testing.assert_close(found, whole[:, : found.shape[1]], atol=1e-4, rtol=1e-4)


def test_positions_of_media_that_differ_are_refused(plan: Make, teacher: Any) -> None:
    session = plan(method="avgpool_mlp").session()
    _, batch = batch_of(session)
    with pytest.raises(UsageError, match=r"'teacher' has 80 media positions, but the model has 20"):
        loaded(session, teacher("mlp")).outputs(batch, ["media_logits"])


# ---------------------------------------------------------------------- what they cost


@torch.no_grad()
def test_a_reference_keeps_its_dtype_and_is_charged_its_forward_pass(
    plan: Make, tmp_path: Path
) -> None:
    session = plan(method="resampler", seed=7).session()
    save_model(session.model.eval().to(torch.bfloat16), session.processor, tmp_path / "half")
    student = plan(settings={"dtype": "float32"}).session()
    _, batch = batch_of(student)
    reference = loaded(student, tmp_path / "half")
    assert {p.dtype for p in reference.model.parameters()} == {torch.bfloat16}
    reference.outputs(batch, ANSWERS)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        assert reference.outputs(batch, ANSWERS).logits.dtype == torch.bfloat16
    flops = reference.flops(batch, ANSWERS)
    assert flops / counter.get_total_flops() == pytest.approx(1, abs=0.1)
    assert reference.flops(batch, ["weights"]) == 0


def test_it_is_loaded_once_and_the_budget_pays_for_it(
    plan: Make, teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    open_composed = references.open_composed

    def counted(name: str, what: str) -> Any:
        opened.append(name)
        return open_composed(name, what)

    monkeypatch.setattr(references, "open_composed", counted)
    folder = str(teacher("mlp"))
    terms = {
        "objective": {"cross_entropy": 1.0, "kl_answer": 0.5},
        "references": {"teacher": folder},
    }
    recipe = [{"name": "first", **terms}, {"name": "last", **terms}]
    spent = {}
    for name, stages in (("plain", [{"name": "first"}, {"name": "last"}]), ("taught", recipe)):
        made = plan(recipe=stages, budget="160samples", factor=None)
        spent[name] = made.run(tmp_path / name).ledger
    assert opened == [folder]  # two stages and three trials
    assert spent["taught"].samples == spent["plain"].samples
    assert spent["taught"].flops > 1.2 * spent["plain"].flops
    by_flops = plan(recipe=recipe, budget=f"{spent['plain'].flops:.0f}flops", factor=None)
    assert by_flops.run(tmp_path / "flops").ledger.samples < spent["plain"].samples


def test_a_resumed_run_has_the_same_start(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stage found is found again: an earlier stage has trained, and a rate was tried."""
    stages = [
        {"name": "first"},
        {"name": "last", "objective": {"npo": {"beta": 1.0}, "proximal": 0.1}},
    ]
    often = {"checkpoint_seconds": EVERY_STEP}
    made = plan(recipe=stages, budget="200samples", factor=None, settings=often)
    whole, _ = trained(made, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_before(7, patch)
        with pytest.raises(CutOffError):
            made.run(tmp_path / "cut")
    assert_same(whole, trained(made, tmp_path / "cut")[0])


# ---------------------------------------------------------------------- what each term trains


def run_stage(
    plan: Make,
    folder: Path,
    objective: dict[str, Any],
    *,
    of: Callable[[list[Sample]], list[Sample]] = paired,
    budget: str = "480samples",
    **fields: Any,
) -> tuple[Session, list[float]]:
    """Train all parts with one objective; the session, and the loss of every step."""
    stage = {"objective": objective, **fields}
    settings = {"llm": "full", "learning_rates": {"connector": 5e-3, "llm": 5e-3}}
    made = plan(recipe=[stage], budget=budget, val=0, settings=settings)
    losses: list[float] = []
    session = made.session(lambda _, step: losses.append(step.loss))
    session.train_samples = of(list(session.train_samples))
    made.run(folder, session)
    return session, losses


@torch.no_grad()
def likelihood(session: Session, samples: list[Sample]) -> float:
    """Mean log-likelihood per supervised token, in nats."""
    batch = session.collator(samples)
    logits = session.model.eval()(**batch.model_inputs(), use_cache=False).logits
    return -float(functional.cross_entropy(logits, batch.targets))


@pytest.mark.parametrize(
    ("term", "options", "factor"),
    [
        ("kl_answer", {"temperature": 2.0}, 0.5),
        ("kl_answer", {"beta": 0.5}, 0.5),
        ("kl_visual", {}, 0.5),
        ("relation", {}, 0.5),
        ("hidden", {"layer": 3}, 0.5),
        ("hidden", {"layer": 1, "reference_layer": 4, "map": True}, 0.7),
        ("hidden", {"layer": 2, "reference_layer": 4, "at": "media", "distance": "mse"}, 0.9),
    ],
)
def test_the_student_comes_nearer_to_its_teacher(
    plan: Make, teacher: Any, tmp_path: Path, term: str, options: dict[str, Any], factor: float
) -> None:
    other = {"references": {"teacher": str(teacher("mlp"))}}
    _, losses = run_stage(plan, tmp_path, {term: options}, **other)
    assert np.mean(losses[-5:]) < factor * np.mean(losses[:2])


def test_a_map_joins_widths_resumes_and_ends_with_its_stage(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide"
    tokenizer = AutoTokenizer.from_pretrained(plan().llm)
    config = AutoConfig.from_pretrained(plan().llm)
    config.hidden_size, config.head_dim = 48, 12
    AutoModelForCausalLM.from_config(config).save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    samples = windows(Corpus("poem", ["one two three four five six"] * 4), tokenizer, 8)
    settings = TrainSettings(llm="full", batch_size=4, device="cpu", checkpoint_seconds=EVERY_STEP)

    def tuning(options: dict[str, Any]) -> Tuning:
        terms = {"hidden": {"layer": 2, **options}, "cross_entropy": 1.0}
        stages = [Stage(objective=terms, references={"teacher": str(wide)}), Stage(name="last")]
        opened = open_composed(plan().llm)
        return Tuning(opened, stages, settings, samples, cache=tmp_path / "cache")

    budget = Budget.parse("48samples")
    with pytest.raises(UsageError, match=r"width 32.*48; map: true"):
        tuning({}).check()
    whole = tuning({"map": True})
    whole.check()
    whole.run(budget, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_before(4, patch)
        with pytest.raises(CutOffError):
            tuning({"map": True}).run(budget, tmp_path / "cut")
    resumed = tuning({"map": True})
    resumed.run(budget, tmp_path / "cut")
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert not [name for name in expected if "maps" in name]
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_weights_stay_near_where_they_started(plan: Make, tmp_path: Path) -> None:
    def distance(name: str, objective: dict[str, Any]) -> float:
        before = plan(settings={"llm": "full"}).session().trained_state()
        session, _ = run_stage(plan, tmp_path / name, objective)
        after = session.trained_state()
        return sum(float((after[n] - before[n]).square().sum()) for n in before)

    free = distance("free", {"cross_entropy": 1.0})
    held = distance("held", {"cross_entropy": 1.0, "proximal": 10.0})
    assert 0 < held < 0.5 * free


def by_answer(samples: list[Sample]) -> list[Sample]:
    """Short answers have the role ``a``, sentences ``b``: what is to be forgotten shares no word."""
    skills = ["ab"[" " in sample.record.answer] for sample in samples]
    records = [replace(s.record, skill=skill) for s, skill in zip(samples, skills, strict=True)]
    return [replace(sample, record=r) for sample, r in zip(samples, records, strict=True)]


@pytest.mark.parametrize(
    "forget",
    [{"ascent": {"role": "a", "limit": 9.0}}, {"npo": {"role": "a", "beta": 0.5}}],
    ids=["ascent", "npo"],
)
def test_one_role_is_forgotten_and_the_other_retained(
    plan: Make, tmp_path: Path, forget: dict[str, Any]
) -> None:
    objective = {**forget, "cross_entropy": {"role": "b"}}
    fresh = plan().session()
    session, _ = run_stage(plan, tmp_path, objective, of=by_answer, roles=PAIRED["roles"])
    gain = {}
    for role in "ab":
        own = [sample for sample in session.train_samples if sample.record.skill == role]
        gain[role] = likelihood(session, own) - likelihood(fresh, own)
    assert gain["a"] < -0.5
    assert gain["b"] > 0.5


def test_anchors_find_their_positives(plan: Make, tmp_path: Path) -> None:
    session, losses = run_stage(plan, tmp_path, CONTRAST, budget="1200samples", **PAIRED)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])
    session.model.eval()
    own = ModelLearner(session, session.method.stages[-1])
    with torch.no_grad():
        outputs = own.outputs(session.model, own.collate(own.order(8, 5).batch(0)))
    vectors = functional.normalize(outputs.pooled(), dim=-1)
    nearest = (vectors[:4] @ vectors[4:].T).argmax(1)
    assert (nearest == torch.arange(4)).float().mean() >= 0.75
