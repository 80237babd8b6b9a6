"""Processor: text and media in, token ids with one placeholder per connector token out.

This file imports only torch, transformers and its siblings: it is copied into exported models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from modalign.encoders.registry import prepare_signals

_FROM = "\U000f0000"  # before a control token that is text; transformers' own mark
ARGUMENTS = {"video": "videos"}  # of a processor, where transformers' name is not the modality's


class ModalignProcessor(ProcessorMixin):
    """Tokenizer of a composed model, and what makes tensors of its media.

    Args:
        image_processor: of the image encoder.
        tokenizer: of the language model, knowing the placeholders.
        num_image_tokens: positions one image takes in the language model's input; 0 without images.
        image_token: the image placeholder's text.
        chat_template: as saved with the tokenizer, rendering media parts.
        signals: of each other modality ``{"spec": its encoder's description, "token": placeholder,
            "tokens": positions that a medium of 0, 1, ... features takes}``.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 1,
        image_token: str = "<image>",
        chat_template: str | None = None,
        signals: dict[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.signals = signals or {}
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """What is saved in files of its own."""
        return ["image_processor", "tokenizer"]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Return the text that stands for one image."""
        return self.image_token * self.num_image_tokens

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Make a model's inputs.

        Args:
            images: as transformers' processors take them.
            text: one text or several, with placeholders.
            **kwargs: ``videos``, and every other modality by its name: decoded signals (numpy arrays; a
                table a mapping) of all texts in reading order; the rest as in transformers.

        Raises:
            ValueError: placeholders and signals differ in number, or the model does not take them.
        """
        texts = [text] if isinstance(text, str) else list(text)
        inputs: dict[str, Any] = {}
        for modality in self.signals:
            given = kwargs.pop(ARGUMENTS.get(modality, modality), None)
            texts = self._place(modality, given or [], texts, inputs)
        for name, value in kwargs.items():
            if isinstance(value, list | tuple) and not name.startswith(
                "text_"
            ):  # media of another model
                raise ValueError(f"this model takes no {name}")
        if images is not None and not self.num_image_tokens:
            raise ValueError("this model takes no images")
        found = super().__call__(images=images, text=texts, **kwargs)
        found.update(inputs)
        return found

    def _place(
        self, modality: str, signals: list[Any], texts: list[str], inputs: dict[str, Any]
    ) -> list[str]:
        """Repeat a modality's placeholders in the texts, and add its tensors to the inputs."""
        own = self.signals[modality]
        place = re.compile(f"(?<!{_FROM}){re.escape(own['token'])}")  # one that no user wrote
        pieces = [place.split(text) for text in texts]
        wanted = sum(map(len, pieces)) - len(pieces)
        if wanted != len(signals):
            raise ValueError(f"{wanted} {own['token']} placeholders for {len(signals)} {modality}")
        if not signals:
            return texts
        prepared = prepare_signals(modality, own["spec"], list(signals))
        inputs[f"{modality}_values"] = prepared.values
        if prepared.mask is not None:
            inputs[f"{modality}_mask"] = prepared.mask
        stand_ins = iter([own["token"] * own["tokens"][count] for count in prepared.counts])
        return ["".join(_joined(parts, stand_ins)) for parts in pieces]

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; parts of other modalities carry their signal under the modality's name."""
        batch = (
            conversation if conversation and isinstance(conversation[0], list) else [conversation]
        )
        media = {m: list(_parts(batch, m)) for m in self.signals}
        if not kwargs.get("tokenize") or not any(media.values()):
            return super().apply_chat_template(conversation, *args, **kwargs)
        kept = ("chat_template", "add_generation_prompt", "continue_final_message", "tools")
        rendered = super().apply_chat_template(
            batch, tokenize=False, **{key: kwargs[key] for key in kept if key in kwargs}
        )
        images = list(_parts(batch, "image"))
        found = self(
            images=images or None,
            text=rendered,
            **{ARGUMENTS.get(m, m): signals for m, signals in media.items() if signals},
            return_tensors=kwargs.get("return_tensors"),
            add_special_tokens=False,  # the template has added them
            **(kwargs.get("processor_kwargs") or {}),
        )
        return found if kwargs.get("return_dict") else found["input_ids"]


def _joined(parts: list[str], stand_ins: Iterator[str]) -> Iterator[str]:
    yield parts[0]
    for part in parts[1:]:
        yield next(stand_ins)
        yield part


def _parts(conversations: list[Any], modality: str) -> Iterator[Any]:
    """What the parts of a modality hold, in reading order."""
    for conversation in conversations:
        for message in conversation:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == modality and modality in part:
                    yield part[modality]
