"""The number of parameters of every connector, as its description writes it out.

Letters are the field's: d features of the encoder, D width of the language model, N features, M tokens,
L decoder layers, H heads. Nothing here comes from a module: it is what the modules are held against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modalign.connectors.base import Widths

Formula = Callable[[Widths, dict[str, Any]], int]


def linear(widths: Widths, _: dict[str, Any]) -> int:
    d, D = widths.feature_size, widths.hidden_size
    return d * D + D


def mlp(widths: Widths, options: dict[str, Any]) -> int:
    d, D = widths.feature_size, widths.hidden_size
    return d * D + D + (options["depth"] - 1) * (D**2 + D)


def fused_mlp(widths: Widths, options: dict[str, Any]) -> int:
    d, D, inner = widths.feature_size, widths.hidden_size, options["inner_size"]
    inner = 4 * d if inner is None else inner
    return d * inner + inner + inner * D + D + D**2 + D


def avgpool_mlp(widths: Widths, options: dict[str, Any]) -> int:
    d, D, depth = widths.feature_size, widths.hidden_size, options["depth"]
    return d * D + (depth - 1) * D**2 + options["bias"] * depth * D


def pixel_shuffle_linear(widths: Widths, options: dict[str, Any]) -> int:
    return options["factor"] ** 2 * widths.feature_size * widths.hidden_size


def pixel_shuffle_mlp(widths: Widths, options: dict[str, Any]) -> int:
    folded, D = options["factor"] ** 2 * widths.feature_size, widths.hidden_size
    return 2 * folded + folded * D + D + D**2 + D


def stack_mlp(widths: Widths, options: dict[str, Any]) -> int:
    d, D = widths.feature_size, widths.hidden_size
    return options["stack"] * d * D + D**2


def clipcap(widths: Widths, options: dict[str, Any]) -> int:
    d, outputs = widths.feature_size, options["num_tokens"] * widths.hidden_size
    hidden = outputs // 2
    return d * hidden + hidden + hidden * outputs + outputs


def clipcap_lowrank(widths: Widths, options: dict[str, Any]) -> int:
    d, outputs = widths.feature_size, options["num_tokens"] * widths.hidden_size
    r, hidden = options["rank"], outputs // 2
    return r * (d + hidden) + hidden + r * (hidden + outputs) + outputs


def ldp(widths: Widths, _: dict[str, Any]) -> int:
    d, D = widths.feature_size, widths.hidden_size
    S = max(8, (D // 4 + 4) // 8 * 8)  # MobileNet's multiple of 8, at most 10 % below a quarter
    S += 8 * (S < 0.9 * (D // 4))
    block = 9 * D + 4 * D + D**2 + 2 * D * S + S + D
    return d * D + D + D**2 + D + 2 * block


def ldpv2(widths: Widths, _: dict[str, Any]) -> int:
    d, D = widths.feature_size, widths.hidden_size
    return d * D + D + D**2 + D + 9 * D + D


def c_abstractor(widths: Widths, options: dict[str, Any]) -> int:
    d, D = widths.feature_size, widths.hidden_size
    W, depth = options["inner_size"], options["depth"]

    def block(inputs: int) -> int:
        S = max(1, round(inputs / 4))
        excite = 2 * W * S + S + W
        shortcut = 0 if inputs == W else inputs * W + 2 * W
        return inputs * W + 2 * W + 9 * W + 2 * W + excite + W**2 + 2 * W + shortcut

    blocks = block(d) + (2 * depth - 1) * block(W)
    return widths.num_features * d + blocks + W * D + D + D**2 + D


def _resampler_core(d: int, options: dict[str, Any]) -> int:
    w, layers, f = options["width"], options["layers"], options["ffn"]
    i = options["heads"] * options["head_size"]
    if options["style"] == "cross":
        layer = 2 * (w * i + d * i) + 3 * i + w + 2 * w * f + f + w + 4 * w + 2 * d
    else:
        layer = 4 * w * i + 2 * w * f + 6 * w
        layer += 4 * options["head_size"] * (options["style"] == "idefics")
    enter = d * w + w if options["style"] != "cross" and d != w else 0
    return options["num_tokens"] * w + enter + layers * layer + 2 * w


def resampler(widths: Widths, options: dict[str, Any]) -> int:
    w, D = options["width"], widths.hidden_size
    return _resampler_core(widths.feature_size, options) + w * D + D


def swiglu_resampler(widths: Widths, options: dict[str, Any]) -> int:
    d, D = widths.feature_size, widths.hidden_size
    h, f, c = options["hidden"], options["ffn"], options["head_size"]
    layer = 2 * D * options["heads"] * c + 2 * D * options["kv_heads"] * c + 3 * D * f + 3 * D
    return 2 * d * h + h * D + options["num_tokens"] * D + options["layers"] * layer + D


def d_abstractor(widths: Widths, options: dict[str, Any]) -> int:
    d, D, N, M = (
        widths.feature_size,
        widths.hidden_size,
        widths.num_features,
        options["num_tokens"],
    )
    w, f, HP = options["width"], options["ffn"], options["heads"] * options["points"]
    layer = 4 * (w**2 + w) + 2 * (w**2 + w) + 3 * HP * (w + 1) + 2 * w * f + f + w + 6 * w
    enter = 0 if d == w else d * w + w
    return enter + N * w + M * w + 2 * M + options["layers"] * layer + w * D + D


def qformer(widths: Widths, options: dict[str, Any]) -> int:
    d, D, M = widths.feature_size, widths.hidden_size, options["num_tokens"]
    w, f, layers = options["width"], options["ffn"], options["layers"]
    readers = -(-layers // options["cross_every"])
    layer = 4 * (w**2 + w) + 2 * w * f + f + w + 4 * w
    cross = 2 * (w**2 + w) + 2 * (d * w + w) + 2 * w
    return M * w + 2 * w + layers * layer + readers * cross + w * D + D


def window_qformer(widths: Widths, options: dict[str, Any]) -> int:
    d, D, q = widths.feature_size, widths.hidden_size, options["queries"]
    w, f = options["width"], options["ffn"]
    layer = 2 * (w**2 + w) + 2 * (d * w + w) + 2 * w * f + f + w + 4 * w
    layer += (4 * (w**2 + w) + 2 * w) * (q > 1)
    return q * w + 2 * w + 2 * d + options["layers"] * layer + w * D + D


def variational(widths: Widths, options: dict[str, Any]) -> int:
    w, c, D = options["width"], options["code_width"], widths.hidden_size
    core = options | {"head_size": w // options["heads"], "style": "cross"}
    return _resampler_core(widths.feature_size, core) + 2 * w * c + 2 * c + c * D + D


def vq_codes(widths: Widths, options: dict[str, Any]) -> int:
    d, D, W, h = widths.feature_size, widths.hidden_size, options["window"], options["hidden"]
    K, c = options["num_codes"], options["code_width"]
    return (W * d * h + h) + (h * c + c) + K * c + (c * D + D) + K * D


def vocabulary_codes(widths: Widths, options: dict[str, Any]) -> int:
    d, D, W, h = widths.feature_size, widths.hidden_size, options["window"], options["hidden"]
    return (W * d * h + h) + (h * D + D)


def gated_blocks(widths: Widths, options: dict[str, Any]) -> int:
    """Those of the blocks alone: what the literature counts inside the language model."""
    D, w = widths.hidden_size, (options["resampler"] or {}).get("width", widths.feature_size)
    i, F = options["heads"] * options["head_size"], options["ffn_factor"]
    block = 2 * D * i + 2 * w * i + 2 * F * D**2 + 4 * D + 2
    return widths.num_layers // options["every"] * block


def gated_cross_attention(widths: Widths, options: dict[str, Any]) -> int:
    d = widths.feature_size
    flamingo = {"num_tokens": 64, "width": d, "layers": 6, "heads": 8, "head_size": 64}
    flamingo |= {"ffn": 4 * d, "style": "flamingo"}  # type: ignore[dict-item]
    core = _resampler_core(d, flamingo | (options["resampler"] or {}))
    return core + gated_blocks(widths, options)


def idefics_cross_attention(widths: Widths, options: dict[str, Any]) -> int:
    d, D, f, c = widths.feature_size, widths.hidden_size, options["ffn"], options["head_size"]
    i, G = options["heads"] * c, D if options["gate"] == "vector" else 1
    core = 0
    if options["resampler"] is not None:
        own = {"width": d, "ffn": 4 * d, "style": "idefics"}
        core = _resampler_core(d, own | options["resampler"])
    block = 2 * D * i + 2 * d * i + 3 * D * f + 2 * D + 2 * c + 2 * G
    return core + widths.num_layers // options["every"] * block


def adapter_prompts(widths: Widths, options: dict[str, Any]) -> int:
    """Those of prompts and gates alone: the figure that the literature quotes."""
    adapted = widths.num_layers - options["skip"]
    return adapted * (options["prompts"] * widths.hidden_size + widths.num_heads)


def llama_adapter(widths: Widths, options: dict[str, Any]) -> int:
    d, D = widths.feature_size, widths.hidden_size
    return adapter_prompts(widths, options) + d * D + D


FORMULAS: dict[str, Formula] = {
    formula.__name__: formula
    for formula in (
        linear,
        mlp,
        fused_mlp,
        avgpool_mlp,
        pixel_shuffle_linear,
        pixel_shuffle_mlp,
        stack_mlp,
        clipcap,
        clipcap_lowrank,
        ldp,
        ldpv2,
        c_abstractor,
        resampler,
        swiglu_resampler,
        d_abstractor,
        qformer,
        window_qformer,
        variational,
        vq_codes,
        vocabulary_codes,
        gated_cross_attention,
        idefics_cross_attention,
        llama_adapter,
    )
} | {"raw_patches": linear, "pool_linear": linear}
