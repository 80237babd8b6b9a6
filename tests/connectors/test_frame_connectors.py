"""Connectors of sequences without a grid: properties, sizes quoted, oracles, partial windows."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import (
    CHECKS,
    TABLE_PAIRS,
    TINY,
    TINY_OBLONG,
    Check,
    Options,
    all_true,
    build,
    check_flops,
    check_parameter_count,
    random_features,
    run,
)
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from modalign.connectors.base import Connector, ConnectorError, Variant, Widths
from modalign.connectors.converters.pool_linear import PoolLinearConnector
from modalign.connectors.converters.stack_mlp import StackMlpConnector
from modalign.connectors.perceivers.window_qformer import WindowQFormer
from modalign.connectors.registry import connector_class

FRAMES: tuple[type[Connector], ...] = (StackMlpConnector, PoolLinearConnector, WindowQFormer)
VARIANTS: tuple[Variant, ...] = ("published", "matched")
#: A clip whose length no window divides.
PARTIAL = Widths(20, 24, 23, None)
SMALL_QFORMER: Options = {"window": 5, "width": 16, "layers": 2, "heads": 2, "ffn": 32}
MORE_OPTIONS: list[tuple[type[Connector], Options]] = [
    (StackMlpConnector, {"stack": 5}),
    (PoolLinearConnector, {"pool": 5}),
    (WindowQFormer, SMALL_QFORMER | {"queries": 1}),
    (WindowQFormer, SMALL_QFORMER | {"queries": 3}),  # the queries mix
]
#: Whisper large (30 s are 1500 frames of 1280) and a model of width 3072.
WHISPER_TO_3B = Widths(1280, 3072, 1500, None)

by_name = pytest.mark.parametrize("cls", FRAMES, ids=lambda cls: cls.name)


@by_name
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("widths", [TINY, TINY_OBLONG, PARTIAL], ids=["square", "oblong", "frames"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_property(cls: type[Connector], variant: Variant, widths: Widths, check: Check) -> None:
    # The plain back-end, because the flop counter knows no formula for the fused CPU one.
    with sdpa_kernel(SDPBackend.MATH):
        check(cls, widths, cls.options_for(variant, widths))


@pytest.mark.parametrize(("cls", "options"), MORE_OPTIONS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_other_options_have_the_property(
    cls: type[Connector], options: Options, check: Check
) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        check(cls, PARTIAL, options)


@by_name
@pytest.mark.parametrize("widths", [*TABLE_PAIRS, WHISPER_TO_3B])
def test_formula_counts_the_module(cls: type[Connector], widths: Widths) -> None:
    for variant in VARIANTS:
        check_parameter_count(cls, widths, cls.options_for(variant, widths))
    assert connector_class(cls.name) is cls


@by_name
def test_half_precision_stays_half(cls: type[Connector]) -> None:
    connector = build(cls, TINY, cls.options_for("matched", TINY)).bfloat16()
    tokens, _ = run(connector, random_features(TINY, 2).bfloat16())
    assert tokens.dtype == torch.bfloat16


@by_name
@pytest.mark.parametrize("widths", [*TABLE_PAIRS, TINY, WHISPER_TO_3B])
def test_matched_costs_a_quarter_of_the_features(cls: type[Connector], widths: Widths) -> None:
    """As the other connectors that compress: none of a comparison wins by more tokens."""
    with torch.device("meta"):
        connector = cls(widths, **cls.options_for("matched", widths))
    assert connector.num_tokens(widths.num_features) == widths.num_features // 4


def test_figures_quoted_by_the_papers() -> None:
    """Thirty seconds: Voxtral 375 tokens, Qwen2-Audio 750, SALMONN one per 0.33 s."""
    tokens = {}
    for cls in FRAMES:
        with torch.device("meta"):
            connector = cls(WHISPER_TO_3B, **cls.options_for("published", WHISPER_TO_3B))
        tokens[cls.name] = connector.num_tokens(1500)
    assert tokens == {"stack_mlp": 375, "pool_linear": 750, "window_qformer": math.ceil(1500 / 17)}
    assert StackMlpConnector.parameter_count(WHISPER_TO_3B) == 5120 * 3072 + 3072**2  # Voxtral Mini


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=4),
    choice=st.sampled_from(MORE_OPTIONS),
)
def test_as_many_tokens_as_announced_first_places_first(
    lengths: list[int], choice: tuple[type[Connector], Options]
) -> None:
    """The contract for features of varying number: exactly ``num_tokens(valid)`` are real."""
    cls, options = choice
    connector = build(cls, PARTIAL, options)
    mask = torch.arange(23) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        _, token_mask = run(connector, random_features(PARTIAL, len(lengths)), mask)
    for row, length in zip(token_mask, lengths, strict=True):
        announced = connector.num_tokens(length)
        assert row.tolist() == [True] * announced + [False] * (len(row) - announced)


def test_stacked_frames_are_joined_in_order_of_time() -> None:
    """A stride-k convolution is the same map; the last window is filled with zeros."""
    connector = build(StackMlpConnector, PARTIAL, {"stack": 4})
    first, last = connector.layers[0], connector.layers[2]
    features = random_features(PARTIAL, 2)
    kernel = first.weight.reshape(24, 4, 20).transpose(1, 2)
    filled = functional.pad(features.transpose(1, 2), (0, 1))
    hidden = functional.conv1d(filled, kernel, stride=4).transpose(1, 2)
    expected = last(functional.gelu(hidden))
    torch.testing.assert_close(run(connector, features)[0], expected)


def test_stack_mlp_is_voxtrals_projector() -> None:
    """transformers' own module with our weights; it folds four frames by a reshape."""
    from transformers import VoxtralConfig
    from transformers.models.voxtral.modeling_voxtral import VoxtralMultiModalProjector

    audio = {"hidden_size": 20, "intermediate_size": 80, "num_attention_heads": 2}
    config = VoxtralConfig(
        audio_config=audio, text_config={"hidden_size": 24, "num_attention_heads": 2}
    )
    reference = VoxtralMultiModalProjector(config)
    connector = build(StackMlpConnector, PARTIAL, {"stack": 4})
    reference.linear_1.weight.data = connector.layers[0].weight.data
    reference.linear_2.weight.data = connector.layers[2].weight.data
    features = random_features(PARTIAL, 2)[:, :20]
    with torch.no_grad():
        expected = reference(features.reshape(-1, 80)).reshape(2, 5, 24)
        torch.testing.assert_close(run(connector, features)[0], expected)


