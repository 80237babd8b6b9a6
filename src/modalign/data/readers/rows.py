"""Turn the fields of one row into a `Record`, whatever file it came from.

There are three shapes, recognised by their columns:

* chat: `messages` with `role` and `content` (text with `<image>` marks, or typed parts);
* LLaVA: `conversations` with `from` and `value`;
* flat: `question` and `answer`, or `caption`, with the media first unless placeholders place them.

The media of a row come from the columns named after their modality (`image` or `images`), in
order. `<image>` always stands for an image. The placeholders of other modalities (`<table>` is
also HTML) count only in rows with such a medium.

Most media are files, given by path. Series and vectors may be given inline as lists of numbers, a
table as a mapping of its columns (`inline`).
"""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from modalign.data.modalities import DEFAULT, modality_names, modality_of
from modalign.data.readers.columns import translated, turn_of
from modalign.data.readers.inline import is_inline, to_json
from modalign.data.readers.result import Fields, RowError
from modalign.data.records import (
    REFERENCE_KEYS,
    Media,
    Message,
    Part,
    Record,
    Role,
    Source,
    mark,
    media_columns,
)
from modalign.errors import choose, meant
from modalign.strict_json import loads

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
LARGEST_INTEGER = 2**53  # that a column of floats holds exactly
# Fields of turns and parts from other tools that ask for the default behaviour.
NEUTRAL = (("weight", 1), ("loss", True), ("train", True), ("detail", "auto"), ("detail", "high"))
COMMON_FIELDS = ("id", "skill", "group", "options", "answers")


@dataclass(frozen=True, slots=True)
class Context:
    """The context of a row: its file and its number."""

    file: str
    root: Path
    modalities: tuple[str, ...] = DEFAULT
    row: int = 0

    @property
    def source(self) -> Source:
        """The place of the row."""
        return Source(self.file, self.row)


class Supply:
    """The media of one row, consumed in order by placeholders and untyped parts."""

    def __init__(self, media: dict[str, list[Media]]) -> None:
        self._media = media
        self._taken = dict.fromkeys(modality_names(), 0)
        marks = [mark(m) for m in modality_names() if m in DEFAULT or media.get(m)]
        self._pattern = re.compile("(" + "|".join(map(re.escape, marks)) + ")")

    def take(self, modality: str) -> Media:
        """Return the next medium; `check` later reports if there was none."""
        available = self._media.get(modality, [])
        index = self._taken[modality]
        self._taken[modality] += 1
        return available[index] if index < len(available) else Media(modality, path="")

    def all(self) -> tuple[Media, ...]:
        """Return every medium that is left."""
        return tuple(
            self.take(modality)
            for modality, media in self._media.items()
            for _ in media[self._taken[modality] :]
        )

    def has_marks(self, text: str) -> bool:
        """Whether a text contains placeholders."""
        return self._pattern.search(text) is not None

    def place(self, text: str) -> tuple[Part, ...]:
        """Split a text at its placeholders and insert the media."""
        pieces = self._pattern.split(text)
        return tuple(
            self.take(piece[1:-1]) if index % 2 else piece
            for index, piece in enumerate(pieces)
            if piece
        )

    def check(self) -> None:
        """Raise RowError unless every medium has a placeholder and vice versa."""
        for modality, taken in self._taken.items():
            held = len(self._media.get(modality, []))
            if taken > held:
                raise RowError(
                    "placeholder",
                    f"{taken} {mark(modality)} placeholder(s) but {held} {modality} file(s): "
                    f"remove the placeholder or name the missing file",
                )
            if taken < held:
                raise RowError(
                    "placeholder",
                    f"{held} {modality} file(s) but {taken} {mark(modality)} placeholder(s): "
                    f"put {mark(modality)} where each file belongs",
                )


