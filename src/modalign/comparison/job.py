"""A job of a comparison: train and measure one method with one seed in a separate process.

A job writes all its results to its folder; a job with a ``result.json`` is never run again. A separate process
isolates its peak memory and its crashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import socket
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from modalign.cache import cache_directory
from modalign.comparison.config import CompareConfig
from modalign.comparison.inference import (
    evaluate,
    example_answers,
    inference_flops,
    time_to_first_answer,
    tokens_per_medium,
)
from modalign.comparison.metrics import Metric
from modalign.comparison.prepared import StoredData, fill_caches
from modalign.comparison.results import CurvePoint, Trial
from modalign.configuration import read_fields, validated
from modalign.connectors.rungs import standing_of
from modalign.data.stored import MediaOf
from modalign.devices import processor
from modalign.errors import ModalignError, UsageError
from modalign.evaluation.diagnosis.connector_figures import connector_diagnostics
from modalign.evaluation.diagnosis.mir import modality_integration_rate
from modalign.files import replacing, sha256, write_atomically
from modalign.memory import peak_resident, return_freed_memory
from modalign.progress import SCORING
from modalign.runs import RECORD
from modalign.training.budget import Budget
from modalign.training.methods import Method, method_key
from modalign.training.session import Session
from modalign.training.staged import Report
from modalign.training.tracking import Track, open_tracker
from modalign.training.trainer import StepProgress

RUNS = "runs"  # folder within a comparison for the jobs' outputs


class Channel(Protocol):
    """Takes what a job says of its training, to whoever started it."""

    def send(self, message: Any, /) -> None:
        """Send a message."""


@dataclass(frozen=True)
class Job:
    """One method with one seed; a worker reads everything else from the comparison's folder.

    Attributes:
        folder: of the comparison.
        method: the method's name.
        seed: of new weights and data order.
        first: seed of the method's first training, which finds the learning rate for all.
    """

    folder: Path
    method: str
    seed: int
    first: int = 0

    @property
    def key(self) -> str:
        """Its path among the folder's runs."""
        return f"{method_key(self.method)}/seed-{self.seed}"

    @property
    def name(self) -> str:
        """Its displayed name."""
        return f"{self.method} seed {self.seed}"

    @property
    def before(self) -> Job | None:
        """The job that must finish first."""
        return None if self.seed == self.first else replace(self, seed=self.first)

    @property
    def run(self) -> Path:
        """Its output folder."""
        return self.folder / RUNS / self.key

    def result(self) -> JobResult | None:
        """The finished result, if there is one."""
        return read_result(self.run)


def read_result(run: Path) -> JobResult | None:
    """Return the result in a job's folder, if finished.

    Raises:
        ModalignError: the file is damaged.
    """
    path = run / "result.json"
    if not path.exists():
        return None
    try:
        return JobResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModalignError(
            f"{path} cannot be read; delete the folder to run it again ({error})"
        ) from error


class Spent(BaseModel):
    """The cost of a step."""

    samples: int = 0
    seconds: float = 0.0
    flops: float = 0.0


class Place(BaseModel):
    """Where a job ran, as far as its figures depend on it.

    Attributes:
        host: the machine's name.
        processor: its kind.
        threads: of the training.
        device: that it trained on.
    """

    host: str
    processor: str
    threads: int
    device: str


class JobResult(BaseModel):
    """The result of a job. Its answers are in ``scores.npz``."""

    method: str
    seed: int
    failure: str | None = None
    factor: float = 1.0
    learning_rate: float | None = None
    trials: list[Trial] = []
    curve: list[CurvePoint] = []
    samples: int = 0
    seconds: float = 0.0
    judging: float = 0.0  # seconds of asking all validation and evaluation questions; not charged
    validating: float = 0.0  # seconds of validation losses; not charged
    flops: float = 0.0
    search: Spent = Spent()  # the part spent on learning-rate trials; empty if the factor was given
    inference_flops: float | None = None
    parameters: dict[str, int] = {}
    trainable: dict[str, int] = {}
    tokens: int = 0
    peak_memory: int | None = None
    time_to_first_answer: float | None = None
    mir: float | None = None
    diagnostics: dict[str, float] = {}
    val_loss: float | None = None
    weights: str | None = None
    answers: str | None = None
    untrained_loss: float | None = None
    examples: list[str] = []  # answers shown in the report, from the first training
    export_target: str = "remote-code"  # the rung of the export ladder
    gateway: bool = False
    served_by: list[str] = []
    place: Place | None = None  # unknown where an older version ran it


