"""Describe a Hugging Face speech model (encoder, feature extractor, lengths) and load its weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    PreTrainedConfig,
    Qwen2AudioEncoderConfig,
    VoxtralEncoderConfig,
)

from modalign.encoders.base import EncoderError, SignalEncoder
from modalign.encoders.speech import (
    build_part,
    extractor_of,
    num_features,
    patch_rows,
    speech_part,
)
from modalign.errors import UsageError
from modalign.models.encoders.measure import steps_of
from modalign.models.encoders.plain import plain_config
from modalign.models.pretrained import read_pretrained

# Pre-training regularisation that would mask or skip parts of an encoder trained here.
PLAIN = {"apply_spec_augment": False, "layerdrop": 0.0, "encoder_layerdrop": 0.0}
UNUSED = ("masked_spec_embed",)  # only used for masked spans

# Fields that the configurations of Whisper and its other forms share.
SHARED = (
    "num_mel_bins",
    "dropout",
    "attention_dropout",
    "activation_function",
    "activation_dropout",
    "scale_embedding",
    "max_source_positions",
)


def describe_speech(name: str, layer: int, form: str = "own") -> dict[str, Any]:
    """Describe an encoder; lengths and widths are measured on a model without weights.

    Args:
        name: hub name or folder.
        layer: hidden layer to read.
        form: for Whisper: ``own``, or that of a model built on it (``encoders.speech``).

    Raises:
        UsageError: there is no such model, or it does not read speech.
        EncoderError: the model cannot be used.
    """
    config = read_pretrained(AutoConfig, name, "audio encoder")
    extractor = read_pretrained(AutoFeatureExtractor, name, "audio encoder")
    config.update({key: value for key, value in PLAIN.items() if hasattr(config, key)})
    if form != "own":
        _check_form(name, config, layer, form)
        config = {"qwen2_audio": _qwen2_audio, "voxtral": _voxtral}[form](config)
    with torch.device("meta"):
        part = build_part(config).eval()
    inputs = str(part.main_input_name)
    if inputs not in extractor.model_input_names:
        raise EncoderError(
            f"{type(part).__name__} reads {inputs}, which {type(extractor).__name__} does not give"
        )
    rate = extractor.sampling_rate
    spec = {
        "kind": "speech",
        "config": plain_config(config),
        "extractor": json.loads(json.dumps(extractor.to_dict())),
        "input": inputs,
        "layer": layer,
        "rate": rate,
        **({} if form == "own" else {"form": form}),
    }
    half, whole = (_extracted(extractor, rate // 2, inputs), _extracted(extractor, rate, inputs))
    states = _states(part, inputs, whole, layer)
    spec["feature_size"] = states.shape[-1]
    if half.shape == whole.shape:
        return spec | _fixed(config, extractor, states.shape[1])
    frames = len(whole)

    def count(length: int) -> int:
        shape = (length, *whole.shape[1:])
        return _states(part, inputs, np.zeros(shape, np.float32), layer).shape[1]

    steps = steps_of(count, frames)
    shortest = max(1, steps.get("first", rate // 10)) if whole.ndim == 1 else rate // 10
    return spec | {
        "window": None,
        "steps": steps,
        "min_samples": shortest,
    }


def _check_form(name: str, config: PreTrainedConfig, layer: int, form: str) -> None:
    if config.model_type != "whisper":
        raise EncoderError(f"form={form} is for Whisper, but {name!r} is {config.model_type}")
    if layer != -1:
        raise EncoderError(f"form={form} reads the encoder's output: leave layer at -1")
    width, ffn = config.d_model, config.encoder_ffn_dim
    if form == "voxtral" and ffn != 4 * width:  # Voxtral uses it as the width of four features
        raise EncoderError(
            f"form=voxtral needs a feed-forward of four times the width, but that of {name!r} is {ffn} "
            f"at a width of {width}"
        )


def _qwen2_audio(config: PreTrainedConfig) -> Qwen2AudioEncoderConfig:
    """Return Qwen2-Audio's encoder configuration with the same sizes; its tensors are named as in Whisper."""
    names = ("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "d_model", *SHARED)
    return Qwen2AudioEncoderConfig(**{name: getattr(config, name) for name in names})


def _voxtral(config: PreTrainedConfig) -> VoxtralEncoderConfig:
    """Return Voxtral's encoder configuration with the same sizes; its tensors are named as in Whisper."""
    return VoxtralEncoderConfig(
        hidden_size=config.d_model,
        intermediate_size=config.encoder_ffn_dim,
        num_hidden_layers=config.encoder_layers,
        num_attention_heads=config.encoder_attention_heads,
        **{name: getattr(config, name) for name in SHARED},
    )


def most_features(spec: dict[str, Any], samples: int) -> int:
    """Return N of a clip of this many samples, from the feature extractor, without a fixed window."""
    extractor = extractor_of(json.dumps(spec["extractor"], sort_keys=True))
    longest = _extracted(extractor, max(samples, spec["min_samples"]), spec["input"])
    return num_features(len(longest), spec["steps"])


def _fixed(config: PreTrainedConfig, extractor: Any, features: int) -> dict[str, Any]:
    """Describe the window that clips are padded to, and its time steps."""
    rate, patches = extractor.sampling_rate, patch_rows(config)
    if patches is not None:
        rows, columns = patches
        samples = extractor.max_length * rate // 100  # frames of 10 ms (Kaldi's)
        step = config.time_stride * rate // 100
        features = rows * columns
    elif getattr(extractor, "n_samples", None):
        rows, samples = 1, extractor.n_samples
        step = samples // features
    else:
        raise EncoderError(f"the window length of {type(extractor).__name__} is unknown")
    window = {"samples": samples, "step": step, "rows": rows, "features": features}
    return {"window": window, "min_samples": rate // 40, "num_features": features}


def _extracted(extractor: Any, samples: int, inputs: str) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    rate = extractor.sampling_rate
    return np.asarray(extractor(noise, sampling_rate=rate, return_tensors="np")[inputs][0])


def _states(part: nn.Module, inputs: str, values: np.ndarray, layer: int) -> torch.Tensor:
    with torch.no_grad():
        given = {inputs: torch.empty(1, *values.shape, device="meta")}
        output = part(**given, output_hidden_states=True)
    try:
        return output.last_hidden_state if layer == -1 else output.hidden_states[layer]
    except IndexError:
        raise EncoderError(
            f"no hidden layer {layer}; it has {len(output.hidden_states)}, including the input"
        ) from None


def load_weights(encoder: SignalEncoder, name: str, allow_pickle: bool) -> None:
    """Load pretrained weights into an encoder built from :func:`describe_speech`.

    Raises:
        UsageError: they cannot be read, or some are missing.
    """
    tower: Any = encoder.tower
    model, info = read_pretrained(
        AutoModel, name, "audio encoder", allow_pickle=allow_pickle, output_loading_info=True
    )
    inside = speech_part(model.config) is not None
    missing = [
        key
        for key in info["missing_keys"]
        if not key.endswith(UNUSED) and (not inside or key.startswith("encoder."))
    ]
    if missing:
        raise UsageError(
            f"the audio encoder {name!r} cannot be loaded: its weights lack {missing[0]}"
        )
    part = model.get_encoder() if inside else model
    tower.load_state_dict(part.state_dict())
