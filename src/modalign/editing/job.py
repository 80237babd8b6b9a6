"""One computation of a patch: the model, its statistics, its values, and what is to be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from modalign.cache import cache_directory
from modalign.editing.edits import Edit
from modalign.editing.engine.contexts import sample_contexts
from modalign.editing.engine.corpus import Corpus
from modalign.editing.engine.covariance import (
    Covariance,
    collect,
    collect_rows,
    combined,
)
from modalign.editing.engine.memory import check_statistics, fitting_batch
from modalign.editing.engine.requests import Request, owners
from modalign.editing.engine.rewriting import Rewriter
from modalign.editing.engine.solve import Factor, factorise
from modalign.editing.engine.spec import ModelSpec, Site
from modalign.editing.engine.store import Hashes, ValueStore, weights_hash
from modalign.editing.engine.values import Value, ValueSettings, optimise
from modalign.editing.engine.weights import Weights
from modalign.editing.multimodal.pictures import PictureRows, Pictures
from modalign.errors import ModalignError
from modalign.patches.apply import applied, patches_of
from modalign.patches.changes import Change
from modalign.patches.patch import Patch
from modalign.progress import Progress


@dataclass(frozen=True)
class Options:
    """What a computation may use, apart from the method's settings.

    Attributes:
        corpus: text for the key statistics; None for what the model itself writes.
        pictures: prompts about pictures for the key statistics; None for text alone.
        below: patches that are applied first, lowest first; the new one is for the model with them.
        cache: folder of statistics and values; None for the user's.
        resume: take up values that an interrupted run left.
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


@dataclass(frozen=True)
class Solved:
    """What a method found.

    Attributes:
        changes: by parameter name.
        requests: the edits as they were run; an edit with a picture may have two.
        values: one per request; None where a method has none (fine-tuning).
    """

    changes: Mapping[str, Change]
    requests: Sequence[Request]
    values: Sequence[Value] | None


