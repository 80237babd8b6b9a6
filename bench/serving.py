"""Serving: our continuous batching against ``transformers serve``, on the same folder and in the same run.

The models are the starter with ``mlp`` (0.6 M parameters) and a Llava of about 100 M (a SigLIP tower of 18 M, 64
image tokens, a Llama of 85 M; random weights), both exported as native Llava in float32 without an end token.
Clients use the official async OpenAI client with streaming, a distinct image (or question, for text) per request,
a fixed ``max_tokens`` and greedy decoding; each sends its next request when its last has ended. For text only, the
language models of both are compared with ``transformers serve --continuous-batching``.

    python -m bench.serving [--models starter llava] [--clients 1 4 16] [--new 64] [--rounds 3] [--out FILE]

Every server runs in its own process with all cores and is warmed up before it is timed; the two take turns, round
by round, and the medians are printed. Then, with both servers stopped, this process runs one left-padded
``generate`` over sixteen such requests, preparation included. It is tried with every number of threads that the
server chooses from, in turn and warmed up, and the best median counts: with two threads on two cores a small model
is no faster, and ten times slower whenever anything else runs.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import torch
import transformers
from PIL import Image
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from modalign.models.compose import compose, load_language_model
from modalign.models.encoders.image import load_image_encoder
from modalign.models.export import save_model
from modalign.models.open import open_model
from modalign.serving.threads import candidates
from modalign.starter.build import starter

QUESTION = "which digit is on the left of the picture ?"
REQUESTS = 2  # of every client in a round; a single client sends four
SIDE = 96  # pixels of a picture


@dataclass(frozen=True)
class Round:
    """One server, one number of clients.

    Attributes:
        throughput: tokens per second over all clients.
        first: mean seconds to the first token.
    """

    throughput: float
    first: float


def no_end(folder: Path) -> None:
    """Take the end token out of a folder's generation configuration."""
    file = folder / "generation_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values.pop("eos_token_id", None)
    file.write_text(json.dumps(values), encoding="utf-8")


def build_starter(folder: Path) -> None:
    parts = starter()
    llm = load_language_model(str(parts.llm))
    save_model(*compose(llm, load_image_encoder(str(parts.encoder)), "mlp"), folder)
    save_text(folder.with_name("starter-text"), str(parts.llm))


def build_llava(folder: Path) -> None:
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_hidden_layers=10,
            num_attention_heads=6,
            image_size=128,
            patch_size=16,
            vision_use_head=False,
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(starter().llm)
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=1024,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    with tempfile.TemporaryDirectory() as place:
        tower.save_pretrained(f"{place}/tower")
        side = {"height": 128, "width": 128}
        SiglipImageProcessorPil(size=side).save_pretrained(f"{place}/tower")
        llm.save_pretrained(f"{place}/llm")
        tokenizer.save_pretrained(f"{place}/llm")
        loaded = load_language_model(f"{place}/llm")
        save_model(*compose(loaded, load_image_encoder(f"{place}/tower"), "mlp"), folder)
        save_text(folder.with_name("llava-text"), f"{place}/llm")


def save_text(folder: Path, llm: str) -> None:
    """Save the language model alone."""
    model, tokenizer = open_model(llm)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    no_end(folder)


BUILDERS = {"starter": build_starter, "llava": build_llava}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(kind: str, folder: Path, batching: bool, log: Path) -> Iterator[str]:
    """Run a server; yield its base URL."""
    port = free_port()
    place = Path(sys.executable).parent
    address = ["--host", "127.0.0.1", "--port", str(port)]
    if kind == "ours":
        command = [str(place / "modalign"), "serve", str(folder), *address]
    else:
        command = [str(place / "transformers"), "serve", str(folder), *address]
        command += ["--continuous-batching"] if batching else []
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the server ended ({process.returncode}): {log.read_text()[-2000:]}")
        try:
            if httpx2.get(url, timeout=2).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server did not come up: {log.read_text()[-2000:]}")


def picture(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def messages(number: int, sees: bool) -> list[dict[str, Any]]:
    """Return one request's conversation; no two are alike."""
    if not sees:
        return [{"role": "user", "content": f"{QUESTION} {number}"}]
    url = "data:image/png;base64," + base64.b64encode(picture(number)).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]


class Numbers:
    """Numbers for requests, none given twice."""

    def __init__(self) -> None:
        self.next = 0

    def take(self) -> int:
        """Return the next one."""
        self.next += 1
        return self.next


async def one(client: Any, model: str, number: int, sees: bool, new: int) -> float:
    """Return the seconds to the first token of one request, which is read to its end."""
    begun = time.perf_counter()
    stream = await client.chat.completions.create(
        model=model, messages=messages(number, sees), max_tokens=new, temperature=0, stream=True
    )
    first = None
    async for chunk in stream:
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - begun
    return first if first is not None else time.perf_counter() - begun


