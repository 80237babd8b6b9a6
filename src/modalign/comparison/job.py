"""One job of a comparison: train one method under one seed in a process of its own, and measure it.

Everything a job finds is written to its folder; a job whose ``result.json`` exists is never run again.
A process of its own makes its peak memory its own, and its death nobody else's.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from modalign.comparison.results import CurvePoint, Trial
from modalign.data.records import Media
from modalign.data.supervision import Sample
from modalign.errors import ModalignError
from modalign.evaluation.diagnosis.connectors import connector_diagnostics
from modalign.evaluation.diagnosis.mir import modality_integration_rate
from modalign.evaluation.scoring import Scores, blanked, final_turn, score, shuffled
from modalign.files import replacing, write_atomically
from modalign.memory import peak_resident, return_freed_memory
from modalign.models.collation import Collator, RawSignals
from modalign.models.export.rungs import Standing, standing_of
from modalign.training.budget import Budget
from modalign.training.costs import CostModel
from modalign.training.methods import Method
from modalign.training.session import Session, SessionResult
from modalign.training.settings import TrainSettings
from modalign.training.sources import Parts
from modalign.training.tracking import open_tracker
from modalign.training.trainer import Progress as StepProgress

LATENCY_REPEATS = 7


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Attributes:
        what: the method.
        seed: of new weights and data order.
        factor: on all learning rates; None means: find it, by trials.
        blanks: modality -> the medium that stands for none.
        text: further records without media, for recipes that mix them in.
    """

    what: Method
    seed: int
    factor: float | None
    budget: str
    parts: Parts
    settings: TrainSettings
    train: Sequence[Sample]
    val: Sequence[Sample]
    evaluation: Sequence[Sample]
    blanks: dict[str, Media]
    cache: Path
    folder: Path
    threads: int
    text: Sequence[Sample] = ()

    @property
    def method(self) -> str:
        """The method's name."""
        return self.what.name

    @property
    def key(self) -> str:
        """Name of the job."""
        return f"{self.method} seed {self.seed}"

    def result(self) -> JobResult | None:
        """The finished result, if there is one."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        try:
            return JobResult.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModalignError(
                f"{path} cannot be read; delete the folder to run it again ({error})"
            ) from error


class Spent(BaseModel):
    """What something cost."""

    samples: int = 0
    seconds: float = 0.0
    flops: float = 0.0


class JobResult(BaseModel):
    """What a job found. Right and wrong answers are in ``scores.npz`` beside it."""

    method: str
    seed: int
    failure: str | None = None
    factor: float = 1.0
    learning_rate: float | None = None
    trials: list[Trial] = []
    curve: list[CurvePoint] = []
    samples: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    search: Spent = Spent()  # of these, learning-rate trials; none where the factor was given
    inference_flops: float | None = None
    parameters: dict[str, int] = {}
    trainable: dict[str, int] = {}
    tokens: int = 0
    peak_memory: int | None = None
    time_to_first_answer: float | None = None
    mir: float | None = None
    diagnostics: dict[str, float] = {}
    val_loss: float | None = None
    export_target: str = "remote-code"  # the rung of the export ladder
    gateway: bool = False
    served_by: list[str] = []


def run_job(job: Job, channel: Connection | None = None) -> JobResult:
    """Train and measure; write ``result.json``, ``scores.npz`` and ``trained.safetensors``.

    A job that fails writes no result: ``--resume`` tries it again.
    """
    return_freed_memory()
    torch.set_num_threads(job.threads)
    job.folder.mkdir(parents=True, exist_ok=True)
    result = _train_and_measure(job, channel)
    write_atomically(job.folder / "result.json", result.model_dump_json(indent=1))
    return result


def _teller(channel: Connection | None) -> Callable[[str, StepProgress], None]:
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


def _train_and_measure(job: Job, channel: Connection | None) -> JobResult:
    session = Session(
        job.what,
        job.parts,
        job.settings,
        job.train,
        job.val,
        job.cache,
        job.seed,
        text=job.text,
        report=_teller(channel),
        track=open_tracker(job.settings, job.folder),
    )
    counts = session.parts_table()
    if channel is not None:
        channel.send(("parts", counts))
    session.model.eval()
    untrained = _score(session, job.evaluation)
    found = session.run(Budget.parse(job.budget), job.folder, job.factor)
    peak = peak_resident()  # of training, before measuring adds its own
    if session.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    save_file(session.trained_state(), job.folder / "trained.safetensors")
    session.merge_lora()
    session.model.eval()
    val = _score(session, job.val)
    standing = _standing(session)
    scores = {
        "val": val.correct,
        "untrained": untrained.correct,
        **_evaluate(session, job.evaluation, job.blanks),
    }
    with replacing(job.folder / "scores.npz") as file:
        np.savez_compressed(file, allow_pickle=False, **scores)
    return JobResult(
        method=job.method,
        seed=job.seed,
        factor=found.factor,
        learning_rate=_learning_rate(session, found),
        trials=_trials(
            session.rates.llm if session.method.tools else session.rates.connector, found
        ),
        curve=[CurvePoint(**point) for point in found.curve],
        samples=found.ledger.samples,
        seconds=found.ledger.seconds,
        flops=found.ledger.flops,
        search=Spent.model_validate(found.search.state()),
        inference_flops=_inference_flops(session, job.evaluation or job.val),
        parameters={count.part: count.parameters for count in counts} | _tool_parameters(session),
        trainable={count.part: count.trainable for count in counts},
        tokens=_tokens(session),
        peak_memory=int(peak),
        time_to_first_answer=_time_to_first_answer(session, job.val),
        mir=_integration_rate(session, job.val),
        diagnostics=connector_diagnostics(session.model, job.val, session.collator, session.device),
        val_loss=val.mean_loss,
        export_target=standing.rung,
        gateway=standing.gateway,
        served_by=list(standing.served_by),
    )


def _trials(base: float, found: SessionResult) -> list[Trial]:
    return [
        Trial(
            learning_rate=base * trial.factor,
            samples=trial.samples,
            val_loss=trial.val_loss,
            kept=trial.kept,
        )
        for trial in found.trials
    ]


def _score(session: Session, samples: Sequence[Sample]) -> Scores:
    # As the answers in the data begin: a template may put a space before them, or a capital.
    yes = {
        int(sample.ids[sample.prompt_length])
        for sample in samples
        if sample.record.answer.strip().casefold() == "yes"
    }
    return score(session.model, samples, session.collator, session.device, yes_tokens=yes)


def _evaluate(
    session: Session, samples: Sequence[Sample], blanks: dict[str, Media]
) -> dict[str, np.ndarray]:
    """Answers with the right media, with blank ones and with somebody else's."""
    if not samples:
        return {}
    real = _score(session, samples)
    return {
        "eval": real.correct,
        "yes": real.said_yes,
        "blank": _score(session, blanked(samples, blanks)).correct,
        "shuffled": _score(session, shuffled(samples)).correct,
    }


