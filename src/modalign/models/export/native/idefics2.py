"""Idefics2: a SigLIP tower, a SwiGLU to the language model's width, a resampler of RMSNorm layers.

Source: Idefics2 (arXiv 2405.02246). Its connector has the hidden width of the language model's own
feed-forward, and four times the language model's width: ``swiglu_resampler`` may have narrower ones,
padded with zeros (exact, because ``silu(0) * 0 = 0``).

Prompts are the same as in training, as for Idefics3.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Idefics2Config, Idefics2ForConditionalGeneration, PreTrainedConfig

from modalign.connectors.layers import SwiGLU
from modalign.connectors.perceivers.swiglu_resampler import (
    NORM_EPS,
    GroupedLayer,
    SwigluResampler,
)
from modalign.models.export.native.base import (
    Native,
    NotNativeError,
    check_language_model,
    compare,
    image_tower,
    only_connector,
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
    """Build an Idefics2 from the composed model's modules (shared, not copied).

    Raises:
        NotNativeError: Idefics2 cannot hold this model, or it would not compute the same.
    """
    resampler = only_connector(model, "image", "Idefics2", SwigluResampler)
    text = model.language_model.config
    _check_sizes(resampler, text)
    tower = siglip_tower(image_tower(model), "Idefics2")
    check_language_model(model.language_model)
    options = resampler.options
    config = Idefics2Config(
        vision_config=siglip_sizes(tower),
        perceiver_config={
            "hidden_size": text.hidden_size,
            "rms_norm_eps": NORM_EPS,
            "resampler_n_latents": options.num_tokens,
            "resampler_depth": options.layers,
            "resampler_n_heads": options.heads,
            "resampler_head_dim": options.head_size,
            "num_key_value_heads": options.kv_heads,
        },
        text_config=copy.deepcopy(text),
        image_token_id=processor.image_token_id,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )
    parts = (config.vision_config, config.perceiver_config, config.text_config)
    set_dtype(model.dtype, config, *parts)
    with torch.device("meta"):
        made = Idefics2ForConditionalGeneration(config)
    take_siglip(made.model.vision_model, tower, "Idefics2")
    made.model.connector.load_state_dict(
        _connector_state(resampler, text.intermediate_size), assign=True
    )
    share_language_model(made, model, "text_model")
    images = square_images(processor, tower.config.image_size, "Idefics2")
    native = Native("Idefics2", made, plain_prompts(processor, images), renamed({}))
    compare(model, processor, native, two_images())
    return native


def _check_sizes(connector: SwigluResampler, text: PreTrainedConfig) -> None:
    """Refuse a connector that is too large for this language model or has another form."""
    act, width = getattr(text, "hidden_act", None), getattr(text, "intermediate_size", None)
    if act not in ("silu", "swish") or not isinstance(width, int):
        raise NotNativeError(
            "Idefics2's first SwiGLU has activation and hidden width of the language model's "
            f"feed-forward, which are {act!r} and {width!r} and not silu and a number"
        )
    options = connector.options
    for name, ours, theirs in (
        ("hidden", options.hidden, width),
        ("ffn", options.ffn, 4 * connector.widths.hidden_size),
    ):
        if ours > theirs:
            raise NotNativeError(
                f"Idefics2 around this language model has {name} {theirs}, and the connector "
                f"{ours}; train it with the option {name} at most {theirs} for this class"
            )


def _connector_state(resampler: SwigluResampler, hidden: int) -> dict[str, Tensor]:
    perceiver = "perceiver_resampler."
    state = _swiglu(resampler.enter, "modality_projection.", hidden)
    state[perceiver + "latents"] = resampler.latents
    state[perceiver + "norm.weight"] = resampler.norm.weight
    for number, layer in enumerate(resampler.layers):
        assert isinstance(layer, GroupedLayer)
        prefix = f"{perceiver}layers.{number}."
        modules: dict[str, nn.RMSNorm | nn.Linear] = {
            "input_latents_norm": layer.latent_norm,
            "input_context_norm": layer.media_norm,
            "post_attention_layernorm": layer.ffn_norm,
            "self_attn.q_proj": layer.q,
            "self_attn.k_proj": layer.k,
            "self_attn.v_proj": layer.v,
            "self_attn.o_proj": layer.out,
        }
        state |= {f"{prefix}{name}.weight": module.weight for name, module in modules.items()}
        state |= _swiglu(layer.ffn, f"{prefix}mlp.", 4 * resampler.widths.hidden_size)
    return {key: value.detach() for key, value in state.items()}


def _swiglu(module: SwiGLU, prefix: str, hidden: int) -> dict[str, Tensor]:
    """Pad a SwiGLU to a larger hidden width that computes the same."""
    missing = hidden - module.gate.out_features
    return {
        f"{prefix}gate_proj.weight": functional.pad(module.gate.weight, (0, 0, 0, missing)),
        f"{prefix}up_proj.weight": functional.pad(module.up.weight, (0, 0, 0, missing)),
        f"{prefix}down_proj.weight": functional.pad(module.down.weight, (0, missing)),
    }
