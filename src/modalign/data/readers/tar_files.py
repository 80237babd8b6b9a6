"""WebDataset archives: consecutive members that share a name up to its first dot are one row.

The archive is read as a stream and nothing is extracted, so the names of its members are only
labels. A `.json` member gives the row's fields, a `.txt` member its caption, images their place in
the row; the names of other members are kept in the field `other_members`.
"""

from __future__ import annotations

import itertools
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from modalign.data.modalities import modality_of
from modalign.data.readers.result import Fields, RawRows, RowError
from modalign.data.readers.rows import media_columns
from modalign.data.records import Media
from modalign.errors import DataError
from modalign.strict_json import loads

TARGETS = ("messages", "conversations", "answer", "caption")
Member = tuple[str, str, bytes]  # key, suffix, content


class _DamageError(Exception):
    """The archive ends early or cannot be decompressed further."""


def read_tar(path: Path, modalities: Sequence[str]) -> RawRows:
    """Yield the rows of a WebDataset archive, compressed or not.

    Raises:
        DataError: the file is no tar archive.
    """
    number = 0
    try:
        for key, members in itertools.groupby(_members(path), key=lambda member: member[0]):
            number += 1
            yield number, _row(key, list(members), modalities)
    except _DamageError as error:  # while the members of row `number` were being collected
        message = f"the archive breaks off in this row ({error}): copy it anew"
        yield max(number, 1), RowError("row", message)


def _members(path: Path) -> Iterator[Member]:
    opened = False
    try:
        with tarfile.open(path, mode="r|*") as archive:
            opened = True
            for member in archive:
                name = PurePosixPath(member.name).name
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and not name.startswith("."):
                    yield _split_name(member.name, name, content.read())
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if not opened:
            raise DataError(f"{path}: not a readable tar archive ({error})") from None
        raise _DamageError(str(error) or type(error).__name__) from None


def _split_name(full: str, name: str, content: bytes) -> Member:
    stem, _, suffix = name.partition(".")
    key = str(PurePosixPath(full).parent / stem)
    return key, f".{suffix}", content


def _row(key: str, members: list[Member], modalities: Sequence[str]) -> Fields | RowError:
    fields: Fields = {}
    texts: list[str] = []
    media: dict[str, list[Media]] = {}
    others: list[str] = []
    for _, suffix, content in members:
        ending = PurePosixPath(f"x{suffix}").suffix.lower()
        modality = next((m for m in modalities if ending in modality_of(m).endings), None)
        try:
            if modality is not None:
                media.setdefault(modality, []).append(Media(modality, data=content))
            elif ending == ".json":
                fields.update(_json_member(content))
            elif ending == ".txt":
                texts.append(content.decode("utf-8"))
            else:
                others.append(f"{key}{suffix}")
        except RowError as error:
            return error
        except UnicodeDecodeError:
            return RowError("encoding", f"{key}{suffix} is not UTF-8 text: save it as UTF-8")
    return _assemble(key, fields, texts, media, others)


def _assemble(
    key: str, fields: Fields, texts: list[str], media: dict[str, list[Media]], others: list[str]
) -> Fields:
    for modality, items in media.items():
        for column in media_columns(modality):
            if column in fields:  # often the file's name before it was packed
                fields[f"json_{column}"] = fields.pop(column)
        fields[modality] = items
    if texts:
        free = all(fields.get(name) is None for name in TARGETS)
        fields["caption" if free else "txt"] = "\n".join(texts)
    if others:
        fields["other_members"] = others
    if fields.get("id") is None:
        fields["id"] = key
    return fields


def _json_member(content: bytes) -> Fields:
    try:
        value = loads(content)
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise RowError("row", f"its .json member is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise RowError("row", "its .json member is not an object with named fields")
    return value
