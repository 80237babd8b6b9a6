"""Compute a patch in three steps, each frozen once it is made: plan, key statistics, solution.

The plan says what is changed and where, and holds the edits as rows of tokens. Key statistics are taken
on the pristine model. Then the patches below the new one are applied, and on that model a
:class:`Computation` finds values and changes: the solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalign.cache import cache_directory
from modalign.data.corpus import Corpus
from modalign.editing.config import EditConfig
from modalign.editing.edits import Edit
from modalign.editing.engine.contexts import LENGTH, sample_contexts
from modalign.editing.engine.covariance import (
    Covariance,
    collect,
    collect_rows,
    combined,
)
from modalign.editing.engine.memory import check_statistics, fitting_batch
from modalign.editing.engine.requests import Request, owners
from modalign.editing.engine.rewriting import Rewriter
from modalign.editing.engine.solve import SMALL_RIDGE, Factor, Spectrum, factorise
from modalign.editing.engine.spec import ModelSpec, Site
from modalign.editing.engine.store import Hashes, ValueStore, weights_hash
from modalign.editing.engine.values import Value, ValueSettings, optimise
from modalign.editing.engine.weights import Weights
from modalign.editing.multimodal.pictures import PictureRows, Pictures
from modalign.errors import ModalignError
from modalign.models.asking import tokenizer_of
from modalign.patches.apply import patches_of
from modalign.patches.changes import Change
from modalign.patches.patch import Patch
from modalign.progress import Progress


@dataclass(frozen=True)
class Options:
    """What a computation may use, apart from the method's settings.

    Attributes:
        corpus: text for the key statistics; None for what the model itself writes.
        pictures: prompts about pictures for the key statistics; None for text alone.
        below: patches to apply first, lowest first; the new one is made for the model that carries them.
        cache: folder of statistics and values; None for the user's own.
        resume: reuse values that an interrupted run left.
        progress: told how far each step is.
        said: told what the user should know.
    """

    corpus: Corpus | None = None
    pictures: Pictures | None = None
    below: tuple[Patch, ...] = ()
    cache: Path | None = None
    resume: bool = False
    progress: Progress | None = None
    said: Callable[[str], None] = lambda message: None


class Notes:
    """What the patch's reader should know; each message is given once, and their order is kept."""

    def __init__(self, said: Callable[[str], None]) -> None:
        self.lines: list[str] = []
        self._said = said

    def add(self, message: str, *, quietly: bool = False) -> None:
        """Keep a message, and tell the user unless ``quietly``."""
        if message not in self.lines:
            self.lines.append(message)
            if not quietly:
                self._said(message)


@dataclass(frozen=True)
class Plan:
    """The first step: what a computation changes, and where.

    Attributes:
        spec, tokenizer: of the model.
        rewriter: makes the edits' rows in the form in which the model is asked.
        layers: those to be written, ascending.
        requests: the edits as rows of tokens; an edit with a picture may have two.
        contexts: the sentences put before the prompts.
        seed, batch_size: as configured.
        options: see :class:`Options`.
        notes: of all steps.
    """

    spec: ModelSpec
    tokenizer: Any
    rewriter: Rewriter
    layers: tuple[int, ...]
    requests: Sequence[Request]
    contexts: tuple[str, ...]
    seed: int
    batch_size: int
    options: Options
    notes: Notes

    @classmethod
    def make(
        cls,
        spec: ModelSpec,
        reader: Any,
        edits: Sequence[Edit],
        config: EditConfig,
        options: Options,
        *,
        layers: tuple[int, ...],
        contexts: Sequence[str] | None,
    ) -> Plan:
        """Plan a computation on the pristine model.

        Args:
            spec: the model.
            reader: its tokenizer or processor.
            edits: what to change.
            config: of the method.
            options: see :class:`Options`.
            layers: those to be written.
            contexts: the sentences put before the prompts; None for what the model writes itself.
        """
        tokenizer = tokenizer_of(reader)
        if contexts is None:
            lengths = getattr(config, "context_tokens", (LENGTH,))
            contexts = sample_contexts(spec, tokenizer, seed=config.seed, lengths=lengths)
        kept = tuple(text for text in contexts if text.strip())
        rewriter = Rewriter(spec, reader, config)
        return cls(
            spec=spec,
            tokenizer=tokenizer,
            rewriter=rewriter,
            layers=layers,
            requests=rewriter.requests(edits, kept),
            contexts=kept,
            seed=config.seed,
            batch_size=config.batch_size,
            options=options,
            notes=Notes(options.said),
        )

    @property
    def owners(self) -> tuple[int, ...]:
        """The number of each request's edit."""
        return owners(self.requests)

    @property
    def cache(self) -> Path:
        """Folder of statistics and values."""
        return self.options.cache or cache_directory()

    def tell(self, name: str, done: int, total: int) -> None:
        """Report progress."""
        if self.options.progress:
            self.options.progress(name, done, total)


