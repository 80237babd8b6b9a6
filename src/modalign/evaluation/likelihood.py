"""Summed log-likelihoods of given answers, without generation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from modalign.data.records import Message, Record
from modalign.data.supervision import tokenise
from modalign.errors import DataError
from modalign.evaluation.scoring import score
from modalign.evaluation.tasks.base import OptionScore
from modalign.lengths import check_length, declared_length
from modalign.models.asking import (
    answer_ids,
    continued,
    conversation_of,
    media_inputs,
    text_ids,
)
from modalign.models.probe import Conversation, placed
from modalign.models.tool_text import ToolReader


@torch.inference_mode()
def score_options(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    options: Sequence[Sequence[str]],
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[OptionScore, ...]]:
    """Return the log-likelihood, in nats, of every option as answer to its record's last question.

    The options of one record form a batch after the same prompt, so nothing is
    padded on the left; padding on the right is harmless under causal attention. An answer is tokenised as
    the chat template writes it and ends with its end mark, where the template has one. A causal
    language model without a template gets the question, a space and the option.

    Args:
        model: as :func:`modalign.models.open.open_model` gives it.
        processor: the same.
        records: their last turn is replaced by each option.
        options: (records, options) texts.
        progress: called with the progress.
    """
    found = []
    for place, (record, offered) in enumerate(zip(records, options, strict=True)):
        if isinstance(processor, ToolReader):
            found.append(_by_tools(model, processor, record, offered))
        else:
            found.append(_of_record(model, processor, record, offered))
        if progress:
            progress(place + 1, len(records))
    return found


def _by_tools(
    model: Any, reader: ToolReader, record: Record, options: Sequence[str]
) -> tuple[OptionScore, ...]:
    samples = [tokenise(_answered(record, option), reader.tokenizer) for option in options]
    found = score(model, samples, reader.collator, model.device)
    return tuple(
        OptionScore(option, -float(loss), int(tokens))
        for option, loss, tokens in zip(options, found.loss, found.tokens, strict=True)
    )


def _answered(record: Record, answer: str) -> Record:
    return replace(record, messages=(*record.messages[:-1], Message("assistant", (answer,))))


def _of_record(
    model: Any, processor: Any, record: Record, options: Sequence[str]
) -> tuple[OptionScore, ...]:
    conversation = conversation_of(record, processor)
    if isinstance(processor, ProcessorMixin):
        inputs = media_inputs(
            processor, [conversation] * len(options), [str(record.source)] * len(options)
        )
    else:
        try:
            ids = text_ids(processor, conversation)
        except DataError as error:
            raise DataError(f"{record.source}: {error}") from error
        prompt = torch.tensor([ids] * len(options))
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    answers = [_answer_ids(processor, conversation, option, record) for option in options]
    size, longest = int(inputs["attention_mask"][0].sum()), max(map(len, answers))
    check_length(size, declared_length(model.config), str(record.source), longest)
    sums = log_likelihoods(model, inputs, answers)
    return tuple(
        OptionScore(option, value, len(ids))
        for option, value, ids in zip(options, sums, answers, strict=True)
    )


def _answer_ids(reader: Any, conversation: Conversation, option: str, record: Record) -> list[int]:
    try:
        return answer_ids(reader, conversation, option)[0]
    except DataError as error:
        raise DataError(
            f"{record.source}: {error}; or use a task that generates (--task exact)"
        ) from error


def log_likelihoods(
    model: Any, inputs: dict[str, Tensor], answers: Sequence[Sequence[int]]
) -> list[float]:
    """Return the summed log-likelihood of each row's answer after its prompt; prompts have equal lengths.

    Args:
        model: the model.
        inputs: of the prompts, (O, T) ids and masks and whatever the media need.
        answers: (O,) token ids.
    """
    prompt = inputs["input_ids"]
    rows = [torch.tensor(ids, dtype=prompt.dtype) for ids in answers]
    added = pad_sequence(rows, batch_first=True)
    present = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    fed = added[:, :-1]  # nothing is asked of what follows the last token
    longer = continued(inputs, fed, present[:, :-1])
    moved: dict[str, Any] = {**placed(longer, model)}
    width = added.shape[1]  # the last prompt position predicts the first answer token
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        moved["logits_to_keep"] = width
    logits = model(**moved, use_cache=False).logits[:, -width:].float()
    chosen = logits.log_softmax(-1).gather(2, added.to(logits.device)[:, :, None])[:, :, 0]
    sums = (chosen * present.to(chosen.device)).sum(1).cpu()
    return [float(value) for value in sums]
