"""Exact match without generating equals exact match of what is generated; swapped media."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny
from modalign.data.readers import read_records
from modalign.data.supervision import tokenise, tokenise_all
from modalign.data.validation import validate
from modalign.evaluation.scoring import blanked, final_turn, score, shuffled

CPU = torch.device("cpu")


def parts(name: str, compose_tiny: Callable[..., Any], folder: Path) -> Any:
    model, processor = compose_tiny(name)
    records, _ = validate(read_records(str(folder / "data.jsonl"), media_root=None))
    samples = tokenise_all(records, processor.tokenizer)
    return model, processor, samples, tiny.collator(model, processor)


@pytest.mark.parametrize("name", ["mlp", "gated_cross_attention"])
def test_scores_equal_greedy_generation(
    name: str, compose_tiny: Callable[..., Any], small_data: Path
) -> None:
    model, processor, samples, collator = parts(name, compose_tiny, small_data)
    talk = tiny.record([tiny.image(1), "what?"], "no", "is it?", "yes", row=99)
    samples.append(tokenise(talk, processor.tokenizer))
    model.train()
    model.encoders.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    batch = collator(samples[:14])
    found: list[bool] = []
    for _ in range(60):  # until some answers are right and some are wrong
        output = model(**batch.model_inputs(), use_cache=False)
        functional.cross_entropy(output.logits, batch.targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        found = score(model.eval(), samples, collator, CPU, batch_size=7).correct.tolist()
        model.train()
        if 5 <= sum(found) <= len(found) - 3:
            break
    assert 0 < sum(found) < len(found)
    model.eval()
    yes = processor.tokenizer.encode("yes", add_special_tokens=False)[0]
    scores = score(model, samples, collator, CPU, batch_size=7, yes_tokens=[yes])
    packed = score(model, samples, replace(collator, pack_length=300), CPU, 7, [yes])
    assert packed.correct.tolist() == scores.correct.tolist()
    assert packed.loss == pytest.approx(scores.loss, abs=1e-3)
    for number, sample in enumerate(samples):
        prompt = replace(sample, ids=sample.ids[: sample.prompt_length])
        prompt = replace(prompt, supervised=np.zeros(len(prompt.ids), dtype=bool))
        entry = collator.entries["image"]
        ids, _ = prompt.expanded([entry.token_id], entry.stand_ins(sample.media))
        wanted = sample.ids[sample.prompt_length :]
        given = torch.from_numpy(ids)[None]
        said = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=len(wanted),
            do_sample=False,
            suppress_tokens=None,
            **(entry.fetch(sample.media) if sample.media else {}),
        )[0, len(ids) :]
        assert (said.tolist() == wanted.tolist()) == scores.correct[number]
        assert (int(said[0]) == yes) == scores.said_yes[number]
        assert scores.tokens[number] == len(wanted)
    assert scores.mean_loss == pytest.approx(scores.loss.sum() / scores.tokens.sum())


def test_equal_questions_are_computed_once(
    compose_tiny: Callable[..., Any], small_data: Path
) -> None:
    model, _, samples, collator = parts("mlp", compose_tiny, small_data)
    model.eval()
    rows: list[int] = []

    def call(**inputs: Any) -> Any:
        rows.append(len(inputs["input_ids"]))
        return model(**inputs)

    alone = score(call, samples[:4], collator, CPU)
    twice = score(call, [*samples[:4], *samples[3::-1]], collator, CPU)
    assert rows == [4, 4]
    for name in ("correct", "loss", "tokens", "said_yes"):
        one = getattr(alone, name)
        assert getattr(twice, name).tolist() == [*one, *one[::-1]]


def test_only_the_last_turn_is_scored(tokenizer: Any) -> None:
    sample = tokenise(tiny.record("a", "yes", "b", "no"), tokenizer)
    ids = sample.ids[final_turn(sample).supervised]
    assert tokenizer.decode(ids) == "no<|end|>"


@pytest.mark.parametrize("seed", range(5))
def test_no_sample_keeps_its_media(seed: int, tokenizer: Any) -> None:
    """Two questions about one image do not swap it between them either."""
    counts = [1, 1, 2, 0, 1, 2, 1, 1, 0, 1, 2]
    images = [[tiny.image(10 * (i // 2) + c) for c in range(n)] for i, n in enumerate(counts)]
    samples = [
        tokenise(tiny.record([*own, "what?"], "yes", row=i), tokenizer)
        for i, own in enumerate(images)
    ]
    mixed = shuffled(samples, seed)
    for before, after in zip(samples, mixed, strict=True):
        assert len(before.media) == len(after.media)
        assert before.ids is after.ids
        assert not before.media or before.media != after.media
    assert Counter(s.media for s in samples) == Counter(s.media for s in mixed)
    assert [s.media for s in shuffled(samples, seed)] == [s.media for s in mixed]


def test_blanked(tokenizer: Any) -> None:
    samples = [tokenise(tiny.record([tiny.image(0), tiny.image(1), "?"], "a"), tokenizer)]
    blank = tiny.image(7)
    assert blanked(samples, {"image": blank})[0].media == (blank, blank)
