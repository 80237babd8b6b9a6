"""Write records as chat `messages` JSON Lines, the only format that holds everything in a record."""

from __future__ import annotations

import datetime
import decimal
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modalign.data.modalities import DEFAULT
from modalign.data.readers.inline import from_json
from modalign.data.readers.rows import COMMON_FIELDS
from modalign.data.records import Media, Part, Record, media_columns
from modalign.errors import DataError
from modalign.files import replacing, write_atomically
from modalign.strict_json import dumps

SIGNATURES = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"RIFF", ".riff"),
    (b"fLaC", ".flac"),
    (b"\x93NUMPY", ".npy"),
    (b"BM", ".bmp"),
)


def write_records(records: Iterable[Record], path: str | Path) -> None:
    """Write records so that `read_records` restores them, with media paths relative to the file.

    Inline values are written into the row; other media held as bytes go beside the file, into
    `<name>.media`, named by their content. The file is written atomically.

    Raises:
        DataError: a record has a field that the format cannot represent.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        for record in records:
            file.write(_line(record, path))


def _line(record: Record, path: Path) -> bytes:
    modalities = {*DEFAULT, *(media.modality for media in record.media())}
    own = {"messages", *COMMON_FIELDS, *(c for m in modalities for c in media_columns(m))}
    clash = sorted(own & set(record.extra))
    if clash:
        raise DataError(
            f"{record.source}: the extra field(s) {', '.join(clash)} would be read as the record's "
            "own; rename them"
        )
    row: dict[str, Any] = {
        "id": record.id,
        "messages": [
            {"role": m.role, "content": [_content(part, path) for part in m.parts]}
            for m in record.messages
        ],
    }
    optional = {
        "skill": record.skill,
        "group": record.group,
        "options": list(record.options),
        "answers": list(record.answers),
    }
    row |= {key: value for key, value in optional.items() if value}
    row |= record.extra
    try:
        return dumps(row, plain_json).encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"{record.source}: cannot be written as JSON ({error})") from None


def _content(part: Part, path: Path) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    content: dict[str, Any] = {"type": part.modality}
    value = from_json(part.data, part.modality) if part.data is not None else None
    if value is not None:
        content[part.modality] = value
    else:
        file = part.path if part.path is not None else store_media(part, path)
        content["path"] = Path(os.path.relpath(file, path.parent)).as_posix()
    return content if part.annotations is None else content | {"annotations": part.annotations}


def store_media(media: Media, path: Path) -> str:
    """Write a medium into `<path>.media`, named by its content, once; return its path."""
    content = media.read()
    folder = path.with_name(f"{path.name}.media")
    folder.mkdir(exist_ok=True)
    target = folder / f"{media.content_hash()}{_ending(content)}"
    if not target.exists():
        write_atomically(target, content)
    return str(target)


def _ending(content: bytes) -> str:
    if content[:4] == b"RIFF":
        return {b"WEBP": ".webp", b"WAVE": ".wav"}.get(content[8:12], ".riff")
    return next((ending for start, ending in SIGNATURES if content.startswith(start)), ".bin")


def plain_json(value: Any) -> Any:
    """Convert a value for JSON, as `json.dumps(default=...)` needs."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise TypeError(f"a field holds {type(value).__name__}; turn it into text or numbers")
