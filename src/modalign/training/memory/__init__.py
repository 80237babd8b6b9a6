"""How much memory a training will take."""

from modalign.training.memory.estimate import Composed, MemoryEstimate, estimate_memory

__all__ = ["Composed", "MemoryEstimate", "estimate_memory"]
