"""Objective terms: pure functions ``term(outputs, batch, references, **options) -> scalar``, by name.

A stage's objective is ``{term: weight}`` or ``{term: {"weight": 1.0, option: value, ...}}``; a term that stands in
it more than once has a name of its own after a stroke: ``info_nce/pictures``. Each term is
normalised by counts over the *whole* batch, all micro-batches and devices together, so that summing over
them gives the batch's value: the mean over supervised tokens is never a mean of unequal means.

A term declares what it reads from the trained model (``needs``) and from a reference (``reads``); only
what some term of the stage declares is computed:

===================  ==================================================================================
``logits``           at the K supervised positions
``media_logits``     at the I media positions of the sequence
``hidden:LAYER``     hidden states after a layer (0: the embeddings; negative: from the end) at the
                     supervised positions; ``hidden:LAYER:media`` and ``:tokens`` at others
``pooled``           one vector per record: its last token's, ``pooled:mean``, ``pooled:prompt``: where its
                     first answer would begin, or ``pooled:separator``: at its first separator; with
                     ``:fused`` after it, fused with what the encoders saw
``likelihood``       each record's log-likelihood of its answers, and their length in bytes
``codes``            codes of connectors that have them
``weights``          the trained parameters
``stage_one``        outputs of a connector's own pre-training
===================  ==================================================================================

In both, ``{option}`` is replaced by an option's value: ``hidden:{layer}``. modalign's own terms
are in :mod:`modalign.training.terms`; third parties add theirs by entry points in the group
``modalign.objective_terms``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from modalign.configuration import explained
from modalign.errors import UsageError, choose
from modalign.named import options_of, source_of
from modalign.training.outputs import FUSED, Outputs
from modalign.training.settings import START, Stage

ENTRY_POINT_GROUP = "modalign.objective_terms"
OWN_TERMS = "modalign.training.terms"
NEEDS = (
    "logits",
    "media_logits",
    "hidden",
    "pooled",
    "likelihood",
    "codes",
    "weights",
    "stage_one",
)
DEFAULT_NEEDS = ("logits",)

_TERMS: dict[str, ObjectiveTerm] = {}
F = TypeVar("F", bound=Callable[..., Tensor])


class TermSetting(BaseModel):
    """A stage's settings of a term; each term's options are further fields.

    Attributes:
        weight: its factor in the sum.
        role: it reads only records of this role; None: all.
    """

    model_config = ConfigDict(extra="forbid")

    weight: float = Field(default=1.0, strict=True)
    role: str | None = None


@dataclass(frozen=True)
class ObjectiveTerm:
    """A registered term.

    Attributes:
        name: exact.
        function: ``(outputs, batch, references, **options) -> scalar``.
        needs: what it reads from the trained model.
        reads: what it reads from the reference named by its option ``reference``.
        whole: it cannot be summed over parts of a batch (contrastive terms): it gets the rows of all records
            of the batch, where those of its own part carry gradients.
        setting: weight, role, and its keyword-only parameters.
    """

    name: str
    function: Callable[..., Tensor]
    needs: frozenset[str]
    reads: frozenset[str]
    whole: bool
    setting: type[TermSetting]

    def __call__(
        self, outputs: Any, batch: Any, references: Mapping[str, Any], **options: Any
    ) -> Tensor:
        """Compute the term."""
        return self.function(outputs, batch, references, **options)


def objective_term(
    name: str,
    *,
    needs: Collection[str] = DEFAULT_NEEDS,
    reads: Collection[str] = (),
    whole: bool = False,
) -> Callable[[F], F]:
    """Decorator: register a term under an exact name; its keyword-only parameters are its options.

    An option ``reference_X`` that is None takes the value of the option ``X``.

    Args:
        name: its name in objectives.
        needs: what it reads from the trained model; see this module.
        reads: what it reads from the reference named by its option ``reference``.
        whole: it needs the pooled vectors of the whole batch.

    Raises:
        UsageError: the name is taken, or a need is unknown.
    """

    def register(function: F) -> F:
        known = _TERMS.get(name)
        if known is not None and source_of(known.function) != source_of(function):
            raise UsageError(f"objective term {name!r} is registered twice")
        unknown = [need for need in (*needs, *reads) if need.partition(":")[0] not in NEEDS]
        if unknown:
            raise UsageError(
                f"objective term {name!r} needs {unknown[0]!r}; there are {', '.join(NEEDS)}"
            )
        setting = options_of(name, function, TermSetting)
        _TERMS[name] = ObjectiveTerm(
            name, function, frozenset(needs), frozenset(reads), whole, setting
        )
        return function

    return register


@cache
def _load_all() -> frozenset[str]:
    """Load modalign's own terms and third parties'; return the names that every process has."""
    terms = importlib.import_module(OWN_TERMS)
    for module in pkgutil.iter_modules(terms.__path__):
        importlib.import_module(f"{OWN_TERMS}.{module.name}")
    own = {
        name
        for name, each in _TERMS.items()
        if each.function.__module__.startswith(f"{OWN_TERMS}.")
    }
    found = entry_points(group=ENTRY_POINT_GROUP)
    for entry in found:
        entry.load()
        if entry.name not in _TERMS:
            raise UsageError(
                f"entry point {entry.name!r} ({entry.value}) registers no objective term of that "
                "name; decorate the function with @objective_term"
            )
    return frozenset(own | {entry.name for entry in found})


def term(name: str) -> ObjectiveTerm:
    """Return the term of exactly this name.

    Raises:
        UsageError: there is none; the message names the nearest and lists all.
    """
    _load_all()
    if name not in _TERMS:
        raise UsageError(f"no objective term is called {name!r}; {choose(name, sorted(_TERMS))}")
    return _TERMS[name]


# ---------------------------------------------------------------------- a stage's objective


@dataclass(frozen=True)
class WeightedTerm:
    """A term of a stage with its weight and options.

    Attributes:
        term: the term.
        weight: its factor in the sum.
        role: it reads only records of this role; None: all.
        options: its own, checked, defaults filled in.
    """

    term: ObjectiveTerm
    weight: float
    role: str | None
    options: dict[str, Any]

    @classmethod
    def of(cls, name: str, setting: float | Mapping[str, Any]) -> WeightedTerm:
        """Read ``weight`` or ``{"weight": ..., "role": ..., option: ...}``.

        Raises:
            UsageError: an unknown term or option, or a wrong value.
        """
        known = term(name.partition("/")[0])
        given = setting if isinstance(setting, Mapping) else {"weight": setting}
        try:
            options = known.setting.model_validate(given).model_dump()
        except ValidationError as error:
            there = ", ".join(known.setting.model_fields)
            raise UsageError(
                f"objective term {name!r}: {explained(error)}; its options are {there}"
            ) from error
        weight, role = options.pop("weight"), options.pop("role")
        for option, value in options.items():
            if value is None and option.startswith("reference_"):
                options[option] = options[option.removeprefix("reference_")]
        return cls(known, weight, role, options)

    @property
    def needs(self) -> frozenset[str]:
        """Return what it reads from the trained model."""
        return frozenset(_complete(need, self.options) for need in self.term.needs)

    @property
    def reads(self) -> frozenset[str]:
        """Return what it reads from its reference."""
        return frozenset(_complete(need, self.options) for need in self.term.reads)

    @property
    def learns(self) -> bool:
        """Whether it learns something of its own: a head, a map, a temperature (:mod:`.learnt`)."""
        own = (self.options.get(each) for each in ("classes", "map", "learn_temperature", "fusion"))
        return any(own)

    @property
    def reference(self) -> str | None:
        """Return the name of the reference it reads."""
        return self.options.get("reference") if self.term.reads else None

    def value(self, outputs: Outputs, batch: Any, references: Mapping[str, Outputs]) -> Tensor:
        """Return the weighted term on a micro-batch: its share of the whole batch's value."""
        if self.role is not None:
            references = {
                name: found.of_role(batch, self.role) for name, found in references.items()
            }
            outputs, batch = outputs.of_role(batch, self.role), batch.of_role(self.role)
        found = self.term(outputs, batch, references, **self.options)
        if self.term.whole:  # every part computes it; only its own rows contribute gradients
            found = found - (1 - batch.share) * found.detach()
        return self.weight * found

    def faults(self, stage: Stage) -> Iterator[str]:
        """Yield the reasons why the stage cannot compute it."""
        needs, named = self.needs - {"codes"}, [*stage.references, START]
        if stage.runs == "stage_one" and needs - {"stage_one"}:
            yield "needs the language model, which a connector's own stage one runs without"
        if stage.runs == "model" and "stage_one" in needs:
            yield "belongs to a connector's own stage one"
        if self.role is not None and self.role not in stage.roles:
            roles = ", ".join(stage.roles) or "there are none"
            yield f"reads the role {self.role!r}, which is not in roles ({roles})"
        if self.role is not None and (self.term.whole or self.needs & {"codes", "weights"}):
            yield "takes no role"
        if self.term.whole and not stage.matched:
            yield "contrasts records of two roles; set roles and matched: true (or all)"
        if self.reference is not None and self.reference not in named:
            yield (
                f"reads the reference {self.reference!r}; name its folder under references, or read "
                f"{START!r}, the model as the stage finds it"
            )


