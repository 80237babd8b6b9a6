"""Turn messages and texts into prompts: token ids and media tensors, as rendered in training."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import ProcessorMixin

from modalign.chat_templates import as_text, opens_thoughts, plain_ids, takes_tools
from modalign.data.records import Media, Message, Record, Source, mark
from modalign.errors import DataError, ModalignError, first_line
from modalign.models.asking import (
    content_of,
    media_inputs,
    modalities_of,
    prompt_sample,
    signals_of,
    text_ids,
    tokenizer_of,
)
from modalign.models.tool_text import ToolReader
from modalign.serving.requests import Prompt, PromptError, Turn

LARGE_PIXELS = 16_000_000  # of a prompt's pictures
_BAD = (ModalignError, ValueError, TypeError, KeyError, OSError)


class Prompts:
    """Makes prompts for one model.

    Args:
        reader: its processor, its tokenizer, or its tools' reader.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.tokenizer: Any = tokenizer_of(reader)
        self.has_media = isinstance(reader, ProcessorMixin)
        self.modalities = tuple(modalities_of(reader))
        self.signals: Mapping[str, Mapping[str, Any]] = (
            {m: own["spec"] for m, own in signals_of(reader).items()} if self.has_media else {}
        )
        self.placeholders = self._placeholders() if self.has_media else {}
        # For tool chains, a prompt is rendered as in training, without other tools.
        question: Any = [{"type": "text", "text": "?"}] if self.has_media else "?"
        self.takes_tools = not isinstance(reader, ToolReader) and takes_tools(reader, question)
        # Tokenizers and processors have state (padding, truncation). Large pictures have a processor to
        # themselves: nothing else waits until they are resized.
        self._lock, self._quick_lock = threading.Lock(), threading.Lock()
        self._quick_reader = copy.deepcopy(reader) if self.has_media else reader

    def _placeholders(self) -> dict[int, str]:
        """Token id -> the modality it stands for."""
        texts = {m: own["token"] for m, own in getattr(self.reader, "signals", {}).items()}
        if "image" in self.modalities:
            texts["image"] = getattr(self.reader, "image_token", mark("image"))
        return {int(self.tokenizer.convert_tokens_to_ids(text)): m for m, text in texts.items()}

    def chat(self, turns: Sequence[Turn], tools: Sequence[Any] | None = None) -> Prompt:
        """Render turns with the chat template, up to the answer.

        Raises:
            PromptError: the template, the processor or a decoder refuses them; the message says why.
        """
        if not turns:
            raise PromptError("a chat needs at least one message")
        if tools and not self.takes_tools:
            raise PromptError("this model's chat template does not support tools")
        tools = as_text(self.tokenizer, list(tools)) if tools else None
        asked = [_as_mapping(turn) for turn in turns]
        media = [part for turn in asked for part in _parts(turn) if isinstance(part, Media)]
        self._check_modalities(media)
        try:
            if isinstance(self.reader, ToolReader):
                return self._by_tools(asked)
            conversation = [
                as_text(self.tokenizer, {key: turn[key] for key in turn if key != "content"})
                | {"content": content_of(_parts(turn), self.reader, "the chat")}
                for turn in asked
            ]
            if self.has_media:
                return self._with_media(conversation, media, tools)
            with self._quick_lock:
                ids = tuple(text_ids(self.tokenizer, conversation, tools))
            return Prompt(ids, thinking=opens_thoughts(self.tokenizer, ids))
        except PromptError:
            raise
        except _BAD as error:
            raise PromptError(first_line(error)) from error

    def text(self, text: str | Sequence[int]) -> Prompt:
        """Make a prompt of plain text or ids.

        Raises:
            PromptError: it is empty, or contains placeholders or ids that do not exist.
        """
        if isinstance(text, str):
            try:
                with self._quick_lock:
                    ids = plain_ids(tokenizer_of(self._quick_reader), text)
            except DataError as error:
                raise PromptError(str(error)) from error
        else:
            ids = [int(token) for token in text]
            size = len(self.tokenizer)
            wrong = next((token for token in ids if not 0 <= token < size), None)
            if wrong is not None:
                raise PromptError(f"token id {wrong} does not exist: this model has {size}")
        if not ids:
            raise PromptError("the prompt has no tokens")
        self._spans(ids, [])
        beside = getattr(
            self.reader, "beside", None
        )  # inputs that a class needs for every text (Idefics)
        inputs = beside(torch.tensor([ids])) if beside else {}
        return Prompt(tuple(ids), inputs, continued=True)

    def _check_modalities(self, media: Sequence[Media]) -> None:
        for medium in media:
            if medium.modality not in self.modalities:
                takes = ", ".join(("text", *self.modalities))
                raise PromptError(f"this model takes {takes}, not {medium.modality}")

    def _with_media(
        self, conversation: list[dict[str, Any]], media: Sequence[Media], tools: Any
    ) -> Prompt:
        large = sum(map(_pixels, media)) > LARGE_PIXELS
        reader, lock = (
            (self.reader, self._lock) if large else (self._quick_reader, self._quick_lock)
        )
        with lock:
            inputs: dict[str, Any] = media_inputs(reader, [conversation], ["messages"], tools=tools)
        ids = inputs.pop("input_ids")[0].tolist()
        types = inputs.pop("mm_token_type_ids", None)
        for name in ("attention_mask", "token_type_ids"):
            inputs.pop(name, None)
        contents = [(medium.modality, medium.content_hash()) for medium in media]
        spans = self._spans(ids, contents)
        counts = {m: sum(self.placeholders.get(token) == m for token in ids) for m, _ in contents}
        thinking = opens_thoughts(self.tokenizer, ids)
        return Prompt(
            tuple(ids), inputs, tuple(contents), tuple(spans), types, counts, thinking=thinking
        )

    def _spans(
        self, ids: Sequence[int], contents: Sequence[tuple[str, str]]
    ) -> list[tuple[int, int]]:
        """Find the first position and length of each medium's span.

        Adjacent media cannot be separated by their ids: they share one span, from the first to the
        last.
        """
        runs = list(_runs(ids, self.placeholders))
        if [modality for modality, _, _ in runs] == [modality for modality, _ in contents]:
            return [(begin, length) for _, begin, length in runs]
        for modality in {m for m, _, _ in runs} | {m for m, _ in contents}:
            here = sum(m == modality for m, _, _ in runs)
            given = sum(m == modality for m, _ in contents)
            if here > given or (given and not here):
                raise PromptError(
                    f"the text has {here} places for {given} {modality}; does it contain a literal "
                    f"{modality} placeholder?"
                )
        begin, (_, last, length) = runs[0][1], runs[-1]
        return [(begin, last + length - begin)] * len(contents)

    def _by_tools(self, turns: Sequence[dict[str, Any]]) -> Prompt:
        messages = [Message(turn["role"], tuple(_parts(turn))) for turn in turns]
        record = Record("chat", (*messages, Message("assistant", ("?",))), Source("the chat", 1))
        with self._lock:
            sample = prompt_sample(record, self.tokenizer)
            ids = self.reader.collator([sample]).input_ids[0].tolist()
        return Prompt(tuple(ids))


def _pixels(medium: Media) -> int:
    return getattr(medium.decoded, "width", 0) * getattr(medium.decoded, "height", 0)


def _as_mapping(turn: Turn) -> dict[str, Any]:
    if isinstance(turn, Message):
        return {"role": turn.role, "content": turn.parts}
    return dict(turn)


def _parts(turn: Mapping[str, Any]) -> list[str | Media]:
    content = turn.get("content") or ""
    return [content] if isinstance(content, str) else list(content)


def _runs(ids: Sequence[int], kinds: Mapping[int, str]) -> Iterator[tuple[str, int, int]]:
    """Yield runs of one placeholder: modality, first position, length."""
    begin = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or ids[place] != ids[begin]:
            if ids[begin] in kinds:
                yield kinds[ids[begin]], begin, place - begin
            begin = place