def build_record(fields: Fields, context: Context, row: int) -> Record:
    """Turn the fields of a row into a record.

    Raises:
        RowError: the row has none of the known shapes, or something in it is unusable.
    """
    _refuse_surrogates(fields)
    fields = translated(fields)
    context = replace(context, row=row)
    columns = [c for m in context.modalities for c in media_columns(m)]
    supply = Supply({m: _column_media(fields, m, context) for m in context.modalities})
    if _given(fields, "messages"):
        used: tuple[str, ...] = ("messages",)
        messages = _chat_messages(fields["messages"], supply, context)
    elif _given(fields, "conversations"):
        used = ("conversations",)
        messages = _llava_messages(fields["conversations"], supply)
    else:
        messages, used = _flat_messages(fields, supply)
    supply.check()
    messages, used = _with_system(fields, messages, used)
    empty = {name for name in ("messages", "conversations") if not _given(fields, name)}
    known = {*used, *columns, *COMMON_FIELDS, *empty}
    return Record(
        id=_scalar(fields, "id") or f"{Path(context.file).name}:{row}",
        messages=messages,
        source=context.source,
        skill=_scalar(fields, "skill"),
        group=_scalar(fields, "group"),
        options=_texts(fields, "options"),
        answers=_texts(fields, "answers"),
        extra={key: value for key, value in fields.items() if key not in known},
    )


# --- the three shapes ---------------------------------------------------------------------------


def _chat_messages(value: Any, supply: Supply, context: Context) -> tuple[Message, ...]:
    messages = []
    for turn in _turns(value, "messages", {"role", "content"}):
        role = _role(turn, "role")
        content = turn.get("content")
        if isinstance(content, str):
            parts = supply.place(content)
        elif isinstance(content, list):
            typed = (_typed_part(part, supply, context) for part in content)
            parts = tuple(part for part in typed if part != "")
        else:
            raise RowError(
                "row", f"a {role} message's content is {_kind_of(content)}, not text or parts"
            )
        messages.append(Message(role, parts))
    return tuple(messages)


def _llava_messages(value: Any, supply: Supply) -> tuple[Message, ...]:
    messages = []
    for turn in _turns(value, "conversations", {"role", "content"}):
        role = _role(turn, "role")
        text = turn.get("content")
        if not isinstance(text, str):
            raise RowError("row", f"the value of a {role} turn is {_kind_of(text)}, not text")
        messages.append(Message(role, supply.place(text)))
    return tuple(messages)


def _flat_messages(fields: Fields, supply: Supply) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    answer_field = "answer" if _given(fields, "answer") else "caption"
    if answer_field not in fields and "answer" not in fields:
        names = ", ".join(map(str, fields)) or "none"
        near = [hint for name in fields if (hint := meant(name, ("answer", "messages", "caption")))]
        raise RowError(
            "row",
            "no messages, conversations, answer or caption: rename the columns to one of these, or name yours "
            f"with --columns answer=YOURS (columns found: {names}{'; ' + near[0] if near else ''})",
        )
    if not _given(fields, answer_field):
        raise RowError("empty-answer", "the answer is empty: fill it in or remove the row")
    question = _text(fields["question"], "question") if _given(fields, "question") else ""
    texts = [*_earlier(fields), question]
    if any(supply.has_marks(text) for text in texts):
        placed = [supply.place(text) for text in texts]
    else:
        placed = [(text,) if text else () for text in texts]
        placed[0] = (*supply.all(), *placed[0])
    if not all(placed):
        raise RowError("row", "neither a question nor a medium: the model would be asked nothing")
    placed.append(supply.place(_text(fields[answer_field], answer_field)))
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = tuple(Message(roles[n % 2], parts) for n, parts in enumerate(placed))
    return messages, (answer_field, "question", "history")