@dataclass
class Job:
    """Shared by the steps of one computation. Weights are pristine until ``start`` is called.

    Attributes:
        spec, tokenizer: of the model.
        rewriter: makes the edits' rows in the form in which the model is asked.
        edits: what to change.
        layers: to be written, ascending.
        seed, batch_size: as set.
        options: see :class:`Options`.
        weights: what the method writes; put back at the end.
        below: takes the patches below back at the end.
        notes: what the patch's reader should know.
        contexts_used: the sentences before the prompts.
        owners: for each request the number of its edit.
    """

    spec: ModelSpec
    tokenizer: Any
    rewriter: Rewriter
    edits: Sequence[Edit]
    layers: tuple[int, ...]
    seed: int
    batch_size: int
    options: Options
    weights: Weights
    below: ExitStack
    notes: list[str] = field(default_factory=list)
    contexts_used: tuple[str, ...] = ()
    owners: tuple[int, ...] = ()
    _covariance: Covariance | None = None
    _factors: dict[int, Factor] = field(default_factory=dict)
    _hashes: Hashes = field(default_factory=dict)

    @property
    def model(self) -> PreTrainedModel:
        """The whole model."""
        return self.spec.model

    @property
    def cache(self) -> Path:
        """Folder of statistics and values."""
        return self.options.cache or cache_directory()

    def tell(self, name: str, done: int, total: int) -> None:
        """Report progress."""
        if self.options.progress:
            self.options.progress(name, done, total)

    def note(self, message: str) -> None:
        """Something the patch's reader should know; said once."""
        if message not in self.notes:
            self.notes.append(message)
            self.options.said(message)

    def contexts(self, chosen: Sequence[str] | None) -> tuple[str, ...]:
        """The sentences before the prompts: those chosen, or what the pristine model writes."""
        if chosen is None:
            chosen = sample_contexts(self.spec, self.tokenizer, seed=self.seed)
        self.contexts_used = tuple(text for text in chosen if text.strip())
        return self.contexts_used

    def requests(self, contexts: Sequence[str]) -> list[Request]:
        """The edits, tokenised; an edit with a picture may make two requests."""
        found = self.rewriter.requests(self.edits, contexts)
        self.owners = owners(found)
        return found

    def require_covariance(self, tokens: int, image_weight: float = 1.0) -> None:
        """Take the key statistics of the layers, on the pristine model."""
        check_statistics(self.spec, self.layers)
        self._covariance = collect(
            self.spec,
            self.tokenizer,
            self.layers,
            corpus=self.options.corpus,
            tokens=tokens,
            seed=self.seed,
            cache=self.cache,
            progress=self.options.progress,
        )
        self._add_pictures(tokens, image_weight)
        width = max(self.spec.input_width(layer) for layer in self.layers)
        if self._covariance.tokens < width:
            self.note(
                f"key statistics of {self._covariance.tokens} tokens for keys of length {width}: "
                "give more text"
            )

    def _add_pictures(self, tokens: int, weight: float) -> None:
        """C0 = C_text + weight C_image."""
        assert self._covariance is not None
        pictures = self.options.pictures
        if pictures is None:
            if any(edit.image for edit in self.edits):
                self.note(
                    "key statistics of text alone: what the model says of other pictures is not "
                    "protected; give prompts about pictures"
                )
            return
        found = collect_rows(
            self.spec,
            self.layers,
            PictureRows(pictures, self.rewriter.asking, self.rewriter.eyes),
            tokens=tokens,
            cache=self.cache,
            progress=self.options.progress,
        )
        self._covariance = combined(self._covariance, found, weight)
        self.notes.append(
            f"key statistics: C0 = C_text + {weight:g} C_image, of {self._covariance.tokens} tokens "
            f"({self._covariance.corpus})"
        )

    def start(self) -> None:
        """Apply the patches below this one: from here on the weights are theirs.

        Raises:
            DataError: one of them was made for another model, or for another order.
        """
        for patch in self.options.below:
            self.below.enter_context(applied(self.model, patch))

    @property
    def covariance(self) -> Covariance:
        """C0 of the layers.

        Raises:
            ModalignError: ``require_covariance`` was not called.
        """
        if self._covariance is None:
            raise ModalignError("the method asked for key statistics it had not required")
        return self._covariance

    @property
    def fingerprint(self) -> str | None:
        """Of C0, where it was used."""
        return self._covariance.fingerprint if self._covariance else None

    def factor(self, layer: int) -> Factor:
        """C0 of a layer, factored once."""
        if layer not in self._factors:
            factor = factorise(self.covariance.matrices[layer])
            if factor.ridge:
                self.note(
                    f"layer {layer}: the key statistics are ill-conditioned "
                    f"(about {factor.condition:.0e}); a ridge of {factor.ridge:.0e} was added"
                )
            self._factors[layer] = factor
        return self._factors[layer]

    def values(
        self,
        layer: int,
        sites: Sequence[Site],
        settings: ValueSettings,
        requests: Sequence[Request],
    ) -> list[Value]:
        """The values of all edits, from the store or newly optimised."""
        weights = weights_hash(self.spec, self._hashes)
        store = ValueStore.open(self.cache, weights, layer, sites, settings, self.options.resume)
        found = {i: value for i, r in enumerate(requests) if (value := store.get(r)) is not None}
        if found:
            self.options.said(f"{len(found)} of {len(requests)} values were found before")
        missing = [i for i in range(len(requests)) if i not in found]

        def done(number: int, value: Value) -> None:
            found[missing[number]] = value
            store.put(requests[missing[number]], value)
            self.tell("values", len(found), len(requests))

        optimise(
            self.spec,
            layer,
            sites,
            settings,
            [requests[i] for i in missing],
            batch_size=self._batch(layer, [requests[i] for i in missing]),
            done=done,
            said=self.note,
        )
        return [found[i] for i in range(len(requests))]

    def _batch(self, layer: int, requests: Sequence[Request]) -> int:
        """Edits optimised together: as asked for, or as many as fit the memory."""
        size = fitting_batch(self.spec, layer, requests, self.batch_size)
        if size < self.batch_size and size < len(requests):
            self.options.said(f"values of {size} edits at once, which is what fits the memory")
        return size

    def earlier_keys(self, layer: int) -> Tensor:
        """Keys that the patches below have written at a layer, (d_in, m)."""
        name = self.spec.weight_name(layer)
        kept = [torch.empty(self.spec.input_width(layer), 0, dtype=torch.float64)]
        for carried in patches_of(self.model):
            for own_name, found in carried.names.items():
                change = carried.patch.changes[own_name]
                if found != name:
                    continue
                if (keys := change.own_keys()) is not None:
                    kept.append(keys)
                else:
                    self.note(
                        f"{carried.patch.header.name} keeps no keys ({change.form}): its "
                        f"edits are not protected at layer {layer}"
                    )
        return torch.cat(kept, dim=1)
