"""CounterFact's scores against their definition, written one prompt at a time."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
import torch
from tiny_tokenizers import tokenizer

import tiny
from modalign.editing.benchmarks.results import harmonic_mean
from modalign.editing.benchmarks.scores import (
    EditScores,
    columns_of,
    metrics_of,
    score_edits,
    sum_metrics,
)
from modalign.editing.edits import Edit, Neighbour
from modalign.editing.readers import read_edits
from modalign.errors import DataError
from modalign.numbers.bootstrap import redrawn_means
from modalign.numbers.estimate import Estimate

EDITABLE = tiny.SHARED / "models" / "editable_gptj"
COUNTERFACT = tiny.SHARED / "data" / "editing" / "counterfact.json"


def score_counterfact(model: Any, tok: Any, edits: list[Edit]) -> EditScores:
    return score_edits(model, tok, edits, "counterfact")


def counterfact_metrics(scored: EditScores) -> dict[str, Estimate]:
    return metrics_of(columns_of(scored.rows, "counterfact"), "counterfact") | sum_metrics(scored)


def edit(number: int, target: str, truth: str | None, **more: Any) -> Edit:
    prompt = f"The mother tongue of Danielle Darrieux {number} is"
    return Edit(str(number), "Danielle Darrieux", prompt, 21, target, truth, **more)


EDITS = [
    edit(
        0,
        "English",
        "French",
        paraphrases=("Danielle speaks", "At home Danielle speaks"),
        neighbours=(Neighbour("Jean speaks", "Tokyo"), Neighbour("Al speaks", "New York")),
    ),
    edit(1, "New York", "Tokyo is", paraphrases=("Her home is",)),
    edit(2, "München", "日本", neighbours=(Neighbour("Édith's home", "English"),)),
    edit(
        3,
        "French",
        "English",
        paraphrases=("Here", "There", "Where"),
        protocol="counterfact",
        neighbours=(Neighbour("Said Édith"),),
    ),
]


def reading(model: Any, prompt: str, target: str) -> tuple[float, float, bool]:
    """(summed log-likelihood, tokens, all argmax) of one answer, on its own."""
    tok = tokenizer("bytes")
    ids = tok(prompt)["input_ids"]
    answer = tok(" " + target, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
    rows = [logits[len(ids) + i - 1] for i in range(len(answer))]
    total = sum(float(row[t]) for row, t in zip(rows, answer, strict=True))
    return total, len(answer), all(int(r.argmax()) == t for r, t in zip(rows, answer, strict=True))


def expected(model: Any, edits: list[Edit]) -> dict[str, float]:
    """Every metric by its definition."""
    per_record: dict[str, list[float]] = {}
    for one in edits:
        kinds: dict[str, list[tuple[str, str, str]]] = {
            "E": [(one.prompt, one.target, one.truth or "")],
            "P": [(prompt, one.target, one.truth or "") for prompt in one.paraphrases],
            "N": [(n.prompt, n.answer or one.truth or "", one.target) for n in one.neighbours],
        }
        for letter, prompts in kinds.items():
            cells: dict[str, list[float]] = {"S": [], "M": [], "A": [], "S_sum": []}
            for prompt, wanted, other in prompts:
                sum_w, n_w, right = reading(model, prompt, wanted)
                sum_o, n_o, _ = reading(model, prompt, other)
                cells["S"].append(float(sum_w / n_w > sum_o / n_o))
                cells["M"].append(math.exp(sum_w / n_w) - math.exp(sum_o / n_o))
                cells["A"].append(float(right))
                cells["S_sum"].append(float(sum_w > sum_o))
            for name, values in cells.items():
                if values:
                    per_record.setdefault(letter + name, []).append(statistics.mean(values))
    means = {name: 100 * statistics.mean(values) for name, values in per_record.items()}
    three = [means[name] for name in ("ES", "PS", "NS")]
    means["S"] = statistics.harmonic_mean(three) if all(three) else 0.0
    return means


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_metric_equals_its_definition(family: str) -> None:
    model = tiny.language_model(family, len(tokenizer("bytes")))
    found = counterfact_metrics(score_counterfact(model, tokenizer("bytes"), EDITS))
    for name, value in expected(model, EDITS).items():
        assert found[name].value == pytest.approx(value, abs=1e-3), name
        assert found[name].low <= found[name].value <= found[name].high
        assert found[name].protocol == "teacher-forced"
    assert {name: found[name].n for name in ("ES", "PS", "NS", "S")} == {
        "ES": 4,
        "PS": 3,
        "NS": 3,
        "S": 4,
    }
    assert found["EM"].unit == "percentage points"


def test_a_tie_is_a_failure_on_both_sides() -> None:
    model = tiny.language_model("llama", len(tokenizer("bytes")))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every answer is as likely as any other
    found = counterfact_metrics(score_counterfact(model, tokenizer("bytes"), EDITS[:1]))
    assert found["ES"].value == found["PS"].value == found["NS"].value == found["S"].value == 0
    assert found["EM"].value == pytest.approx(0)


def test_what_cannot_be_scored_is_said() -> None:
    model = tiny.language_model("llama", len(tokenizer("bytes")))
    with pytest.raises(DataError, match="none in 1 of 1 edits"):
        score_counterfact(model, tokenizer("bytes"), [edit(0, "English", None)])
    neighbours = (Neighbour("Jean speaks"), Neighbour("Al speaks", "English"))
    odd = edit(0, "English", "French", neighbours=neighbours)
    scored = score_counterfact(model, tokenizer("bytes"), [odd])
    assert len(scored.notes) == 2
    found = counterfact_metrics(scored)
    assert "NS" not in found
    assert "S" not in found


def test_rows_tell_both_answers() -> None:
    tok = tokenizer("bytes")
    model = tiny.language_model("llama", len(tok))
    rows = score_counterfact(model, tok, EDITS).rows
    first = rows[0].prompts[0]
    assert first.kind == "rewrite"
    for told, answer in ((first.after.target, "English"), (first.after.truth, "French")):
        total, count, _ = reading(model, EDITS[0].prompt, answer)
        assert told == pytest.approx(math.exp(total / count), rel=1e-4)
    assert [row.wanted for row in rows[0].prompts] == ["English"] * 3 + ["Tokyo", "New York"]
    assert [len(row.prompts) for row in rows] == [5, 2, 2, 5]


def test_harmonic_mean_and_intervals() -> None:
    assert harmonic_mean(np.array([0.5, 0.0]), np.array([1.0, 1.0])) == pytest.approx([2 / 3, 0])
    nan = float("nan")
    values = {"a": np.array([1.0, 0.0, nan, 1.0]), "b": np.array([nan, nan, 0.5, nan])}
    drawn = redrawn_means(values, 500, seed=3)
    assert drawn["a"][0] == pytest.approx(2 / 3)
    assert drawn["b"][0] == 0.5
    assert np.isnan(drawn["b"]).any()  # the one record with a value is not always drawn
    again = redrawn_means(values, 500, seed=3)
    assert np.array_equal(drawn["a"], again["a"], equal_nan=True)
    known = np.random.default_rng(0).random(400) < 0.7
    wide = redrawn_means({"a": known.astype(float)}, 2000, seed=0)["a"][1:]
    assert wide.std() == pytest.approx(math.sqrt(0.7 * 0.3 / 400), rel=0.1)


def invented_edits() -> list[Edit]:
    """Counterfactual edits of facts that the editable model knows, as in the reference results."""
    import json

    told = json.loads((EDITABLE / "facts.json").read_text())
    facts, relations = told["facts"], told["rels"]
    edits = []
    for number, (subject, relation, truth) in enumerate(facts[::16]):
        phrasings, objects = relations[relation]
        target = objects[(objects.index(truth) + 1) % len(objects)]
        prompts = [phrasing.replace("{}", subject) for phrasing in phrasings]
        same = [s for s, r, o in facts if (r, o) == (relation, truth) and s != subject][:5]
        neighbours = tuple(Neighbour(phrasings[0].replace("{}", s), truth) for s in same)
        at = phrasings[0].index("{}")
        edits.append(
            Edit(
                str(number), subject, prompts[0], at, target, truth, tuple(prompts[1:]), neighbours
            )
        )
    return edits


@pytest.mark.skipif(not EDITABLE.exists(), reason="no shared models beside the repository")
def test_the_unedited_model_says_the_truth_everywhere() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(EDITABLE).eval()
    tok = AutoTokenizer.from_pretrained(EDITABLE)
    found = counterfact_metrics(score_counterfact(model, tok, invented_edits()))
    scores = {name: found[name].value for name in ("S", "ES", "PS", "NS", "EA", "PA")}
    assert scores == {"S": 0, "ES": 0, "PS": 0, "NS": 100, "EA": 0, "PA": 0}
    assert found["NA"].value > 95


@pytest.mark.skipif(not COUNTERFACT.exists(), reason="no shared data beside the repository")
def test_real_records_are_scored() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.SHARED / "models" / "stories260k"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    edits = read_edits(COUNTERFACT, conflicting="first", limit=20)
    scored = score_counterfact(model, AutoTokenizer.from_pretrained(folder), edits)
    assert len(scored.prompts) == 60
    found = counterfact_metrics(scored)
    assert found["ES"].n == found["PS"].n == found["NS"].n == 20
