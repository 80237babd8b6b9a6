"""The speech encoder of any Hugging Face model: turn waveforms or spectrograms into features in time.

There are two kinds, distinguished by the model's own feature extractor:

* It pads every clip to one fixed window (Whisper: 30 s, AST: 10.24 s). The model runs on the whole window,
  as in its training; features of padding are masked. A feature belongs to the clip if its step begins
  within the clip.
  Whisper's encoder has two further forms. ``qwen2_audio`` (arXiv 2407.10759): padding is also hidden from
  attention, and neighbouring features are averaged before the last norm. ``voxtral`` (arXiv
  2507.13264): every feature of the window counts, including those of trailing silence.
* It keeps the length of clips (wav2vec 2.0, HuBERT, WavLM, ...). Clips of equal length run together
  and no clip is ever padded: group norms over time and convolutional positions would see the padding.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from modalign.encoders.base import (
    EncoderError,
    Prepared,
    SignalEncoder,
    all_features,
    padded,
    prefix_mask,
)

POOL = 2  # neighbours averaged by Qwen2-Audio's encoder


def speech_part(config: PreTrainedConfig) -> type[nn.Module] | None:
    """Return the class of an encoder-decoder's encoder; None if the whole model is the encoder."""
    if not config.is_encoder_decoder:
        return None
    with torch.device("meta"):
        return type(AutoModel.from_config(config).get_encoder())


def build_part(config: PreTrainedConfig) -> nn.Module:
    """Build the encoder of a configuration, without pretrained weights."""
    cls = speech_part(config)
    return AutoModel.from_config(config) if cls is None else cls(config)


def patch_rows(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Return (F, T) patches of frequency and time if the model cuts spectrograms into patches (AST)."""
    if not hasattr(config, "frequency_stride") or not hasattr(config, "time_stride"):
        return None
    size = config.patch_size
    rows = (config.num_mel_bins - size) // config.frequency_stride + 1
    return rows, (config.max_length - size) // config.time_stride + 1


def num_features(length: int, steps: dict[str, int]) -> int:
    """Return the number of features of an input, from the measured step function.

    Args:
        length: samples or spectrogram frames.
        steps: {"first", "stride"}: one feature from ``first`` on, one more with each ``stride``; or
            {"constant"}.
    """
    if "constant" in steps:
        return steps["constant"]
    return max(0, (length - steps["first"]) // steps["stride"] + 1)


def by_length(
    encode: Callable[[Tensor], Tensor], values: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Encode a batch without padding: clips of equal length run together.

    Args:
        encode: inputs (n, S, ...) of one length -> features (n, N, d).
        values: (n, S, ...).
        mask: (n, S) bool, signal first, or None.

    Returns:
        features (n, N, d), zeros after those of shorter clips, and their mask (n, N).
    """
    if mask is None:
        return all_features(encode(values))
    lengths = mask.sum(dim=1)
    rows: list[Tensor] = [values] * len(values)
    for length in lengths.unique().tolist():
        equal = (lengths == length).nonzero()[:, 0]
        outputs = encode(values[equal, :length])
        for row, output in zip(equal.tolist(), outputs, strict=True):
            rows[row] = output
    counts = torch.tensor([len(row) for row in rows], device=values.device)
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), prefix_mask(counts, int(counts.max()))


