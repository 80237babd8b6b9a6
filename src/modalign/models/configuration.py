"""Configuration of a composed model: a language model and, per modality, an encoder and a connector.

This file imports only transformers: it is copied into exported models.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


class ModalignConfig(PreTrainedConfig):
    """Configuration of :class:`ModalignForConditionalGeneration`.

    Attributes:
        text_config: the language model's own configuration.
        bridges: modality -> {"encoder": {...}, "connector": {"name", "options"},
            "token": placeholder text, "token_id": its id}.
        origins: part ("language model", "image encoder", ...) -> {"name", "licence"}, if its
            model card states it.
    """

    model_type = "modalign"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    text_config: dict | PreTrainedConfig | None = None
    bridges: dict[str, Any] | None = None
    origins: dict[str, dict[str, str]] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Copy what generation needs from the text configuration."""
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))


class ModalignMediaConfig(ModalignConfig):
    """Configuration of :class:`ModalignMedia`: a composed model without its language model.

    Attributes:
        hidden_size: D, width of the language model's embeddings.
        vocabulary: rows of the kept input embedding; 0: none is kept.
        code_offsets: modality -> offset from a code's number to its token id, for connectors whose
            tokens are discrete codes.
    """

    model_type = "modalign_media"

    hidden_size: int = 0
    vocabulary: int = 0
    code_offsets: dict[str, int] | None = None
