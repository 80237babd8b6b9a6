"""Optional libraries of single operators, imported only when an operator needs them."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

from modalign.errors import UsageError, extra

DISTRIBUTIONS = {"imagehash": "ImageHash", "py3langid": "py3langid"}


def required(module: str, what: str) -> Any:
    """Import a library of the extra `data`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"{what} need(s) {module}, which is not installed: {extra('data')}"
        ) from None


def version_of(module: str) -> str:
    """Return the installed version of a library."""
    return version(DISTRIBUTIONS.get(module, module))
