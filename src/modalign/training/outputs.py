"""What objective terms read: a micro-batch with its counts, and a model's outputs for it.

Values are rows: K supervised positions (``answers``), I media positions (``media``), all T positions with a
token (``tokens``), n records. Only what a stage's terms need is computed: without hidden states no hook is
set, and only the positions whose logits are read are projected to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modalign.connectors.base import PrefixConnector
from modalign.data.records import Media
from modalign.errors import DataError, UsageError
from modalign.models.bridges import Features
from modalign.models.collation import Batch, Collator, Placeholders
from modalign.models.parts import decoder_layers
from modalign.models.pooled import pool, states_of
from modalign.models.prompts import seen_media

At = Literal["answers", "media", "tokens"]


@dataclass(kw_only=True)
class TrainBatch(Batch):
    """A batch of the model, with the counts and labels for terms.

    Attributes:
        places: (B, T) bool, media positions of connectors.
        numbers: (n,) each record's index in the whole batch; -1 for an uncounted one.
        roles: (n,) number of its role, -1 for none.
        keys: (n,) number of its group: records of one group have the same content.
        role_names: names of the roles.
        counts: first of this part, then of the whole batch: ``num_...``, and ``num_.../role``.
        share: this part's share of the whole batch; shares sum to 1.
        everyone: records of the whole batch, if a term contrasts them.
        num_samples: records of the whole batch.
        num_media_positions: positions of media, likewise.
        num_media_samples: records with media, likewise.
        num_positions: positions with a token, likewise.
    """

    places: Tensor
    numbers: Tensor
    roles: Tensor
    keys: Tensor
    role_names: tuple[str, ...] = ()
    counts: dict[str, float] = field(default_factory=dict)
    share: float = 1.0
    everyone: Everyone | None = None
    num_samples: float = 0.0
    num_media_positions: float = 0.0
    num_media_samples: float = 0.0
    num_positions: float = 0.0

    def owners(self, at: At) -> Tensor:
        """Return the record (its number in ``samples``) that each row belongs to."""
        return self.owner if at == "answers" else self.segments[self.at(at)]

    def at(self, at: At) -> Tensor:
        """(B, T) bool, the positions of the rows."""
        return {"answers": self.keep, "media": self.places, "tokens": self.segments >= 0}[at]

    def prompts(self) -> Tensor:
        """(B, T) the ``segments`` up to each record's first answer, where it would begin; -1 elsewhere."""
        return self._up_to(self.keep)

    def first_notes(self) -> Tensor:
        """(B, T) the ``segments`` up to each record's first separator; -1 elsewhere.

        Raises:
            DataError: a record has none.
        """
        there = (self.input_ids == self.separator_id) & (self.segments >= 0)
        missing = set(range(len(self.samples))) - set(self.segments[there].tolist())
        if counted := missing & set((self.numbers >= 0).nonzero().flatten().tolist()):
            record = self.samples[min(counted)].record
            raise DataError(
                f"{record.source}: is no two notes with a separator between them, which this stage reads"
            )
        return self._up_to(there)

    def _up_to(self, places: Tensor) -> Tensor:
        """(B, T) the ``segments`` up to each record's first of some places."""
        flat, at = self.segments.flatten(), places.flatten().nonzero().squeeze(1)
        first = flat.new_full((len(self.samples),), len(flat))
        first = first.scatter_reduce(0, flat[at], at, "amin")
        asked = torch.arange(len(flat), device=flat.device) <= first[flat.clamp(min=0)]
        return torch.where(asked & (flat >= 0), flat, -1).reshape(self.segments.shape)

    def media(self) -> list[tuple[int, tuple[Media, ...]]]:
        """Return each record's number and its media, in reading order of the rows."""
        rows = dict.fromkeys(self.segments[self.segments >= 0].tolist())
        order = rows or range(len(self.samples))  # an uncounted batch has its media, too
        return [(number, self.samples[number].media) for number in order]

    def count(self) -> dict[str, float]:
        """Return this part's counts, for all records and for each role."""
        media = torch.tensor([len(sample.media) for sample in self.samples])
        n = len(media)
        of_record = {
            "num_supervised": torch.bincount(self.owner, minlength=n),
            "num_media": media,
            "num_samples": torch.ones(n),
            "num_media_positions": torch.bincount(self.owners("media"), minlength=n),
            "num_media_samples": media > 0,
            "num_positions": torch.bincount(self.owners("tokens"), minlength=n),
        }
        chosen = {"": self.numbers >= 0} | {
            f"/{role}": self.members(role) for role in self.role_names
        }
        return {
            name + suffix: float(values[members].sum())
            for suffix, members in chosen.items()
            for name, values in of_record.items()
        }

    def whole(self, counts: dict[str, float], share: float) -> TrainBatch:
        """Return the same part with the counts of the whole batch."""
        own: dict[str, Any] = {name: value for name, value in counts.items() if "/" not in name}
        return replace(self, counts=counts, share=share, **own)

    def shown(self, needs: Collection[str]) -> Tensor:
        """(B, T) bool, the positions whose logits are needed."""
        return self.keep & self.answered(needs) | self.places & ("media_logits" in needs)

    def answered(self, needs: Collection[str]) -> bool:
        """Whether the logits at the supervised positions are needed."""
        return not {"logits", "likelihood"}.isdisjoint(needs)

    def members(self, role: str) -> Tensor:
        """(n,) bool: the records of a role."""
        return (self.roles == self.role_names.index(role)) & (self.numbers >= 0)

    def of_role(self, role: str) -> TrainBatch:
        """Return the part restricted to one role, with that role's counts."""
        chosen = self.members(role)
        new = torch.where(chosen, chosen.cumsum(0) - 1, -1)  # their indices among the chosen
        segments = torch.where(self.segments >= 0, new[self.segments], -1)
        rows = chosen[self.owner]
        counts = {name: self.counts[f"{name}/{role}"] for name in self.counts if "/" not in name}
        return replace(
            self,
            segments=segments,
            keep=self.keep & (segments >= 0),
            places=self.places & (segments >= 0),
            targets=self.targets[rows],
            owner=new[self.owner][rows],
            samples=[s for s, own in zip(self.samples, chosen.tolist(), strict=True) if own],
            numbers=self.numbers[chosen],
            roles=self.roles[chosen],
            keys=self.keys[chosen],
        ).whole(counts, self.share)


