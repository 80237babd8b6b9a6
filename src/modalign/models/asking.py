"""Ask a model: from records and conversations to a model's inputs, and back to its answer.

A *reader* prepares a model's inputs: a tokenizer, a processor, or the tools' reader. The text comes from the
chat template (:mod:`modalign.chat_templates`); this module adds media and handles the differences of readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from modalign.chat_templates import (
    as_text,
    check_asked,
    end_ids,
    ids_after,
    plain_ids,
    prompt_ids,
    rendered,
    until_end,
)
from modalign.data.records import Media, Message, Record
from modalign.data.supervision import Sample, tokenise
from modalign.errors import DataError, UsageError, first_line
from modalign.models.encoders.loading import decode_medium
from modalign.models.probe import Conversation, prepare
from modalign.models.tool_text import ToolReader

Reader: TypeAlias = "ProcessorMixin | PreTrainedTokenizerBase | ToolReader"


def tokenizer_of(reader: Reader) -> PreTrainedTokenizerBase:
    """Return the tokenizer itself, or the processor's."""
    inner: PreTrainedTokenizerBase = getattr(reader, "tokenizer", reader)
    return inner


def signals_of(processor: Any) -> dict[str, dict[str, Any]]:
    """Modality -> ``{"spec": ...}``, how a processor's signals are decoded, for ours or a native one."""
    own: dict[str, dict[str, Any]] = getattr(processor, "signals", None) or {}
    extractor = getattr(processor, "feature_extractor", None)
    if extractor is not None and not hasattr(processor, "signals"):
        seconds = float(extractor.chunk_length)
        spec = {"rate": extractor.sampling_rate, "max_seconds": seconds, "longer": "refuse"}
        own = {"audio": {"spec": spec}}
    if getattr(processor, "num_image_tokens", 0 if own else 1):
        return {"image": {"spec": {}}, **own}
    return own


def modalities_of(reader: Any) -> list[str]:
    """Return the modalities that a model takes besides text."""
    if isinstance(reader, ToolReader):
        return reader.modalities
    if isinstance(reader, PreTrainedTokenizerBase):
        return []
    return list(signals_of(reader))


def conversation_of(record: Record, reader: Any) -> Conversation:
    """Build a record's conversation up to its last answer, with decoded media.

    Signals other than images are decoded as the processor's encoders need them. Texts are
    :func:`modalign.chat_templates.as_text`.
    """
    messages = record.messages
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return [
        {"role": message.role, "content": content_of(message.parts, reader, str(record.source))}
        for message in messages
    ]


def content_of(parts: Iterable[str | Media], reader: Any, where: str) -> list[dict[str, Any]]:
    """Build a message's content for chat templates, with decoded media.

    Args:
        parts: texts and media.
        reader: a tokenizer or a processor.
        where: place of the message, for errors.

    Raises:
        DataError: it contains an unsupported modality, or a medium cannot be decoded.
    """
    tokenizer, specs = tokenizer_of(reader), signals_of(reader)
    return [
        {"type": part.modality, part.modality: _decoded(part, specs, where)}
        if isinstance(part, Media)
        else {"type": "text", "text": as_text(tokenizer, part)}
        for part in parts
    ]


def media_inputs(
    processor: Any,
    conversations: Sequence[Conversation],
    where: Sequence[str],
    *,
    answered: bool = False,
    tools: Sequence[Any] | None = None,
) -> dict[str, Tensor]:
    """Build the inputs of conversations with media, padded on the left.

    Args:
        processor: the model's processor.
        conversations: from :func:`conversation_of`.
        where: each one's file and row, for errors.
        answered: whether their last messages are answers.
        tools: schemas of tools that the model may call.

    Raises:
        DataError: the template or the processor refuses one.
    """
    try:
        return prepare(processor, list(conversations), answered=answered, tools=tools)
    except Exception as error:
        # templates and processors are programs that may raise anything
        if len(conversations) > 1:
            for one, place in zip(conversations, where, strict=True):
                media_inputs(processor, [one], [place], answered=answered, tools=tools)
        raise DataError(
            f"{where[0]}: the chat template or the processor refuses the conversation: {first_line(error)}"
        ) from error