def run_job(
    folder: Path | str,
    key: str,
    *,
    cache: Path | None = None,
    filled: bool = False,
    own_trials: bool = False,
    threads: int | None = None,
    channel: Channel | None = None,
) -> JobResult:
    """Train and measure; write ``result.json``, ``scores.npz`` and ``trained.safetensors``.

    Any machine with access to the folder, the parts and the media can run a job; ``modalign compare
    --resume`` then finds the result. A failed job writes no result and is retried by ``--resume``.

    Args:
        folder: of the comparison.
        key: ``METHOD/seed-N``. Later seeds use the learning rate found by the first.
        cache: of encoder features and tools' results; the user's by default.
        filled: whether the cache already contains everything the job needs.
        own_trials: search the learning rate again, regardless of the first seed's.
        threads: to train with; as many as the comparison would take here by default.
        channel: receives the job's progress.

    Raises:
        UsageError: the folder has no such job, or an earlier job must run first.
    """
    return_freed_memory()
    task = load_task(Path(folder), key, cache or cache_directory(), own_trials)
    if not filled:
        task.fill()
    torch.set_num_threads(threads or task.config.threads)
    task.run.mkdir(parents=True, exist_ok=True)
    result = train_and_measure(task, channel)
    write_atomically(task.run / "result.json", result.model_dump_json(indent=1))
    return result


