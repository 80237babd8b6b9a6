"""Recipes of applications: a saved model learns to choose among options by letters or words, or another stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modalign.chat_templates import takes_tools, with_tools
from modalign.data.records import Message, Record
from modalign.data.supervision import tokenise_all
from modalign.evaluation.tasks.choice import LETTERS, Choice
from modalign.models.prompts import Prompt, add_separator
from modalign.models.quiet import quietly
from modalign.models.saved import OpenedModel, open_composed
from modalign.progress import Progress
from modalign.runs import run_folder
from modalign.training.budget import Budget
from modalign.training.settings import Stage, TrainSettings
from modalign.training.staged import Report
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


CHOICE = Stage(name="choice", llm="lora")
OFFERED = Stage(
    name="options",
    llm="lora",
    objective={"choice": {"right": "right", "wrong": "wrong", "length": "per byte"}},
    roles={"right": "domain:right", "wrong": "domain:wrong"},
    matched="all",
)
MOST = 16  # records per batch; more if a group's options need it


def offered(records: Sequence[Record]) -> list[Record]:
    """Return each option of each record as its answer, for the objective over the options offered."""
    Choice().check(records)
    return [
        replace(
            record,
            id=f"{record.id}-{number}",
            messages=(*record.messages[:-1], Message("assistant", (option,))),
            skill="right" if option == record.answer else "wrong",
            group=record.id,
        )
        for record in records
        for number, option in enumerate(record.options)
    ]


@quietly()
def tune(
    records: Sequence[Record],
    llm: str,
    out: Path,
    stage: Stage = CHOICE,
    *,
    prompt: Prompt | None = None,
    budget: str = "2000samples",
    factor: float = 1.0,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> int:
    """Train a saved model on records, shown as a prompt says, and save both to ``out/model``; return its samples.

    Raises:
        DataError: a record cannot be trained on.
        UsageError: no model, an invalid budget, or a folder that is taken.
    """
    allowance = Budget.parse(budget)
    configuration = {"llm": llm, "records": len(records), "budget": budget}
    prompt = prompt or Prompt()
    configuration |= {"factor": factor, "seed": seed, "objective": stage.objective}
    configuration |= {"notes": prompt.notes, "separator": prompt.separator}
    with run_folder(out, configuration, resume=resume, overwrite=overwrite) as run:
        opened = open_composed(llm)
        if any(record.tools for record in records):
            give_tools(opened)
        largest = max(len(record.options) for record in records) if stage.matched == "all" else 0
        settings = TrainSettings(llm="lora", batch_size=max(MOST, largest), device=device)
        if prompt.soft:
            add_separator(opened.model, opened.tokenizer)
        samples = tokenise_all(map(prompt.shown, records), opened.tokenizer)
        tuning = Tuning(opened, [stage], settings, samples, seed=seed, prompt=prompt,
                        report=_reporting(progress))  # fmt: skip
        tuning.check(out)
        run.begin()
        outcomes = tuning.run(allowance, out / "run", factor)
        tuning.save(out / "model")
        return spent(outcomes).samples


def give_tools(opened: OpenedModel) -> None:
    """Give a model whose chat template cannot render tools one that can; it is saved with the model."""
    if takes_tools(opened.tokenizer):
        return
    readers: list[Any] = [opened.tokenizer, opened.reader]
    for reader in {id(each): each for each in readers}.values():
        if isinstance(template := getattr(reader, "chat_template", None), str):
            reader.chat_template = with_tools(template)


def _reporting(progress: Progress | None) -> Report | None:
    if progress is None:
        return None
    return lambda stage, step: progress(stage, int(step.fraction * 1000), 1000)
