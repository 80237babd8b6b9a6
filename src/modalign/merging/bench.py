"""What a merge is judged on, and everything that is judged: candidates, parents, the base, joint training.

Finished work is kept in the run's folder, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel

from modalign.devices import device_named
from modalign.errors import DataError
from modalign.files import new_folder, write_atomically
from modalign.merging.comparing import Kind, Model
from modalign.merging.config import LEARNED
from modalign.merging.judging import Domain, Judged, judge, read_domains
from modalign.merging.learned import Learned, learn
from modalign.merging.parents import Parent
from modalign.merging.planning import BASE, Merge
from modalign.merging.writing import Recipe, write_merged
from modalign.models.saved import OpenedModel, open_composed
from modalign.progress import Progress
from modalign.runs import read_result
from modalign.training.budget import Budget
from modalign.training.settings import Stage
from modalign.training.trainer import StepProgress
from modalign.training.tuning import Tuning

WORK, MODEL = "work", "model"
JOINT = "joint training"


class Found(BaseModel):
    """A model on validation and evaluation data."""

    validation: dict[str, Judged]
    evaluation: dict[str, Judged]

    @property
    def choice(self) -> float | None:
        """Mean over the validation domains of the loss per token."""
        means = [each.mean for each in self.validation.values()]
        return sum(means) / len(means) if means else None


class Bench:
    """The data of a run, and its judged models.

    Attributes:
        validation, evaluation: domains; merges are chosen on the first and shown on the second.
        warnings, notes: for the report.
    """

    def __init__(self, merge: Merge, out: Path, progress: Progress) -> None:
        self.merge, self.out, self.progress = merge, out, progress
        self.warnings: list[str] = []
        self.notes: list[str] = []
        config = merge.config
        self.device = device_named(config.training.device)
        self.validation: dict[str, Domain] = {}
        self.evaluation: dict[str, Domain] = {}
        if config.val or config.evaluation or config.joint:
            opened = open_composed(merge.alignment.like.folder)
            size = (config.length, config.limit, progress)
            self.validation = read_domains(config.val, opened, *size)
            self.evaluation = read_domains(config.evaluation, opened, *size)
            self._check_joint(opened)
        self._check_overlap()

    def choose(self) -> tuple[str, Recipe]:
        """Return the name of the merge to save, and its recipe: by validation data, if there is a choice."""
        merge = self.merge
        if merge.config.method == LEARNED:
            return LEARNED, self._learned().recipe(merge.recipe)
        if len(merge.candidates) == 1:
            return next(iter(merge.candidates.items()))
        judged = {name: self._candidate(name, each) for name, each in merge.candidates.items()}
        best = min(judged, key=lambda name: judged[name].choice or 0.0)
        return best, merge.candidates[best]

    def judge_all(self, chosen: str, recipe: Recipe) -> list[Model]:
        """Return base, parents, merges and joint training; without evaluation data, the merges that were tried."""
        found: list[Model] = []
        if not self.evaluation and not self.validation:
            return found
        everyone = self.merge.alignment.everyone if self.evaluation else {}
        for name in sorted(everyone, key=lambda name: name != BASE):
            kind: Kind = "base" if name == BASE else "parent"
            if (known := self._parent(everyone[name])) is not None:
                found.append(Model(name, kind, known.evaluation))
        candidates = {**self.merge.candidates, **({chosen: recipe})}
        if self.merge.config.method == LEARNED:
            start = self._candidate("linear", self.merge.recipe)
            found.append(Model("linear, given weights", "merge", start.evaluation, start.choice))
            candidates = {chosen: recipe}
        values = self.merge.config.searched()[1] if self.merge.config.search else []
        tried = dict(zip(self.merge.candidates, values, strict=False))
        for name, each in candidates.items():
            known = self._candidate(name, each, saved=name == chosen)
            found.append(Model(name, "merge", known.evaluation, known.choice, tried.get(name)))
        if self.merge.config.joint is not None:
            found.append(Model(JOINT, "joint", self._joint().evaluation))
        return found

    # ------------------------------------------------------------------ judged once

    def _judged(self, key: str, what: str, opened: Callable[[], OpenedModel]) -> Found:
        file = self.out / "judged" / f"{key.replace(' ', '_').replace('/', '_')}.json"
        if (found := read_result(file, Found)) is not None:
            return found
        self.progress(f"judging {what}", 0, 1)
        model = opened()
        found = Found(
            validation=judge(model, self.validation, self.device),
            evaluation=judge(model, self.evaluation, self.device),
        )
        self.progress(f"judging {what}", 1, 1)
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, found.model_dump_json())
        return found

    def _candidate(self, name: str, recipe: Recipe, saved: bool = False) -> Found:
        """Judge a merge: the saved one, or written for that and deleted again."""

        def opened() -> OpenedModel:
            if saved and (self.out / MODEL).is_dir():
                return open_composed(self.out / MODEL)
            with new_folder(self.out / WORK) as new:
                write_merged(self.merge.alignment, recipe, new, progress=self.progress)
            return open_composed(self.out / WORK)

        found = self._judged(f"merge {name}", name, opened)
        shutil.rmtree(self.out / WORK, ignore_errors=True)
        return found

    def _parent(self, parent: Parent) -> Found | None:
        rows = self.merge.alignment.rows[parent.name]
        if rows.index is not None and rows.moved:
            note = f"{parent.name} has another tokenizer: its losses are not comparable, so it has no row."
            self.notes.append(note)
            return None
        return self._judged(
            f"parent {parent.name}", parent.name, lambda: open_composed(parent.folder)
        )

    def _learned(self) -> Learned:
        file = self.out / "learned.json"
        if (found := read_result(file, Learned)) is not None:
            return found
        merge = self.merge
        with new_folder(self.out / WORK) as new:
            write_merged(merge.alignment, merge.recipe, new, progress=self.progress)
        found = learn(
            merge.alignment,
            merge.recipe,
            self.out / WORK,
            self.validation,
            merge.config.learning,
            seed=merge.config.seed,
            device=self.device,
            progress=self.progress,
        )
        shutil.rmtree(self.out / WORK, ignore_errors=True)
        write_atomically(file, found.model_dump_json())
        return found

    # ------------------------------------------------------------------ joint training

    @cached_property
    def _start(self) -> Parent:
        found = self.merge.alignment
        return found.base or found.like

    def _tuning(self) -> Tuning:
        config = self.merge.config
        opened = open_composed(self._start.folder)
        domains = read_domains(config.train, opened, config.length, 10**9, self.progress)
        samples = [sample for domain in domains.values() for sample in domain.samples]

        def report(stage: str, step: StepProgress) -> None:
            self.progress(f"{JOINT} (loss {step.loss:.3f})", int(step.fraction * 1000), 1000)

        return Tuning(opened, [Stage()], config.training, samples, seed=config.seed, report=report)

    def _check_joint(self, opened: OpenedModel) -> None:
        """Rehearse the joint training before anything is merged."""
        config = self.merge.config
        if config.joint is None or (self.out / "judged" / "joint.json").exists():
            return
        Budget.parse(config.joint)
        self.notes += self._tuning().check()
        if self.merge.alignment.base is None:
            self.notes.append(
                f"The joint training starts from {self._start.name}: no --base was given."
            )

    def _joint(self) -> Found:
        def opened() -> OpenedModel:
            tuning = self._tuning()
            tuning.run(Budget.parse(self.merge.config.joint or ""), self.out / "joint")
            tuning.merge_lora()
            return tuning.opened

        return self._judged("joint", JOINT, opened)

    def _check_overlap(self) -> None:
        """Refuse to choose on the data that judge."""

        def texts(domains: Mapping[str, Domain]) -> set[bytes]:
            return {each.ids.tobytes() for domain in domains.values() for each in domain.samples}

        both = texts(self.validation) & texts(self.evaluation)
        whole = sum(len(domain.samples) for domain in self.evaluation.values())
        if both and len(both) * 10 > whole:
            raise DataError(
                f"{len(both):,} of {whole:,} records of --eval are in --val, too: what chooses must not judge; "
                "give other files"
            )
        if both:
            self.warnings.append(
                f"{len(both):,} records of the evaluation data chose the merge, too."
            )