@dataclass
class Everyone:
    """The records of the whole batch, in order, for contrastive terms.

    Attributes:
        rows: need -> (N, D) pooled vectors or (N, 2) likelihoods; without gradients.
        roles: (N,).
        keys: (N,).
    """

    rows: dict[str, Tensor]
    roles: Tensor
    keys: Tensor


@dataclass(frozen=True)
class TopWords:
    """A reference's predictions, of its most likely words alone.

    Attributes:
        ids: (R, k) those words.
        values: (R, k + 1) their log-probabilities, and that of all others together.
        vocabulary: V, how many words there are.
    """

    ids: Tensor
    values: Tensor
    vocabulary: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> TopWords:
        return replace(self, ids=self.ids[rows], values=self.values[rows])


@dataclass
class Outputs:
    """A model's outputs for a micro-batch; those that no term needs are empty.

    Attributes:
        logits: (K, V) at the supervised positions; a stored reference's are :class:`TopWords`.
        media_logits: (I, V) at media positions; likewise.
        rows: need -> hidden states (K | I | T, D), pooled vectors (n, D), or likelihoods (n, 2).
        codes: outputs of connectors with a code.
        weights: name -> parameter.
        maps: learnt maps from this model's states, by :func:`map_name`, or by the name of a head.
    """

    logits: Any
    media_logits: Any
    rows: dict[str, Tensor] = field(default_factory=dict)
    codes: list[Any] = field(default_factory=list)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    maps: Mapping[str, nn.Module] = field(default_factory=dict)

    def hidden(self, layer: int, at: At = "answers") -> Tensor:
        """Return hidden states after a layer, in the rows of these positions."""
        return self.rows[f"hidden:{layer}:{at}"]

    def pooled(self, pooling: str = "last") -> Tensor:
        """Return (n, D), one vector per record."""
        return self.rows[f"pooled:{pooling}"]

    def chosen(self, rows: Mapping[str, Tensor]) -> Outputs:
        """Select rows: ``answers``, ``media``, ``tokens``, ``records`` -> index."""
        logits, media_logits = (
            values[rows[at]] if len(values) else values
            for at, values in (("answers", self.logits), ("media", self.media_logits))
        )
        chosen = {need: value[rows[row_kind(need)]] for need, value in self.rows.items()}
        return replace(self, logits=logits, media_logits=media_logits, rows=chosen)

    def of_role(self, batch: TrainBatch, role: str) -> Outputs:
        """Return the rows of records of a role."""
        members = batch.members(role)
        rows = {at: members[batch.owners(at)] for at in ("answers", "media", "tokens")}
        return self.chosen({**rows, "records": members})


MAPS = "objective_maps"  # where a model holds what terms learn while a stage trains
FUSION = "fusion"  # late fusion among them
FUSED = ":fused"  # at the end of a need
SCALE = "log_scale"  # the learnt temperature among them
LARGEST_SCALE = 100.0  # as in CLIP (arXiv 2103.00020)


class Scale(nn.Module):
    """A learnt factor, exp(log_scale), of at most 100."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        """Return the factor."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)


def map_name(reference: str, layer: int, reference_layer: int) -> str:
    """Return the name of the map from a layer's states to those of a reference's layer."""
    return f"{reference}_{layer}_{reference_layer}".replace(".", "_")


def prefix_places(model: Any, collator: Collator, input_ids: Tensor) -> Tensor:
    """Return (B, T) bool: the positions that prefix connectors fill."""
    ids = [
        entry.token_id
        for modality, entry in collator.entries.items()
        if isinstance(entry, Placeholders)
        and isinstance(model.connector(modality), PrefixConnector)
    ]
    return torch.isin(input_ids, torch.tensor(ids, dtype=input_ids.dtype))


