"""Reference models: frozen, read by objective terms, charged to the budget.

A reference reads the same records as the trained model, through its own encoders and connectors, in the
dtype it was saved in. Its rows are in the order of the trained model's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modalign.data.modalities import modality_names
from modalign.data.records import mark
from modalign.data.supervision import Sample
from modalign.errors import DataError, UsageError
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import embedding, hidden_size
from modalign.models.pretrained import read_pretrained
from modalign.models.saved import open_composed
from modalign.training.costs import CostModel
from modalign.training.learnt import set_learnt
from modalign.training.objectives import Objective, WeightedTerm
from modalign.training.outputs import (
    Outputs,
    TopWords,
    TrainBatch,
    prefix_places,
    read,
    row_kind,
)
from modalign.training.settings import START, Stage
from modalign.training.stored import NEEDS, READERS, Place, Store, is_store, sample_keys
from modalign.training.trainable import PartCount


def _marks() -> set[str]:
    """Return the placeholders of all modalities."""
    return {mark(modality) for modality in modality_names()}


class Reference(ABC):
    """A frozen model for terms.

    Args:
        model: the model.
        weights: name -> tensor, the memory it adds to a training.
    """

    def __init__(
        self, model: ModalignForConditionalGeneration, weights: Mapping[str, Tensor]
    ) -> None:
        self.model, self.weights, self.costs = model, weights, CostModel.of(model)

    @property
    def parameters(self) -> int:
        """Return the number of its weights."""
        return sum(tensor.numel() for tensor in self.weights.values())

    @torch.no_grad()
    def outputs(self, batch: TrainBatch, needs: Collection[str]) -> Outputs:
        """Return its outputs for a batch, in the rows of the trained model.

        Raises:
            UsageError: it does not accept the records' media, or its number of rows differs from the
                model's.
        """
        found = self._read(batch, needs) if computed(batch, needs) else self._nothing(batch, needs)
        return replace(found, weights=self.weights)

    def flops(self, batch: TrainBatch, needs: Collection[str]) -> float:
        """Return the FLOPs of this: one forward pass, if any."""
        if not computed(batch, needs):
            return 0.0
        return forward_flops(self.costs, self._own(batch), needs)

    def _own(self, batch: TrainBatch) -> TrainBatch:
        """Return the batch in this model's form."""
        return batch

    @abstractmethod
    def _read(self, batch: TrainBatch, needs: Collection[str]) -> Outputs: ...

    def _nothing(self, batch: TrainBatch, needs: Collection[str]) -> Outputs:
        """Return empty outputs, for an uncounted batch or if only weights are read."""
        D, V = hidden_size(self.model), embedding(self.model).num_embeddings
        none = torch.zeros(0, V, device=batch.input_ids.device)
        rows = {
            need: none.new_zeros(len(batch.samples) if row_kind(need) == "records" else 0, D)
            for need in needs
            if need.startswith(("hidden", "pooled"))
        }
        return Outputs(none, none, rows)


class StartReference(Reference):
    """The model as the stage found it: its own modules with their initial trained tensors."""

    def __init__(self, model: ModalignForConditionalGeneration) -> None:
        own = model.named_parameters()
        super().__init__(model, {name: p.detach().clone() for name, p in own if p.requires_grad})

    def _call(self, **inputs: Any) -> Any:
        return functional_call(self.model, dict(self.weights), (), inputs)

    def _read(self, batch: TrainBatch, needs: Collection[str]) -> Outputs:
        with _evaluating(self.model):
            return read(self.model, self._call, batch, needs)


