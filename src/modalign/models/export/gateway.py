"""A gateway folder: turns a conversation with media into prompt embeddings.

The language model is not in it. It runs elsewhere, as an unchanged text model, on a server that accepts
embeddings instead of token ids (vLLM's prompt embeddings, for example); encoder and connector run here.
Only connectors that enter by the input sequence can work this way.

    gateway = load_gateway("folder")
    prompt = gateway.encode([{"role": "user", "content": [{"type": "image", "image": image}, ...]}])
    prompt.embeddings  # (T, D): the server's input

``gateway.json`` identifies the language model by its sizes and a hash of its tensors.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from modalign.errors import DataError, ModalignError, UsageError, first_line
from modalign.files import write_atomically
from modalign.hashing import canonical, tensor_hash
from modalign.lengths import declared_length
from modalign.models.export.folder import savable
from modalign.models.export.media import embedding_rows, refuse_in_layer, save_media
from modalign.models.media import ModalignMedia
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import embedding
from modalign.models.pretrained import read_pretrained
from modalign.models.probe import Conversation, placed, prepare
from modalign.models.processing import ModalignProcessor
from modalign.strict_json import read_object

REFERENCE = "gateway.json"
FORMAT = 1

CARD = """\
# A gateway: {modalities} in front of a language model that runs elsewhere

Encoder and connector of a model, with the input embedding of its language model (`embedding.weight`
in `model.safetensors`: its output for every token id). They turn a conversation into prompt
embeddings, which a server of the plain language model accepts instead of token ids. `gateway.json`
identifies that language model. The Python files need only torch and transformers; read them
before trusting them.

```python
from modalign.models.export.gateway import load_gateway

prompt = load_gateway("this folder").encode(messages)
prompt.embeddings  # (T, D)
```

| language model | |
|---|---|
| class | {architecture} |
| width D | {hidden_size} |
| SHA-256 of its tensors | `{sha256}` |

The licences of the language model and of the encoder still apply.

{notes}
"""


@dataclass(frozen=True)
class PromptEmbeddings:
    """A conversation as the language model's input.

    Attributes:
        embeddings: (T, D), in the folder's number format, on the gateway's device.
        ids: (T,) its token ids, with placeholders for media.
        media_tokens: positions of each modality's media, out of ``len(ids)``.
    """

    embeddings: Tensor
    ids: list[int]
    media_tokens: dict[str, int]

    @property
    def usage(self) -> dict[str, int]:
        """Count the prompt's positions: all, text, and media."""
        media = sum(self.media_tokens.values())
        text = len(self.ids) - media
        return {"prompt_tokens": len(self.ids), "text_tokens": text, "media_tokens": media}


@dataclass(frozen=True)
class Gateway:
    """Encoders and connectors, ready to use.

    Attributes:
        folder: the folder it was loaded from.
        model: the media side of the composed model, in evaluation mode.
        processor: of the composed model: chat template, tokenizer, media preparation.
        generation: of the composed model: ids that end an answer, and ids to suppress (the
            placeholders), which the server must be given with each request.
        language_model: the description of the language model in ``gateway.json``.
    """

    folder: Path
    model: ModalignMedia
    processor: ModalignProcessor
    generation: GenerationConfig
    language_model: dict[str, Any]

    @property
    def modalities(self) -> list[str]:
        """Return the modalities that a conversation may contain."""
        return list(self.model.connectors)

    @torch.inference_mode()
    def encode(self, conversation: Conversation) -> PromptEmbeddings:
        """Turn a conversation into prompt embeddings, up to the answer.

        Args:
            conversation: chat messages with decoded media parts; ``conversation_of`` makes
                one from a record.

        Raises:
            ValueError: the processor refuses a part; the message says why.
        """
        inputs = placed(prepare(self.processor, [conversation]), self.model)
        ids = inputs["input_ids"][0].tolist()
        media = {
            modality: ids.count(bridge["token_id"])
            for modality, bridge in (self.model.config.bridges or {}).items()
        }
        return PromptEmbeddings(self.model(**inputs)[0], ids, media)

    def check_language_model(self, name: Path | str) -> None:
        """Check that a folder (or hub name) is the language model this gateway was made for.

        Raises:
            UsageError: it cannot be loaded.
            ModalignError: it is another one; the message names the first differing tensor.
        """
        kind, what = AutoModelForCausalLM, "language model"
        model = read_pretrained(kind, name, what, dtype="auto", use_safetensors=True)
        expected = self.language_model["tensors"]
        found = _digests(model, self.language_model["rows"])
        for tensor in sorted(expected.keys() | found.keys()):
            if expected.get(tensor) != found.get(tensor):
                how = "differs" if tensor in expected and tensor in found else "is in one only"
                raise ModalignError(
                    f"{name} is not the language model that {self.folder} was made for: {tensor} "
                    f"{how}. Serve the one that 'modalign export --to gateway --language-model DIR' "
                    "writes"
                )


