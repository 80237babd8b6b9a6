"""Run the server and both harnesses as separate processes, and read what they wrote."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "tasks"
READY = re.compile(r"served at (\S+)/v1")
NAME = "model"


class HarnessError(Exception):
    """A process failed; the message holds the end of its output."""


@dataclass(frozen=True)
class Scored:
    """A tool's result for one question.

    Attributes:
        score: 1 for right, 0 for wrong.
        output: the answer's text; empty for choices.
        options: log-likelihoods of the options; empty for free answers.
    """

    score: float
    output: str = ""
    options: tuple[float, ...] = ()


def run(program: Sequence[str | Path], log: Path, **environment: str) -> None:
    """Run a process to its end, in its log's folder.

    Raises:
        HarnessError: it failed.
    """
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(
            [str(word) for word in program],
            cwd=log.parent,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            check=False,
        )
    if done.returncode:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise HarnessError(f"{program[0]} failed ({done.returncode}); see {log}:\n{end}")


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """Run ``modalign serve`` on a free port; yield its address without ``/v1``.

    Raises:
        HarnessError: it ended before it was ready.
    """
    command = [sys.executable, "-m", "modalign", "serve", str(model), "--port", "0"]
    with log.open("w", encoding="utf-8") as errors:
        server = subprocess.Popen(
            [*command, "--served-name", NAME], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert server.stdout is not None
            found = next((m for line in server.stdout if (m := READY.search(line))), None)
            if found is None:
                raise HarnessError(f"the server did not start; see {log}")
            yield found.group(1)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def modalign_eval(model: Path, data: Path, out: Path, *options: str) -> list[Scored]:
    """Run ``modalign eval``; return its records in the file's order."""
    command = [sys.executable, "-m", "modalign", "eval", model, data, "--out", out, "--json"]
    run([*command, *options], out.with_suffix(".log"))
    rows = read_rows(out)
    return [
        Scored(
            float(row["score"]),
            row["output"] or "",
            tuple(row["details"].get("loglikelihoods", ())),
        )
        for row in rows
    ]


def lmms_eval(python: Path, url: str, work: Path, data: Path) -> list[Scored]:
    """Run lmms-eval's chat model ``openai`` on the pictures; return its records."""
    out = work / "lmms-eval"
    arguments = (
        f"model_version={NAME},base_url={url}/v1,api_key=none,num_concurrent=4,max_retries=1"
    )
    run(
        [
            python, "-m", "lmms_eval", "--model", "openai", "--model_args", arguments,
            "--tasks", "modalign_scenes", "--include_path", TASKS / "lmms",
            "--batch_size", "1", "--log_samples", "--output_path", out,
        ],
        work / "lmms-eval.log",
        **_offline(work),
    )  # fmt: skip
    rows = sorted(samples(out, "modalign_scenes"), key=lambda row: int(row["doc_id"]))
    asked = [row["id"] for row in read_rows(data)]
    if len(rows) != len(asked):
        raise HarnessError(f"lmms-eval wrote {len(rows)} records for {len(asked)} questions")
    return [Scored(float(row["exact_match"]), _text(row["filtered_resps"])) for row in rows]


def lm_eval(python: Path, url: str, work: Path, model: Path, data: Path) -> list[Scored]:
    """Run lm-evaluation-harness's ``local-completions`` on the choices; return its records."""
    out = work / "lm-eval"
    arguments = (
        f"model={NAME},base_url={url}/v1/completions,tokenizer={model},tokenizer_backend=huggingface,"
        "num_concurrent=4,max_retries=1"
    )
    run(
        [
            python, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments,
            "--tasks", "modalign_choices", "--include_path", TASKS / "lm",
            "--batch_size", "1", "--log_samples", "--output_path", out,
        ],
        work / "lm-eval.log",
        OPENAI_API_KEY="none",
        **_offline(work),
    )  # fmt: skip
    rows = sorted(samples(out, "modalign_choices"), key=lambda row: int(row["doc_id"]))
    asked = [row["id"] for row in read_rows(data)]
    if [row["doc"]["id"] for row in rows] != asked:
        raise HarnessError("lm-eval did not score the questions that were written")
    return [
        Scored(float(row["acc"]), options=tuple(float(each[0][0]) for each in row["resps"]))
        for row in rows
    ]


def _offline(work: Path) -> dict[str, str]:
    """Return an environment without the hub: data sets are local files, caches this run's own."""
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(work / "hf"),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """Read what ``--log_samples`` wrote for a task.

    Raises:
        HarnessError: there is not exactly one such file.
    """
    files = sorted(folder.rglob(f"*samples*{task}*.jsonl"))
    if len(files) != 1:
        raise HarnessError(f"{folder} holds {len(files)} files of samples of {task}, not one")
    return read_rows(files[0])


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _text(value: Any) -> str:
    """Unwrap the one answer from nested lists."""
    while isinstance(value, list):
        (value,) = value
    return str(value)
