"""WebDataset archives: consecutive members that share a name up to its first dot are one row.

The archive is read as a stream and nothing is extracted, so the names of its members are only
labels. A `.json` member gives the row's fields, a `.txt` member its caption, images their place in
the row; the names of other members are kept in the field `other_members`. Names are read once before: a
row whose members are not side by side is refused where it begins, and no part of it is a row of its own.
"""

from __future__ import annotations

import itertools
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from modalign.data.modalities import modality_names, modality_of
from modalign.data.readers.result import Fields, RawRows, RowError
from modalign.data.records import Media, media_columns
from modalign.errors import DataError
from modalign.strict_json import loads

TARGETS = ("messages", "conversations", "answer", "caption")


class _Member(NamedTuple):
    """A file in the archive; ``content`` is None where it is a link to another."""

    key: str
    suffix: str
    content: bytes | None

    @property
    def name(self) -> str:
        """As it stands in the archive."""
        return self.key + self.suffix

    @property
    def ending(self) -> str:
        """The suffix behind the last dot."""
        return PurePosixPath(f"x{self.suffix}").suffix.lower()


class _DamageError(Exception):
    """The archive ends early or cannot be decompressed further."""


def read_tar(path: Path, modalities: Sequence[str]) -> RawRows:
    """Yield the rows of a WebDataset archive, compressed or not.

    Raises:
        DataError: the file is not a tar archive.
    """
    number = 0
    apart = _apart(path)
    told: set[str] = set()
    try:
        for key, members in itertools.groupby(_members(path), key=lambda member: member.key):
            if key in told:
                continue
            number += 1
            row = _row(key, list(members), modalities)
            if key in apart:
                told.add(key)
                row = RowError("row", apart[key])
            yield number, row
    except _DamageError as error:  # while the members of row `number` were being collected
        message = f"the archive is truncated in this row ({error}): copy it again"
        yield max(number, 1), RowError("row", message)


def _apart(path: Path) -> dict[str, str]:
    """What to say of each key whose members do not stand side by side."""
    found: dict[str, str] = {}
    last: dict[str, str] = {}  # the last member of each key so far
    before = None
    try:
        for member in _members(path, names_only=True):
            if member.key in last and member.key != before:
                found.setdefault(
                    member.key,
                    f"its members are not side by side: others stand between {last[member.key]} and "
                    f"{member.name}. Pack the archive in the order of names: tar --sort=name",
                )
            before = member.key
            last[before] = member.name
    except _DamageError:
        pass  # told where the rows are read
    return found


def _members(path: Path, names_only: bool = False) -> Iterator[_Member]:
    opened = False
    try:
        with tarfile.open(path, mode="r|*") as archive:
            opened = True
            for member in archive:
                name = PurePosixPath(member.name).name
                if name.startswith(".") or not (
                    member.isfile() or member.issym() or member.islnk()
                ):
                    continue
                file = archive.extractfile(member) if member.isfile() and not names_only else None
                stem, _, suffix = name.partition(".")
                key = str(PurePosixPath(member.name).parent / stem)
                yield _Member(key, f".{suffix}" if suffix else "", file.read() if file else None)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if not opened:
            raise DataError(f"{path}: not a readable tar archive ({error})") from None
        raise _DamageError(str(error) or type(error).__name__) from None


def _row(key: str, members: list[_Member], modalities: Sequence[str]) -> Fields | RowError:
    fields: Fields = {}
    texts: list[str] = []
    media: dict[str, list[Media | str]] = {}  # by name where the model does not take them
    others: list[str] = []
    if problem := _ambiguous(members):
        return problem
    for member in members:
        name, content = member.name, member.content
        modality = _modality(member.ending, modalities)
        try:
            if content is None:
                return RowError(
                    "row",
                    f"{name} is a link to another member: pack the archive with --dereference "
                    "--hard-dereference",
                )
            if modality is not None:
                found = Media(modality, data=content) if modality in modalities else name
                media.setdefault(modality, []).append(found)
            elif member.ending == ".json":
                fields.update(_json_member(content))
            elif member.ending == ".txt":
                texts.append(content.decode("utf-8"))
            else:
                others.append(name)
        except RowError as error:
            return error
        except UnicodeDecodeError:
            return RowError("encoding", f"{name} is not UTF-8 text: save it as UTF-8")
    return _assemble(key, fields, texts, media, others)


def _ambiguous(members: list[_Member]) -> RowError | None:
    """Refuse a row of which one member would hide another.

    ``scene.1.json`` and ``scene.2.json`` share their name up to the first dot, where their writer meant two rows.
    """
    for name, times in Counter(member.name for member in members).items():
        if times > 1:
            return RowError("row", f"{name} is there {times} times: leave one of them out")
    for ending in (".json", ".txt"):
        same = [member.name for member in members if member.ending == ending]
        if len(same) > 1:
            return RowError(
                "row",
                f"has several {ending} members ({', '.join(same[:3])}): a row is all that shares a name up to its "
                f"first dot. Where each is a row, name them without that dot: {members[0].key}-1{ending}",
            )
    return None


def _modality(ending: str, modalities: Sequence[str]) -> str | None:
    """The modality of a member; of one that the model does not take, too, so that it is reported."""
    files = [m for m in modality_names() if modality_of(m).inline is None]
    known = (m for m in (*modalities, *files) if ending in modality_of(m).endings)
    return next(known, None)


def _assemble(
    key: str,
    fields: Fields,
    texts: list[str],
    media: dict[str, list[Media | str]],
    others: list[str],
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
