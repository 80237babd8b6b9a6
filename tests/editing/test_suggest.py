"""Settings measured on models that can be edited, the probes they are tried on, and files of facts."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench.editable import Editable, Family
from bench.invented import counterfactuals

from modalign.editing.benchmarks.scoring import Question, score
from modalign.editing.engine.asking import Asking
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.layers.facts import Fact, known_facts, locate, read_facts
from modalign.editing.layers.probes import make_probes, of_edits
from modalign.editing.layers.search import _Search, places
from modalign.editing.layers.trials import Trial
from modalign.errors import DataError
from modalign.patches import load_patch
from tiny_editable import LAYERS

Cli = Callable[..., tuple[int, str, str]]


def facts_of(made: Editable, relations: int = 9) -> list[Fact]:
    """Every fact in its first phrasing."""
    found = []
    for fact in made.world.facts:
        phrasing = made.world.relations[fact.relation].phrasings[0]
        at = phrasing.index("{}")
        found.append(Fact(fact.subject, phrasing.replace("{}", fact.subject), at, fact.answer))
    return found


# ---------------------------------------------------------------- probes


def test_probes_are_facts_the_model_knows_and_nobody_edits(
    editable: Callable[[Family], Editable],
) -> None:
    made = editable("gptj")
    edits = counterfactuals(made.world, 5, seed=1)
    spec, asking = ModelSpec.detect(made.model), Asking(made.tokenizer, "plain")
    probes = make_probes(spec, asking, of_edits(edits), edits, wanted=6, seed=0)
    assert len(probes.edits) == 6
    assert probes.own == 0
    edited = {edit.subject for edit in edits}
    for probe in probes.edits:
        assert probe.subject not in edited
        assert probe.target != probe.truth
        assert all(probe.subject in wording for wording in probe.paraphrases)
        assert probe.neighbours
        assert all(probe.subject not in each.prompt for each in probe.neighbours)
        questions = [Question(probe.prompt, (probe.truth or "",))]
        questions += [Question(n.prompt, (n.answer or "",)) for n in probe.neighbours]
        assert all(found.right for (found,) in score(made.model, asking, questions))


def test_without_known_facts_the_model_says_its_own(editable: Callable[[Family], Editable]) -> None:
    made = editable("gptj")
    edits = [
        replace(edit, neighbours=(), truth="nobody")
        for edit in counterfactuals(made.world, 2, seed=1)
    ]
    spec, asking = ModelSpec.detect(made.model), Asking(made.tokenizer, "plain")
    probes = make_probes(spec, asking, of_edits(edits), edits, wanted=6, seed=0)
    assert len(probes.edits) == probes.own == 2
    truths = {(f.subject, f.relation): f.answer for f in made.world.facts}
    assert {probe.truth for probe in probes.edits} <= set(truths.values())
    pictures = [replace(edit, subject_at=None) for edit in edits]
    with pytest.raises(DataError, match="nothing to try settings on"):
        make_probes(spec, asking, [], pictures, wanted=6, seed=0)


def test_the_places_tried_are_few_in_a_deep_model() -> None:
    assert places(6) == [0, 1, 2, 3, 4, 5]
    assert places(30) == [0, 2, 5, 8, 11, 14]
    assert len(places(80)) == 6


@pytest.mark.parametrize("peak", [30.0, 1.0, 0.3, 0.003])
def test_a_strength_is_found_within_half_a_decade_also_outside_the_first_grid(peak: float) -> None:
    """Scores fall by ten for every factor of ten from the peak."""

    def run(settings: dict[str, Any], probes: int | None = None) -> Trial:
        score = 90 - 10 * abs(math.log10(settings["per_width"] / peak))
        return Trial(settings=settings, probes=8, score=score)

    bench: Any = SimpleNamespace(
        run=run, fixed={}, spec=SimpleNamespace(depth=6), kind=SimpleNamespace(name="memit")
    )
    search = _Search(bench, lambda name, done, total: None)
    found = search._climb_strength(run({"per_width": 0.1})).settings["per_width"]
    assert (
        abs(math.log10(found / peak)) <= 0.26
    )  # half of a step of a half decade, and its rounding
    bench.fixed = {"per_width": 0.1}
    search.strengths = ({"per_width": 0.1},)
    assert search._climb_strength(run({"per_width": 0.1})).settings["per_width"] == 0.1


# ---------------------------------------------------------------- the verbs


@pytest.fixture
def files(editable: Callable[[Family], Editable], tmp_path: Path) -> Path:
    """A Llama-shaped model, facts, edits, text."""
    made = editable("llama")
    made.model.save_pretrained(tmp_path / "model")
    made.tokenizer.save_pretrained(tmp_path / "model")
    facts = [
        {"subject": f.subject, "prompt": f.prompt, "attribute": f.attribute} for f in facts_of(made)
    ]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    edits = [
        {
            "id": edit.id,
            "subject": edit.subject,
            "prompt": edit.relation,
            "target": edit.target,
            "truth": edit.truth,
            "paraphrases": list(edit.paraphrases),
            "neighbours": [{"prompt": n.prompt, "answer": n.answer} for n in edit.neighbours],
        }
        for edit in counterfactuals(made.world, 5, seed=1)
    ]
    (tmp_path / "edits.json").write_text(json.dumps(edits))
    return tmp_path


def test_run_measures_its_settings_and_writes_edits_that_hold(cli: Cli, files: Path) -> None:
    """Reported: with the published settings nearly nothing held on models that nobody tuned for."""
    weights = (files / "model" / "model.safetensors").read_bytes()
    out = files / "fix.safetensors"
    given = ["edit", "run", files / "model", files / "edits.json", "-o", out]
    cache = ["--cache", files / "cache"]
    code, _, err = cli(*given, *cache, "--strict")
    assert code == 0, err
    assert "probe facts" in err
    assert (files / "model" / "model.safetensors").read_bytes() == weights
    header = load_patch(out).header
    assert header.method == "memit"
    assert set(header.settings["layers"]) & set(LAYERS)
    asked = ["eval", files / "model", "--task", "counterfact", "--edits", files / "edits.json"]
    code, told, err = cli(*asked, "--patch", out, "--no-generate", "--json")
    assert code == 0, err
    assert json.loads(told)["metrics"]["S"]["value"] > 85
    kept = sorted((files / "cache" / "edit-settings").iterdir())
    assert len(kept) == 1
    code, _, err = cli(*given, *cache, "--overwrite", "--set", "lr=0.1")
    assert code == 0, err
    assert load_patch(out).header.settings["lr"] == 0.1
    assert len(list((files / "cache" / "edit-settings").iterdir())) == 2


def test_what_suggest_prints_is_a_command_that_works(
    cli: Cli, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    page = files / "page.html"
    given = ["edit", "suggest", "model", "edits.json", "--cache", "cache"]
    code, out, err = cli(*given, "--out", page)
    assert code == 0, err
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("modalign")))
    assert page.exists()
    code, _, err = cli(*command[1:], "--cache", "cache", "--strict")
    assert code == 0, err
    written = load_patch(files / "fix.safetensors").header
    code, _, err = cli(
        "edit", "run", "model", "edits.json", "-o", "own.safetensors", "--cache", "cache"
    )
    assert code == 0, err
    assert load_patch(files / "own.safetensors").header.settings == written.settings


def test_suggest_reads_facts_and_says_all_in_json(cli: Cli, files: Path) -> None:
    page = files / "pages/settings.html"
    given = ["edit", "suggest", files / "model", files / "facts.jsonl", "--method", "rome"]
    code, out, err = cli(*given, "--set", "layers=[1]", "--out", page, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["layers"] == [1]
    assert found["best"]["score"] > 20
    assert json.loads(page.with_suffix(".json").read_text()) == found
    code, _, err = cli("edit", "suggest", files / "model", files / "facts.jsonl", "--method", "ft")
    assert code == 2
    assert "memit" in err


# ---------------------------------------------------------------- known facts


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
