"""How likely a model finds given answers: summed log-likelihoods, without generating anything."""

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
from modalign.evaluation.generation import text_ids
from modalign.evaluation.scoring import score
from modalign.evaluation.tasks.base import OptionScore
from modalign.models.export import conversation_of
from modalign.models.export.probe import Conversation, prepare
from modalign.models.open import tokenizer_of
from modalign.models.tool_text import ToolReader


@torch.inference_mode()
def score_options(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    options: Sequence[Sequence[str]],
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[OptionScore, ...]]:
    """Log-likelihood of every option as the answer to its record's last question, in nats.

    The options of one record go through the model together after the same prompt, so nothing is
    padded on the left; on the right causal attention makes padding harmless. An answer is tokenised as
    the chat template writes it and ends with its end mark, where the template has one. A causal
    language model without a template is given the question, a space and the option.

    Args:
        model: as :func:`modalign.models.open.open_model` gives it.
        processor: the same.
        records: their last turn is replaced by each option.
        options: (records, options) texts.
        progress: told how far it is.
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
        inputs = prepare(processor, [conversation] * len(options))
        answers = [_answer_ids(processor, conversation, option, record) for option in options]
    else:
        ids = text_ids(processor, conversation)
        prompt = torch.tensor([ids] * len(options))
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        answers = [_text_answer_ids(processor, conversation, o, record) for o in options]
    sums = _log_likelihoods(model, inputs, answers)
    return tuple(
        OptionScore(option, value, len(ids))
        for option, value, ids in zip(options, sums, answers, strict=True)
    )


def _text_answer_ids(
    tokenizer: Any, conversation: Conversation, option: str, record: Record
) -> list[int]:
    if tokenizer.chat_template is None:
        before = "\n".join(part["text"] for turn in conversation for part in turn["content"])
        return _ids_behind(tokenizer, before, f" {option}")
    texts = [
        {**turn, "content": "".join(part["text"] for part in turn["content"])}
        for turn in conversation
    ]
    return _answer_ids(tokenizer, texts, option, record)


def _answer_ids(reader: Any, conversation: Conversation, option: str, record: Record) -> list[int]:
    """Tokens that the chat template adds to a prompt for an answer, up to its end mark."""
    tokenizer = tokenizer_of(reader)
    plain = reader is tokenizer
    content: Any = option if plain else [{"type": "text", "text": option}]
    answered = [*conversation, {"role": "assistant", "content": content}]
    before = reader.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    whole = reader.apply_chat_template(answered, tokenize=False)
    if not whole.startswith(before):
        raise DataError(
            f"{record.source}: the chat template writes the prompt differently once it is answered, so "
            "the answer's tokens cannot be told; use a task that generates (--task exact)"
        )
    ids = _ids_behind(tokenizer, before, whole[len(before) :])
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
    if not ids:
        raise DataError(f"{record.source}: the option {option!r} has no tokens")
    return ids


def _ids_behind(tokenizer: Any, before: str, text: str) -> list[int]:
    """Tokens of a text that stands behind another, whose tokens are given.

    Both are tokenised together, as in training: alone, many tokenizers would put a space in front. Where a
    token reaches over the border, a line break takes the first text's place.
    """
    ids: list[int] = []
    for front in (before, "\n"):
        encoded = tokenizer(front + text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        ids = [token for token, (start, stop) in pairs if start >= len(front) and stop > start]
        if not any(start < len(front) < stop for _, (start, stop) in pairs):
            break
    return ids


def _log_likelihoods(
    model: Any, inputs: dict[str, Tensor], answers: Sequence[Sequence[int]]
) -> list[float]:
    """Summed log-likelihood of each row's answer after its prompt; prompts are equally long.

    Args:
        model: the model.
        inputs: of the prompts, (O, T) ids and masks and whatever the media need.
        answers: (O,) token ids.
    """
    prompt = inputs["input_ids"]
    rows = [torch.tensor(ids, dtype=prompt.dtype) for ids in answers]
    added = pad_sequence(rows, batch_first=True)
    present = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    longer = {
        name: torch.cat([value, torch.zeros_like(added, dtype=value.dtype)], dim=1)
        for name, value in inputs.items()
        if name.endswith("token_type_ids")  # grows with the text
    }
    if "image_attention_mask" in inputs:  # of Idefics: an answer reads what the prompt's end reads
        read = inputs["image_attention_mask"]
        behind = read[:, -1:].expand(-1, added.shape[1], -1)
        longer["image_attention_mask"] = torch.cat([read, behind], dim=1)
    longer["input_ids"] = torch.cat([prompt, added], dim=1)
    mask = inputs["attention_mask"]
    longer["attention_mask"] = torch.cat([mask, present.to(mask.dtype)], dim=1)
    moved: dict[str, Any] = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in {**inputs, **longer}.items()
    }
    width = added.shape[1] + 1  # the last prompt position tells the first answer token
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        moved["logits_to_keep"] = width
    logits = model(**moved, use_cache=False).logits[:, -width:-1].float()
    chosen = logits.log_softmax(-1).gather(2, added.to(logits.device)[:, :, None])[:, :, 0]
    sums = (chosen * present.to(chosen.device)).sum(1).cpu()
    return [float(value) for value in sums]
