"""Frames of a clip through an image encoder: pixels as the image processor makes them, pooling, masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

import tiny
from modalign.data.records import Media
from modalign.data.video import Clip, grey_video
from modalign.encoders.base import EncoderError
from modalign.encoders.image import build as build_image_encoder
from modalign.encoders.video import FramesEncoder, build, prepare, sinusoids
from modalign.errors import UsageError
from modalign.models.encoders.video import decode, load, pixel_recipe

PATCHES = {"kind": "patches", "patch_size": 8, "image_size": [24, 24]}  # a grid of 3 x 3
POOLING = ["none", "mean", "adaptive:2", "adaptive:3", "spatiotemporal"]


def clips(*lengths: int, size: tuple[int, int] = (30, 40)) -> list[Clip]:
    rng = np.random.default_rng(0)
    return [
        Clip(rng.integers(0, 256, (n, *size, 3), dtype=np.uint8), np.arange(n) / 10)
        for n in lengths
    ]


def loaded(name: str | None = None, **options: Any) -> tuple[dict[str, Any], FramesEncoder]:
    return load(name, [], {"image_size": 24, **options})


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
        ),
        lambda: transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 20}, crop_size={"height": 25, "width": 29}
        ),
        lambda: transformers.SiglipImageProcessorPil(size={"height": 24, "width": 32}),
        lambda: transformers.ViTImageProcessorPil(
            size={"height": 24, "width": 24}, resample=0, do_normalize=False
        ),
        lambda: transformers.BitImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 24, "width": 24}, image_std=[0.2] * 3
        ),
    ],
)
@pytest.mark.parametrize("size", [(30, 40), (41, 23), (24, 24), (7, 100)])
def test_pixels_are_the_image_processors(make: Callable[[], Any], size: tuple[int, int]) -> None:
    processor = make()
    spec = {
        "frames": 3,
        "temporal_pooling": "none",
        "frame_features": 1,
        "pixels": json.loads(json.dumps(pixel_recipe(processor))),
    }
    clip = clips(3, size=size)[0]
    theirs = processor(images=list(clip.frames), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepare(spec, [clip]).values[0], theirs, atol=1e-5, rtol=1e-5)


def test_processors_that_do_more_are_refused() -> None:
    processor = transformers.ConvNextImageProcessorPil(
        size={"shortest_edge": 32}
    )  # crops by a share
    with pytest.raises(UsageError, match="ConvNextImageProcessorPil does more than resize"):
        pixel_recipe(processor)
    padded = transformers.ViTImageProcessorPil(size={"longest_edge": 32})
    with pytest.raises(UsageError, match="no fixed size"):
        pixel_recipe(padded)


def test_a_large_frame_is_shrunk_before_it_is_kept() -> None:
    spec, _ = loaded(image_size=24)
    assert decode(grey_video(480, 200, np.arange(3)), spec).frames.shape == (3, 50, 120, 3)
    assert decode(grey_video(90, 60, np.arange(3)), spec).frames.shape == (3, 60, 90, 3)


# --- features -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["siglip", "clip", "dinov2"])
def test_each_frame_is_an_image(kind: str, tower_folder: Callable[..., Path]) -> None:
    folder = str(tower_folder(kind))
    spec, encoder = loaded(folder, frames=3, positions=False)
    ready = prepare(spec, clips(3, 2))
    with torch.no_grad():
        features, mask = encoder(ready.values, ready.mask)
        image = encoder.image.features(ready.values[1, 1][None])
    assert features.shape == (2, 3 * tiny.PATCHES, 24)
    assert mask.sum(1).tolist() == ready.counts == [3 * tiny.PATCHES, 2 * tiny.PATCHES]
    torch.testing.assert_close(features[1, tiny.PATCHES : 2 * tiny.PATCHES], image[0])
    assert (encoder.frames, encoder.frame_grid, encoder.grid) == (3, (4, 4), None)


@pytest.mark.parametrize("pooling", POOLING)
@pytest.mark.parametrize("space", [1, 2, "mean"])
def test_counts_shapes_and_padding(pooling: str, space: int | str) -> None:
    """As many features as announced, the same alone and among others, whatever the padding holds."""
    spec, encoder = loaded(frames=5, temporal_pooling=pooling, spatial_pooling=space)
    signals = clips(5, 1, 3, 2)
    ready = prepare(spec, signals)
    poisoned = ready.values.masked_fill(~ready.mask[:, :, None, None, None], float("nan"))  # type: ignore[index]
    features, mask = encoder(poisoned, ready.mask)
    assert features.shape == (4, encoder.num_features, encoder.feature_size)
    assert mask.sum(1).tolist() == ready.counts
    assert features.isfinite().all()
    for row, signal in enumerate(signals):
        own = prepare(spec, [signal])
        alone, alone_mask = encoder(own.values, own.mask)
        assert alone_mask.all()
        assert own.counts == [ready.counts[row]] == [alone.shape[1]]
        torch.testing.assert_close(features[row, : ready.counts[row]], alone[0])
    whole = encoder(ready.values[:1])[0]  # without a mask all frames count
    torch.testing.assert_close(whole, features[:1])


def test_a_batch_of_short_clips() -> None:
    spec, encoder = loaded(frames=5, temporal_pooling="adaptive:3")
    ready = prepare(spec, clips(2, 1))
    features, mask = encoder(ready.values, ready.mask)
    assert mask.sum(1).tolist() == ready.counts == [18, 9]
    assert features.shape[1] == 18


def test_adaptive_pooling_is_torchs() -> None:
    for frames in range(1, 9):
        for slots in range(1, frames + 1):
            spec, encoder = loaded(frames=9, temporal_pooling=f"adaptive:{slots}", positions=False)
            _, plain = loaded(frames=9, positions=False)
            ready = prepare(spec, clips(frames))
            maps = plain(ready.values)[0].unflatten(1, (frames, 9))  # (1, F, M, d)
            expected = functional.adaptive_avg_pool1d(
                maps.permute(0, 2, 3, 1).flatten(0, 1), slots
            ).permute(2, 0, 1)
            torch.testing.assert_close(
                encoder(ready.values)[0][0].unflatten(0, (slots, 9)), expected
            )


def test_mean_over_time_and_space() -> None:
    """Video-ChatGPT: a mean over time at every place, then a mean over space of every frame."""
    _, plain = loaded(frames=4, positions=False)
    spec, encoder = loaded(frames=4, temporal_pooling="spatiotemporal", positions=False)
    ready = prepare(spec, clips(4, 2))
    features, _ = encoder(ready.values, ready.mask)
    for row, frames in ((0, 4), (1, 2)):
        maps = plain(ready.values[row : row + 1, :frames])[0][0].unflatten(0, (frames, 9))
        torch.testing.assert_close(features[row, :9], maps.mean(0))
        torch.testing.assert_close(features[row, 9 : 9 + frames], maps.mean(1))
    assert (encoder.frames, encoder.frame_grid, encoder.num_features) == (1, None, 13)


def test_spatial_pooling_averages_squares() -> None:
    image = {"kind": "patches", "patch_size": 6, "image_size": [24, 24]}
    pooled = FramesEncoder(build_image_encoder(image), 2, spatial_pooling=2, positions=False)
    plain = FramesEncoder(build_image_encoder(image), 2, positions=False)
    values = torch.randn(1, 2, 3, 24, 24)
    maps = plain(values)[0].reshape(
        2, 2, 2, 2, 2, -1
    )  # frames, rows, in a row, columns, in a column
    torch.testing.assert_close(pooled(values)[0].reshape(2, 2, 2, -1), maps.mean((2, 4)))
    assert (pooled.frame_grid, pooled.num_features) == ((2, 2), 8)
    odd = FramesEncoder(build_image_encoder(PATCHES), 2, spatial_pooling=2)
    assert odd.frame_grid == (2, 2)  # a side of 3 is pooled to ceil(3 / 2)


def test_positions_tell_the_order() -> None:
    """Equal frames differ by their time only; by hand: sin and cos of t / 10000^(2 i / d)."""
    spec, encoder = loaded(frames=4)
    still = Clip(np.repeat(clips(1)[0].frames, 4, axis=0), np.arange(4.0))
    features = encoder(prepare(spec, [still]).values)[0][0].unflatten(0, (4, 9))
    d = encoder.feature_size
    for time in range(4):
        added = features[time] - features[0]
        for i in (0, 1, d // 2 - 1):
            angle = time / 10_000 ** (2 * i / d)
            assert added[:, 2 * i].numpy() == pytest.approx(np.sin(angle), abs=1e-4)
            assert added[:, 2 * i + 1].numpy() == pytest.approx(np.cos(angle) - 1, abs=1e-4)
    assert sinusoids(3, 5).shape == (3, 5)


@pytest.mark.parametrize("options", [{"temporal_pooling": "mean"}, {"frames": 1}])
def test_what_is_left_of_one_frame_lies_on_its_grid(options: dict[str, Any]) -> None:
    _, encoder = loaded(**options)
    assert (encoder.grid, encoder.frame_grid, encoder.num_features) == ((3, 3), (3, 3), 9)


def test_a_mean_forgets_the_order_and_frames_keep_it() -> None:
    clip = clips(4)[0]
    backwards = Clip(clip.frames[::-1].copy(), clip.times)
    for pooling, same in (("mean", True), ("none", False), ("adaptive:2", False)):
        spec, encoder = loaded(frames=4, temporal_pooling=pooling)
        ready = prepare(spec, [clip, backwards])
        first, second = encoder(ready.values, ready.mask)[0]
        assert torch.allclose(first, second, atol=1e-5) == same


def test_a_rebuilt_encoder_is_the_same(tower_folder: Callable[..., Path]) -> None:
    spec, encoder = loaded(str(tower_folder("siglip")), frames=3, temporal_pooling="adaptive:2")
    spec = json.loads(json.dumps(spec))
    again = build(spec).eval()
    again.load_state_dict(encoder.state_dict())
    ready = prepare(spec, clips(3, 1))
    with torch.no_grad():
        for one, other in zip(
            encoder(ready.values, ready.mask), again(ready.values, ready.mask), strict=True
        ):
            assert torch.equal(one, other)
    assert again.num_features == encoder.num_features


# --- what is refused ----------------------------------------------------------------------------


def test_options_are_checked() -> None:
    with pytest.raises(
        UsageError,
        match=r"encoder of video: no option 'fps'; (did .*)?choose from .*sampling",
    ):
        loaded(fps=3)
    for wrong in ("max", "adaptive", "adaptive:0", "adaptive:9", "adaptive:x"):
        with pytest.raises(UsageError, match=f"temporal_pooling '{wrong}': give none, mean"):
            loaded(frames=8, temporal_pooling=wrong)
    with pytest.raises(UsageError, match="sampling"):
        loaded(sampling="random")
    with pytest.raises(UsageError, match="image encoder 'none-such'"):
        loaded("none-such")
    with pytest.raises(EncoderError, match="known: frames"):
        build({"kind": "other"})


def test_signals_are_checked() -> None:
    spec, _ = loaded(frames=2)
    with pytest.raises(EncoderError, match="3 frames; the model takes 1 to 2"):
        prepare(spec, clips(3))
    with pytest.raises(EncoderError, match=r"not \(F, H, W, 3\) uint8"):
        prepare(spec, [np.zeros((2, 8, 8, 3), np.float32)])
    assert prepare(spec, [clips(2)[0].frames]).counts == [18]  # plain arrays will do


def test_media_decode_to_what_the_spec_says() -> None:
    spec, encoder = loaded(frames=3, sampling="scene")
    clip = decode(Media("video", data=grey_video(32, 32, np.arange(10) / 10).data), spec)
    ready = prepare(spec, [clip])
    assert encoder(ready.values, ready.mask)[0].shape == (1, 27, 192)
    assert ready.values.abs().max() < 0.01  # grey is the middle
