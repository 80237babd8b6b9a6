"""Idefics: a CLIP tower with all its tokens, gated blocks in a LLaMA decoder, with or without a resampler.

Source: IDEFICS (OBELICS, arXiv 2306.16527). Its blocks have the heads and the feed-forward of the
decoder's own layers: ``idefics_cross_attention`` may have fewer heads and a narrower feed-forward,
padded with zeros (exact).

Prompts are those of training, by a processor of modalign's own (``processing_idefics``).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPVisionModel,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from modalign.connectors.perceivers.idefics_cross_attention import (
    IdeficsBlock,
    IdeficsCrossAttention,
)
from modalign.connectors.perceivers.resampler import ResamplerCore
from modalign.encoders.image import ALL
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
from modalign.models.export.native.parts import own_processor, square_tower
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.processing import ModalignProcessor
from modalign.models.processing_idefics import ModalignIdeficsProcessor

_TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
_VISION = (
    "image_size",
    "patch_size",
    "num_channels",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)


def build(model: ModalignForConditionalGeneration, processor: ModalignProcessor) -> Native:
    """Build an Idefics from the composed model's tensors.

    All are shared except keys and values of the blocks (one map there, two here), and padded
    tensors.

    Raises:
        NotNativeError: Idefics cannot hold this model, or it would not compute the same.
    """
    connector = only_connector(model, "image", "Idefics", IdeficsCrossAttention)
    language = _decoder(model.language_model)
    _check_sizes(connector, language.config)
    tower = square_tower(image_tower(model), CLIPVisionModel, "CLIP", ALL, "Idefics")
    config = _config(language.config, tower.config, connector)
    set_dtype(model.dtype, config, config.vision_config, config.perceiver_config)
    with torch.device("meta"):
        made = IdeficsForVisionText2Text(config)
    state = {key: value.detach() for key, value in language.state_dict().items()}
    for key, value in tower.state_dict().items():
        state[f"model.vision_model.{key.removeprefix('vision_model.')}"] = value.detach()
    for number, block in enumerate(connector.blocks):
        prefix = f"model.gated_cross_attn_layers.{number}."
        state |= {prefix + key: value for key, value in _block(block, config).items()}  # type: ignore[arg-type]
    if connector.resampler is not None:
        state |= _resampler(connector.resampler, "model.perceiver_resampler.")
    made.load_state_dict(state, assign=True)
    _count_positions(made, tower.device)
    made.generation_config = copy.deepcopy(model.generation_config)
    own = own_processor(ModalignIdeficsProcessor, processor)
    native = Native("Idefics", made, own, renamed({}))
    text = [{"role": "user", "content": [{"type": "text", "text": "a b"}]}]
    for conversation in (two_images(), text):  # a text alone takes another path through the class
        compare(model, processor, native, conversation)
    return native


# --- what the class can hold --------------------------------------------------------------------


def _decoder(language: PreTrainedModel) -> LlamaForCausalLM:
    if type(language) is not LlamaForCausalLM:
        raise NotNativeError(
            f"Idefics's language model is LLaMA's, but this one is {type(language).__name__}"
        )
    config = language.config
    heads, width = config.num_attention_heads, config.hidden_size
    if config.num_key_value_heads != heads:
        raise NotNativeError(
            f"Idefics's decoder has keys for each head, but this one {config.num_key_value_heads} for "
            f"{heads} heads"
        )
    if config.head_dim * heads != width:
        raise NotNativeError(
            f"Idefics's decoder has heads as wide as the model together, but this one has {heads} of "
            f"{config.head_dim} at a width of {width}"
        )
    if config.attention_bias or config.mlp_bias:
        raise NotNativeError("Idefics's decoder has no biases, but this one has")
    if config.hidden_act not in ("silu", "swish"):
        raise NotNativeError(
            f"Idefics's blocks have the decoder's activation, {config.hidden_act!r}, but the "
            "connector's have 'silu'"
        )
    return language


def _check_sizes(connector: IdeficsCrossAttention, text: PreTrainedConfig) -> None:
    """Refuse blocks that are larger than the decoder's layers or have another form."""
    options, width = connector.options, connector.widths.feature_size
    size = text.hidden_size // text.num_attention_heads
    if options.head_size != size:
        raise NotNativeError(
            f"Idefics around this decoder has heads of {size}, and the connector of {options.head_size}; train "
            f"it with the option head_size {size} for this class"
        )
    for name, ours, theirs in (
        ("heads", options.heads, text.num_attention_heads),
        ("ffn", options.ffn, text.intermediate_size),
    ):
        if ours > theirs:
            raise NotNativeError(
                f"Idefics around this decoder has {name} {theirs}, and the connector {ours}; train it "
                f"with the option {name} at most {theirs} for this class"
            )
    if connector.norm_eps != text.rms_norm_eps:
        raise NotNativeError(
            f"Idefics around this decoder has norms of epsilon {text.rms_norm_eps:g}, and the connector "
            f"of {connector.norm_eps:g}; train it with the option norm_eps {text.rms_norm_eps:g} for "
            "this class"
        )
    if connector.resampler is None:
        return
    for name, value in {"width": width, "ffn": 4 * width, "style": "idefics"}.items():
        own = getattr(connector.resampler.options, name)
        if own != value:
            raise NotNativeError(f"Idefics's resampler has {name} {value}, and this one {own}")