class FolderReference(Reference):
    """A saved model.

    Args:
        name: name in the stage.
        folder: folder of a model saved by modalign, a Llava, or a causal language model.
        tokenizer: the trained model's.
        vocabulary: rows of its embedding table.
        device: the reference's device.

    Raises:
        UsageError: it cannot be loaded, or has another vocabulary.
    """

    def __init__(
        self,
        name: str,
        folder: str,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        device: torch.device,
    ) -> None:
        shared = check_vocabulary(name, folder, tokenizer)
        opened = open_composed(folder, f"the reference {name!r}")
        model = opened.model.to(device).eval().requires_grad_(False)
        self.collator, own = opened.collator(), opened.tokenizer
        super().__init__(model, dict(model.named_parameters()))
        self.name, self.dtype = name, model.dtype
        rows = embedding(model).num_embeddings
        self.common = rows if rows == vocabulary else min(rows, vocabulary, shared)
        both = set(tokenizer.get_vocab()) & set(own.get_vocab())
        self.ids = {
            int(tokenizer.convert_tokens_to_ids(text)): int(own.convert_tokens_to_ids(text))
            for text in _marks() & both
        }
        self._last: tuple[TrainBatch, TrainBatch] | None = None  # a batch, and its form here

    def _read(self, batch: TrainBatch, needs: Collection[str]) -> Outputs:
        own = self._own(batch)
        with torch.autocast(own.input_ids.device.type, enabled=False):
            found = read(self.model, self.model, own, needs)
        found.logits = found.logits[:, : self.common]
        found.media_logits = found.media_logits[:, : self.common]
        return self._aligned(found, own, batch, needs)

    def _own(self, batch: TrainBatch) -> TrainBatch:
        """Return the records in this model's form, cached per batch."""
        if self._last is None or self._last[0] is not batch:
            plain = self.collator([self._translated(sample) for sample in batch.samples])
            signals = {
                key: value.to(self.dtype) if value.is_floating_point() else value
                for key, value in plain.signals.items()
            }
            own = TrainBatch(
                **vars(replace(plain, signals=signals)),
                places=prefix_places(self.model, self.collator, plain.input_ids),
                numbers=torch.arange(len(plain.samples)),
                roles=batch.roles.cpu(),
                keys=batch.keys.cpu(),
            )
            self._last = (batch, own.to(batch.input_ids.device))
        return self._last[1]

    def _translated(self, sample: Sample) -> Sample:
        """Return the sample with this model's ids of placeholders."""
        foreign = {medium.modality for medium in sample.media} - set(self.collator.entries)
        if foreign:
            raise UsageError(
                f"the reference {self.name!r} takes {', '.join(self.collator.entries) or 'text only'}, "
                f"but {sample.record.source} holds {sorted(foreign)[0]}"
            )
        ids = sample.ids.copy()
        for theirs, own in self.ids.items():
            if theirs != own:
                ids[sample.ids == theirs] = own
        return replace(sample, ids=ids)

    def _aligned(
        self, found: Outputs, own: TrainBatch, batch: TrainBatch, needs: Collection[str]
    ) -> Outputs:
        """Return rows in the trained model's order; within a record both agree."""
        kinds = {row_kind(need) for need in needs} & {"answers", "media", "tokens"}
        rows: dict[str, Tensor] = {"records": torch.arange(len(batch.samples))}
        for at in sorted(kinds):
            mine, wanted = own.owners(at), batch.owners(at)  # type: ignore[arg-type]
            if not torch.equal(mine.sort().values, wanted.sort().values):
                where = {"answers": "supervised", "media": "media"}.get(at, "filled")
                raise UsageError(
                    f"the reference {self.name!r} has {len(mine)} {where} positions, but the model "
                    f"has {len(wanted)}, so their values cannot be compared one by one; give both "
                    "connectors with the same number of tokens, or use a term about answers"
                )
            rows[at] = torch.empty_like(wanted)
            rows[at][wanted.argsort(stable=True)] = mine.argsort(stable=True)
        return found.chosen(rows)


def computed(batch: TrainBatch, needs: Collection[str]) -> bool:
    """Whether a forward pass is needed; not for weights alone or an uncounted batch."""
    return bool(set(needs) - {"weights"}) and bool((batch.numbers >= 0).any())


def forward_flops(costs: CostModel, batch: TrainBatch, needs: Collection[str]) -> float:
    """Return the FLOPs of a forward pass over a batch, including encoders that run."""
    media = sum(len(sample.media) for sample in batch.samples)
    rows, length = batch.input_ids.shape
    shown = int(batch.shown(needs).sum())
    return costs.forward(rows, length, shown, media, encode=bool(batch.signals))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode temporarily; restore every submodule's mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def check_vocabulary(
    name: str, folder: str, tokenizer: PreTrainedTokenizerBase, what: str = "reference"
) -> int:
    """Refuse another vocabulary; returns how many ids, from 0 on, mean the same in both."""
    other = read_pretrained(AutoTokenizer, folder, f"{what} {name}, in")
    marks = _marks()
    own, theirs = (
        {text: number for text, number in each.get_vocab().items() if text not in marks}
        for each in (tokenizer, other)
    )
    if own != theirs:
        odd = min(own.items() ^ theirs.items(), key=lambda item: (item[1], item[0]))
        raise UsageError(
            f"the {what} {name!r} ({folder}) has another vocabulary: {len(theirs):,} tokens, the "
            f"model ({tokenizer.name_or_path}) {len(own):,}; they differ at {odd[0]!r} (id {odd[1]}). "
            f"Choose a {what} with the model's tokenizer"
        )
    return max(own.values()) + 1


