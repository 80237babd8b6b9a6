"""One budget pays for everything a method does: its trials, its stage 1, its training."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Literal

from modalign.errors import UsageError
from modalign.numbers import words

Currency = Literal["samples", "seconds", "flops"]
_UNITS: dict[str, tuple[Currency, float]] = {
    "samples": ("samples", 1),
    "sample": ("samples", 1),
    "s": ("seconds", 1),
    "m": ("seconds", 60),
    "h": ("seconds", 3600),
    "seconds": ("seconds", 1),
    "flops": ("flops", 1),
    "gflops": ("flops", 1e9),
    "tflops": ("flops", 1e12),
    "pflops": ("flops", 1e15),
}
_FORM = re.compile(r"^\s*([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*([a-z]+)\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """An amount of samples seen, seconds of training, or training FLOPs."""

    kind: Currency
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``20000samples``, ``90s``, ``10m``, ``1h``, ``3e14flops`` or ``2tflops``.

        Raises:
            UsageError: none of these, or not positive.
        """
        match = _FORM.match(str(text))
        unit = _UNITS.get(match.group(2).lower()) if match else None
        if match is None or unit is None:
            raise UsageError(
                f"budget {text!r} is invalid; write 20000samples, 90s, 10m, 1h or 3e14flops"
            )
        amount = float(match.group(1).replace("_", "")) * unit[1]
        if not 0 < amount < math.inf:
            raise UsageError(f"budget {text!r} must be positive and finite")
        return cls(unit[0], amount)

    def share(self, fraction: float) -> Budget:
        """Return that part of this budget."""
        return Budget(self.kind, self.amount * fraction)

    def words(self) -> str:
        """Write it for people: ``20,000 samples``, ``10 min``, ``300 TFLOPs``."""
        if self.kind == "samples":
            return f"{self.amount:,.0f} sample{'' if self.amount == 1 else 's'}"
        return words.seconds(self.amount) if self.kind == "seconds" else words.flops(self.amount)

    def __str__(self) -> str:
        unit = {"samples": "samples", "seconds": "s", "flops": "flops"}[self.kind]
        short = f"{self.amount:g}"
        return f"{short if float(short) == self.amount else repr(float(self.amount))}{unit}"


@dataclass
class Ledger:
    """What has been spent, in all three units, whichever the budget uses."""

    samples: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    def spend(self, samples: int, seconds: float, flops: float) -> None:
        """Add one step."""
        self.samples += samples
        self.seconds += seconds
        self.flops += flops

    def add(self, other: Ledger) -> None:
        """Add another ledger."""
        self.spend(other.samples, other.seconds, other.flops)

    def fraction(self, budget: Budget) -> float:
        """Return the spent share of the budget (1 or more: nothing is left)."""
        return float(getattr(self, budget.kind)) / budget.amount

    def state(self) -> dict[str, float]:
        """Return the amounts as JSON."""
        return asdict(self)
