"""Converters: shared properties, the reference parameter table, oracles computed by hand."""

from __future__ import annotations

import ast
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties import (
    CHECKS,
    CLIP_L_TO_7B,
    TABLE_PAIRS,
    TINY,
    TINY_OBLONG,
    Check,
    all_true,
    build,
    check_flops,
    check_parameter_count,
    perturbed,
    random_features,
    run,
)
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors import converters
from modalign.connectors.base import (
    Connector,
    ConnectorError,
    Variant,
    Widths,
    quarter_tokens,
    zero_masked,
)
from modalign.connectors.converters.avgpool_mlp import AvgpoolMlpConnector
from modalign.connectors.converters.c_abstractor import CAbstractorConnector, RegNetBlock
from modalign.connectors.converters.clipcap import ClipCapConnector, masked_mean
from modalign.connectors.converters.clipcap_lowrank import ClipCapLowRankConnector, LowRankAffine
from modalign.connectors.converters.fused_mlp import FusedMlpConnector
from modalign.connectors.converters.ldp import InvertedResidual, LdpConnector
from modalign.connectors.converters.ldpv2 import Ldpv2Connector
from modalign.connectors.converters.linear import LinearConnector
from modalign.connectors.converters.mlp import MlpConnector
from modalign.connectors.converters.pixel_shuffle_linear import PixelShuffleLinearConnector
from modalign.connectors.converters.pixel_shuffle_mlp import PixelShuffleMlpConnector
from modalign.connectors.converters.raw_patches import RawPatchesConnector
from modalign.connectors.converters.shared import (
    SqueezeExcite,
    masked_grid,
    matched_factor,
    pool_grid,
    space_to_depth,
)
from modalign.connectors.registry import connector_class

CONVERTERS: tuple[type[Connector], ...] = (
    LinearConnector,
    MlpConnector,
    FusedMlpConnector,
    AvgpoolMlpConnector,
    PixelShuffleLinearConnector,
    PixelShuffleMlpConnector,
    LdpConnector,
    Ldpv2Connector,
    CAbstractorConnector,
    ClipCapConnector,
    ClipCapLowRankConnector,
    RawPatchesConnector,
)
COMPRESSING = (
    AvgpoolMlpConnector,
    PixelShuffleLinearConnector,
    PixelShuffleMlpConnector,
    LdpConnector,
    Ldpv2Connector,
    CAbstractorConnector,
)
VARIANTS: tuple[Variant, ...] = ("published", "matched")

by_name = pytest.mark.parametrize("cls", CONVERTERS, ids=lambda cls: cls.name)
by_variant = pytest.mark.parametrize("variant", VARIANTS)


# --- properties shared with every connector ---