# --- configuration and tensors ------------------------------------------------------------------


def _config(
    text: PreTrainedConfig, vision: PreTrainedConfig, connector: IdeficsCrossAttention
) -> IdeficsConfig:
    resampler: dict[str, Any] = {}
    if connector.resampler is not None:
        core = connector.resampler.options
        resampler = {
            "use_resampler": True,
            "resampler_n_latents": core.num_tokens,
            "resampler_depth": core.layers,
            "resampler_n_heads": core.heads,
            "resampler_head_dim": core.head_size,
            "qk_layer_norms_perceiver": True,
        }
    return IdeficsConfig(
        **{name: copy.deepcopy(getattr(text, name)) for name in _TEXT},
        vision_config={"embed_dim": vision.hidden_size}
        | {name: getattr(vision, name) for name in _VISION},
        perceiver_config=resampler,
        use_resampler=connector.resampler is not None,
        cross_layer_interval=connector.places.step,
        alpha_type="float" if connector.options.gate == "scalar" else "vector",
        qk_layer_norms=True,
    )


def _block(block: IdeficsBlock, config: IdeficsConfig) -> dict[str, Tensor]:
    """Map a block's tensors to Idefics's names, padded to the decoder's sizes."""
    keys, values = block.kv.weight.chunk(2)
    inner = config.hidden_size - block.q.out_features
    hidden = config.intermediate_size - block.ffn.gate.out_features
    gates = (1,) if config.alpha_type == "float" else (1, 1, -1)
    below, behind = (0, 0, 0, inner), (0, inner)
    state = {
        "alpha_cross_attn": block.attention_gate.reshape(gates),
        "alpha_dense": block.ffn_gate.reshape(gates),
        "input_layernorm.weight": block.norm.weight,
        "post_attention_layernorm.weight": block.ffn_norm.weight,
        "cross_attn.q_layer_norm.weight": block.q_norm.weight,
        "cross_attn.k_layer_norm.weight": block.k_norm.weight,
        "cross_attn.q_proj.weight": functional.pad(block.q.weight, below),
        "cross_attn.k_proj.weight": functional.pad(
            keys, below
        ).clone(),  # otherwise halves of one tensor
        "cross_attn.v_proj.weight": functional.pad(values, below).clone(),
        "cross_attn.o_proj.weight": functional.pad(block.out.weight, behind),
        "mlp.gate_proj.weight": functional.pad(block.ffn.gate.weight, (0, 0, 0, hidden)),
        "mlp.up_proj.weight": functional.pad(block.ffn.up.weight, (0, 0, 0, hidden)),
        "mlp.down_proj.weight": functional.pad(block.ffn.down.weight, (0, hidden)),
    }
    return {name: tensor.detach() for name, tensor in state.items()}


_RESAMPLER_NAMES = {
    "attention.q.": "0.q_proj.",
    "attention.k.": "0.k_proj.",
    "attention.v.": "0.v_proj.",
    "attention.out.": "0.output_proj.",
    "attention.q_norm.": "0.q_layer_norm.",
    "attention.k_norm.": "0.k_layer_norm.",
    "media_norm.": "0.context_layer_norm.",
    "latent_norm.": "0.latents_layer_norm.",
    "ffn_norm.": "1.ln.",
    "ffn.up.": "1.fc.",
    "ffn.down.": "1.c_proj.",
}


def _resampler(core: ResamplerCore, prefix: str) -> dict[str, Tensor]:
    state = {f"{prefix}latents": core.latents.detach()}
    for key, value in core.norm.state_dict().items():
        state[f"{prefix}layer_norm.{key}"] = value
    name = renamed(_RESAMPLER_NAMES)
    for number, layer in enumerate(core.layers):
        for key, value in layer.state_dict().items():
            state[f"{prefix}blocks.{number}.{name(key)}"] = value
    return state


def _count_positions(made: IdeficsForVisionText2Text, device: torch.device) -> None:
    """Fill buffers that no file contains and that are empty after building on the meta device."""
    embeddings: Any = made.model.vision_model.embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=device).expand(1, -1)
    for module in made.modules():
        if "inv_freq" in dict(module.named_buffers(recurse=False)):
            fresh: nn.Module = type(module)(made.config).to(device)
            for name, buffer in fresh.named_buffers():
                setattr(module, name, buffer)
