"""Write kept rows unchanged, one JSON object per line, with media paths relative to the output."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from modalign.data.curation.inputs import Row
from modalign.data.modalities import modality_names
from modalign.data.readers.inline import is_inline
from modalign.data.readers.rows import Context
from modalign.data.readers.writer import plain_json, store_media
from modalign.data.records import Media, media_columns
from modalign.errors import DataError
from modalign.strict_json import dumps, loads

REMOTE = ("data:", "file:")


def line_of(row: Row, target: Path) -> bytes:
    """Format a kept row as a line of the target file.

    The row keeps its shape and all its fields. Relative media paths are written relative to the
    target's folder; media held as bytes are stored in `<target>.media`, named by their content.

    Raises:
        DataError: a field cannot be represented in JSON.
    """
    fields = dict(row.fields)
    for modality in row.context.modalities:
        for column in media_columns(modality):
            if fields.get(column):
                fields[column] = _relocated(fields[column], modality, row.context, target)
    if fields.get("messages"):
        turns = fields["messages"]
        turns = loads(turns) if isinstance(turns, str) else turns
        fields["messages"] = [_turn(turn, row.context, target) for turn in turns]
    try:
        text = dumps(fields, plain_json)
    except (TypeError, ValueError) as error:
        raise DataError(f"{row.record.source}: cannot be written as JSON ({error})") from None
    return text.encode("utf-8") + b"\n"


def _turn(turn: dict[str, Any], context: Context, target: Path) -> dict[str, Any]:
    content = turn.get("content")
    if not isinstance(content, list):
        return turn
    return turn | {"content": [_part(part, context, target) for part in content]}


def _part(part: dict[str, Any], context: Context, target: Path) -> dict[str, Any]:
    modality = str(part.get("type")).removesuffix("_url")
    if modality not in modality_names():
        return part
    keys = [k for k in (modality, "path", "url", f"{modality}_url") if part.get(k) is not None]
    return part | {key: _relocated(part[key], modality, context, target) for key in keys[:1]}


def _relocated(value: Any, modality: str, context: Context, target: Path) -> Any:
    """Rewrite a media reference for the target: a path, a mapping, bytes, or a list of these."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = loads(value)  # a CSV cell: the reader has seen that it is JSON
    if is_inline(value, modality):
        return value
    if isinstance(value, list):
        return [_relocated(item, modality, context, target) for item in value]
    if isinstance(value, dict):
        return _mapping(value, modality, context, target)
    if isinstance(value, bytes | Media):
        media = value if isinstance(value, Media) else Media(modality, data=value)
        return _stored(media, target)
    return _path(value, context, target)


def _mapping(
    value: dict[str, Any], modality: str, context: Context, target: Path
) -> dict[str, Any]:
    if isinstance(value.get("bytes"), bytes):
        stored = _stored(Media(modality, data=value["bytes"]), target)
        return {key: item for key, item in value.items() if key != "bytes"} | {"path": stored}
    key = next(key for key in ("path", "url") if isinstance(value.get(key), str))
    return value | {key: _path(value[key], context, target)}


def _path(text: str, context: Context, target: Path) -> str:
    folder = os.path.abspath(target.parent)
    if text.lower().startswith(REMOTE) or os.path.isabs(text) or folder == str(context.root):
        return text
    return Path(os.path.relpath(context.root / text, folder)).as_posix()


def _stored(media: Media, target: Path) -> str:
    return Path(os.path.relpath(store_media(media, target), target.parent)).as_posix()
