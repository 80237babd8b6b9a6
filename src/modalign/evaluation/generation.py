"""Greedy answers to questions, from token ids with explicit masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from modalign.data.supervision import Sample
from modalign.models.collation import Collator
from modalign.models.export.probe import prepare


def prompt_of(sample: Sample) -> Sample:
    """The sample up to its last answer: what is given when the answer is generated."""
    length = sample.prompt_length
    flags = np.zeros(length, dtype=bool)
    return replace(sample, ids=sample.ids[:length], supervised=flags)


@torch.inference_mode()
def generate_answers(
    model: Any,
    collator: Collator,
    samples: Sequence[Sample],
    tokenizer: Any,
    max_new_tokens: int = 32,
    batch_size: int = 16,
) -> list[str]:
    """Greedy answers, one per sample, in order.

    Prompts of equal length are generated together, so no padding enters any of them.
    """
    answers = [""] * len(samples)
    device = next(model.parameters()).device
    prompts = [prompt_of(sample) for sample in samples]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault((len(prompt.ids), len(prompt.media)), []).append(index)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            chosen = members[start : start + batch_size]
            batch = replace(collator, pack_length=None)([prompts[i] for i in chosen]).to(device)
            inputs = batch.model_inputs()
            del inputs["logits_to_keep"], inputs["position_ids"]
            made = model.generate(
                **{key: value for key, value in inputs.items() if value is not None},
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=collator.pad_id,
            )
            new = made[:, batch.input_ids.shape[1] :]
            for index, ids in zip(chosen, new, strict=True):
                answers[index] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return answers


@torch.inference_mode()
def answer_conversations(
    model: Any,
    processor: Any,
    conversations: Sequence[list[dict[str, Any]]],
    max_new_tokens: int = 32,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy answers of a saved model and its processor to chat messages with image parts."""
    answers: list[str] = []
    for start in range(0, len(conversations), batch_size):
        inputs = prepare(processor, list(conversations[start : start + batch_size]))
        inputs = {
            key: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }
        made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = made[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
        if progress:
            progress(len(answers), len(conversations))
    return answers


def answer(
    model: Any, processor: Any, question: str, images: Sequence[Any] = (), max_new_tokens: int = 64
) -> str:
    """Greedy answer to one question about images (PIL)."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    parts.append({"type": "text", "text": question})
    messages = [{"role": "user", "content": parts}]
    return answer_conversations(model, processor, [messages], max_new_tokens)[0]
