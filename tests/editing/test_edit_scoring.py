"""The teacher-forced scorer against one row at a time, over tokenizers and architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_tokenizers import KINDS, tokenizer

import tiny
from modalign.editing.benchmarks.calling import call, logits_at
from modalign.editing.benchmarks.scoring import Question, Score, already_known, score
from modalign.editing.edits import Edit
from modalign.editing.engine.tokens import Rows, pad

QUESTIONS = [
    Question("The mother tongue of Danielle Darrieux is", ("English", "French")),
    Question("Danielle Darrieux's home, said", ("New York", "München")),
    Question('Where is "Al"', ("Tokyo", "a {}", "New York is")),
    Question("東京は", ("日本", "English")),
    Question("The", ("mother tongue",)),
    Question("The mother", ("tongue of",)),
    Question("Jean {Gabin}'s {} is {0}", ("English",)),
]


def model_of(kind: str = "bytes", family: str = "llama") -> Any:
    return tiny.language_model(family, len(tokenizer(kind)))


def plain_ids(kind: str, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Prompt and target ids, written down without the code under test."""
    tok = tokenizer(kind)
    spaced = ord(prompt[-1]) <= 0x3000
    if kind != "pieces":
        return tok(prompt)["input_ids"], tok(" " * spaced + target, add_special_tokens=False)[
            "input_ids"
        ]
    if spaced:  # the mark that every text starts with is the space
        return tok(prompt)["input_ids"], tok(target, add_special_tokens=False)["input_ids"]
    pieces = tok.backend_tokenizer.model.tokenize(target)  # the model alone adds no mark
    return tok(prompt)["input_ids"], [piece.id for piece in pieces]


def plain_score(model: Any, kind: str, prompt: str, target: str) -> tuple[float, list[bool]]:
    """One row, whole logits, no mask, no padding: what every score must equal."""
    ids, answer = plain_ids(kind, prompt, target)
    with torch.no_grad():
        logits = model(torch.tensor([ids + answer])).logits[0].double()
    total, hits = 0.0, []
    for place, token in enumerate(answer):
        row = logits[len(ids) + place - 1].log_softmax(-1)
        total += float(row[token])
        hits.append(int(row.argmax()) == token)
    return total, hits


def check(model: Any, kind: str, scores: Sequence[Sequence[Score]]) -> None:
    for question, found in zip(QUESTIONS, scores, strict=True):
        for target, one in zip(question.targets, found, strict=True):
            total, hits = plain_score(model, kind, question.prompt, target)
            assert one.log_probability == pytest.approx(total, abs=2e-5, rel=1e-5)
            assert list(one.hits) == hits
            assert one.nll == pytest.approx(-total / len(hits), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_equals_one_at_a_time(kind: str, family: str) -> None:
    model = model_of(kind, family)
    check(model, kind, score(model, tokenizer(kind), QUESTIONS))


@pytest.mark.parametrize("family", ["gpt_neox", "qwen2", "mistral", "gemma"])
def test_other_architectures(family: str) -> None:
    model = model_of("bytes_bos", family)
    check(model, "bytes_bos", score(model, tokenizer("bytes_bos"), QUESTIONS))


def test_small_batches_give_the_same() -> None:
    model = model_of()
    check(model, "bytes", score(model, tokenizer("bytes"), QUESTIONS, batch_tokens=1))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_side_changes_nothing(kind: str) -> None:
    model, tok = model_of(kind), tokenizer(kind)
    found = []
    for side in ("left", "right"):
        tok.padding_side = side
        found.append(score(model, tok, QUESTIONS))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_holds_no_begin_mark_and_one_space(kind: str) -> None:
    tok = tokenizer(kind)
    seen: list[Any] = []
    model = model_of(kind)
    model.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs), with_kwargs=True)
    score(model, tok, [Question("The mother tongue is", ("New York is",))])
    (inputs,) = seen
    row = inputs["input_ids"][0].tolist()
    begin = tok.bos_token_id
    assert row.count(begin) == (0 if kind == "bytes" else 1)
    assert (
        tok.decode(row, skip_special_tokens=True)
        .strip()
        .startswith("The mother tongue is New York")
    )
    assert set(inputs) == {"input_ids", "attention_mask", "position_ids", "use_cache"}


def test_a_joint_that_would_merge_is_kept_apart() -> None:
    """The text of prompt and answer together has other tokens than the two have."""
    tok, kind = tokenizer("bytes"), "bytes"
    prompt, target = "東京は日", "本"
    ids, answer = plain_ids(kind, prompt, target)
    assert tok(prompt + target)["input_ids"] != ids + answer
    model = model_of()
    ((found,),) = score(model, tok, [Question(prompt, (target,))])
    assert found.log_probability == pytest.approx(
        plain_score(model, kind, prompt, target)[0], rel=1e-5
    )


def test_rows_that_others_continue_are_not_run() -> None:
    rows: list[int] = []
    model = model_of()
    handle = model.register_forward_pre_hook(
        lambda m, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    tok = tokenizer("bytes")
    alike = [
        Question("The mother", ("tongue", "home")),
        Question("The mother tongue", ("of",)),
        Question("The mother", ("tongue",)),
    ]
    found = score(model, tok, alike)
    handle.remove()
    assert sum(rows) < 4
    for question, row in zip(alike, found, strict=True):
        for target, one in zip(question.targets, row, strict=True):
            total, _ = plain_score(model, "bytes", question.prompt, target)
            assert one.log_probability == pytest.approx(total, abs=2e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_head_at_chosen_places_equals_whole_logits(family: str) -> None:
    model = tiny.language_model(family, 50, tied=family == "gpt2")
    rows = pad([[3, 4, 5, 6], [7, 8]])
    where = (torch.tensor([0, 0, 1]), torch.tensor([3, 1, 1]))
    with torch.no_grad():
        whole = call(model, rows).logits
        narrow, _ = logits_at(model, rows, where)
    assert narrow.shape == (3, 50)
    assert tiny.largest_difference(narrow, whole[where]) < 1e-5
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_without_a_known_head_gives_whole_logits() -> None:
    inner = tiny.language_model("llama", 50)

    class View(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    rows = Rows(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long))
    where = (torch.tensor([0]), torch.tensor([1]))
    with torch.no_grad():
        narrow, _ = logits_at(View(), rows, where)
        assert tiny.largest_difference(narrow, logits_at(inner, rows, where)[0]) < 1e-6


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("bytes", "gpt2").train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = score(model, tokenizer("bytes"), QUESTIONS)
    assert first == score(model, tokenizer("bytes"), QUESTIONS)  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_known_already_is_what_greedy_decoding_says() -> None:
    model, tok = model_of(), tokenizer("bytes")
    prompt = "The mother tongue of Danielle Darrieux is"
    ids = tok(prompt, return_tensors="pt")["input_ids"]
    english = tok(" English", add_special_tokens=False)["input_ids"]
    edits = [
        Edit("1", "Danielle Darrieux", prompt, 21, "English"),
        Edit("2", "Danielle Darrieux", prompt, 21, "French"),
    ]
    for wanted, known in (([], [False, False]), (english, [True, False])):
        for token in wanted:  # the head is turned so that the prompt is continued by it
            with torch.no_grad():
                state = model.model(ids).last_hidden_state[0, -1]
                model.lm_head.weight[token] = 10 * state
        assert already_known(model, tok, edits) == known