class StoredReference(Reference):
    """A stored teacher as a reference: no model runs, and nothing is charged.

    Args:
        name: in the stage.
        folder: of the store.
        tokenizer: the trained model's.

    Raises:
        UsageError: it lacks what a term reads, or has another vocabulary.
    """

    def __init__(self, name: str, folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
        check_vocabulary(name, folder, tokenizer)
        self.weights = {}
        self.name, self.store, self.tokenizer = name, Store(Path(folder)), tokenizer

    def serve(self, terms: Iterable[WeightedTerm]) -> None:
        """Refuse terms that it cannot serve."""
        header, where = self.store.header, f"the reference {self.name!r} ({self.store.folder})"
        for each in terms:
            lacking = each.reads - {NEEDS[at] for at in header.at}
            if each.term.name not in READERS:
                raise UsageError(
                    f"{where} is a stored teacher: it holds the {header.top} most likely words of a position, and "
                    f"{each.term.name} reads more. Leave the term out, or name the teacher's own folder"
                )
            if lacking:
                raise UsageError(
                    f"{where} holds no media positions, which {each.term.name} reads: store the teacher "
                    "again with --at answers,media, or leave the term out"
                )
            if each.options["temperature"] != header.temperature:
                raise UsageError(
                    f"{where} was stored at temperature {header.temperature:g}, but {each.term.name} asks for "
                    f"{each.options['temperature']:g}: store it again with that --temperature"
                )

    def lacking(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the samples that it does not hold."""
        keys = sample_keys(samples, self.tokenizer)
        return [s for s, key in zip(samples, keys, strict=True) if key not in self.store.places]

    def _read(self, batch: TrainBatch, needs: Collection[str]) -> Outputs:
        """Return the stored rows of a batch; DataError if it lacks a record, or holds other positions of it."""
        none = torch.zeros(0, 1, device=batch.input_ids.device)
        read = {at: self._rows(batch, at) for at, need in NEEDS.items() if need in needs}
        return Outputs(read.get("answers", none), read.get("media", none))

    def flops(self, batch: TrainBatch, needs: Collection[str]) -> float:
        """Return 0: it was paid when it was stored."""
        return 0.0

    def _nothing(self, batch: TrainBatch, needs: Collection[str]) -> Outputs:
        return self._read(batch, needs)  # of an uncounted batch: no rows

    def _rows(self, batch: TrainBatch, at: Place) -> TopWords:
        owners = batch.owners(at).cpu()
        k = self.store.header.top
        ids = torch.zeros(len(owners), k, dtype=torch.long)
        values = torch.zeros(len(owners), k + 1)
        wanted = owners.unique().tolist()
        samples = [batch.samples[number] for number in wanted]
        for number, key in zip(wanted, sample_keys(samples, self.tokenizer), strict=True):
            own, where = owners == number, batch.samples[number].record.source
            if key not in self.store.places:
                raise DataError(
                    f"{where}: the stored teacher {self.store.folder} does not hold this record; it was made from "
                    "other data, or with another chat template"
                )
            words, found = self.store.rows(key, at)
            if len(words) != int(own.sum()):
                raise DataError(
                    f"{where}: the stored teacher {self.store.folder} has {len(words)} {at} positions, the model "
                    f"{int(own.sum())}; use a connector with as many tokens as the teacher's"
                )
            ids[own], values[own] = words.long(), found.float()
        device = batch.input_ids.device
        return TopWords(ids.to(device), values.to(device), self.store.header.vocabulary)


def readings(
    references: Mapping[str, Reference], objective: Objective, batch: TrainBatch
) -> dict[str, Outputs]:
    """Return each reference's outputs for a batch, as far as the objective's terms read them."""
    return {
        name: reference.outputs(batch, objective.reads(name))
        for name, reference in references.items()
    }


class References:
    """The references of a recipe, each loaded once.

    Args:
        tokenizer: the trained model's.
        device: the references' device.
        soft: a token of the trained model whose embedding trains.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, device: torch.device, soft: int | None = None
    ) -> None:
        self.tokenizer, self.device, self.soft = tokenizer, device, soft
        self._loaded: dict[str, FolderReference | StoredReference] = {}

    def table(self) -> list[PartCount]:
        """Return those loaded so far, for the table of trained parts."""
        own = self._loaded.values()
        return [PartCount(f"{each.name} (reference)", each.parameters, 0) for each in own]

    def of(self, stage: Stage, model: ModalignForConditionalGeneration) -> dict[str, Reference]:
        """Return the references that a stage's terms read; ``start`` is the model as it is now."""
        found: dict[str, Reference] = {}
        objective = Objective.of(stage)
        for name in objective.references:
            if name == START:
                found[name] = StartReference(model)
                continue
            folder = stage.references[name]
            if folder not in self._loaded and is_store(folder):
                self._loaded[folder] = StoredReference(name, folder, self.tokenizer)
            elif folder not in self._loaded:
                vocabulary = embedding(model).num_embeddings
                self._loaded[folder] = FolderReference(
                    name, folder, self.tokenizer, vocabulary, self.device
                )
            found[name] = known = self._loaded[folder]
            if isinstance(known, StoredReference):
                known.serve(each for each in objective.terms if each.reference == name)
        folders = {name: each for name, each in found.items() if isinstance(each, FolderReference)}
        starts = dict.fromkeys(found.keys() - folders.keys(), hidden_size(model))
        widths = {name: hidden_size(each.model) for name, each in folders.items()}
        set_learnt(model, objective, starts | widths, self.soft)
        return found
