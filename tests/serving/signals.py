"""Small media as bytes."""

from __future__ import annotations

import io
import wave


def wav_bytes(seconds: float, rate: int = 16_000) -> bytes:
    """Silence, 8 bits a sample."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(rate)
        file.writeframes(b"\x80" * round(seconds * rate))
    return buffer.getvalue()