def attempt(job: Job, cache: Path, filled: bool, threads: int, channel: Channel) -> str | None:
    """Run a job, and return why it failed; a defect is written to a file in full."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        run_job(job.folder, job.key, cache=cache, filled=filled, threads=threads, channel=channel)
    except ModalignError as error:
        return str(error)
    except BrokenPipeError:  # who asked has gone
        raise
    except Exception as error:  # a method's defect must not end the comparison; kept in full
        record = job.run / "error.txt"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(traceback.format_exc(), encoding="utf-8")
        return f"{type(error).__name__}: {error} (in full in {record})"
    return None


@dataclass(frozen=True)
class Task:
    """A job with its data from the comparison's folder.

    Attributes:
        run: the folder that it writes.
        factor: factor for all learning rates; None: find it by trials.
    """

    run: Path
    config: CompareConfig
    data: StoredData
    method: Method
    seed: int
    factor: float | None
    cache: Path

    def fill(self) -> None:
        """Compute features and tool results missing from the cache."""
        config, data = self.config, self.data
        media = [*MediaOf(data.train, data.val, data.evaluation), *data.blanks.values()]
        tokenizer = config.parts.load_llm().tokenizer
        fill_caches(config, [self.method], MediaOf(data.train), media, self.cache, tokenizer)

    def session(self, report: Report | None = None, track: Track | None = None) -> Session:
        """The session that trains it."""
        return Session(
            self.method,
            self.config.parts,
            self.config.training,
            self.data.train,
            self.data.val,
            self.cache,
            self.seed,
            text=self.data.text,
            filled=True,
            report=report,
            track=track,
        )


def load_task(folder: Path, key: str, cache: Path, own_trials: bool = False) -> Task:
    """Load a job from its comparison's folder.

    Raises:
        UsageError: the folder contains no comparison or no such job, or an earlier job must run first.
    """
    config = validated(CompareConfig, read_fields(folder / RECORD), str(folder / RECORD))
    name, _, seed = key.partition("/seed-")
    method = next((each for each in config.resolved() if each.key == name), None)
    if method is None or not seed.isdecimal():
        raise UsageError(f"{folder} has no job {key!r}: a job is METHOD/seed-N")
    factor = None
    if int(seed) != config.first_seed and not own_trials:
        given = f"{name}/seed-{config.first_seed}"
        first = read_result(folder / RUNS / given)
        if first is None:
            raise UsageError(f"{key} trains at the learning rate of {given}: run that first")
        factor = first.factor
    data = StoredData.read(folder)
    return Task(folder / RUNS / key, config, data, method, int(seed), factor, cache)


def _teller(channel: Channel | None) -> Callable[[str, StepProgress], None]:
    """Send progress to the parent, a few times a second."""
    last = 0.0

    def tell(stage: str, step: StepProgress) -> None:
        nonlocal last
        if channel is None or time.monotonic() - last < 0.25:
            return
        last = time.monotonic()
        with contextlib.suppress(OSError, ValueError):
            channel.send((stage, step.fraction, step.loss, step.ledger.samples))

    return tell


def train_and_measure(task: Task, channel: Channel | None = None) -> JobResult:
    """Train and measure, writing everything except ``result.json``."""
    data, track = task.data, open_tracker(task.config.training, task.run)
    session = task.session(_teller(channel), track)
    counts = session.parts_table()
    if channel is not None:
        channel.send(("parts", counts))
    session.model.eval()
    metric = Metric.named(task.config.metric)
    first = task.seed == task.config.first_seed
    began = time.monotonic()
    untrained_val = metric.judge(session, data.val)
    untrained = {"untrained": metric.judge(session, data.evaluation).correct} if first else {}
    judging = time.monotonic() - began
    found = session.run(Budget.parse(task.config.budget), task.run, task.factor)
    if channel is not None and found.curve:
        loss = found.curve[-1]["val_loss"]
        channel.send((SCORING, 1.0, math.nan if loss is None else loss, found.ledger.samples))
    peak = peak_resident()  # of training only, before measuring
    if session.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    save_file(session.trained_state(), task.run / "trained.safetensors")
    session.merge_lora()
    session.model.eval()
    began = time.monotonic()
    val = metric.judge(session, data.val)
    measured = evaluate(metric, session, data.evaluation, data.blanks, task.config.seed)
    judging += time.monotonic() - began
    model = session.model
    standing = standing_of([(m, model.connector(m), model.encoders[m]) for m in model.connectors])
    # The base rate for the trial factor: the connector's rate, or else the language model's.
    rate = session.rates.llm if session.method.tools else session.rates.connector
    scores = {
        "val": val.correct,
        "untrained_val": untrained_val.correct,
        **untrained,  # only with the first seed, since nothing is trained
        **measured,
    }
    with replacing(task.run / "scores.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **scores)
    return JobResult(
        method=task.method.name,
        seed=task.seed,
        factor=found.factor,
        learning_rate=rate * found.factor if session.method.trains(session.settings.llm) else None,
        trials=[
            Trial(
                learning_rate=rate * trial.factor,
                samples=trial.samples,
                val_loss=trial.val_loss,
                val_losses=trial.val_losses or [],
                kept=trial.kept,
            )
            for trial in found.trials
        ],
        curve=[CurvePoint(**point) for point in found.curve],
        samples=found.ledger.samples,
        seconds=found.ledger.seconds,
        judging=judging,
        validating=session.validating,
        flops=found.ledger.flops,
        search=Spent.model_validate(found.search.state()),
        inference_flops=inference_flops(session, data.evaluation or data.val),
        parameters={count.part: count.parameters for count in counts}
        | ({} if session.chain is None else {"tools": session.chain.cost().parameters}),
        trainable={count.part: count.trainable for count in counts},
        tokens=tokens_per_medium(session),
        peak_memory=int(peak),
        time_to_first_answer=time_to_first_answer(session, data.val),
        mir=None  # if media enter as words
        if session.method.tools
        else modality_integration_rate(model, data.val, session.collator, session.device),
        diagnostics=connector_diagnostics(model, data.val, session.collator, session.device),
        val_loss=val.mean_loss,
        weights=sha256(task.run / "trained.safetensors"),
        answers=answers_hash(scores),
        untrained_loss=untrained_val.mean_loss,
        examples=example_answers(session, data.evaluation or data.val, task.config.examples)
        if first
        else [],
        export_target=standing.rung,
        gateway=standing.gateway,
        served_by=list(standing.served_by),
        place=Place(
            host=socket.gethostname(),
            processor=processor(),
            threads=torch.get_num_threads(),
            device=str(session.device),
        ),
    )


def answers_hash(scores: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of a job's scores: which answers were right, or how good each was."""
    digest = hashlib.sha256()
    for name in sorted(scores):
        digest.update(f"{name} {len(scores[name])} ".encode())
        own = scores[name]
        digest.update((np.packbits(own) if own.dtype == bool else own).tobytes())
    return digest.hexdigest()


def load_scores(folder: Path) -> dict[str, np.ndarray]:
    """Read a job's answers.

    Raises:
        ModalignError: the file is damaged.
    """
    try:
        with np.load(folder / "scores.npz", allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModalignError(
            f"{folder / 'scores.npz'} cannot be read ({error}); delete the folder to run it again"
        ) from error
