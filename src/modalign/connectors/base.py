"""The two contracts that a connector can fulfil, and what every connector declares about itself.

This file and every file under ``converters/`` and ``perceivers/`` imports nothing but the
standard library, torch and its siblings: a trained model is exported with copies of them, so that
it loads where modalign is not installed.

Notation (the field's): B items, N encoder tokens of width d (a grid of h x w when there is one),
M tokens of the language model's width D, T text positions.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

Grid = tuple[int, int]
Masked = tuple[Tensor, Tensor]  # values (B, M, w), and (B, M) bool: True where there is a value
Variant = Literal["matched", "published"]


@dataclass(frozen=True)
class Widths:
    """What a connector must know of its two neighbours.

    Attributes:
        feature_size: d, width of the encoder's features.
        hidden_size: D, width of the language model's embeddings.
        num_features: N, encoder tokens per item (the largest number, if it varies).
        grid: (h, w) with h * w == N, or None when the encoder's tokens have no grid.
        num_layers: L, decoder layers of the language model (read by in-layer connectors).
        num_heads: attention heads of the language model (read by in-layer connectors).
    """

    feature_size: int
    hidden_size: int
    num_features: int
    grid: Grid | None
    num_layers: int = 0
    num_heads: int = 1


class ConnectorError(ValueError):
    """A connector was asked for something it cannot do; the message says what it needs."""


@dataclass(frozen=True)
class Options:
    """A connector's options. A subclass adds fields that JSON can hold, each with a default.

    A connector names its subclass as ``options_type``. Its constructor, the configuration of a saved
    model and the method names of ``compare`` all read these fields.
    """

    @classmethod
    def published(cls, widths: Widths) -> Self:
        """Return the options of the published size: the defaults, unless they depend on the widths."""
        return cls()

    @classmethod
    def matched(cls, widths: Widths) -> Self:
        """Return the options of the size matched to the language model's width."""
        return cls.published(widths)

    @classmethod
    def of(cls, connector: str, given: Mapping[str, Any]) -> Self:
        """Return options with the given values.

        Args:
            connector: its name, for the error.
            given: values by name; the others keep their defaults.

        Raises:
            ConnectorError: one is unknown.
        """
        known = [field.name for field in fields(cls)]
        for unknown in sorted(given.keys() - known):
            raise ConnectorError(
                f"connector {connector!r} has no option {unknown!r}; it has "
                f"{', '.join(known) or 'none'}"
            )
        return cls(**given)


