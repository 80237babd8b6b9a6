"""What a language model itself writes: text to calibrate on or to take statistics from where none is given."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from modalign.errors import ModalignError
from modalign.lengths import declared_length
from modalign.models.caches import CACHE
from modalign.models.projections import accepted, evaluating

TOP_K = 5
DOCUMENT, DOCUMENTS = 64, 64  # tokens of a document, and documents written at a time


def seeded(seed: int, number: int) -> torch.Generator:
    """Return the generator of one of several independent streams under a seed."""
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))


def sample(
    model: Any, ids: Tensor, count: int, generator: torch.Generator, *, top: int | None = TOP_K
) -> Tensor:
    """Append ``count`` tokens by sampling to rows of equal length, (B, T) -> (B, T + count).

    Keys and values are kept between steps; the mask always covers all of them. Nothing ends a row: what follows
    an end mark is what the model writes there.

    Args:
        model: a causal language model.
        ids: (B, T).
        count: tokens to append.
        generator: of the draws.
        top: draw among the likeliest so many; None: among all.

    Raises:
        ModalignError: the logits are not finite.
    """
    ids = ids.to(next(model.parameters()).device)
    cache = None
    current = ids
    with torch.no_grad(), evaluating(model):
        for _ in range(count):
            mask = torch.ones_like(ids)
            positions = torch.arange(ids.shape[1], device=ids.device)[-current.shape[1] :]
            inputs = {"attention_mask": mask, "position_ids": positions.expand_as(current)}
            output = model(
                input_ids=current,
                use_cache=True,
                **{CACHE: cache},
                **accepted(model, inputs),
            )
            cache = output[CACHE]
            logits = output.logits[:, -1].float()
            best = logits.topk(logits.shape[-1] if top is None else top)
            if not best.values.isfinite().all():
                raise ModalignError(
                    "the model's logits are not finite: its weights hold NaN or infinity, or its "
                    "half precision overflows (try --dtype float32)"
                )
            # Drawn on the CPU: the same seed gives the same text on every device.
            chosen = torch.multinomial(best.values.softmax(-1).cpu(), 1, generator=generator)
            current = best.indices.gather(1, chosen.to(ids.device))
            ids = torch.cat([ids, current], dim=1)
    return ids


def own_samples(
    model: Any,
    tokenizer: Any,
    tokens: int,
    *,
    seed: int = 0,
    length: int = DOCUMENT,
    top: int | None = TOP_K,
) -> list[list[int]]:
    """Documents the model writes, as token ids, ``tokens`` in all: the default corpus.

    Each starts from the model's own start token, or, without one, from a random token.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        tokens: at least, of all documents together.
        seed: of the sampling.
        length: tokens of a document; fewer where the model reads fewer.
        top: see :func:`sample`.
    """
    generator = seeded(seed, -1)
    length = min(length, declared_length(model.config) or length)
    start = getattr(tokenizer, "bos_token_id", None)
    documents: list[list[int]] = []
    while sum(map(len, documents)) < tokens:
        if start is not None:
            first = torch.full((DOCUMENTS, 1), int(start))
        else:
            first = torch.randint(len(tokenizer), (DOCUMENTS, 1), generator=generator)
        documents += sample(model, first, length - 1, generator, top=top).tolist()
    return documents
