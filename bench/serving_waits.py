"""Who waits for whom in the serving engine, in CPU seconds of the model's thread, without network or clients?

    OMP_NUM_THREADS=1 python -m bench.serving_waits FOLDER [--long 4000] [--scored 8] [--out FILE]

FOLDER is a saved language model (``python -m bench.real models`` makes SmolLM2). The clock is the CPU time of the
model's thread, which also decides how long its pieces of work are; so the figures are those of one idle core,
whatever else the machine does. It prints

* the usual gap between two tokens of an answer, and its longest gap while a long prompt is read;
* the longest gap while texts of 480 tokens are scored (``echo`` with log-probabilities), and the time to the first
  token of a short request that arrives meanwhile;
* the time to the first token of a conversation of 1,843 tokens, and of the same one again.

``bench.serving_lengths`` measures the same over HTTP, and other servers as well.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from modalign.models.open import open_model
from modalign.serving import engine as engine_module
from modalign.serving import reading as reading_module
from modalign.serving.engine import LocalEngine
from modalign.serving.requests import Delta, Event, Finished, Prompt, Sampling, Started

AGAIN, SCORED, SHORT = 1843, 480, 40  # tokens
clock = time.thread_time


class Heard:
    """When each token of an answer came, by the model's thread."""

    def __init__(self) -> None:
        self.times = list[float]()
        self.done, self.going = threading.Event(), threading.Event()
        self.cached = 0

    def __call__(self, event: Event, /, more: bool = False) -> None:
        """Take an event."""
        if isinstance(event, Started):
            self.cached = event.cached
        if isinstance(event, Delta):
            self.times.append(clock())
        if isinstance(event, Finished) or len(self.times) > SHORT // 4:
            self.going.set()
        if isinstance(event, Finished):
            self.times.append(clock())
            self.done.set()

    def longest(self, since: float, until: float) -> float:
        """Return the longest gap that overlaps the time between ``since`` and ``until``."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((b - a for a, b in pairs if b > since and a < until), default=0.0)


class Bench:
    """An engine, and prompts that it has not seen."""

    def __init__(self, folder: Path) -> None:
        model, tokenizer = open_model(folder)
        shim = SimpleNamespace(perf_counter=clock, monotonic=time.monotonic)
        reading_module.time = engine_module.time = shim  # type: ignore[assignment]
        self.engine = LocalEngine(model, tokenizer, threads=1)
        self.random, self.size = random.Random(0), len(tokenizer)

    def prompt(self, tokens: int) -> Prompt:
        """Return random ids."""
        return Prompt(tuple(self.random.randrange(100, self.size) for _ in range(tokens)))

    def now(self) -> float:
        """Return the CPU time of the model's thread, which it reports between two pieces of work."""
        heard = Heard()
        self.ask(self.prompt(1), heard, 1).done.wait()
        return heard.times[-1]

    def ask(self, prompt: Prompt, heard: Heard, new: int, **how: Any) -> Heard:
        """Submit a request."""
        self.engine.submit(prompt, Sampling(max_tokens=new, ignore_end=True, **how), heard)
        return heard

    def running(self) -> tuple[Any, Heard]:
        """Start an answer, and return it once it is in progress."""
        heard = Heard()
        sampling = Sampling(max_tokens=2000, ignore_end=True)
        handle = self.engine.submit(self.prompt(SHORT), sampling, heard)
        heard.going.wait()
        return handle, heard

    def beside(self, prompts: Sequence[Prompt], new: int, **how: Any) -> dict[str, float]:
        """Measure an answer in progress while others are asked for, and a short request that follows them."""
        handle, heard = self.running()
        usual = statistics.median(b - a for a, b in zip(heard.times, heard.times[1:], strict=False))
        begun = heard.times[-1]
        others = [self.ask(prompt, Heard(), new, **how) for prompt in prompts]
        late = self.ask(self.prompt(SHORT), Heard(), 1)
        late.done.wait()
        found = {"usual gap": usual, "newcomer's first token": late.times[0] - begun}
        for other in others:
            other.done.wait()
        ended = max(other.times[-1] for other in others)
        found |= {"longest gap": heard.longest(begun, ended), "all read after": ended - begun}
        handle.cancel()
        heard.done.wait()
        return found

    def first(self, prompt: Prompt) -> float:
        """Return the seconds to the first token of a request that runs alone."""
        begun = self.now()
        heard = self.ask(prompt, Heard(), 1)
        heard.done.wait()
        return heard.times[0] - begun


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving_waits")
    parser.add_argument("model", type=Path)
    parser.add_argument("--long", type=int, default=4000, help="tokens of the long prompt")
    parser.add_argument("--scored", type=int, default=8, help=f"texts of {SCORED} tokens")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    bench = Bench(chosen.model)
    found: dict[str, dict[str, float]] = {}

    def note(name: str, got: dict[str, float]) -> None:
        found[name] = got
        print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in got.items()), flush=True)
        if chosen.out:
            chosen.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    try:
        bench.first(bench.prompt(200))  # warmed up
        again = bench.prompt(AGAIN)
        first, second = bench.first(again), bench.first(again)
        note(
            f"a conversation of {AGAIN} tokens twice",
            {"first token": first, "again": second, "share": second / first},
        )
        note(
            f"beside a prompt of {chosen.long} tokens",
            bench.beside([bench.prompt(chosen.long)], 1),
        )
        scored = [bench.prompt(SCORED) for _ in range(chosen.scored)]
        note(
            f"beside {chosen.scored} scored texts",
            bench.beside(scored, 0, prompt_logprobs=True, logprobs=1),
        )
    finally:
        bench.engine.close()


if __name__ == "__main__":
    main()
