"""modalign: connect a language model to other modalities, and measure which way is worth its cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modalign.version import __version__

if TYPE_CHECKING:
    from modalign.comparison.compare import compare

__all__ = ["__version__", "compare"]


def __getattr__(name: str) -> Any:
    """``modalign.compare``, imported on first use: ``import modalign`` loads no torch."""
    if name == "compare":
        from modalign.comparison.compare import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