def continued(
    inputs: dict[str, Tensor], added: Tensor, present: Tensor | None = None
) -> dict[str, Tensor]:
    """Append token ids to the inputs of prompts, which end together.

    Args:
        inputs: of the prompts, (B, T) ids and masks and whatever the media need.
        added: (B, K) ids.
        present: (B, K) which of them are there; all by default.
    """
    count = added.shape[1]
    mask = inputs["attention_mask"]
    there = torch.ones_like(added) if present is None else present
    longer = {
        name: torch.cat([value, torch.zeros_like(added, dtype=value.dtype)], dim=1)
        for name, value in inputs.items()
        if name.endswith("token_type_ids")  # as long as the text
    }
    if "image_attention_mask" in inputs:
        # of Idefics: what follows attends to the same images as the end of the prompt
        read = inputs["image_attention_mask"]
        after = read[:, -1:].expand(-1, count, -1)
        longer["image_attention_mask"] = torch.cat([read, after], dim=1)
    longer["input_ids"] = torch.cat([inputs["input_ids"], added], dim=1)
    longer["attention_mask"] = torch.cat([mask, there.to(mask.dtype)], dim=1)
    return {**inputs, **longer}


def _decoded(medium: Media, specs: dict[str, Any], where: str) -> Any:
    if medium.modality not in specs:
        takes = ", ".join(["text", *specs])
        raise DataError(f"{where}: holds {medium.modality}, but the model takes {takes}")
    decoded = decode_medium(medium, specs[medium.modality]["spec"])
    return getattr(decoded, "frames", decoded)  # of a clip, a processor reads only its frames


def prompt_sample(record: Record, tokenizer: Any) -> Sample:
    """Tokenise a record as in training, up to its last answer, which may be missing."""
    if record.messages[-1].role != "assistant":
        record = replace(record, messages=(*record.messages, Message("assistant", ("?",))))
    return prompt_of(tokenise(record, tokenizer))


def prompt_of(sample: Sample) -> Sample:
    """Return the sample up to its last answer: the prompt for generating it."""
    length = sample.prompt_length
    flags = np.zeros(length, dtype=bool)
    return replace(sample, ids=sample.ids[:length], supervised=flags)


def text_ids(
    tokenizer: Any, conversation: Conversation, tools: Sequence[Any] | None = None
) -> list[int]:
    """Return the token ids of a conversation without media, up to the answer.

    Without a chat template, they are those of the messages, one per line.

    Raises:
        UsageError: it contains a medium.
        DataError: it has no tokens, or the template refuses it.
    """
    flat = [{**message, "content": _text(message)} for message in conversation]
    if tokenizer.chat_template is None:
        return plain_ids(tokenizer, "\n".join(message["content"] for message in flat))
    return prompt_ids(tokenizer, flat, tools)


def _text(message: dict[str, Any]) -> str:
    if any(part["type"] != "text" for part in message["content"]):
        raise UsageError("this model is a language model: it takes text only")
    return "".join(part["text"] for part in message["content"])


def said(tokenizer: Any, answer: str) -> dict[str, Any]:
    """Convert an answer to a message with parts."""
    return {"role": "assistant", "content": [{"type": "text", "text": as_text(tokenizer, answer)}]}


def answer_ids(
    reader: Any, conversation: Conversation, answer: str, *, fixed: bool = True
) -> tuple[list[int], int]:
    """Return an answer's token ids up to its end mark, and how many ids the chat template adds after.

    Without a chat template, an answer follows its question and a space.

    Args:
        reader: a tokenizer or a processor.
        conversation: the question.
        answer: the text.
        fixed: whether the prompt's ids are given; see :func:`modalign.chat_templates.ids_after`.

    Raises:
        DataError: the answer has no tokens, or they cannot be separated from the prompt's.
    """
    tokenizer: Any = tokenizer_of(reader)
    if tokenizer is not reader:
        asked, answered = conversation, said(tokenizer, answer)
    else:
        asked = [{**message, "content": _text(message)} for message in conversation]
        answered = {"role": "assistant", "content": as_text(tokenizer, answer)}
    if tokenizer is reader and tokenizer.chat_template is None:
        ids = ids_after(tokenizer, "\n".join(m["content"] for m in asked), f" {answer}")
    else:
        before = rendered(reader, asked)
        whole = rendered(reader, [*asked, answered], answered=True)
        check_asked(before, whole)
        ids = ids_after(tokenizer, before, whole[len(before) :], fixed=fixed)
    upto = until_end(ids, end_ids(tokenizer))
    if not upto:
        raise DataError(f"the chat template renders no token for the answer {answer!r}")
    return upto, len(ids) - len(upto)


def begun_ids(reader: Any, conversation: Conversation, text: str) -> list[int]:
    """Return the token ids of an answer's beginning, without an end mark.

    Raises:
        DataError: as :func:`answer_ids`.
    """
    ids, _ = answer_ids(reader, conversation, text)
    ends = end_ids(tokenizer_of(reader))
    return ids[:-1] if ids[-1] in ends else ids