def row_kind(need: str) -> str:
    """Return the kind of rows of a need's values."""
    if need.startswith("hidden:"):
        return need.rpartition(":")[2]
    return {"logits": "answers", "media_logits": "media"}.get(need, "records")


def read(
    model: Any, call: Callable[..., Any], batch: TrainBatch, needs: Collection[str]
) -> Outputs:
    """Run a model on a batch and keep what is needed.

    Args:
        model: a composed model.
        call: what to call instead (wrapped for several processes).
        batch: on the model's device.
        needs: of all terms together.

    Raises:
        UsageError: the model does not have a layer.
    """
    shown = batch.shown(needs)
    rows: dict[str, Tensor] = {}
    with ExitStack() as stack:
        hidden = {
            need: stack.enter_context(_hidden(model, int(need.split(":")[1])))
            for need in needs
            if need.startswith("hidden:")
        }
        pooled = [need for need in needs if need.startswith("pooled:")]
        last = stack.enter_context(states_of(model.language_model.base_model)) if pooled else []
        fused = any(need.endswith(FUSED) for need in pooled)
        encoders = model.encoders.items() if fused else ()
        encoded = {name: stack.enter_context(_encoded(each)) for name, each in encoders}
        inputs = batch.model_inputs() | {"logits_to_keep": shown}
        found = call(**inputs, use_cache=False).logits
    for need, kept in hidden.items():
        rows[need] = kept[0][batch.at(row_kind(need))]  # type: ignore[arg-type]
    for need in pooled:
        rows[need] = _pooled(need, last[0], batch)
        if need.endswith(FUSED):
            now = {name: each[0] for name, each in encoded.items() if each}
            seen = seen_media(now | batch.features, batch.media())
            rows[need] = getattr(model, MAPS)[FUSION](rows[need], seen)
    outputs = Outputs(found, found[:0], rows)
    if "media_logits" in needs:
        projected = shown.flatten().nonzero().squeeze(1)
        places = {at: batch.at(at).flatten()[projected] for at in ("answers", "media")}
        answers = found[places["answers"]] if batch.answered(needs) else found[:0]
        outputs = Outputs(answers, found[places["media"]], rows)
    if "likelihood" in needs:
        rows["likelihood"] = likelihoods(outputs.logits, batch)
    return outputs


def _pooled(need: str, states: Tensor, batch: TrainBatch) -> Tensor:
    """(B, T, D) -> (n, D) as a need says: ``pooled:WAY``, or the same to be fused."""
    way = need.removesuffix(FUSED).partition(":")[2]
    up_to = {"prompt": batch.prompts, "separator": batch.first_notes}
    segments = up_to[way]() if way in up_to else batch.segments
    return pool(states, segments, len(batch.samples), way)


@contextmanager
def _encoded(encoder: nn.Module) -> Iterator[list[Features]]:
    """Keep what an encoder gives during its calls."""
    found: list[Features] = []
    handle = encoder.register_forward_hook(lambda *call: found.append(Features(*call[2])))
    try:
        yield found
    finally:
        handle.remove()


def likelihoods(logits: Tensor, batch: TrainBatch) -> Tensor:
    """Return (n, 2): each record's log-likelihood of its answers, in nats, and their UTF-8 bytes.

    Args:
        logits: (K, V) at the supervised positions.
        batch: with their (K,) targets and owners.
    """
    found = logits.float().log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
    summed = found.new_zeros(len(batch.samples)).index_add(0, batch.owner, found)
    answers = ((m.text for m in s.record.messages if m.role == "assistant") for s in batch.samples)
    sizes = [max(sum(len(text.encode()) for text in texts), 1) for texts in answers]
    return torch.stack([summed, summed.new_tensor(sizes)], dim=1)


def everyone(outputs: Outputs, batch: TrainBatch, need: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows (N, D), roles (N,) and groups (N,) of the whole batch; gradients reach this part's.

    Args:
        outputs: of this part.
        batch: this part.
        need: ``pooled:WAY`` or ``likelihood``.
    """
    own = outputs.rows[need]
    if batch.everyone is None:
        return own, batch.roles, batch.keys
    there = batch.numbers >= 0
    rows = batch.everyone.rows[need].index_put((batch.numbers[there],), own[there])
    return rows, batch.everyone.roles, batch.everyone.keys


def _hidden(model: Any, layer: int) -> AbstractContextManager[list[Tensor]]:
    """Keep the output of a decoder layer, (B, T, D); 0: the input of the first."""
    layers = decoder_layers(model.language_model)
    number = layer if layer >= 0 else len(layers) + 1 + layer
    if not 0 <= number <= len(layers):
        raise UsageError(
            f"an objective term reads layer {layer}, but the language model has {len(layers)}"
        )
    return states_of(layers[number - 1]) if number else states_of(layers[0], entering=True)
