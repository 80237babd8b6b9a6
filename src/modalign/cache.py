"""The folder for everything that can be recomputed: features, statistics, tools' results, the starter's data."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """``$MODALIGN_CACHE``, else ``$XDG_CACHE_HOME/modalign``, else ``~/.cache/modalign``."""
    if chosen := os.environ.get("MODALIGN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modalign"
