"""LLaMA-Adapter: learnt prompts that the upper layers' attention reads through gates that start at zero.

    features (B, N, d) -> mean -> affine -> (B, 1, D), added to P prompts of each adapted layer
    per layer: heads + tanh(g) * softmax(q k_prompts / sqrt(c)) v_prompts, then the output map

Source: LLaMA-Adapter (arXiv 2303.16199), version 1 with its image-conditioned prompts. Keys and
values of the prompts come from the layer's own (frozen) projections; the softmax over the prompts
is separate from the one over the text; g is one gate per head, zero at the start.

Parameters, with P = prompts, A = L - skip adapted layers, H = heads:
A (P D + H) + d D + D
Of these, A (P D + H) are prompts and gates, the figure that the literature quotes; the rest, the
affine map from the image, is the price of the second modality.

Published size: P = 10, all layers but the lowest 2. Recipe: prompts, gates and the map train, the
language model is frozen; 5 epochs, batch 64, lr 9e-3, 2 epochs of warm-up, weight decay 0.02.

Deliberate changes:
* A position uses the prompts only if it sees an item: rows without media are exactly the language
  model's, and a position's output never depends on media after it (so decoding with a cache
    equals recomputing). In the paper all positions use them and each text has one image in front.
* If several items are visible, the position's softmax runs over the prompts of all of them.
* Queries are taken before rotary positions are applied. Prompts have no position, so their keys are
  not rotated; a rotated query with an unrotated key would make the score depend on how far into
    the text the position is. Norms of queries and keys (Qwen3, Gemma) are applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modalign.connectors.base import (
    ConnectorError,
    Grid,
    Masked,
    Options,
    Widths,
    _Memory,
    attention_flops,
    map_flops,
    zero_masked,
)
from modalign.connectors.hooks import HookedConnector, first_tensor, in_backward, readable
from modalign.connectors.layers import attend, learnt, merge_heads, split_heads

SEPARATE = ("q_proj", "k_proj", "v_proj")
OUTPUTS = ("o_proj", "out_proj", "dense")
FUSED, FUSED_OUTPUT = "c_attn", "c_proj"  # GPT-2: query, key and value in equal thirds


@dataclass
class _Attention:
    """The projections of one decoder layer's self-attention, found by their names."""

    owner: nn.Module
    query: nn.Module
    output: nn.Module
    fused: bool

    @classmethod
    def of(cls, layer: nn.Module, index: int) -> _Attention:
        for owner in layer.modules():
            children = dict(owner.named_children())
            output = next((children[name] for name in OUTPUTS if name in children), None)
            if output is not None and all(name in children for name in SEPARATE):
                return cls(owner, children["q_proj"], output, fused=False)
            if FUSED in children and FUSED_OUTPUT in children:
                return cls(owner, children[FUSED], children[FUSED_OUTPUT], fused=True)
        raise ConnectorError(
            f"decoder layer {index} ({type(layer).__name__}) has no self-attention with "
            f"{', '.join(SEPARATE)} and one of {', '.join(OUTPUTS)}, nor with {FUSED} and "
            f"{FUSED_OUTPUT}; 'llama_adapter' needs them"
        )

    def queries(self, projected: Tensor, heads: int) -> Tensor:
        """Split the output of the query projection (B, T, H c), or of the fused one, into (B, H, T, c)."""
        if self.fused:
            projected = projected.chunk(3, -1)[0]
        if projected.shape[-1] % heads:
            raise ConnectorError(
                f"'llama_adapter' was built for {heads} heads, which do not divide queries of "
                f"width {projected.shape[-1]}"
            )
        return self._normed("q_norm", split_heads(projected, heads))

    def keys_values(self, prompts: Tensor, heads: int, head_size: int) -> tuple[Tensor, Tensor]:
        """Project prompts (B, S, D) to keys and values (B, H, S, c), repeated within groups."""
        if self.fused:
            _, k, v = self.query(prompts).chunk(3, -1)
        else:
            k, v = (self.owner.get_submodule(name)(prompts) for name in SEPARATE[1:])
        k, v = (split_heads(x, x.shape[-1] // head_size) for x in (k, v))
        k = self._normed("k_norm", k)
        repeats = heads // k.shape[1]
        return k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)

    @property
    def scale(self) -> float | None:
        """Return the factor that this attention puts on its scores, if it states one."""
        scaling = getattr(self.owner, "scaling", None)
        return scaling if isinstance(scaling, float) else None

    def _normed(self, name: str, x: Tensor) -> Tensor:
        norm = getattr(self.owner, name, None)
        return norm(x) if isinstance(norm, nn.Module) else x


@dataclass
class _Pending:
    """What a call of a layer has gathered before its output projection runs."""

    memory: _Memory | None = None
    queries: Tensor | None = None
    first: nn.Module | None = None  # the part of the layer that receives the layer's own input


@dataclass(frozen=True)
class LlamaAdapterOptions(Options):
    """Options of ``llama_adapter``; the published size grows with the LLM, so it is also the matched one.

    Attributes:
        prompts: P, per adapted layer.
        skip: how many of the lowest layers are left alone.
    """

    prompts: int = 10
    skip: int = 2


class LlamaAdapter(HookedConnector):
    """Image-conditioned prompts with zero-initialised gates in the upper layers."""

    name = "llama_adapter"
    family = "perceiver"
    group = "prompts with zero gates"
    token_formula = "0"
    parameter_text = "(L - 2)(10D + H) + dD + D"
    papers = ("LLaMA-Adapter (arXiv 2303.16199)",)
    options_type = LlamaAdapterOptions
    options: LlamaAdapterOptions

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__(widths, **options)
        adapted = widths.num_layers - self.options.skip
        if adapted < 1:
            raise ConnectorError(
                f"connector {self.name!r} leaves the lowest {self.options.skip} decoder layers alone, "
                f"but the language model has {widths.num_layers}; lower `skip`"
            )
        self.project = nn.Linear(widths.feature_size, widths.hidden_size)
        self.prompts = learnt(adapted, self.options.prompts, widths.hidden_size)
        self.gates = nn.Parameter(torch.zeros(adapted, widths.num_heads))

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the affine map of the mean.

        Not counted are the prompts' keys and values, which the language model's own projections
        compute, at the cost of P more positions in those two maps.
        """
        return map_flops(1, self.project)

    def flops_per_position(self) -> float:
        """Return the FLOPs of attention to the prompts of one item in every adapted layer."""
        adapted, prompts, D = self.prompts.shape
        return adapted * attention_flops(1, prompts, D)

    def encode(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Map (B, N, d) to the mean of the real features at width D (B, 1, D), and mask (B, 1)."""
        count = mask.sum(1, keepdim=True).clamp(min=1).to(features.dtype)
        mean = zero_masked(features, mask).sum(1) / count
        memory_mask = mask.any(1, keepdim=True)
        return zero_masked(self.project(mean).unsqueeze(1), memory_mask), memory_mask

    def attach(self, layers: nn.ModuleList) -> None:
        """Hook the query and output projections of the upper layers' self-attention."""
        self.detach()
        self.check_layers(layers)
        skip = self.first_layer = self.options.skip
        found = [(i, _Attention.of(layers[i], i)) for i in range(skip, len(layers))]
        for i, attention in found:
            layer, pending = layers[i], _Pending()
            self._handles += [
                layer.register_forward_pre_hook(
                    partial(self._before, i, pending), with_kwargs=True
                ),
                attention.query.register_forward_hook(partial(self._keep, pending)),
                attention.output.register_forward_pre_hook(
                    partial(self._add, i - skip, attention, pending)
                ),
                layer.register_forward_hook(partial(self._after, pending)),
            ]
            # A checkpoint repeats a layer's inside without calling the layer's own hooks, so its
            # first part, given the same hidden states, finds the memory again.
            self._handles += [
                part.register_forward_pre_hook(partial(self._again, i, pending), with_kwargs=True)
                for part in layer.children()
            ]

    def _before(
        self, i: int, pending: _Pending, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        pending.memory = self.memory_of(i, first_tensor(args, kwargs))

    def _again(
        self,
        i: int,
        pending: _Pending,
        part: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        pending.first = pending.first or part
        if in_backward() and part is pending.first:
            pending.memory = self.memory_of(i, first_tensor(args, kwargs))

    @staticmethod
    def _after(pending: _Pending, *_: Any) -> None:
        pending.memory = pending.queries = None

    @staticmethod
    def _keep(pending: _Pending, _: nn.Module, __: Any, projected: Tensor) -> None:
        if pending.memory is not None:
            pending.queries = projected

    def _add(
        self,
        index: int,
        attention: _Attention,
        pending: _Pending,
        _: nn.Module,
        args: tuple[Any, ...],
    ) -> tuple[Any, ...] | None:
        """Add the gated reading of the prompts to the heads' outputs (B, T, H c)."""
        memory, projected = pending.memory, pending.queries
        pending.memory = pending.queries = None
        if memory is None or projected is None:
            return None
        added = self._read(index, attention, memory, projected)
        return (args[0] + added.to(args[0].dtype).view_as(args[0]), *args[1:])

    def _read(
        self, index: int, attention: _Attention, memory: _Memory, projected: Tensor
    ) -> Tensor:
        heads, prompts = self.widths.num_heads, self.prompts[index]
        q = attention.queries(projected, heads)
        # Every item has its own prompts: (B, K, P, D).
        conditioned = (prompts + memory.memory.unsqueeze(2)).flatten(1, 2).to(projected.dtype)
        k, v = attention.keys_values(conditioned, heads, q.shape[-1])
        allowed = readable(memory, projected).repeat_interleave(len(prompts), 2)
        read = attend(q, k, v, allowed, attention.scale)
        return merge_heads(read * self.gates[index].tanh().to(read.dtype).view(1, -1, 1, 1))