def _with_system(
    fields: Fields, messages: tuple[Message, ...], used: tuple[str, ...]
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """A column ``system`` is the first turn."""
    if not _given(fields, "system"):
        return messages, used
    if messages[0].role == "system":
        raise RowError("row", "both the column system and a system turn: keep one")
    turn = Message("system", (_text(fields["system"], "system"),))
    return (turn, *messages), (*used, "system")


def _earlier(fields: Fields) -> list[str]:
    """The texts of ``history``: questions and answers in turn."""
    if not _given(fields, "history"):
        return []
    pairs = _decoded(fields["history"], "history")
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise RowError("row", "history is no list of pairs, [[question, answer], ...]")
    return [_text(text, "history") for pair in pairs for text in pair]


def _turns(value: Any, name: str, known: set[str]) -> list[Fields]:
    turns = _decoded(value, name)
    if not isinstance(turns, list) or not turns:
        raise RowError("row", f"{name} is {_kind_of(turns)}, not a list of turns")
    for turn in turns:
        if not isinstance(turn, dict):
            raise RowError("row", f"{name} holds {_kind_of(turn)} where a turn should be")
    turns = [turn_of(turn) for turn in turns]
    for turn in turns:
        _refuse_unknown(turn, known, f"a turn of {name}")
    return cast("list[Fields]", turns)


def _refuse_unknown(fields: Fields, known: set[str], where: str) -> None:
    """Refuse filled fields that nothing reads and that would be lost silently.

    Empty fields (Arrow fills absent ones with null) and those that ask for the default are accepted.
    """
    for name, value in fields.items():
        asks = value not in (None, "", [], {}) and (name, value) not in NEUTRAL
        if name not in known and asks:
            raise RowError(
                "row",
                f"{where} holds {name!r}, which is not read ({', '.join(sorted(known))} are); "
                f"{meant(name, known) or 'remove it, or move it to a column of the row'}",
            )


def _role(turn: Fields, key: str) -> Role:
    name = turn.get(key)
    if not isinstance(name, str) or name not in ROLES:
        raise RowError("row", f"{key} is {name!r}: {choose(name, ROLES)}")
    return ROLES[name]


def _typed_part(part: Any, supply: Supply, context: Context) -> Part:
    if not isinstance(part, dict):
        raise RowError("row", f'a content part is {_kind_of(part)}, not {{"type": ..}}')
    kind = part.get("type")
    if kind == "text":
        _refuse_unknown(part, {"type", "text"}, "a text part")
        text = part.get("text")
        if not isinstance(text, str):
            raise RowError("row", f"a text part holds {_kind_of(text)}, not text")
        return text
    modality = kind.removesuffix("_url") if isinstance(kind, str) else None
    if modality not in modality_names():
        known = ("text", "image_url", *modality_names())
        raise RowError("row", f"a content part has type {kind!r}: {choose(kind, known)}")
    keys = (modality, "path", "url", f"{modality}_url")
    _refuse_unknown(part, {"type", "annotations", *keys}, f"an {modality} part")
    for key in keys:
        if part.get(key) is not None:
            media = to_media(part[key], modality, context)
            return _annotated(media, part)
    return supply.take(modality)


# --- media --------------------------------------------------------------------------------------


def _column_media(fields: Fields, modality: str, context: Context) -> list[Media]:
    filled = [c for c in media_columns(modality) if _given(fields, c)]
    if len(filled) > 1:
        raise RowError("row", f"both {' and '.join(filled)} are filled: keep one")
    if not filled:
        return []
    value = fields[filled[0]]
    if isinstance(value, str) and re.match(r'\s*(\[|\{\s*["}])', value):
        value = _decoded(value, filled[0])
    several = isinstance(value, list) and not is_inline(value, modality)
    return [to_media(item, modality, context) for item in (value if several else [value])]


def to_media(value: Any, modality: str, context: Context) -> Media:
    """Make a medium from a path, bytes, a data URL, a `{"bytes", "path"}` mapping or an inline value.

    A mapping may also hold `annotations`, notes about the signal for tools.

    Raises:
        RowError: it is none of these, or has to be downloaded.
    """
    if isinstance(value, Media):
        return value
    if is_inline(value, modality):
        return Media(modality, data=to_json(value, modality), source=context.source)
    if isinstance(value, bytes):
        return Media(modality, data=value, source=context.source)
    if isinstance(value, str):
        return _from_reference(value, modality, context)
    if isinstance(value, dict):
        _refuse_unknown(value, REFERENCE_KEYS, f"the {modality}")
        if isinstance(value.get("bytes"), bytes):
            return _annotated(to_media(value["bytes"], modality, context), value)
        for key in ("path", "url"):
            if isinstance(value.get(key), str):
                return _annotated(_from_reference(value[key], modality, context), value)
    forms = "a path, bytes or a data URL"
    if (inline := modality_of(modality).inline) is not None:
        forms += f", or {inline.words} in the row"
    raise RowError("row", f"the {modality} is {_kind_of(value)}: give {forms}")


def _annotated(media: Media, fields: Fields) -> Media:
    """Return the medium with the annotations of its mapping, if any."""
    notes = fields.get("annotations")
    return media if notes is None else replace(media, annotations=notes)


def _from_reference(text: str, modality: str, context: Context) -> Media:
    if not text.strip():
        raise RowError("missing-media", f"the path of the {modality} is empty: fill it in")
    if text[:5].lower() == "data:":
        return Media(modality, data=_data_url(text), source=context.source)
    if text[:5].lower() == "file:":
        return Media(modality, path=_file_address(text))
    if re.match(r"[A-Za-z]:[\\/]|\\\\", text) and os.name != "nt":
        raise RowError(
            "missing-media",
            f"{_shorten(text)} is a Windows path, but this is another system: give paths that exist here",
        )
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise RowError(
            "url", f"{_shorten(text)} is not downloaded: fetch the file and give its local path"
        )
    return Media(modality, path=str(context.root / text))


def _file_address(text: str) -> str:
    """Return the path of a ``file:`` URL (RFC 8089), with its part after '#'."""
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise RowError(
            "missing-media",
            f"{_shorten(text)} names a file on the machine {parts.netloc!r}: write file:///{parts.netloc}"
            f"{parts.path} for a path from the root, or the path without file:// for one from the data's folder",
        )
    if not parts.path.startswith("/"):
        raise RowError(
            "missing-media", f"{_shorten(text)} is not an absolute path: write it without file:"
        )
    part = f"#{parts.fragment}" if parts.fragment else ""
    return unquote(parts.path + part)


def _data_url(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise RowError("broken-media", f"{_shorten(text)} is not a data URL: it lacks a comma")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("broken-media", f"a data URL's base64 is invalid ({error})") from None


# --- single fields ------------------------------------------------------------------------------


def _given(fields: Fields, name: str) -> bool:
    """Whether a field is filled; numeric Parquet columns use NaN for missing values."""
    value = fields.get(name)
    missing = isinstance(value, float) and math.isnan(value)
    return value is not None and not missing and value not in ("", [])


def _scalar(fields: Fields, name: str) -> str | None:
    if not _given(fields, name):
        return None
    return _text(fields[name], name)


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.0f}" if value.is_integer() and abs(value) < LARGEST_INTEGER else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        raise RowError("row", f"{name} is {value}, which is not an answer: correct it")
    hint = "; further accepted answers belong in answers" if name == "answer" else ""
    raise RowError("row", f"{name} is {_kind_of(value)}, not text{hint}")


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    if not _given(fields, name):
        return ()
    value = fields[name]
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _decoded(value, name)
    elif isinstance(value, str) and name == "answers":
        value = [value]
    if not isinstance(value, list):
        raise RowError("row", f'{name} is {_kind_of(value)}: write a list, ["yes", "no"]')
    return tuple(_text(item, name) for item in value)


def _decoded(value: Any, name: str) -> Any:
    """Decode a list or mapping given as JSON text, as in a CSV cell."""
    if not isinstance(value, str):
        return value
    try:
        return loads(value)
    except ValueError as error:
        raise RowError("row", f"{name} is text but not a JSON list or mapping ({error})") from None


def _refuse_surrogates(fields: Fields) -> None:
    if any(not _encodable(text) for text in _strings(fields)):
        raise RowError("encoding", "the row is not valid UTF-8 text: save it as UTF-8")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _strings(value: Any) -> Iterable[str]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _kind_of(value: Any) -> str:
    names = {type(None): "missing", str: "text", list: "a list", dict: "a mapping"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), f"a {type(value).__name__}")


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
