"""Evaluate a saved model on a data file: generate or score, judge by a task, compare with references."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from modalign.data.records import Record
from modalign.evaluation.guessing import BlindGuess, blind_guess
from modalign.evaluation.opened import open_for, outputs_of
from modalign.evaluation.passes import BLANK, RIGHT, SHUFFLED, is_mixed, passes_over
from modalign.evaluation.tasks.base import CHANCE, Output, Score, Task, groups_of
from modalign.evaluation.tasks.exact import Exact
from modalign.files import write_atomically
from modalign.models.quiet import quietly
from modalign.numbers.estimate import Estimate, exactly
from modalign.patches import patches_of
from modalign.progress import Progress
from modalign.version import __version__


class SkillRow(BaseModel):
    """One line of the evaluation table.

    Attributes:
        skill: the records' skill.
        measures: name -> measure with the right media.
        references: row (``blank media``, ``shuffled media``, ``chance``, ``most frequent answer here``, ...) ->
            the same measures; of chance, only those for which it is known.
    """

    skill: str
    measures: dict[str, Estimate]
    references: dict[str, dict[str, Estimate]]


class Evaluation(BaseModel):
    """The results of an evaluation, with everything needed to reproduce them."""

    model: str
    data: str
    harness: str
    task: str
    task_version: int
    task_settings: dict[str, Any]
    headline: str  # the main measure
    lower_is_better: bool
    generation: dict[str, Any]
    patches: list[str] = []  # applied to the model, by name and hash
    skills: list[SkillRow]
    overall: SkillRow
    available: dict[
        str, Estimate
    ] = {}  # modalities left in -> headline, where records hold several
    notes: list[str] = []


@dataclass(frozen=True)
class _JudgedPass:
    """Records of one pass with their answers and scores."""

    records: Sequence[Record]
    outputs: Sequence[Output]
    scores: Sequence[Score]


@quietly()
def evaluate_model(
    folder: Path,
    data: str,
    *,
    task: Task | None = None,
    out: Path | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    limit: int | None = None,
    train: str | None = None,
    skip_broken: str = "0%",
    columns: Mapping[str, str] | None = None,
    device: str = "auto",
    control_tokens: Sequence[str] = (),
    patches: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model on a data file with the right, blank and other records' media.

    Questions about several modalities are also asked with each of them alone.

    Args:
        folder: model folder.
        data: data file; the last assistant turn is the expected answer.
        task: how answers are asked for and scored (default: exact match).
        out: JSON Lines of every record's prompt, output and score, where given.
        batch_size: questions answered together.
        max_new_tokens: longest answer.
        limit: only so many records, drawn over skills by the task's seed.
        train: training data, whose answers chance is made of; else what the model folder holds of them.
        skip_broken: share of broken records to drop.
        columns: expected column -> its name in the file.
        device: device to compute on.
        control_tokens: special tokens that are such where a text holds them, too.
        patches: patch files to apply to the loaded model.
        progress: called with the progress of each of the three passes.

    Raises:
        DataError: broken or empty data, or records that lack what the task needs.
    """
    task, guess = task or Exact(), blind_guess(folder, train)
    opened = open_for(
        folder,
        data,
        task,
        limit=limit,
        skip_broken=skip_broken,
        columns=columns,
        device=device,
        control_tokens=control_tokens,
        patches=patches,
    )
    model, records = opened.model, opened.records
    judged: dict[str, _JudgedPass] = {}
    for name, asked in passes_over(records, opened.modalities).items():
        tell = (lambda done, total, name=name: progress(name, done, total)) if progress else None
        outputs = outputs_of(model, opened.reader, task, asked, max_new_tokens, batch_size, tell)
        judged[name] = _JudgedPass(asked, outputs, task.score(asked, outputs))
    settings: dict[str, Any] = {"generated": False}
    if not task.by_likelihood:
        settings = {
            "do_sample": False, "max_new_tokens": max_new_tokens, "batch_size": batch_size
        }  # fmt: skip
    found = Evaluation(
        model=str(folder),
        data=data,
        harness=f"modalign {__version__}",
        task=task.name,
        task_version=task.version,
        task_settings=task.settings(),
        headline=task.headline,
        lower_is_better=task.lower_is_better,
        generation=settings,
        patches=[f"{each.patch.header.name} ({each.sha256})" for each in patches_of(model)],
        available=_available(task, judged),
        notes=[*task.notes(), *_unknown_chance(task, records, guess)],
        **_tabulate(task, records, judged, guess),
    )
    if out is not None:
        _write_outputs(out, task, found, judged)
    return found


