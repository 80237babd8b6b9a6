"""The fewest threads that are nearly as fast as the best number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modalign.models.open import open_model
from modalign.serving import threads
from modalign.serving.requests import Prompt
from modalign.serving.runners import runner_of


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
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
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
        assert threads.worthwhile(runner, Prompt((5, 6, 7)), 3) == chosen
