"""Prompts that are read in pieces: the same logits, and nobody waits for more than a piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers

import tiny
from modalign.data.records import Message
from modalign.models.caches import CACHE
from modalign.models.open import open_model
from modalign.serving import reading as reading_module
from modalign.serving.engine import LocalEngine
from modalign.serving.growing import Growing
from modalign.serving.prefixes import PAGE
from modalign.serving.requests import Delta, Prompt, Sampling, Started
from modalign.serving.runners import Runner, runner_of
from serving.collected import Heard, ask, ask_all

# Of logits, times the largest: the sums of a piece are taken in another order than those of a whole prompt.
ROUNDING = 1e-5
SIZE = 8  # of a piece, where it is fixed
NEW = 6
PIECES = ([1] * 37, [5] * 8, [36, 1], [2, 30, 5], [37])


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one size, whatever they take."""
    monkeypatch.setattr(reading_module, "FIRST", SIZE)
    monkeypatch.setattr(reading_module.Pace, "took", lambda *_: None)


def windowed(vocabulary: int) -> Iterator[tuple[str, Any]]:
    """Small models with windows of six positions in all layers, or in every other."""
    common: Any = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "sliding_window": 6,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    both = ["sliding_attention", "full_attention"] * 2
    yield "mistral", transformers.MistralConfig(**common)
    yield "gemma2", transformers.Gemma2Config(**common, head_dim=8)
    yield "gemma3", transformers.Gemma3TextConfig(**common, head_dim=8, layer_types=both)
    yield "gpt_oss", transformers.GptOssConfig(**common, head_dim=8, layer_types=both)


def made(config: Any) -> Any:
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


@torch.inference_mode()
def read(runner: Runner, prompts: list[Prompt], sizes: list[int]) -> tuple[torch.Tensor, Any]:
    """Logits of all positions, and keys and values, of prompts read in pieces of these sizes."""
    cache, found, memories, size = Growing(len(prompts[0].ids)), [], [], iter(sizes)
    while cache.read < cache.length:
        stop = min(cache.length, cache.read + next(size))
        stop = max(runner.cut(prompt, stop) for prompt in prompts)
        piece = runner.prefill(prompts, cache, stop, all_logits=True, memories=memories)
        memories = piece.memories
        found.append(piece.logits)
    return torch.cat(found, dim=1), cache.all()


def expect_equal(model: Any, prompts: list[Prompt]) -> None:
    """Every way of cutting gives the logits of the plain forward without a cache, and the same keys."""
    runner = runner_of(model, ())
    ids = torch.tensor([prompt.ids for prompt in prompts])
    with torch.inference_mode():
        plain = model(input_ids=ids, use_cache=False).logits
    whole = read(runner, prompts, [ids.shape[1]])[1]
    for sizes in PIECES:
        logits, layers = read(runner, prompts, list(sizes))
        assert (logits - plain).abs().max() <= ROUNDING * plain.abs().max()
        for ours, theirs in zip(layers, whole, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert (a - b).abs().max() <= ROUNDING * max(1.0, float(b.abs().max()))


def some(seed: int, length: int = 37, most: int = 60) -> Prompt:
    ids = torch.randint(5, most, (length,), generator=torch.Generator().manual_seed(seed))
    return Prompt(tuple(ids.tolist()))


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "qwen3"])
def test_pieces_give_the_logits_of_the_whole(family: str) -> None:
    expect_equal(tiny.language_model(family, 64), [some(0), some(1), some(2)])


def test_pieces_longer_and_shorter_than_a_window() -> None:
    for _, config in windowed(64):
        expect_equal(made(config), [some(0), some(1)])


@pytest.mark.parametrize("connector", ["mlp", "gated_cross_attention", "llama_adapter"])
@pytest.mark.usefixtures("fixed")
def test_media_are_read_whole(compose_tiny: Any, connector: str) -> None:
    """Answers are those of one piece; a prefix connector's text is cut, an in-layer one's after its media."""
    model, processor = compose_tiny(connector)
    words = "is the ball left of the box ? " * 3
    asked = [
        [Message("user", (words, tiny.image(1), words, tiny.image(2), words))],
        [Message("user", (tiny.image(1), tiny.image(2), words))],
        [Message("user", (words,))],
    ]
    heard = {}
    for size in (SIZE, 4096):
        reading_module.FIRST = size
        engine = LocalEngine(model, processor)
        try:
            assert engine.state().reading == "in pieces", engine.state().reading_note
            prompts = [engine.chat_prompt(messages) for messages in asked]
            heard[size] = [
                each.text for each in ask_all(engine, prompts, max_tokens=NEW, ignore_end=True)
            ]
            pieces = engine.state().pieces
        finally:
            engine.close()
        assert (pieces > len(asked) + 3) == (size == SIZE)
    assert heard[SIZE] == heard[4096]


