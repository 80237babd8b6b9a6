"""What the server is told when it starts: its name for the model, its key, and what it accepts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from modalign.errors import UsageError

MEGABYTE = 2**20


@dataclass(frozen=True)
class MediaLimits:
    """The most that the media of one request may be; checked before anything is decoded.

    Small files can decode to large pictures and long silence, and all media of a request are in memory together.

    Attributes:
        count: media.
        image_pixels: of all images together.
        audio_seconds: of all recordings together.
        video_seconds: of all videos together.
        video_pixels: width x height of a video's frames.
        url_bytes: of a medium that is fetched.
        url_seconds: for fetching it, redirects included.
    """

    count: int = 64
    image_pixels: int = 64_000_000
    audio_seconds: float = 600.0
    video_seconds: float = 600.0
    video_pixels: int = 4096 * 2304
    url_bytes: int = 32 * MEGABYTE
    url_seconds: float = 20.0


@dataclass(frozen=True)
class Settings:
    """One server's settings.

    Attributes:
        name: what the model is called in requests and answers.
        api_key: without it no key is asked for.
        hosts: names that the Host header may have (any port); empty takes every name.
        url_hosts: hosts that media may be fetched from, ``name`` or ``name:port``.
        body_bytes: of a request's body.
        body_seconds: for a request's body to arrive.
        stalled_seconds: a client that takes nothing for so long is given up.
        requests: how many are served at a time, those that wait for the engine included.
        choices: prompts times ``n`` of one request.
        workers: threads that parse requests and prepare prompts.
        media: limits of media.
    """

    name: str
    api_key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = frozenset()
    url_hosts: tuple[str, ...] = ()
    body_bytes: int = 32 * MEGABYTE
    body_seconds: float = 60.0
    stalled_seconds: float = 60.0
    requests: int = 96
    choices: int = 256
    workers: int = 4
    media: MediaLimits = field(default_factory=MediaLimits)


def read_key(file: Path, option: str = "--api-key-file") -> str:
    """The API key in a file: its only line; ``option`` names where the file was given.

    Raises:
        UsageError: no readable file, or not one line of visible ASCII characters.
    """
    try:
        key = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"{option} {file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        key = ""
    if not key or not all("!" <= character <= "~" for character in key):
        raise UsageError(
            f"{option} {file}: holds no key; write one line of letters, digits and signs into it, e.g. "
            "by: openssl rand -hex 32"
        )
    return key
