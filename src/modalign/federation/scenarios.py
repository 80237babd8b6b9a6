"""What clients lack: pure, seeded transforms of their records.

* ``aligned``: nothing.
* ``missing:P``: every record loses each of its modalities with probability P.
* ``single:K``: K clients hold only media, the others only text.
* ``mix:Q``: every client keeps each modality with probability 1 - Q.

Text is a modality like the others: a record without it has lost the words of its user turns. Whatever is drawn, a
record keeps one of its modalities, and its answers. Source: FedMLLM (arXiv 2411.14717).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from modalign.data.records import Media, Message, Part, Record
from modalign.errors import UsageError
from modalign.federation.seeds import rng

TEXT = "text"
SCENARIOS = ("aligned", "missing:P", "single:K", "mix:Q")
AGNOSTIC = "Answer from whatever is given."


def modalities_in(record: Record) -> list[str]:
    """Return what the user turns hold: modalities of media, and ``text`` if there are words."""
    found = {medium.modality for medium in record.media()}
    asked = any(message.text.strip() for message in record.messages if message.role == "user")
    return sorted(found) + [TEXT] * asked


def keeping(record: Record, kept: Collection[str]) -> Record:
    """Return the record with only these modalities in its user turns."""

    def stays(part: Part) -> bool:
        return (part.modality if isinstance(part, Media) else TEXT) in kept

    def of(message: Message) -> Message:
        if message.role != "user":
            return message
        return replace(message, parts=tuple(filter(stays, message.parts)))

    return replace(record, messages=tuple(map(of, record.messages)))


def agnostic(record: Record, prompt: str = AGNOSTIC) -> Record:
    """Return the record with a prompt that names no modality before the words of its first user turn."""
    messages = list(record.messages)
    place = next((n for n, message in enumerate(messages) if message.role == "user"), None)
    if place is None:
        return record
    parts = list(messages[place].parts)
    words = next((n for n, part in enumerate(parts) if isinstance(part, str)), len(parts))
    parts[words:words] = [prompt + " "]
    messages[place] = replace(messages[place], parts=tuple(parts))
    return replace(record, messages=tuple(messages))


Choice = Callable[[Record, list[str]], Collection[str]]  # what a record keeps of its modalities


def applied(
    name: str, clients: Mapping[str, Sequence[Record]], seed: int = 0
) -> dict[str, list[Record]]:
    """Return the clients' records in a scenario.

    Args:
        name: ``aligned``, ``missing:0.3``, ``single:5`` or ``mix:0.2``.
        clients: name -> records.
        seed: of what is lost.

    Raises:
        UsageError: an unknown scenario.
    """
    kind, amount = parse(name)
    if kind == "single" and amount > len(clients):
        raise UsageError(f"scenario {name}: there are only {len(clients)} clients")
    order = rng(seed, "single").permutation(len(clients)).tolist()
    found = {}
    for number, (client, records) in enumerate(clients.items()):
        draw = rng(seed, kind, client)
        choose = _choice(kind, amount, draw, order[number], records)
        chosen = [(record, choose(record, modalities_in(record))) for record in records]
        found[client] = [keeping(record, kept) for record, kept in chosen if kept]
    return found


def parse(name: str) -> tuple[str, float]:
    """Return a scenario's kind and number.

    Raises:
        UsageError: there is none of that name, or its number is out of range.
    """
    kind, colon, text = name.partition(":")
    try:
        amount = float(text) if colon else 0.0
    except ValueError:
        amount = -1.0
    whole = kind == "single" and amount == int(amount) and amount >= 0
    share = kind in ("missing", "mix") and 0 <= amount < 1
    if (kind == "aligned" and not colon) or (colon and (whole or share)):
        return kind, amount
    raise UsageError(
        f"no scenario is called {name!r}; there are {', '.join(SCENARIOS)} (P and Q from 0 to below 1, K clients)"
    )


def _choice(
    kind: str, amount: float, draw: np.random.Generator, place: int, records: Sequence[Record]
) -> Choice:
    """Return what each record of a client keeps; nothing if the client cannot have the record."""
    if kind == "single":
        return lambda _, own: [m for m in own if (m != TEXT) == (place < amount)]
    if kind == "missing":
        return lambda _, own: _some(own, amount, draw)
    if kind == "mix":
        held = sorted({modality for record in records for modality in modalities_in(record)})
        client = set(_some(held, amount, draw))
        return lambda _, own: [modality for modality in own if modality in client]
    return lambda _, own: own


def _some(own: list[str], lost: float, draw: np.random.Generator) -> list[str]:
    """Return those that were not lost, at least one."""
    stays = draw.random(len(own)) >= lost
    if len(own) and not stays.any():
        stays[int(draw.integers(len(own)))] = True
    return [modality for modality, kept in zip(own, stays.tolist(), strict=True) if kept]
