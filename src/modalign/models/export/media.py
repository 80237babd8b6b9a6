"""Write the media side of a composed model, encoders and connectors, as a separate folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from modalign.connectors.base import InLayerConnector
from modalign.errors import UsageError
from modalign.models.bridges import Bridges
from modalign.models.configuration import ModalignMediaConfig
from modalign.models.export.folder import (
    connector_classes,
    edited_json,
    forget_places,
    own_code,
    savable,
    widest_dtype,
)
from modalign.models.export.remote_code import (
    MEDIA,
    MEDIA_AUTO_MAP,
    PROCESSOR_AUTO_MAP,
    write_code,
)
from modalign.models.media import ModalignMedia
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import embedding, hidden_size
from modalign.models.processing import ModalignProcessor


def refuse_in_layer(model: Bridges, what: str) -> None:
    """Refuse a model if not all media enter by the input sequence.

    Raises:
        UsageError: it has no media, or a connector acts inside the language model.
    """
    if not model.connectors:
        raise UsageError(f"{what}: the model reads only text, so there is no encoder to write")
    for modality, connector in model.connectors.items():
        if isinstance(connector, InLayerConnector):
            raise UsageError(
                f"{what}: the {modality} connector {connector.name!r} acts inside the language "
                "model's layers, where no input embedding reaches; export it as remote-code and "
                "serve it with 'modalign serve'"
            )


@torch.no_grad()
def embedding_rows(model: ModalignForConditionalGeneration) -> Tensor:
    """Return (V, D), the input embedding's output for every id: some multiply their rows (Gemma's)."""
    module = embedding(model)
    ids = torch.arange(module.weight.shape[0], device=module.weight.device)
    return torch.cat([module(part) for part in ids.split(16384)]).detach()


def save_media(
    model: ModalignForConditionalGeneration,
    processor: ModalignProcessor,
    folder: Path,
    *,
    rows: Tensor | None,
    code_offsets: dict[str, int] | None = None,
) -> list[str]:
    """Write encoders, connectors, processor and their code; return notes for users.

    Args:
        model: a model with only prefix connectors.
        processor: the composed model's.
        folder: an empty one.
        rows: (V, D) of the input embedding; None to leave it out.
        code_offsets: as in :class:`ModalignMediaConfig`.
    """
    config = ModalignMediaConfig(
        text_config=model.config.text_config,
        bridges=model.config.bridges,
        hidden_size=hidden_size(model),
        vocabulary=0 if rows is None else len(rows),
        code_offsets=code_offsets,
    )
    with torch.device("meta"):
        media = ModalignMedia(config)
    media.encoders, media.connectors = model.encoders, model.connectors
    if rows is not None:
        media.embedding = nn.Embedding.from_pretrained(rows)
    write_code(folder, connector_classes(model), list(model.encoders), MEDIA)
    media.save_pretrained(folder)
    savable(model.generation_config).save_pretrained(folder)  # end tokens of answers
    processor.save_pretrained(folder)
    dtype = str(widest_dtype(media)).removeprefix("torch.")
    with edited_json(folder / "config.json") as values:
        values["auto_map"] = MEDIA_AUTO_MAP
        values["dtype"] = values["text_config"]["dtype"] = dtype
    with edited_json(folder / "processor_config.json") as values:
        values["auto_map"] = PROCESSOR_AUTO_MAP
    for file in folder.glob("*config.json"):
        forget_places(file)
    return own_code(model)
