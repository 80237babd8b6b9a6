"""Run a language model from one layer and one token on; what comes before does not depend on the value.

While an edit's value is optimised, a vector is added at layer L at the lookup token. Attention is
causal, so up to layer L nothing else changes, and the tokens before the lookup token change at no
layer. ``prepare`` runs the whole model once and keeps the output of layer L from the lookup token on,
and the keys and values of the tokens before it; ``logits`` then runs the layers above L for the tokens
from the lookup token on, and the head at the positions asked for.

The model's own ``forward`` is called each time, since it makes masks and rotary angles as its
architecture needs them; the layers up to L are replaced by stubs that return the kept hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from modalign.connectors.hooks import with_first_tensor
from modalign.editing.engine.prefix import attends_to_all, repeated, shared
from modalign.editing.engine.spec import ModelSpec, Site, SpecError
from modalign.editing.engine.tokens import pad
from modalign.models.caches import CACHE
from modalign.models.projections import accepted, evaluating, hidden_of

KeyValues = tuple[Tensor, Tensor]  # keys and values of one layer, (B, heads, P, D/heads)


@dataclass(frozen=True)
class Inputs:
    """Rows to be run: right-padded embeddings or ids, their mask, and their lookup positions.

    Attributes:
        ids: (B, T), or None where embeddings are given.
        embeds: (B, T, D), for rows with pictures in them; or None.
        mask: (B, T), 1 at real tokens.
        lookups: (B,), the position at which values are read and written.
    """

    ids: Tensor | None
    embeds: Tensor | None
    mask: Tensor
    lookups: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], spec: ModelSpec) -> Inputs:
        """Pad rows; if any row has embeddings, the whole batch is given as embeddings."""
        device = spec.device
        lookups = torch.tensor([row.lookup for row in rows], device=device)
        if all(row.embeds is None for row in rows):
            padded = pad([row.ids for row in rows], device)
            return cls(padded.ids, None, padded.mask, lookups)
        embed = spec.language.get_input_embeddings()
        parts = [
            row.embeds.to(device)
            if row.embeds is not None
            else embed(torch.tensor([row.ids], device=device))[0].detach()
            for row in rows
        ]
        embeds = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        lengths = torch.tensor([len(part) for part in parts], device=device)
        mask = (torch.arange(embeds.shape[1], device=device) < lengths[:, None]).long()
        return cls(None, embeds, mask, lookups)

    @property
    def positions(self) -> Tensor:
        """(B, T)."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)

    @property
    def given(self) -> dict[str, Tensor]:
        """Return the rows as keyword arguments of a model."""
        return self.after(0)

    def after(self, begin: int) -> dict[str, Tensor]:
        """Return the same without the first ``begin`` tokens, which a cache holds."""
        what = {"input_ids": self.ids} if self.ids is not None else {"inputs_embeds": self.embeds}
        return {
            **{name: value[:, begin:] for name, value in what.items() if value is not None},
            "attention_mask": self.mask,
            "position_ids": self.positions[:, begin:],
        }


@dataclass(frozen=True)
class Row:
    """One row: its token ids or its embeddings, and its lookup position.

    Attributes:
        ids: token ids; if ``embeds`` are given, only their number matters.
        lookup: position of the lookup token.
        embeds: (T, D), where pictures stand between the words.
    """

    ids: tuple[int, ...]
    lookup: int
    embeds: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def followed_by(self, ids: tuple[int, ...]) -> Row:
        """Append ids; embeddings for them are yet to come."""
        return Row(self.ids + ids, self.lookup, self.embeds)

    def with_target(self, spec: ModelSpec) -> Row:
        """Add embeddings for ids that have none yet: the words of a target after pictures."""
        if self.embeds is None or len(self.embeds) == len(self.ids):
            return self
        embed = spec.language.get_input_embeddings()
        missing = torch.tensor(self.ids[len(self.embeds) :], device=spec.device)
        words = embed(missing).detach()
        return Row(self.ids, self.lookup, torch.cat([self.embeds.to(words), words]))

    def up_to_lookup(self) -> Row:
        """Drop the tokens after the lookup token, which it cannot see."""
        end = self.lookup + 1
        return Row(self.ids[:end], self.lookup, None if self.embeds is None else self.embeds[:end])


