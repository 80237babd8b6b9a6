"""The causal trace against a slow plain one, and proposals for models that can and cannot be edited."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench.editable
import bench.invented
import numpy as np
import plain
import pytest
import torch
from bench.editable import SIZES, Editable, Family, load, make, save
from typer.testing import CliRunner

from modalign.cli import app
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.layers.facts import (
    Fact,
    Known,
    KnownFact,
    NoneKnownError,
    known_facts,
    locate,
    read_facts,
)
from modalign.editing.layers.pages import suggestion_report
from modalign.editing.layers.proposal import Suggestion, propose, suggest
from modalign.editing.layers.steering import Reach, other_answers
from modalign.editing.layers.tracing import (
    KINDS,
    PLACES,
    Trace,
    TraceSettings,
    embedding_deviation,
    subject_noise,
    trace,
)
from modalign.errors import DataError
from tiny_editable import LAYERS

FAST = TraceSettings(samples=4, rows=100)
SHARED = Path(__file__).parents[3] / "shared/models/editable_gptj"


def facts_of(made: Editable, relations: int = 9) -> list[Fact]:
    """Every fact in its first phrasing."""
    found = []
    for fact in made.world.facts:
        phrasing = made.world.relations[fact.relation].phrasings[0]
        at = phrasing.index("{}")
        found.append(Fact(fact.subject, phrasing.replace("{}", fact.subject), at, fact.answer))
    return found


# ---------------------------------------------------------------- the trace


def plain_run(
    model: Any,
    probe: KnownFact,
    noise: torch.Tensor | None,
    put_back: dict[Any, torch.Tensor],
    at: int,
) -> float:
    """The attribute's probability in one row, with noise at the subject and states put back at ``at``."""

    def embedded(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        if noise is not None:
            changed[0, probe.first : probe.last + 1] += noise
        return changed

    def restoring(state: torch.Tensor) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.clone()
            hidden[0, at] = state[at]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    with ExitStack() as stack, torch.no_grad():
        handle = model.get_input_embeddings().register_forward_hook(embedded)
        stack.callback(handle.remove)
        for (kind, layer), state in put_back.items():
            module = plain.module_at(model, layer, kind)
            stack.callback(module.register_forward_hook(restoring(state)).remove)
        ids = torch.tensor([probe.ids + probe.answer[:-1]])
        log_probs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    spoken = log_probs[len(probe.ids) - 1 :]
    return float(torch.stack([spoken[i, t] for i, t in enumerate(probe.answer)]).sum().exp())


def plain_states(model: Any, probe: KnownFact) -> dict[Any, torch.Tensor]:
    """Every state of the clean run, (T, D) each."""
    with ExitStack() as stack, torch.no_grad():
        seen = {
            (kind, layer): stack.enter_context(
                plain.recording(plain.module_at(model, layer, kind), "output")
            )
            for kind in KINDS
            for layer in range(len(plain.layers_of(model)))
        }
        model(input_ids=torch.tensor([probe.ids + probe.answer[:-1]]), use_cache=False)
    return {key: value[0][0] for key, value in seen.items()}


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_trace_equals_the_plain_one(editable: Callable[[Family], Editable], family: Family) -> None:
    made = editable(family)
    spec = ModelSpec.detect(made.model)
    probes = known_facts(spec, made.tokenizer, facts_of(made), wanted=2).probes
    settings = TraceSettings(samples=2, rows=7, window=3 / spec.depth)
    found = trace(spec, probes, settings)
    deviation = 3 * float(made.model.get_input_embeddings().weight.detach().std())
    assert 3 * embedding_deviation(spec, probes) == pytest.approx(deviation, rel=1e-6)
    assert found.window == 3
    for number, probe in enumerate(probes):
        noise = subject_noise(probe, settings, number, spec.width) * deviation
        states = plain_states(made.model, probe)
        places = {"first": probe.first, "subject": probe.last, "last": len(probe.ids) - 1}
        assert found.clean[number] == pytest.approx(
            plain_run(made.model, probe, None, {}, 0), abs=1e-5
        )
        corrupted = np.mean([plain_run(made.model, probe, each, {}, 0) for each in noise])
        assert found.corrupted[number] == pytest.approx(corrupted, abs=1e-5)
        for kind in KINDS:
            for place in PLACES:
                for layer in range(spec.depth):
                    window = [layer] if kind == "block" else range(max(0, layer - 1), layer + 2)
                    back = {(kind, i): states[kind, i] for i in window if i < spec.depth}
                    expected = np.mean(
                        [plain_run(made.model, probe, e, back, places[place]) for e in noise]
                    )
                    got = found.restored[kind, place][number, layer]
                    assert got == pytest.approx(expected, abs=1e-5), (kind, place, layer)


def test_trace_is_the_same_for_any_batch_size_and_leaves_the_model_alone(
    editable: Callable[[Family], Editable],
) -> None:
    made = editable("llama")
    spec = ModelSpec.detect(made.model)
    probes = known_facts(spec, made.tokenizer, facts_of(made), wanted=1).probes
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    one = trace(spec, probes, TraceSettings(samples=3, rows=5))
    other = trace(spec, probes, TraceSettings(samples=3, rows=500))
    for key, value in one.restored.items():
        np.testing.assert_allclose(value, other.restored[key], atol=1e-6)
    assert all(torch.equal(before[n], v) for n, v in made.model.state_dict().items())
    assert not any(module._forward_hooks for module in made.model.modules())


def test_windows_are_those_of_the_released_code() -> None:
    settings = TraceSettings(window=10 / 48)
    assert settings.layers(20, 48) == range(15, 25)
    assert settings.layers(2, 48) == range(0, 7)
    assert settings.layers(47, 48) == range(42, 48)
    assert settings.layers(1, 4) == range(1, 2)


# ---------------------------------------------------------------- the proposal


@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_proposes_the_layers_that_can_be_edited(
    editable: Callable[[Family], Editable], family: Family
) -> None:
    made = editable(family)
    found = suggest(made.model, made.tokenizer, facts_of(made), probes=12, tracing=FAST)
    assert found.verdict == "layers"
    assert set(found.layers) <= set(LAYERS)
    assert found.z_layer == max(LAYERS)
    assert f"--set layers=[{','.join(map(str, found.layers))}]" in found.sentences[0]
    again = suggest(made.model, made.tokenizer, facts_of(made), probes=12, tracing=FAST)
    assert again == found


@pytest.fixture
def recalling_late(request: pytest.FixtureRequest) -> Editable:
    """A model trained on the same facts without the masks: it looks a fact up at the last token."""
    recipe = replace(SIZES["small"], masked=0.0)
    sources = [Path(str(each.__file__)).read_bytes() for each in (bench.editable, bench.invented)]
    key = hashlib.sha256(b"".join(sources)).hexdigest()[:16]
    cache = request.config.cache
    assert cache is not None
    folder = cache.mkdir("editable") / f"llama-unmasked-{key}"
    if not folder.exists():
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
        save(make("llama", recipe), recipe, unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    return load(folder)


def test_says_no_to_a_model_that_recalls_at_its_last_token(recalling_late: Editable) -> None:
    made = recalling_late
    found = suggest(made.model, made.tokenizer, facts_of(made), probes=12, tracing=FAST)
    assert found.verdict == "last token"
    assert found.layers == []
    assert found.z_layer is None
    assert "recalls at its last token" in found.sentences[0]
    assert "No layer" in suggestion_report(found).html()


def test_a_model_that_knows_nothing_is_told_so(editable: Callable[[Family], Editable]) -> None:
    made = editable("gptj")
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter.normal_(std=0.02)
    with pytest.raises(NoneKnownError, match=r"knows none of the \d+ facts .*; after .* it says"):
        suggest(made.model, made.tokenizer, facts_of(made))


def test_unknown_facts_are_left_out_and_counted(editable: Callable[[Family], Editable]) -> None:
    made = editable("gptj")
    right = facts_of(made)[:20]
    wrong = [replace(fact, attribute="nobody") for fact in facts_of(made)[20:25]]
    known = known_facts(ModelSpec.detect(made.model), made.tokenizer, [*right, *wrong], wanted=99)
    assert (len(known.probes), known.asked, known.unknown) == (20, 25, 5)
    assert known.describe() == (
        "20 of the 25 facts asked for are known; left out: 5 are not the model's most likely answer"
    )
    few = known_facts(ModelSpec.detect(made.model), made.tokenizer, [*right, *wrong], wanted=3)
    assert len(few.probes) == 3
    assert few.asked == 3 + few.unknown


def measured(carried: list[float], reached: list[float], n: int = 20) -> Suggestion:
    """A proposal for made-up means, equal for all facts up to a little noise."""
    rng = np.random.default_rng(0)
    depth = len(carried)
    clean, corrupted = np.full(n, 0.9), np.full(n, 0.3) + rng.normal(0, 0.01, n)
    effect = (clean - corrupted)[:, None]
    grids = {
        (kind, place): np.tile(corrupted[:, None], depth) for kind in KINDS for place in PLACES
    }
    grids["block", "subject"] = corrupted[:, None] + effect * np.array(carried)
    vectors = np.tile(np.array(reached), (n, 1)) + rng.normal(0, 0.01, (n, depth))
    probe = KnownFact(Fact("s", "s is", 0, "a"), (1, 2), 0, 0, (3,))
    known = Known((probe,) * n, n, 0, n)
    return propose("a model", known, Trace(clean, corrupted, grids, 1), Reach(vectors, ("b",) * n))


def test_the_rule() -> None:
    assert measured([0.9] * 4 + [0.1] * 2, [0.9] * 4 + [0.1] * 2).layers == [0, 1, 2, 3]
    # The value is put at the last layer that is not clearly worse than the best one.
    assert measured([0.9] * 6, [0.9, 0.9, 0.88, 0.7, 0.6, 0.1]).layers == [0, 1, 2]
    # No more layers than the published methods write.
    assert measured([0.9] * 12, [0.9] * 12).layers == list(range(6, 12))
    # Contiguous.
    assert measured([0.9, 0.1, 0.9, 0.9], [0.9] * 4).layers == [2, 3]
    assert measured([0.05] * 4, [0.9, 0.2, 0.1, 0.0]).verdict == "last token"
    assert measured([0.9] * 4, [0.1] * 4).verdict == "no vector"


def test_wide_intervals_leave_it_undecided() -> None:
    rng = np.random.default_rng(3)
    n = 6
    clean, corrupted = np.full(n, 0.8), np.full(n, 0.5)
    grids = {(kind, place): np.full((n, 2), 0.5) for kind in KINDS for place in PLACES}
    grids["block", "subject"][:2] = 0.8  # two of six facts, wholly
    reach = Reach(
        np.repeat(rng.permutation([0.9, 0.9, 0.9, 0.1, 0.1, 0.1])[:, None], 2, 1), ("b",) * n
    )
    probe = KnownFact(Fact("s", "s is", 0, "a"), (1, 2), 0, 0, (3,))
    found = propose("m", Known((probe,) * n, 600, 0, 600), Trace(clean, corrupted, grids, 1), reach)
    assert found.verdict == "undecided"
    assert found.layers == []
    assert "give more facts" in found.sentences[0]
    assert "Undecided" in suggestion_report(found).html()


def test_noise_that_changes_nothing_is_told() -> None:
    n = 10
    grids = {(kind, place): np.full((n, 2), 0.9) for kind in KINDS for place in PLACES}
    probe = KnownFact(Fact("s", "s is", 0, "a"), (1, 2), 0, 0, (3,))
    flat = Trace(np.full(n, 0.9), np.full(n, 0.9), grids, 1)
    found = propose(
        "m", Known((probe,) * n, n, 0, n), flat, Reach(np.full((n, 2), 0.9), ("b",) * n)
    )
    assert found.verdict == "subject not used"
    assert found.layers == []
    assert "does not use the subject" in found.sentences[0]
    json.loads(found.model_dump_json())


def test_few_facts_are_said(editable: Callable[[Family], Editable]) -> None:
    made = editable("llama")
    found = suggest(made.model, made.tokenizer, facts_of(made), probes=3, tracing=FAST)
    assert any(sentence.startswith("Only 3 facts") for sentence in found.sentences)


# ---------------------------------------------------------------- files and places


def test_reads_facts_of_every_form(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    rows: list[dict[str, Any]] = [
        {"subject": "Ada", "template": "{} lives in", "attribute": "Paris", "known_id": 3},
        {"subject": "Ada", "prompt": "The job of Ada is", "template": "x {}", "attribute": "pilot"},
        {"subject": "Ada", "prompt": "{} speaks", "truth": "French", "target": "Dutch"},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    first, second, third = read_facts(file)
    assert (first.prompt, first.subject_at, first.attribute) == ("Ada lives in", 0, "Paris")
    assert (second.prompt, second.subject_at) == ("The job of Ada is", 11)
    assert (third.attribute, third.other, third.relation) == ("French", "Dutch", "{} speaks")


def test_reads_the_truths_of_edits(tmp_path: Path) -> None:
    file = tmp_path / "edits.json"
    edit = {"subject": "Ada", "prompt": "Ada lives in", "target": "Rome", "truth": "Paris"}
    file.write_text(json.dumps([edit]))
    (fact,) = read_facts(file)
    assert (fact.attribute, fact.other) == ("Paris", "Rome")
    file.write_text(json.dumps([{key: edit[key] for key in ("subject", "prompt", "target")}]))
    with pytest.raises(DataError, match="truth to ask for"):
        read_facts(file)


def test_broken_facts_are_named_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    rows = [{"subject": "Ada", "prompt": "Bob is", "attribute": "x"}, {"attribute": "y"}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError) as caught:
        read_facts(file)
    assert f"{file}:1: the subject 'Ada' is not in 'Bob is'" in str(caught.value)
    assert f"{file}:2: subject is missing" in str(caught.value)


def test_first_and_last_token_of_the_subject(editable: Callable[[Family], Editable]) -> None:
    made = editable("gptj")
    fact = facts_of(made)[0]
    shifted = Fact(fact.subject, f"Now {fact.subject}, it is", 4, fact.attribute)
    probe = locate(made.tokenizer, shifted)
    assert probe is not None
    text = made.tokenizer.decode(list(probe.ids[probe.first : probe.last + 1])).strip()
    assert text == fact.subject


def test_other_answers_come_from_the_same_relation(editable: Callable[[Family], Editable]) -> None:
    made = editable("gptj")
    facts = facts_of(made)
    probes = [probe for fact in facts[:9] if (probe := locate(made.tokenizer, fact))]
    for probe, other in zip(probes, other_answers(made.tokenizer, probes, facts), strict=True):
        assert other != probe.fact.attribute
        same = {fact.attribute for fact in facts if fact.relation == probe.fact.relation}
        assert other in same
    with pytest.raises(DataError, match="every fact has the answer"):
        other_answers(made.tokenizer, probes[:1], [probes[0].fact])


# ---------------------------------------------------------------- the verb


def test_the_verb(editable: Callable[[Family], Editable], tmp_path: Path) -> None:
    made = editable("llama")
    model, file, page = tmp_path / "model", tmp_path / "facts.jsonl", tmp_path / "pages/layers.html"
    made.model.save_pretrained(model)
    made.tokenizer.save_pretrained(model)
    rows = [
        {"subject": f.subject, "prompt": f.prompt, "attribute": f.attribute} for f in facts_of(made)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    options = ["--facts", "8", "--samples", "3", "--out", str(page), "--json"]
    result = CliRunner().invoke(app, ["edit", "suggest", str(model), str(file), *options])
    assert result.exit_code == 0, result.output
    found = Suggestion.model_validate_json(result.stdout)
    assert set(found.layers) & set(LAYERS)
    assert page.read_text() == suggestion_report(found).html()
    assert page.with_suffix(".md").read_text() == suggestion_report(found).markdown()
    assert json.loads(page.with_suffix(".json").read_text()) == json.loads(result.stdout)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared model is not here")
def test_the_shared_model() -> None:
    made = load_shared()
    found = suggest(made[0], made[1], made[2], probes=12, tracing=FAST)
    assert found.layers == [0, 1, 2]


def load_shared() -> tuple[Any, Any, list[Fact]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = json.loads((SHARED / "facts.json").read_text())
    facts = []
    for subject, relation, answer in read["facts"]:
        phrasing = read["rels"][relation][0][0]
        at = phrasing.index("{}")
        facts.append(Fact(subject, phrasing.replace("{}", subject), at, answer))
    model = AutoModelForCausalLM.from_pretrained(SHARED).eval()
    return model, AutoTokenizer.from_pretrained(SHARED), facts
