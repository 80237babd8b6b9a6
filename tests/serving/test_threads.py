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


class Machine:
    """A clock that work moves on, by the number of threads that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
        self.now, self.count, self.seconds = 0.0, 0, seconds
        self.spent = dict.fromkeys(seconds, 0.0)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(self, "count", count))
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)

    def work(self, found: threads.Threads, pieces: int, units: int = 1, kind: str = "step") -> None:
        for piece in range(pieces):
            with found.work(kind, units):
                took = self.seconds[self.count] * units * (1 + piece % 3 / 50)
                self.now += took
                self.spent[self.count] += took


BUSY, IDLE = {1: 0.1, 2: 0.5, 4: 0.9}, {1: 0.1, 2: 0.06, 4: 0.04}


def test_threads_follow_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs come and go: the number is the best one within a few pieces of work, both times."""
    machine = Machine(monkeypatch, BUSY)
    found = threads.Threads([1, 2, 4])
    found.begin(4)
    machine.work(found, 40)
    assert found.of("step") == 1
    machine.spent = dict.fromkeys(BUSY, 0.0)
    machine.work(found, 10_000)  # a thousand seconds: others are still tried, but rarely
    assert found.of("step") == 1
    assert 0 < machine.spent[2] < 0.02 * machine.spent[1]
    machine.seconds = IDLE
    machine.work(found, 2500)
    assert found.of("step") == 4
    machine.seconds = BUSY
    machine.work(found, 60)
    assert found.of("step") == 1


def test_threads_are_tried_at_once_when_there_are_more_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch, {1: 0.01, 2: 0.01})
    found = threads.Threads([1, 2])
    found.begin(1)
    machine.work(found, 20_000)
    assert found.of("step") == 1
    machine.seconds = {1: 0.01, 2: 0.006}
    machine.work(found, 400, units=16)
    assert found.of("step") == 2


def test_each_kind_of_work_has_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, IDLE)
    found = threads.Threads([1, 2])
    found.begin(1)
    for turn in range(400):
        machine.seconds = {1: 0.1, 2: 0.1}
        machine.work(found, 1)
        machine.seconds = {1: 0.1, 2: 0.05}
        machine.work(found, 1, units=64 + turn % 3, kind="read")
        machine.work(found, turn % 7 == 0, units=3, kind="read")  # the rest of a prompt
    assert (found.of("step"), found.of("read")) == (1, 2)


def test_a_given_number_is_never_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, BUSY)
    found = threads.Threads([4])
    found.begin(4)
    machine.work(found, 1000)
    assert machine.spent == {1: 0.0, 2: 0.0, 4: pytest.approx(1000 * 0.9, rel=0.05)}
