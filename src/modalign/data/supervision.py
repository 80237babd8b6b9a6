"""Turn a record into token ids and labels, with the tokenizer's own chat template.

Ids are never re-tokenised; a placeholder is expanded by repeating its id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modalign.chat_templates import (
    as_text,
    end_ids,
    ids_after,
    ids_and_offsets,
    plain_ids,
    supervised,
    takes_tools,
)
from modalign.data.modalities import modality_names
from modalign.data.records import Media, Message, Record, mark
from modalign.errors import DataError

IGNORE = -100


@dataclass
class Sample:
    """One tokenised record, each medium still one placeholder.

    Attributes:
        record: the record.
        ids: (T,) int64 token ids of the whole conversation.
        supervised: (T,) bool, True on tokens the model must produce.
        media: the media in reading order.
    """

    record: Record
    ids: np.ndarray
    supervised: np.ndarray
    media: tuple[Media, ...] = field(default_factory=tuple)

    def expanded(
        self, placeholders: Collection[int], stand_ins: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Replace each medium's placeholder by its token ids.

        Args:
            placeholders: token ids of placeholders.
            stand_ins: per medium, in reading order, the ids that replace it, (t,) each.

        Returns:
            ids (T') and labels (T'), with IGNORE where unsupervised.

        Raises:
            DataError: placeholders and media differ in number.
        """
        labels = np.where(self.supervised, self.ids, IGNORE)
        places = [place for place, token in enumerate(self.ids.tolist()) if token in placeholders]
        if len(places) != len(stand_ins):
            raise DataError(
                f"{self.record.source}: {len(places)} placeholders do not match its "
                f"{len(stand_ins)} media"
            )
        if not places:
            return self.ids, labels
        ids_parts, label_parts = [], []
        start = 0
        for place, stand_in in zip(places, stand_ins, strict=True):
            ids_parts += [self.ids[start:place], stand_in]
            label_parts += [labels[start:place], np.full(len(stand_in), IGNORE, dtype=labels.dtype)]
            start = place + 1
        ids_parts.append(self.ids[start:])
        label_parts.append(labels[start:])
        return np.concatenate(ids_parts), np.concatenate(label_parts)

    @property
    def prompt_length(self) -> int:
        """Tokens before the last supervised run: the prompt when the answer is generated."""
        flags = self.supervised
        last = len(flags) - 1 - int(np.argmax(flags[::-1]))
        before = np.flatnonzero(~flags[: last + 1])
        return int(before[-1]) + 1 if len(before) else 0


def template_messages(messages: Sequence[Message], tokenizer: Any) -> list[dict[str, str]]:
    """Convert to chat messages with placeholders as text, which every template can render."""
    return [
        {
            "role": message.role,
            "content": "".join(
                as_text(tokenizer, part) if isinstance(part, str) else mark(part.modality)
                for part in message.parts
            ),
        }
        for message in messages
    ]


def _labelled(
    tokenizer: Any, messages: Sequence[dict[str, str]], tools: Sequence[Any] = ()
) -> tuple[list[int], list[bool]]:
    """Return token ids, and whether the model must produce each: the assistant's text up to its end mark.

    Texts are compared, not ids: a token may span the border between prompt and answer. Without a chat template
    the text is as such a model is asked (:func:`modalign.models.asking.text_ids`): the messages a line each,
    and the last answer after a space; only that is supervised, and no end mark follows.
    """
    if tokenizer.chat_template is None:
        before = "\n".join(str(message["content"]) for message in messages[:-1])
        asked = plain_ids(tokenizer, before) if before else []
        answered = messages[-1]["role"] == "assistant"
        said = ids_after(tokenizer, before, f" {messages[-1]['content']}") if answered else []
        return [*asked, *said], [False] * len(asked) + [True] * len(said)
    offered = as_text(tokenizer, list(tools)) or None
    if offered and not takes_tools(tokenizer):
        raise DataError("the chat template renders no tools, which this record offers")
    text, spans = supervised(tokenizer, messages, offered)
    ids, offsets = ids_and_offsets(tokenizer, text)
    ends = end_ids(tokenizer)
    flags = [False] * len(ids)
    for first, last in spans:
        for place, (start, stop) in enumerate(offsets):
            if stop > first and start < last:
                flags[place] = True
                if ids[place] in ends:  # generation ends here
                    break
    return ids, flags


def tokenise(record: Record, tokenizer: Any) -> Sample:
    """Tokenise one record.

    Raises:
        DataError: no token is supervised, placeholders and media differ in number, or the chat
            template refuses the conversation.
    """
    messages = template_messages(record.messages, tokenizer)
    try:
        ids, flags = _labelled(tokenizer, messages, record.tools)
    except DataError as error:
        raise DataError(f"{record.source}: {error}") from error
    media = tuple(record.media())
    array = np.asarray(ids, dtype=np.int64)
    given = Counter(medium.modality for medium in media)
    known = tokenizer.added_tokens_encoder
    for modality in modality_names():
        token = mark(modality)
        found = int((array == known[token]).sum()) if token in known else 0
        if found != given[modality]:
            raise DataError(
                f"{record.source}: {found} {token} placeholders in the tokens for {given[modality]} media: "
                "the chat template drops or repeats one"
            )
    if not any(flags):
        raise DataError(
            f"{record.source}: no token is supervised (no assistant turn, or the template drops it)"
        )
    return Sample(record, array, np.asarray(flags), media)


def tokenise_all(records: Iterable[Record], tokenizer: Any) -> list[Sample]:
    """Tokenise every record; all errors are collected before raising.

    Raises:
        DataError: lists the records without supervision (twenty at most, and their number).
    """
    samples, problems = [], []
    for record in records:
        try:
            samples.append(tokenise(record, tokenizer))
        except DataError as error:
            problems.append(str(error))
    if problems:
        shown = "\n  ".join(problems[:20])
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise DataError(f"{len(problems)} records cannot be trained on:\n  {shown}{more}")
    return samples
