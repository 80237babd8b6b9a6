"""Nothing that one row does touches another: numbers that overflow, errors of its own, steps that fail.

``temperature`` 5e-38 beside six running clients gave all seven a 500.
A prompt scored with twenty alternatives to every token kept all others waiting for seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from modalign.models.open import open_model
from modalign.serving import engine as engine_module
from modalign.serving.engine import LocalEngine
from modalign.serving.requests import Prompt, Sampling
from modalign.serving.rows import Row
from modalign.serving.text import Spelling
from reports.threads import reported
from serving.collected import Heard, ask, ask_all

WORDS = ("red", "is the ball left of", "how many", "seven and two are")
HOW: Any = {"max_tokens": 6, "ignore_end": True}


@pytest.fixture(scope="module", params=["batched", "one by one"])
def engine(request: Any, llm_folder: Callable[..., Any]) -> Iterator[LocalEngine]:
    model, tokenizer = open_model(llm_folder("llama"))
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "one by one":
            patched.setattr(engine_module, "why_not_batched", lambda *_: "it was asked for")
        made = LocalEngine(model, tokenizer)
    yield made
    made.close()


@pytest.fixture(scope="module")
def expected(engine: LocalEngine) -> list[str]:
    return [heard.text for heard in ask_all(engine, prompts(engine), **HOW)]


def prompts(engine: LocalEngine) -> list[Prompt]:
    return [engine.text_prompt(words) for words in WORDS]


def beside(engine: LocalEngine, odd: Prompt, **how: Any) -> tuple[Heard, list[str]]:
    """What an odd request is told, and the texts of the others that ran with it."""
    asked = prompts(engine)
    first = [ask(engine, prompt, **HOW) for prompt in asked[:2]]
    strange = ask(engine, odd, **{**HOW, **how})
    rest = [ask(engine, prompt, **HOW) for prompt in asked[2:]]
    return strange.wait(), [heard.wait().text for heard in [*first, *rest]]


@reported("vllm-project/vllm#1623", "microsoft/aici#19")
@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 5e-38, 1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("top_p", [1.0, 5e-324])
def test_no_temperature_overflows(
    engine: LocalEngine, expected: list[str], temperature: float, top_p: float
) -> None:
    asked = engine.text_prompt(WORDS[0])
    odd, others = beside(engine, asked, temperature=temperature, top_p=top_p, seed=1)
    assert others == expected
    assert odd.text == expected[0]  # the greedy choice
    assert odd.finished.reason == "length"


@reported("vllm-project/vllm#1623")
@pytest.mark.parametrize("broken", ["choose", "take", "start"])
def test_an_error_of_a_rows_own_ends_that_row(
    engine: LocalEngine, expected: list[str], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its sampling, its stop texts or its probabilities raise."""
    whole = getattr(Row, broken)

    def fails(row: Row, *given: Any) -> Any:
        if row.sampling.logprobs is not None and (broken == "start" or len(row.made) == 2):
            raise ValueError("a stop text that cannot be")
        return whole(row, *given)

    monkeypatch.setattr(Row, broken, fails)
    odd, others = beside(engine, engine.text_prompt("x"), logprobs=2)
    assert others == expected
    assert odd.finished.error == "ValueError: a stop text that cannot be"
    assert odd.count == (0 if broken == "start" else 2)


@reported("QwenLM/Qwen3#212")
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"logprobs": 3}])
def test_logits_that_are_no_numbers_end_their_row(
    engine: LocalEngine,
    expected: list[str],
    number: float,
    how: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = engine.text_prompt("x")
    bias = engine.model.lm_head

    def spoilt(module: Any, given: Any, logits: torch.Tensor) -> torch.Tensor:
        marked = spoilt_rows(logits)
        return torch.where(marked[:, None, None], number, logits)

    def spoilt_rows(logits: torch.Tensor) -> torch.Tensor:
        rows = engine._rows if len(engine._rows) == len(logits) else []
        found = [row.prompt == odd and len(row.made) > 1 for row in rows]
        return torch.tensor(found or [False] * len(logits))

    hook = bias.register_forward_hook(spoilt)
    try:
        told, others = beside(engine, odd, **how)
    finally:
        hook.remove()
    assert others == expected
    assert "no numbers that can be compared" in str(told.finished.error)
    (after,) = ask_all(engine, [odd], **HOW)  # nothing of it was kept
    assert after.finished.reason == "length"


@reported("vllm-project/vllm#6176")
def test_a_step_that_fails_is_taken_row_by_row(
    engine: LocalEngine, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.note:
        pytest.skip("there are no steps of several rows")
    step, prefill, odd = engine.runner.step, engine.runner.prefill, engine.text_prompt("x")

    def fails(ids: Any, slots: Any, memories: Any) -> Any:
        if any(row.prompt == odd and len(row.made) == 3 for row in engine._rows):
            raise RuntimeError("out of memory")
        return step(ids, slots, memories)

    def reads(asked: Any, *known: Any, **how: Any) -> Any:
        if any(prompt.ids[:-3] == odd.ids for prompt in asked):
            raise RuntimeError("out of memory")
        return prefill(asked, *known, **how)

    monkeypatch.setattr(engine.runner, "step", fails)
    monkeypatch.setattr(engine.runner, "prefill", reads)
    told, others = beside(engine, odd)
    assert others == expected
    assert told.finished.error == "RuntimeError: out of memory"


@reported("sgl-project/sglang#10805", "vllm-project/vllm#5872")
def test_a_scored_prompt_lets_others_go_on(
    engine: LocalEngine, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens get their names while others are answered; what it is told is what it was."""
    odd = engine.text_prompt(" ".join(WORDS))
    how: Any = {"logprobs": 5, "prompt_logprobs": True}
    (before,) = ask_all(engine, [odd], **{**HOW, **how})
    go, began = threading.Event(), threading.Event()
    named = Spelling._named

    def slowly(spelling: Spelling, token: int, first: bool) -> Any:
        if threading.current_thread().name.startswith("modalign-scores"):
            began.set()
            assert go.wait(60)
        return named(spelling, token, first)

    if engine.note:
        pytest.skip("others wait for the whole answer")
    monkeypatch.setattr(engine.spelling, "named", slowly.__get__(engine.spelling))
    scored = ask(engine, odd, **{**HOW, **how})
    only = ask(engine, odd, **{**how, "max_tokens": 0})
    assert began.wait(60)
    assert [heard.text for heard in ask_all(engine, prompts(engine), **HOW)] == expected
    assert not scored.done.is_set()
    assert not only.done.is_set()
    go.set()
    assert scored.wait().events == before.events
    assert only.wait().started.prompt == before.started.prompt
    assert before.count == HOW["max_tokens"]


@reported("pegainfer-project/pegainfer#215")
def test_who_leaves_while_its_prompt_is_scored(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.note:
        pytest.skip("it is scored on the model's thread")
    heard, odd = Heard(), engine.text_prompt(" ".join(WORDS))
    named, seen = engine.spelling.named, list[int]()

    def leaves(token: int, first: bool) -> Any:
        seen.append(token)
        handle.cancel()
        return named(token, first)

    gate = threading.Event()
    score = Row.prompt_scores
    monkeypatch.setattr(
        Row, "prompt_scores", lambda row, *given: gate.wait(60) and score(row, *given)
    )
    monkeypatch.setattr(engine.spelling, "named", leaves)
    sampling = Sampling(max_tokens=3, logprobs=0, prompt_logprobs=True)
    handle = engine.submit(odd, sampling, heard)
    gate.set()
    assert heard.wait().finished.reason == "cancelled"
    assert len(seen) < len(odd.ids)
