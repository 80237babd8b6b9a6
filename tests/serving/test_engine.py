"""Requests that decode together answer what each alone would: any connector, any decoder, any order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import every_modality
import natively
import tiny
from modalign.data.modalities import modality_names
from modalign.data.records import Media, Message, Record, Source
from modalign.evaluation.generation import answer_records
from modalign.models.open import open_model
from modalign.serving.engine import LocalEngine, open_engine
from modalign.serving.requests import (
    Delta,
    DrainingError,
    Engine,
    EngineState,
    Prompt,
    PromptError,
    QueueFullError,
    Sampling,
    Started,
)
from serving.collected import Heard, ask, ask_all

WORDS = ("red", "is the ball left of", "how many", "seven and two are", "x")
NEW = 8


@contextmanager
def running(model: Any, reader: Any, **options: Any) -> Iterator[LocalEngine]:
    engine = LocalEngine(model, reader, **options)
    typed: Engine = engine  # the contract, held by the type checker
    try:
        yield engine
    finally:
        typed.close()


def chats(count: int) -> list[list[Message]]:
    """Questions of different lengths about none, one or two pictures."""
    asked = []
    for number in range(count):
        pictures = [tiny.image(number + extra) for extra in range(number % 3)]
        words = " ".join(WORDS[: 1 + number % len(WORDS)])
        asked.append([Message("user", (*pictures, words))])
    return asked


def pictures(message: Message) -> list[Media]:
    return [part for part in message.parts if isinstance(part, Media)]


def alone(model: Any, reader: Any, messages: list[Message]) -> str:
    """The answer of transformers' generate, for one question."""
    record = Record("r", tuple(messages), Source("f", 1))
    return answer_records(model, reader, [record], NEW)[0]


@pytest.mark.parametrize(
    ("connector", "llm"),
    [
        ("mlp", "llama"),
        ("mlp", "gpt2"),
        ("resampler", "gpt_neox"),
        ("gated_cross_attention", "qwen2"),
        ("llama_adapter", "llama"),
    ],
)
def test_batched_answers_equal_those_alone(compose_tiny: Any, connector: str, llm: str) -> None:
    model, processor = compose_tiny(connector, llm)
    asked = chats(9)
    expected = [alone(model, processor, messages) for messages in asked]
    assert len(set(expected)) > 3
    with running(model, processor, max_batch=4) as engine:
        assert engine.state().batching == "continuous", engine.note
        heard = ask_all(engine, [engine.chat_prompt(each) for each in asked], max_tokens=NEW)
        assert [each.text.strip() for each in heard] == expected
        again = ask_all(engine, [engine.chat_prompt(each) for each in asked], max_tokens=NEW)
        assert [each.text.strip() for each in again] == expected
        state = engine.state()
        shown = {m.content_hash() for each in asked for message in each for m in pictures(message)}
        assert state.media_misses == len(shown) + 1  # and the one of the self-test
        assert state.media_hits > 0
        assert state.steps < state.new_tokens / 2  # rows did share steps


@pytest.mark.parametrize("connectors", [every_modality.CONNECTORS, "linear"])
def test_all_six_modalities_in_one_batch(llm_folder: Callable[..., Any], connectors: Any) -> None:
    """Media of any modality and length beside each other, by connectors in the prefix and in layers."""
    model, processor, _ = every_modality.composed(str(llm_folder()), connectors=connectors)
    kinds = [
        ("image", "audio"),
        ("video",),
        ("series", "table", "vectors"),
        modality_names(),
        (),
        ("audio",),
    ]
    asked = [
        list(every_modality.record(*kind, row=row).messages[:-1])
        for row, kind in enumerate(kinds, start=1)
    ]
    expected = [alone(model, processor, messages) for messages in asked]
    with running(model, processor, max_batch=4) as engine:
        assert engine.state().batching == "continuous", engine.note
        for _ in range(2):
            prompts = [engine.chat_prompt(each) for each in asked]
            heard = ask_all(engine, prompts, max_tokens=NEW)
            assert [each.text.strip() for each in heard] == expected
        assert engine.state().media_hits > 0
    whole = prompts[3].media_tokens
    assert set(whole) == set(modality_names())
    assert all(0 < count < len(prompts[3].ids) for count in whole.values())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_text_models(llm_folder: Callable[..., Any], family: str) -> None:
    model, tokenizer = open_model(llm_folder(family))
    with running(model, tokenizer, max_batch=3) as engine:
        assert engine.state().batching == "continuous", engine.note
        prompts = [engine.text_prompt(" ".join(WORDS[: n + 1])) for n in range(5)]
        heard = ask_all(engine, prompts, max_tokens=NEW, ignore_end=True)
        for prompt, said in zip(prompts, heard, strict=True):
            ids = torch.tensor([prompt.ids])
            made = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                do_sample=False,
                eos_token_id=-1,
                pad_token_id=0,
            )
            text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
            assert said.text == text
            assert said.count == NEW