@dataclass(frozen=True)
class Base:
    """What stays the same while vectors are added at layer L: see the module's docstring.

    Attributes:
        hidden: output of layer L from the lookup token on, (B, S, D).
        suffix_mask: (B, S), 1 at real tokens.
        positions: (B, S), position ids of the suffix.
        prefix: keys and values of the P tokens before the lookup token, by layer.
        prefix_mask: (B, P).
        entering: input of layer L at the lookup token, (B, 1, D).
        initial: output at the lookup token per site, (B, D).
    """

    hidden: Tensor
    suffix_mask: Tensor
    positions: Tensor
    prefix: Mapping[int, KeyValues]
    prefix_mask: Tensor
    entering: Tensor
    initial: Mapping[Site, Tensor]

    def select(self, rows: Tensor) -> Base:
        """Return some of the rows."""
        return Base(
            self.hidden[rows],
            self.suffix_mask[rows],
            self.positions[rows],
            {layer: (k[rows], v[rows]) for layer, (k, v) in self.prefix.items()},
            self.prefix_mask[rows],
            self.entering[rows],
            {site: value[rows] for site, value in self.initial.items()},
        )


class StopForwardError(Exception):
    """Ends a forward pass once nothing more is needed from it."""


class PartialForward:
    """The model from layer ``layer`` on, for vectors added at ``sites`` of that layer."""

    def __init__(self, spec: ModelSpec, layer: int, sites: Sequence[Site]) -> None:
        self.spec = spec
        self.layer = layer
        self.sites = tuple(sites)
        # With parallel blocks, and for the block's own output, only the sum of the vectors
        # counts; otherwise the FFN of layer L must see what was added to the attention.
        self.adds_up = set(sites) == {"block"} or (
            spec.additive and (spec.parallel or "attention" not in sites)
        )
        self._tuples = [0] * spec.depth  # length of the tuple a layer returns; 0 for a tensor

    def prepare(self, inputs: Inputs) -> Base:
        """Run the whole model once, without gradients.

        Raises:
            SpecError: a row is longer than the model's sliding attention window.
        """
        window = self.spec.window
        if window is not None and inputs.mask.shape[1] > window:
            raise SpecError(
                f"a prompt of {inputs.mask.shape[1]} tokens is longer than the sliding attention "
                f"window of {window}; shorten it"
            )
        seen: dict[Site | str, Tensor] = {}
        cache = DynamicCache()
        with ExitStack() as stack, torch.no_grad(), evaluating(self.spec.language):
            self._note_outputs(stack, inputs.lookups, seen)
            _stop_before(stack, self.spec.language.get_output_embeddings())
            self._call(inputs.given, cache)
        return self._base(inputs, seen, cache)

    def _note_outputs(self, stack: ExitStack, lookups: Tensor, seen: dict[Any, Tensor]) -> None:
        rows = torch.arange(len(lookups), device=lookups.device)

        def layer_hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            seen["entering"] = entering[rows, lookups].unsqueeze(1)
            seen["hidden"] = hidden_of(output)
            seen["block"] = seen["hidden"][rows, lookups]

        def shape_hook(number: int) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                self._tuples[number] = len(output) if isinstance(output, tuple | list) else 0

            return hook

        def site_hook(site: Site) -> Any:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                seen[site] = output.reshape(len(lookups), -1, output.shape[-1])[rows, lookups]

            return hook

        layer = self.spec.layers[self.layer]
        stack.enter_context(layer.register_forward_hook(layer_hook, with_kwargs=True))
        for number, module in enumerate(self.spec.layers):
            stack.enter_context(module.register_forward_hook(shape_hook(number)))
        for site in self.sites:
            if site != "block":
                module = self.spec.projection(self.layer, site)
                stack.enter_context(module.register_forward_hook(site_hook(site)))

    def _base(self, inputs: Inputs, seen: dict[Any, Tensor], cache: DynamicCache) -> Base:
        lookups, mask = inputs.lookups, inputs.mask
        lengths = mask.sum(1)
        width = int((lengths - lookups).max())
        prefix = int(lookups.max())
        steps = torch.arange(width, device=mask.device)
        positions = lookups[:, None] + steps
        suffix_mask = (positions < lengths[:, None]).long()
        within = positions.clamp(max=mask.shape[1] - 1)
        rows = torch.arange(len(mask), device=mask.device)[:, None]
        first = self.layer + (1 if self.adds_up else 0)
        # Aligned at the lookup token, so that there is no gap between a prefix and its suffix: some
        # models take distances from indices into the cache, not from position ids.
        places = lookups[:, None] - prefix + torch.arange(prefix, device=mask.device)
        return Base(
            hidden=seen["hidden"][rows, within],
            suffix_mask=suffix_mask,
            positions=within,
            prefix={
                layer: _prefix(cache, layer, places) for layer in range(first, self.spec.depth)
            },
            prefix_mask=(places >= 0).long(),
            entering=seen["entering"],
            initial={site: seen[site].to(self.spec.exact) for site in self.sites},
        )

    def logits(
        self, base: Base, vectors: Mapping[Site, Tensor], where: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Return logits with vectors added at the lookup token, (N, V), in ``spec.exact``.

        Args:
            base: from :meth:`prepare`, for the same rows.
            vectors: per site, (B, D).
            where: N row numbers, and N positions counted from the lookup token.
        """
        at_lookup = self._at_lookup(base, vectors)
        hidden = torch.cat([at_lookup.unsqueeze(1), base.hidden[:, 1:]], dim=1)
        with ExitStack() as stack:
            self._start_from(stack, self.layer + 1, hidden)
            _only_at(stack, self.spec.language.get_output_embeddings(), where)
            output = self._call(
                {
                    "inputs_embeds": torch.zeros_like(base.hidden),
                    "attention_mask": torch.cat([base.prefix_mask, base.suffix_mask], dim=1),
                    "position_ids": base.positions,
                },
                self._cache(base),
            )
        return output.logits[0].to(self.spec.exact)

    def _at_lookup(self, base: Base, vectors: Mapping[Site, Tensor]) -> Tensor:
        """Return layer L's output at the lookup token with the vectors added, (B, D)."""
        if self.adds_up:
            hidden = base.hidden[:, 0].to(self.spec.exact) + sum(vectors.values())
            return hidden.to(base.hidden.dtype)
        found: list[Tensor] = []

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            found.append(hidden_of(output)[:, 0])
            raise StopForwardError

        def adding(vector: Tensor) -> Any:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                return (output.to(vector.dtype) + vector.view_as(output)).to(output.dtype)

            return hook

        with ExitStack() as stack:
            for site, vector in vectors.items():
                module = self.spec.module(self.layer, site)
                stack.enter_context(module.register_forward_hook(adding(vector)))
            self._start_from(stack, self.layer, base.entering)
            stack.enter_context(self.spec.layers[self.layer].register_forward_hook(stop))
            self._call(
                {
                    "inputs_embeds": torch.zeros_like(base.entering),
                    "attention_mask": torch.cat([base.prefix_mask, base.suffix_mask[:, :1]], 1),
                    "position_ids": base.positions[:, :1],
                },
                self._cache(base),
            )
        return found[0]

    def _start_from(self, stack: ExitStack, first: int, hidden: Tensor) -> None:
        """Make the layers before ``first`` return ``hidden`` instead of running."""
        for number in range(first):
            stack.enter_context(_stubbed(self.spec.layers[number], hidden, self._tuples[number]))
        if first == 0:

            def give(module: nn.Module, args: Any, kwargs: Any) -> Any:
                return with_first_tensor(args, kwargs, hidden)

            stack.enter_context(
                self.spec.layers[0].register_forward_pre_hook(give, with_kwargs=True),
            )

    def _cache(self, base: Base) -> DynamicCache:
        """Return the kept keys and values as a cache that this pass may append to."""
        cache = DynamicCache()
        rows, length = base.prefix_mask.shape
        # Of layers that do not run, only the length is read.
        blank = base.hidden.new_zeros(rows, 1, length, 1)
        for layer in range(self.spec.depth):
            keys, values = base.prefix.get(layer, (blank, blank))
            cache.update(keys[:, :, :0], values[:, :, :0], layer)
            cache.layers[layer].keys, cache.layers[layer].values = keys, values
        return cache

    def _call(self, inputs: dict[str, Any], cache: DynamicCache) -> Any:
        language = self.spec.language
        with suppress(StopForwardError):
            return language(**{CACHE: cache}, use_cache=True, **accepted(language, inputs))
        return None


def _prefix(cache: DynamicCache, layer: int, places: Tensor) -> KeyValues:
    """Return keys and values at each row's places (B, P); what lies before a row's start is masked."""
    held: Any = cache.layers[layer]

    def taken(states: Tensor) -> Tensor:
        index = places.clamp(min=0)[:, None, :, None]
        return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))

    return taken(held.keys), taken(held.values)


