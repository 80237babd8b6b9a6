"""Sentences to put before a prompt, written by the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modalign.editing.engine.spec import ModelSpec
from modalign.models.sampling import sample, seeded

STARTS = ("The", "Therefore", "Because", "I", "You")  # as in MEMIT's released code
LENGTH = 10  # tokens, including the start


def sample_contexts(
    spec: ModelSpec, tokenizer: Any, *, seed: int = 0, lengths: Sequence[int] = (LENGTH,)
) -> list[str]:
    """Let the model continue sentences (top-k 5). The same seed gives the same sentences.

    Args:
        spec: the model.
        tokenizer: the model's.
        seed: of the sampling.
        lengths: of the sentences in tokens, one for each; a single length gives one sentence per start.
    """
    lengths = list(lengths) * len(STARTS) if len(lengths) == 1 else list(lengths)
    starts = [STARTS[number % len(STARTS)] for number in range(len(lengths))]
    prompts = [list(tokenizer(start)["input_ids"]) for start in starts]
    texts = []
    for number, prompt in enumerate(prompts):
        generator = seeded(seed, number)
        ids = sample(
            spec.language,
            torch.tensor([prompt]),
            max(0, lengths[number] - len(prompt)),
            generator,
        )[0]
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        texts.append(" ".join(text.split()))
    return texts
