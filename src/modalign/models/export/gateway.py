"""A gateway's folder: what turns a conversation with media into prompt embeddings.

The language model is not in it. It runs elsewhere, as the plain text model that it is, on a server
that takes embeddings in place of token ids (vLLM's prompt embeddings, for one); encoder and
connector run here. Only connectors that enter by the input sequence can work so.

    gateway = load_gateway("folder")
    prompt = gateway.encode([{"role": "user", "content": [{"type": "image", "image": image}, ...]}])
    prompt.embeddings  # (T, D): what the server is sent

``gateway.json`` says which language model that must be: its sizes, and a hash of its tensors.
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

from modalign.errors import ModalignError, UsageError, first_line
from modalign.files import write_atomically
from modalign.hashing import canonical, tensor_hash
from modalign.models.export.folder import savable
from modalign.models.export.media import embedding_rows, refuse_in_layer, save_media
from modalign.models.media import ModalignMedia
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import embedding
from modalign.models.probe import Conversation, placed, prepare
from modalign.models.processing import ModalignProcessor

REFERENCE = "gateway.json"
FORMAT = 1

CARD = """\
# A gateway: {modalities} before a language model that runs elsewhere

Encoder and connector of a model, with the input embedding of its language model (`embedding.weight`
in `model.safetensors`, what it gives for every token id). They turn a conversation into prompt
embeddings, which a server of the plain language model takes in place of token ids. `gateway.json`
says which language model that is. The Python files need torch and transformers only; read them
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

The licences of the language model and of the encoder go on to apply.

{notes}
"""


@dataclass(frozen=True)
class PromptEmbeddings:
    """A conversation as the language model's input.

    Attributes:
        embeddings: (T, D), in the folder's number format, on the gateway's device.
        ids: (T,) the token ids behind it; where a medium stands, its placeholder.
        media_tokens: positions that the media of each modality take, out of ``len(ids)``.
    """

    embeddings: Tensor
    ids: list[int]
    media_tokens: dict[str, int]

    @property
    def usage(self) -> dict[str, int]:
        """Positions of the prompt: all, those of text, those of media."""
        media = sum(self.media_tokens.values())
        text = len(self.ids) - media
        return {"prompt_tokens": len(self.ids), "text_tokens": text, "media_tokens": media}


@dataclass(frozen=True)
class Gateway:
    """Encoders and connectors, ready to run.

    Attributes:
        folder: where it was loaded from.
        model: the media side of the composed model, in evaluation mode.
        processor: of the composed model: chat template, tokenizer, what makes tensors of media.
        generation: the composed model's: ids that end an answer, ids never to be said (the
            placeholders). The server must be told them with each request.
        language_model: what ``gateway.json`` says of the language model.
    """

    folder: Path
    model: ModalignMedia
    processor: ModalignProcessor
    generation: GenerationConfig
    language_model: dict[str, Any]

    @property
    def modalities(self) -> list[str]:
        """What a conversation may hold besides text."""
        return list(self.model.connectors)

    @torch.inference_mode()
    def encode(self, conversation: Conversation) -> PromptEmbeddings:
        """Turn a conversation into prompt embeddings, up to where the answer begins.

        Args:
            conversation: chat messages whose media parts are decoded; ``conversation_of`` makes
                one of a record.

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
        """See that a folder (or a hub name) holds the language model this gateway was made for.

        Raises:
            UsageError: it cannot be loaded.
            ModalignError: it is another one; the message names the first tensor that differs.
        """
        try:
            model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"the language model {str(name)!r} cannot be loaded: {first_line(error)}"
            ) from error
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
    """Load a gateway's folder; modalign's own code runs, never the copy in the folder.

    Raises:
        UsageError: no gateway is there.
    """
    folder = Path(folder)
    if not (folder / REFERENCE).is_file():
        raise UsageError(
            f"{folder} holds no gateway: it has no {REFERENCE}; 'modalign export MODEL --to gateway "
            f"-o {folder}' writes one"
        )
    try:
        reference = json.loads((folder / REFERENCE).read_text(encoding="utf-8"))
        model = ModalignMedia.from_pretrained(folder, use_safetensors=True)
        processor = ModalignProcessor.from_pretrained(folder)
        generation = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"the gateway in {folder} cannot be loaded: {first_line(error)}"
        ) from error
    if reference.get("format") != FORMAT:
        raise UsageError(
            f"{folder / REFERENCE} is of format {reference.get('format')!r}, not {FORMAT}; export "
            "the model again"
        )
    return Gateway(
        folder, model.to(device).eval(), processor, generation, reference["language_model"]
    )


def save_gateway(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor, folder: Path
) -> list[str]:
    """Write a gateway's folder into an empty one; return what a user must know.

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
            "the embeddings sent already hold the factor: see that the server does not apply it "
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
    """What tells a language model from others: architecture, sizes, a hash of every tensor.

    Rows of the vocabulary that were added for placeholders are left out (``rows`` says how many
    are not): nothing is ever read or said there, so the model without them serves as well.
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
        "max_position_embeddings": getattr(language.config, "max_position_embeddings", None),
        "embedding_factor": round(float(given.norm() / some.norm().clamp(min=1e-30)), 4),
        "sha256": hashlib.sha256(canonical(digests)).hexdigest(),
        "tensors": digests,
    }


def _rows_before_placeholders(
    model: ModalignForConditionalGeneration, processor: ModalignProcessor
) -> int:
    """Rows of the vocabulary without placeholders at its very end, which were added for media."""
    size = embedding(model).weight.shape[0]
    placeholders = {bridge["token_id"] for bridge in (model.config.bridges or {}).values()}
    while size and size - 1 in placeholders:
        size -= 1
    return size


def _digests(language: PreTrainedModel, rows: int) -> dict[str, str]:
    """Tensor -> hash of its values; of a vocabulary those of its first rows."""
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
