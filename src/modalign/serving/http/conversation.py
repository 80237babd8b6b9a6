"""Convert a chat request's messages into the engine's turns: text, media, tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modalign.data.records import Message
from modalign.data.records import Part as EnginePart
from modalign.endpoints.tool_calls import with_mappings
from modalign.serving.http import schemas
from modalign.serving.http.errors import refused
from modalign.serving.http.media import MediaReader
from modalign.serving.requests import Turn

ROLES: dict[str, Any] = {"developer": "system"}  # the newer name for system


def turns_of(messages: Sequence[schemas.Turn], reader: MediaReader, tools: bool) -> list[Turn]:
    """Convert messages. Turns with tools stay mappings, which chat templates render.

    Args:
        messages: the request's messages.
        reader: reader of their media.
        tools: whether the chat template renders tools.

    Raises:
        ApiError: a medium is unusable, or turns use tools that the template does not support.
    """
    turns: list[Turn] = []
    for number, message in enumerate(messages):
        if message.name is not None and message.role != "tool":
            raise refused(f"messages[{number}].name", "only a tool's turn has a name here")
        parts = _parts(message, f"messages[{number}].content", reader)
        if message.role == "tool" or message.tool_calls:
            if not tools:
                raise refused(
                    f"messages[{number}]",
                    "this model's chat template does not support tool calls",
                    "unsupported_value",
                )
            turns.append(_tool_turn(message, parts))
        else:
            turns.append(Message(ROLES.get(message.role, message.role), parts))
    return turns


def _tool_turn(message: schemas.Turn, parts: tuple[EnginePart, ...]) -> Mapping[str, object]:
    turn: dict[str, Any] = {"role": message.role, "content": parts}
    if message.role == "tool":
        named = {} if message.name is None else {"name": message.name}
        return turn | {"tool_call_id": message.tool_call_id or ""} | named
    calls = [call.model_dump() for call in message.tool_calls or ()]
    (made,) = with_mappings([turn | {"tool_calls": calls}])
    return made


def _parts(message: schemas.Turn, param: str, reader: MediaReader) -> tuple[EnginePart, ...]:
    if message.content is None:
        return ()
    if isinstance(message.content, str):
        return (message.content,)
    return tuple(
        _part(part, f"{param}[{place}]", reader) for place, part in enumerate(message.content)
    )


def _part(part: Any, param: str, reader: MediaReader) -> EnginePart:
    if part.type == "text":
        return str(part.text)
    if part.type == "refusal":
        return str(part.refusal)
    if part.type == "input_audio":
        return reader.from_base64("audio", part.input_audio.data, f"{param}.input_audio.data")
    held = getattr(part, part.type)
    if isinstance(held, schemas.Url):
        modality = part.type.removesuffix("_url")
        return reader.from_url(modality, held.url, f"{param}.{part.type}.url")
    return reader.from_value(part.type, held, f"{param}.{part.type}")
