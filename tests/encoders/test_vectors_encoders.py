"""The identity encoder: padding never matters, standardising is the formula, what is too long is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modalign.data.records import Media
from modalign.data.signals import SignalError
from modalign.encoders.base import EncoderError
from modalign.encoders.vectors import build, prepare
from modalign.errors import UsageError
from modalign.models.encoders.vectors import decode, load


def inline(value: Any) -> Media:
    return Media("vectors", data=json.dumps(value).encode())


FLOATS = st.floats(-100, 100, width=32)
SIGNALS = st.lists(
    st.integers(1, 5).flatmap(lambda n: hnp.arrays(np.float32, (n, 3), elements=FLOATS)),
    min_size=1,
    max_size=4,
)


@example([np.array([[1e-45, 0, 0], [0, 0, 0]], dtype=np.float32)], True)
@given(SIGNALS, st.booleans())
def test_features_are_the_vectors(signals: list[np.ndarray], standardise: bool) -> None:
    spec, encoder = load(None, [inline(s.tolist()) for s in signals], {"standardise": standardise})
    assert spec == json.loads(json.dumps(spec))
    together = np.concatenate(signals).astype(np.float64)
    scale = np.where(together.std(0) > np.finfo(np.float32).smallest_normal, together.std(0), 1)
    ready = prepare(spec, signals)
    features, mask = encoder(ready.values, ready.mask)
    assert ready.counts == mask.sum(1).tolist() == [len(s) for s in signals]
    assert encoder.num_features == max(map(len, signals)) == features.shape[1]
    for row, signal in enumerate(signals):
        expected = (signal - together.mean(0)) / scale if standardise else signal
        np.testing.assert_allclose(features[row][mask[row]], expected, rtol=1e-3, atol=1e-3)


def test_padding_does_not_matter() -> None:
    spec, encoder = load(None, [inline([[1, 2], [3, 4]])], {"standardise": True})
    ready = prepare(spec, [np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)])
    other = torch.where(ready.mask[..., None], ready.values, 7.0)  # type: ignore[index]
    first, mask = encoder(ready.values, ready.mask)
    second, _ = encoder(other, ready.mask)
    assert torch.equal(first[mask], second[mask])


def test_a_rebuilt_encoder_is_the_same() -> None:
    spec, encoder = load("none", [inline([[1, 5], [3, 4]])], {"standardise": True})
    again = build(json.loads(json.dumps(spec)))
    again.load_state_dict(encoder.state_dict())
    values = torch.randn(2, 2, 2)
    assert torch.equal(again(values)[0], encoder(values)[0])
    assert not list(encoder.parameters())
    assert encoder.feature_size == 2


def test_another_width_names_the_medium(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 5)))
    odd = Media("vectors", path=f"{tmp_path}/x.npy#1")
    with pytest.raises(SignalError, match=r"x.npy#1: width 5; 2 of 3 media .* width 3"):
        load(None, [odd, inline([1, 2, 3]), inline([4, 5, 6])], {})
    spec, _ = load(None, [inline([1, 2, 3])], {})
    with pytest.raises(SignalError, match=r"x.npy#1: .*width 5, but the model's are 3 wide"):
        decode(odd, spec)
    with pytest.raises(EncoderError, match=r"\(1, 5\)"):
        prepare(spec, [np.zeros((1, 5), np.float32)])


def test_more_vectors_than_the_model_takes() -> None:
    media = [inline([[1], [2]])]
    spec, _ = load(None, media, {})
    with pytest.raises(SignalError, match="3 vectors, but the model takes at most 2"):
        decode(inline([[1], [2], [3]]), spec)
    spec, encoder = load(None, media, {"max_vectors": 3})
    assert decode(inline([[1], [2], [3]]), spec).shape == (3, 1)
    assert encoder.num_features == 3
    with pytest.raises(UsageError, match="max_vectors=1"):
        load(None, media, {"max_vectors": 1})


def test_wrong_settings() -> None:
    media = [inline([1, 2])]
    with pytest.raises(
        UsageError,
        match=r"no option 'standardize'; did you mean standardise\? choose from max_vectors, standardise",
    ):
        load(None, media, {"standardize": True})
    with pytest.raises(UsageError, match="max_vectors"):
        load(None, media, {"max_vectors": "many"})
    with pytest.raises(UsageError, match="the encoder must be none, not 'bert'"):
        load("bert", media, {})
    with pytest.raises(UsageError, match="no vectors in the training data"):
        load(None, [], {})
    with pytest.raises(EncoderError, match="known: identity"):
        build({"kind": "other"})
