"""Many tests at once: p-values corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979), in the order given.

    The smallest is multiplied by m, the next by m - 1 and so on; a later one is never smaller than
    an earlier one, and none exceeds 1.
    """
    m = len(p_values)
    adjusted = [1.0] * m
    running = 0.0
    for step, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - step) * p_values[index]))
        adjusted[index] = running
    return adjusted