@contextmanager
def _stubbed(layer: nn.Module, hidden: Tensor, length: int) -> Iterator[None]:
    """Let a layer return ``hidden`` without running, in a tuple of its usual length."""

    def stub(*args: Any, **kwargs: Any) -> Any:
        return (hidden, *[None] * (length - 1)) if length else hidden

    # Set on the instance, hiding the class's; other libraries (accelerate's offloading) do the same.
    before = layer.__dict__.get("forward")
    layer.forward = stub
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before


def _stop_before(stack: ExitStack, module: Any) -> None:
    def stop(module: nn.Module, args: Any) -> None:
        raise StopForwardError

    stack.enter_context(module.register_forward_pre_hook(stop))


def _only_at(stack: ExitStack, head: Any, where: tuple[Tensor, Tensor]) -> None:
    """Let the head see the hidden states at only N positions: (B, S, D) becomes (1, N, D)."""
    rows, positions = where

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows, positions].unsqueeze(0), *args[1:])

    stack.enter_context(head.register_forward_pre_hook(gather))


Side = Literal["input", "output"]
K = TypeVar("K")


def read(
    spec: ModelSpec, rows: Sequence[Row], wanted: Mapping[K, tuple[nn.Module, Side]]
) -> dict[K, Tensor]:
    """Read inputs and outputs of modules at the lookup token, with the weights as they are now.

    Args:
        spec: the model.
        rows: run only up to their lookup tokens, and only up to the last module asked for.
        wanted: key -> a module that takes hidden states, and which side of it is wanted.

    Returns:
        Each as (B, d) in ``spec.exact``.
    """
    rows = [row.up_to_lookup() for row in rows]
    inputs = Inputs.of(rows, spec)
    begin = _beginning(spec, rows)
    found: dict[K, Tensor] = {}

    def note(key: K, side: Side) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            value = hidden_of(output) if side == "output" else given
            found[key] = value
            if len(found) == len(wanted):
                raise StopForwardError

        return hook

    def run(given: dict[str, Any], cache: DynamicCache | None) -> None:
        found.clear()
        held = {} if cache is None else {CACHE: cache}
        with suppress(StopForwardError):
            spec.language(use_cache=cache is not None, **held, **accepted(spec.language, given))

    with ExitStack() as stack, torch.no_grad(), evaluating(spec.language):
        for key, (module, side) in wanted.items():
            hook = note(key, side)
            stack.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        cache = None
        if begin:
            alone = DynamicCache()
            run(Inputs.of([Row(rows[0].ids[:begin], 0)], spec).given, alone)
            cache = repeated(alone, len(rows))
            begin = begin if cache is not None else 0
        run(inputs.after(begin), cache)
    lookups = inputs.lookups - begin
    index = torch.arange(len(rows), device=spec.device)
    return {
        key: value.reshape(len(rows), -1, value.shape[-1])[index, lookups].to(spec.exact)
        for key, value in found.items()
    }


