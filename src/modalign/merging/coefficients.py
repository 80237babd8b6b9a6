"""A merge's coefficients: for all tensors, and by pattern for layers and modules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from modalign.errors import UsageError

MOST = 6  # rules in a sentence


@dataclass(frozen=True)
class Coefficients:
    """Which weight every parent has in every tensor.

    Attributes:
        parents: their names, in order.
        rules: (pattern, weights), later ones win; ``*`` is first.
    """

    parents: tuple[str, ...]
    rules: tuple[tuple[str, tuple[float, ...]], ...]

    @classmethod
    def read(cls, texts: Iterable[str], parents: Sequence[str], default: float) -> Coefficients:
        """Read ``0.3,0.7`` and ``PATTERN=0.3,0.7``; one number is the second of two parents' share.

        Raises:
            UsageError: not as many numbers as parents, or something that is no number.
        """
        rules = [("*", (default,) * len(parents))]
        for text in texts:
            pattern, sign, values = text.rpartition("=")
            rules.append((pattern if sign else "*", _numbers(values, text, len(parents))))
        return cls(tuple(parents), tuple(rules))

    def of(self, identity: str) -> dict[str, float]:
        """Return parent -> weight in a tensor."""
        for pattern, weights in reversed(self.rules):
            if fnmatchcase(identity, pattern):
                return dict(zip(self.parents, weights, strict=True))
        raise AssertionError(identity)  # the first rule matches everything

    def unused(self, identities: Iterable[str]) -> list[str]:
        """Return patterns that match no tensor."""
        names = list(identities)
        return [p for p, _ in self.rules if not any(fnmatchcase(name, p) for name in names)]

    def words(self) -> str:
        """All rules, for people."""
        shown = [
            (", ".join(f"{n} {w:g}" for n, w in zip(self.parents, weights, strict=True)), pattern)
            for pattern, weights in self.rules
        ]
        last = max(i for i, (_, pattern) in enumerate(shown) if pattern == "*")
        said = [f"{said} in {p}" if p != "*" else said for said, p in shown[last:]]
        more = len(said) - MOST
        return "; ".join(said[:MOST]) + (f"; {more} more rules" if more > 0 else "")


def _numbers(values: str, text: str, count: int) -> tuple[float, ...]:
    try:
        found = tuple(float(value) for value in values.split(","))
    except ValueError:
        raise UsageError(
            f"--weight {text!r}: give numbers, such as 0.3,0.7 or layers.0.*=0.3,0.7"
        ) from None
    if len(found) == 1 and count == 2:
        found = (1 - found[0], found[0])
    if len(found) != count or not all(map(math.isfinite, found)):
        raise UsageError(
            f"--weight {text!r}: {len(found)} numbers for {count} parents; give each parent its finite "
            "weight, in order"
        )
    return found
