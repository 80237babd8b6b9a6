"""Schedules of a distillation as data, and their variants: without a term, or with another's wall time.

``throughout-relation`` is the schedule ``throughout`` without the term ``relation``; ``cross_entropy@time`` gets,
instead of the budget, the seconds that the first schedule took under the same seed, and is also called ``ce``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from modalign.configuration import read_fields, validated
from modalign.errors import UsageError, choose
from modalign.training.objectives import Objective, WeightedTerm
from modalign.training.outputs import row_kind
from modalign.training.settings import Stage

TEACHER = "teacher"  # the reference that the terms of distillation read
SAME_TIME = "@time"
SHORT = {"ce": f"cross_entropy{SAME_TIME}"}


class Schedule(BaseModel):
    """Stages of a distillation.

    Attributes:
        title: for the report.
        stages: in order.
    """

    model_config = ConfigDict(extra="forbid")

    title: str = ""
    stages: list[Stage] = Field(min_length=1)


@cache
def schedules() -> dict[str, Schedule]:
    """Return the named schedules."""
    found = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {name: Schedule(**fields) for name, fields in found.items()}


@dataclass(frozen=True)
class Variant:
    """What is trained: a schedule, perhaps without some terms.

    Attributes:
        name: as given.
        title: for the report.
        stages: of the schedule, as written.
        without: terms left out.
        same_time: it gets the first variant's seconds instead of the budget.
    """

    name: str
    title: str
    stages: tuple[Stage, ...]
    without: tuple[str, ...] = ()
    same_time: bool = False

    @property
    def terms(self) -> set[str]:
        """Return the names of its terms."""
        return {term for stage in self.stages for term in stage.objective} - set(self.without)

    @classmethod
    def of(cls, text: str) -> Variant:
        """Read ``NAME``, ``FILE.yaml``, and either followed by ``-TERM`` (repeatable) or ``@time``.

        Raises:
            UsageError: there is no such schedule, or it has no such term.
        """
        whole = SHORT.get(text.strip(), text.strip())
        bare = whole.removesuffix(SAME_TIME)
        if bare.endswith((".yaml", ".yml")):
            path = Path(bare)
            schedule, name, without = validated(Schedule, read_fields(path), bare), path.stem, []
        else:
            name, *without = bare.split("-")
            if name not in schedules():
                raise UsageError(
                    f"no schedule is called {name!r}; {choose(name, sorted(schedules()))}, or a YAML file "
                    "with stages"
                )
            schedule = schedules()[name]
        terms = {term for stage in schedule.stages for term in stage.objective}
        for term in without:
            if term not in terms:
                raise UsageError(
                    f"{text}: {name} has no term {term!r}; {choose(term, sorted(terms))}"
                )
        title = schedule.title or name
        title += f", without {' and '.join(without)}" if without else ""
        same_time = whole != bare
        title += ", with the same wall time" if same_time else ""
        return cls(
            name=text.strip(),
            title=title,
            stages=tuple(schedule.stages),
            without=tuple(without),
            same_time=same_time,
        )

    def stages_for(
        self, teacher: str, options: Mapping[str, Mapping[str, Any]], *, connectors: bool
    ) -> list[Stage]:
        """Return the stages as they run on a student.

        Args:
            teacher: folder of the teacher.
            options: term -> options that replace the schedule's.
            connectors: whether the student takes media.

        Raises:
            UsageError: nothing is left to train, or an unknown option.
        """
        found = []
        for stage in self.stages:
            if not connectors and stage.llm == "frozen":
                continue
            objective = {
                name: _with(setting, options.get(name, {}))
                for name, setting in stage.objective.items()
                if name not in self.without and (connectors or not _of_media(name, setting))
            }
            if not objective:
                raise UsageError(f"{self.name}: no term is left in the stage {stage.name!r}")
            plain = stage.model_copy(update={"objective": objective})
            reads = any(WeightedTerm.of(*term).reference == TEACHER for term in objective.items())
            references = {**stage.references, **({TEACHER: teacher} if reads else {})}
            found.append(plain.model_copy(update={"references": references}))
            Objective.of(found[-1])
        if not found:
            raise UsageError(
                f"{self.name}: every stage trains the connector alone, but the student has none"
            )
        return found


def _of_media(name: str, setting: float | Mapping[str, Any]) -> bool:
    return any(row_kind(need) == "media" for need in WeightedTerm.of(name, setting).needs)


def _with(setting: float | Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return a term's setting with options replaced."""
    if not options:
        return setting
    given = setting if isinstance(setting, Mapping) else {"weight": setting}
    return {**given, **options}
