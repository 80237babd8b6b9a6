"""Settings of a server: the model's name, the key, and what it accepts."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from modalign.errors import UsageError
from modalign.tools.generators import Generator

log = logging.getLogger("modalign.serving")

MEGABYTE = 2**20


@dataclass(frozen=True)
class MediaLimits:
    """Limits of the media of one request, checked before anything is decoded.

    Small files can decode to large pictures and long silence, and all media of a request are in memory together.
    What headers do not say, limits of the decoding process's time and memory hold.

    Attributes:
        count: number of media.
        image_pixels: of all images together.
        audio_seconds: of all recordings together.
        video_seconds: of all videos together.
        video_frames: of all videos together, shown or not.
        video_pixels: width x height of a video's frames.
        decode_seconds: for decoding all media of a request.
        url_bytes: of a fetched medium.
        url_seconds: for fetching it, including redirects.
    """

    count: int = 64
    image_pixels: int = 64_000_000
    audio_seconds: float = 600.0
    video_seconds: float = 600.0
    video_frames: int = 36_000
    video_pixels: int = 4096 * 2304
    decode_seconds: float = 30.0
    url_bytes: int = 32 * MEGABYTE
    url_seconds: float = 20.0


@dataclass(frozen=True)
class Settings:
    """One server's settings.

    Attributes:
        name: the model's name in requests and answers.
        api_key: None: no key is required.
        hosts: allowed Host names (any port); empty allows all.
        url_hosts: hosts that media may be fetched from, ``name`` or ``name:port``.
        body_bytes: maximum size of a request's body.
        body_seconds: maximum time for a request's body to arrive.
        stalled_seconds: a client that reads nothing for so long is dropped.
        bodies_bytes: maximum size of all bodies together that are arriving or waiting to be parsed.
        values: maximum number of values in a body, counted by its commas.
        fields: maximum number of fields of one object in a body.
        head_seconds: maximum time for a request's head to arrive, counted from the previous response.
        connections: maximum number at a time; lower if the process may open fewer files.
        requests: maximum number served at a time, including those waiting for the engine.
        choices: maximum prompts times ``n`` of one request.
        workers: threads that parse requests and prepare prompts without media.
        media: limits of media.
        generators: what ``/v1/transform`` may call; without any, there is no such route.
    """

    name: str
    api_key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] = frozenset()
    url_hosts: tuple[str, ...] = ()
    body_bytes: int = 32 * MEGABYTE
    body_seconds: float = 60.0
    bodies_bytes: int = 512 * MEGABYTE
    values: int = 500_000
    fields: int = 1000
    head_seconds: float = 10.0
    connections: int = 1024
    stalled_seconds: float = 60.0
    requests: int = 96
    choices: int = 256
    workers: int = 4
    media: MediaLimits = field(default_factory=MediaLimits)
    generators: tuple[Generator, ...] = ()


def read_key(file: Path, option: str = "--api-key-file") -> str:
    """Read the API key, the only line of a file; ``option`` is named in errors.

    Raises:
        UsageError: the file is unreadable, or not one line of visible ASCII characters.
    """
    try:
        if file.stat().st_mode & 0o077:
            log.warning("%s %s: others can read the key; chmod 600 keeps it to you", option, file)
        key = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageError(f"{option} {file}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        key = ""
    if not key or not all("!" <= character <= "~" for character in key):
        raise UsageError(
            f"{option} {file}: contains no key; write one line of letters, digits and signs into it, e.g. "
            "with: openssl rand -hex 32"
        )
    return key
