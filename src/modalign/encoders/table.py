"""Table encoders: turn each column of a row into one feature.

Two kinds over the same prepared values. ``columns`` has parameters: for column j with number x

    feature_j = column_j + x W_j + state_j

as in the feature tokenizer of FT-Transformer (Gorishniy et al. 2021, arXiv 2106.11959, section 3.3). The
state is zero for a number that is present, else an embedding: one for a missing value, one for a category
not seen in training, and one for each known category. ``fixed`` has no parameters: it gives the terms of the
same sum as one-hot features, so a linear connector over it can represent exactly what ``columns`` represents.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from modalign.encoders.base import EncoderError, Prepared, SignalEncoder, all_features

CLIP = 10.0  # standard deviations: one outlier must not dominate a row
MAX_CATEGORIES = 250  # of one column: codes stay exact in bfloat16, which counts to 256
PRESENT, MISSING, UNSEEN, FIRST = 0, 1, 2, 3  # codes of a column's states; categories from FIRST on


class TableEncoder(SignalEncoder):
    """Base of both kinds: values (n, C, 2), a number and a state code for each column.

    Args:
        columns: as :func:`build` describes them.
    """

    def __init__(self, columns: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.num_features = len(columns)
        sizes = [_states(column) for column in columns]
        self.num_states = sum(sizes)
        self.starts = [0, *accumulate(sizes)][:-1]

    def states(self, values: Tensor) -> Tensor:
        """(n, C, 2) -> (n, C), the state of each column, from 1; 0 if it has none."""
        codes = values[..., 1].round().long()
        starts = torch.tensor(self.starts, device=values.device)
        return torch.where(codes == PRESENT, 0, starts + codes)


class ColumnEmbeddings(TableEncoder):
    """One feature per column, with parameters: kind ``columns``.

    Embeddings of missing values and unseen categories start at zero: untrained, they add nothing.

    Args:
        columns: as :func:`build` describes them.
        width: d.
    """

    fresh = True

    def __init__(self, columns: Sequence[Mapping[str, Any]], width: int) -> None:
        super().__init__(columns)
        self.feature_size = width
        self.columns = nn.Parameter(torch.randn(len(columns), width))
        self.slopes = nn.Parameter(torch.randn(len(columns), width))
        self.state = nn.Embedding(self.num_states + 1, width, padding_idx=0)
        with torch.no_grad():
            for column, start in zip(columns, self.starts, strict=True):
                self.state.weight[start + MISSING : start + min(FIRST, _states(column) + 1)] = 0

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, C, 2) -> features (n, C, d), all present."""
        numbers = values[..., :1].to(self.slopes.dtype)
        return all_features(self.columns + numbers * self.slopes + self.state(self.states(values)))


class FixedColumns(TableEncoder):
    """One feature per column, without parameters: kind ``fixed``, width 2 C + states.

    The feature of column j has its number at index j, 1 at index C + j, and 1 at its state's index.
    """

    def __init__(self, columns: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(columns)
        self.feature_size = 2 * len(columns) + self.num_states

    def forward(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, C, 2) -> features (n, C, 2 C + states), all present."""
        column = torch.eye(self.num_features, dtype=values.dtype, device=values.device)
        column = column.expand(len(values), -1, -1)
        state = nn.functional.one_hot(self.states(values), self.num_states + 1)[..., 1:]
        parts = [column * values[..., :1], column, state.to(values.dtype)]
        return all_features(torch.cat(parts, dim=-1))


def build(spec: dict[str, Any]) -> TableEncoder:
    """Build an encoder from its description.

    ``kind`` is fixed or columns (with ``width``). ``columns`` is a list of
    ``{"name", "mean", "scale"}`` (standardised), ``{"name", "knots"}`` (quantiles) or
    ``{"name", "categories"}``.
    """
    if spec["kind"] == "fixed":
        return FixedColumns(spec["columns"])
    if spec["kind"] == "columns":
        return ColumnEmbeddings(spec["columns"], spec["width"])
    raise EncoderError(f"unknown table encoder {spec['kind']!r}; known: fixed, columns")


def prepare(spec: dict[str, Any], signals: Sequence[Mapping[str, Any]]) -> Prepared:
    """Rows -> values (n, C, 2). A column that a row lacks is missing; the order within a row does not matter.

    Raises:
        EncoderError: text where the training data had numbers.
    """
    columns = spec["columns"]
    coded = [[_coded(column, row.get(column["name"])) for column in columns] for row in signals]
    values = torch.tensor(coded, dtype=torch.float32).reshape(len(signals), len(columns), 2)
    return Prepared(values, None, [len(columns)] * len(signals))


def _states(column: Mapping[str, Any]) -> int:
    """Count the states of a column besides none: missing; unseen and each category."""
    return FIRST - 1 + len(column["categories"]) if "categories" in column else MISSING


def category(value: float | str) -> str:
    """Return the name of a category; true, false and numbers in their shortest form."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:.15g}"


def _coded(column: Mapping[str, Any], value: float | str | None) -> tuple[float, int]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return 0.0, MISSING
    if "categories" in column:
        name = category(value)
        known = column["categories"]
        return 0.0, FIRST + known.index(name) if name in known else UNSEEN
    if isinstance(value, str):
        raise EncoderError(
            f"column {column['name']!r} is {value!r}, but it had numbers in training"
        )
    if "knots" in column:
        return _uniform(column["knots"], value), PRESENT
    number = (value - column["mean"]) / column["scale"]
    return min(max(number, -CLIP), CLIP), PRESENT


def _uniform(knots: Sequence[float], value: float) -> float:
    """Return a value's interpolated rank among quantiles, scaled to mean 0 and variance 1.

    Between the ends, a value's rank u in the training values is uniform on [0, 1], with standard
    deviation 1 / sqrt(12). A column with one value gives 0.
    """
    if len(knots) == 1:
        return 0.0
    last = len(knots) - 1
    right = min(max(bisect.bisect_right(knots, value), 1), last)
    low, high = knots[right - 1], knots[right]
    share = (right - 1 + (value - low) / (high - low)) / last
    return (min(max(share, 0.0), 1.0) - 0.5) * math.sqrt(12)
