"""A saved model in the composed form, to train on or to read as a reference, and the way back to its own form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modalign.errors import ModalignError, UsageError
from modalign.files import new_folder
from modalign.models.asking import Reader, tokenizer_of
from modalign.models.collation import Collator, MediaSource, RawSignals
from modalign.models.compose import LanguageModel, compose
from modalign.models.encoders.loading import Encoder
from modalign.models.export.folder import savable, save_model, stored_as
from modalign.models.export.from_llava import composed_from_llava
from modalign.models.local import model_folder
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.open import open_model
from modalign.models.pretrained import read_pretrained
from modalign.models.processing import ModalignProcessor
from modalign.models.quiet import quietly
from modalign.models.tool_text import ToolReader, save_tools
from modalign.models.weights import first_difference
from modalign.tools.spec import ChainSpec


@dataclass(eq=False)
class OpenedModel:
    """A model of a folder in the composed form.

    Attributes:
        name: the folder, or what the model is called.
        model: a plain language model is one without connectors; its module is ``model.language_model``.
        reader: its processor, or the tokenizer (with tools) of a plain language model.
        encoders: one per modality, with how their signals are decoded.
        stored: dtype of the weights as they were.
    """

    name: str
    model: ModalignForConditionalGeneration
    reader: Reader
    encoders: list[Encoder]
    stored: torch.dtype

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return tokenizer_of(self.reader)

    @property
    def plain(self) -> bool:
        """Whether it is saved as a causal language model."""
        return not isinstance(self.reader, ModalignProcessor)

    def collator(
        self, sources: dict[str, MediaSource] | None = None, pack_length: int | None = None
    ) -> Collator:
        """Return the collator of its batches; without other sources its encoders run with the model."""
        if isinstance(self.reader, ToolReader):
            return self.reader.collator
        own: dict[str, MediaSource] = {each.modality: RawSignals(each) for each in self.encoders}
        given = own if sources is None else sources
        return Collator.of(self.model, self.tokenizer, given, pack_length)

    def save(self, folder: Path, *, dtype: torch.dtype | None = None, card: str = "") -> None:
        """Write it as what it was opened from: a causal language model, or a model with media.

        Args:
            folder: new, empty, or a model folder to replace.
            dtype: of the saved weights; None: as they were stored.
            card: text for the model card.

        Raises:
            UsageError: the folder contains something that is not a model.
            ModalignError: what was written does not load as the same weights.
        """
        dtype = dtype or self.stored
        if isinstance(self.reader, ModalignProcessor):
            save_model(self.model, self.reader, folder, dtype=dtype, card=card or None)
            return
        reader = self.reader if isinstance(self.reader, ToolReader) else None
        save_language_model(
            self.model.language_model,
            self.tokenizer,
            folder,
            dtype=dtype,
            card=card,
            tools=(reader.spec, reader.modalities) if reader else None,
        )


@quietly()
def open_composed(folder: Path | str, what: str = "model") -> OpenedModel:
    """Open a saved model: a causal language model, a Llava, or one that modalign saved.

    Args:
        folder: of the model; or a GGUF file, or a name of the hub.
        what: what it is to the user, for errors: ``the reference 'teacher'``.

    Raises:
        UsageError: there is none, it cannot be loaded, or it has another form.
    """
    model, reader = open_model(model_folder(folder, what))
    return composed_of(model, reader, str(folder), what)


def composed_of(
    model: PreTrainedModel, reader: Reader, name: str, what: str = "model"
) -> OpenedModel:
    """Return an open model in the composed form; modules are shared.

    Raises:
        UsageError: it has another form.
    """
    stored = model.dtype
    if isinstance(model, LlavaForConditionalGeneration):
        model, reader = composed_from_llava(model, reader)
    if not isinstance(model, ModalignForConditionalGeneration):
        if not isinstance(reader, PreTrainedTokenizerBase | ToolReader):
            raise UsageError(
                f"{what} is a {type(model).__name__}; it must be a model that modalign saved, a Llava, or a "
                "causal language model"
            )
        model, _ = compose(LanguageModel(name, model, tokenizer_of(reader), stored), [], {})
    encoders = [
        Encoder(
            name,
            bridge["encoder"],
            model.encoders[modality],
            getattr(reader, "image_processor", None) if modality == "image" else None,
            modality,
        )
        for modality, bridge in (model.config.bridges or {}).items()
    ]
    return OpenedModel(name, model, reader, encoders, stored)


@quietly()
def save_language_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    card: str = "",
    tools: tuple[ChainSpec, Sequence[str]] | None = None,
) -> None:
    """Write a causal language model with its tokenizer, and see that it loads with the same weights.

    Args:
        model: without adapters.
        tokenizer: its tokenizer.
        folder: new, empty, or a model folder to replace.
        dtype: of the saved weights; None: the model's.
        card: text of its README.md.
        tools: the chain whose text it reads, and the modalities that the chain takes.

    Raises:
        ModalignError: the reloaded model differs.
    """
    model.generation_config = savable(model.generation_config)
    with new_folder(folder) as temporary, stored_as(dtype, model):
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if tools is not None:
            save_tools(temporary, *tools)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
    again = read_pretrained(AutoModelForCausalLM, folder, use_safetensors=True)
    if name := first_difference(model, again):
        raise ModalignError(f"{folder}: {name} differs after loading")


def save_language_parts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write all of a language model but its weights into an empty folder and read it back, as a rehearsal."""
    model.config.save_pretrained(folder)
    savable(model.generation_config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    read_pretrained(AutoTokenizer, folder, "tokenizer of the")