@by_name
@by_variant
@pytest.mark.parametrize("widths", [TINY, TINY_OBLONG], ids=["square", "oblong"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_property(cls: type[Connector], variant: Variant, widths: Widths, check: Check) -> None:
    check(cls, widths, cls.options_for(variant, widths))


@by_name
def test_flops_at_a_real_grid(cls: type[Connector]) -> None:
    """An odd half (7 x 7) and overlapping pool windows (14 -> 12)."""
    widths = Widths(32, 48, 196, (14, 14))
    check_flops(cls, widths, cls.options_for("published", widths))


@by_name
def test_half_precision_stays_half(cls: type[Connector]) -> None:
    connector = build(cls, TINY, cls.options_for("matched", TINY)).bfloat16()
    tokens, _ = run(connector, random_features(TINY, 2).bfloat16())
    assert tokens.dtype == torch.bfloat16


@by_name
def test_registry_knows_it(cls: type[Connector]) -> None:
    assert connector_class(cls.name) is cls


def test_export_targets() -> None:
    native = {"linear": "Llava", "mlp": "Llava", "pixel_shuffle_linear": "Idefics3"}
    assert {cls.name: cls.export_target for cls in CONVERTERS} == {
        cls.name: native.get(cls.name, "remote-code") for cls in CONVERTERS
    }
    assert MlpConnector(TINY, depth=2).export_target == "Llava"
    assert MlpConnector(TINY, depth=3).export_target == "remote-code"
    matrix = {"num_tokens": 4, "depth": 1, "bias": False}
    assert AvgpoolMlpConnector(TINY, **matrix).export_target == "Idefics3"
    assert AvgpoolMlpConnector(TINY, **matrix | {"bias": True}).export_target == "remote-code"
    assert AvgpoolMlpConnector(TINY, **matrix | {"num_tokens": 16}).export_target == "remote-code"
    assert [cls.name for cls in CONVERTERS if cls.raw_input] == ["raw_patches"]


def test_files_import_only_what_an_export_carries() -> None:
    (folder,) = map(Path, converters.__path__)
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, file.name
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                root = module.split(".")[0]
                sibling = module.startswith("modalign.connectors.")
                assert sibling or root == "torch" or root in sys.stdlib_module_names, (
                    f"{file.name} imports {module}"
                )


# --- the reference table ---

# Millions of parameters at CLIP-L/14-336 -> 7B, SigLIP-B -> 0.5B, SigLIP-B -> 135M.
TABLE: list[tuple[type[Connector], dict[str, Any], tuple[float, float, float]]] = [
    (LinearConnector, {}, (4.20, 0.69, 0.44)),
    (MlpConnector, {"depth": 2}, (20.98, 1.49, 0.78)),
    # The last one is 4.464768 M exactly; the table prints 4.47, which no rounding gives.
    (FusedMlpConnector, {}, (37.76, 5.92, 4.46)),
    (AvgpoolMlpConnector, {"num_tokens": 144}, (20.98, 1.49, 0.78)),
    (PixelShuffleLinearConnector, {"factor": 2}, (16.78, 2.75, 1.77)),
    (PixelShuffleLinearConnector, {"factor": 4}, (67.11, 11.01, 7.08)),
    (PixelShuffleMlpConnector, {"factor": 2}, (33.57, 3.56, 2.11)),
    (LdpConnector, {}, (71.43, 3.93, 1.79)),
    (Ldpv2Connector, {"num_tokens": 144}, (21.02, 1.50, 0.78)),
    (CAbstractorConnector, {}, (37.40, 18.10, 17.30)),
    (ClipCapConnector, {"num_tokens": 10}, (860, 43.6, 18.8)),
]


def decimals(figure: float) -> int:
    return 0 if figure >= 800 else 1 if figure in (43.6, 18.8) else 2


@pytest.mark.parametrize(("cls", "options", "figures"), TABLE, ids=lambda v: getattr(v, "name", ""))
def test_reference_table(
    cls: type[Connector], options: dict[str, Any], figures: tuple[float, float, float]
) -> None:
    for widths, figure in zip(TABLE_PAIRS, figures, strict=True):
        if options.get("factor") == 4:  # which divides no grid of 14 x 14
            widths = replace(widths, num_features=576, grid=(24, 24))
        millions = cls.parameter_count(widths, **options) / 1e6
        assert round(millions, decimals(figure)) == figure


@by_name
@by_variant
@pytest.mark.parametrize("widths", TABLE_PAIRS, ids=["7B", "0.5B", "135M"])
def test_formula_equals_module_at_real_sizes(
    cls: type[Connector], variant: Variant, widths: Widths
) -> None:
    check_parameter_count(cls, widths, cls.options_for(variant, widths))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_formulas_of_other_affine_stacks(depth: int, bias: bool) -> None:
    options = {"num_tokens": 9, "depth": depth, "bias": bias}
    check_parameter_count(AvgpoolMlpConnector, TINY, options)
    check_flops(AvgpoolMlpConnector, TINY, options)


def test_figures_quoted_by_the_papers() -> None:
    to_2048 = replace(CLIP_L_TO_7B, hidden_size=2048)
    assert round(LdpConnector.parameter_count(to_2048) / 1e6, 1) == 18.9  # MobileVLM
    internvl_26b = Widths(3200, 6144, 1024, (32, 32))
    assert round(PixelShuffleMlpConnector.parameter_count(internvl_26b) / 1e6, 2) == 116.43


def test_published_and_matched_options_at_7b() -> None:
    published = {cls.name: cls.options_for("published", CLIP_L_TO_7B) for cls in CONVERTERS}
    assert published == {
        "linear": {},
        "mlp": {"depth": 2},
        "fused_mlp": {"inner_size": 4096},
        "avgpool_mlp": {"num_tokens": 144, "depth": 2, "bias": True},
        "pixel_shuffle_linear": {"factor": 2},
        "pixel_shuffle_mlp": {"factor": 2},
        "ldp": {},
        "ldpv2": {"num_tokens": 144},
        "c_abstractor": {"num_tokens": 144, "inner_size": 1024, "depth": 3},
        "clipcap": {"num_tokens": 10},
        "clipcap_lowrank": {"num_tokens": 10, "rank": 64},
        "raw_patches": {},
    }


@pytest.mark.parametrize("widths", [*TABLE_PAIRS, TINY], ids=["7B", "0.5B", "135M", "tiny"])
def test_matched_connectors_that_compress_cost_equal_tokens(widths: Widths) -> None:
    counts = {
        cls.name: build_on_meta(cls, widths, "matched").num_tokens(widths.num_features)
        for cls in COMPRESSING
    }
    assert set(counts.values()) == {widths.num_features // 4}, counts


@pytest.mark.parametrize("widths", [*TABLE_PAIRS, TINY], ids=["7B", "0.5B", "135M", "tiny"])
def test_matched_low_rank_clipcap_is_as_large_as_the_mlp(widths: Widths) -> None:
    options = ClipCapLowRankConnector.options_for("matched", widths)
    ratio = ClipCapLowRankConnector.parameter_count(widths, **options)
    assert ratio / MlpConnector.parameter_count(widths) == pytest.approx(1, abs=0.05)


def build_on_meta(cls: type[Connector], widths: Widths, variant: Variant) -> Connector:
    with torch.device("meta"):
        return cls(widths, **cls.options_for(variant, widths))


@settings(max_examples=60, deadline=None)
@given(h=st.integers(1, 30), w=st.integers(1, 30), cls=st.sampled_from(COMPRESSING))
def test_matched_options_fit_every_grid(h: int, w: int, cls: type[Connector]) -> None:
    widths = Widths(8, 16, h * w, (h, w))
    M = build_on_meta(cls, widths, "matched").num_tokens(h * w)
    assert 1 <= M <= h * w


# --- errors name what is wrong ---


@pytest.mark.parametrize("cls", [c for c in CONVERTERS if c.needs_grid], ids=lambda cls: cls.name)
def test_a_grid_is_demanded(cls: type[Connector]) -> None:
    with pytest.raises(ConnectorError, match=cls.name):
        cls(replace(TINY, grid=None), **cls.options_for("matched", TINY))
    connector = build(cls, TINY, cls.options_for("matched", TINY))
    features = random_features(TINY, 1)
    with pytest.raises(ConnectorError, match=r"it needs h \* w == N"):
        connector(features, all_true(features), None)


@pytest.mark.parametrize("cls", [PixelShuffleLinearConnector, PixelShuffleMlpConnector])
def test_factor_must_divide_the_grid(cls: type[Connector]) -> None:
    with pytest.raises(ConnectorError, match=r"14 x 14.*factor 4"):
        cls(Widths(8, 16, 196, (14, 14)), factor=4)
    connector = cls(TINY, factor=2)
    features = torch.zeros(1, 9, TINY.feature_size)
    with pytest.raises(ConnectorError, match=r"3 x 3.*factor 2"):
        connector(features, all_true(features), (3, 3))


@pytest.mark.parametrize("cls", [AvgpoolMlpConnector, Ldpv2Connector, CAbstractorConnector])
def test_pool_must_be_a_square_within_the_grid(cls: type[Connector]) -> None:
    with pytest.raises(ConnectorError, match="square number"):
        cls(TINY, num_tokens=8)
    with pytest.raises(ConnectorError, match="fewer tokens"):
        cls(TINY, num_tokens=49)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MlpConnector, {"depth": 0}),
        (FusedMlpConnector, {"inner_size": 0}),
        (AvgpoolMlpConnector, {"num_tokens": 0}),
        (PixelShuffleLinearConnector, {"factor": 0}),
        (CAbstractorConnector, {"num_tokens": 9, "depth": 0}),
        (ClipCapConnector, {"num_tokens": 0}),
        (ClipCapLowRankConnector, {"rank": 0}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_sizes_below_one_are_refused(cls: type[Connector], options: dict[str, Any]) -> None:
    with pytest.raises(ConnectorError, match=">= 1"):
        cls(TINY, **options)


@by_name
def test_unknown_options_are_refused_by_module_and_count(cls: type[Connector]) -> None:
    with pytest.raises(ConnectorError, match=f"{cls.name}' has no option 'depht'; it has "):
        cls(TINY, depht=2)
    with pytest.raises(ConnectorError, match="no option 'depht'"):
        cls.parameter_count(TINY, depht=2)


@by_name
def test_what_is_counted_is_what_is_built(cls: type[Connector]) -> None:
    options = cls.options_for("matched", TINY)
    built = sum(parameter.numel() for parameter in build(cls, TINY, options).parameters())
    assert cls.parameter_count(TINY, **options) == built
    assert cls(TINY, **options).options == cls.options_type(**options)


# --- direct mapping ---


def test_linear_is_functional_linear() -> None:
    connector = build(LinearConnector, TINY, {})
    features = random_features(TINY, 2)
    expected = functional.linear(features, connector.projection.weight, connector.projection.bias)
    torch.testing.assert_close(run(connector, features)[0], expected)


def test_mlp_is_affine_gelu_affine() -> None:
    connector = build(MlpConnector, TINY, {"depth": 2})
    first, last = connector.layers[0], connector.layers[2]
    features = random_features(TINY, 2)
    torch.testing.assert_close(run(connector, features)[0], last(functional.gelu(first(features))))


def test_fused_mlp_widths() -> None:
    sizes = [tuple(p.shape) for p in FusedMlpConnector(TINY).layers.parameters() if p.ndim == 2]
    assert sizes == [(256, 64), (96, 256), (96, 96)]


@settings(max_examples=20, deadline=None)
@given(
    order=st.permutations(range(TINY.num_features)),
    cls=st.sampled_from((LinearConnector, MlpConnector, FusedMlpConnector, RawPatchesConnector)),
)
def test_direct_maps_are_permutation_equivariant(order: list[int], cls: type[Connector]) -> None:
    connector = build(cls, TINY, cls.options_for("matched", TINY))
    features = random_features(TINY, 1)
    with torch.no_grad():
        permuted, straight = run(connector, features[:, order])[0], run(connector, features)[0]
    torch.testing.assert_close(permuted, straight[:, order])


def test_raw_patches_read_fuyus_flattened_patches() -> None:
    """A stride-30 convolution over the image is the same map: the patch is the feature."""
    widths = Widths(30 * 30 * 3, 16, 6, (2, 3))
    connector = build(RawPatchesConnector, widths, {})
    image = torch.randn(1, 3, 60, 90, generator=torch.Generator().manual_seed(0))
    patches = functional.unfold(image, kernel_size=30, stride=30).transpose(1, 2)
    kernel = connector.projection.weight.reshape(16, 3, 30, 30)
    convolved = functional.conv2d(image, kernel, connector.projection.bias, stride=30)
    expected = convolved.flatten(2).transpose(1, 2)
    torch.testing.assert_close(run(connector, patches)[0], expected, atol=1e-4, rtol=1e-4)


# --- pooled ---


def block_means(features: Tensor, side: int, block: int) -> Tensor:
    B, _, d = features.shape
    grid = features.reshape(B, side, block, side, block, d)
    return grid.mean(dim=(2, 4)).reshape(B, side * side, d)


def test_avgpool_mlp_with_identity_weights_gives_block_means() -> None:
    widths = Widths(5, 5, 36, (6, 6))
    connector = build(AvgpoolMlpConnector, widths, {"num_tokens": 9})
    connector.layers[1] = nn.Identity()  # the GELU
    for layer in (connector.layers[0], connector.layers[2]):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    features = random_features(widths, 2)
    torch.testing.assert_close(run(connector, features)[0], block_means(features, 3, 2))


@settings(max_examples=40, deadline=None)
@given(present=st.lists(st.booleans(), min_size=16, max_size=16))
def test_pool_averages_what_is_present(present: list[bool]) -> None:
    features = random_features(Widths(3, 3, 16, (4, 4)), 1)
    mask = torch.tensor([present])
    poisoned = features.masked_fill(~mask.unsqueeze(-1), math.nan)
    pooled, pooled_present = pool_grid(*masked_grid(poisoned, mask, (4, 4), "test"), side=2)
    for row in range(2):
        for column in range(2):
            block = [
                features[0, 4 * y + x]
                for y in (2 * row, 2 * row + 1)
                for x in (2 * column, 2 * column + 1)
                if present[4 * y + x]
            ]
            expected = torch.stack(block).mean(dim=0) if block else torch.zeros(3)
            torch.testing.assert_close(pooled[0, :, row, column], expected)
            assert bool(pooled_present[0, 0, row, column]) == bool(block)


# --- folded ---


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 4), columns=st.integers(1, 4), factor=st.integers(1, 4))
def test_space_to_depth_orders_row_column_feature(rows: int, columns: int, factor: int) -> None:
    h, w, d = rows * factor, columns * factor, 2
    features = torch.arange(h * w * d, dtype=torch.float32).reshape(1, h * w, d)
    folded, mask = space_to_depth(features, all_true(features), (h, w), factor, "test")
    assert mask.all()
    grid = features.reshape(h, w, d)
    expected = [
        grid[r * factor : (r + 1) * factor, c * factor : (c + 1) * factor].reshape(-1)
        for r in range(rows)
        for c in range(columns)
    ]
    assert torch.equal(folded[0], torch.stack(expected))


def test_space_to_depth_reads_padding_as_zero() -> None:
    features = torch.full((1, 16, 1), math.nan)
    features[0, 5] = 3.0  # row 1, column 1: last place of the first block
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    folded, folded_mask = space_to_depth(features, mask, (4, 4), 2, "test")
    assert folded[0].tolist() == [[0, 0, 0, 3], [0] * 4, [0] * 4, [0] * 4]
    assert folded_mask[0].tolist() == [True, False, False, False]


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_linear_equals_idefics3(factor: int) -> None:
    """The weight copies unchanged, so an export into the native class is exact."""
    from transformers import Idefics3Config
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

    config = Idefics3Config(
        vision_config={"hidden_size": TINY.feature_size},
        text_config={"model_type": "llama", "hidden_size": TINY.hidden_size},
        scale_factor=factor,
    )
    native = Idefics3Connector(config)
    connector = build(PixelShuffleLinearConnector, TINY, {"factor": factor})
    native.modality_projection.proj.weight = connector.projection.weight
    features = random_features(TINY, 2)
    assert torch.equal(run(connector, features)[0], native(features))


def test_folding_equals_internvl() -> None:
    from transformers.models.internvl.modeling_internvl import InternVLModel

    features = random_features(TINY, 2)
    native = InternVLModel.pixel_shuffle(None, features.reshape(2, 6, 6, -1), scale_factor=0.5)
    folded, _ = space_to_depth(features, all_true(features), (6, 6), 2, "test")
    assert torch.equal(folded, native.reshape(2, 9, -1))


def test_pixel_shuffle_linear_starts_as_published() -> None:
    weight = build(PixelShuffleLinearConnector, TINY, {"factor": 2}).projection.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("grid", "factor"), [((24, 24), 2), ((14, 6), 2), ((9, 15), 3), ((7, 7), 1), ((1, 8), 1)]
)
def test_matched_factor_divides(grid: tuple[int, int], factor: int) -> None:
    assert matched_factor(Widths(8, 8, grid[0] * grid[1], grid)) == factor


