"""The opened parent with its units, data and evidence: where candidates are planned, shaped and written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modalign.compression.pruning.candidate import (
    CHECKED,
    check_logits,
    logits_on,
    silenced,
    write_candidate,
)
from modalign.compression.pruning.config import PruneConfig
from modalign.compression.pruning.evidence import Evidence, gather
from modalign.compression.pruning.plans import FORMS, Form, Plan, plan
from modalign.compression.pruning.results import Pruning
from modalign.compression.pruning.scores import Scored, rate, score_named
from modalign.compression.pruning.shapes import WIDTHS, FileNames, Shape, ShapeError, find_shape
from modalign.compression.pruning.structure import KINDS, Kind, Stack, find_stack
from modalign.compression.pruning.texts import Texts, read_texts
from modalign.connectors.base import InLayerConnector
from modalign.errors import DataError, UsageError, choose
from modalign.models.collation import Collator
from modalign.models.saved import OpenedModel, open_composed
from modalign.patches.patched_folder import PATCHES
from modalign.patches.pruned_folder import UNPRUNED
from modalign.progress import Progress
from modalign.runs import read_result
from modalign.strict_json import read_object
from modalign.trust import trusted

AUTO = "auto"
DEFAULT_SCORE = "fluctuation"
LAYER_SCORES = ("block_influence", "leave_one_out")
TRIES = 4  # until the biases fit into the target, too


@dataclass(frozen=True)
class Request:
    """A way to prune: what ``--form`` and ``--score`` say, or one of those that ``auto`` tries.

    Attributes:
        name: unique.
        form, score: of the plan.
        kinds: that may be cut; None: all.
    """

    name: str
    form: Form
    score: str
    kinds: tuple[Kind, ...] | None = None


@dataclass(frozen=True)
class Candidate:
    """A planned model.

    Attributes:
        request: that it answers.
        plan, shape: what is kept, and how it is said.
        means: evidence that biases are computed from; None: none are.
    """

    request: Request
    plan: Plan
    shape: Shape
    means: Evidence | None = None

    @property
    def added(self) -> int:
        """Parameters that the class has besides those that are kept."""
        return sum(value.numel() for value in self.shape.added.values())


@dataclass
class Workshop:
    """The parent, opened in float32 for as long as candidates are made.

    Attributes:
        config: what was asked for.
        source: the parent's folder.
        opened: the parent.
        stack: the part that is pruned.
        names: of its tensors in the files.
        configuration: the parent's ``config.json``.
        texts: the data.
        collator: of the parent's batches.
        progress: told about passes.
        evidence: what was measured so far.
        notes: for the report.
    """

    config: PruneConfig
    source: Path
    opened: OpenedModel
    stack: Stack
    names: FileNames
    configuration: dict[str, Any]
    texts: Texts
    collator: Collator
    progress: Progress
    evidence: Evidence = field(default_factory=Evidence)
    notes: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Of the whole parent."""
        return sum(parameter.numel() for parameter in self.opened.model.parameters())

    def rated(self, score: str, seed: int) -> Scored:
        """What a score says of all units or layers; what it needs is measured first."""
        ranked = score_named(score)
        self.gather(ranked.needs)
        return rate(self.stack, ranked, self.evidence, seed)

    def gather(self, needs: Collection[str]) -> None:
        """Measure what is not known yet."""
        known = {name for name in needs if getattr(self.evidence, name)}
        if lacking := set(needs) - known:
            found = gather(self.stack, self.texts.scored, self.collator, lacking, self.progress)
            for name in lacking:
                setattr(self.evidence, name, getattr(found, name))
            if found.gradients and not self.evidence.gradients:
                self.evidence.gradients = found.gradients

    def candidate(
        self, request: Request, size: int, *, seed: int, compensate: bool | None = False
    ) -> Candidate:
        """Plan and shape a model whose layers have at most so many parameters, new biases included.

        Args:
            request: how.
            size: the parameters.
            seed: of chance.
            compensate: biases for removed inputs; None: where the class can carry them.

        Raises:
            UsageError: the target is out of reach, or no class can say the shape.
        """
        scored = self.rated(request.score, seed)
        if compensate is not False and request.form in ("uniform", "per_layer"):
            self.gather({"inputs"})
            try:
                return self._fitting(request, scored, size, self.evidence)
            except ShapeError as error:
                if compensate:
                    raise
                self.notes.append(f"No biases make up for removed inputs: {error}")
        elif compensate:
            raise UsageError(f"--compensate: the form {request.form} adds no biases")
        return self._fitting(request, scored, size, None)

    def _fitting(
        self, request: Request, scored: Scored, size: int, means: Evidence | None
    ) -> Candidate:
        room = size
        for _ in range(TRIES):
            chosen = plan(self.stack, request.form, scored, room, request.kinds)
            shape = find_shape(self.stack, chosen, self.configuration, self.names, means)
            found = Candidate(request, chosen, shape, means)
            over = chosen.size(self.stack) + found.added - size
            if over <= 0:
                return found
            room -= over
        raise ShapeError(
            f"the biases that make up for removed inputs do not fit into {size:,} parameters: use --no-compensate"
        )

    def write(self, candidate: Candidate, folder: Path) -> float:
        """Write a candidate's folder, and compare it with the parent in which its units are silenced.

        Returns:
            The largest difference of logits.

        Raises:
            ModalignError: the folder computes something else.
        """
        plan_, shape = candidate.plan, candidate.shape
        write_candidate(self.source, self.stack, plan_, self.names, shape, folder)
        samples = self.texts.calibration[:CHECKED]
        with silenced(self.stack, plan_, candidate.means):
            wanted = logits_on(self.opened.model, self.collator, samples)
        with trusted():
            again = open_composed(folder)
        again.model.float()
        return check_logits(wanted, logits_on(again.model, again.collator(), samples), str(folder))