class SpeechTower(SignalEncoder):
    """A Hugging Face speech encoder, read at one hidden layer.

    Args:
        spec: the model's ``config``; ``layer``, index into hidden_states (-1: its output);
            ``input``, the name of its input; ``window`` (fixed) or ``steps`` (varying);
            ``form``, if it differs from the model's own; ``feature_size`` and
            ``num_features``, measured on loading.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.tower = build_part(AutoConfig.for_model(**spec["config"])).eval()
        self.layer, self.input = spec["layer"], spec["input"]
        self.fixed = spec.get("window") is not None
        self.form = spec.get("form", "own")
        self.patches = patch_rows(self.tower.config)
        self.feature_size, self.num_features = spec["feature_size"], spec["num_features"]

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs (n, ...), mask -> features (n, N, d) and their mask.

        The mask is over features if the window is fixed (in the form ``qwen2_audio`` over the
        positions before averaging), else over samples or spectrogram frames.
        """
        if self.form == "qwen2_audio" and mask is not None:
            counts = mask.sum(dim=1) // POOL
            features = self.hidden(values, attention_mask=self._visible(values, mask))
            return features, prefix_mask(counts, features.shape[1])
        if self.fixed:
            features = self.hidden(values)
            return all_features(features) if mask is None else (features, mask)
        return by_length(self.hidden, values, mask)

    def _visible(self, values: Tensor, mask: Tensor) -> Tensor | None:
        """Convert a mask (n, T) over positions to the tower's attention mask."""
        empty = values.new_zeros(*mask.shape, 1)
        config: Any = self.tower.config
        return create_bidirectional_mask(
            config=config, inputs_embeds=empty, attention_mask=mask.long()
        )

    def hidden(self, values: Tensor, **options: Any) -> Tensor:
        """Return features (n, N, d) of inputs of one length, in temporal order."""
        output = self.tower(**{self.input: values}, output_hidden_states=True, **options)
        states = output.last_hidden_state if self.layer == -1 else output.hidden_states[self.layer]
        if self.patches is None:
            return states
        rows, columns = self.patches  # after class tokens; frequency by frequency
        return states[:, -rows * columns :].unflatten(1, self.patches).transpose(1, 2).flatten(1, 2)


def prepare_speech(spec: dict[str, Any], signals: Sequence[Any]) -> Prepared:
    """Pass waveforms (S_i,), numpy, through the model's own feature extractor, one by one.

    A clip too short for one feature is padded with silence to ``spec['min_samples']``.
    """
    extract = extractor_of(json.dumps(spec["extractor"], sort_keys=True))
    inputs = []
    for signal in signals:
        given = extract(
            filled(signal, spec["min_samples"]).numpy(),
            sampling_rate=spec["rate"],
            return_tensors="pt",
        )
        inputs.append(given[spec["input"]][0].float())
    window = spec.get("window")
    if window is not None:
        mask, counts = _in_window(spec, signals)
        return Prepared(torch.stack(inputs), mask, counts)
    return padded(inputs, [num_features(len(values), spec["steps"]) for values in inputs])


def filled(signal: Any, length: int) -> Tensor:
    """Convert a waveform (S,) to a tensor, padded with silence to a length."""
    samples = torch.as_tensor(signal, dtype=torch.float32)
    return nn.functional.pad(samples, (0, max(0, length - len(samples))))


def _in_window(spec: dict[str, Any], signals: Sequence[Any]) -> tuple[Tensor | None, list[int]]:
    """Return the part of a fixed window that belongs to each clip: a mask for :class:`SpeechTower`, and counts."""
    window = spec["window"]
    if spec.get("form") == "voxtral":
        return None, [window["features"]] * len(signals)
    if spec.get("form") == "qwen2_audio":
        samples = window["samples"] // (POOL * window["features"])  # samples per position
        lengths = [max(len(signal), spec["min_samples"]) for signal in signals]
        places = [min(-(-length // samples), POOL * window["features"]) for length in lengths]
        mask = prefix_mask(torch.tensor(places), POOL * window["features"])
        return mask, [count // POOL for count in places]
    counts = [_steps(len(signal), window) * window["rows"] for signal in signals]
    return prefix_mask(torch.tensor(counts), window["features"]), counts


def _steps(samples: int, window: dict[str, int]) -> int:
    """Count the time steps of a fixed window that begin within a clip; at least one."""
    columns = window["features"] // window["rows"]
    return min(max(1, -(-samples // window["step"])), columns)


@functools.lru_cache
def extractor_of(description: str) -> Any:
    """Build a feature extractor from its JSON.

    Raises:
        EncoderError: transformers has no such class.
    """
    values = json.loads(description)
    cls = getattr(transformers, values["feature_extractor_type"], None)
    if cls is None:
        raise EncoderError(f"transformers has no {values['feature_extractor_type']}")
    return cls.from_dict(values)