class Connector(nn.Module, ABC):
    """What prefix and in-layer connectors share.

    A subclass sets the class attributes, takes ``(widths: Widths, **options)`` in ``__init__``, passes
    both on to this class, which keeps them, and is registered by
    ``modalign.connectors.registry.register``.

    Attributes:
        widths: of the two neighbours.
        options: those this connector was built with, an ``options_type``.
    """

    name: ClassVar[str]
    family: ClassVar[Literal["converter", "perceiver"]]
    group: ClassVar[str]  # the survey's sub-group, e.g. "direct mapping"
    enters: ClassVar[Literal["prefix", "in-layer"]]
    token_formula: ClassVar[str]  # for people, e.g. "N/4"
    parameter_text: ClassVar[str]  # for people, e.g. "dD + D"
    papers: ClassVar[tuple[str, ...]]  # "LLaVA (arXiv 2304.08485)"
    export_target: str = "remote-code"  # or the native class, e.g. "Llava"
    discrete: ClassVar[bool] = False  # its tokens are ids that a vocabulary can hold
    needs_grid: ClassVar[bool] = False
    options_type: ClassVar[type[Options]] = Options
    stage_one_needs_text: ClassVar[bool] = False  # each medium with a text, not the medium alone
    keeps_llm_frozen: ClassVar[bool] = False  # in every stage, whatever else trains
    # A factor on the connector's learning rate: published rates of attention-based connectors (1e-4 to
    # 3e-4 in BLIP-2, Flamingo and Honeybee) are well below those of linear maps and MLPs (1e-3 in LLaVA).
    rate_scale: ClassVar[float] = 1.0
    raw_input: ClassVar[bool] = False  # reads the raw signal (flattened patches), not an encoder

    options: Options

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__()
        self.widths = widths
        self.options = self.options_type.of(self.name, options)
        if self.needs_grid and widths.grid is None:
            raise ConnectorError(
                f"connector {self.name!r} works on a grid of features, but the encoder gives "
                f"{widths.num_features} features without one; use a connector that needs no grid"
            )

    @classmethod
    def options_for(cls, variant: Variant, widths: Widths) -> dict[str, Any]:
        """Return the options of the published size, or of the one matched to the LLM's width."""
        kind = cls.options_type
        return asdict(kind.published(widths) if variant == "published" else kind.matched(widths))

    @classmethod
    def parameter_count(cls, widths: Widths, **options: Any) -> int:
        """Return the number of parameters, counted on a module built without memory for its weights."""
        return _count_parameters(cls, widths, json.dumps(options, sort_keys=True))

    @classmethod
    def stage_one_terms(cls, **options: Any) -> dict[str, float]:
        """Return the objective, term -> weight, of the connector's pre-training without the LLM; {} for none.

        If there is one, ``build_stage_one`` returns the network that it trains.
        """
        return {}

    @classmethod
    def model_terms(cls, **options: Any) -> dict[str, float]:
        """Return terms to add to the objective of every stage that runs the whole model."""
        return {}

    @abstractmethod
    def num_tokens(self, num_features: int) -> int:
        """Return M, the tokens that an item with N features costs the LLM (0 for in-layer connectors)."""

    @abstractmethod
    def flops(self, num_features: int) -> float:
        """Return the FLOPs of one forward pass over one item (a multiply-add counts 2).

        In-layer connectors count here the work done once per item (that of a resampler, say); the
        work done per text position is in :meth:`InLayerConnector.flops_per_position`.
        """

    def attach_embeddings(self, embedding: nn.Embedding) -> None:
        """Take note of the LLM's input embedding, once, when the two are joined; most do not need it."""

    def attach_tokenizer(self, tokenizer: Any) -> None:
        """Take note of the LLM's tokenizer, once, before any training; a saved model is loaded without it."""

    def take_code(self) -> Any:
        """Return, only once, what the last training forward pass left for objective terms; None for nothing."""
        return None

    def diagnose(self, media: Iterable[tuple[Tensor, Tensor, Grid | None]]) -> dict[str, float]:
        """Measure further figures for reports, over (features, mask, grid) batches; {} for none."""
        return {}


@lru_cache(maxsize=256)
def _count_parameters(cls: type[Connector], widths: Widths, options: str) -> int:
    with torch.device("meta"):
        module = cls(widths, **json.loads(options))
    return sum(parameter.numel() for parameter in module.parameters())


class PrefixConnector(Connector):
    """A connector that turns features into embeddings within the LLM's input sequence."""

    enters = "prefix"

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Map features to embeddings.

        Args:
            features: (B, N, d). Values where ``mask`` is False are arbitrary and must not matter.
            mask: (B, N) bool, True where there is a feature.
            grid: (h, w) of every item of this batch, or None. Callers group items by grid.

        Returns:
            tokens (B, M, D) and their mask (B, M) bool.
        """


@dataclass(frozen=True)
class TokenOptions(Options):
    """Options of a connector that gives every item the same number of tokens.

    Attributes:
        num_tokens: M.
    """

    num_tokens: int = 64


class FixedLength(PrefixConnector):
    """A prefix connector that gives every item M tokens, whatever N is."""

    token_formula = "M"
    options_type = TokenOptions
    options: TokenOptions

    def num_tokens(self, num_features: int) -> int:
        """Return M, whatever N is."""
        return self.options.num_tokens


class InLayerConnector(Connector):
    """A connector whose features are read inside decoder layers; one mark token holds their place in the text.

    Life cycle: call ``attach(layers)`` once after the language model exists (it registers hooks; the
    connector neither owns nor saves the layers), then for every forward pass
    ``with connector.reading(media, media_mask, visible): llm(...)``.

    At initialisation the hooks must change nothing: logits with and without them are equal.
    """

    enters = "in-layer"
    first_layer: int = 0  # the lowest decoder layer that reads, known once attached

    def num_tokens(self, num_features: int) -> int:
        """Return 0: the item's place in the text is one mark, which the caller counts."""
        return 0

    @abstractmethod
    def encode(self, features: Tensor, mask: Tensor, grid: Grid | None = None) -> Masked:
        """Turn features (B, N, d) into the memory the layers read: (B, M, w), mask (B, M)."""

    @abstractmethod
    def attach(self, layers: nn.ModuleList) -> None:
        """Register hooks on the decoder layers; raise ConnectorError naming what is not found."""

    @abstractmethod
    def detach(self) -> None:
        """Remove the hooks."""

    @abstractmethod
    def flops_per_position(self) -> float:
        """Return the FLOPs added per text position over all layers, forward only."""

    @contextmanager
    def reading(self, memory: Tensor, memory_mask: Tensor, visible: Tensor) -> Iterator[None]:
        """Let the hooks read ``memory`` while the block lasts.

        Args:
            memory: (B, K, w), the encoded media of each row side by side (K = media per row * M).
            memory_mask: (B, K) bool.
            visible: (B, T, K) bool, which memory each text position may read: that of the last item
                before it, or nothing before the first item.
        """
        self._memory = _Memory(memory, memory_mask, visible)
        try:
            yield
        finally:
            self._memory = None

    _memory: _Memory | None = None


