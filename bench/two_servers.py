"""Check whether two OpenAI-compatible servers give the same answers to the same records.

Use it where one of them cannot be part of a test, such as a real vLLM that the gateway uses or that serves a
native folder, compared with ``modalign serve`` with the whole model.

    python -m bench.two_servers http://127.0.0.1:8102/v1 http://127.0.0.1:8103/v1 DATA [--records 60]

Every record's user turn (its text and images) is asked greedily with log-probabilities; then several at a time are
asked to continue for 64 tokens past any end. It prints how many answers are equal, how many of those differ from
each other (equal answers that are all the same show little), and the largest difference of a log-probability. The
exit code is 1 if an answer differs.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

from modalign.data.readers import read_records
from modalign.data.records import Media, Message

AT_A_TIME = 16
LONG = 64


@dataclass(frozen=True)
class Said:
    """An answer, and the log-probabilities of its tokens."""

    text: str
    logprobs: tuple[float, ...]


def messages_of(turn: Message) -> list[dict[str, Any]]:
    """Return a user turn as the chat route takes it."""
    parts: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, Media):
            data = base64.b64encode(part.read()).decode()
            url = f"data:image/png;base64,{data}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        else:
            parts.append({"type": "text", "text": part})
    return [{"role": "user", "content": parts}]


async def ask(
    client: AsyncOpenAI, turns: Sequence[Message], together: int, long: bool
) -> list[Said]:
    """Collect the answers of one server, ``together`` at a time."""
    places = asyncio.Semaphore(together)
    model = (await client.models.list()).data[0].id
    endless: dict[str, Any] = {"extra_body": {"ignore_eos": True}} if long else {}

    async def one(turn: Message) -> Said:
        async with places:
            found = await client.chat.completions.create(
                model=model,
                messages=messages_of(turn),  # type: ignore[arg-type]
                temperature=0,
                max_tokens=LONG if long else 8,
                logprobs=True,
                **endless,
            )
        choice = found.choices[0]
        tokens = (choice.logprobs.content if choice.logprobs else None) or []
        return Said(choice.message.content or "", tuple(token.logprob for token in tokens))

    return list(await asyncio.gather(*map(one, turns)))


async def compared(first: str, second: str, turns: Sequence[Message], key: str) -> bool:
    """Ask both servers in both ways and print the result; return whether all answers are equal."""
    clients = [AsyncOpenAI(base_url=url, api_key=key) for url in (first, second)]
    well = True
    for title, chosen, together, long in (
        ("one by one", turns, 1, False),
        (f"{AT_A_TIME} at a time, {LONG} tokens each", turns[:AT_A_TIME], AT_A_TIME, True),
    ):
        ours, theirs = [await ask(client, chosen, together, long) for client in clients]
        pairs = list(zip(ours, theirs, strict=True))
        equal = [a for a, b in pairs if a.text == b.text]
        apart = [
            abs(p - q)
            for a, b in pairs
            if a.text == b.text
            for p, q in zip(a.logprobs, b.logprobs, strict=False)
        ]
        print(
            f"{title}: {len(equal)} of {len(pairs)} answers equal, {len({a.text for a in equal})} of them "
            f"different; log-probabilities at most {max(apart, default=float('nan')):.1e} apart"
        )
        for a, b in pairs:
            if a.text != b.text:
                print(f"  {a.text!r} and {b.text!r}")
        well &= len(equal) == len(pairs)
    return well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("data", help="records with images")
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--key", default="none")
    options = parser.parse_args()
    records = read_records(options.data).records[: options.records]
    turns = [next(m for m in record.messages if m.role == "user") for record in records]
    raise SystemExit(not asyncio.run(compared(options.first, options.second, turns, options.key)))


if __name__ == "__main__":
    main()
