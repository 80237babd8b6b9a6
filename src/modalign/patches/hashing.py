"""What a patch is bound to, as SHA-256: tensors by their values, tokenizers by their tokens, patches.

A tensor's hash is over its values in float32, so that it is the same for a bfloat16 file and for what
that file becomes when it is loaded in float32. It names the values, not how they are stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from modalign.patches.patch import Change, Patch

CHUNK = 1 << 22  # elements converted at once
SHOWN = 12  # digits of a hash in messages


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape and of its values as little-endian float32 (float64 if it is that).

    The same on every device, for every memory layout and for every way of storing the same values in
    16 or 32 bits.
    """
    double = tensor.dtype == torch.float64
    digest = hashlib.sha256(json.dumps([list(tensor.shape), "f8" if double else "f4"]).encode())
    for part in _chunks(tensor.detach()):
        values = part.to("cpu", torch.float64 if double else torch.float32).contiguous()
        digest.update(_bytes(values))
    return digest.hexdigest()


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Parts in row-major order, none of more than CHUNK elements where its rows allow it."""
    if tensor.is_contiguous():
        yield from tensor.reshape(-1).split(CHUNK)
    elif tensor.dim() > 1 and tensor.shape[0]:
        rows = max(1, CHUNK * tensor.shape[0] // max(tensor.numel(), 1))
        yield from tensor.split(rows)
    else:
        yield tensor


def _bytes(tensor: Tensor) -> bytes:
    array = tensor.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what decides a text's token ids: vocabulary, special tokens, the backend's pipeline.

    Padding, truncation and the chat template are left out: they change from call to call, or are
    not about single texts.
    """
    content: dict[str, Any] = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": {
            name: str(getattr(tokenizer, name, None))
            for name in ("bos_token", "eos_token", "unk_token")
        },
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        pipeline = json.loads(backend.to_str())
        content["backend"] = {
            key: value
            for key, value in pipeline.items()
            if key not in ("padding", "truncation", "version")
        }
    return hashlib.sha256(_canonical(content)).hexdigest()


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
    digest = hashlib.sha256(_canonical([header, columns]))
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(_canonical([name, list(value.shape), str(value.dtype)]))
        for part in value.reshape(-1).split(CHUNK):
            digest.update(_bytes(part))
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