@dataclass
class _Memory:
    memory: Tensor
    mask: Tensor
    visible: Tensor


def linear_flops(positions: float, inputs: int, outputs: int) -> float:
    """Return the FLOPs of products with a matrix at ``positions`` places; for modules see :func:`map_flops`."""
    return 2.0 * positions * inputs * outputs


def attention_flops(queries: float, keys: float, width: int) -> float:
    """Return the FLOPs of an attention's scores and weighted sum at inner width ``width``."""
    return 4.0 * queries * keys * width


def map_flops(positions: float, *modules: nn.Module) -> float:
    """Return the FLOPs of all affine maps and convolutions in ``modules``, applied at ``positions`` places."""
    found = (part for module in modules for part in module.modules())
    return 2.0 * positions * sum(map(_products, found))


def _products(module: nn.Module) -> int:
    """Return the multiplications of a map at one place of its output."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    if isinstance(module, nn.Conv2d):
        per_output = module.in_channels // module.groups * math.prod(module.kernel_size)
        return per_output * module.out_channels
    return 0


def to_grid(features: Tensor, grid: Grid | None, name: str) -> Tensor:
    """Reshape (B, N, d) to (B, d, h, w); raise ConnectorError if the grid does not fit."""
    B, N, d = features.shape
    if grid is None or grid[0] * grid[1] != N:
        raise ConnectorError(
            f"connector {name!r} got {N} features with grid {grid}; it needs h * w == N"
        )
    return features.transpose(1, 2).reshape(B, d, *grid)


def square_side(count: int, name: str) -> int:
    """Return the side of a square number of tokens; raise ConnectorError if it is not square."""
    side = math.isqrt(count)
    if side * side != count:
        raise ConnectorError(f"connector {name!r} needs a square number of tokens, not {count}")
    return side


def full_mask(tokens: Tensor) -> Tensor:
    """Return an all-True mask (B, M) for tokens (B, M, D)."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def zero_masked(features: Tensor, mask: Tensor) -> Tensor:
    """Set (B, N, d) to zero where ``mask`` (B, N) is False, whatever was there (NaN included)."""
    return features.masked_fill(~mask.unsqueeze(-1), 0.0)


def grid_of(widths: Widths, num_features: int, name: str) -> Grid:
    """Return the grid of N features: the encoder's own, else a square; raise ConnectorError if neither fits."""
    if widths.grid is not None and num_features == widths.num_features:
        return widths.grid
    side = square_side(num_features, name)
    return side, side


def quarter_tokens(widths: Widths) -> int:
    """Return M of a matched connector that compresses: N/4, or with a grid the nearest square that fits it.

    All methods of a comparison share this number, so that none wins by spending more tokens.
    """
    if widths.grid is None:
        return max(1, widths.num_features // 4)
    side = min(*widths.grid, round(math.sqrt(widths.num_features) / 2))
    return max(1, side) ** 2
