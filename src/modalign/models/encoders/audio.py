"""Audio: no encoder, a small trained one, any speech model, or a user's module; sized by the training clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from modalign.data.audio import MAX_SECONDS, decode_audio, duration
from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.encoders.audio import build
from modalign.encoders.base import EncoderError, SignalEncoder, imported
from modalign.encoders.log_mel import MelSpec, frame_sizes, log_mel, num_frames
from modalign.encoders.speech import num_features
from modalign.errors import UsageError, first_line
from modalign.models.encoders.measure import steps_of
from modalign.models.encoders.options import Options
from modalign.models.encoders.speech import describe_speech, load_weights, most_features

HEADROOM = 1.5  # evaluation clips may be longer than all training clips
DEFAULT_SECONDS = 20.0  # of the longest clip, if there are none
FITTED = 1_000  # evenly spaced clips used for the bands' mean and deviation


class AudioOptions(Options):
    """Options of every audio encoder.

    Attributes:
        max_seconds: the longest clip that the model accepts (default: 1.5 times the longest
            training clip; for a speech model with a fixed window, the window).
        longer: ``refuse`` longer clips, or ``crop`` them to their beginning.
    """

    max_seconds: PositiveFloat | None = None
    longer: Literal["refuse", "crop"] = "refuse"


class MelOptions(AudioOptions):
    """Options of spectrograms.

    Attributes:
        rate: sample rate in Hz.
        bands: mel filters.
        window: in seconds.
        hop: in seconds.
        normalise: with each ``clip``'s own mean and deviation, or per band with the training ``data``'s.
    """

    rate: PositiveInt = 16_000
    bands: PositiveInt = 80
    window: PositiveFloat = 0.025
    hop: PositiveFloat = 0.010
    normalise: Literal["clip", "data"] = "clip"


class PatchOptions(MelOptions):
    """Options without an encoder: ``patch``, frames joined in one feature (10 are 0.1 s)."""

    patch: PositiveInt = 10


class ConvOptions(MelOptions):
    """Options of the convolutional encoder.

    Attributes:
        width: channels.
        strides: one per layer; their product is the reduction in time.
        kernel: frames that one output reads, odd.
        dropout: after every layer.
    """

    width: PositiveInt = 128
    strides: list[PositiveInt] = Field(default=[2, 2, 2], min_length=1)
    kernel: PositiveInt = 5
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that it has a middle")
        return value


class SpeechOptions(AudioOptions):
    """Options of a speech model.

    Attributes:
        layer: hidden layer to read; -1 is the encoder's output.
        form: for Whisper: its ``own``, ``qwen2_audio`` (padding is hidden, neighbours averaged: half
            the features), or ``voxtral`` (the whole window, however short the clip); see
            ``encoders.speech``.
    """

    layer: int = -1
    form: Literal["own", "qwen2_audio", "voxtral"] = "own"


class ModuleOptions(AudioOptions):
    """Options of a user's module: ``rate`` of its waveforms, ``arguments`` of its class."""

    rate: PositiveInt = 16_000
    arguments: dict[str, Any] = Field(default_factory=dict)


def load(
    name: str | None, media: Sequence[Media], options: dict[str, Any], allow_pickle: bool = False
) -> tuple[dict[str, Any], SignalEncoder]:
    """Configure and build an audio encoder for training clips.

    Args:
        name: None or "none" (log-mel patches), "conv" (a small trained encoder), the hub name or folder
            of a speech model, or ``package.module:Class``.
        media: training clips; the longest sets N unless ``max_seconds`` does.
        options: :class:`PatchOptions`, :class:`ConvOptions`, :class:`SpeechOptions` or
            :class:`ModuleOptions`.
        allow_pickle: also read weights that are a pickle, with ``weights_only=True``.

    Raises:
        UsageError: an unknown option, or the encoder cannot be loaded.
        SignalError: a clip cannot be read or is too long.
    """
    try:
        if name in (None, "none"):
            return _patches(PatchOptions.read("audio", options), media)
        if name == "conv":
            return _conv(ConvOptions.read("audio", options), media)
        assert name is not None
        if ":" in name and not Path(name).exists():
            return _module(name, ModuleOptions.read("audio", options), media)
        return _speech(name, SpeechOptions.read("audio", options), media, allow_pickle)
    except EncoderError as error:
        raise UsageError(f"the audio encoder {name!r} cannot be loaded: {error}") from error


decode = decode_audio


# --- the four kinds -----------------------------------------------------------------------------

Loaded = tuple[dict[str, Any], SignalEncoder]


def _patches(chosen: PatchOptions, media: Sequence[Media]) -> Loaded:
    spec = {"kind": "patches", **_mel(chosen, media), "patch": chosen.patch}
    return spec, build(spec).eval()