@dataclass(frozen=True)
class KeyStatistics:
    """The second step: C0 of the plan's layers.

    Attributes:
        covariance: C0 and what it was taken from.
        notes: collects warnings of ill-conditioned layers.
    """

    covariance: Covariance
    notes: Notes
    _factors: dict[int, Factor] = field(default_factory=dict)
    _spectra: dict[int, Spectrum] = field(default_factory=dict)

    @classmethod
    def collect(cls, plan: Plan, tokens: int | None, image_weight: float) -> KeyStatistics:
        """Take them on the pristine model, or find them in the cache.

        Args:
            plan: for which layers.
            tokens: of text; None for as many as the keys' length needs.
            image_weight: weight of the pictures' keys: C0 = C_text + image_weight C_image.
        """
        check_statistics(plan.spec, plan.layers)
        options = plan.options
        covariance = collect(
            plan.spec,
            plan.tokenizer,
            plan.layers,
            corpus=options.corpus,
            tokens=tokens,
            seed=plan.seed,
            cache=plan.cache,
            progress=options.progress,
        )
        if options.pictures is not None:
            rows = PictureRows(options.pictures, plan.rewriter.asking, plan.rewriter.eyes)
            found = collect_rows(
                plan.spec,
                plan.layers,
                rows,
                tokens=tokens,
                cache=plan.cache,
                progress=options.progress,
            )
            covariance = combined(covariance, found, image_weight)
            plan.notes.add(
                f"key statistics: C0 = C_text + {image_weight:g} C_image, of {covariance.tokens} "
                f"tokens ({covariance.corpus})",
                quietly=True,
            )
        elif any(request.edit.image for request in plan.requests):
            plan.notes.add(
                "key statistics of text alone: what the model says of other pictures is not "
                "protected; give prompts about pictures"
            )
        width = max(plan.spec.input_width(layer) for layer in plan.layers)
        if covariance.tokens < width:
            plan.notes.add(
                f"key statistics of {covariance.tokens} tokens for keys of length {width}: "
                "give more text"
            )
        return cls(covariance, plan.notes)

    def matrix(self, layer: int) -> Tensor:
        """Return C0 of a layer, (d_in, d_in)."""
        return self.covariance.matrices[layer]

    def spectrum(self, layer: int) -> Spectrum:
        """Return C0's eigenvalues and eigenvectors at a layer, computed once."""
        if layer not in self._spectra:
            self._spectra[layer] = Spectrum.of(self.matrix(layer))
        return self._spectra[layer]

    def factor(self, layer: int) -> Factor:
        """Return C0's factor at a layer, computed once."""
        if layer not in self._factors:
            factor = factorise(self.matrix(layer))
            if factor.ridge:
                self.notes.add(
                    f"layer {layer}: {factor.words}", quietly=factor.ridge <= SMALL_RIDGE
                )
            self._factors[layer] = factor
        return self._factors[layer]


@dataclass(frozen=True)
class Solution:
    """The third step: what a method found.

    Attributes:
        changes: by parameter name.
        values: one per request of the plan; None where a method has none (fine-tuning).
    """

    changes: Mapping[str, Change]
    values: Sequence[Value] | None


@dataclass(frozen=True)
class Computation:
    """What a method works with: the first two steps, and the model with the patches below applied.

    Attributes:
        plan: see :class:`Plan`.
        statistics: see :class:`KeyStatistics`; None for a method that takes none.
        weights: the weights that the method changes; restored at the end.
    """

    plan: Plan
    statistics: KeyStatistics | None
    weights: Weights
    _hashes: Hashes = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.plan.spec

    @property
    def key_statistics(self) -> KeyStatistics:
        """The key statistics, for a method that takes them.

        Raises:
            ModalignError: it took none.
        """
        if self.statistics is None:
            raise ModalignError("the method asked for key statistics it had not taken")
        return self.statistics

    def values(
        self,
        layer: int,
        sites: Sequence[Site],
        settings: ValueSettings,
        requests: Sequence[Request],
    ) -> list[Value]:
        """Return the values of requests, from the store or newly optimised."""
        plan = self.plan
        weights = weights_hash(self.spec, self._hashes)
        store = ValueStore.open(plan.cache, weights, layer, sites, settings, plan.options.resume)
        found = {i: value for i, r in enumerate(requests) if (value := store.get(r)) is not None}
        if found:
            plan.options.said(f"{len(found)} of {len(requests)} values were found before")
        missing = [i for i in range(len(requests)) if i not in found]

        def done(number: int, value: Value) -> None:
            found[missing[number]] = value
            store.put(requests[missing[number]], value)
            plan.tell("values", len(found), len(requests))

        optimise(
            self.spec,
            layer,
            sites,
            settings,
            [requests[i] for i in missing],
            batch_size=self._batch(layer, [requests[i] for i in missing]),
            done=done,
            said=plan.notes.add,
        )
        return [found[i] for i in range(len(requests))]

    def _batch(self, layer: int, requests: Sequence[Request]) -> int:
        """Return how many edits are optimised together: as asked for, or as many as fit in memory."""
        size = fitting_batch(self.spec, layer, requests, self.plan.batch_size)
        if size < self.plan.batch_size and size < len(requests):
            self.plan.options.said(f"values of {size} edits at once, which is what fits the memory")
        return size

    def earlier_keys(self, layer: int) -> Tensor:
        """Return the keys that the patches below have written at a layer, (d_in, m)."""
        name = self.spec.weight_name(layer)
        kept = [torch.empty(self.spec.input_width(layer), 0, dtype=torch.float64)]
        for carried in patches_of(self.spec.model):
            for own_name, found in carried.names.items():
                change = carried.patch.changes[own_name]
                if found != name:
                    continue
                if (keys := change.own_keys()) is not None:
                    kept.append(keys)
                else:
                    self.plan.notes.add(
                        f"{carried.patch.header.name} keeps no keys ({change.form}): its "
                        f"edits are not protected at layer {layer}"
                    )
        return torch.cat(kept, dim=1)
