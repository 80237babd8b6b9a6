"""Fluency, consistency and drift against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_tokenizers import tokenizer

import tiny
from modalign.editing.benchmarks.drift import drift
from modalign.editing.benchmarks.texts import (
    consistency,
    fluency,
    ngram_entropy,
    text_metrics,
    words,
    write_texts,
)
from modalign.editing.edits import Edit
from modalign.errors import DataError

TEXTS = [
    "The mother tongue of Danielle is English.",
    "Jean {Gabin}'s home, said Jean",
    "a",
    "東京は",
]


def test_words() -> None:
    assert words("It's {0}, 日本 über_all!") == [
        *("It", "'", "s", "{", "0", "}", ",", "日", "本", "über_all", "!")
    ]


def test_fluency_is_the_entropy_of_two_and_three_words() -> None:
    text = "a b a b a c"
    two = [2 / 5, 2 / 5, 1 / 5]  # ab ba ab ba ac
    three = [2 / 4, 1 / 4, 1 / 4]  # aba bab aba bac
    h2, h3 = (-sum(p * math.log2(p) for p in shares) for shares in (two, three))
    assert ngram_entropy(text, 2) == pytest.approx(h2)
    assert fluency([text]) == pytest.approx((2 / 3 * h2 + 4 / 3 * h3) / 2)
    assert fluency(["la la la la la"]) == 0
    assert ngram_entropy("one", 2) == 0


def test_consistency_is_a_cosine_of_weighted_words() -> None:
    references = [["tea is hot", "green tea"], ["ale is cold"], []]
    same, other, none = consistency([["tea is hot green tea"], ["tea hot"], ["tea"]], references)
    assert same == pytest.approx(1)
    assert other == 0
    assert math.isnan(none)
    assert all(math.isnan(value) for value in consistency([["a"]], [[]]))


def test_texts_are_written_once_per_prompt() -> None:
    tok = tokenizer("pieces")
    model = tiny.language_model("llama", len(tok))
    edits = [
        Edit(
            "1",
            "Al",
            "Al is",
            0,
            "Jean",
            generation_prompts=("Al said", "Al's home"),
            reference_texts=("Jean said home",),
        ),
        Edit("2", "Al", "Al is", 0, "Jean"),
    ]
    texts = write_texts(model, tok, edits, seed=4)
    assert [len(own) for own in texts] == [2, 0]
    assert texts[0][0].strip().startswith("Al said")
    assert texts == write_texts(model, tok, edits, seed=4)
    metrics = text_metrics(edits, texts)
    assert metrics["GE"].value == pytest.approx(100 * fluency(texts[0]))
    assert metrics["GE"].n == metrics["RS"].n == 1
    assert metrics["GE"].unit == "bits x 100"


def plain_drift(edited: Any, base: Any, window: int) -> dict[str, float]:
    """Token by token, one window at a time."""
    tok = tokenizer("bytes")
    kl = nll = then = same = count = 0.0
    for text in TEXTS:
        ids = tok(text)["input_ids"]
        for start in range(0, len(ids), window):
            part = ids[start : start + window]
            if len(part) < 2:
                continue
            with torch.no_grad():
                p = edited(torch.tensor([part])).logits[0].double().log_softmax(-1)
                q = base(torch.tensor([part])).logits[0].double().log_softmax(-1)
            for place, token in enumerate(part[1:]):
                kl += float((p[place].exp() * (p[place] - q[place])).sum())
                same += int(p[place].argmax()) == int(q[place].argmax())
                nll -= float(p[place, token])
                then -= float(q[place, token])
                count += 1
    return {
        "drift_kl": kl / count,
        "drift_agreement": 100 * same / count,
        "perplexity": math.exp(nll / count),
        "perplexity_before": math.exp(then / count),
    }


@pytest.mark.parametrize("window", [256, 5])
def test_drift_equals_its_definition(window: int) -> None:
    tok = tokenizer("bytes")
    base = tiny.language_model("gpt2", len(tok))
    edited = tiny.language_model("gpt2", len(tok))
    with torch.no_grad():
        edited.transformer.h[1].mlp.c_proj.weight.mul_(1.5)
    found = drift(edited, tok, TEXTS, base=base, window=window)
    for name, value in plain_drift(edited, base, window).items():
        assert found[name].value == pytest.approx(value, rel=1e-4), name
        assert found[name].low <= found[name].value <= found[name].high
    assert found["drift_kl"].value > 1e-3
    assert found["drift_kl"].unit == "nats per token"


def test_no_drift_from_itself_and_perplexity_alone() -> None:
    tok = tokenizer("bytes")
    model = tiny.language_model("llama", len(tok))
    found = drift(model, tok, TEXTS, base=model)
    assert found["drift_kl"].value == 0
    assert found["drift_agreement"].value == 100
    alone = drift(model, tok, TEXTS)
    assert set(alone) == {"perplexity"}
    assert alone["perplexity"] == found["perplexity"] == found["perplexity_before"]
    few = drift(model, tok, TEXTS, tokens=6)
    assert few["perplexity"].n == 1
    with pytest.raises(DataError, match="fewer than two tokens"):
        drift(model, tok, ["", "a"])