def _conv(chosen: ConvOptions, media: Sequence[Media]) -> Loaded:
    sizes = chosen.model_dump(include={"width", "strides", "kernel", "dropout"})
    spec = {"kind": "conv", **_mel(chosen, media), **sizes}
    return spec, build(spec).eval()


def _speech(name: str, chosen: SpeechOptions, media: Sequence[Media], pickle: bool) -> Loaded:
    spec = describe_speech(name, chosen.layer, chosen.form)
    window = spec["window"]
    limit = _limit(chosen, media, window["samples"] / spec["rate"] if window else None)
    spec |= {"max_seconds": limit, "longer": chosen.longer}
    if window is None:
        spec["num_features"] = most_features(spec, _most(limit, spec["rate"]))
    encoder = build(spec)
    load_weights(encoder, name, pickle)
    return spec, encoder.eval()


def _module(name: str, chosen: ModuleOptions, media: Sequence[Media]) -> Loaded:
    module = imported(name, chosen.arguments)

    def features(samples: int) -> torch.Size:
        try:
            with torch.no_grad():
                output = module(torch.zeros(1, samples))
        except Exception as error:  # a user's code may raise anything
            raise EncoderError(f"it fails on {samples} samples: {first_line(error)}") from error
        if not isinstance(output, torch.Tensor) or output.dim() != 3:
            shape = getattr(output, "shape", type(output).__name__)
            raise EncoderError(f"{type(module).__name__} gave {shape}, not (n, N, d)")
        return output.shape

    limit = _limit(chosen, media)
    steps = steps_of(lambda samples: features(samples)[1], chosen.rate)
    shortest = max(1, steps.get("first", chosen.rate // 10))
    spec = {
        "kind": "module",
        "path": name,
        "arguments": chosen.arguments,
        "rate": chosen.rate,
        "max_seconds": limit,
        "longer": chosen.longer,
        "steps": steps,
        "min_samples": shortest,
        "feature_size": features(chosen.rate)[2],
        "num_features": num_features(max(_most(limit, chosen.rate), shortest), steps),
    }
    encoder = build(spec)
    encoder.load_state_dict({f"module.{key}": value for key, value in module.state_dict().items()})
    return spec, encoder.eval()


def _mel(chosen: MelOptions, media: Sequence[Media]) -> dict[str, Any]:
    """Configure the spectrograms and their maximum length, for patches and convolutions."""
    mel = MelSpec(
        rate=chosen.rate,
        bands=chosen.bands,
        window=chosen.window,
        hop=chosen.hop,
        mean=None,
        scale=None,
    )
    if min(frame_sizes(mel)) < 1:
        raise EncoderError(f"a window or hop of less than one sample at {chosen.rate} Hz")
    limit = _limit(chosen, media)
    spec: dict[str, Any] = {
        "mel": mel,
        "rate": chosen.rate,
        "max_seconds": limit,
        "longer": chosen.longer,
    }
    spec["frames"] = num_frames(_most(limit, chosen.rate), mel)
    if chosen.normalise == "data":
        _fit(mel, [decode(medium, spec) for medium in media[:: -(-len(media) // FITTED) or 1]])
    return spec


def _fit(mel: MelSpec, signals: Sequence[np.ndarray]) -> None:
    """Set mean and deviation of every band from clips; a constant band keeps scale 1."""
    if not signals:
        raise EncoderError("normalise=data needs training clips")
    frames = torch.cat([log_mel(signal, mel) for signal in signals]).double()
    scale = frames.std(dim=0, correction=0)
    mel["mean"] = frames.mean(dim=0).tolist()
    mel["scale"] = scale.where(scale > 0, torch.ones_like(scale)).tolist()


def _most(seconds: float, rate: int) -> int:
    """Return the samples of a clip, plus one because rate conversion may round up."""
    return math.ceil(seconds * rate) + 1


def _limit(chosen: AudioOptions, media: Sequence[Media], window: float | None = None) -> float:
    """Return the seconds of the longest accepted clip.

    Raises:
        SignalError: a training clip is longer and ``longer`` is refuse.
    """
    lengths = [duration(medium) for medium in media]
    limit = chosen.max_seconds or window or HEADROOM * max(lengths, default=DEFAULT_SECONDS)
    limit = min(limit, window or MAX_SECONDS)
    too_long = [index for index, length in enumerate(lengths) if length > limit]
    if too_long and chosen.longer == "refuse":
        raise SignalError(
            media[too_long[0]],
            f"{lengths[too_long[0]]:.1f} s long ({len(too_long)} of {len(media)} training clips are too "
            f"long), but the encoder takes {limit:g} s: cut it, or set the option longer=crop",
        )
    return limit
