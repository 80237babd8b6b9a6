"""SHA-256 of tensors by their values and of tokenizers by their tokens.

A tensor's hash covers its values in float32, so it is the same for a bfloat16 file and for that file loaded
in float32: it identifies the values, not their storage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 1 << 22  # elements converted at once


def tensor_hash(tensor: Tensor) -> str:
    """Hash a tensor's shape and its values as little-endian float32 (or float64).

    The result is the same on every device, for every memory layout and for every storage of the same values in
    16 or 32 bits.
    """
    double = tensor.dtype == torch.float64
    digest = hashlib.sha256(json.dumps([list(tensor.shape), "f8" if double else "f4"]).encode())
    for part in _chunks(tensor.detach()):
        values = part.to("cpu", torch.float64 if double else torch.float32).contiguous()
        digest.update(little_endian(values))
    return digest.hexdigest()


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield parts in row-major order, of at most CHUNK elements if the rows allow it."""
    if tensor.is_contiguous():
        yield from tensor.reshape(-1).split(CHUNK)
    elif tensor.dim() > 1 and tensor.shape[0]:
        rows = max(1, CHUNK * tensor.shape[0] // max(tensor.numel(), 1))
        yield from tensor.split(rows)
    else:
        yield tensor


def little_endian(tensor: Tensor) -> bytes:
    """Return a CPU tensor's values in row-major order, little-endian."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)  # numpy has no bfloat16; the bytes are the same
    array = tensor.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash what determines a text's token ids: vocabulary, special tokens, the backend's pipeline.

    Padding, truncation and the chat template are left out: they change from call to call, or are
    do not concern single texts.
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
    return hashlib.sha256(canonical(content)).hexdigest()


def model_hash(model: nn.Module) -> str:
    """Hash a model as it computes: every parameter and buffer that it saves, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor_hash(value)}\n".encode())
    return digest.hexdigest()


def canonical(value: Any) -> bytes:
    """Encode a value as canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
