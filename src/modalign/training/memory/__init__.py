"""How much memory training will take, and how much a process has."""

from modalign.training.memory.estimate import (
    Composed,
    MemoryEstimate,
    estimate_memory,
)
from modalign.training.memory.process import (
    available,
    peak_resident,
    readable,
    resident,
    return_freed_memory,
)

__all__ = [
    "Composed",
    "MemoryEstimate",
    "available",
    "estimate_memory",
    "peak_resident",
    "readable",
    "resident",
    "return_freed_memory",
]