def _tabulate(
    task: Task, records: list[Record], judged: dict[str, _JudgedPass], guess: BlindGuess
) -> dict[str, Any]:
    """The rows of all skills, and the overall one."""
    rows = {name: judged[name].scores for name in (BLANK, SHUFFLED) if name in judged}
    for name, outputs in task.constants(records).items():
        rows[name] = task.score(records, outputs)
    chance = task.chance(records, guess) or [None] * len(records)
    right, groups = judged[RIGHT].scores, groups_of(records)

    def row(skill: str, places: list[int]) -> SkillRow:
        own = [groups[place] for place in places]
        references = {
            name: task.measures([scores[place] for place in places], own)
            for name, scores in rows.items()
        }
        known = [share for place in places if (share := chance[place]) is not None]
        if len(known) == len(places):
            guessed = exactly(float(np.mean(known)), len(places))
            references[CHANCE] = dict.fromkeys(task.guessed, guessed)
        measures = task.measures([right[place] for place in places], own)
        return SkillRow(skill=skill, measures=measures, references=references)

    places: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        places[record.skill or "(no skill)"].append(index)
    return {
        "skills": [row(skill, found) for skill, found in sorted(places.items())],
        "overall": row("overall", list(range(len(records)))),
    }


def _unknown_chance(task: Task, records: Sequence[Record], guess: BlindGuess) -> list[str]:
    if None not in (task.chance(records, guess) or ()):
        return []
    return [
        "Chance is not known: the data offer no options, and the model folder does not say which answers the "
        "model was trained on (--train FILE does)."
    ]


def _available(task: Task, judged: dict[str, _JudgedPass]) -> dict[str, Estimate]:
    """The headline on records with several modalities, by the modalities kept."""
    alone = {name: found for name, found in judged.items() if name.endswith(" only")}
    if not alone:
        return {}
    whole = judged[RIGHT]
    mixed = [place for place, record in enumerate(whole.records) if is_mixed(record)]
    everything = _JudgedPass(
        [whole.records[place] for place in mixed],
        [whole.outputs[place] for place in mixed],
        [whole.scores[place] for place in mixed],
    )
    return {
        name: measures[task.headline]
        for name, part in {"all": everything, **alone}.items()
        if task.headline in (measures := task.measures(part.scores, groups_of(part.records)))
    }


def _write_outputs(
    out: Path, task: Task, found: Evaluation, judged: dict[str, _JudgedPass]
) -> None:
    """Write one line per record: prompt, raw output and normalised output."""
    right = judged[RIGHT]
    same = {
        "generation": found.generation,
        "task": found.task,
        "task_version": found.task_version,
        "task_settings": found.task_settings,
        "harness": found.harness,
    }
    lines = []
    for place, (record, output, score) in enumerate(
        zip(right.records, right.outputs, right.scores, strict=True)
    ):
        asked = task.asked(record)
        line = {
            "id": record.id,
            "source": str(record.source),
            "skill": record.skill,
            "prompt": [[m.role, m.text] for m in asked.messages[:-1]],
            "expected": record.answer,
            "answers": list(record.answers),
            "output": output.text,
            "normalised": score.normalised,
            "score": score.value,
            "details": score.counts,
            "references": {
                name: {
                    "output": judged[name].outputs[place].text,
                    "normalised": judged[name].scores[place].normalised,
                    "score": judged[name].scores[place].value,
                }
                for name in (BLANK, SHUFFLED)
                if name in judged
            },
            **same,
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "\n".join(lines) + "\n")
