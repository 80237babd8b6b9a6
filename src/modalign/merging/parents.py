"""A parent of a merge: its folder, read lazily, and what each of its tensors is, found in the model's structure.

A tensor's *identity* is its place in the model: ``embedding`` and ``head`` of the language model, the path within
its decoder (``layers.0.mlp.up_proj.weight``), and for what lies outside the language model (encoders, connectors)
its name in the model. A language model has the same identities alone and inside a multimodal model, whatever its
files call them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from modalign.errors import DataError, UsageError, first_line
from modalign.models.open import takes_media
from modalign.models.parts import PartNotFoundError
from modalign.models.pretrained import read_pretrained
from modalign.models.projections import language_part
from modalign.models.quiet import quietly
from modalign.patches.architecture import skeleton
from modalign.patches.folder_weights import FolderWeights, Place
from modalign.strict_json import read_object

EMBEDDING, HEAD = "embedding", "head"


@dataclass(frozen=True, eq=False)
class Parent:
    """A model folder as a merge reads it.

    Attributes:
        name: what the user calls it.
        folder: of the model.
        weights: its files.
        model: its modules, without weights.
        names: identity -> the names of the tensor in the files; several where it is stored more than once.
        tied: whether input embedding and output projection are one tensor.
        media: whether it is more than a language model.
    """

    name: str
    folder: Path
    weights: FolderWeights
    model: PreTrainedModel
    names: Mapping[str, tuple[str, ...]]
    tied: bool
    media: bool

    def place(self, identity: str) -> Place:
        """Where a tensor is in the files."""
        return self.weights.everything[self.stored(identity)]

    def stored(self, identity: str) -> str:
        """Return a tensor's name in the files; the head of a tied model is its embedding."""
        if identity not in self.names and identity == HEAD and self.tied:
            identity = EMBEDDING
        return self.names[identity][0]

    def has(self, identity: str) -> bool:
        """Whether the model has a tensor."""
        return identity in self.names or (identity == HEAD and self.tied)

    def read(self, identity: str) -> Tensor:
        """Return a tensor as it is stored."""
        return self.weights.read(self.stored(identity))

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer; None where the folder has none."""
        if not any(self.folder.glob("tokenizer*")) and not any(self.folder.glob("vocab*")):
            return None
        return read_pretrained(AutoTokenizer, self.folder, f"tokenizer of {self.name}")

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The configuration of its language model, as plain values."""
        found: Mapping[str, Any] = language_part(self.model)[0].config.get_text_config().to_dict()
        return found


@quietly()
def open_parent(name: str, folder: Path | str) -> Parent:
    """Open a model folder without reading its weights.

    Raises:
        UsageError: it contains no model, or one of a kind that cannot be merged.
        DataError: a file is missing or broken, or lacks a tensor that the model has.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"the parent {name}: {folder} is not a folder")
    media = takes_media(folder)
    values = read_object(folder / "config.json")
    if values.get("quantization_config"):
        raise UsageError(
            f"the parent {name}: {folder} is quantised; merge the model it was made from"
        )
    weights = FolderWeights(folder)
    try:
        model = skeleton(folder)
        known = identities(model)
    except (PartNotFoundError, ValueError, TypeError, KeyError, OSError) as error:
        raise UsageError(
            f"the parent {name}: the model in {folder} cannot be built: {first_line(error)}"
        ) from error
    names: dict[str, tuple[str, ...]] = {}
    present: set[str] = set()
    for stored, own, pieces in _model_names(model, weights):
        present.add(known.get(own, own))
        identity = stored if pieces else known.get(own, stored)
        names[identity] = (*names.get(identity, ()), stored)
    if lacking := sorted(set(known.values()) - present):
        raise DataError(
            f"the parent {name}: {folder} lacks the tensor {lacking[0]}"
            f"{f' and {len(lacking) - 1} others' if lacking[1:] else ''} that its class has; restore its files"
        )
    tied = HEAD not in known.values() and _output(model) is not None
    return Parent(name, folder, weights, model, names, tied, media)


def identities(model: PreTrainedModel) -> dict[str, str]:
    """Return name in the model -> identity, for all that the model saves; tied tensors have one.

    Raises:
        PartNotFoundError: the model has no language part.
    """
    language, _ = language_part(model)
    decoder = language.get_decoder() if hasattr(language, "get_decoder") else None
    found: dict[int, str] = {}

    def add(prefix: str, module: nn.Module | None) -> None:
        for name, value in module.state_dict(keep_vars=True).items() if module is not None else ():
            found.setdefault(id(value), f"{prefix}.{name}" if prefix else name)

    add(EMBEDDING, language.get_input_embeddings())
    add(HEAD, _output(model))
    add("", decoder)
    short = {f"{EMBEDDING}.weight": EMBEDDING, f"{HEAD}.weight": HEAD}
    named = {
        key: found.get(id(value), key) for key, value in model.state_dict(keep_vars=True).items()
    }
    return {key: short.get(identity, identity) for key, identity in named.items()}


def linear_maps(model: PreTrainedModel) -> list[str]:
    """Return the identities of the weights of all linear maps inside the decoder's layers."""
    known = identities(model)
    _, layers = language_part(model)
    inside = {id(module) for module in layers.modules()}
    return [
        known[f"{name}.weight"]
        for name, module in model.named_modules()
        if id(module) in inside and getattr(getattr(module, "weight", None), "dim", int)() == 2
    ]


def _output(model: PreTrainedModel) -> nn.Module | None:
    language, _ = language_part(model)
    found: nn.Module | None = language.get_output_embeddings()
    return found


def _model_names(model: PreTrainedModel, weights: FolderWeights) -> Iterator[tuple[str, str, bool]]:
    """Yield name in the files, name in the model, and whether the file holds only a piece of that tensor."""
    transforms: list[Any]
    try:  # transformers' own renaming of old names, as its loader does it
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )
    except ImportError:  # an older transformers loads names as they are
        yield from ((name, name, False) for name in weights.everything)
        return
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    state = model.state_dict()
    prefix = model.base_model_prefix
    for stored in weights.everything:
        own, piece = rename_source_key(stored, renamings, converters, prefix, state)
        if own not in state and stored in state:
            own, piece = stored, None
        yield stored, own, piece is not None