# --- locality ---


def freeze_gates(connector: nn.Module) -> None:
    """Make every squeeze-excite gate a constant: its mean over the grid reaches everywhere."""
    for module in connector.modules():
        if isinstance(module, SqueezeExcite):
            nn.init.zeros_(module.excite.weight)


def changed_by_last_corner(connector: Connector) -> Tensor:
    """Which output places change when the feature at the last row and column changes."""
    features = random_features(connector.widths, 1)
    changed = features.clone()
    changed[0, -1] += 5.0
    with torch.no_grad():
        before, after = run(connector, features)[0], run(connector, changed)[0]
    side = math.isqrt(before.shape[1])
    return (before != after).any(dim=-1).reshape(side, side)


def test_ldp_reads_only_its_neighbourhood() -> None:
    """Corner (7, 7): the first block reaches 6..7, the strided one outputs 3 (centre 6)."""
    connector = build(LdpConnector, Widths(8, 16, 64, (8, 8)), {})
    freeze_gates(connector)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[3:, 3:] = True
    assert torch.equal(changed_by_last_corner(connector), expected)


def test_c_abstractor_reads_only_its_neighbourhood() -> None:
    """Corner (11, 11): 10..11 after one block, 5 after the pool, 4..5 after the last block."""
    options = {"num_tokens": 36, "inner_size": 16, "depth": 1}
    connector = build(CAbstractorConnector, Widths(8, 16, 144, (12, 12)), options)
    freeze_gates(connector)
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[4:, 4:] = True
    assert torch.equal(changed_by_last_corner(connector), expected)


