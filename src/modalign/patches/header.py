"""A patch's header: where it comes from, the tensors it fits, and the hash of its content."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor

from modalign.hashing import CHUNK, canonical, little_endian
from modalign.patches.changes import Change
from modalign.patches.cuts import Cut

FORMAT_VERSION = 2  # the newest; patches that need nothing from it are written as 1
SHOWN = 12  # digits of a hash in messages


class BaseTensor(BaseModel):
    """A tensor that a patch expects in its base model.

    Attributes:
        sha256: of its shape and its values in float32 (float64 if stored so), see ``tensor_hash``. It is
            the same for a bfloat16 file and for the tensor loaded from it in float32.
        shape: as the model stores it.
        transposed: whether it is stored as (d_in, d_out), as by GPT-2's Conv1D; changes are always
            (d_out, d_in).
        tied: whether it is both input embedding and output projection, and the change is meant for both.
    """

    model_config = ConfigDict(extra="forbid")

    sha256: str
    shape: tuple[int, ...]
    transposed: bool = False
    tied: bool = False

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out ``tied``, which format 1 does not have, unless it is set."""
        values: dict[str, Any] = handler(self)
        return values if self.tied else {n: v for n, v in values.items() if n != "tied"}


class EditRecord(BaseModel):
    """One edit of a patch, and how its computation went."""

    model_config = ConfigDict(extra="forbid")

    id: str
    subject: str
    prompt: str
    target: str
    truth: str | None = None
    image: str | None = None
    lookup: str | None = None  # how the lookup tokens were found: subject, last, visual
    steps: int | None = None  # evaluations of the value's optimisation
    probability: float | None = None  # of the target with the optimised value put in
    written: float | None = None  # the target's probability with the patch; least of its prompts
    plain: float | None = None  # the same without the chat template that it was written in
    value_norm: float | None = None  # |delta| / |initial value|
    warnings: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what older patches lack, so that their hashes do not change."""
        fields: dict[str, Any] = handler(self)
        if self.plain is None:
            del fields["plain"]
        return fields


class EditingOrigin(BaseModel):
    """The header's fields that only a patch made of edits has.

    Attributes:
        covariance: fingerprint of the key statistics (patches that share it can be solved jointly).
        contexts: the sentences put before the prompts.
        edits: one record each, in column order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    covariance: str | None = None
    contexts: tuple[str, ...] = ()
    edits: tuple[EditRecord, ...] = ()


class Parent(BaseModel):
    """A patch that another was made from, and its weight in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str
    weight: float = 1.0


class Structure(BaseModel):
    """What a patch of kind ``structure`` holds besides the kept indices.

    Attributes:
        configuration: the resulting ``config.json``, complete.
        names: tensor -> its name in the result, if that differs; None if the tensor is removed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    configuration: dict[str, Any]
    names: dict[str, str | None] = Field(default_factory=dict)


# In a file, the origin's fields are mixed with the header's own, in this order, since format 1.
_FILE_ORDER = (
    "format_version", "name", "kind", "method", "model", "base", "after", "tokenizer", "covariance",
    "settings", "seed", "contexts", "edits", "history", "created", "versions",
)  # fmt: skip


class PatchHeader(BaseModel):
    """Where a patch comes from and what it fits.

    Attributes:
        name: of the patch, by default the stem of its file.
        kind: adapter, delta, structure or soup; editors make deltas.
        method: pmet, memit, ...; a patch made from others keeps theirs and says so in ``history``.
        base: the tensors it changes, as they must be before any patch.
        after: content hashes of the patches that must be applied below this one, lowest first.
        tokenizer: hash of the tokenizer whose tokens it was computed for.
        settings: the whole configuration of the method.
        history: what was done since (merged from, dropped), one line each.
        editing: only in a patch made of edits.
        parents: the patches that a soup is made of.
        sliced_from: hash of the patch for the unpruned model that this is a part of.
        structure: only in a patch of that kind.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = 1
    name: str
    kind: Literal["adapter", "delta", "structure", "soup"] = "delta"
    method: str
    model: str
    base: dict[str, BaseTensor]
    after: tuple[str, ...] = ()
    tokenizer: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    history: tuple[str, ...] = ()
    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    editing: EditingOrigin = EditingOrigin()
    parents: tuple[Parent, ...] = ()
    sliced_from: str | None = None
    structure: Structure | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        """Gather the origin's fields from among the others."""
        own = EditingOrigin.model_fields.keys()
        if not isinstance(values, dict) or not own & values.keys():
            return values
        rest = {name: value for name, value in values.items() if name not in own}
        rest["editing"] = {name: values[name] for name in own if name in values}
        return rest

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Serialise as in files; fields that format 1 does not have are left out if unused."""
        values = handler(self)
        values |= values.pop("editing")
        newer = ("parents", "sliced_from", "structure")
        more = {name: values[name] for name in newer if values[name]}
        return {name: values[name] for name in _FILE_ORDER} | more


@dataclass(frozen=True)
class PatchContent:
    """A patch as data: a header, and a change for every tensor it touches.

    Attributes:
        header: its provenance, and what it fits.
        changes: by the parameter's name in ``model.named_parameters()``.
        cuts: only of a structure, which has no changes.
    """

    header: PatchHeader
    changes: Mapping[str, Change] = field(default_factory=dict)
    cuts: Mapping[str, Cut] = field(default_factory=dict)

    @property
    def edits(self) -> tuple[EditRecord, ...]:
        """Its edits, in column order."""
        return self.header.editing.edits


def patch_hash(patch: PatchContent) -> str:
    """Return the SHA-256 of a patch's content: header, which column belongs to which edit, every number."""
    layouts = {name: change.layout for name, change in patch.changes.items()}
    return content_hash(patch.header.model_dump(mode="json"), layouts, tensors_of(patch))


def tensors_of(patch: PatchContent) -> dict[str, Tensor]:
    """Return every stored tensor of a patch by its name in the file: ``{parameter}::{part}``."""
    touched: dict[str, Change | Cut] = {**patch.changes, **patch.cuts}
    return {
        f"{name}::{part}": value
        for name, each in touched.items()
        for part, value in each.tensors().items()
    }


def content_hash(
    header: dict[str, Any], layouts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> str:
    """Return the SHA-256 over a patch's parts as they are in its file."""
    digest = hashlib.sha256(canonical([header, layouts]))
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(canonical([name, list(value.shape), str(value.dtype)]))
        for part in value.reshape(-1).split(CHUNK):
            digest.update(little_endian(part))
    return digest.hexdigest()


def label(patch: PatchContent) -> str:
    """Return a patch's name and the beginning of its hash."""
    return f"{patch.header.name} ({patch_hash(patch)[:SHOWN]})"


def with_history(header: PatchHeader, done: str, **update: Any) -> PatchHeader:
    """Make the header of a patch derived now: replace fields, and add a line of history."""
    update = {"sliced_from": None, **update}
    history = (*update.pop("history", header.history), done)
    return header.model_copy(update={**update, "history": history, "created": now()})


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
