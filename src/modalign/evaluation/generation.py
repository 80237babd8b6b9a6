"""Greedy answers to questions, from token ids with explicit masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin, StoppingCriteria

from modalign.chat_templates import end_ids, pad_id
from modalign.data.records import Media, Message, Record, Source
from modalign.data.supervision import Sample
from modalign.errors import DataError
from modalign.lengths import check_length, declared_length
from modalign.models.asking import (
    begun_ids,
    continued,
    conversation_of,
    media_inputs,
    prompt_of,
    prompt_sample,
    text_ids,
    tokenizer_of,
)
from modalign.models.collation import Collator
from modalign.models.probe import placed
from modalign.models.tool_text import ToolReader

log = logging.getLogger(__name__)


@torch.inference_mode()
def generate_answers(
    model: Any,
    collator: Collator,
    samples: Sequence[Sample],
    tokenizer: Any,
    max_new_tokens: int = 32,
    batch_size: int = 16,
) -> list[str]:
    """Generate greedy answers, one per sample, in order.

    Each batch holds prompts of equal length, so there is no padding.
    """
    answers = [""] * len(samples)
    device = next(model.parameters()).device
    prompts = [prompt_of(sample) for sample in samples]
    sizes = [(collator.length(prompt), len(prompt.media)) for prompt in prompts]
    for chosen in _batches(sizes, batch_size):
        batch = replace(collator, pack_length=None)([prompts[i] for i in chosen]).to(device)
        inputs: dict[str, Any] = {k: v for k, v in batch.model_inputs().items() if v is not None}
        del inputs["logits_to_keep"], inputs["position_ids"]
        where = [str(prompts[i].record.source) for i in chosen]
        made = _greedy(model, tokenizer, inputs, max_new_tokens, where)
        for index, text in zip(chosen, made, strict=True):
            answers[index] = text
    return answers


@torch.inference_mode()
def answer_records(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    max_new_tokens: int = 32,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
    stop: Sequence[str] = (),
    begun: Sequence[str] | None = None,
) -> list[str]:
    """Generate greedy answers to the records' last turns; media are decoded batch by batch.

    For a causal language model the processor is its tokenizer; it answers text only, and
    completes the text if the tokenizer has no chat template.

    Args:
        model, processor: as :func:`modalign.models.open.open_model` gives them.
        records: what is asked.
        max_new_tokens: longest answer.
        batch_size: records answered together.
        progress: told how many are answered.
        stop: texts after which an answer ends, too.
        begun: (records,) what each answer begins with; only what follows is returned.

    A model with tools takes neither ``stop`` nor ``begun``.
    """
    tokenizer: Any = tokenizer_of(processor)
    if isinstance(processor, ToolReader):
        samples = [prompt_sample(record, tokenizer) for record in records]
        return generate_answers(
            model, processor.collator, samples, tokenizer, max_new_tokens, batch_size
        )
    answers, done = [""] * len(records), 0
    begins: list[list[int]] = [[]] * len(records)
    if begun is not None:
        begins = [_begin(processor, *each) for each in zip(records, begun, strict=True)]
    if isinstance(processor, ProcessorMixin):
        prompts, sizes = [], [len(begin) for begin in begins]  # the processor pads
    else:  # prompts of equal length together, no padding
        prompts = [
            _text_ids(tokenizer, record) + begin
            for record, begin in zip(records, begins, strict=True)
        ]
        sizes = [len(ids) for ids in prompts]
        for size, record in zip(sizes, records, strict=True):  # before the first is answered
            check_length(size, declared_length(model.config), str(record.source))
    for chosen in _batches(sizes, batch_size):
        if prompts:
            ids = torch.tensor([prompts[i] for i in chosen])
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        else:
            inputs = media_inputs(
                processor,
                [conversation_of(records[i], processor) for i in chosen],
                [str(records[i].source) for i in chosen],
            )
            if begins[chosen[0]]:
                inputs = continued(inputs, torch.tensor([begins[i] for i in chosen]))
        where = [str(records[i].source) for i in chosen]
        made = _greedy(model, tokenizer, placed(inputs, model), max_new_tokens, where, stop)
        for index, text in zip(chosen, made, strict=True):
            answers[index] = text
        done += len(chosen)
        if progress:
            progress(done, len(records))
    return answers


def _begin(processor: Any, record: Record, text: str) -> list[int]:
    try:
        return begun_ids(processor, conversation_of(record, processor), text)
    except DataError as error:
        raise DataError(f"{record.source}: {error}") from error


def _text_ids(tokenizer: Any, record: Record) -> list[int]:
    try:
        return text_ids(tokenizer, conversation_of(record, tokenizer))
    except DataError as error:
        raise DataError(f"{record.source}: {error}") from error


def _batches(sizes: Sequence[Hashable], most: int) -> Iterator[list[int]]:
    """Yield batches of indices with equal sizes."""
    groups: dict[Hashable, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    for members in groups.values():
        yield from (members[start : start + most] for start in range(0, len(members), most))


def _greedy(
    model: Any,
    tokenizer: Any,
    inputs: dict[str, Tensor],
    max_new_tokens: int,
    where: Sequence[str],
    stop: Sequence[str] = (),
) -> list[str]:
    """Answer a batch of prompts (B, T), up to the requested length or the model's last position."""
    limit, sizes = declared_length(model.config), inputs["attention_mask"].sum(1).tolist()
    for size, place in zip(sizes, where, strict=True):
        check_length(size, limit, place)
    left = max_new_tokens if limit is None else min(max_new_tokens, limit - max(sizes))
    ends = end_ids(tokenizer, model.generation_config)
    made = model.generate(
        **inputs,
        max_new_tokens=left,
        do_sample=False,
        eos_token_id=ends or None,
        pad_token_id=pad_id(tokenizer),
        stopping_criteria=[_Said(tokenizer, stop, inputs["input_ids"].shape[1])] if stop else None,
    )
    new = made[:, inputs["input_ids"].shape[1] :]
    if left < max_new_tokens:
        for ids, size, place in zip(new.tolist(), sizes, where, strict=True):
            if not set(ids) & set(ends):
                log.warning(
                    "%s: the answer is cut after %d tokens, where the %d positions that the model reads end "
                    "(%d are the prompt's)", place, left, limit, size,
                )  # fmt: skip
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


class _Said(StoppingCriteria):
    """Ends a row's answer once its last tokens hold one of some texts."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], start: int) -> None:
        self.tokenizer, self.texts, self.start = tokenizer, texts, start
        self.reach = max(map(len, texts)) + 1  # tokens that could hold the longest text

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        last = input_ids[:, self.start :][:, -self.reach :].tolist()
        said = self.tokenizer.batch_decode(last)
        found = [any(text in each for text in self.texts) for each in said]
        return torch.tensor(found, device=input_ids.device)


def answer(
    model: Any, processor: Any, question: str, media: Sequence[Media] = (), max_new_tokens: int = 64
) -> str:
    """Greedy answer to one question about media."""
    turn = Message("user", (*media, question))
    record = Record("question", (turn,), Source("the question", 1))
    return answer_records(model, processor, [record], max_new_tokens)[0]
