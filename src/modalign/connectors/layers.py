"""Pieces that several connectors are built from: attention, feed-forward, learnt queries, windows.

Like every file that a connector imports, this one needs only the standard library and torch.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalign.connectors.base import Masked, attention_flops, map_flops, zero_masked

M = TypeVar("M", bound=nn.Module)

INIT_STD = 0.02  # standard deviation of learnt queries, positions and prompts at the start


def typed(modules: nn.ModuleList, kind: type[M]) -> list[M]:
    """Return the modules as a list of their common type."""
    return cast("list[M]", list(modules))


def learnt(*shape: int) -> nn.Parameter:
    """Make a parameter drawn from N(0, 0.02)."""
    return nn.Parameter(torch.randn(*shape) * INIT_STD)


def heads_of(width: int, size: int = 64) -> int:
    """Return the smallest number of heads that divides ``width`` into heads of at most ``size``."""
    return next(n for n in range(-(-width // size), width + 1) if width % n == 0)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, heads * c) -> (B, heads, S, c)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, S, c) -> (B, S, heads * c)."""
    return x.transpose(1, 2).flatten(2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Compute scaled dot-product attention; a query with nothing to read gets exactly zero.

    Args:
        q: (B, heads, S, c).
        k: (B, heads, K, c).
        v: (B, heads, K, c).
        allowed: (B, S, K) or (B, 1, K) bool, True where reading is allowed; None for everywhere.
        scale: factor on the scores, 1 / sqrt(c) by default.
    """
    if allowed is None:
        return functional.scaled_dot_product_attention(q, k, v, scale=scale)
    allowed = allowed.unsqueeze(1)
    # A softmax over nothing is NaN, and so are its gradients: such queries read everything, then drop it.
    nothing = ~allowed.any(-1, keepdim=True)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed | nothing, scale=scale)
    return out.masked_fill(nothing, 0.0)


class Attention(nn.Module):
    """Multi-head attention of queries (B, S, width) to a memory (B, K, memory_width)."""

    def __init__(
        self,
        width: int,
        heads: int,
        head_size: int | None = None,
        memory_width: int | None = None,
        bias: bool = True,
        norms: bool = False,
    ) -> None:
        super().__init__()
        size = head_size or width // heads
        inner = heads * size
        self.heads = heads
        self.q = nn.Linear(width, inner, bias)
        self.k = nn.Linear(memory_width or width, inner, bias)
        self.v = nn.Linear(memory_width or width, inner, bias)
        self.out = nn.Linear(inner, width, bias)
        self.q_norm = nn.LayerNorm(size) if norms else nn.Identity()  # separately for each head
        self.k_norm = nn.LayerNorm(size) if norms else nn.Identity()

    def forward(
        self,
        queries: Tensor,
        memory: Tensor,
        allowed: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """Attend to ``memory`` where ``allowed``; ``values``, if given, are read instead of it."""
        q = self.q_norm(split_heads(self.q(queries), self.heads))
        k = self.k_norm(split_heads(self.k(memory), self.heads))
        v = split_heads(self.v(memory if values is None else values), self.heads)
        return self.out(merge_heads(attend(q, k, v, allowed)))

    def flops(self, queries: int, keys: int) -> float:
        """Return the FLOPs of one item with ``queries`` queries and ``keys`` keys."""
        maps = map_flops(queries, self.q, self.out) + map_flops(keys, self.k, self.v)
        return maps + attention_flops(queries, keys, self.q.out_features)


class FeedForward(nn.Module):
    """Affine, GELU (or another activation), affine."""

    def __init__(
        self, width: int, hidden: int, bias: bool = True, activation: type[nn.Module] = nn.GELU
    ) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias)
        self.activation = activation()
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.down(self.activation(self.up(x)))


class SwiGLU(nn.Module):
    """``down(silu(gate x) * up x)``, without biases (arXiv 2002.05202)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, hidden, bias=False)
        self.up = nn.Linear(inputs, hidden, bias=False)
        self.down = nn.Linear(hidden, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def windows(features: Tensor, mask: Tensor, size: int) -> Masked:
    """Cut a sequence into windows of ``size`` neighbours; the last one may be partly padding.

    Args:
        features: (B, N, d); arbitrary where ``mask`` is False, read as zeros.
        mask: (B, N) bool.
        size: neighbours per window.

    Returns:
        (B, W, size, d) with W = ceil(N / size), and their mask (B, W, size).
    """
    missing = -features.shape[1] % size
    whole = functional.pad(zero_masked(features, mask), (0, 0, 0, missing))
    present = functional.pad(mask, (0, missing))
    return whole.unflatten(1, (-1, size)), present.unflatten(1, (-1, size))