def test_c_abstractor_gates_reach_everywhere() -> None:
    """Without frozen gates the squeeze is global: this is why the tests above freeze them."""
    options = {"num_tokens": 36, "inner_size": 16, "depth": 1}
    connector = build(CAbstractorConnector, Widths(8, 16, 144, (12, 12)), options)
    nn.init.normal_(connector.before[0].squeeze_excite.excite.weight)
    nn.init.normal_(connector.before[0].squeeze_excite.squeeze.weight)
    assert changed_by_last_corner(connector).all()


def test_c_abstractor_starts_as_published() -> None:
    connector = build(CAbstractorConnector, TINY, CAbstractorConnector.options_for("matched", TINY))
    assert connector.positions.std().item() == pytest.approx(0.02, rel=0.1)
    for module in connector.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not module.bias.any()


def test_c_abstractor_resizes_positions_to_another_grid() -> None:
    connector = build(CAbstractorConnector, TINY, CAbstractorConnector.options_for("matched", TINY))
    features = torch.randn(1, 32, TINY.feature_size, generator=torch.Generator().manual_seed(0))
    tokens, mask = connector(features, all_true(features), (4, 8))
    assert tokens.shape == (1, 9, TINY.hidden_size)
    assert mask.all()


def canvas(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """X (B, C, h, w) at the top left of a larger grid of zeros, and where it is present."""
    padding = (0, side - x.shape[3], 0, side - x.shape[2])
    return functional.pad(x, padding), functional.pad(torch.ones_like(x[:, :1]), padding)


def test_ldp_on_a_masked_canvas_equals_ldp_on_the_grid_alone() -> None:
    """Norm biases would fill the padding and leak at its edge if the blocks did not clear it.

    Odd on purpose: the last strided output is centred on the edge and reads beyond it.
    """
    connector = perturbed(build(LdpConnector, TINY, {}))
    x = torch.randn(2, TINY.feature_size, 5, 5, generator=torch.Generator().manual_seed(0))
    features = x.flatten(2).transpose(1, 2)
    alone, _ = connector(features, all_true(features), (5, 5))
    padded, present = canvas(x, side=8)
    mask = present.flatten(1) > 0
    tokens, token_mask = connector(padded.flatten(2).transpose(1, 2), mask, (8, 8))
    torch.testing.assert_close(tokens[token_mask], alone.flatten(0, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("inputs", [8, 16], ids=["shortcut-map", "shortcut-identity"])
def test_regnet_blocks_on_a_masked_canvas_equal_blocks_on_the_grid_alone(inputs: int) -> None:
    torch.manual_seed(0)
    first, second = perturbed(RegNetBlock(inputs, 16)), perturbed(RegNetBlock(16, 16))
    x = torch.randn(2, inputs, 4, 4)
    present = torch.ones(2, 1, 4, 4)
    alone = second(first(x, present), present)
    padded, padded_present = canvas(x, side=6)
    output = second(first(padded, padded_present), padded_present)
    torch.testing.assert_close(output[:, :, :4, :4], alone, atol=1e-5, rtol=1e-4)
    assert not output[:, :, 4:].any()
    assert not output[:, :, :, 4:].any()


def test_inverted_residual_with_zero_depthwise_is_the_identity() -> None:
    """Zeros stay zeros through norm, hard-swish, gate and pointwise; the input is added."""
    torch.manual_seed(0)
    block = InvertedResidual(16, stride=1)
    nn.init.zeros_(block.depthwise.weight)
    x, present = torch.randn(1, 16, 4, 4), torch.ones(1, 1, 4, 4)
    assert torch.equal(block(x, present)[0], x)


def test_ldpv2_with_zero_convolution_is_the_pooled_mlp() -> None:
    connector = build(Ldpv2Connector, TINY, {"num_tokens": 9})
    nn.init.zeros_(connector.position.weight)
    nn.init.zeros_(connector.position.bias)
    features = random_features(TINY, 2)
    expected = block_means(connector.layers(features), 3, 2)
    torch.testing.assert_close(run(connector, features)[0], expected)


def test_ldpv2_convolution_is_added_to_its_input() -> None:
    """A kernel with a single 1 in the middle doubles the pooled map."""
    connector = build(Ldpv2Connector, TINY, {"num_tokens": 9})
    nn.init.zeros_(connector.position.weight)
    nn.init.zeros_(connector.position.bias)
    features = random_features(TINY, 1)
    once = run(connector, features)[0]
    nn.init.ones_(connector.position.weight[:, :, 1, 1])
    torch.testing.assert_close(run(connector, features)[0], 2 * once)


def test_squeeze_excite_averages_what_is_present() -> None:
    torch.manual_seed(0)
    gate = SqueezeExcite(4, 2, nn.ReLU(), nn.Sigmoid())
    small, padded = torch.randn(1, 4, 2, 2), torch.zeros(1, 4, 2, 3)
    padded[..., :2] = small
    present = torch.tensor([1.0, 1.0, 0.0]).expand(1, 1, 2, 3)
    full = gate(small, torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(gate(padded, present)[..., :2], full)


# --- prefix from a global vector ---


@settings(max_examples=20, deadline=None)
@given(
    order=st.permutations(range(TINY.num_features)),
    cls=st.sampled_from((ClipCapConnector, ClipCapLowRankConnector)),
)
def test_clipcap_is_permutation_invariant(order: list[int], cls: type[Connector]) -> None:
    connector = build(cls, TINY, cls.options_for("matched", TINY))
    features = random_features(TINY, 1)
    with torch.no_grad():
        permuted, straight = run(connector, features[:, order])[0], run(connector, features)[0]
    torch.testing.assert_close(permuted, straight, atol=1e-5, rtol=1e-4)


def test_masked_mean_by_hand() -> None:
    features = torch.tensor([[[1.0], [3.0], [math.nan]], [[math.nan]] * 3])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(features, mask).tolist() == [[2.0], [0.0]]


def test_clipcap_sizes() -> None:
    first, _, last = ClipCapConnector(TINY, num_tokens=10).layers
    assert (first.in_features, first.out_features, last.out_features) == (64, 480, 960)


def test_clipcap_masks_an_item_without_features() -> None:
    connector = build(ClipCapConnector, TINY, {"num_tokens": 2})
    mask = torch.tensor([[True] * 36, [False] * 36])
    _, token_mask = run(connector, random_features(TINY, 2), mask)
    assert token_mask.tolist() == [[True, True], [False, False]]


def test_low_rank_affine_has_its_rank_and_the_scale_of_a_full_one() -> None:
    torch.manual_seed(0)
    low = LowRankAffine(256, 512, rank=32)
    product = (low.up.weight @ low.down.weight).detach()
    assert torch.linalg.matrix_rank(product).item() == 32
    assert product.std().item() == pytest.approx(nn.Linear(256, 512).weight.std().item(), rel=0.1)


# --- helpers of the contracts ---


def test_zero_masked_clears_whatever_stood_there() -> None:
    features = torch.tensor([[[1.0], [math.nan], [math.inf]]])
    assert zero_masked(features, torch.tensor([[True, False, False]])).tolist() == [[[1], [0], [0]]]


@pytest.mark.parametrize(
    ("num_features", "grid", "tokens"),
    [
        (576, (24, 24), 144),
        (196, (14, 14), 49),
        (36, (6, 6), 9),
        (100, (1, 100), 1),
        (24, (4, 6), 4),
        (1500, None, 375),
        (1, None, 1),
    ],
)
def test_quarter_tokens(num_features: int, grid: tuple[int, int] | None, tokens: int) -> None:
    assert quarter_tokens(Widths(8, 8, num_features, grid)) == tokens