def test_pooling_is_the_mean_of_the_frames_present() -> None:
    widths = Widths(6, 6, 7, None)
    connector = build(PoolLinearConnector, widths, {"pool": 3})
    nn.init.eye_(connector.projection.weight)
    nn.init.zeros_(connector.projection.bias)
    features = random_features(widths, 1)
    expected = [features[0, 0:3].mean(0), features[0, 3:6].mean(0), features[0, 6]]
    torch.testing.assert_close(run(connector, features)[0][0], torch.stack(expected))


@pytest.mark.parametrize("queries", [1, 3])
def test_windows_do_not_see_each_other(queries: int) -> None:
    connector = build(WindowQFormer, PARTIAL, SMALL_QFORMER | {"queries": queries})
    features = random_features(PARTIAL, 1)
    changed = features.clone()
    changed[0, 7] += 1.0  # in the second window of five
    with torch.no_grad():
        difference = (run(connector, changed)[0] - run(connector, features)[0]).abs().amax(-1)[0]
    moved = [index for index, value in enumerate(difference) if value > 0]
    assert moved == list(range(queries, 2 * queries))


def test_a_window_by_itself_gives_what_it_gives_in_its_clip() -> None:
    connector = build(WindowQFormer, PARTIAL, SMALL_QFORMER | {"queries": 2})
    features = random_features(PARTIAL, 1)
    with torch.no_grad():
        whole, _ = run(connector, features)
        for window in range(5):
            part = features[:, 5 * window : 5 * window + 5]
            own, _ = connector(part, all_true(part))
            torch.testing.assert_close(own[0], whole[0, 2 * window : 2 * window + 2])


def test_published_window_qformer_flops() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        check_flops(WindowQFormer, PARTIAL, WindowQFormer.options_for("published", PARTIAL))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (StackMlpConnector, {"stack": 0}),
        (PoolLinearConnector, {"pool": 0}),
        (WindowQFormer, {"window": 0}),
        (WindowQFormer, {"queries": 0}),
    ],
)
def test_sizes_below_one_are_refused(cls: type[Connector], options: Options) -> None:
    with pytest.raises(ConnectorError, match=">= 1"):
        cls(PARTIAL, **options)
