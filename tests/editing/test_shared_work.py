"""What is run once or not at all gives what running everything gives: groups, beginnings, ends of values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench.editable import Editable, Family
from bench.invented import counterfactuals
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from modalign.data.corpus import Corpus
from modalign.editing.benchmarks.scoring import Question, score
from modalign.editing.computation import Options
from modalign.editing.engine import prefix
from modalign.editing.engine.forward import Inputs, PartialForward, Row, read
from modalign.editing.engine.parts import MOST, Parts, groups
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.methods import MEMIT, MEMITConfig

SYSTEM = tuple(range(3, 43))  # what every prompt begins with
ENDS = ((50, 51, 52), (60, 61), (70, 71, 72, 73, 74), (80, 81))


def tiny(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=97, n_positions=128, n_embd=32, n_layer=3, n_head=4)
    return GPT2LMHeadModel(config).eval()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=25), st.integers(1, 40))
def test_groups_hold_every_row_once_and_pay_for_themselves(widths: list[int], least: int) -> None:
    found = groups(widths, least)
    assert sorted(i for group in found for i in group) == list(range(len(widths)))
    assert len(found) <= MOST
    run = sum(len(group) * max(widths[i] for i in group) for group in found)
    assert len(widths) * max(widths) - run >= least * (len(found) - 1)


def test_rows_in_groups_have_the_logits_of_the_whole_model() -> None:
    model = tiny()
    spec = ModelSpec.detect(model)
    rows = [Row((*SYSTEM[:5], *end, *end), 6) for end in ENDS] + [Row(SYSTEM[:6], 5)] * 12
    parts = Parts.of(PartialForward(spec, 1, ("block",)), rows)
    assert len(parts.rows) > 1
    where = torch.tensor([0, 2, 5, 3, 2]), torch.tensor([1, 4, 0, 0, 2])
    nothing = {"block": torch.zeros(len(rows), 32)}
    inputs = Inputs.of(rows, spec)
    with torch.no_grad():
        whole = model(**inputs.given).logits
        wanted = torch.stack(
            [
                whole[r, rows[r].lookup + p]
                for r, p in zip(*map(torch.Tensor.tolist, where), strict=True)
            ]
        )
        torch.testing.assert_close(parts.logits(nothing, where), wanted, atol=1e-5, rtol=1e-5)
        kept = torch.tensor([0, 2, 7])
        few = parts.select(kept)
        there = few.logits(
            {"block": torch.zeros(3, 32)}, (torch.tensor([2, 1]), torch.tensor([0, 4]))
        )
        alike = torch.stack([whole[7, 5], whole[2, rows[2].lookup + 4]])
        torch.testing.assert_close(there, alike, atol=1e-5, rtol=1e-5)


def test_a_beginning_that_all_share_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec.detect(tiny())
    rows = [Row((*SYSTEM, *end), len(SYSTEM) + 1) for end in ENDS]
    wanted = {
        "key": (spec.projection(1, "ffn"), "input"),
        "out": (spec.module(2, "block"), "output"),
    }
    lengths: list[int] = []
    spec.language.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    once = read(spec, rows, wanted)  # type: ignore[arg-type]
    assert lengths == [len(SYSTEM), 2]  # up to the lookup tokens
    monkeypatch.setattr(prefix, "LEAST", 10_000)
    every = read(spec, rows, wanted)  # type: ignore[arg-type]
    for name in wanted:
        torch.testing.assert_close(once[name], every[name], atol=1e-5, rtol=1e-5)


def test_a_model_that_keeps_nothing_of_a_beginning_runs_whole_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = ModelSpec.detect(tiny())
    rows = [Row((*SYSTEM, *end), len(SYSTEM) + 1) for end in ENDS]
    key = {"key": (spec.projection(1, "ffn"), "input")}
    kept = read(spec, rows, key)["key"]  # type: ignore[arg-type]
    monkeypatch.setattr("modalign.editing.engine.forward.repeated", lambda cache, rows: None)
    torch.testing.assert_close(read(spec, rows, key)["key"], kept, atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]


def test_scores_are_the_same_with_a_shared_beginning(
    editable: Callable[[Family], Editable], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = editable("llama")
    before = " ".join(made.texts[0].split()[:12])
    edits = counterfactuals(made.world, 6, seed=1)
    questions = [Question(f"{before} {e.prompt}", (e.target, e.truth or "")) for e in edits]
    shared = score(made.model, made.tokenizer, questions)
    monkeypatch.setattr(prefix, "LEAST", 10_000)
    alone = score(made.model, made.tokenizer, questions)
    for one, other in zip(shared, alone, strict=True):
        assert [s.hits for s in one] == [s.hits for s in other]
        assert [s.log_probability for s in one] == pytest.approx(
            [s.log_probability for s in other], abs=1e-4
        )


def test_rows_beyond_a_sliding_window_are_run_whole() -> None:
    config = MistralConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=16,
    )  # fmt: skip
    config = MistralForCausalLM(config).config
    assert prefix.attends_to_all(config, 16)
    assert not prefix.attends_to_all(config, 17)
    assert not prefix.attends_to_all(None, 4)


def test_patience_ends_values_early_and_they_still_hold(
    editable: Callable[[Family], Editable], tmp_path: Path
) -> None:
    made = editable("llama")
    edits = counterfactuals(made.world, 4, seed=1)
    options = Options(corpus=Corpus("text", made.texts[:200]), cache=tmp_path)
    steps = []
    for patience in (0, 3):
        config = MEMITConfig(
            template="plain",
            layers=(0, 1),
            contexts=(),
            lr=0.3,
            clamp=2.0,
            kl=4.0,
            patience=patience,
        )
        patch = MEMIT(config).compute(made.model, made.tokenizer, edits, options=options)
        records = patch.header.editing.edits
        assert all((record.probability or 0) > 0.9 for record in records)
        steps.append([record.steps or 0 for record in records])
    whole, early = steps
    assert all(a <= b for a, b in zip(early, whole, strict=True))
    assert sum(early) < sum(whole)