def counted(engine: LocalEngine) -> list[tuple[str, int]]:
    """What the model is given from now on: positions read, rows stepped."""
    done: list[tuple[str, int]] = []
    prefill, step = engine.runner.prefill, engine.runner.step

    def reads(prompts: Any, cache: Any, stop: int, **how: Any) -> Any:
        done.append(("read", (stop - cache.read) * len(prompts)))
        return prefill(prompts, cache, stop, **how)

    def steps(ids: Any, *given: Any) -> Any:
        done.append(("step", len(ids)))
        return step(ids, *given)

    engine.runner.prefill, engine.runner.step = reads, steps  # type: ignore[method-assign]
    return done


@pytest.fixture
def engine(llm_folder: Callable[..., Any], fixed: None) -> Iterator[LocalEngine]:
    model, tokenizer = open_model(llm_folder("llama"))
    found = LocalEngine(model, tokenizer)
    yield found
    found.close()


class _Late(Heard):
    """Submits another request once its own answer has begun."""

    def __init__(self, then: Callable[[], Any]) -> None:
        super().__init__()
        self.then: Callable[[], Any] | None = then

    def __call__(self, event: Any, /, more: bool = False) -> None:
        super().__call__(event)
        if isinstance(event, Delta) and self.then is not None:
            then, self.then = self.then, None
            then()


@pytest.mark.parametrize("scored", [False, True])
def test_a_running_answer_waits_for_one_piece_at_most(engine: LocalEngine, scored: bool) -> None:
    long = some(3, 15 * SIZE)
    (before,) = ask_all(engine, [long], max_tokens=2, ignore_end=True, prompt_logprobs=scored)
    engine.prefixes.most = 0  # nor is anything reused
    engine.prefixes._make_room(0, ())
    done, heard = counted(engine), Heard()
    how = Sampling(max_tokens=2, ignore_end=True, prompt_logprobs=scored)
    running = _Late(lambda: engine.submit(long, how, heard))
    engine.submit(some(4, 3), Sampling(max_tokens=40, ignore_end=True), running)
    running.wait()
    assert heard.wait().text == before.text
    begun = next(place for place, (what, _) in enumerate(done) if what == "step")
    inside = done[begun : begun + 30]
    assert sum(n for what, n in inside if what == "read") == 15 * SIZE
    assert all(n <= SIZE for what, n in inside if what == "read")
    assert [what for what, _ in inside] == ["step", "read"] * 15


def test_a_short_prompt_overtakes_a_long_one(engine: LocalEngine) -> None:
    order: list[str] = []

    class Named(_Late):
        def __init__(self, name: str, then: Callable[[], Any]) -> None:
            super().__init__(then)
            self.name = name

        def __call__(self, event: Any, /, more: bool = False) -> None:
            if isinstance(event, Started):
                order.append(self.name)
            super().__call__(event)

    def both() -> None:
        engine.submit(some(1, 20 * SIZE), Sampling(max_tokens=1), Named("long", print))
        engine.submit(some(2, 6), Sampling(max_tokens=1), Named("short", print))

    first = Named("first", both)
    engine.submit(some(5, 3), Sampling(max_tokens=60, ignore_end=True), first)
    first.wait()
    assert order == ["first", "short", "long"]


def test_who_leaves_while_its_prompt_is_read_is_read_no_further(engine: LocalEngine) -> None:
    done, heard = counted(engine), Heard()
    handles: list[Any] = []

    def leave() -> None:
        handles.append(engine.submit(some(1, 20 * SIZE), Sampling(max_tokens=1), heard))
        running.then = handles[0].cancel

    running = _Late(leave)
    engine.submit(some(5, 3), Sampling(max_tokens=60, ignore_end=True), running)
    running.wait()
    assert heard.wait().finished.reason == "cancelled"
    assert sum(n for what, n in done if what == "read") < 6 * SIZE


def test_a_scored_prompt_in_pieces_has_the_models_own_probabilities(engine: LocalEngine) -> None:
    prompts = [some(seed, 5 * SIZE + 3) for seed in (1, 2)] + [some(3, 9)]
    heard = ask_all(engine, prompts, max_tokens=0, logprobs=3, prompt_logprobs=True)
    for prompt, said in zip(prompts, heard, strict=True):
        with torch.no_grad():
            logits = engine.model(torch.tensor([prompt.ids])).logits[0]
        known = torch.log_softmax(logits, -1)
        first, *rest = said.started.prompt
        assert (first.id, first.logprob) == (prompt.ids[0], None)
        assert [token.id for token in rest] == list(prompt.ids[1:])
        for place, token in enumerate(rest):
            assert token.logprob == pytest.approx(float(known[place, token.id]), abs=1e-4)
            best = known[place].topk(3).values.tolist()
            assert [each.logprob for each in token.top] == pytest.approx(best, abs=1e-4)


