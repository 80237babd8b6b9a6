"""The modalities: one descriptor for each, which says how every room deals with its media.

A modality is three files: one of this room opens its media and ends with its descriptor, one in ``encoders/``
makes features of them (exported models carry a copy), one in ``models/encoders/`` loads that encoder. The
descriptor's place is one line of ``BUILT_IN``. A third party's is an entry point of its package in the group
``modalign.modalities``, or a call of :func:`register`, which holds for one process.
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
DEFAULT = ("image",)  # what columns, marks and options mean where no modality is named


@dataclass(frozen=True)
class Inline:
    """How a medium stands in a row, or in a request, itself.

    Attributes:
        words: for messages: "a list of numbers".
        is_one: whether a value read from JSON, CSV or Parquet is one medium (not a path, not a list of media).
        schema: its type in requests, as pydantic reads annotations.
        json: what a file that holds it alone begins with: ``array`` or ``object``.
    """

    words: str
    is_one: Callable[[Any], bool]
    schema: Any
    json: str = "array"


@dataclass(frozen=True)
class Amount:
    """How much of something a medium holds, read without decoding it.

    Attributes:
        limit: the server's limit on it, a field of ``serving.http.settings.MediaLimits``.
        value: in the limit's unit.
        words: for messages: "3.2 s".
        adds_up: whether the limit is on all media of a request together.
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
        words: what a medium is called on the page: "an image".
        check: opens a medium to see that it can be used, or raises SignalError; returns the size that all
            media of a data set must share, where there is one.
        blank: a medium of the same size with nothing to perceive: grey, silence, the mean.
        encoder: module of its encoders, ``build`` and ``prepare`` (see :mod:`modalign.encoders.base`).
        loader: module that loads them, ``load`` and ``decode`` (see :mod:`modalign.models.encoders`).
        shared: what the size is that ``check`` returns: "width".
        endings: of files that hold one medium each, the most usual first.
        inline: how a medium stands in a row itself; None: media are files or bytes.
        further_parts: types of a chat message's parts that hold a medium, besides ``NAME`` and ``NAME_url``.
        settings: options of its encoder that a configuration's ``parts`` have fields for: option -> field.
        raw_patches: methods that read raw input read this modality's, whatever encoder is named.
        any_size: its encoder takes every medium that can be opened; others are decoded as their encoder takes
            them before training.
        amounts: what a server limits before it decodes; None: nothing but the request's bytes.
        picture: the bytes of a picture of a medium, for reports; None: reports show its question only.
        no_noise: why a medium of noise is not defined; empty: it is.
        title: of a model card: "A language model that sees".
        chat_part: a part of a message to a saved model's processor, as Python.
        chat_note: what the values in it are.
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
    """Make a modality known to this process.

    Raises:
        UsageError: the name is taken, or no identifier.
    """
    if not modality.name.isidentifier():
        raise UsageError(f"a modality is called {modality.name!r}: letters, digits and _ only")
    if modality.name in modality_names() and modality_of(modality.name) is not modality:
        raise UsageError(f"the modality {modality.name!r} exists: give yours another name")
    if modality.name not in _places():
        _REGISTERED[modality.name] = modality
    return modality


def modality_names() -> tuple[str, ...]:
    """The names of all modalities: modalign's own first."""
    return (*_places(), *_REGISTERED)


def modality_of(name: str) -> Modality:
    """The modality called exactly ``name``.

    Raises:
        UsageError: there is none; the message names those that there are.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _places():
        raise UsageError(f"no modality {name!r}: {choose(name, modality_names())}")
    return _loaded(name, _places()[name])


@cache
def _places() -> dict[str, str]:
    """Name -> ``module:OBJECT``; nothing is imported to know the names."""
    places = dict(BUILT_IN)
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        if places.setdefault(entry.name, entry.value) != entry.value:
            raise UsageError(
                f"two packages bring a modality {entry.name!r}: {places[entry.name]} and {entry.value}"
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
    """Open a medium to see that it can be used.

    Returns:
        the size that all media of its modality must share, where there is one: the width of vectors, the
        channels of a series.

    Raises:
        SignalError: it cannot; ``kind`` and ``reason`` say why.
    """
    return modality_of(media.modality).check(media)


def blank_like(media: Media) -> Media:
    """A medium of the same size with nothing to perceive: grey, silence, the mean, no value."""
    return modality_of(media.modality).blank(media)


def medium_from(text: str) -> Media:
    """A medium as a command line names it: ``MODALITY=FILE``, or ``FILE`` where its ending tells.

    Raises:
        UsageError: the modality is not known.
        DataError: there is no such file.
    """
    modality, sign, path = text.partition("=")
    if not sign or modality not in modality_names():
        file = Path(text if Path(text).exists() else text.rpartition("#")[0] or text)
        ending = file.suffix.lower()
        fitting = [name for name in modality_names() if ending in modality_of(name).endings]
        if len(fitting) != 1:
            known = ", ".join(fitting or modality_names())
            raise UsageError(f"{text}: say what it is, as MODALITY={text} ({known})")
        modality, path = fitting[0], text
    medium = Media(modality, path=path)
    if not medium.located()[0].is_file():
        raise DataError(f"{path}: no such file")
    return medium
