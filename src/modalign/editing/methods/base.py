"""A method: edits go in, a patch comes out, the model stays bit for bit as it was."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, ClassVar

import torch
import transformers
from transformers import PreTrainedModel

from modalign.editing.checks import edit_records
from modalign.editing.computation import Computation, KeyStatistics, Options, Plan, Solution
from modalign.editing.config import EditConfig, ValueConfig
from modalign.editing.edits import Edit
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.engine.weights import changing
from modalign.errors import UsageError
from modalign.hashing import tensor_hash, tokenizer_hash
from modalign.patches.apply import applied, patches_of
from modalign.patches.header import BaseTensor, EditingOrigin, PatchHeader, patch_hash
from modalign.patches.patch import Patch
from modalign.version import __version__


class Method(ABC):
    """An editing method with its settings.

    Class attributes:
        name: as on the command line.
        title: as in tables.
        config_class: its settings.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    config_class: ClassVar[type[EditConfig]]

    def __init__(self, config: EditConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.config_class()
        if not isinstance(self.config, self.config_class):
            raise UsageError(f"{self.name} takes a {self.config_class.__name__}")

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the layers to be written in a model with ``depth`` layers, ascending."""
        layers: tuple[int, ...] = self.config.layers_of(depth)
        return layers

    def contexts(self) -> Sequence[str] | None:
        """Return the sentences put before the prompts; None for what the model writes itself."""
        return ()

    def statistics(self, plan: Plan) -> KeyStatistics | None:
        """Take the key statistics on the pristine model; None for a method that needs none."""
        return None

    @abstractmethod
    def solve(self, computation: Computation) -> Solution:
        """Compute the changes. It may change the model's weights; they are restored afterwards."""

    def compute(
        self,
        model: PreTrainedModel,
        reader: Any,
        edits: Sequence[Edit],
        *,
        options: Options | None = None,
        name: str | None = None,
    ) -> Patch:
        """Compute a patch.

        Args:
            model: a causal LM, or a multimodal model whose language part is edited; it is left bit for
                bit unchanged, whatever happens.
            reader: the model's tokenizer, or its processor if edits have pictures or the model
                is asked through its processor's chat template.
            edits: what to change, validated.
            options: text for statistics, patches below, caches, progress.
            name: the patch's name.

        Raises:
            UsageError: there are no edits, or the settings do not fit the model.
            ModalignError: a value or a linear system has no solution; see the message.
        """
        if not edits:
            raise UsageError("there are no edits")
        if carried := patches_of(model):
            raise UsageError(
                f"the model carries the patch {carried[0].patch.header.name!r}; give the bare model, "
                "and the patches below the new one as Options(below=...) (--on)"
            )
        options = options or Options()
        spec = ModelSpec.detect(model)
        plan = Plan.make(
            spec,
            reader,
            edits,
            self.config,
            options,
            layers=self.layers(spec.depth),
            contexts=self.contexts(),
        )
        with ExitStack() as below, changing(model) as weights:
            statistics = self.statistics(plan)
            for patch in options.below:
                below.enter_context(applied(model, patch))
            computation = Computation(plan, statistics, weights)
            solution = self.solve(computation)
            records = edit_records(computation, solution, type(self.config).model_fields)
        # From here on the weights are the pristine ones, to which the patch is bound.
        base = {name: _bound_to(spec, name) for name in solution.changes}
        header = PatchHeader(
            name=name or self.name,
            method=self.name,
            model=str(getattr(model.config, "_name_or_path", "") or type(model).__name__),
            base=base,
            after=tuple(patch_hash(patch) for patch in options.below),
            tokenizer=tokenizer_hash(plan.tokenizer),
            settings=self.config.model_dump(mode="json")
            | {"layers": list(plan.layers), "template": plan.rewriter.asking.template},
            seed=self.config.seed,
            editing=EditingOrigin(
                covariance=statistics.covariance.fingerprint if statistics else None,
                contexts=plan.contexts,
                edits=records,
            ),
            history=tuple(plan.notes.lines),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
        )
        return Patch(header, solution.changes)


class ValueMethod(Method):
    """A method that optimises values and takes key statistics."""

    config: ValueConfig

    def contexts(self) -> Sequence[str] | None:
        """See :class:`Method`."""
        return self.config.contexts

    def statistics(self, plan: Plan) -> KeyStatistics:
        """See :class:`Method`."""
        return KeyStatistics.collect(plan, self.config.tokens, self.config.image_weight)


def versions() -> dict[str, str]:
    """Return the versions of the software that computes patches, for the record."""
    return {
        "modalign": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _bound_to(spec: ModelSpec, name: str) -> BaseTensor:
    """Describe the parameter that the patch expects."""
    parameter = spec.model.get_parameter(name)
    transposed = any(
        spec.weight_name(layer) == name and spec.transposed(layer) for layer in range(spec.depth)
    )
    return BaseTensor(
        sha256=tensor_hash(parameter), shape=tuple(parameter.shape), transposed=transposed
    )
