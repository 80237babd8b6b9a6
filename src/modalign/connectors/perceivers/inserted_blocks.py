"""What the cross-attention connectors share: blocks before decoder layers that read an item's memory.

features (B, N, d) [-> resampler -> M latents (B, M, w)] -> keys and values of every block
hidden (B, T, D) -> hidden + what the block adds -> decoder layer
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modalign.connectors.base import Grid, Masked, attention_flops, map_flops, zero_masked
from modalign.connectors.hooks import HookedConnector, first_tensor, readable, with_first_tensor
from modalign.connectors.layers import typed
from modalign.connectors.perceivers.resampler import ResamplerCore


class InsertedBlock(nn.Module):
    """A block that runs before a decoder layer and adds what it reads of an item.

    ``forward(hidden (B, T, D), keys_values (B, K, 2 i), allowed (B, T, K))`` returns what it adds.
    """

    q: nn.Linear
    kv: nn.Linear
    out: nn.Linear
    ffn: nn.Module

    def keys_values(self, media: Tensor) -> Tensor:
        """(B, M, w) -> (B, M, 2 i)."""
        return self.kv(media)

    def alone(self, hidden: Tensor) -> Tensor | None:
        """Return what it adds to a text without media, (B, T, D); None for nothing."""
        return None

    def flops(self, tokens: int) -> float:
        """Return the FLOPs per text position that reads an item of ``tokens`` tokens."""
        maps = map_flops(1, self.q, self.out, self.ffn)
        return maps + attention_flops(1, tokens, self.q.out_features)


class InsertedBlocks(HookedConnector):
    """An in-layer connector whose blocks run before some of the decoder layers.

    Attributes:
        resampler: through which the blocks read an item; None if they read its features.
        blocks: in the order of the layers.
        places: the number of the layer that each block precedes.
    """

    resampler: ResamplerCore | None
    blocks: nn.ModuleList
    places: range

    def _read_tokens(self, num_features: int) -> int:
        """Return M, the tokens that a block reads of an item with N features."""
        return num_features if self.resampler is None else self.resampler.options.num_tokens

    def flops(self, num_features: int) -> float:
        """Return the FLOPs of the resampler, if there is one, and of all blocks' keys and values."""
        core = 0.0 if self.resampler is None else self.resampler.flops(num_features)
        maps = [block.kv for block in typed(self.blocks, InsertedBlock)]
        return core + map_flops(self._read_tokens(num_features), *maps)

    def flops_per_position(self) -> float:
        """Return the FLOPs of each block's query, scores against one item, output map and feed-forward."""
        tokens = self._read_tokens(self.widths.num_features)
        return sum(block.flops(tokens) for block in typed(self.blocks, InsertedBlock))

    def encode(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Turn (B, N, d) into keys and values of all blocks (B, M, blocks * 2 i), mask (B, M).

        An item without features gives a memory that no position may read.
        """
        media, present = zero_masked(features, mask), mask
        if self.resampler is not None:
            media = self.resampler(features, mask)
            present = mask.any(1, keepdim=True).expand(media.shape[:2])
        blocks = typed(self.blocks, InsertedBlock)
        memory = torch.cat([block.keys_values(media) for block in blocks], -1)
        return zero_masked(memory, present), present

    def attach(self, layers: nn.ModuleList) -> None:
        """Put the blocks before their layers."""
        self.detach()
        self.check_layers(layers)
        self.first_layer = self.places[0]
        for index, place in enumerate(self.places):
            hook = partial(self._before_layer, index)
            handle = layers[place].register_forward_pre_hook(hook, with_kwargs=True)
            self._handles.append(handle)

    def _before_layer(
        self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        hidden = first_tensor(args, kwargs)
        memory = self.memory_of(self.places[index], hidden)
        block = typed(self.blocks, InsertedBlock)[index]
        if memory is None:
            added = block.alone(hidden)
        else:
            own = memory.memory.chunk(len(self.blocks), -1)[index]
            added = block(hidden, own, readable(memory, hidden))
        if added is None:
            return None
        return with_first_tensor(args, kwargs, hidden + added.to(hidden.dtype))
