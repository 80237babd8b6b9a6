"""Instruction records written by a chat model from the annotations' text.

Every item is one request. A faulty reply is sent back once with the reasons; if it is still faulty, it is
rejected. The client caches replies, so an interrupted build repeats no request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from modalign.data.records import Message, Record
from modalign.data.synthesis.annotations import Item
from modalign.data.synthesis.by_template import Dropped
from modalign.data.synthesis.prompts import Prompt
from modalign.data.synthesis.replies import Checked, Pair, read_reply
from modalign.endpoints import EndpointError, Reply, Request, Usage
from modalign.progress import Progress

NO_REPLY = "no reply"


class Client(Protocol):
    """The interface of :class:`modalign.endpoints.ChatEndpoint`."""

    model: str
    usage: Usage

    def complete_all(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, Reply | EndpointError]]:
        """Replies in the order of the requests; an error for a failed one."""


@dataclass
class _State:
    item: Item
    questions: set[str] = field(default_factory=set)
    pairs: list[Pair] = field(default_factory=list)
    duplicates: int = 0


@dataclass
class Written:
    """The result of a build by a model.

    Attributes:
        duplicates: pairs dropped because their question was already asked about the image.
        retried: items whose first reply had faults.
    """

    records: list[Record] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    duplicates: int = 0
    retried: int = 0


def make_by_model(
    items: Sequence[Item],
    client: Client,
    prompt: Prompt,
    *,
    settings: dict[str, Any] | None = None,
    images: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Written:
    """Ask the model about every item, and once more if its reply is faulty.

    Raises:
        EndpointUsageError: the address, the key or the model's name is wrong.
        UsageError: the prompt cannot be rendered.
    """
    states = [_State(item) for item in items]
    written, again = Written(), list[tuple[_State, Request]]()

    def request(state: _State) -> Request:
        messages = prompt.messages(state.item, images)
        return Request(messages, settings=dict(settings or {}), sample=seed)

    for state, asked, reply in _replies(client, states, map(request, states), "asking", progress):
        if isinstance(reply, EndpointError):
            written.dropped.append(_no_reply(state, reply))
            continue
        checked = _take(state, reply, prompt)
        if checked.faults:
            again.append((state, _complaint(asked, reply, checked, prompt)))
    written.retried = len(again)
    retries = _replies(client, [s for s, _ in again], (r for _, r in again), "retrying", progress)
    for state, _, reply in retries:
        if isinstance(reply, EndpointError):
            written.dropped.append(_no_reply(state, reply))
            continue
        for reason, content in _take(state, reply, prompt).faults:
            written.dropped.append(Dropped(state.item, reason, {"reply": content}))
    for state in states:
        written.duplicates += state.duplicates
        written.records += [
            _record(state.item, pair, client.model, number)
            for number, pair in enumerate(state.pairs)
        ]
    return written


def _replies(
    client: Client,
    states: Sequence[_State],
    requests: Iterable[Request],
    name: str,
    progress: Progress | None,
) -> Iterator[tuple[_State, Request, Reply | EndpointError]]:
    replies = client.complete_all(requests)
    for done, (state, (asked, reply)) in enumerate(zip(states, replies, strict=True), start=1):
        yield state, asked, reply
        if progress:
            progress(name, done, len(states))


def _take(state: _State, reply: Reply, prompt: Prompt) -> Checked:
    checked = read_reply(reply.text, state.questions, prompt.count - len(state.pairs))
    if reply.finish == "length" and checked.faults:
        checked.faults = [("cut off at the length limit", reply.text)]
    state.pairs += checked.pairs
    state.duplicates += checked.duplicates
    return checked


def _complaint(asked: Request, reply: Reply, checked: Checked, prompt: Prompt) -> Request:
    """Build the conversation that returns the reply with its faults."""
    reasons = "; ".join(dict.fromkeys(reason for reason, _ in checked.faults))
    missing = min(len(checked.faults), prompt.count)
    wanted = "all of them" if not checked.pairs else f"{missing} in place of those, not the others"
    told = f"This cannot be used: {reasons}. Write {wanted}. Answer with JSON alone, of the same schema."
    turns = [
        *asked.messages,
        {"role": "assistant", "content": reply.text},
        {"role": "user", "content": told},
    ]
    return Request(turns, settings=asked.settings, sample=asked.sample)


def _no_reply(state: _State, error: EndpointError) -> Dropped:
    return Dropped(state.item, NO_REPLY, {"error": str(error)})


def _record(item: Item, pair: Pair, model: str, number: int) -> Record:
    made = {"by": "model", "model": model, "file": item.source.file, "row": item.source.row}
    return Record(
        id=f"{item.id}-{number}",
        messages=(
            Message("user", (*item.media, pair.question)),
            Message("assistant", (pair.answer,)),
        ),
        source=item.source,
        skill=pair.skill.lower() if pair.skill else None,
        group=item.group,
        extra={"made": made},
    )
