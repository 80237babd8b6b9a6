"""Who has which records: folders, or the rows of one file split by a column, a label's shares, or shards.

Held-out records are chosen before the split, in whole groups and without a seed: no client trains on a picture
that judges a model, and every seed is judged on the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modalign.data.records import Record
from modalign.data.splits import drawn_over_skills, split_validation
from modalign.errors import DataError
from modalign.federation.config import Clients
from modalign.federation.seeds import rng
from modalign.training.references import check_vocabulary

FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".tar")
DRAWS = 50  # of a Dirichlet distribution, until every client has records

Read = Callable[[str, str], list[Record]]  # name, path -> records


@dataclass
class Client:
    """One owner.

    Attributes:
        name: its folder, its value of the column, or its number.
        train: its records.
        held: its held-out records, which judge the models.
    """

    name: str
    train: list[Record] = field(default_factory=list)
    held: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class RecordPool:
    """All records before they are split; with folders, the clients are known already.

    Attributes:
        records: in order.
        owners: (n,) the client of each, or None.
        held: (n,) bool, those held out.
    """

    records: list[Record]
    owners: list[str] | None
    held: np.ndarray


def read_pool(given: Clients, path: str, read: Read, tokenizer: Any) -> RecordPool:
    """Read all clients' records, and hold some out.

    Raises:
        DataError: a client has no usable records.
        UsageError: a client has a tokenizer other than the model's.
    """
    records: list[Record] = []
    owners: list[str] | None = None
    if given.by == "folders":
        owners = []
        for name, file in folders_of(Path(path), tokenizer):
            found = read(f"client {name}", str(file))
            records += found
            owners += [name] * len(found)
    else:
        records = read("the clients' records", path)
    _, held = split_validation(records, given.held_out)
    kept = {id(record) for record in held}
    return RecordPool(records, owners, np.array([id(record) in kept for record in records]))


def folders_of(root: Path, tokenizer: Any) -> list[tuple[str, Path]]:
    """Return every client's name and file of records.

    A client is a folder with one file of records, or with several of which one is called ``train``.

    Raises:
        DataError: there are no clients, or a folder has no such file.
        UsageError: a folder has a tokenizer of its own that is not the model's.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: clients.by: folders needs data.train to be one")
    found = []
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        files = sorted(file for file in folder.iterdir() if file.suffix in FILES)
        files = [f for f in files if not f.name.startswith(("tokenizer", "special_tokens"))]
        named = [file for file in files if file.stem == "train"] or files
        if len(named) != 1:
            said = "no file" if not named else f"{len(named)} files, none of them called train,"
            raise DataError(
                f"client {folder.name!r}: {folder} has {said} of records ({', '.join(FILES)})"
            )
        if (folder / "tokenizer_config.json").exists():
            check_vocabulary(folder.name, str(folder), tokenizer, "client")
        found.append((folder.name, named[0]))
    if not found:
        raise DataError(f"{root} has no folders: every client needs one, with its records")
    return found


# ---------------------------------------------------------------------- splitting


def split(given: Clients, pool: RecordPool, seed: int) -> list[Client]:
    """Return the clients of one seed.

    Raises:
        DataError: a client has no records to train on, or a record lacks the column.
    """
    kind, _, value = given.by.partition(":")
    if pool.owners is not None:
        owners = pool.owners
    elif kind == "column":
        owners = [_label(record, value) for record in pool.records]
    else:
        labels = [_label(record, given.label) for record in pool.records]
        draw = _dirichlet if kind == "dirichlet" else _shards
        numbers = draw(labels, given.count, float(value), pool.held, seed)
        width = len(str(given.count - 1))
        owners = [f"client-{number:0{width}}" for number in numbers]
    clients = {name: Client(name) for name in sorted(set(owners))}
    for record, owner, held in zip(pool.records, owners, pool.held.tolist(), strict=True):
        (clients[owner].held if held else clients[owner].train).append(record)
    for client in clients.values():
        if not client.train:
            raise DataError(
                f"client {client.name!r} has no usable records to train on ({given.by}, seed {seed}): give it "
                "more, leave it out, or choose fewer clients"
            )
        if given.limit is not None:
            few = max(round(given.limit * given.held_out / (1 - given.held_out)), 1)
            client.train = drawn_over_skills(client.train, given.limit, seed)
            client.held = drawn_over_skills(client.held, few, seed)
    return list(clients.values())


def _label(record: Record, column: str) -> str:
    """Return a record's value of a column.

    Raises:
        DataError: it has none.
    """
    own = {"skill": record.skill, "answer": record.answer, "group": record.group}
    found = own.get(column) if column in own else record.extra.get(column)
    if found is None or found == "":
        raise DataError(f"{record.source}: the row has no {column!r}, by which clients are split")
    return str(found)


def _dirichlet(
    labels: Sequence[str], count: int, alpha: float, held: np.ndarray, seed: int
) -> np.ndarray:
    """Return (n,) clients: each label's records by shares from a Dirichlet distribution.

    Drawn again until every client has records to train on.
    """
    draw = rng(seed, "dirichlet")
    of_label = np.unique(np.array(labels), return_inverse=True)[1]
    owners = np.zeros(len(labels), dtype=int)
    for _ in range(DRAWS):
        for label in range(of_label.max() + 1):
            places = draw.permutation(np.flatnonzero(of_label == label))
            edges = np.cumsum(draw.dirichlet([alpha] * count))[:-1] * len(places)
            for client, own in enumerate(np.split(places, edges.round().astype(int))):
                owners[own] = client
        if len(np.unique(owners[~held])) == count:
            break
    return owners


def _shards(
    labels: Sequence[str], count: int, pieces: float, held: np.ndarray, seed: int
) -> np.ndarray:
    """Return (n,) clients: records sorted by label, cut into equal pieces, dealt out at random."""
    draw = rng(seed, "shards")
    shuffled = draw.permutation(len(labels))
    order = shuffled[np.argsort(np.array(labels)[shuffled], kind="stable")]
    parts = np.array_split(order, count * int(pieces))
    owners = np.zeros(len(labels), dtype=int)
    for place, part in enumerate(draw.permutation(len(parts)).tolist()):
        owners[parts[part]] = place % count
    return owners
