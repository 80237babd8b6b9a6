"""How a record is shown to a model and read as one vector, kept in the model's folder.

Language models that learn vectors of pictures and texts tend to read the texts alone. NoteLLM-2 (arXiv
2405.16789) has two devices against it, each by itself or both:

* **two notes** (mICL): the media first, then a separator, then the texts. By causality the state at the
  separator sees the media alone, so a loss there makes the model read them; the record's vector is the state
  where the answer would begin. The separator is a token of its own whose embedding trains (*soft*);
* **late fusion**: v = W1 f, z = sigmoid(W2 [v; n]), z v + (1 - z) n, where n is the model's state and f the
  mean of the encoder's features (there the class token, which not every encoder has).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from modalign.chat_templates import SEPARATOR, let_through, separator_id, without_separator
from modalign.data.records import Media, Record
from modalign.errors import DataError, UsageError, first_line
from modalign.files import write_atomically
from modalign.hashing import canonical, tensor_hash
from modalign.models.bridges import Features
from modalign.models.compose import grow_vocabulary
from modalign.models.parts import embedding, hidden_size

FILE = "prompt.safetensors"  # within a model's folder
_FLAGS = ("notes", "separator")

Seen = Mapping[str, tuple[Tensor, Tensor]]  # modality -> (k, d) means of media, (k,) their records


class Fusion(nn.Module):
    """Late fusion of a state with what the encoders saw.

    Args:
        widths: modality -> d, width of the encoder's features.
        size: D, width of states.
    """

    def __init__(self, widths: Mapping[str, int], size: int) -> None:
        super().__init__()
        self.enter = nn.ModuleDict({m: nn.Linear(d, size, bias=False) for m, d in widths.items()})
        self.gate = nn.Linear(2 * size, size, bias=False)

    @classmethod
    def of(cls, model: Any) -> Fusion:
        """Return a new one for a composed model.

        Raises:
            UsageError: it has no encoders.
        """
        encoders = getattr(model, "encoders", {})
        if not encoders:
            raise UsageError(
                "late fusion reads an encoder's features, but this model has no encoder: leave fusion out, or "
                "take a model that takes media"
            )
        return cls({name: each.feature_size for name, each in encoders.items()}, hidden_size(model))

    def forward(self, states: Tensor, seen: Seen) -> Tensor:
        """(n, D) states -> (n, D); a record's media are averaged, and one without any keeps its state."""
        n = states.float()
        total, count = torch.zeros_like(n), n.new_zeros(len(n), 1)
        for modality, (means, owners) in seen.items():
            entered = self.enter[modality](means.float()).float()
            total = total.index_add(0, owners, entered)
            count = count.index_add(0, owners, torch.ones_like(entered[:, :1]))
        v = total / count.clamp(min=1)
        z = self.gate(torch.cat([v, n], dim=1)).float().sigmoid()
        return torch.where(count > 0, z * v + (1 - z) * n, n)


def seen_media(
    features: Mapping[str, Features], media: Iterable[tuple[int, Sequence[Media]]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean features of a batch's media, by modality, and the record of each.

    Args:
        features: of all media, in reading order.
        media: the records' numbers and media, in the same order.
    """
    order = list(media)
    found = {}
    for modality, given in features.items():
        owners = [number for number, own in order for each in own if each.modality == modality]
        there = given.mask[..., None].to(given.values.dtype)
        means = (given.values * there).sum(1) / there.sum(1).clamp(min=1)
        found[modality] = (means, torch.tensor(owners, device=means.device))
    return found


@dataclass(frozen=True, eq=False)
class Prompt:
    """How a record is shown and read.

    Attributes:
        notes: media first, then the separator, then the texts.
        fusion: fuses the state with the encoders' features.
        separator: the records themselves hold separators; other text is ``without_separator``.
    """

    notes: bool = False
    fusion: Fusion | None = None
    separator: bool = False

    @property
    def soft(self) -> bool:
        """Whether a separator is read, and trains."""
        return self.notes or self.separator

    def shown(self, record: Record) -> Record:
        """Return a record as it is shown: with ``notes``, its last question as two of them."""
        if not self.notes:
            return record
        turns = list(record.messages)
        asked = [place for place, turn in enumerate(turns) if turn.role != "assistant"]
        if not asked:
            return record
        parts = turns[asked[-1]].parts
        media = [part for part in parts if isinstance(part, Media)]
        texts = [without_separator(part) for part in parts if isinstance(part, str)]
        turns[asked[-1]] = replace(turns[asked[-1]], parts=(*media, SEPARATOR, *texts))
        return replace(record, messages=tuple(turns))

    def save(self, model: Path) -> Path:
        """Write it into a model's folder."""
        write_atomically(model / FILE, save(self._weights(), self._flags()))
        return model / FILE

    @cached_property
    def hash(self) -> str:
        """Its sha256: vectors of two prompts cannot be compared."""
        tensors = {name: tensor_hash(value) for name, value in self._weights().items()}
        return sha256(canonical([self._flags(), tensors])).hexdigest()

    def _flags(self) -> dict[str, str]:
        return {each: str(getattr(self, each)).lower() for each in _FLAGS}

    def _weights(self) -> dict[str, Tensor]:
        own = self.fusion.state_dict() if self.fusion else {}
        return {name: value.float().cpu().contiguous() for name, value in own.items()}


def load_prompt(model: Path | str) -> Prompt | None:
    """Load the prompt from a model's folder; None if it has none.

    Raises:
        DataError: the file is no prompt.
    """
    file = Path(model) / FILE
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            said = opened.metadata() or {}
            flags = {each: {"true": True, "false": False}[said[each]] for each in _FLAGS}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return Prompt(fusion=_fusion_of(weights) if weights else None, **flags)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{file} is not a prompt ({first_line(error)})") from error


def _fusion_of(weights: Mapping[str, Tensor]) -> Fusion:
    widths = {name.split(".")[1]: int(w.shape[1]) for name, w in weights.items() if name[0] == "e"}
    fusion = Fusion(widths, int(weights["gate.weight"].shape[0]))
    fusion.load_state_dict(dict(weights))
    return fusion.eval().requires_grad_(False)


def add_separator(model: Any, tokenizer: Any) -> None:
    """Give a composed model and its tokenizer the separator, unless they have it; it is saved with them.

    Its embedding starts as the mean of all others.
    """
    if separator_id(tokenizer) is None:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [SEPARATOR]}, replace_extra_special_tokens=False
        )
    let_through(tokenizer, [SEPARATOR])
    if len(tokenizer) > embedding(model).weight.shape[0]:
        grow_vocabulary(model.language_model, len(tokenizer))
        model.config.text_config.vocab_size = len(tokenizer)
    settings = model.generation_config
    never = {*(settings.suppress_tokens or ()), separator_id(tokenizer)}
    settings.suppress_tokens = sorted(never)
