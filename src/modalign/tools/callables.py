"""Python callables as tools: in a separate process, or, if trusted, in this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.tools.base import (
    MAX_CHARACTERS,
    HashFile,
    Json,
    NotTextError,
    Signature,
    Tool,
    ToolArgumentError,
    ToolError,
)
from modalign.tools.functions import Description, ToolFunction, encode_medium, load
from modalign.tools.process import WorkerProcess
from modalign.tools.results import Bounded

_ERRORS = {error.kind: error for error in (ToolError, NotTextError, ToolArgumentError)}


class CallableTool(Tool):
    """A callable, wherever it runs.

    Args:
        says: its own description; the configuration overrides it.
        key: what identifies it besides its source file.
        **settings: of :class:`~modalign.tools.base.Tool`.
    """

    def __init__(self, says: Description, key: Json, **settings: Any) -> None:
        settings["description"] = settings.get("description") or says.description
        if settings.get("reads_annotations") is None:
            settings["reads_annotations"] = says.reads_annotations
        super().__init__(**settings, signature=says.signature)
        self._identity: Json = ["callable", key, says.source]

    def identity(self, hash_file: HashFile) -> Json:
        """Its key and its source file's content."""
        return self._identity


class FunctionTool(CallableTool):
    """A callable of this process: shares its memory, and cannot be killed."""

    def __init__(self, function: ToolFunction, key: Json, **settings: Any) -> None:
        super().__init__(function.says, key, **settings)
        self._function = function

    def run(self, medium: Media, **arguments: Any) -> Any:
        """Call it."""
        return self._function(medium, **arguments)


class IsolatedTool(CallableTool):
    """A callable in a child process, which is terminated when a call hangs and restarted for the next.

    Args:
        target: ``package.module:function`` or ``file.py:function``.
        key: what identifies it besides its source file.
        **settings: of :class:`~modalign.tools.base.Tool`.

    Raises:
        UsageError: the callable cannot be loaded.
    """

    keeps_deadline = True

    def __init__(self, target: str, key: Json, **settings: Any) -> None:
        self._target = target
        self._process = _started(target, settings.setdefault("max_characters", MAX_CHARACTERS))
        said = dict(self._process.description)
        own = said.pop("signature")
        signature = Signature(own["properties"], tuple(own["required"]), own["result"])
        super().__init__(Description(signature, **said), key, **settings)

    def load(self) -> None:
        """Restart the process if a call has terminated it.

        Raises:
            ToolError: it does not start.
        """
        if not self._process.alive:
            self._process = WorkerProcess(self._target, self.max_characters)

    def run(self, medium: Media, **arguments: Any) -> Any:
        """Call it in its process.

        Raises:
            ToolError: of the kind that happened.
        """
        request = {"medium": encode_medium(medium), "arguments": arguments}
        answer = self._process.ask(request, self.timeout)
        if "error" in answer:
            raise _ERRORS[answer["kind"]](answer["error"])
        return Bounded(answer["result"], answer["length"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()


def callable_tool(
    target: str, trusted: bool = False, version: str = "", **settings: Any
) -> CallableTool:
    """Return a tool from an import path.

    Raises:
        UsageError: the callable cannot be loaded.
    """
    where, _, name = target.rpartition(":")
    if where.endswith(".py"):
        target = f"{Path(where).resolve()}:{name}"
        where = Path(where).name
    key: Json = [f"{where}:{name}", version]
    settings["name"] = settings.get("name") or name.rpartition(".")[2]
    if trusted:
        return FunctionTool(load(target), key, **settings)
    return IsolatedTool(target, key, **settings)


def _started(target: str, limit: int) -> WorkerProcess:
    try:
        process = WorkerProcess(target, limit)
    except ToolError as error:
        raise UsageError(f"tool {target}: {error}") from None
    if "error" in process.description:
        process.kill()
        raise UsageError(f"tool {target}: {process.description['error']}")
    return process