def _inference_flops(session: Session, samples: Sequence[Sample]) -> float | None:
    """Forward FLOPs of a question of median length about one image, encoder included."""
    collator = session.collator
    lengths = [collator.length(sample) for sample in samples if len(sample.media) == 1]
    if not lengths:
        return None
    costs = CostModel.of(session.model)
    return costs.forward(1, int(statistics.median(lengths)), 1, 1, encode=True)


@torch.inference_mode()
def _time_to_first_answer(session: Session, samples: Sequence[Sample]) -> float | None:
    """Median seconds from the signal to the first token, one question at a time, after a warm-up."""
    chosen = [sample for sample in samples if len(sample.media) == 1][:LATENCY_REPEATS]
    if not chosen:
        return None
    collator = _from_raw_signals(session)
    tools = session.chain.cost().mean_seconds if session.chain else 0.0
    seconds: list[float] = []
    for sample in [chosen[0], *chosen]:
        flags = np.zeros_like(sample.supervised)
        flags[sample.prompt_length] = True  # only the first answer token is asked for
        started = time.perf_counter()
        batch = collator([replace(final_turn(sample), supervised=flags)]).to(session.device)
        session.model(**batch.model_inputs(), use_cache=True).logits.argmax(-1).cpu()
        seconds.append(time.perf_counter() - started + tools)  # tools: remembered, not run again
    return statistics.median(seconds[1:])


def _from_raw_signals(session: Session) -> Collator:
    """The session's collator, with every encoder running in the model."""
    if session.method.tools:
        return session.collator
    entries = {
        encoder.modality: replace(
            session.collator.entries[encoder.modality],  # type: ignore[type-var]
            source=RawSignals(encoder),
        )
        for encoder in session.encoders
    }
    return replace(session.collator, entries=entries)


def _integration_rate(session: Session, samples: Sequence[Sample]) -> float | None:
    """MIR; None where a medium enters as words."""
    if session.method.tools:
        return None
    return modality_integration_rate(session.model, samples, session.collator, session.device)


def _tokens(session: Session) -> int:
    """Positions of a medium: the most that a connector gives, the mean of what tools say."""
    if session.chain is None:
        return session.collator.tokens_per_medium
    return round(session.chain.cost().mean_tokens)


def _tool_parameters(session: Session) -> dict[str, int]:
    return {} if session.chain is None else {"tools": session.chain.cost().parameters}


def _learning_rate(session: Session, found: SessionResult) -> float | None:
    """What the trial factor was applied to: the connector's rate, or else the language model's."""
    if not session.method.trains(session.settings.llm):
        return None
    rates = session.rates
    return (rates.llm if session.method.tools else rates.connector) * found.factor


def _standing(session: Session) -> Standing:
    """The rung of the export ladder that the model stands on, and what can serve it."""
    model = session.model
    return standing_of([(m, model.connector(m), model.encoders[m]) for m in model.connectors])


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
