"""A tool for tests: says something that depends on the picture alone."""

from __future__ import annotations

import hashlib
from typing import Any


def parity(medium: Any) -> str:
    """Whether the content's hash is odd."""
    return "odd" if int(hashlib.sha256(medium.read()).hexdigest(), 16) % 2 else "even"
