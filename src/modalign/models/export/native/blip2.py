"""Blip2: a ViT's whole output, class token included, a Q-Former, one affine map, any causal LLM.

Source: BLIP-2 (arXiv 2301.12597). Its tower is a pre-norm ViT with a fused query-key-value map:
BLIP-2's own, or transformers' ``ViTModel``, whose three maps are concatenated.

It differs from the composed model in two ways, so it is written only on request: it takes no prompt
without an image, and it generates with its language model's configuration. End tokens are written there;
suppressed tokens cannot be.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2VisionConfig,
    Blip2VisionModel,
    PreTrainedModel,
    ViTModel,
)

from modalign.connectors.layers import typed
from modalign.connectors.perceivers.qformer import NORM_EPS, QFormer, QFormerLayer
from modalign.encoders.image import ALL, HuggingFaceTower
from modalign.models.export.native.base import (
    Native,
    NotNativeError,
    compare,
    image_tower,
    only_connector,
    renamed,
    set_dtype,
    two_images,
)
from modalign.models.export.native.parts import plain_prompts
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor


def build(model: ModalignForConditionalGeneration, processor: ModalignProcessor) -> Native:
    """Build a Blip2 from the composed model's modules (shared, except a fused map).

    Raises:
        NotNativeError: Blip2 cannot hold this model, or it would not compute the same.
    """
    qformer = only_connector(model, "image", "Blip2", QFormer)
    vision, tensors = _tower(image_tower(model))
    options = qformer.options
    language = model.language_model
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config={
            "hidden_size": options.width,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "intermediate_size": options.ffn,
            "cross_attention_frequency": options.cross_every,
            "layer_norm_eps": NORM_EPS,
        },
        text_config=copy.deepcopy(language.config),
        num_query_tokens=options.num_tokens,
        image_token_index=processor.image_token_id,
    )
    settings = model.generation_config
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        setattr(config.text_config, name, getattr(settings, name))
    set_dtype(model.dtype, config, config.vision_config, config.qformer_config, config.text_config)
    with torch.device("meta"):
        made = Blip2ForConditionalGeneration(config)
    made.vision_model.load_state_dict(tensors, assign=True)
    made.qformer.load_state_dict(_qformer_state(qformer), assign=True)
    made.query_tokens = nn.Parameter(qformer.queries.detach()[None])
    made.language_projection = qformer.project
    made.language_model = language
    made.generation_config = copy.deepcopy(settings)
    made_processor = plain_prompts(processor, processor.image_processor)
    native = Native("Blip2", made, made_processor, renamed({}))
    compare(model, processor, native, two_images())
    return native


def _tower(encoder: HuggingFaceTower) -> tuple[Blip2VisionConfig, dict[str, Tensor]]:
    tower = encoder.tower
    if not isinstance(tower, Blip2VisionModel | ViTModel):
        raise NotNativeError(
            "Blip2's vision tower is a ViT with a class token, norms before its blocks and one at "
            f"its end (BLIP-2's own, or ViTModel), but this one is {tower.config.model_type}"
        )
    if encoder.layer != ALL:
        raise NotNativeError(
            "Blip2's Q-Former reads the tower's output with its class token, but this model reads "
            f"{encoder.layer!r}; train with feature_layer {ALL!r} for this class"
        )
    if isinstance(tower, Blip2VisionModel):
        return tower.config, tower.state_dict()
    ours = tower.config
    if not ours.qkv_bias:
        raise NotNativeError("Blip2's fused map has a bias, and this ViT's have none")
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
        "hidden_act",
        "layer_norm_eps",
    )
    config = Blip2VisionConfig(**{name: getattr(ours, name) for name in names})
    return config, _vit_state(tower)


def _vit_state(tower: PreTrainedModel) -> dict[str, Tensor]:
    """Map a ViT's tensors to BLIP-2's names, without its pooling layer."""
    plain = {
        "embeddings.cls_token": "embeddings.class_embedding",
        "embeddings.position_embeddings": "embeddings.position_embedding",
        "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
        "layernorm": "post_layernorm",
        "attention.o_proj": "self_attn.projection",
        "layernorm_before": "layer_norm1",
        "layernorm_after": "layer_norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    given, state = tower.state_dict(), {}
    for key, value in given.items():
        stem = key.removesuffix(".weight").removesuffix(".bias")
        ending = key.removeprefix(stem)
        prefix, name = "", stem
        if stem.startswith("layers."):
            _, number, name = stem.split(".", 2)
            prefix = f"encoder.layers.{number}."
        if name == "attention.q_proj":
            three = [given[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            state[f"{prefix}self_attn.qkv{ending}"] = torch.cat(three)
        elif name in plain:
            state[prefix + plain[name] + ending] = value
    return state


def _qformer_state(qformer: QFormer) -> dict[str, Tensor]:
    modules: dict[str, nn.Module] = {"layernorm": qformer.norm}
    for number, layer in enumerate(typed(qformer.layers, QFormerLayer)):
        prefix = f"encoder.layer.{number}."
        readers = {"attention": (layer.attention, layer.attention_norm)}
        if layer.cross is not None and layer.cross_norm is not None:
            readers["crossattention"] = (layer.cross, layer.cross_norm)
        for name, (attention, norm) in readers.items():
            modules |= {
                f"{prefix}{name}.attention.query": attention.q,
                f"{prefix}{name}.attention.key": attention.k,
                f"{prefix}{name}.attention.value": attention.v,
                f"{prefix}{name}.output.dense": attention.out,
                f"{prefix}{name}.output.LayerNorm": norm,
            }
        modules |= {
            f"{prefix}intermediate_query.dense": layer.ffn.up,
            f"{prefix}output_query.dense": layer.ffn.down,
            f"{prefix}output_query.LayerNorm": layer.ffn_norm,
        }
    return {
        f"{name}.{kind}": tensor.detach()
        for name, module in modules.items()
        for kind, tensor in module.named_parameters()
    }
