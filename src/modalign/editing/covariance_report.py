"""``modalign edit stats``: the key statistics of a model, and figures that describe them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modalign.data.corpus import read_corpus
from modalign.editing.config import EditConfig
from modalign.editing.engine.covariance import collect
from modalign.editing.engine.spec import ModelSpec
from modalign.editing.run import dtype_named
from modalign.errors import UsageError
from modalign.models.asking import tokenizer_of
from modalign.models.open import open_model
from modalign.progress import Progress

DEAD = 1e-10  # share of the largest eigenvalue below which no key used a direction


@dataclass(frozen=True)
class LayerCovariance:
    """C0 of one layer: its size, how many directions the keys use, and how unequally."""

    layer: int
    width: int
    rank: int
    trace: float
    condition: float
    below_null_threshold: int  # eigenvalues under AlphaEdit's 2e-2


@dataclass(frozen=True)
class CovarianceReport:
    """C0 of all layers."""

    model: str
    corpus: str
    tokens: int
    fingerprint: str
    layers: tuple[LayerCovariance, ...]

    def table(self) -> Any:
        """Return the figures as a table for the console."""
        from rich.table import Table

        title = f"C0 of {self.tokens:,} tokens of {self.corpus} ({self.fingerprint[:12]})"
        table = Table(title=title)
        for name in ("layer", "key length", "rank", "trace", "condition", "under 2e-2"):
            table.add_column(name, justify="right")
        for row in self.layers:
            table.add_row(
                str(row.layer),
                f"{row.width:,}",
                f"{row.rank:,}",
                f"{row.trace:.4g}",
                f"{row.condition:.1e}",
                f"{row.below_null_threshold:,}",
            )
        return table


def take_statistics(
    model: str,
    *,
    text: Path | None,
    layers: str | None,
    tokens: int | None,
    seed: int,
    device: str | None,
    dtype: str | None,
    cache: Path | None,
    progress: Progress | None,
) -> CovarianceReport:
    """Compute C0, or find it in the cache.

    Raises:
        UsageError: layers that are not numbers, or that the model lacks.
        DataError: no text.
    """
    corpus = read_corpus(text) if text else None
    loaded, reader = open_model(model, dtype_named(dtype), device)
    spec = ModelSpec.detect(loaded)
    chosen = EditConfig(layers=_numbers(layers)).layers_of(spec.depth)
    found = collect(
        spec,
        tokenizer_of(reader),
        chosen,
        corpus=corpus,
        tokens=tokens,
        seed=seed,
        cache=cache,
        progress=progress,
    )
    rows = tuple(_describe(layer, found.matrices[layer]) for layer in chosen)
    return CovarianceReport(model, found.corpus, found.tokens, found.fingerprint, rows)


def _numbers(layers: str | None) -> tuple[int, ...] | None:
    if layers is None:
        return None
    try:
        return tuple(sorted({int(part) for part in layers.split(",")}))
    except ValueError as error:
        raise UsageError(f"--layers {layers}: expected numbers, as in 3,4,5") from error


def _describe(layer: int, matrix: torch.Tensor) -> LayerCovariance:
    values = torch.linalg.eigvalsh(matrix)
    largest = float(values[-1])
    used = values > DEAD * largest
    smallest = float(values[used][0]) if used.any() else float("nan")
    return LayerCovariance(
        layer=layer,
        width=len(matrix),
        rank=int(used.sum()),
        trace=float(values.sum()),
        condition=largest / smallest,
        below_null_threshold=int((values < 2e-2).sum()),
    )
