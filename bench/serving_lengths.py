"""Serving at real lengths: who waits for whom, compared with ``transformers serve`` and vLLM.

    python -m bench.serving_lengths FOLDER [--servers ours transformers vllm] [--vllm ENVIRONMENT/bin/vllm]
        [--clients 1 4 16] [--new 32] [--long 1000] [--clock cpu] [--out FILE]

FOLDER is a saved language model (``python -m bench.real models`` makes SmolLM2), or ``random``: a Llama of that
size with random weights. All servers are up but take turns, measure by measure. Each measure is taken over HTTP,
streaming and greedy, with prompts that no server has seen:

* short and long prompts from several clients at once, each with one request: tokens per second over all clients,
  the mean time to the first token, and the longest time between two tokens of one answer;
* an answer in progress when a prompt of 4,000 tokens arrives: its longest gap between tokens, and the usual one;
* an answer in progress while texts of 480 tokens are scored: the same (``transformers serve`` cannot score);
* the same conversation of 1,843 tokens twice: the time to the first token of each.

``--clock cpu`` counts CPU seconds of the server's processes instead of wall time. With one thread each
(``OMP_NUM_THREADS=1``) that is about the wall time of an otherwise idle machine; use it on a busy one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import openai
import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bench.serving import free_port, no_end, wait_for
from modalign.starter.build import starter

SHORT = 40  # words of a short prompt
STALL, AGAIN, SCORED = 4000, 1843, 480  # tokens
RUNNING = 2000  # tokens of the answer in progress
WORDS = (
    "time",
    "people",
    "water",
    "number",
    "part",
    "sound",
    "work",
    "place",
    "year",
    "great",
    "house",
)


@dataclass
class Said:
    """One streamed answer: when it was asked for, and when each piece of it came."""

    asked: float
    times: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.times[0] - self.asked

    def gaps(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Return the seconds between two pieces, for gaps that end between ``since`` and ``until``."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [b - a for a, b in pairs if b >= since and a <= until]


def cpu_seconds(process: int) -> float:
    """Return the CPU seconds of a process and of those that it started."""
    spent, tick = 0.0, os.sysconf("SC_CLK_TCK")
    place = Path("/proc") / str(process)
    try:
        fields = (place / "stat").read_text().rpartition(")")[2].split()
        spent += (int(fields[11]) + int(fields[12])) / tick
        for thread in (place / "task").iterdir():
            for child in (thread / "children").read_text().split():
                spent += cpu_seconds(int(child))
    except OSError:
        pass  # it has ended
    return spent


class Server:
    """A server that is up.

    Args:
        kind: ours, transformers or vllm.
        url: of its API.
        model: its name there.
        now: the clock.
    """

    def __init__(self, kind: str, url: str, model: str, now: Callable[[], float]) -> None:
        self.kind, self.model, self.now = kind, model, now
        self.client = openai.AsyncOpenAI(base_url=url, api_key="none", timeout=3600, max_retries=0)

    async def ask(self, text: str, new: int, said: Said | None = None) -> Said:
        """Stream one answer of ``new`` tokens."""
        said = Said(self.now()) if said is None else said
        endless: Any = {} if self.kind == "transformers" else {"extra_body": {"ignore_eos": True}}
        stream = await self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": text}],
            max_tokens=new,
            temperature=0,
            stream=True,
            **endless,
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                said.times.append(self.now())
        if not said.times:
            raise SystemExit(f"{self.kind} sent no text")
        return said

    async def score(self, texts: Sequence[str]) -> None:
        """Have the server score texts."""
        await self.client.completions.create(
            model=self.model, prompt=list(texts), max_tokens=0, echo=True, logprobs=1
        )


@contextmanager
def up(kind: str, folder: Path, log: Path, *, vllm: Path | None, clock: str) -> Iterator[Server]:
    """Run a server."""
    port = free_port()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    place = Path(sys.executable).parent
    environment = dict(os.environ)
    if kind == "ours":
        command = [str(place / "modalign"), "serve", str(folder), *address]
    elif kind == "transformers":
        command = [str(place / "transformers"), "serve", str(folder), "--continuous-batching"]
        command += address
    else:
        command = [str(vllm), "serve", str(folder), "--dtype", "float32", "--enforce-eager"]
        command += ["--max-model-len", "8192", *address]
        environment.pop("PYTHONPATH", None)
        environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log, 900)
            name = folder.name if kind == "ours" else str(folder)
            now = partial(cpu_seconds, process.pid) if clock == "cpu" else time.perf_counter
            yield Server(kind, f"http://127.0.0.1:{port}/v1", name, now)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


class Texts:
    """Texts of a given number of tokens, never the same one twice."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.random = tokenizer, random.Random(0)

    def take(self, tokens: int) -> str:
        """Return a new text."""
        words = [self.random.choice(WORDS) for _ in range(2 * tokens)]
        ids = self.tokenizer(" ".join(words), add_special_tokens=False).input_ids[:tokens]
        return str(self.tokenizer.decode(ids))


