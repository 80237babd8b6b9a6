"""Every prefix connector, frame by frame: what it gives for a frame alone, and what it says of itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from properties import perturbed

from modalign.connectors.base import ConnectorError, PrefixConnector, Widths
from modalign.connectors.frames import per_frame
from modalign.connectors.registry import connectors

FRAME = Widths(48, 32, 16, (4, 4), num_layers=4, num_heads=4)
FRAMES = 3
CLIP = dataclasses.replace(FRAME, num_features=FRAMES * FRAME.num_features)
WORDS = torch.nn.Embedding(11, FRAME.hidden_size)  # of the language model


def names() -> list[str]:
    return [name for name, cls in connectors().items() if cls.enters == "prefix"]


def made(name: str) -> tuple[PrefixConnector, PrefixConnector]:
    """The connector of one frame, and the same frame by frame, with equal parameters."""
    cls: Any = connectors()[name]
    framewise = per_frame(cls, FRAMES)
    options = cls.options_for("matched", FRAME)
    assert framewise.options_for("matched", CLIP) == options
    torch.manual_seed(0)
    one = perturbed(cls(FRAME, **options).eval())
    many = framewise(CLIP, **options).eval()
    many.load_state_dict(one.state_dict())
    for connector in (one, many):
        connector.attach_embeddings(WORDS)
    count = sum(parameter.numel() for parameter in many.parameters())
    assert framewise.parameter_count(CLIP, **options) == count
    return one, many


@pytest.mark.parametrize("name", names())
def test_a_frames_tokens_are_those_of_the_frame_alone(name: str) -> None:
    one, many = made(name)
    features = torch.randn(2, CLIP.num_features, FRAME.feature_size)
    mask = torch.ones(2, CLIP.num_features, dtype=torch.bool)
    mask[1, 16:] = False  # the second clip has one frame
    poisoned = features.masked_fill(~mask[..., None], float("nan"))
    with torch.no_grad():
        tokens, token_mask = many(poisoned, mask, None)
        M = one.num_tokens(16)
        assert tokens.shape == (2, FRAMES * M, FRAME.hidden_size)
        assert token_mask.sum(1).tolist() == [many.num_tokens(48), many.num_tokens(16)]
        assert token_mask.sum(1).tolist() == [FRAMES * M, M]
        assert token_mask[1, :M].all()
        assert tokens.isfinite().all()
        for clip, frame in ((0, 0), (0, 1), (0, 2), (1, 0)):
            alone = features[clip, 16 * frame : 16 * (frame + 1)][None]
            expected, _ = one(alone, torch.ones(1, 16, dtype=torch.bool), FRAME.grid)
            torch.testing.assert_close(
                tokens[clip, M * frame : M * (frame + 1)], expected[0], atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("name", names())
def test_costs_are_those_of_the_frames(name: str) -> None:
    one, many = made(name)
    for frames in (0, 1, 3, 5):
        assert many.num_tokens(16 * frames) == frames * one.num_tokens(16)
        assert many.flops(16 * frames) == pytest.approx(frames * one.flops(16))


def test_it_is_still_the_connector() -> None:
    for cls in connectors().values():
        if cls.enters == "prefix":
            framewise = per_frame(cls, 2)  # type: ignore[arg-type]
            assert issubclass(framewise, cls)
            assert (framewise.name, framewise.papers) == (cls.name, cls.papers)


def test_frames_are_whole() -> None:
    cls: Any = per_frame(connectors()["linear"], FRAMES)  # type: ignore[arg-type]
    with pytest.raises(ConnectorError, match="49 features are not those of 3 equal frames"):
        cls(dataclasses.replace(CLIP, num_features=49))
    connector = cls(CLIP)
    with pytest.raises(ConnectorError, match="not a whole number of frames of 16"):
        connector.num_tokens(17)
