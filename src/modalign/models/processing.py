"""Processor: turns text and media into token ids with one placeholder per connector token.

This file imports only torch, transformers and its siblings: it is copied into exported models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from modalign.encoders.registry import prepare_signals

_FROM = "\U000f0000"  # precedes a control token that is text; transformers' own marker
ARGUMENTS = {
    "video": "videos"
}  # processor arguments whose name in transformers differs from the modality's


class ModalignProcessor(ProcessorMixin):
    """The tokenizer of a composed model, and the preparation of its media.

    Args:
        image_processor: the image encoder's.
        tokenizer: the language model's, with the placeholders.
        num_image_tokens: positions of one image in the language model's input; 0 without images.
        image_token: the image placeholder's text.
        chat_template: as saved with the tokenizer; renders media parts.
        signals: for each other modality ``{"spec": its encoder's description, "token": placeholder,
            "tokens": positions of a medium with 0, 1, ... features}``.
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
        """Return the parts that are saved in separate files."""
        return ["image_processor", "tokenizer"]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Return the text that represents one image."""
        return self.image_token * self.num_image_tokens

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Make a model's inputs.

        Args:
            images: as for transformers' processors.
            text: one text or several, with placeholders.
            **kwargs: ``videos``, and every other modality under its name: decoded signals (numpy arrays; a
                table is a mapping) of all texts in reading order; the rest as in transformers.

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
        place = re.compile(f"(?<!{_FROM}){re.escape(own['token'])}")  # one not written by a user
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
        """Apply as in transformers; parts of other modalities carry their signal under the modality's name."""
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
    for conversation in conversations:
        for message in conversation:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == modality and modality in part:
                    yield part[modality]
