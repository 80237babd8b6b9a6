"""Series encoders against numpy: patches, normalisation, gaps; padding and level change nothing wrongly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modalign.data.records import Media
from modalign.data.series import open_series
from modalign.data.signals import SignalError
from modalign.encoders.base import EncoderError
from modalign.encoders.series import build, prepare, statistics
from modalign.errors import UsageError
from modalign.models.encoders.series import decode, load

FLOATS = st.floats(-1000, 1000, width=32)
VALUES = FLOATS | st.just(float("nan"))


def inline(value: Any) -> Media:
    return Media("series", data=json.dumps(np.asarray(value).tolist()).encode())


def series(channels: int = 2, values: Any = VALUES) -> Any:
    arrays = st.integers(1, 11).flatmap(
        lambda steps: hnp.arrays(np.float32, (steps, channels), elements=values)
    )
    return arrays.filter(lambda array: not np.isnan(array).all())


def loaded(name: str | None, signals: list[np.ndarray], **options: Any) -> Any:
    torch.manual_seed(0)
    return load(name, [inline(signal) for signal in signals], options)


@settings(deadline=None)
@given(st.lists(series(), min_size=1, max_size=4), st.integers(1, 5))
def test_patches_against_numpy(signals: list[np.ndarray], patch: int) -> None:
    spec, encoder = loaded(None, signals, patch=patch)
    assert spec == json.loads(json.dumps(spec))
    every = np.concatenate(signals).astype(np.float64)
    for channel in range(2):
        column = every[:, channel][~np.isnan(every[:, channel])]
        usual = (column.mean(), column.std()) if len(column) else (0.0, 0.0)
        assert spec["mean"][channel] == pytest.approx(usual[0], abs=1e-6, rel=1e-6)
        if usual[1] > 1e-4:
            assert spec["scale"][channel] == pytest.approx(usual[1], rel=1e-5)
    ready = prepare(spec, signals)
    features, mask = encoder(ready.values, ready.mask)
    assert mask.sum(1).tolist() == ready.counts == [-(-len(s) // patch) for s in signals]
    assert encoder.num_features == max(ready.counts)
    for row, signal in enumerate(signals):
        steps = features[row][mask[row]][:, : 4 * patch].reshape(-1, 4).numpy()
        signal = signal.astype(np.float64)
        assert np.array_equal(steps[: len(signal), 2:], np.isnan(signal))
        assert (steps[len(signal) :] == [0, 0, 1, 1]).all()
        for channel in range(2):
            there = ~np.isnan(signal[:, channel])
            column = signal[there, channel]
            found = steps[: len(signal), channel]
            assert (found[~there] == 0).all()
            if len(column) and column.std() > 1e-3 * (1 + abs(column).max()):
                expected = (column - column.mean()) / column.std()
                np.testing.assert_allclose(found[there], expected, atol=1e-4)


@given(series(1, FLOATS), st.floats(0.1, 100), st.floats(-100, 100))
def test_shape_is_told_apart_from_level(signal: np.ndarray, scale: float, shift: float) -> None:
    """x -> a x + b leaves the steps as they are; level and scale of the patch follow it exactly."""
    spec = {
        "kind": "patches",
        "patch": 4,
        "channels": 1,
        "steps": 99,
        "mean": [2.0],
        "scale": [1e4],
    }
    signal = signal.astype(np.float64)
    mean, deviation = signal.mean(), signal.std()
    if deviation < 1e-3 * (1 + abs(signal).max()):
        return
    first = prepare(spec, [signal]).values[0]
    second = prepare(spec, [signal * scale + shift]).values[0]
    torch.testing.assert_close(first[:, :-2], second[:, :-2], atol=1e-4, rtol=1e-4)
    expected = [(mean * scale + shift - 2) / 1e4, deviation * scale / 1e4]
    np.testing.assert_allclose(second[0, -2:], np.clip(expected, -10, 10), rtol=1e-4, atol=1e-6)


@settings(deadline=None)
@given(
    st.lists(series(), min_size=1, max_size=3), st.integers(1, 4), st.sampled_from([None, "conv"])
)
def test_padding_and_what_stands_there_do_not_matter(
    signals: list[np.ndarray], patch: int, name: str | None
) -> None:
    longest = np.ones((17, 2), np.float32)
    spec, encoder = loaded(name, [*signals, longest], patch=patch, **({"width": 6} if name else {}))
    ready = prepare(spec, [*signals, longest])
    assert ready.mask is not None
    with torch.no_grad():
        together, mask = encoder(ready.values, ready.mask)
        noisy = torch.where(ready.mask[..., None], ready.values, float("nan"))
        again, _ = encoder(noisy, ready.mask)
        torch.testing.assert_close(together[mask], again[mask], rtol=0, atol=0)
        for row, signal in enumerate(signals):
            one = prepare(spec, [signal])
            alone, alone_mask = encoder(one.values, one.mask)
            assert alone_mask.all()
            torch.testing.assert_close(together[row][mask[row]], alone[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(encoder(one.values)[0], alone, atol=1e-6, rtol=1e-5)


def test_one_point_constant_and_missing_channels() -> None:
    spec, encoder = loaded(None, [np.array([[1.0, np.nan], [3, 5]])], patch=2)
    assert (spec["mean"], spec["scale"]) == ([2, 5], [1, 1])
    for signal in ([[4.0, np.nan]], [[4.0, np.nan]] * 2, [[1e-30, 7]], [[1e30, -1e30]]):
        values = prepare(spec, [np.array(signal)]).values
        assert values.isfinite().all()
        assert values[..., :2].abs().sum() == 0  # nothing varies
    values = prepare(spec, [np.array([[4.0, np.nan]])]).values[0, 0]
    # two steps of (value, value, gap, gap), then levels (4 - 2) / 1 and none, scales 0
    assert values.tolist() == [0, 0, 0, 1, 0, 0, 1, 1, 2, 0, 0, 0]
    assert encoder.feature_size == 12
    constant = np.full((1000, 1), 0.1, dtype=np.float32)
    assert statistics(torch.from_numpy(constant).double())[1].item() == 0


def test_conv_is_its_formula() -> None:
    """One patch without neighbours: convolutions written out as sums over zero-padded steps."""
    signal = np.array([[1.0], [np.nan], [5.0], [0.0]])
    spec, encoder = loaded("conv", [signal], patch=4, width=3)
    values = prepare(spec, [signal]).values
    steps = values[0, 0, :8].reshape(4, 2).numpy()

    def convolved(inputs: np.ndarray, layer: Any) -> np.ndarray:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        padded = np.pad(inputs, ((1, 1), (0, 0)))
        sums = [
            np.einsum("oik,ki->o", weight, padded[t : t + 3]) + bias for t in range(len(inputs))
        ]
        return torch.nn.functional.gelu(torch.tensor(np.array(sums))).numpy()

    hidden = convolved(convolved(steps, encoder.first), encoder.second)
    joined = np.einsum("oik,ki->o", encoder.join.weight.detach().numpy(), hidden)
    joined = torch.tensor(joined).float() + encoder.join.bias + encoder.levels(values[0, 0, 8:])
    with torch.no_grad():
        features, mask = encoder(values)
    torch.testing.assert_close(features[0, 0], encoder.norm(joined).detach(), atol=1e-5, rtol=1e-4)
    assert mask.all()
    assert encoder.feature_size == 3


def test_a_rebuilt_encoder_is_the_same_and_trains() -> None:
    spec, encoder = loaded("conv", [np.random.default_rng(0).normal(size=(9, 2))])
    again = build(json.loads(json.dumps(spec)))
    again.load_state_dict(encoder.state_dict())
    values = torch.randn(2, 3, 2 * 8 * 2 + 4)
    assert torch.equal(again(values)[0], encoder(values)[0])
    (encoder(values)[0] * torch.randn(64)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_series_that_do_not_fit_the_training_data() -> None:
    spec, _ = loaded(None, [np.ones((5, 2))])
    with pytest.raises(SignalError, match=r"6 steps, but the model takes at most 5.*max_steps=6"):
        decode(inline(np.ones((6, 2))), spec)
    with pytest.raises(SignalError, match="1 channels, but the model takes 2"):
        decode(inline([1, 2]), spec)
    with pytest.raises(SignalError, match="number of channels 1; 2 of 3 media"):
        loaded(None, [np.ones((5, 2)), np.ones((5, 1)), np.ones((3, 2))])
    for shape in ((6, 2), (5, 1), (0, 2)):
        with pytest.raises(EncoderError, match="the model takes"):
            prepare(spec, [np.ones(shape)])
    spec, encoder = loaded(None, [np.ones((5, 2))], max_steps=20)
    assert decode(inline(np.ones((20, 2))), spec).shape == (20, 2)
    assert encoder.num_features == 3


def test_wrong_settings() -> None:
    media = [inline([1, 2])]
    assert open_series(media[0]).shape == (2, 1)
    with pytest.raises(UsageError, match="choose none or conv"):
        load("patchtst", media, {})
    with pytest.raises(
        UsageError,
        match=r"no option 'stride'; (did .*)?choose from max_steps, patch, width",
    ):
        load(None, media, {"stride": 4})
    with pytest.raises(UsageError, match="patch"):
        load(None, media, {"patch": 0})
    with pytest.raises(UsageError, match="max_steps=1, but a training medium has 2 steps"):
        load(None, media, {"max_steps": 1})
    with pytest.raises(UsageError, match="no series in the training data"):
        load(None, [], {})
    with pytest.raises(EncoderError, match="known: patches, conv"):
        build({"kind": "other"})
