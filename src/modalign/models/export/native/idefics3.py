"""Idefics3: a SigLIP tower, k x k features folded into channels, one matrix without a bias.

Source: Idefics3 (arXiv 2408.12637). ``pixel_shuffle_linear`` copies unchanged. The mean over k x k
features before a matrix W is the same as folding them before [W W ... W] / k^2, so ``avgpool_mlp``
of depth 1 without a bias has a place here as well.

Prompts are the same as in training: an image is one square with its placeholders, without the markers that
Idefics3's own processor adds.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from modalign.connectors.converters.avgpool_mlp import AvgpoolMlpConnector
from modalign.connectors.converters.pixel_shuffle_linear import PixelShuffleLinearConnector
from modalign.models.export.native.base import (
    Native,
    NotNativeError,
    check_language_model,
    compare,
    image_tower,
    only_modality,
    renamed,
    set_dtype,
    two_images,
)
from modalign.models.export.native.parts import (
    plain_prompts,
    share_language_model,
    siglip_sizes,
    siglip_tower,
    square_images,
    take_siglip,
)
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor


def build(model: ModalignForConditionalGeneration, processor: ModalignProcessor) -> Native:
    """Build an Idefics3 from the composed model's modules (shared, not copied).

    Raises:
        NotNativeError: Idefics3 cannot hold this model, or it would not compute the same.
    """
    weight, factor = _matrix(only_modality(model, "image", "Idefics3"))
    tower = siglip_tower(image_tower(model), "Idefics3")
    check_language_model(model.language_model)
    text = model.language_model.config
    config = Idefics3Config(
        vision_config=siglip_sizes(tower),
        text_config=copy.deepcopy(text),
        image_token_id=processor.image_token_id,
        scale_factor=factor,
        tie_word_embeddings=bool(text.tie_word_embeddings),
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    set_dtype(model.dtype, config, config.vision_config, config.text_config)
    with torch.device("meta"):
        made = Idefics3ForConditionalGeneration(config)
    take_siglip(made.model.vision_model, tower, "Idefics3")
    made.model.connector.modality_projection.proj.weight = nn.Parameter(weight)
    share_language_model(made, model, "text_model")
    images = square_images(processor, tower.config.image_size, "Idefics3")
    native = Native("Idefics3", made, plain_prompts(processor, images), renamed({}))
    compare(model, processor, native, two_images())
    return native


def _matrix(connector: nn.Module) -> tuple[Tensor, int]:
    if type(connector) is PixelShuffleLinearConnector:
        _check_square(connector.widths.grid)
        return connector.projection.weight, connector.options.factor
    if type(connector) is AvgpoolMlpConnector:
        first = connector.layers[0]
        assert isinstance(first, nn.Linear)
        if connector.options.depth != 1 or first.bias is not None:
            raise NotNativeError(
                "Idefics3 has one matrix without a bias; avgpool_mlp has that form with the "
                "options depth 1 and bias false"
            )
        side = _check_square(connector.widths.grid)
        if side % connector.side:
            raise NotNativeError(
                f"Idefics3 folds whole blocks, but {connector.side} does not divide {side}"
            )
        factor = side // connector.side
        return first.weight.detach().repeat(1, factor**2) / factor**2, factor
    raise NotNativeError(
        f"Idefics3 has no connector like {getattr(connector, 'name', connector)!r}"
    )


def _check_square(grid: tuple[int, int] | None) -> int:
    if grid is None or grid[0] != grid[1]:
        raise NotNativeError(f"Idefics3 folds a square of features, but this grid is {grid}")
    return grid[0]
