"""Run the beginning that all rows share only once, as a chat template's system turn before every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import DynamicCache

LEAST = 64  # tokens that running a shared beginning once must save


def shared(rows: Sequence[tuple[int, ...]], most: int) -> int:
    """Count the tokens that all rows begin with; 0 if running them once would save little.

    Args:
        rows: the rows' ids.
        most: the most tokens to share; outputs are wanted for the tokens after them.
    """
    if not rows:
        return 0
    first, last = min(rows), max(rows)  # the lexicographic extremes differ the soonest
    length = min(most, len(first), len(last))
    same = next((i for i in range(length) if first[i] != last[i]), length)
    return same if same * (len(rows) - 1) >= LEAST else 0


def attends_to_all(config: Any, length: int) -> bool:
    """Return whether each layer attends to all earlier tokens, in rows up to this long."""
    if config is None or getattr(config, "is_encoder_decoder", False):
        return False
    if config.get_text_config() is not config:
        return False
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) is not False:
        return length <= window and kinds <= {"full_attention", "sliding_attention"}
    return kinds <= {"full_attention"}


def repeated(cache: DynamicCache, rows: int) -> DynamicCache | None:
    """Repeat the cache of one row's beginning for many rows; None if the model kept nothing in it."""
    found = DynamicCache()
    for number, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.ndim != 4:
            return None
        found.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return found if cache.layers else None
