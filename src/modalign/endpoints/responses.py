"""Parse responses of an OpenAI-compatible server: replies, errors, lists of models."""

from __future__ import annotations

import json
from typing import Any

from modalign.endpoints.chat import Reply, ToolCall
from modalign.endpoints.errors import EndpointError
from modalign.strict_json import loads

SHOWN = 300  # characters of a server's message to quote


def parsed_json(content: bytes, url: str) -> dict[str, Any]:
    """Parse a response's JSON mapping.

    Raises:
        EndpointError: it is something else (truncated, a proxy's page); another attempt may succeed.
    """
    try:
        value = loads(content)
    except ValueError:
        raise EndpointError(
            f"{url}: the response is not JSON: {_shown(content)}", transient=True
        ) from None
    if not isinstance(value, dict):
        raise EndpointError(f"{url}: the response is not a JSON mapping: {_shown(content)}")
    return value


def reply_from(response: dict[str, Any], cached: bool = False) -> Reply:
    """Parse the first choice of a chat completion.

    Raises:
        EndpointError: the response has no choice with a message.
    """
    try:
        choice = response["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        calls = tuple(
            _call(item, place) for place, item in enumerate(message.get("tool_calls") or ())
        )
        usage = response.get("usage") or {}
        return Reply(
            text=text if isinstance(text, str) else "".join(part.get("text", "") for part in text),
            calls=calls,
            finish=choice.get("finish_reason"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            cached=cached,
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        shown = _shown(json.dumps(response).encode())
        raise EndpointError(
            f"the response is not a chat completion: {shown}", transient=True
        ) from None


def _call(item: dict[str, Any], place: int) -> ToolCall:
    function = item["function"]
    arguments = function.get("arguments") or "{}"  # JSON text; some servers send the mapping itself
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    return ToolCall(str(function["name"]), arguments, str(item.get("id") or f"call_{place}"))


def server_message(content: bytes) -> tuple[str, str | None]:
    """Return a server's error message and its code."""
    try:
        error = loads(content)
        error = error.get("error", error)
        if isinstance(error, str):
            return error[:SHOWN], None
        said = error.get("message") or error.get("detail")
        if said:
            return str(said)[:SHOWN], error.get("code") or error.get("type")
    except (ValueError, AttributeError):
        pass
    return _shown(content), None


def listed_models(content: bytes) -> list[str]:
    """Return the names in a server's list of models; none if it is not such a list."""
    try:
        return [str(item["id"]) for item in loads(content)["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _shown(content: bytes) -> str:
    text = " ".join(content[: 4 * SHOWN].decode("utf-8", "replace").split())
    return repr(text[:SHOWN]) if text else "an empty body"
