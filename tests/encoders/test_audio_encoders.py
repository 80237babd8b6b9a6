"""Audio encoders: spectrograms against transformers', lengths against torch's, padding that never matters."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.encoders.audio import ConvEncoder, build, prepare
from modalign.encoders.base import EncoderError, SignalEncoder
from modalign.encoders.log_mel import MelSpec, log_mel, num_frames, standardised
from modalign.encoders.speech import SpeechTower, num_features
from modalign.errors import UsageError
from modalign.models.encoders.audio import decode, load
from modalign.models.encoders.measure import steps_of

soundfile = pytest.importorskip("soundfile", reason="needs modalign[audio]")

RATE = 16_000
MEL = MelSpec(rate=RATE, bands=80, window=0.025, hop=0.010, mean=None, scale=None)
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SPECIAL = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=samples)).astype(np.float32)


@pytest.fixture
def clips(tmp_path: Path) -> Callable[..., list[Media]]:
    """Files of noise, so many samples long."""

    def make(*lengths: int, rate: int = RATE) -> list[Media]:
        media = []
        for index, length in enumerate(lengths):
            path = tmp_path / f"{index}_{length}.wav"
            soundfile.write(path, noise(length, index), rate)
            media.append(Media("audio", path=str(path)))
        return media

    return make


def encoded(
    spec: dict[str, Any], encoder: SignalEncoder, signals: Sequence[np.ndarray]
) -> tuple[Tensor, Tensor, list[int]]:
    ready = prepare(spec, signals)
    with torch.no_grad():
        return *encoder(ready.values, ready.mask), ready.counts


def check_batch(spec: dict[str, Any], encoder: SignalEncoder, signals: list[np.ndarray]) -> None:
    """Counts as announced, first places first, and a clip in a batch as the clip alone."""
    features, mask, counts = encoded(spec, encoder, signals)
    assert mask.sum(dim=1).tolist() == counts
    assert features.shape[2] == encoder.feature_size
    for row, (signal, count) in enumerate(zip(signals, counts, strict=True)):
        assert mask[row, :count].all()
        alone, _, (own,) = encoded(spec, encoder, [signal])
        assert own == count <= encoder.num_features
        torch.testing.assert_close(features[row, :count], alone[0, :count], atol=2e-5, rtol=1e-4)


def rebuilt(spec: dict[str, Any], encoder: SignalEncoder) -> SignalEncoder:
    """From JSON and the weights, as a saved model is."""
    again = build(json.loads(json.dumps(spec))).eval()
    again.load_state_dict(encoder.state_dict())
    return again


# --- spectrograms -------------------------------------------------------------------------------


def test_log_mel_is_that_of_transformers() -> None:
    samples = noise(400 + 160 * 57)
    filters = mel_filter_bank(257, 80, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney")
    window = window_function(400, "hann", periodic=True)
    expected = spectrogram(
        samples, window, 400, 160, 512, 2.0, center=False, mel_filters=filters, log_mel="log10"
    ).T
    found = log_mel(samples, MEL).numpy()
    assert found.shape == (58, 80)
    np.testing.assert_allclose(found, np.maximum(expected, expected.max() - 8), atol=1e-4)


@pytest.mark.parametrize("frequency", [250, 440, 1000, 3000, 6000])
def test_a_tone_sounds_in_the_band_that_slaneys_scale_puts_it_in(frequency: float) -> None:
    """Linear to 1 kHz (3 mel per 200 Hz), logarithmic above (27 mel per factor 6.4)."""

    def mel(hertz: float) -> float:
        if hertz < 1000:
            return 3 * hertz / 200
        return 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    samples = np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE)
    loudest = int(log_mel(samples, MEL).mean(dim=0).argmax())
    centre = (loudest + 1) * mel(8000) / 81  # 80 triangles between 82 points
    assert centre == pytest.approx(mel(frequency), abs=mel(8000) / 81)


@given(st.integers(1, 3000), st.sampled_from([8000, 11025, 16000, 44100]))
def test_every_sample_is_in_a_frame(samples: int, rate: int) -> None:
    spec = MEL | {"rate": rate, "bands": 20}
    window, hop = round(0.025 * rate), round(0.010 * rate)
    frames = num_frames(samples, spec)
    assert (frames - 1) * hop + window >= samples
    assert frames == 1 or (frames - 2) * hop + window < samples
    assert log_mel(np.ones(samples), spec).shape == (frames, 20)


def test_a_clip_is_standardised_whatever_its_level() -> None:
    quiet = standardised(log_mel(noise(8000), MEL), MEL)
    assert float(quiet.mean()) == pytest.approx(0, abs=1e-5)
    assert float(quiet.std(correction=0)) == pytest.approx(1, abs=1e-5)
    loud = standardised(log_mel(20 * noise(8000), MEL), MEL)
    torch.testing.assert_close(loud, quiet, atol=1e-4, rtol=1e-4)


def test_silence_is_zero() -> None:
    assert not standardised(log_mel(np.zeros(8000), MEL), MEL).any()


def test_eighty_decibels_are_kept() -> None:
    samples = np.concatenate([noise(8000), np.zeros(8000)])
    spectrum = log_mel(samples, MEL)
    assert float(spectrum.max() - spectrum.min()) == pytest.approx(8)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_bands_that_hold_no_frequency_are_refused() -> None:
    with pytest.raises(EncoderError, match="200 mel bands are too many"):
        log_mel(noise(8000), MEL | {"bands": 200})


# --- without an encoder -------------------------------------------------------------------------


def test_patches_are_frames_side_by_side(clips: Callable[..., list[Media]]) -> None:
    media = clips(8000, 12345)
    spec, encoder = load(None, media, {"patch": 7, "bands": 40})
    assert not list(encoder.parameters())
    assert encoder.feature_size == 280
    signal = decode(media[0], spec)
    frames = standardised(log_mel(signal, spec["mel"]), spec["mel"])
    missing = -len(frames) % 7
    expected = nn.functional.pad(frames, (0, 0, 0, missing)).reshape(-1, 280)
    features, mask, _ = encoded(spec, encoder, [signal])
    torch.testing.assert_close(features[0], expected)
    assert mask.all()
    check_batch(spec, encoder, [decode(medium, spec) for medium in media])


def test_normalised_by_the_training_data(clips: Callable[..., list[Media]]) -> None:
    media = clips(8000, 16000, 6000)
    spec, encoder = load("none", media, {"normalise": "data", "patch": 1})
    features, mask, _ = encoded(spec, encoder, [decode(medium, spec) for medium in media])
    frames = features[mask]
    torch.testing.assert_close(frames.mean(0), torch.zeros(80), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames.std(0, correction=0), torch.ones(80), atol=1e-4, rtol=0)


# --- the convolutional encoder ------------------------------------------------------------------


def test_convolutions_reduce_by_their_strides(clips: Callable[..., list[Media]]) -> None:
    media = clips(16000, 9000)
    spec, encoder = load("conv", media, {"width": 24, "strides": [2, 1, 3], "kernel": 5})
    assert encoder.fresh
    frames = num_frames(16000, spec["mel"])
    features, _, counts = encoded(spec, encoder, [decode(medium, spec) for medium in media])
    assert counts[0] == math.ceil(math.ceil(frames / 2) / 3) == features.shape[1]
    check_batch(spec, encoder, [decode(medium, spec) for medium in media])
    again = rebuilt(spec, encoder)
    assert torch.equal(
        encoded(spec, again, [noise(5000)])[0], encoded(spec, encoder, [noise(5000)])[0]
    )


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    strides=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    kernel=st.sampled_from([1, 3, 5]),
)
def test_what_stands_in_padding_does_not_matter(
    lengths: list[int], strides: list[int], kernel: int
) -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(8, 12, strides, kernel, 0.0, frames=60).eval()
    values = torch.randn(len(lengths), 60, 8)
    mask = torch.arange(60) < torch.tensor(lengths)[:, None]
    features, kept = encoder(values.masked_fill(~mask.unsqueeze(-1), math.nan), mask)
    for row, length in enumerate(lengths):
        alone, own = encoder(values[row : row + 1, :length])
        assert own.all()
        assert int(kept[row].sum()) == alone.shape[1]
        torch.testing.assert_close(features[row, : alone.shape[1]], alone[0])


def test_every_weight_of_the_convolutions_learns() -> None:
    encoder = ConvEncoder(8, 12, [2, 2], 3, 0.0, frames=40)
    features, _ = encoder(torch.randn(2, 40, 8))
    (features * torch.randn_like(features)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


# --- speech models ------------------------------------------------------------------------------


def whisper() -> tuple[Any, Any]:
    config = transformers.WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=50,
        max_source_positions=100,
        **SPECIAL,
    )
    extractor = transformers.WhisperFeatureExtractor(chunk_length=2)
    return transformers.WhisperForConditionalGeneration(config), extractor


def wav2vec2() -> tuple[Any, Any]:
    config = transformers.Wav2Vec2Config(
        **SMALL,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        vocab_size=32,
    )
    return transformers.Wav2Vec2ForCTC(config), transformers.Wav2Vec2FeatureExtractor()


def speech2text() -> tuple[Any, Any]:
    """Spectrograms of varying length, the encoder of an encoder-decoder."""
    config = transformers.Speech2TextConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=50,
        conv_channels=16,
        **SPECIAL,
    )
    extractor = transformers.Speech2TextFeatureExtractor(do_ceptral_normalize=False)
    return transformers.Speech2TextModel(config), extractor


def ast() -> tuple[Any, Any]:
    config = transformers.ASTConfig(**SMALL, max_length=96, num_mel_bins=36)
    extractor = transformers.ASTFeatureExtractor(max_length=96, num_mel_bins=36)
    return transformers.ASTForAudioClassification(config), extractor


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Callable[[], tuple[Any, Any]]], tuple[str, Any, Any]]:
    """A tiny model with random weights as a folder, the model and its feature extractor."""

    def make(family: Callable[[], tuple[Any, Any]]) -> tuple[str, Any, Any]:
        torch.manual_seed(0)
        model, extractor = family()
        model.save_pretrained(tmp_path / "model")
        extractor.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model"), model.eval(), extractor

    return make


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("family", [whisper, wav2vec2, speech2text, ast])
def test_speech_models_do_not_see_padding(family: Any, saved: Any) -> None:
    name, _, _ = saved(family)
    spec, encoder = load(name, [], {"max_seconds": 0.9})
    check_batch(spec, encoder, [noise(n, n) for n in (8000, 14400, 5000, 8000, 100)])
    again = rebuilt(spec, encoder)
    assert torch.equal(
        encoded(spec, again, [noise(5000)])[0], encoded(spec, encoder, [noise(5000)])[0]
    )


@pytest.mark.parametrize("family", [wav2vec2, speech2text])
@pytest.mark.parametrize("seconds", [0.004, 3.0])
def test_the_longest_clip_gives_the_most_features(family: Any, saved: Any, seconds: float) -> None:
    name, _, _ = saved(family)
    spec, encoder = load(name, [], {"max_seconds": seconds})
    (count,) = prepare(spec, [noise(round(seconds * RATE) + 1)]).counts
    assert count == encoder.num_features > 0


@pytest.mark.parametrize("layer", [-1, 1])
def test_whispers_features_are_its_encoders(saved: Any, layer: int) -> None:
    """As many as the clip is long: 20 ms each; those of the padding are masked."""
    name, model, extractor = saved(whisper)
    spec, encoder = load(name, [], {"layer": layer})
    features, mask, counts = encoded(spec, encoder, [noise(8000), noise(8001), noise(32000)])
    assert counts == [25, 26, 100]
    assert mask.shape == (3, 100)
    inputs = extractor(noise(8000), sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        output = model.get_encoder()(inputs, output_hidden_states=True)
    reference = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
    torch.testing.assert_close(features[0, :25], reference[0, :25])
    assert spec["max_seconds"] == 2.0


def test_wav2vec2_is_read_clip_by_clip(saved: Any) -> None:
    """Its group norm runs over time: a padded batch would give other features than the clip."""
    name, model, extractor = saved(wav2vec2)
    spec, encoder = load(name, [], {"max_seconds": 1})
    assert spec["steps"] == {"first": 400, "stride": 320}  # its seven convolutions
    signals = [noise(16000), noise(9000, 1)]
    features, _, counts = encoded(spec, encoder, signals)
    for row, signal in enumerate(signals):
        inputs = extractor(signal, sampling_rate=RATE, return_tensors="pt").input_values
        with torch.no_grad():
            reference = model.wav2vec2(inputs).last_hidden_state[0]
        assert len(reference) == counts[row] == model._get_feat_extract_output_lengths(len(signal))
        torch.testing.assert_close(features[row, : counts[row]], reference, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_asts_patches_stand_in_order_of_time(saved: Any) -> None:
    """Its own order is frequency by frequency, behind two class tokens."""
    name, model, extractor = saved(ast)
    spec, encoder = load(name, [], {})
    rows, columns = 3, 9  # (36 - 16) / 10 + 1, (96 - 16) / 10 + 1
    features, _, counts = encoded(spec, encoder, [noise(4800)])
    assert encoder.num_features == rows * columns
    assert counts == [3 * rows]  # 0.3 s, a patch begins every 0.1 s
    inputs = extractor(noise(4800), sampling_rate=RATE, return_tensors="pt").input_values
    with torch.no_grad():
        own = model.audio_spectrogram_transformer(inputs).last_hidden_state[0, 2:]
    for time in range(columns):
        for row in range(rows):
            torch.testing.assert_close(features[0, time * rows + row], own[row * columns + time])


def test_an_encoder_that_trains_is_not_masked_at_random(saved: Any) -> None:
    """wav2vec 2.0 would hide spans and skip layers, and fail on short clips."""
    name, _, _ = saved(wav2vec2)
    spec, encoder = load(name, [], {"max_seconds": 1})
    config = encoder.train().tower.config
    assert not config.apply_spec_augment
    assert config.layerdrop == 0
    ready = prepare(spec, [noise(1000), noise(8000)])
    features, _ = encoder(ready.values, ready.mask)
    features.sum().backward()


def test_pickled_weights_are_read_only_where_allowed(saved: Any) -> None:
    name, model, _ = saved(whisper)
    for file in Path(name).glob("*.safetensors"):
        file.unlink()
    torch.save(model.state_dict(), Path(name) / "pytorch_model.bin")
    with pytest.raises(UsageError, match="--allow-pickle"):
        load(name, [], {})
    _, encoder = load(name, [], {}, allow_pickle=True)
    expected = model.get_encoder().conv1.weight
    assert torch.equal(encoder.tower.conv1.weight, expected)


def test_a_model_that_reads_no_speech(saved: Any, tmp_path: Path) -> None:
    transformers.LlamaConfig(**SMALL).save_pretrained(tmp_path / "text")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load(str(tmp_path / "text"), [], {})
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "text")
    with pytest.raises(UsageError, match="reads input_ids"):
        load(str(tmp_path / "text"), [], {})
    with pytest.raises(UsageError, match="cannot be loaded"):
        load(str(tmp_path / "nothing"), [], {})
    name, _, _ = saved(whisper)
    with pytest.raises(UsageError, match="no hidden layer 9"):
        load(name, [], {"layer": 9})


# --- measured lengths ---------------------------------------------------------------------------


LAYERS = st.tuples(st.integers(1, 8), st.integers(1, 4)).flatmap(
    lambda layer: st.tuples(*map(st.just, layer), st.integers(0, (layer[0] - 1) // 2))
)


@settings(max_examples=30, deadline=None)
@given(st.lists(LAYERS, max_size=4))
def test_measured_lengths_are_those_of_the_convolutions(
    layers: list[tuple[int, int, int]],
) -> None:
    """Floors of floors are one floor: any stack is one step function, found by trying."""
    stack = nn.Sequential(*(nn.Conv1d(1, 1, k, s, p, device="meta") for k, s, p in layers))

    def count(length: int) -> int:
        return stack(torch.empty(1, 1, length, device="meta")).shape[-1]

    steps = steps_of(count, 2000)
    for length in (steps["first"], steps["first"] + 1, 1999, 2001, 2500, 7777):
        assert num_features(length, steps) == count(length)


def test_an_encoder_that_pools_has_a_constant_length() -> None:
    assert steps_of(lambda length: 3, 100) == {"constant": 3}
    with pytest.raises(EncoderError, match="not a step function"):
        steps_of(lambda length: length * length, 100)
    with pytest.raises(EncoderError, match="not a step function"):
        steps_of(lambda length: 10000 - length, 100)


# --- a user's module ----------------------------------------------------------------------------


class Framed(nn.Module):
    """Frames of 200 samples through an affine map."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.map = nn.Linear(200, width)

    def forward(self, waveforms: Tensor) -> Tensor:
        return self.map(waveforms.unfold(1, 200, 100))