def open_workshop(config: PruneConfig, progress: Progress) -> Workshop:
    """Open and check the parent and the data.

    Raises:
        UsageError: an option is wrong, or the model cannot be pruned.
        DataError: the text or the weights are unusable.
    """
    source = Path(config.model)
    requested(config)  # names of forms, scores and units, before anything is read
    configuration = _configuration(source)
    if config.part == "vision" and config.data is None:
        raise UsageError(
            "--part vision: a vision tower is judged on records with media: give --data"
        )
    opened = open_composed(source)
    _check_finite(opened)
    inside = any(isinstance(c, InLayerConnector) for c in opened.model.connectors.values())
    if inside and config.part == "language" and config.form in ("depth", AUTO):
        raise UsageError(
            f"{opened.name}: its connector acts inside the decoder layers, so that none can go: choose uniform"
        )
    opened.model.float()
    stack = find_stack(opened.model, config.part)
    notes = [] if not _pruned_before(source) else [
        f"{source} is a pruned model itself: all losses are compared with it, not with what it was made from."
    ]  # fmt: skip
    return Workshop(
        config,
        source,
        opened,
        stack,
        _names(opened, stack, source),
        configuration,
        read_texts(config, opened, progress),
        opened.collator(),
        progress,
        notes=notes,
    )


def requested(config: PruneConfig) -> list[Request]:
    """What is to be tried.

    Raises:
        UsageError: no form, score or kind of unit is called so.
    """
    kinds = _kinds(config.units, config.form)
    score = config.score
    if score is not None:
        score_named(score)
    if config.form == AUTO:
        return _candidates(score, kinds)
    if config.form not in FORMS:
        raise UsageError(
            f"no form is called {config.form!r}; {choose(config.form, (*FORMS, AUTO))}"
        )
    default = LAYER_SCORES[0] if config.form == "depth" else DEFAULT_SCORE
    return [Request(config.form, config.form, score or default, kinds)]


def _candidates(score: str | None, kinds: tuple[Kind, ...] | None) -> list[Request]:
    """Forms whose folders any program loads: widths by a score, and layers."""
    width = score if score and score_named(score).of == "units" else DEFAULT_SCORE
    found = [Request("uniform", "uniform", width, kinds)]
    if kinds is None:
        found.append(Request("uniform-mlp", "uniform", width, ("mlp",)))
        found += [Request(f"depth-{name}", "depth", name) for name in LAYER_SCORES]
    return found


def _kinds(units: Sequence[str] | None, form: str) -> tuple[Kind, ...] | None:
    if units is None:
        return None
    for name in units:
        if name not in KINDS:
            raise UsageError(f"no units are called {name!r}; {choose(name, KINDS)}")
    if form == "depth":
        raise UsageError("the form depth removes layers: leave --units out")
    return tuple(kind for kind in KINDS if kind in units)


def _configuration(source: Path) -> dict[str, Any]:
    path = source / "config.json"
    if not path.is_file():
        raise UsageError(f"{source}: is not a model folder (it has no config.json)")
    found = read_object(path)
    if found.get("quantization_config"):
        raise UsageError(f"{source}: is quantised; prune the model it was made from")
    if WIDTHS in found:
        raise UsageError(
            f"{source}: its layers differ in width already; prune the model it was made from"
        )
    return found


def _pruned_before(source: Path) -> bool:
    """Whether a folder is one that this verb wrote, or holds a structure patch."""
    if read_result(source / "report.json", Pruning) is not None:
        return True
    return (source / PATCHES / UNPRUNED).is_dir()


def _check_finite(opened: OpenedModel) -> None:
    for name, parameter in opened.model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise DataError(f"{opened.name}: the tensor {name} has values that are not finite")


def _names(opened: OpenedModel, stack: Stack, source: Path) -> FileNames:
    """The tensors' names in the files; found by values, so for a moment in the dtype in which they are stored."""
    parameters = list(opened.model.parameters())
    try:
        for parameter in parameters:
            parameter.data = parameter.data.to(opened.stored)
        return FileNames.of(stack, source)
    finally:
        for parameter in parameters:
            parameter.data = parameter.data.float()