def _beginning(spec: ModelSpec, rows: Sequence[Row]) -> int:
    """Count the tokens before the lookup tokens that all rows begin with, if the model can run them once."""
    if any(row.embeds is not None for row in rows):
        return 0
    if not attends_to_all(spec.language.config, max(map(len, rows))):
        return 0
    return shared([row.ids for row in rows], min(row.lookup for row in rows))


def logits_at(
    spec: ModelSpec, rows: Sequence[Row], places: Sequence[Sequence[int]]
) -> tuple[Tensor, ...]:
    """Return logits of whole rows at some places of each; the head sees no other place.

    Args:
        spec: the model, with its weights as they are.
        rows: to be run.
        places: per row, the N_i positions whose logits are wanted.

    Returns:
        Per row (N_i, V) in ``spec.exact``.
    """
    inputs = Inputs.of([row.with_target(spec) for row in rows], spec)
    counts = [len(wanted) for wanted in places]
    numbers = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)).to(spec.device)
    positions = torch.tensor([p for wanted in places for p in wanted], device=spec.device)
    with ExitStack() as stack:
        _only_at(stack, spec.language.get_output_embeddings(), (numbers, positions))
        output = spec.language(use_cache=False, **accepted(spec.language, inputs.given))
    return output.logits[0].to(spec.exact).split(counts)
