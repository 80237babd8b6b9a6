"""A process that runs one callable: ``python -m modalign.tools.worker``, spoken to in JSON lines.

First line in: ``{"target": ...}``; first line out: what the callable says of itself. Then one call per line:
``{"medium": ..., "arguments": ..., "limit": ...}`` in, ``{"result": ..., "length": ...}`` or ``{"error":
..., "kind": ...}`` out. The answers have a channel of their own: what the callable prints goes nowhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, BinaryIO

from modalign.errors import UsageError
from modalign.tools.base import ToolError
from modalign.tools.channel import own_channel
from modalign.tools.functions import ToolFunction, decode_medium, load
from modalign.tools.results import bounded

MAX_ERROR = 1000


def main() -> None:
    """Answer calls until the input ends."""
    requests, answers = own_channel()
    target = json.loads(requests.readline())["target"]
    try:
        function = load(target)
    except BaseException as error:  # the module may raise anything, SystemExit too
        _send(answers, _failure(error))
        return
    _send(answers, asdict(function.says))
    for line in requests:
        _send(answers, _call(function, json.loads(line)))


def _call(function: ToolFunction, request: dict[str, Any]) -> dict[str, Any]:
    try:
        found = function(decode_medium(request["medium"]), **request["arguments"])
        result = bounded(found, request["limit"])
    except BaseException as error:
        return _failure(error)
    return {"result": result.value, "length": result.length}


def _failure(error: BaseException) -> dict[str, Any]:
    told = isinstance(error, UsageError | ToolError)
    try:
        text = str(error)
    except BaseException as failure:  # an error of the callable's, whose text may raise anything
        text = f"its message cannot be shown ({type(failure).__name__})"
    text = text if told else f"{type(error).__name__}: {text}"
    kind = error.kind if isinstance(error, ToolError) else "raised"
    return {"error": text[:MAX_ERROR], "kind": kind}


def _send(answers: BinaryIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
