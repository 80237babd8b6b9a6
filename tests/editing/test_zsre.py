"""zsRE's scores against their definition, one prompt at a time."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from tiny_tokenizers import tokenizer

import tiny
from modalign.editing.benchmarks.scores import (
    EditScores,
    columns_of,
    metrics_of,
    score_edits,
)
from modalign.editing.edits import Edit, Neighbour
from modalign.editing.readers import read_edits
from modalign.numbers.estimate import Estimate

ZSRE = tiny.SHARED / "data" / "editing" / "zsre.json"
EDITS = [
    Edit(
        "1",
        "Danielle",
        "What speaks Danielle?",
        12,
        "New York is home",
        paraphrases=("Danielle speaks?",),
        neighbours=(Neighbour("nq question: who is Al?", "Jean {Gabin}"),),
        protocol="zsre",
    ),
    Edit("2", "Al", "Where is Al?", 9, "München", paraphrases=("Al is where?", "Al?")),
    Edit(
        "3", "Al", "Who is Al?", 7, "東京", neighbours=(Neighbour("Is it?"), Neighbour("?", "no"))
    ),
]


def score_zsre(model: Any, tok: Any, edits: list[Edit]) -> EditScores:
    return score_edits(model, tok, edits, "zsre")


def zsre_metrics(scored: EditScores) -> dict[str, Estimate]:
    return metrics_of(columns_of(scored.rows, "zsre"), "zsre")


def accuracy(model: Any, prompt: str, target: str) -> float:
    """Share of the target's tokens that are argmax, one forward pass per token."""
    tok = tokenizer("bytes")
    ids = tok(prompt)["input_ids"]
    spaced = ord(target[0]) < 0x3000
    hits = []
    for token in tok(" " * spaced + target, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            hits.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token)
        ids = [*ids, token]
    return statistics.mean(hits)


def turned(family: str) -> Any:
    """A model whose favourite token occurs in the targets, so that not all scores are zero."""
    model = tiny.language_model(family, len(tokenizer("bytes")))
    with torch.no_grad():
        for token in tokenizer("bytes")(" New York is home München no", add_special_tokens=False)[
            "input_ids"
        ]:
            model.lm_head.weight[token] *= 3
    return model


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_every_metric_equals_its_definition(family: str) -> None:
    model = turned(family)
    found = zsre_metrics(score_zsre(model, tokenizer("bytes"), EDITS))
    cells = {
        "efficacy": [[(e.prompt, e.target)] for e in EDITS],
        "paraphrase": [[(p, e.target) for p in e.paraphrases] for e in EDITS],
        "specificity": [[(n.prompt, n.answer) for n in e.neighbours if n.answer] for e in EDITS],
    }
    means = {}
    for name, records in cells.items():
        known = [
            statistics.mean(accuracy(model, *pair) for pair in pairs) for pairs in records if pairs
        ]
        means[name] = 100 * statistics.mean(known)
        assert found[name].value == pytest.approx(means[name])
        assert found[name].n == len(known)
    assert found["score"].value == pytest.approx(
        statistics.harmonic_mean(list(means.values())), abs=1e-9
    )
    assert any(means.values())


def test_neighbours_without_an_answer_are_counted() -> None:
    scored = score_zsre(turned("llama"), tokenizer("bytes"), EDITS)
    assert scored.notes == ["neighbours without an answer, not scored: 1"]
    assert [len(row.prompts) for row in scored.rows] == [3, 3, 2]
    last = scored.rows[0].prompts[2]
    assert (last.kind, last.wanted, last.after.target) == ("neighbour", "Jean {Gabin}", None)


@pytest.mark.skipif(not ZSRE.exists(), reason="no shared data beside the repository")
def test_real_records_are_scored() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.SHARED / "models" / "stories260k"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    edits = read_edits(ZSRE, limit=20)
    found = zsre_metrics(score_zsre(model, AutoTokenizer.from_pretrained(folder), edits))
    assert set(found) == {"efficacy", "paraphrase", "specificity", "score"}
    assert all(found[name].n == 20 for name in found)