def _complete(need: str, options: Mapping[str, Any]) -> str:
    """Return a need with the values of its options and its defaults: ``hidden:2:answers``."""
    kind, *rest = need.format(**options).split(":")
    if kind == "hidden" and len(rest) == 1:
        rest.append("answers")
    if kind == "pooled" and not rest:
        rest.append("last")
    if kind == "pooled" and len(rest) > 1:  # whether it is to be fused
        rest[1:] = [FUSED[1:]] * (rest[1] == "True")
    return ":".join([kind, *rest])


@dataclass(frozen=True)
class Objective:
    """All terms of a stage.

    Attributes:
        terms: in the stage's order.
    """

    terms: tuple[WeightedTerm, ...]

    @classmethod
    def of(cls, stage: Stage) -> Objective:
        """Return the objective of a stage.

        Raises:
            UsageError: an unknown term or option, a term that the stage cannot feed, a reference or
                role that is not declared or that nothing reads.
        """
        objective = cls(
            tuple(WeightedTerm.of(name, setting) for name, setting in stage.objective.items())
        )
        objective._check(stage)
        return objective

    @property
    def needs(self) -> frozenset[str]:
        """Return what the terms read from the trained model."""
        return frozenset().union(*(each.needs for each in self.terms))

    @property
    def whole(self) -> bool:
        """Whether a term needs the pooled vectors of the whole batch."""
        return any(each.term.whole for each in self.terms)

    def reads(self, reference: str) -> frozenset[str]:
        """Return what the terms read from a reference."""
        return frozenset().union(
            *(each.reads for each in self.terms if each.reference == reference)
        )

    @property
    def references(self) -> list[str]:
        """Return the names of the references that terms read."""
        return sorted({each.reference for each in self.terms if each.reference is not None})

    def value(self, outputs: Outputs, batch: Any, references: Mapping[str, Outputs]) -> Tensor:
        """Return the weighted sum of the terms on a micro-batch: its share of the batch's value."""
        return torch.stack([each.value(outputs, batch, references) for each in self.terms]).sum()

    def _check(self, stage: Stage) -> None:
        where = f"stage {stage.name!r}"
        if not self.terms:
            raise UsageError(f"{where}: its objective has no term")
        for each in self.terms:
            for fault in each.faults(stage):
                raise UsageError(f"{where}: {each.term.name} {fault}")
        for name in stage.references:
            if name not in self.references:
                raise UsageError(f"{where}: no term reads the reference {name!r}")
        contrasted = {v for each in self.terms if each.term.whole for v in each.options.values()}
        read = contrasted | {each.role for each in self.terms}
        everything = any(each.role is None and not each.term.whole for each in self.terms)
        for role in stage.roles:
            if role not in read and not everything:
                raise UsageError(f"{where}: no term reads the role {role!r}")


def check_stages(stages: Collection[Stage], *, everywhere: bool = False) -> None:
    """Refuse anything that would end a training in its first step.

    Args:
        stages: a recipe.
        everywhere: whether the terms must exist in other processes, too.

    Raises:
        UsageError: see :meth:`Objective.of`; or a term exists only in this process.
    """
    for stage in stages:
        objective = Objective.of(stage)
        local = [each.term.name for each in objective.terms if each.term.name not in _load_all()]
        if everywhere and local:
            raise UsageError(
                f"objective term {local[0]!r} was registered in this process only; the processes "
                f"that train find terms by the entry point group {ENTRY_POINT_GROUP!r}"
            )
