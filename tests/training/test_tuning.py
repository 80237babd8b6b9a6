"""Training a saved model further: a plain language model, a Llava, one of ours; whole, by LoRA, and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_work import CutOffError, stop_before
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

import tiny
from modalign.data.corpus import Corpus, is_corpus, windows
from modalign.errors import DataError, UsageError
from modalign.evaluation.likelihood import score_options
from modalign.models.export import save_model
from modalign.models.open import open_model
from modalign.models.saved import open_composed
from modalign.training.budget import Budget
from modalign.training.settings import LearningRates, Stage, TrainSettings
from modalign.training.tuning import Tuning, read_samples, spent

TEXT = Corpus("poem", ["a b c d e f g h", "two three"])
BUDGET = Budget.parse("64samples")


def settings(**changes: Any) -> TrainSettings:
    rates = LearningRates(connector=1e-2, llm=1e-2)
    return TrainSettings(llm="full", learning_rates=rates, batch_size=4, **changes)


def test_windows_hold_every_token_once_and_never_two_documents(tokenizer: Any) -> None:
    samples = windows(TEXT, tokenizer, 3)
    for number, document in enumerate(TEXT.documents, 1):
        own = [s.ids for s in samples if s.record.group == f"poem:{number}"]
        joined = [int(token) for ids in own for token in ids]
        whole = tokenizer(document)["input_ids"]
        assert joined == whole[: len(joined)]
        assert len(whole) - len(joined) <= 1  # a single last token predicts nothing
    assert all(sample.supervised.all() and 2 <= len(sample.ids) <= 3 for sample in samples)


def test_texts_without_two_tokens_are_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no document has two tokens"):
        windows(Corpus("empty", [""]), tokenizer, 8)


def test_plain_text_is_told_from_records(tmp_path: Path) -> None:
    def file(name: str, row: dict[str, Any]) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(row) + "\n")
        return path

    assert is_corpus(file("a.jsonl", {"text": "once"}))
    assert is_corpus(file("b.txt", {}))
    assert not is_corpus(file("c.jsonl", {"question": "q", "answer": "a"}))
    assert not is_corpus(file("d.jsonl", {"text": "once", "image": "a.png"}))


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_language_model_learns_and_stays_what_it_was(
    mode: Any, llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = llm_folder()
    opened = open_composed(folder)
    samples = windows(TEXT, opened.tokenizer, 16)
    made = settings(val_points=1).model_copy(update={"llm": mode})
    tuning = Tuning(opened, [Stage()], made, samples, samples, cache=tmp_path / "cache")
    assert tuning.check() == []
    (outcome,) = tuning.run(BUDGET, tmp_path / "run")
    before, after = outcome.curve[0]["val_loss"], outcome.curve[-1]["val_loss"]
    assert before is not None
    assert after is not None
    assert after < before - 0.1
    assert spent([outcome]).samples == 64
    tuning.save(tmp_path / "model")
    own, theirs = (AutoModelForCausalLM.from_pretrained(f) for f in (folder, tmp_path / "model"))
    names = own.state_dict().keys()
    assert names == theirs.state_dict().keys()
    assert any(not torch.equal(own.state_dict()[n], theirs.state_dict()[n]) for n in names)
    assert theirs.dtype == own.dtype


def test_a_resumed_run_ends_with_the_same_weights(
    llm_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tuning() -> Tuning:
        opened = open_composed(llm_folder())
        stages = [Stage(name="one"), Stage(name="two", llm="lora", share=2)]
        made = settings(val_points=1, checkpoint_seconds=1e-9)
        samples = windows(TEXT, opened.tokenizer, 16)
        return Tuning(opened, stages, made, samples, samples, cache=tmp_path / "cache", seed=3)

    whole = tuning()
    whole.run(BUDGET, tmp_path / "whole")
    cut = tuning()
    with monkeypatch.context() as patch:
        stop_before(3, patch)
        with pytest.raises(CutOffError):
            cut.run(BUDGET, tmp_path / "cut")
    resumed = tuning()
    resumed.run(BUDGET, tmp_path / "cut")
    expected, found = whole.trained_state(), resumed.trained_state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("connector", ["mlp", "c_abstractor"])  # a Llava, and remote code
def test_a_model_with_media_learns_and_stays_what_it_was(
    connector: str, compose_tiny: Callable[..., Any], small_data: Path, tmp_path: Path
) -> None:
    model, processor = compose_tiny(connector)
    save_model(model, processor, tmp_path / "base")
    opened = open_composed(tmp_path / "base")
    samples = read_samples(small_data / "data.jsonl", opened)
    assert any(sample.media for sample in samples)
    stage = Stage(objective={"cross_entropy": 1.0, "kl_answer": {"weight": 0.1, "reference": "t"}})
    stage = stage.model_copy(update={"references": {"t": str(tmp_path / "base")}})
    made = settings(val_points=1)
    tuning = Tuning(opened, [stage], made, samples, samples[:4], cache=tmp_path / "cache")
    tuning.check()
    (outcome,) = tuning.run(BUDGET, tmp_path / "run")
    first, last = outcome.curve[0]["val_loss"], outcome.curve[-1]["val_loss"]
    assert first is not None
    assert last is not None
    assert last < first
    tuning.save(tmp_path / "model")
    again, _ = open_model(tmp_path / "model")
    assert isinstance(again, LlavaForConditionalGeneration) == (connector == "mlp")
    loss = open_composed(tmp_path / "model")
    check = Tuning(loss, [Stage()], made, samples, samples[:4], cache=tmp_path / "cache")
    validate = check._validate(Stage())
    assert validate is not None
    assert validate()[0] == pytest.approx(last, abs=1e-5)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^the teacher '.*nowhere' cannot be loaded: there is no such"
    ):
        open_composed(tmp_path / "nowhere", "the teacher")


def test_a_model_without_a_chat_template_stays_without_one(
    llm_folder: Callable[..., Path], tmp_path: Path
) -> None:
    opened = open_composed(llm_folder())
    opened.tokenizer.chat_template = None
    opened.save(tmp_path / "plain")
    again = open_composed(tmp_path / "plain")
    rows = [{"question": f"what is {n}?", "answer": "a cat"} for n in ("one", "two")]
    samples = read_samples(tiny.write_jsonl(tmp_path / "rows.jsonl", rows), again)
    tuning = Tuning(again, [Stage()], settings(val_points=1), samples, samples)
    tuning.check()
    tuning.run(BUDGET, tmp_path / "run")
    tuning.save(tmp_path / "model")
    model, tokenizer = open_model(tmp_path / "model")
    assert tokenizer.chat_template is None
    assert {options[0].loglikelihood > -0.5 for options in score_options(
        model, tokenizer, [sample.record for sample in samples], [["a cat"]] * 2)} == {True}  # fmt: skip
