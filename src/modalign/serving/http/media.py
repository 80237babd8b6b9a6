"""Media in requests: turn base64, data URLs and fetched URLs into ``Media``, and decode them under limits."""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from modalign.data.modalities import Amount, modality_of
from modalign.data.records import Media, Message, Source
from modalign.errors import DataError
from modalign.serving.decoding import UndecodedError
from modalign.serving.fair import BusyError
from modalign.serving.http.errors import ApiError, refused
from modalign.serving.http.fetch import Fetcher
from modalign.serving.http.settings import MediaLimits
from modalign.serving.requests import Turn


class MediaReader:
    """Reads the media of one request.

    Args:
        modalities: modalities that the model takes.
        limits: limits of all media together.
        fetcher: for http(s) URLs.
        decode: :meth:`modalign.serving.decoding.Decoders.decoded`, for one model and client; None: not here.
    """

    def __init__(
        self,
        modalities: tuple[str, ...],
        limits: MediaLimits,
        fetcher: Fetcher,
        decode: Callable[..., AbstractContextManager[list[Any]]] | None = None,
    ) -> None:
        self.modalities = modalities
        self.limits = limits
        self.fetcher = fetcher
        self._decode = decode
        self._undecoded: list[tuple[str, Media]] = []  # each with its field
        self._count = 0
        self._sums: dict[str, float] = {}  # by limit

    def from_url(self, modality: str, url: str, param: str) -> Media:
        """Read a medium from a data URL or an allowed address.

        Raises:
            ApiError: an unsupported modality, an invalid URL, or over a limit.
        """
        self._taken(modality, param)
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            content = _data_url(url, modality, param)
        elif scheme in ("http", "https"):
            try:
                content = self.fetcher.fetch(url)
            except DataError as error:
                raise refused(param, str(error), "url_refused") from None
        else:
            raise refused(
                param,
                "only data URLs and allowed http(s) addresses are read: send "
                f"data:{modality}/...;base64,...",
                "url_refused",
            )
        return self._checked(modality, content, param)

    def from_base64(self, modality: str, text: str, param: str) -> Media:
        """Read a medium from base64.

        Raises:
            ApiError: an unsupported modality, invalid base64, or over a limit.
        """
        self._taken(modality, param)
        return self._checked(modality, _base64(text, param), param)

    def from_value(self, modality: str, value: Any, param: str) -> Media:
        """Read an inline medium: a series, for example, or a row of a table.

        Raises:
            ApiError: an unsupported modality.
        """
        self._taken(modality, param)
        return Media(modality, data=json.dumps(value).encode(), source=_source(param))

    def _taken(self, modality: str, param: str) -> None:
        if modality not in self.modalities:
            takes = ", ".join(("text", *self.modalities))
            raise refused(param, f"this model takes no {modality}, only {takes}", "modality")
        self._count += 1
        if self._count > self.limits.count:
            raise refused(
                param, f"more than this server's {self.limits.count} media in one request"
            )

    @contextmanager
    def decoded(self, turns: Sequence[Turn]) -> Iterator[list[Turn]]:
        """Give turns with all media that were read decoded, as long as a prompt is made of them.

        Raises:
            ApiError: over a limit, not decodable, or the server is busy decoding others' (503).
        """
        if not self._undecoded or self._decode is None:
            yield list(turns)
            return
        params, media = zip(*self._undecoded, strict=True)

        before = dict(self._sums)

        def judge(amounts: list[list[Amount]]) -> float:
            self._sums = dict(before)  # a second try counts them anew
            judged = zip(params, media, amounts, strict=True)
            return max(self._judge(*one) for one in judged)

        try:
            with self._decode(media, judge=judge) as signals:
                found = dict(zip(map(id, media), signals, strict=True))
                yield [_with_signals(turn, found) for turn in turns]
        except UndecodedError as error:
            raise refused(params[error.at], str(error), "invalid_media") from None
        except BusyError:
            raise ApiError(
                503,
                "the server is busy decoding other requests' media: try again soon",
                code="busy",
                headers={"Retry-After": "5"},
            ) from None

    def _checked(self, modality: str, content: bytes, param: str) -> Media:
        medium = Media(modality, data=content, source=_source(param))
        known = modality_of(modality)
        if known.decode is not None:
            self._undecoded.append((param, medium))
        elif known.amounts is not None:
            try:
                self._judge(param, medium, known.amounts(medium))
            except DataError as error:
                reason = getattr(error, "reason", str(error))
                raise refused(param, reason, "invalid_media") from None
        return medium

    def _judge(self, param: str, medium: Media, amounts: Sequence[Amount]) -> float:
        """Refuse what is over a limit; the largest share of one that is used up."""
        share = 0.0
        for amount in amounts:
            limit = getattr(self.limits, amount.limit)
            found = amount.value
            if amount.adds_up:
                found = self._sums[amount.limit] = self._sums.get(amount.limit, 0) + amount.value
            if found > limit:
                unit = amount.words.rpartition(" ")[2]
                raise refused(
                    param,
                    f"with its {amount.words} the request has more {medium.modality} than this server's "
                    f"{limit:,.10g} {unit}: shrink it, or cut it",
                    "invalid_media",
                )
            share = max(share, found / limit if amount.adds_up else 0.0)
        return share


def _with_signals(turn: Turn, signals: Mapping[int, Any]) -> Turn:
    """A turn whose media carry what they were decoded to, by their identity."""
    given: Any = turn["content"] if isinstance(turn, Mapping) else turn.parts
    parts = tuple(
        replace(part, decoded=signals.get(id(part))) if isinstance(part, Media) else part
        for part in given
    )
    if isinstance(turn, Mapping):
        return {**turn, "content": parts}
    return Message(turn.role, parts)


def _source(param: str) -> Source:
    """Return the medium's place in the request for messages: ``messages[0].content:2``."""
    place, _, index = param.partition("]")[2].partition("[")
    number = index.partition("]")[0]
    start = param.partition("]")[0] + "]" + place
    return Source(start, int(number) if number.isdigit() else 0)


def _data_url(url: str, modality: str, param: str) -> bytes:
    """Decode ``data:TYPE;base64,...``, whose type must be the modality's, unknown or omitted."""
    head, comma, text = url.partition(",")
    kind, *options = head[len("data:") :].lower().split(";")
    if not comma or "base64" not in options:
        raise refused(param, "a data URL must be of the form data:TYPE;base64,...", "invalid_media")
    if kind not in ("", "application/octet-stream") and kind.partition("/")[0] != modality:
        raise refused(
            param, f"a data URL of {kind[:60]} is not of type {modality}", "invalid_media"
        )
    return _base64(text, param)


def _base64(text: str, param: str) -> bytes:
    try:
        content = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError as error:  # includes binascii.Error and UnicodeError
        said = "a character outside ASCII" if isinstance(error, UnicodeError) else str(error)
        raise refused(param, f"not valid base64 ({said})", "invalid_media") from None
    if not content:
        raise refused(param, "is empty", "invalid_media")
    return content
