"""Likelihoods of options equal those of training's own labels, position by position."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import tiny
from modalign.chat_templates import ids_after
from modalign.data.records import Message
from modalign.data.supervision import tokenise
from modalign.errors import DataError
from modalign.evaluation.likelihood import score_options
from modalign.evaluation.scoring import score
from modalign.models.open import open_model
from modalign.models.tool_text import ToolReader
from modalign.tools.registry import parse_chain

CPU = torch.device("cpu")
OPTIONS = ("seven", "the digit is on the top left", "no")


@pytest.mark.parametrize("name", ["mlp", "gated_cross_attention"])
def test_they_are_the_losses_of_the_answers(name: str, compose_tiny: Callable[..., Any]) -> None:
    model, processor = compose_tiny(name)
    asked = [
        tiny.record([tiny.image(0), "which digit is this?"], "?", row=1),
        tiny.record("is seven odd?", "?", row=2),
        tiny.record([tiny.image(1), "what?"], "no", [tiny.image(2), "and this?"], "?", row=3),
    ]
    heard: list[tuple[int, int]] = []
    found = score_options(model, processor, asked, [OPTIONS] * 3, lambda *done: heard.append(done))
    collator = tiny.collator(model, processor)
    for record, options in zip(asked, found, strict=True):
        answered = [
            replace(record, messages=(*record.messages[:-1], Message("assistant", (text,))))
            for text in OPTIONS
        ]
        samples = [tokenise(each, processor.tokenizer) for each in answered]
        expected = score(model, samples, collator, CPU)
        assert [option.text for option in options] == list(OPTIONS)
        assert [o.loglikelihood for o in options] == pytest.approx(-expected.loss, abs=1e-3)
        assert [o.tokens for o in options] == expected.tokens.tolist()
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_other_media_give_other_likelihoods(compose_tiny: Callable[..., Any]) -> None:
    model, processor = compose_tiny("mlp")
    asked = [tiny.record([tiny.image(seed), "what?"], "?", row=seed) for seed in (0, 1)]
    first, second = score_options(model, processor, asked, [OPTIONS] * 2)
    assert [o.loglikelihood for o in first] != pytest.approx([o.loglikelihood for o in second])


@pytest.mark.parametrize("template", [True, False])
def test_of_a_language_model_they_are_sums_over_its_own_tokens(
    template: bool, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    model, tokenizer = open_model(llm_folder("gpt2"))  # absolute positions: a shift would show
    if not template:
        tokenizer = AutoTokenizer.from_pretrained(llm_folder("gpt2"))
        tokenizer.chat_template = None
    (found,) = score_options(model, tokenizer, [tiny.record("is seven odd?", "?")], [OPTIONS])
    for option in found:
        if template:
            turns = [{"role": "user", "content": "is seven odd?"}]
            prompt = tokenizer.apply_chat_template(
                turns, tokenize=True, add_generation_prompt=True, return_dict=True
            )["input_ids"]
            turns.append({"role": "assistant", "content": option.text})
            ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"]
            ids = ids[: ids.index(tokenizer.eos_token_id, len(prompt)) + 1]
        else:
            prompt = tokenizer("is seven odd?", add_special_tokens=False)["input_ids"]
            ids = tokenizer(f"is seven odd? {option.text}", add_special_tokens=False)["input_ids"]
            assert ids[: len(prompt)] == prompt
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        steps = [logits[place - 1, ids[place]].item() for place in range(len(prompt), len(ids))]
        assert option.loglikelihood == pytest.approx(sum(steps), abs=1e-4)
        assert option.tokens == len(steps)


def test_no_space_is_put_before_an_answer() -> None:
    """A sentencepiece tokenizer writes a word's space into its token, and one before every text."""
    vocabulary = {
        "\u2581": 0,
        "\u2581is": 1,
        "\u2581it": 2,
        "\u2581yes": 3,
        "yes": 4,
        "\n": 5,
        "<unk>": 6,
        ":": 7,
    }
    pieces = [(token, -float(place)) for token, place in vocabulary.items()]
    raw = Tokenizer(models.Unigram(pieces, unk_id=6))
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert made(" yes")["input_ids"] == [0, 3]  # alone: two spaces
    assert ids_after(made, "is it", " yes") == [3]
    assert ids_after(made, "is it:", "yes") == [4]
    assert ids_after(made, "is it ", "yes") == [4]  # the space is the prompt's


def test_with_tools_the_model_reads_their_words(
    llm_folder: Callable[..., Path], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    tool = {"kind": "callable", "target": "seen_by_tools:parity", "trusted": True}
    spec = parse_chain({"tools": [tool], "budget": 8}, "parity")
    model, _ = open_model(llm_folder("llama"))
    reader = ToolReader(tokenizer, spec, ["image"])
    asked = tiny.record([tiny.image(1), "is it odd?"], "?")
    (found,) = score_options(model, reader, [asked], [("yes", "no")])
    for option in found:
        told = [reader.chain.text(next(asked.media())), "is it odd?"]
        sample = tokenise(tiny.record(told, option.text), tokenizer)
        labels, ids = sample.supervised, sample.ids
        logits = model(torch.tensor([ids.tolist()])).logits[0].log_softmax(-1)
        steps = [logits[place - 1, ids[place]].item() for place in labels.nonzero()[0].tolist()]
        assert option.loglikelihood == pytest.approx(sum(steps), abs=1e-4)
        assert option.tokens == len(steps)


def test_a_template_that_rewrites_the_prompt_is_refused(llm_folder: Callable[..., Path]) -> None:
    model, tokenizer = open_model(llm_folder("llama"))
    tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"data\.jsonl:1: the chat template prompts with"):
        score_options(model, tokenizer, [tiny.record("what?", "?")], [OPTIONS])


def test_a_saved_model_is_evaluated_on_choices(compared: Any, tmp_path: Path) -> None:
    from modalign.evaluation.evaluate import evaluate_model
    from modalign.evaluation.tasks import make_task

    rows = [json.loads(line) for line in (compared.data / "eval.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["skill"] == "naming"][:6]
    images = {"images": str(compared.data / "images")}
    for row in rows:
        row["options"] = ["one", row["messages"][-1]["content"], "two"]
        row["options"] = list(dict.fromkeys(row["options"]))
        picture = row["messages"][0]["content"][0]
        picture["image"] = picture["image"].replace("images", images["images"], 1)
    file = tiny.write_jsonl(tmp_path / "choice.jsonl", rows)
    for letters in (False, True):
        out = tmp_path / "out.jsonl"
        task = make_task("choice", letters=letters, seed=3)
        found = evaluate_model(compared.out / "best", str(file), task=task, out=out)
        assert found.generation == {"generated": False}
        assert found.task_settings == {"letters": letters, "seed": 3}
        assert found.overall.measures["accuracy (summed)"].n == len(rows)
        chance = found.overall.references["chance"][found.headline].value
        assert chance == pytest.approx(sum(1 / len(row["options"]) for row in rows) / len(rows))
        for line, row in zip(map(json.loads, out.read_text().splitlines()), rows, strict=True):
            values = line["details"]["loglikelihoods"]
            chosen = line["details"]["shown"][values.index(max(values))]
            assert line["normalised"] == chosen
            assert line["score"] == (chosen == row["messages"][-1]["content"])
            assert ("A. " in line["prompt"][-1][1]) == letters
            assert set(line["references"]) == {"blank media", "shuffled media"}
