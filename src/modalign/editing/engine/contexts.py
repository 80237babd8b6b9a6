"""Sentences to put before a prompt, and text to take statistics from: what the model itself writes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modalign.editing.engine.spec import ModelSpec
from modalign.errors import ModalignError
from modalign.lengths import declared_length
from modalign.models.caches import CACHE
from modalign.models.projections import accepted, evaluating

STARTS = ("The", "Therefore", "Because", "I", "You")  # of MEMIT's released code
TOP_K = 5
LENGTH = 10  # tokens in all, the start included
DOCUMENT, DOCUMENTS = 64, 64  # tokens of a document, and documents written at a time


def sample_contexts(
    spec: ModelSpec, tokenizer: Any, *, seed: int = 0, lengths: Sequence[int] = (LENGTH,)
) -> list[str]:
    """One sentence per start, sampled from the model (top-k 5). The same seed, the same sentences.

    Args:
        spec: the model.
        tokenizer: the model's.
        seed: of the sampling.
        lengths: of the sentences in tokens, in turn.
    """
    prompts = [list(tokenizer(start)["input_ids"]) for start in STARTS]
    texts = []
    for number, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(_mixed(seed, number))
        ids = sample(
            spec,
            torch.tensor([prompt]),
            max(0, lengths[number % len(lengths)] - len(prompt)),
            generator,
        )[0]
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        texts.append(" ".join(text.split()))
    return texts


def _mixed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:6], "little")


def sample(
    spec: ModelSpec, ids: Tensor, count: int, generator: torch.Generator, *, top: int = TOP_K
) -> Tensor:
    """Append ``count`` tokens by top-k sampling to rows of equal length, (B, T + count).

    Keys and values are kept between steps; the mask always covers all of them.
    """
    ids = ids.to(spec.device)
    cache = None
    current = ids
    with torch.no_grad(), evaluating(spec.language):
        for _ in range(count):
            mask = torch.ones_like(ids)
            positions = torch.arange(ids.shape[1], device=ids.device)[-current.shape[1] :]
            inputs = {"attention_mask": mask, "position_ids": positions.expand_as(current)}
            output = spec.language(
                input_ids=current,
                use_cache=True,
                **{CACHE: cache},
                **accepted(spec.language, inputs),
            )
            cache = output[CACHE]
            best = output.logits[:, -1].float().topk(top)
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
    spec: ModelSpec,
    tokenizer: Any,
    tokens: int,
    *,
    seed: int = 0,
) -> list[list[int]]:
    """Documents the model writes, as token ids, ``tokens`` in all: the default corpus.

    Each starts from the model's own start token, or, without one, from a random token.
    """
    generator = torch.Generator().manual_seed(_mixed(seed, -1))
    length = min(DOCUMENT, declared_length(spec.language.config) or DOCUMENT)
    start = getattr(tokenizer, "bos_token_id", None)
    documents: list[list[int]] = []
    while sum(map(len, documents)) < tokens:
        if start is not None:
            first = torch.full((DOCUMENTS, 1), int(start))
        else:
            first = torch.randint(len(tokenizer), (DOCUMENTS, 1), generator=generator)
        documents += sample(spec, first, length - 1, generator).tolist()
    return documents
