"""Batched decoding with a cache against one prompt at a time without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_tokenizers import tokenizer

import tiny
from modalign.chat_templates import end_ids
from modalign.editing.benchmarks.decoding import decode
from modalign.editing.benchmarks.free_generation import exact_metrics, generate_answers, judge
from modalign.editing.benchmarks.rows import Answer, EditRow, Kind, PromptRow
from modalign.editing.benchmarks.scores import columns_of, metrics_of

PROMPTS = [[5], [6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]


def greedily(model: Any, prompt: list[int], limit: int, ends: frozenset[int]) -> tuple[int, ...]:
    """Everything read again for every token, no padding, no cache."""
    made: list[int] = []
    while len(made) < limit and not (made and made[-1] in ends):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + made]), use_cache=False).logits
        made.append(int(logits[0, -1].argmax()))
    return tuple(made)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_equals_decoding_without_a_cache(family: str) -> None:
    model = tiny.language_model(family, 60)
    limits = [7, 3, 5, 7]
    plain = [greedily(model, p, n, frozenset()) for p, n in zip(PROMPTS, limits, strict=True)]
    assert decode(model, PROMPTS, limits) == plain
    assert decode(model, PROMPTS, limits, batch_size=1) == plain
    ends = frozenset({plain[0][2], plain[3][4]})
    stopped = [greedily(model, p, n, ends) for p, n in zip(PROMPTS, limits, strict=True)]
    assert decode(model, PROMPTS, limits, ends=ends) == stopped
    assert any(len(ids) < n for ids, n in zip(stopped, limits, strict=True))


def test_a_model_without_a_cache_reads_everything_again() -> None:
    inner = tiny.language_model("gpt2", 60)

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any) -> Any:
            found = self.inner(
                input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
            )
            return type("Output", (), {"logits": found.logits})()

    assert decode(Plain(), PROMPTS, [5] * 4) == decode(inner, PROMPTS, [5] * 4)


def test_a_sample_depends_on_the_seed_and_not_on_the_batch() -> None:
    model = tiny.language_model("llama", 60)
    first = decode(model, PROMPTS, [8] * 4, top_k=5, seed=1)
    assert decode(model, PROMPTS, [8] * 4, top_k=5, seed=1, batch_size=1) == first
    assert decode(model, PROMPTS, [8] * 4, top_k=5, seed=2) != first
    assert decode(model, PROMPTS, [8] * 4, top_k=1, seed=2) == decode(model, PROMPTS, [8] * 4)
    with torch.no_grad():
        row = model(torch.tensor([PROMPTS[1] + list(first[1][:-1])])).logits[0]
    for place, token in enumerate(first[1]):
        assert token in row[len(PROMPTS[1]) - 1 + place].topk(5).indices.tolist()


def test_global_randomness_is_left_alone() -> None:
    model = tiny.language_model("llama", 60)
    state = torch.get_rng_state()
    decode(model, PROMPTS, [8] * 4, top_k=5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("text", "ended", "wanted", "prefix", "exact"),
    [
        ("English", True, "English", True, True),
        ("English", False, "English", True, False),
        ("English.", False, "English", True, True),
        ("English, as", False, "English", True, True),
        ("English\nThe", False, "English", True, True),
        ("English and French", False, "English", True, False),
        ("Englishman", False, "English", False, False),
        ("the English", True, "English", False, False),
        ("J. R. R. Tolkien.", False, "J. R. R. Tolkien", True, True),
        ("日本です", False, "日本", True, False),
        ("日本。", False, "日本", True, True),
        ("", True, "English", False, False),
    ],
)
def test_reading_a_continuation(
    text: str, ended: bool, wanted: str, prefix: bool, exact: bool
) -> None:
    said = judge(text, ended, wanted)
    assert (said.prefix, said.exact) == (prefix, exact)


def test_generated_answers_are_read_per_kind() -> None:
    tok = tokenizer("pieces")
    model = tiny.language_model("llama", len(tok))
    prompts = ["The mother tongue of Danielle is", "Her home is", "Said Édith"]
    said = []
    for prompt in prompts:
        ids = tok(prompt)["input_ids"]
        made = greedily(model, ids, 6, frozenset(end_ids(tok, model.generation_config)))
        said.append(tok.decode(made).strip(" "))
    one = said[0].split(" ")[0] or said[0]
    told: list[list[tuple[Kind, str, str]]] = [
        [("rewrite", prompts[0], one), ("neighbour", prompts[1], "New York")],
        [("neighbour", prompts[2], "x")],
    ]
    rows = []
    for number, each in enumerate(told):
        row = EditRow(id=str(number), source="", subject="", target="", truth=None)
        for kind, prompt, wanted in each:
            answer = Answer(accuracy=0.0, says="")
            row.prompts.append(PromptRow(kind=kind, prompt=prompt, wanted=wanted, after=answer))
        rows.append(row)
    asked = [prompt for row in rows for prompt in row.prompts]
    found = generate_answers(model, tok, asked)
    assert found[0].text.startswith(one)
    for row, each in zip(asked, found, strict=True):
        row.after.generated = each.text
    metrics = metrics_of(columns_of(rows, "counterfact"), "counterfact")
    assert metrics["free_neighbour"].n == 2
    share = (found[1].prefix + found[2].prefix) / 2
    assert metrics["free_neighbour"].value == 100 * share
    assert metrics["free_rewrite"].protocol == "free generation, prefix"
    assert "free_paraphrase" not in metrics
    exact = exact_metrics(rows, found)
    assert exact["free_neighbour_exact"].value == 100 * (found[1].exact + found[2].exact) / 2
    assert exact["free_rewrite_exact"].protocol == "free generation, exact"
    assert "free_paraphrase_exact" not in exact
