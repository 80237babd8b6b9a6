"""The modalities: one descriptor each, which tells every room how to handle its media.

A modality consists of three files: one in this room opens its media and ends with its descriptor, one in
``encoders/`` turns them into features (exported models carry a copy), one in ``models/encoders/`` loads that
encoder. ``BUILT_IN`` has one line per descriptor. Other packages add theirs by an entry point in the group
``modalign.modalities``, or by calling :func:`register`, for one process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from modalign.data.records import Media
from modalign.errors import DataError, UsageError, choose

ENTRY_POINT_GROUP = "modalign.modalities"
BUILT_IN = {
    "image": "modalign.data.images:IMAGE",
    "audio": "modalign.data.audio:AUDIO",
    "video": "modalign.data.video:VIDEO",
    "series": "modalign.data.series:SERIES",
    "table": "modalign.data.tables:TABLE",
    "vectors": "modalign.data.vectors:VECTORS",
}
DEFAULT = ("image",)  # the meaning of columns, placeholders and options that name no modality


@dataclass(frozen=True)
class Inline:
    """How a medium is given inline, in a row or a request.

    Attributes:
        words: for messages: "a list of numbers".
        is_one: whether a value read from JSON, CSV or Parquet is one medium (not a path, not a list of media).
        schema: its type in requests, as a pydantic annotation.
        json: the JSON type of a file that contains only it: ``array`` or ``object``.
    """

    words: str
    is_one: Callable[[Any], bool]
    schema: Any
    json: str = "array"


@dataclass(frozen=True)
class Amount:
    """A size of a medium, read without decoding it.

    Attributes:
        limit: the server's limit, a field of ``serving.http.settings.MediaLimits``.
        value: in the limit's unit.
        words: for messages: "3.2 s".
        adds_up: whether the limit applies to the sum over a request.
    """

    limit: str
    value: float
    words: str
    adds_up: bool = True


@dataclass(frozen=True, kw_only=True)
class Modality:
    """One modality.

    Attributes:
        name: in data, options, configurations and reports; an identifier.
        words: a medium's name on the page: "an image".
        check: opens a medium to check that it can be used, or raises SignalError; returns the size that all
            media of a data set must share, if any.
        blank: makes a medium of the same size without content: grey, silence, the mean.
        encoder: module of its encoders, ``build`` and ``prepare`` (see :mod:`modalign.encoders.base`).
        loader: module that loads them, ``load`` and ``decode`` (see :mod:`modalign.models.encoders`).
        shared: the meaning of the size that ``check`` returns: "width".
        endings: of files that hold one medium each, the most usual first.
        inline: how a medium is given inline; None: media are files or bytes.
        further_parts: types of a chat message's parts that hold a medium, besides ``NAME`` and ``NAME_url``.
        settings: encoder options that have their own field in a configuration's ``parts``: option -> field.
        raw_patches: whether methods that read raw input read this modality, whatever the encoder.
        any_size: whether its encoder takes every medium that can be opened; otherwise media are decoded for
            the encoder before training.
        amounts: amounts that a server limits before decoding; None: only the request's bytes.
        decode: decodes a medium like the loader's ``decode``, without importing the loader, so that a server can
            decode in a separate process. None: the server uses the loader's, in its own process.
        picture: makes the bytes of a picture of a medium, for reports; None: reports show only the question.
        no_noise: why a noise medium is undefined; empty if it is defined.
        title: of a model card: "A language model that sees".
        chat_part: a part of a message to a saved model's processor, as Python.
        chat_note: the meaning of the values in it.
    """

    name: str
    words: str
    check: Callable[[Media], int | None]
    blank: Callable[[Media], Media]
    encoder: str
    loader: str
    shared: str = "size"
    endings: tuple[str, ...] = ()
    inline: Inline | None = None
    further_parts: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    raw_patches: bool = False
    any_size: bool = False
    amounts: Callable[[Media], list[Amount]] | None = None
    decode: Callable[[Media, dict[str, Any]], Any] | None = None
    picture: Callable[[Media], bytes] | None = None
    no_noise: str = ""
    title: str = "A language model and its senses"
    chat_part: str = ""
    chat_note: str = ""

    @property
    def part_types(self) -> tuple[str, ...]:
        """Types of a chat message's parts that hold a medium."""
        address = () if self.inline else (f"{self.name}_url",)
        return (self.name, *address, *self.further_parts)


_REGISTERED: dict[str, Modality] = {}


def register(modality: Modality) -> Modality:
    """Register a modality in this process.

    Raises:
        UsageError: the name is taken, or not an identifier.
    """
    if not modality.name.isidentifier():
        raise UsageError(f"invalid modality name {modality.name!r}: use letters, digits and _ only")
    if modality.name in modality_names() and modality_of(modality.name) is not modality:
        raise UsageError(f"the modality {modality.name!r} exists: give yours another name")
    if modality.name not in _places():
        _REGISTERED[modality.name] = modality
    return modality


def modality_names() -> tuple[str, ...]:
    """Return the names of all modalities, modalign's own first."""
    return (*_places(), *_REGISTERED)


def modality_of(name: str) -> Modality:
    """Return the modality with exactly this name.

    Raises:
        UsageError: there is none; the message lists the existing ones.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _places():
        raise UsageError(f"no modality {name!r}: {choose(name, modality_names())}")
    return _loaded(name, _places()[name])


@cache
def _places() -> dict[str, str]:
    """Name -> ``module:OBJECT``; nothing is imported to list the names."""
    places = dict(BUILT_IN)
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        if places.setdefault(entry.name, entry.value) != entry.value:
            raise UsageError(
                f"two packages define a modality {entry.name!r}: {places[entry.name]} and {entry.value}"
            )
    return places


@cache
def _loaded(name: str, place: str) -> Modality:
    module, _, attribute = place.partition(":")
    found = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(found, Modality) or found.name != name:
        raise UsageError(f"{place} is not the Modality {name!r}")
    return found


def check_medium(media: Media) -> int | None:
    """Open a medium to check that it can be used.

    Returns:
        The size that all media of its modality must share, if any: the width of vectors, the
        channels of a series.

    Raises:
        SignalError: it cannot be used; ``kind`` and ``reason`` say why.
    """
    return modality_of(media.modality).check(media)


def blank_like(media: Media) -> Media:
    """Make a medium of the same size without content: grey, silence, the mean, no value."""
    return modality_of(media.modality).blank(media)


def medium_from(text: str) -> Media:
    """Parse a medium from the command line: ``MODALITY=FILE``, or ``FILE`` if its ending is known.

    Raises:
        UsageError: the modality is unknown.
        DataError: there is no such file.
    """
    modality, sign, path = text.partition("=")
    if not sign or modality not in modality_names():
        file = Path(text if Path(text).exists() else text.rpartition("#")[0] or text)
        ending = file.suffix.lower()
        fitting = [name for name in modality_names() if ending in modality_of(name).endings]
        if len(fitting) != 1:
            known = ", ".join(fitting or modality_names())
            raise UsageError(f"{text}: give its modality, as MODALITY={text} ({known})")
        modality, path = fitting[0], text
    medium = Media(modality, path=path)
    if not medium.located()[0].is_file():
        raise DataError(f"{path}: no such file")
    return medium
