"""The recipe of applications that choose: a language model learns the letter of the right option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modalign.data.records import Message, Record
from modalign.data.supervision import tokenise_all
from modalign.evaluation.tasks.choice import LETTERS, Choice
from modalign.models.quiet import quietly
from modalign.models.saved import open_composed
from modalign.progress import Progress
from modalign.runs import run_folder
from modalign.training.budget import Budget
from modalign.training.settings import Stage, TrainSettings
from modalign.training.tuning import Tuning, spent


def lettered(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """Show each record's options with letters, in an order of its own, and let the answer be the letter."""
    task = Choice(letters=True, seed=seed)
    task.check(records)
    return [
        replace(
            task.asked(record),
            messages=(
                *task.asked(record).messages[:-1],
                Message("assistant", (LETTERS[task.shown(record).index(record.answer)],)),
            ),
        )
        for record in records
    ]


@quietly()
def tune_choice(
    records: Sequence[Record],
    llm: str,
    out: Path,
    *,
    budget: str = "2000samples",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> int:
    """Train a LoRA of a model on the records' choices and save the model to ``out/model``; return its samples.

    Raises:
        DataError: a record offers no choice.
        UsageError: no model, an invalid budget, or a folder that is taken.
    """
    allowance, given = Budget.parse(budget), lettered(records, seed)
    configuration = {"llm": llm, "records": len(records), "budget": budget, "seed": seed}
    with run_folder(out, configuration, resume=resume, overwrite=overwrite) as run:
        opened = open_composed(llm)
        settings = TrainSettings(llm="lora", batch_size=16, device=device)
        samples = tokenise_all(given, opened.tokenizer)
        stage = Stage(name="choice", llm="lora")
        report = (
            (lambda name, step: progress(name, int(step.fraction * 1000), 1000))
            if progress
            else None
        )
        tuning = Tuning(opened, [stage], settings, samples, seed=seed, report=report)
        tuning.check()
        run.begin()
        outcomes = tuning.run(allowance, out / "run")
        tuning.save(out / "model")
        return spent(outcomes).samples
