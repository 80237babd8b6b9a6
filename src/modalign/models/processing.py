"""Processor: text and images in, token ids with one placeholder per connector token out.

This file imports only transformers: it is copied into exported models.
"""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin


class ModalignProcessor(ProcessorMixin):
    """Image processor and tokenizer of a composed model.

    Args:
        image_processor: of the encoder.
        tokenizer: of the language model, knowing ``image_token``.
        num_image_tokens: positions one image takes in the language model's input.
        image_token: the placeholder's text.
        chat_template: as saved with the tokenizer, rendering ``{"type": "image"}`` parts.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int = 1,
        image_token: str = "<image>",
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Return the text that stands for one image."""
        return self.image_token * self.num_image_tokens
