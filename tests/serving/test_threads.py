"""The fewest threads that are nearly as fast as the best number."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from modalign.models.open import open_model
from modalign.serving import threads
from modalign.serving.engine import open_engine
from modalign.serving.requests import Prompt, Sampling
from modalign.serving.runners import runner_of
from serving.collected import Heard


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 2: 0.95, 4: 0.92}, 1),  # not worth it
        ({1: 2.0, 2: 1.0, 4: 0.95}, 2),
        ({1: 4.0, 2: 2.0, 4: 1.0}, 4),
        ({1: 1.0, 2: 1.5, 4: 3.0}, 1),
    ],
)
def test_more_threads_must_be_worth_it(
    llm_folder: Any, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], chosen: int
) -> None:
    runner = runner_of(open_model(llm_folder("llama"))[0], ())
    now = {"count": 4, "time": 0.0}
    monkeypatch.setattr(torch, "set_num_threads", lambda count: now.update(count=count))
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now["time"])
    step, prefill = runner.step, runner.prefill

    def slow(*arguments: Any) -> Any:
        now["time"] += seconds[int(now["count"])] / 2
        return step(*arguments)

    def slow_reading(*arguments: Any) -> Any:
        now["time"] += seconds[int(now["count"])] / 2 * threads.ANSWER / 3
        return prefill(*arguments)

    monkeypatch.setattr(runner, "step", slow)
    monkeypatch.setattr(runner, "prefill", slow_reading)
    with torch.inference_mode():
        assert threads.worthwhile(runner, Prompt((5, 6, 7)), 3, [1, 2, 4]) == chosen


def test_only_the_models_thread_has_companions(llm_folder: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen: list[int] = []
    try:
        engine = open_engine(llm_folder("llama"), device="cpu", threads=2)
        heard = Heard()
        step = engine.runner.step

        def noted(*arguments: Any) -> Any:
            seen.append(torch.get_num_threads())
            return step(*arguments)

        engine.runner.step = noted  # type: ignore[method-assign]
        engine.submit(engine.text_prompt("x"), Sampling(max_tokens=3, ignore_end=True), heard)
        heard.wait()
        seen.append(torch.get_num_threads())
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        engine.close()
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2, 1, 1]


def test_a_large_model_begins_with_all_threads() -> None:
    assert threads.candidates(6) == [1, 2, 4, 6]
    assert threads.small(torch.nn.Linear(2, 2))
    assert not threads.small(torch.nn.Linear(threads.LARGE, 1, device="meta"))