def test_a_sliding_window_shorter_than_the_prompt(tokenizer: Any) -> None:
    """A window that some layers have, or all: rows of different lengths see what each alone would."""
    for config in (
        transformers.MistralConfig(**_small(tokenizer), sliding_window=6),
        transformers.Gemma3TextConfig(
            **_small(tokenizer),
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"] * 2,
            head_dim=8,
        ),
    ):
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.2)
        with running(model, tokenizer) as engine:
            assert engine.state().batching == "continuous", engine.note
            prompts = [engine.text_prompt(" ".join(WORDS) * n) for n in (1, 2, 3)]
            together = ask_all(engine, prompts, max_tokens=NEW, ignore_end=True)
        for prompt, said in zip(prompts, together, strict=True):
            ids = torch.tensor([prompt.ids])
            for _ in range(NEW):  # without any cache: the plain forward of everything so far
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            made = ids[0, len(prompt.ids) :]
            assert said.text == tokenizer.decode(made, skip_special_tokens=True)


def _small(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


def test_a_model_that_cannot_be_batched_is_answered_one_by_one(tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=1
    )
    model: Any = transformers.MambaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    with running(model, tokenizer) as engine:
        state = engine.state()
        assert state.batching == "one by one"
        assert state.note
        prompts = [engine.text_prompt(text) for text in WORDS[:3]]
        heard = ask_all(engine, prompts, max_tokens=5, ignore_end=True)
        for prompt, said in zip(prompts, heard, strict=True):
            made = model.generate(
                torch.tensor([prompt.ids]), max_new_tokens=5, do_sample=False, eos_token_id=-1
            )
            assert said.text == tokenizer.decode(
                made[0, len(prompt.ids) :], skip_special_tokens=True
            )
            assert said.count == 5


def test_the_models_own_processors_apply(llm_folder: Callable[..., Any]) -> None:
    model, tokenizer = open_model(llm_folder("llama"))
    model.generation_config.repetition_penalty = 1.7
    model.generation_config.no_repeat_ngram_size = 2
    with running(model, tokenizer) as engine:
        prompt = engine.text_prompt("how many")
        (said,) = ask_all(engine, [prompt], max_tokens=12)
        ids = torch.tensor([prompt.ids])
        made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert said.text == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_log_probabilities_of_prompt_and_answer(compose_tiny: Any) -> None:
    model, processor = compose_tiny("mlp")
    with running(model, processor) as engine:
        prompt = engine.text_prompt("seven and two are")
        (said,) = ask_all(
            engine, [prompt], max_tokens=3, logprobs=4, prompt_logprobs=True, ignore_end=True
        )
        made = [token.id for token in said.tokens]
        ids = torch.tensor([[*prompt.ids, *made]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].float()
        known = torch.log_softmax(logits, -1)
        for place, token in enumerate(said.started.prompt):
            assert token.id == prompt.ids[place]
            if place == 0:
                assert token.logprob is None
            else:
                assert token.logprob == pytest.approx(float(known[place - 1, token.id]), abs=1e-4)
        logits[:, model.generation_config.suppress_tokens] = -torch.inf  # answers never say these
        answers = torch.log_softmax(logits, -1)
        for place, token in enumerate(said.tokens, start=len(prompt.ids) - 1):
            assert token.logprob == pytest.approx(float(answers[place, token.id]), abs=1e-4)
            assert [each.logprob for each in token.top] == pytest.approx(
                answers[place].topk(4).values.tolist(), abs=1e-4
            )
        (only,) = ask_all(engine, [prompt], max_tokens=0, prompt_logprobs=True)
        assert [t.logprob for t in only.started.prompt] == pytest.approx(
            [t.logprob for t in said.started.prompt]
        )
        assert only.text == ""
        assert only.finished.reason == "length"


def test_a_drawn_answer_depends_on_its_seed_alone(compose_tiny: Any) -> None:
    model, processor = compose_tiny("mlp")
    with running(model, processor) as engine:
        prompts = [engine.chat_prompt(each) for each in chats(6)]
        how = {"max_tokens": NEW, "temperature": 1.3, "top_p": 0.9, "ignore_end": True}
        first = ask_all(engine, prompts[:1], seed=5, **how)[0].text
        crowd = ask_all(engine, prompts[1:] + prompts[:1], seed=5, **how)
        assert crowd[-1].text == first
        others = {ask_all(engine, prompts[:1], seed=seed, **how)[0].text for seed in range(8)}
        assert len(others) > 1


def test_stop_texts_never_show(llm_folder: Callable[..., Any]) -> None:
    model, tokenizer = open_model(llm_folder("llama"))
    with running(model, tokenizer) as engine:
        prompt = engine.text_prompt("how many")
        (whole,) = ask_all(engine, [prompt], max_tokens=12, ignore_end=True)
        assert len(whole.text) > 12
        stop = whole.text[6:10]  # begins and ends inside tokens
        (cut,) = ask_all(engine, [prompt], max_tokens=12, ignore_end=True, stop=(stop,))
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finished.reason == "stop"
        assert cut.count < whole.count
        (never,) = ask_all(engine, [prompt], max_tokens=12, ignore_end=True, stop=("\x00no",))
        assert never.text == whole.text


def test_a_dialogue_goes_on_from_what_was_read(compose_tiny: Any) -> None:
    model, processor = compose_tiny("mlp")
    picture = tiny.image(1)
    turns = [Message("user", (picture, "is the ball left of the box ?"))]
    longer = [*turns, Message("assistant", ("yes",)), Message("user", ("how many",))]
    others = [Message("user", (tiny.image(2), "is the ball left of the box ?"))]
    with running(model, processor) as engine:
        ask_all(engine, [engine.chat_prompt(turns)], max_tokens=NEW)
        (said,) = ask_all(engine, [engine.chat_prompt(longer)], max_tokens=NEW)
        assert said.started.cached >= tiny.PATCHES
        assert said.text.strip() == alone(model, processor, longer)
        (other,) = ask_all(engine, [engine.chat_prompt(others)], max_tokens=NEW)
        assert other.started.cached == 0  # the ids are the same, the picture is not
        assert other.text.strip() == alone(model, processor, others)


def test_a_native_llava(compose_tiny: Any, tmp_path: Any) -> None:
    from modalign.models.export import save_model

    composed, its_processor = compose_tiny("mlp")
    save_model(composed, its_processor, tmp_path / "llava")
    model, processor = open_model(tmp_path / "llava")
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    asked = chats(6)
    expected = [alone(model, processor, messages) for messages in asked]
    with running(model, processor, max_batch=4) as engine:
        assert engine.state().batching == "continuous", engine.note
        for _ in range(2):
            heard = ask_all(engine, [engine.chat_prompt(each) for each in asked], max_tokens=NEW)
            assert [each.text.strip() for each in heard] == expected
        assert engine.state().media_hits > 0


@pytest.mark.parametrize("kind", ["idefics", "voxtral"])
def test_native_classes_with_our_processor(kind: str, tmp_path: Path) -> None:
    """Both answer as generate does; Idefics one by one, for it takes no text without an image."""
    from modalign.models.export import save_model

    (tmp_path / "parts").mkdir()
    composed, its_processor = getattr(natively, kind)(tmp_path / "parts")
    save_model(composed, its_processor, tmp_path / "model")
    model, processor = open_model(tmp_path / "model")
    assert type(model).__module__.startswith("transformers.")
    medium = tiny.image if kind == "idefics" else partial(every_modality.sound, 0.7)
    asked = [
        [Message("user", (medium(0), "what?"))],
        [Message("user", ("hi",))],
        [Message("user", (medium(1), " and ", medium(2), "?"))],
    ]
    expected = [alone(composed, its_processor, messages) for messages in asked]
    text = its_processor.tokenizer("red ball", return_tensors="pt")
    goes_on = composed.generate(**text, max_new_tokens=NEW, do_sample=False)
    goes_on = goes_on[0, text["input_ids"].shape[1] :]
    with running(model, processor, max_batch=4) as engine:
        assert engine.state().batching == ("one by one" if kind == "idefics" else "continuous")
        prompts = [engine.chat_prompt(each) for each in asked]
        heard = ask_all(engine, prompts, max_tokens=NEW)
        assert [each.text.strip() for each in heard] == expected
        (said,) = ask_all(engine, [engine.text_prompt("red ball")], max_tokens=NEW)
        assert said.text == its_processor.tokenizer.decode(goes_on, skip_special_tokens=True)


class _Held(Heard):
    """A listener that keeps the engine's thread, from an event of one kind on, until it is let go."""

    def __init__(self, kind: type = Started) -> None:
        super().__init__()
        self.kind, self.go = kind, threading.Event()

    def __call__(self, event: Any, /, more: bool = False) -> None:
        super().__call__(event)
        if isinstance(event, self.kind):
            assert self.go.wait(60)


def test_a_step_is_told_at_once(llm_folder: Callable[..., Any]) -> None:
    class Told(Heard):
        """Keeps whether more was to come."""

        def __call__(self, event: Any, /, more: bool = False) -> None:
            told.append(more)
            super().__call__(event)

    told: list[bool] = []
    model, tokenizer = open_model(llm_folder("llama"))
    with running(model, tokenizer) as engine:
        prompt, held = engine.text_prompt("x"), _Held()
        engine.submit(prompt, Sampling(max_tokens=1), held)  # so that the others begin together
        rows = [Told() for _ in range(3)]
        for row in rows:
            engine.submit(prompt, Sampling(max_tokens=2, logprobs=0, ignore_end=True), row)
        held.go.set()
        for row in rows:
            row.wait()
    reading, step = [True] * 5 + [False], [True] * 5 + [False]
    assert told == reading + step


def test_a_full_queue_a_cancelled_request_and_the_drain(llm_folder: Callable[..., Any]) -> None:
    model, tokenizer = open_model(llm_folder("llama"))
    with running(model, tokenizer, max_batch=1, max_waiting=2) as engine:
        prompt = engine.text_prompt("x")
        held, late, gone = _Held(), Heard(), Heard()
        how = Sampling(max_tokens=4, ignore_end=True)
        engine.submit(prompt, how, held)
        while not held.events:  # it has left the queue
            held.begun.wait(0.001)
        engine.submit(prompt, how, late)
        handle = engine.submit(prompt, how, gone)
        with pytest.raises(QueueFullError, match="2 requests wait"):
            engine.submit(prompt, how, Heard())
        handle.cancel()
        held.go.set()
        assert gone.wait().finished.reason == "cancelled"
        assert gone.count == 0
        assert late.wait().text == held.wait().text
        assert engine.drain(30)
        with pytest.raises(DrainingError):
            engine.submit(prompt, how, Heard())
        assert engine.state() == EngineState(
            draining=True,
            steps=engine.state().steps,
            prompt_tokens=2,
            new_tokens=8,
            pieces=2,
            prefix_misses=2,
            reading="in pieces",
            max_batch=1,
        )


class _InTurn(Heard):
    """A listener that notes the order in which answers begin."""

    def __init__(self, name: str, order: list[str]) -> None:
        super().__init__()
        self.name, self.order = name, order

    def __call__(self, event: Any, /, more: bool = False) -> None:
        super().__call__(event)
        if isinstance(event, Started):
            self.order.append(self.name)


def _order(engine: LocalEngine, asked: list[tuple[str, str]]) -> list[str]:
    """Whose answers begin in what order, of (client, prompt) that all wait while one is being answered."""
    held, order = _Held(), list[str]()
    engine.submit(engine.text_prompt("x"), Sampling(max_tokens=1), held, "many")
    while not held.events:
        held.begun.wait(0.001)
    heard = []
    for client, text in asked:
        heard.append(_InTurn(client, order))
        how = Sampling(max_tokens=2, ignore_end=True)
        engine.submit(engine.text_prompt(text), how, heard[-1], client)
    held.go.set()
    for each in heard:
        each.wait()
    return order


@pytest.mark.parametrize("alone", [False, True])
def test_a_newcomers_first_turn_waits_for_nobodys_queue(
    llm_folder: Callable[..., Any], alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if alone:
        monkeypatch.setattr("modalign.serving.engine.why_not_batched", lambda *_: "a test")
    model, tokenizer = open_model(llm_folder("llama"))
    with running(model, tokenizer, max_batch=1) as engine:
        order = _order(
            engine, [*[("many", "x")] * 4, ("new", "x y z"), ("new", "x"), ("third", "x")]
        )
    assert order == ["new", "third", "many", "new", "many", "many", "many"]


def test_a_newcomer_is_in_the_first_batch_beside_a_queue(llm_folder: Callable[..., Any]) -> None:
    model, tokenizer = open_model(llm_folder("llama"))
    with running(model, tokenizer, max_batch=4) as engine:
        order = _order(engine, [*[("many", "x")] * 6, ("new", "x y z")])
    assert order.index("new") < 4
    assert order.count("many") == 6


def test_one_client_leaves_others_a_part_of_the_queue(llm_folder: Callable[..., Any]) -> None:
    model, tokenizer = open_model(llm_folder("llama"))
    with running(model, tokenizer, max_batch=1, max_waiting=4) as engine:
        prompt, held, how = engine.text_prompt("x"), _Held(), Sampling(max_tokens=1)
        engine.submit(prompt, how, held, "new")
        while not held.events:
            held.begun.wait(0.001)
        waiting = [Heard() for _ in range(4)]
        for each in waiting[:3]:
            engine.submit(prompt, how, each, "many")
        with pytest.raises(QueueFullError, match="3 requests wait"):
            engine.submit(prompt, how, Heard(), "many")
        engine.submit(prompt, how, waiting[3], "new")
        held.go.set()
        for each in waiting:
            each.wait()


def test_a_running_request_is_cancelled(llm_folder: Callable[..., Any]) -> None:
    model, tokenizer = open_model(llm_folder("llama"))
    with running(model, tokenizer) as engine:
        prompt = engine.text_prompt("x")
        first, other = _Held(Delta), Heard()
        handle = engine.submit(prompt, Sampling(max_tokens=200, ignore_end=True), first)
        engine.submit(prompt, Sampling(max_tokens=6, ignore_end=True), other)
        assert first.begun.wait(60)
        handle.cancel()
        first.go.set()
        assert first.wait().finished.reason == "cancelled"
        assert first.count < 200
        assert other.wait().count == 6


def test_one_failing_request_leaves_the_others(compose_tiny: Any) -> None:
    model, processor = compose_tiny("mlp")
    with running(model, processor) as engine:
        good, other = (engine.chat_prompt(each) for each in chats(2))
        broken = Prompt(
            other.ids, {"pixel_values": torch.zeros(1, 3, 5, 5)}, (("image", "?"),), other.spans
        )
        heard = ask_all(engine, [good, broken, other], max_tokens=4)
        assert [each.finished.reason == "error" for each in heard] == [False, True, False]
        assert heard[1].finished.error
        (after,) = ask_all(engine, [good], max_tokens=4)
        assert after.text == heard[0].text


def test_prompts_that_cannot_be(compose_tiny: Any, llm_folder: Callable[..., Any]) -> None:
    model, processor = compose_tiny("mlp")
    with running(model, processor, max_length=40) as engine:
        for messages, why in [
            ([], "at least one message"),
            ([Message("user", (tiny.Media("audio", data=b"x"), "what?"))], "takes text, image"),
            ([Message("user", (tiny.Media("image", data=b"x"), "what?"))], "not an image|no image"),
        ]:
            with pytest.raises(PromptError, match=why):
                engine.chat_prompt(messages)
        with pytest.raises(PromptError, match="token id 99999 does not exist"):
            engine.text_prompt([1, 99999])
        with pytest.raises(PromptError, match="no tokens"):
            engine.text_prompt([])
        long = engine.text_prompt([5] * 40)
        with pytest.raises(PromptError, match="has 40 tokens; this model reads 40"):
            engine.submit(long, Sampling(max_tokens=1), Heard())
        (clipped,) = ask_all(
            engine, [engine.text_prompt([5] * 38)], max_tokens=100, ignore_end=True
        )
        assert clipped.count == 2
        assert clipped.finished.reason == "length"


def test_open_engine_puts_patches_on_top(llm_folder: Callable[..., Any]) -> None:
    engine = open_engine(llm_folder("llama"), max_batch=2)
    try:
        assert engine.state().max_batch == 2
        assert ask(engine, engine.text_prompt("x"), max_tokens=2, ignore_end=True).wait().count == 2
    finally:
        engine.close()
