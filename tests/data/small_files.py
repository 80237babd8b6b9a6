"""Bytes of small images."""

from __future__ import annotations

import io

from PIL import Image


def png(color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (4, 3)) -> bytes:
    """Return the bytes of a plain PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()