class Pooled(Framed):
    def forward(self, waveforms: Tensor) -> Tensor:
        return super().forward(waveforms).mean(dim=1, keepdim=True)


class Long(Framed):
    def forward(self, waveforms: Tensor) -> Tensor:
        return super().forward(waveforms[:, 9000:])


class Flat(Framed):
    def forward(self, waveforms: Tensor) -> Tensor:
        return super().forward(waveforms).flatten(1)


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mine")
    vars(module).update(Framed=Framed, Pooled=Pooled, Flat=Flat, Long=Long, function=lambda: 3)
    monkeypatch.setitem(sys.modules, "mine", module)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("name", ["mine:Framed", "mine:Pooled"])
def test_a_users_module(name: str, clips: Callable[..., list[Media]]) -> None:
    media = clips(8000, 4321, 30)
    spec, encoder = load(name, media, {"rate": 8000, "arguments": {"width": 6}})
    assert encoder.feature_size == 6
    signals = [decode(medium, spec) for medium in media]
    check_batch(spec, encoder, signals)
    again = rebuilt(spec, encoder)
    assert torch.equal(encoded(spec, again, signals)[0], encoded(spec, encoder, signals)[0])


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine:Absent", "cannot be imported"),
        ("absent:Framed", "cannot be imported"),
        ("mine:function", "not a torch.nn.Module"),
        ("mine:Flat", "not \\(n, N, d\\)"),
        ("mine:Long", "fails on 8007 samples"),
    ],
)
def test_modules_that_will_not_do(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(name, [], {})


# --- what is set --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            None,
            {"patches": 3},
            r"no option 'patches'; did you mean patch\? choose from bands, hop, longer, max_seconds",
        ),
        ("conv", {"kernel": 4}, "must be odd"),
        ("conv", {"patch": 4}, "no option 'patch'"),
        ("none", {"longer": "cut"}, "'refuse' or 'crop'"),
        ("none", {"hop": 1e-6}, "less than one sample"),
        ("none", {"normalise": "data"}, "needs training clips"),
    ],
)
def test_wrong_options(name: str | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(name, [], options)


def test_the_longest_clip_sets_the_length(clips: Callable[..., list[Media]]) -> None:
    """Half as long again is room for clips of the evaluation; beyond, they are refused by name."""
    media = clips(8000, 16000)
    spec, encoder = load(None, media, {"patch": 1})
    assert spec["max_seconds"] == 1.5
    (longer,) = clips(24000)
    _, _, (count,) = encoded(spec, encoder, [decode(longer, spec)])
    assert count == encoder.num_features
    (too_long,) = clips(24001)
    with pytest.raises(SignalError, match=r"longer than the limit of 1.5 s"):
        decode(too_long, spec)


def test_a_training_clip_that_is_too_long(clips: Callable[..., list[Media]]) -> None:
    media = clips(8000, 32000, 24000)
    with pytest.raises(SignalError, match=r"2.0 s long \(2 of 3 .*takes 1 s") as caught:
        load(None, media, {"max_seconds": 1})
    assert caught.value.media == media[1]
    spec, encoder = load(None, media, {"max_seconds": 1, "longer": "crop", "patch": 1})
    signals = [decode(medium, spec) for medium in media]
    assert [len(signal) for signal in signals] == [8000, 16000, 16000]
    check_batch(spec, encoder, signals)


@settings(max_examples=30, deadline=None)
@given(rate=st.sampled_from([8000, 11025, 22050, 44100, 48000]), seconds=st.floats(0.05, 0.4))
def test_no_clip_within_the_limit_gives_more_features_than_announced(
    rate: int, seconds: float
) -> None:
    import io

    buffer = io.BytesIO()
    soundfile.write(buffer, noise(round(rate * 0.5)), rate, format="WAV")
    media = Media("audio", data=buffer.getvalue())
    options = {"max_seconds": seconds, "longer": "crop", "patch": 1}
    spec, encoder = load(None, [media], options)
    _, _, (count,) = encoded(spec, encoder, [decode(media, spec)])
    assert count <= encoder.num_features


# --- Whisper in Qwen2-Audio's form --------------------------------------------------------------


QWEN2 = {"form": "qwen2_audio"}


def test_qwen2_form_counts_as_its_processor(saved: Any) -> None:
    """Qwen2AudioProcessor's formula over the frames that its feature extractor calls present."""
    name, _, extractor = saved(whisper)
    spec, encoder = load(name, [], QWEN2)
    lengths = [400, 641, 1280, 1281, 9_600, 9_601, 15_999, 32_000]
    signals = [noise(length) for length in lengths]
    features, mask, counts = encoded(spec, encoder, signals)
    found = extractor(signals, sampling_rate=RATE, return_attention_mask=True, padding="max_length")
    frames = np.asarray(found["attention_mask"]).sum(-1)
    assert counts == [(((f - 1) // 2 + 1) - 2) // 2 + 1 for f in frames.tolist()]
    assert features.shape == (len(lengths), 50, 16)  # half of Whisper's own
    assert mask.sum(dim=1).tolist() == counts


def test_qwen2_form_hides_what_stands_in_padding(saved: Any) -> None:
    """Silence behind a clip or noise: it is not heard, where Whisper's own encoder hears it."""
    name, _, _ = saved(whisper)
    spec, encoder = load(name, [], QWEN2)
    clip = prepare(spec, [noise(9_600)])
    other = clip.values.clone()
    other[..., 70:] = torch.randn(1, other.shape[1], other.shape[2] - 70)
    assert isinstance(encoder, SpeechTower)
    with torch.no_grad():
        first, mask = encoder(clip.values, clip.mask)
        second, _ = encoder(other, clip.mask)
        changed = encoder.hidden(other) - encoder.hidden(clip.values)
    torch.testing.assert_close(first[mask][:-1], second[mask][:-1], atol=1e-6, rtol=1e-6)
    assert float(changed[mask][:-1].abs().max()) > 1e-4


def test_qwen2_form_is_of_whisper_at_its_output(saved: Any) -> None:
    name, _, _ = saved(wav2vec2)
    with pytest.raises(UsageError, match=r"is for Whisper.*wav2vec2"):
        load(name, [], QWEN2)
    name, _, _ = saved(whisper)
    with pytest.raises(UsageError, match="leave layer at -1"):
        load(name, [], {**QWEN2, "layer": 1})


# --- Whisper in Voxtral's form ------------------------------------------------------------------


def wide_whisper() -> tuple[Any, Any]:
    model, extractor = whisper()
    model.config.encoder_ffn_dim = 4 * model.config.d_model
    return transformers.WhisperForConditionalGeneration(model.config), extractor


def test_voxtral_form_is_whispers_encoder_on_its_whole_window(saved: Any) -> None:
    name, model, extractor = saved(wide_whisper)
    spec, encoder = load(name, [], {"form": "voxtral"})
    signals = [noise(length) for length in (100, 9_600, 32_000)]
    features, mask, counts = encoded(spec, encoder, signals)
    assert counts == [100] * 3  # however short the clip
    assert bool(mask.all())
    inputs = extractor(signals, sampling_rate=RATE, return_tensors="pt")["input_features"]
    with torch.no_grad():
        expected = model.get_encoder()(inputs).last_hidden_state
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-6)
    again = rebuilt(spec, encoder)
    assert torch.equal(encoded(spec, again, signals)[0], features)


def test_voxtral_form_has_a_feed_forward_of_four_widths(saved: Any) -> None:
    name, _, _ = saved(whisper)
    with pytest.raises(UsageError, match=r"four times the width, .* is 32 at a width of 16"):
        load(name, [], {"form": "voxtral"})