def load_gateway(folder: Path | str, device: torch.device | str = "cpu") -> Gateway:
    """Load a gateway's folder; runs modalign's own code, never the copy in the folder.

    Raises:
        UsageError: there is no gateway, or one of another format.
        DataError: its file of the language model is damaged.
    """
    folder = Path(folder)
    if not (folder / REFERENCE).is_file():
        raise UsageError(
            f"{folder} contains no gateway: it has no {REFERENCE}; 'modalign export MODEL --to gateway "
            f"-o {folder}' writes one"
        )
    reference = _reference(folder / REFERENCE)
    try:
        model = read_pretrained(ModalignMedia, folder, "gateway", use_safetensors=True)
        processor = read_pretrained(ModalignProcessor, folder, "processor of the gateway")
        generation = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"the gateway in {folder} cannot be loaded: {first_line(error)}"
        ) from error
    return Gateway(folder, model.to(device).eval(), processor, generation, reference)


def _reference(file: Path) -> dict[str, Any]:
    """Read what a gateway says of its language model."""
    told = read_object(file)
    if told.get("format") != FORMAT:
        raise UsageError(
            f"{file} is of format {told.get('format')!r}, not {FORMAT}; export the model again"
        )
    found = told.get("language_model")
    if not (
        isinstance(found, dict)
        and isinstance(found.get("tensors"), dict)
        and type(found.get("rows")) is int
        and isinstance(found.get("max_position_embeddings"), int | None)
    ):
        raise DataError(f"{file} does not describe a language model: export the model again")
    return found


def save_gateway(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor, folder: Path
) -> list[str]:
    """Write a gateway into an empty folder; return notes for users.

    Raises:
        UsageError: a connector does not enter by the input sequence.
    """
    refuse_in_layer(model, "a gateway")
    notes = save_media(model, processor, folder, rows=embedding_rows(model))
    language = describe_language_model(model, processor)
    write_atomically(
        folder / REFERENCE,
        json.dumps({"format": FORMAT, "language_model": language}, indent=2) + "\n",
    )
    if language["embedding_factor"] != 1:
        notes.append(
            f"The language model multiplies its embedding by {language['embedding_factor']:g}; "
            "the embeddings already contain the factor: make sure that the server does not apply it "
            "again."
        )
    card = CARD.format(
        modalities=" and ".join(model.connectors),
        notes="\n".join(f"- {note}" for note in notes),
        **language,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return notes


def save_language_model(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor, folder: Path
) -> None:
    """Write the plain language model with its tokenizer into an empty folder."""
    language = model.language_model
    kept = language.generation_config
    language.generation_config = savable(model.generation_config)
    try:
        language.save_pretrained(folder)
    finally:
        language.generation_config = kept
    processor.tokenizer.save_pretrained(folder)


def describe_language_model(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor
) -> dict[str, Any]:
    """Identify a language model: architecture, sizes, a hash of every tensor.

    Vocabulary rows that were added for placeholders are left out (``rows`` counts the others): they are never
    read or generated, so the model without them serves as well.
    """
    language = model.language_model
    module = embedding(language)
    rows = _rows_before_placeholders(model, processor)
    some = module.weight[:8].detach()
    given = module(torch.arange(8, device=some.device)).detach()
    digests = _digests(language, rows)
    return {
        "architecture": type(language).__name__,
        "model_type": language.config.model_type,
        "hidden_size": module.weight.shape[1],
        "rows": rows,
        "dtype": str(language.dtype).removeprefix("torch."),
        "max_position_embeddings": declared_length(language.config),
        "embedding_factor": round(float(given.norm() / some.norm().clamp(min=1e-30)), 4),
        "sha256": hashlib.sha256(canonical(digests)).hexdigest(),
        "tensors": digests,
    }


def _rows_before_placeholders(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor
) -> int:
    """Count the vocabulary rows without the placeholders added at the end for media."""
    size = embedding(model).weight.shape[0]
    placeholders = {bridge["token_id"] for bridge in (model.config.bridges or {}).values()}
    while size and size - 1 in placeholders:
        size -= 1
    return size


def _digests(language: PreTrainedModel, rows: int) -> dict[str, str]:
    """Return tensor -> hash of its values; for a vocabulary, of its first rows."""
    state = language.state_dict()
    by_vocabulary = {
        id(parameter)
        for layer in (language.get_input_embeddings(), language.get_output_embeddings())
        if isinstance(layer, nn.Module)
        for parameter in layer.parameters()
    }
    names = {
        name
        for name, p in language.named_parameters(remove_duplicate=False)
        if id(p) in by_vocabulary
    }
    return {
        name: tensor_hash(tensor[:rows] if name in names else tensor)
        for name, tensor in state.items()
    }
