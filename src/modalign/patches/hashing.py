"""What a patch is bound to, as SHA-256: tensors and tokenizers as models hash them, patches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from modalign.models.hashing import CHUNK, canonical, little_endian, tensor_hash, tokenizer_hash

if TYPE_CHECKING:
    from modalign.patches.patch import Change, Patch

SHOWN = 12  # digits of a hash in messages

__all__ = [
    "SHOWN",
    "columns_of",
    "content_hash",
    "patch_hash",
    "tensor_hash",
    "tensors_of",
    "tokenizer_hash",
]


def patch_hash(patch: Patch) -> str:
    """SHA-256 of a patch's content: header, which column belongs to which edit, every number."""
    columns = {name: columns_of(change) for name, change in patch.changes.items()}
    return content_hash(patch.header.model_dump(mode="json"), columns, tensors_of(patch.changes))


def columns_of(change: Change) -> list[int] | None:
    """The edit of each column, or None for a change without columns."""
    edits: tuple[int, ...] | None = getattr(change, "edits", None)
    return None if edits is None else list(edits)


def tensors_of(changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """Every stored tensor of a patch by its name in the file: ``{parameter}::{part}``."""
    found = {}
    for name, change in changes.items():
        for part, value in vars(change).items():
            if isinstance(value, Tensor):
                found[f"{name}::{'delta' if part == 'change' else part}"] = value
    return found


def content_hash(
    header: dict[str, Any], columns: dict[str, list[int] | None], tensors: Mapping[str, Tensor]
) -> str:
    """SHA-256 over a patch's parts as they stand in its file."""
    digest = hashlib.sha256(canonical([header, columns]))
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(canonical([name, list(value.shape), str(value.dtype)]))
        for part in value.reshape(-1).split(CHUNK):
            digest.update(little_endian(part))
    return digest.hexdigest()