async def crowd(
    server: Server, texts: Texts, clients: int, tokens: int, new: int
) -> dict[str, Any]:
    """Run all clients at once, with one request each."""
    begun = server.now()
    said = await asyncio.gather(*(server.ask(texts.take(tokens), new) for _ in range(clients)))
    seconds = server.now() - begun
    return {
        "tokens/s": clients * new / seconds,
        "first": statistics.fmean(each.first for each in said),
        "gap": max(max(each.gaps(), default=0.0) for each in said),
    }


async def beside(server: Server, text: str, other: Any) -> dict[str, Any]:
    """Measure an answer in progress while something else is asked for."""
    running = Said(server.now())
    answer = asyncio.create_task(server.ask(text, RUNNING, running))
    while len(running.times) < 10:
        await asyncio.sleep(0.01)
    begun = server.now()
    found = await other
    ended = server.now()
    first = found.times[0] if isinstance(found, Said) else ended
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)
    usual = statistics.median(running.gaps(until=begun))
    inside = running.gaps(since=begun, until=first)
    return {"usual": usual, "gap": max(inside, default=0.0), "other": first - begun}


def measured(servers: Sequence[Server], texts: Texts, chosen: Any, say: Any) -> dict[str, Any]:
    """Take all measures of all servers, in turn."""
    found: dict[str, dict[str, Any]] = {server.kind: {} for server in servers}

    def note(server: Server, name: str, what: Any) -> None:
        found[server.kind][name] = got = asyncio.run(_closing(server, what))
        say(f"{server.kind:12s} {name:28s} " + "  ".join(f"{k} {v:.3g}" for k, v in got.items()))
        if chosen.out:
            chosen.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")

    for server in servers:  # warmed up
        note(server, "warm", lambda s: crowd(s, texts, 2, 60, 8))
    for server in servers:
        note(
            server,
            f"beside {STALL} tokens",
            lambda s: beside(s, texts.take(SHORT), s.ask(texts.take(STALL), 2)),
        )
    for server in servers:
        note(server, f"{AGAIN} tokens twice", lambda s: twice(s, texts.take(AGAIN - 32)))
    for server in servers:
        if server.kind != "transformers":
            scored = [texts.take(SCORED) for _ in range(chosen.scored)]
            note(
                server,
                f"beside {chosen.scored} scored",
                lambda s, t=scored: beside(s, texts.take(SHORT), s.score(t)),
            )
    for length, name in ((SHORT, "short"), (chosen.long, "long")):
        for clients in chosen.clients if length else ():
            for server in servers:
                note(
                    server,
                    f"{name}, {clients} clients",
                    lambda s, n=clients, t=length: crowd(s, texts, n, t, chosen.new),
                )
    return found


async def _closing(server: Server, what: Any) -> dict[str, Any]:
    """Close the connections afterwards, since they belong to one event loop."""
    got: dict[str, Any] = await what(server)
    await server.client.close()
    server.client = server.client.copy(http_client=None)
    return got


async def twice(server: Server, text: str) -> dict[str, Any]:
    """Time the first token of one conversation, asked twice."""
    first, second = [(await server.ask(text, 4)).first for _ in range(2)]
    return {"first": first, "second": second, "share": second / first}


def prepared(model: str, folder: Path) -> Path:
    """Make a copy of the model without an end token."""
    if model == "random":
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(starter().llm)
        config = LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            eos_token_id=None,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        shutil.copytree(model, folder)
    no_end(folder)
    return folder


def table(found: dict[str, dict[str, Any]]) -> str:
    """Write the measures as Markdown."""
    lines = ["| measure | figure | " + " | ".join(found) + " |", "|---|---|" + "---|" * len(found)]
    for name in next(iter(found.values())):
        if name == "warm":
            continue
        for figure in next(iter(found.values()))[name]:
            cells = [own.get(name, {}).get(figure) for own in found.values()]
            shown = ["-" if cell is None else _shown(figure, cell) for cell in cells]
            lines.append(f"| {name} | {figure} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _shown(figure: str, value: float) -> str:
    if figure == "tokens/s":
        return f"{value:.1f}"
    return f"{value:.3f}" if figure == "share" else f"{value:.2f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving_lengths")
    parser.add_argument("model")
    parser.add_argument("--servers", nargs="+", default=["ours", "transformers"])
    parser.add_argument("--vllm", type=Path, help="vLLM's program, in an environment of its own")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--long", type=int, default=1000, help="tokens of a long prompt; 0: none")
    parser.add_argument("--scored", type=int, default=40, help=f"texts of {SCORED} tokens")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    if "vllm" in chosen.servers and chosen.vllm is None:
        parser.error("--servers vllm needs --vllm")
    transformers.logging.set_verbosity_error()
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)

    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = prepared(chosen.model, Path(place) / "model")
        texts = Texts(AutoTokenizer.from_pretrained(folder))
        servers = []
        for kind in chosen.servers:
            log = Path(place) / f"{kind}.log"
            try:
                servers.append(
                    stack.enter_context(up(kind, folder, log, vllm=chosen.vllm, clock=chosen.clock))
                )
                say(f"{kind} is up")
            except SystemExit as error:
                say(f"{kind} is left out: {error}")
        found = measured(servers, texts, chosen, say)
    print(table(found))


if __name__ == "__main__":
    main()
