"""Where a model's files are on this machine: a folder, what a GGUF file became, or the hub's cache.

A GGUF file is converted once into the cache, by its place, size and time; a name of the hub is fetched as
transformers would fetch it (``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from filelock import FileLock
from huggingface_hub import constants, hf_hub_download, snapshot_download, try_to_load_from_cache

from modalign.cache import cache_directory, in_use
from modalign.errors import UsageError, first_line
from modalign.files import leads_nowhere
from modalign.models.gguf import SUFFIX, convert_gguf

log = logging.getLogger(__name__)

REACH_SECONDS = 1.0  # in which the hub must answer a connection
IMPORTED = "imported"  # folder of conversions in the cache
FORMAT = 1
# What of a repository a model is read from; other forms of the same weights are left there.
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py", "README.md"]
UNWANTED = ["onnx/*", "original/*", "consolidated*", "*.fp16.safetensors", "openvino/*", "coreml/*"]


def is_gguf(name: Path | str) -> bool:
    """Whether a name means a GGUF file, or a folder with nothing else of a model."""
    return _named_file(name) is not None


def _named_file(name: Path | str) -> Path | None:
    """The GGUF file that a name means, which may not exist.

    Raises:
        UsageError: a folder holds several and no ``config.json``.
    """
    place = Path(name)
    if place.suffix.lower() == SUFFIX and not place.is_dir():
        return place
    if not place.is_dir() or (place / "config.json").exists():
        return None
    held = sorted(place.glob(f"*{SUFFIX}"))
    if len(held) > 1:
        raise UsageError(
            f"{name} holds {len(held)} GGUF files and no config.json: name one of them, such as {held[0]}"
        )
    return held[0] if held else None


def gguf_file(name: Path | str) -> Path | None:
    """Return the GGUF file that a name means, fetched from the hub if it is there; None: the name means none.

    Args:
        name: a GGUF file, a folder that holds one and no model, or a file of a repository of the hub
            (``owner/name/file.gguf``).

    Raises:
        UsageError: there is none, or a folder holds several.
    """
    file = _named_file(name)
    return file if file is None or file.is_file() else _fetched(str(name))


def unpacked(name: Path | str) -> Path | str:
    """Return the folder of a GGUF file's model, converted into the cache if it is not there; else the name itself.

    Args:
        name: as for :func:`gguf_file`; or a folder, or a name of the hub.

    Raises:
        UsageError: the file cannot be read.
    """
    file = gguf_file(name)
    if file is None:
        return name
    stat = file.stat()
    key = [FORMAT, str(file.resolve()), stat.st_size, stat.st_mtime_ns]
    place = cache_directory() / IMPORTED / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    in_use(place)
    folder = place / file.stem
    with FileLock(place / ".lock"):
        if not (folder / "config.json").is_file():
            log.info("unpacking %s into %s", file, folder)
            convert_gguf(file, folder)
    return folder


def _fetched(name: str) -> Path:
    """A GGUF file of a repository of the hub.

    Raises:
        UsageError: there is none, or it cannot be had.
    """
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if leads_nowhere(name) or not file:
        raise UsageError(f"{name} cannot be read: there is no such file")
    check_within_reach(f"{owner}/{repository}", "model", file)
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # of the network, the hub or the disk
        raise UsageError(f"{name} cannot be read: {first_line(error)}") from error


def model_folder(name: Path | str, what: str = "model") -> Path:
    """Return the folder that a model's files are in: itself, a GGUF file's conversion, or the hub's cache.

    Args:
        name: a folder, a GGUF file, or a name of the hub.
        what: what it is, for the message.

    Raises:
        UsageError: there is none, or it cannot be had.
    """
    found = Path(unpacked(name))
    if found.exists():
        return found
    check_within_reach(str(name), what)
    try:
        return Path(snapshot_download(str(name), allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except Exception as error:  # of the network, the hub or the disk
        raise UsageError(
            f"the {what} {str(name)!r} cannot be loaded: {first_line(error)}"
        ) from error


def check_within_reach(name: str, what: str, file: str = "config.json") -> None:
    """Refuse at once what is neither here nor cached while the hub does not answer: its client tries for a minute.

    Raises:
        UsageError: names what was looked for, and where.
    """
    if Path(name).exists() or Path(name).suffix.lower() == SUFFIX:
        return  # a GGUF file is looked for where it is unpacked
    what = what.removeprefix("the ")
    if leads_nowhere(name):
        raise UsageError(f"the {what} {name!r} cannot be loaded: there is no such folder")
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    if try_to_load_from_cache(name, file) is not None:
        return
    if not _answers(constants.ENDPOINT):
        raise UsageError(
            f"the {what} {name!r} cannot be loaded: there is no such folder, the hub's cache does not hold it, "
            f"and {constants.ENDPOINT} does not answer"
        )


@cache
def _answers(endpoint: str) -> bool:
    """Whether a connection to an address opens within a second, its name looked up included."""
    parts = urlsplit(endpoint)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    opened: list[bool] = []

    def connect() -> None:
        with suppress(OSError), socket.create_connection((parts.hostname, port), REACH_SECONDS):
            opened.append(True)

    waiting = threading.Thread(target=connect, daemon=True)  # a name server may not answer either
    waiting.start()
    waiting.join(REACH_SECONDS)
    return bool(opened)