async def measure(
    url: str, model: str, clients: int, sees: bool, new: int, numbers: Numbers
) -> Round:
    """Run all clients at once, each sending its requests one after another."""
    client = openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600, max_retries=0)
    each = REQUESTS * 2 if clients == 1 else REQUESTS

    async def talk() -> list[float]:
        return [await one(client, model, numbers.take(), sees, new) for _ in range(each)]

    begun = time.perf_counter()
    found = await asyncio.gather(*(talk() for _ in range(clients)))
    seconds = time.perf_counter() - begun
    await client.close()
    waits = [wait for own in found for wait in own]
    return Round(len(waits) * new / seconds, statistics.fmean(waits))


def compare(
    folder: Path, clients: Sequence[int], sees: bool, new: int, rounds: int, logs: Path
) -> dict[str, dict[int, Round]]:
    """Compare both servers; both are up but take turns, round by round."""
    numbers = Numbers()
    found: dict[str, dict[int, list[Round]]] = {
        kind: {n: [] for n in clients} for kind in ("ours", "transformers")
    }
    with ExitStack() as stack:
        urls = {
            kind: stack.enter_context(
                server(kind, folder, not sees, logs / f"{folder.name}-{kind}.log")
            )
            for kind in found
        }
        names = {"ours": folder.name, "transformers": str(folder)}
        for kind, url in urls.items():
            asyncio.run(measure(url, names[kind], 2, sees, 8, numbers))
        for turn in range(rounds):
            for n in clients:
                for kind in sorted(urls, reverse=bool(turn % 2)):
                    got = asyncio.run(measure(urls[kind], names[kind], n, sees, new, numbers))
                    found[kind][n].append(got)
    return {kind: {n: median(got) for n, got in own.items()} for kind, own in found.items()}


def median(rounds: Sequence[Round]) -> Round:
    return Round(
        statistics.median(each.throughput for each in rounds),
        statistics.median(each.first for each in rounds),
    )


@torch.inference_mode()
def generate(folder: Path, count: int, new: int, rounds: int) -> dict[int, float]:
    """Return tokens per second of one left-padded ``generate`` over ``count`` requests, by number of threads."""
    model, processor = open_model(folder)
    before = torch.get_num_threads()
    rates: dict[int, list[float]] = {threads: [] for threads in candidates(before)}
    for turn in range(rounds + 1):
        for threads, own in rates.items():
            torch.set_num_threads(threads)
            pictures = [picture(10_000 * (turn + 1) + n) for n in range(count)]
            begun = time.perf_counter()
            inputs = padded(processor, pictures)
            model.generate(**inputs, max_new_tokens=new, do_sample=False)
            own.append(count * new / (time.perf_counter() - begun))
    torch.set_num_threads(before)
    return {threads: statistics.median(own[1:]) for threads, own in rates.items()}


def padded(processor: Any, pictures: Sequence[bytes]) -> Any:
    """Return the question about every picture, as one batch."""
    talks = []
    for encoded in pictures:
        image = {"type": "image", "image": Image.open(io.BytesIO(encoded)).convert("RGB")}
        talks.append([{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}])
    return processor.apply_chat_template(
        talks,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def show(name: str, found: dict[str, dict[int, Round]], alone: dict[int, float] | None) -> None:
    print(f"\n{name}")
    print("clients   tokens/s ours  transformers  ratio    first token ours  transformers  ratio")
    for n, ours in found["ours"].items():
        theirs = found["transformers"][n]
        print(
            f"{n:7d} {ours.throughput:15.0f} {theirs.throughput:13.0f} "
            f"{ours.throughput / theirs.throughput:6.2f} {ours.first * 1e3:17.0f} ms "
            f"{theirs.first * 1e3:10.0f} ms {ours.first / theirs.first:6.2f}"
        )
    if alone is not None:
        most = max(found["ours"])
        best = max(alone.values())
        rates = ", ".join(f"{rate:.0f} with {n} threads" for n, rate in alone.items())
        share = found["ours"][most].throughput / best
        print(
            f"one generate over {most}: tokens/s {rates}; ours at {most} clients: {share:.2f} of the best"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving")
    parser.add_argument("--models", nargs="+", choices=list(BUILDERS), default=list(BUILDERS))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-text", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name in chosen.models:
            folder = root / name
            BUILDERS[name](folder)
            no_end(folder)
            how = (chosen.clients, chosen.new, chosen.rounds)
            seen = compare(folder, how[0], True, *how[1:], root)
            alone = generate(folder, max(chosen.clients), chosen.new, chosen.rounds)
            show(f"{name}: an image and a question", seen, alone)
            results[name] = {"image": plain(seen), "generate": alone}
            if not chosen.no_text:
                said = compare(folder.with_name(f"{name}-text"), how[0], False, *how[1:], root)
                show(f"{name}: text only (theirs with --continuous-batching)", said, None)
                results[name]["text"] = plain(said)
    if chosen.out:
        chosen.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def plain(found: dict[str, dict[int, Round]]) -> dict[str, Any]:
    return {kind: {str(n): asdict(got) for n, got in own.items()} for kind, own in found.items()}


if __name__ == "__main__":
    main()
