"""Functions that lmms-eval calls for each row, in its own environment."""

from __future__ import annotations

from typing import Any

from PIL import Image


def pictures(row: dict[str, Any]) -> list[Image.Image]:
    """Return the row's picture."""
    return [Image.open(row["image"]).convert("RGB")]


def question(row: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """Return the question about it."""
    return str(row["question"])
