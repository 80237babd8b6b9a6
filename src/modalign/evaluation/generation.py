"""Greedy answers to questions, from token ids with explicit masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from modalign.data.records import Media, Message, Record, Source
from modalign.data.supervision import Sample, tokenise
from modalign.errors import UsageError
from modalign.models.collation import Collator
from modalign.models.export import conversation_of, verify
from modalign.models.export.probe import prepare
from modalign.models.tool_text import ToolReader


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
        groups.setdefault((collator.length(prompt), len(prompt.media)), []).append(index)
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
    """Greedy answers of a saved model to chat messages with image parts.

    A causal language model comes with its tokenizer for a processor; it answers text only, and
    completes the text where the tokenizer has no chat template.
    """
    if not isinstance(processor, ProcessorMixin):
        return _answer_texts(model, processor, conversations, max_new_tokens, batch_size, progress)
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


def modalities_of(processor: Any) -> list[str]:
    """What a model takes besides text."""
    if isinstance(processor, ToolReader):
        return processor.modalities
    return verify.modalities_of(processor)


def answer_records(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    max_new_tokens: int = 32,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Greedy answers to records' last turns; media are decoded batch by batch."""
    if isinstance(processor, ToolReader):
        samples = [tokenise(_answerable(record), processor.tokenizer) for record in records]
        return generate_answers(
            model, processor.collator, samples, processor.tokenizer, max_new_tokens, batch_size
        )
    if not isinstance(processor, ProcessorMixin):
        asked = [conversation_of(record) for record in records]
        return _answer_texts(model, processor, asked, max_new_tokens, batch_size, progress)
    answers: list[str] = []
    for start in range(0, len(records), batch_size):
        asked = [conversation_of(r, processor) for r in records[start : start + batch_size]]
        answers += answer_conversations(model, processor, asked, max_new_tokens, batch_size)
        if progress:
            progress(len(answers), len(records))
    return answers


def _answerable(record: Record) -> Record:
    """The record with an answer to tokenise, which is cut off again, where it has none."""
    if record.messages[-1].role == "assistant":
        return record
    return replace(record, messages=(*record.messages, Message("assistant", ("?",))))


def _answer_texts(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[list[dict[str, Any]]],
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    """Greedy answers of a causal language model; prompts of equal length together, no padding."""
    prompts = [text_ids(tokenizer, conversation) for conversation in conversations]
    lengths: dict[int, list[int]] = {}
    for index, ids in enumerate(prompts):
        lengths.setdefault(len(ids), []).append(index)
    answers, done = [""] * len(prompts), 0
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    for members in lengths.values():
        for start in range(0, len(members), batch_size):
            chosen = members[start : start + batch_size]
            batch = torch.tensor([prompts[index] for index in chosen], device=model.device)
            made = model.generate(
                input_ids=batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=pad,
            )
            for index, new in zip(chosen, made[:, batch.shape[1] :], strict=True):
                answers[index] = tokenizer.decode(new, skip_special_tokens=True).strip()
            done += len(chosen)
            if progress:
                progress(done, len(prompts))
    return answers


def text_ids(tokenizer: Any, conversation: list[dict[str, Any]]) -> list[int]:
    """A conversation's token ids, up to where the answer begins."""
    messages = []
    for message in conversation:
        parts = message["content"]
        if any(part["type"] != "text" for part in parts):
            raise UsageError("this model is a language model: it takes text only")
        messages.append({**message, "content": "".join(part["text"] for part in parts)})
    if tokenizer.chat_template is not None:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True
        )
        return list(rendered["input_ids"])
    ids = list(tokenizer("\n".join(message["content"] for message in messages))["input_ids"])
    special = set(tokenizer.all_special_ids)
    while len(ids) > 1 and ids[-1] in special:  # some tokenizers end every text
        ids.pop()
    if not ids:
        raise UsageError("the question has no tokens")
    return ids


def answer(
    model: Any, processor: Any, question: str, media: Sequence[Media] = (), max_new_tokens: int = 64
) -> str:
    """Greedy answer to one question about media."""
    turn = Message("user", (*media, question))
    record = Record("question", (turn,), Source("the question", 1))
    return answer_records(model, processor, [record], max_new_tokens)[0]
