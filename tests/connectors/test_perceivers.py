"""The prefix perceivers: generic properties, sizes against the reference table, slow oracles."""

from __future__ import annotations

import math

import pytest
import torch
from properties import (
    CHECKS,
    CLIP_L_TO_7B,
    SIGLIP_B_TO_135M,
    SIGLIP_B_TO_HALF_B,
    TABLE_PAIRS,
    TINY,
    TINY_OBLONG,
    Check,
    Options,
    check_flops,
    check_parameter_count,
    random_features,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from modalign.connectors.base import Connector, ConnectorError, Widths
from modalign.connectors.perceivers.d_abstractor import DAbstractor, sample_points
from modalign.connectors.perceivers.qformer import QFormer
from modalign.connectors.perceivers.resampler import Resampler, ResamplerCore, ResamplerOptions

PREFIX: tuple[type[Connector], ...] = (Resampler, QFormer, DAbstractor)
FLAMINGO: Options = {
    "num_tokens": 5,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "head_size": 8,
    "ffn": 128,
    "style": "flamingo",
}
MORE_OPTIONS: list[tuple[type[Connector], Options]] = [
    (Resampler, FLAMINGO),
    (Resampler, FLAMINGO | {"width": 48}),  # another width than d: an affine map enters
    (QFormer, {"num_tokens": 7, "width": 32, "layers": 3, "heads": 4, "ffn": 64, "cross_every": 2}),
    (DAbstractor, {"num_tokens": 4, "width": 64, "layers": 1, "heads": 4, "points": 3, "ffn": 32}),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("cls", PREFIX, ids=lambda c: c.name)
@pytest.mark.parametrize("widths", [TINY, TINY_OBLONG], ids=["square", "oblong"])
def test_matched_has_the_property(check: Check, cls: type[Connector], widths: Widths) -> None:
    # The plain back-end, because the flop counter knows no formula for the fused CPU one.
    with sdpa_kernel(SDPBackend.MATH):
        check(cls, widths, cls.options_for("matched", widths))


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("cls", "options"), MORE_OPTIONS)
def test_other_options_have_the_property(
    check: Check, cls: type[Connector], options: Options
) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        check(cls, TINY, options)


@pytest.mark.parametrize("widths", TABLE_PAIRS)
@pytest.mark.parametrize("variant", ["published", "matched"])
@pytest.mark.parametrize("cls", PREFIX, ids=lambda c: c.name)
def test_formula_counts_the_module(cls: type[Connector], variant: str, widths: Widths) -> None:
    check_parameter_count(cls, widths, cls.options_for(variant, widths))  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", PREFIX, ids=lambda c: c.name)
def test_published_flops(cls: type[Connector]) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        check_flops(cls, TINY, cls.options_for("published", TINY))


def millions(count: int) -> float:
    return round(count / 1e6, 1)


@pytest.mark.parametrize(
    ("widths", "figure"),
    [(CLIP_L_TO_7B, 79.9), (SIGLIP_B_TO_HALF_B, 73.4), (SIGLIP_B_TO_135M, 73.1)],
)
def test_resampler_table(widths: Widths, figure: float) -> None:
    options = Resampler.options_for("published", widths)
    assert millions(Resampler.parameter_count(widths, **options)) == figure


@pytest.mark.parametrize(
    ("widths", "figure"),
    [(CLIP_L_TO_7B, 63.0), (SIGLIP_B_TO_HALF_B, 37.8), (SIGLIP_B_TO_135M, 37.8)],
)
def test_flamingo_resampler_table(widths: Widths, figure: float) -> None:
    # The row is the core at width d, as Flamingo's layers read it: without an affine map to D.
    d = widths.feature_size
    with torch.device("meta"):
        core = ResamplerCore(d, ResamplerOptions(64, d, 6, 8, 64, 4 * d, "flamingo"))
    assert millions(sum(parameter.numel() for parameter in core.parameters())) == figure


@pytest.mark.parametrize(
    ("widths", "figure"),
    [(CLIP_L_TO_7B, 56), (SIGLIP_B_TO_HALF_B, 53), (SIGLIP_B_TO_135M, 53)],
)
def test_d_abstractor_table(widths: Widths, figure: int) -> None:
    options = DAbstractor.options_for("published", widths)
    assert round(DAbstractor.parameter_count(widths, **options) / 1e6) == figure


@pytest.mark.parametrize(
    ("widths", "figure", "two_layers"),
    [
        (CLIP_L_TO_7B, 104.8, 22.9),
        (SIGLIP_B_TO_HALF_B, 100.0, 19.6),
        (SIGLIP_B_TO_135M, 99.7, 19.4),
    ],
)
def test_qformer_table(widths: Widths, figure: float, two_layers: float) -> None:
    options = QFormer.options_for("published", widths)
    assert millions(QFormer.parameter_count(widths, **options)) == figure
    small = options | {"layers": 2, "cross_every": 1}
    assert millions(QFormer.parameter_count(widths, **small)) == two_layers


@pytest.mark.parametrize("cls", PREFIX, ids=lambda c: c.name)
def test_matched_is_small(cls: type[Connector]) -> None:
    for widths in TABLE_PAIRS:
        matched, published = (
            cls.parameter_count(widths, **cls.options_for(variant, widths))
            for variant in ("matched", "published")
        )
        assert matched < 0.5 * published


def test_latents_of_the_cross_style_do_not_read_each_other() -> None:
    options = Resampler.options_for("matched", TINY)
    connector = Resampler(TINY, **options).eval()
    features, mask = random_features(TINY, 1), torch.ones(1, 36, dtype=torch.bool)
    before = connector(features, mask)[0]
    with torch.no_grad():
        connector.core.latents[0] += 1
    after = connector(features, mask)[0]
    assert torch.equal(before[:, 1:], after[:, 1:])
    assert not torch.allclose(before[:, 0], after[:, 0])


def slow_bilinear(image: Tensor, x: float, y: float) -> Tensor:
    """Value of (c, h, w) at pixel coordinates (x, y), pixel centres at whole numbers."""
    _, h, w = image.shape
    total = torch.zeros(image.shape[0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < h and 0 <= column < w:
                total += image[:, row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def test_sampling_equals_a_slow_loop() -> None:
    B, H, c, h, w, M, P = 2, 3, 4, 5, 7, 6, 2
    torch.manual_seed(0)
    values = torch.randn(B, H, c, h, w)
    locations = torch.rand(B, M, H, P, 2) * 1.4 - 0.2  # some outside
    weights = torch.rand(B, M, H, P)
    expected = torch.zeros(B, M, H, c)
    for b in range(B):
        for m in range(M):
            for k in range(H):
                for p in range(P):
                    x, y = locations[b, m, k, p].tolist()
                    read = slow_bilinear(values[b, k], x * w - 0.5, y * h - 0.5)
                    expected[b, m, k] += weights[b, m, k, p] * read
    actual = sample_points(values, locations, weights)
    torch.testing.assert_close(actual, expected.flatten(2), atol=1e-5, rtol=1e-4)


def test_reference_points_start_on_the_centres_of_the_pooled_cells() -> None:
    connector = DAbstractor(TINY, **DAbstractor.options_for("matched", TINY))
    expected = [[(x + 0.5) / 3, (y + 0.5) / 3] for y in range(3) for x in range(3)]
    torch.testing.assert_close(connector.references.data, torch.tensor(expected))


def test_d_abstractor_takes_another_grid() -> None:
    connector = DAbstractor(TINY, **DAbstractor.options_for("matched", TINY))
    tokens, _ = connector(torch.randn(2, 20, 64), torch.ones(2, 20, dtype=torch.bool), (4, 5))
    assert tokens.shape == (2, 9, 96)


def test_d_abstractor_needs_a_grid_and_a_square() -> None:
    with pytest.raises(ConnectorError, match="grid"):
        DAbstractor(Widths(64, 96, 36, None))
    with pytest.raises(ConnectorError, match="square"):
        DAbstractor(TINY, num_tokens=8)


@pytest.mark.parametrize("cls", PREFIX, ids=lambda c: c.name)
@torch.no_grad()
def test_half_precision(cls: type[Connector]) -> None:
    connector = cls(TINY, **cls.options_for("matched", TINY)).eval()
    features, mask = random_features(TINY, 2), torch.arange(36) < torch.tensor([[36], [20]])
    full, _ = connector(features, mask, (6, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = connector(features, mask, (6, 6))
    half, _ = connector.bfloat16()(features.bfloat16(), mask, (6, 6))
    assert half.dtype == torch.bfloat16
    for tokens in (mixed, half):
        torch.testing.assert_close(tokens.float(), full, atol=0.1, rtol=0.1)