def test_equal_prompts_that_come_together_are_read_once(engine: LocalEngine) -> None:
    length = 8 * PAGE + 1
    done = counted(engine)
    hold = _Late(lambda: [ask(engine, long, **how) for _ in range(3)])
    long, how = some(1, length), {"max_tokens": 2, "ignore_end": True}
    engine.submit(some(5, 3), Sampling(max_tokens=80, ignore_end=True), hold)
    hold.wait()
    assert sum(n for what, n in done if what == "read") <= 3 + length + 2 * PAGE


def test_the_same_conversation_again_reads_less_than_a_page_anew(engine: LocalEngine) -> None:
    long = some(1, 200)
    (first,) = ask_all(engine, [long], max_tokens=NEW, ignore_end=True)
    done = counted(engine)
    (second,) = ask_all(engine, [long], max_tokens=NEW, ignore_end=True)
    assert second.text == first.text
    assert second.started.cached >= len(long.ids) - PAGE
    assert sum(n for what, n in done if what == "read") <= PAGE
    state = engine.state()
    assert (state.prefix_hits, state.prefix_misses) == (1, 1)
    assert state.prefix_bytes == engine.prefixes.size > 0
    # What was answered is kept, too: the next turn begins after it.
    turn = Prompt((*long.ids, *[token.id for token in _tokens(engine, long)], 7, 8, 9))
    (third,) = ask_all(engine, [turn], max_tokens=1)
    assert third.started.cached >= len(long.ids) + NEW - PAGE


def test_a_prompt_that_cannot_be_kept_is_answered_all_the_same(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = some(1, 60)
    (before,) = ask_all(engine, [long], max_tokens=NEW, ignore_end=True)
    engine.prefixes.most = 0
    engine.prefixes._make_room(0, ())

    def full(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.prefixes, "keep", full)
    (said,) = ask_all(engine, [long], max_tokens=NEW, ignore_end=True)
    assert said.text == before.text
    assert said.started.cached == 0


def _tokens(engine: LocalEngine, prompt: Prompt) -> Any:
    (said,) = ask_all(engine, [prompt], max_tokens=NEW, ignore_end=True, logprobs=0)
    return said.tokens


def test_a_model_that_takes_no_pieces_reads_prompts_whole(
    llm_folder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fixed: None
) -> None:
    """A class that can only read a prompt at once, and then single tokens: nothing is cut, nothing reused."""
    model, tokenizer = open_model(llm_folder("llama"))
    layer = type(model.model.layers[0].self_attn)
    forward = layer.forward

    def refuses(self: Any, hidden_states: Any, *given: Any, **how: Any) -> Any:
        cache = how[CACHE]
        known = 0 if cache is None else cache.get_seq_length(self.layer_idx)
        if hidden_states.shape[1] > 1 and known:
            raise ValueError("no pieces")
        return forward(self, hidden_states, *given, **how)

    monkeypatch.setattr(layer, "forward", refuses)
    engine = LocalEngine(model, tokenizer)
    try:
        state = engine.state()
        assert (state.batching, state.reading) == ("continuous", "whole")
        assert "no pieces" in state.reading_note
        long, done = some(1, 6 * SIZE), counted(engine)
        first, second = (
            ask_all(engine, [long], max_tokens=3, ignore_end=True)[0] for _ in range(2)
        )
        assert first.text == second.text
        assert second.started.cached == 0
        assert [n for what, n in done if what == "read"] == [6 * SIZE] * 2
    finally:
        engine.close()


def test_a_pace_follows_the_time() -> None:
    pace = reading_module.Pace()
    for _ in range(20):
        pace.took(pace.size, pace.size / 1000, 0.3)  # a thousand positions a second
    assert pace.size == pytest.approx(300, abs=2)
    pace.took(3, 0.02, 0.3)  # a short rest of a prompt says nothing
    assert pace.size == pytest.approx(300, abs=2)
    for _ in range(20):
        pace.took(pace.size, pace.size / 200, 0.3)  # another program takes the cores
    assert pace.size == pytest.approx(60, abs=2)
    for _ in range(20):
        pace.took(pace.size, 10.0, 0.3)
    assert pace.size == reading_module.LEAST
