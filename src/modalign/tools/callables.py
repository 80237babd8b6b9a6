"""Tools that are Python callables: in a process of their own, or, if trusted, in this one."""

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
from modalign.tools.functions import Function, encode_medium, load
from modalign.tools.process import WorkerProcess
from modalign.tools.results import Bounded

_ERRORS = {error.kind: error for error in (ToolError, NotTextError, ToolArgumentError)}


class FunctionTool(Tool):
    """A callable of this process: shares its memory, and cannot be killed.

    Args:
        function: see :func:`~modalign.tools.functions.inspect_function`.
        key: what identifies it beside its source file.
        **settings: of :class:`~modalign.tools.base.Tool`.
    """

    def __init__(self, function: Function, key: Json, **settings: Any) -> None:
        settings["description"] = settings.get("description") or function.description
        if settings.get("reads_annotations") is None:
            settings["reads_annotations"] = function.reads_annotations
        super().__init__(**settings, signature=function.signature)
        self._function = function
        self._key = key

    def run(self, medium: Media, **arguments: Any) -> Any:
        """Call it."""
        return self._function(medium, **arguments)

    def identity(self, hash_file: HashFile) -> Json:
        """Its key and its source file's content."""
        return ["callable", self._key, self._function.source]


class IsolatedTool(Tool):
    """A callable in a child process, which is ended when a call hangs and started anew for the next.

    Args:
        target: ``package.module:function`` or ``file.py:function``.
        key: what identifies it beside its source file.
        **settings: of :class:`~modalign.tools.base.Tool`.

    Raises:
        UsageError: the callable cannot be loaded.
    """

    keeps_deadline = True

    def __init__(self, target: str, key: Json, **settings: Any) -> None:
        self._target = target
        self._key = key
        self._process = _started(target, settings.setdefault("max_characters", MAX_CHARACTERS))
        said = self._process.description
        settings["description"] = settings.get("description") or said["description"]
        if settings.get("reads_annotations") is None:
            settings["reads_annotations"] = said["reads_annotations"]
        signature = Signature(said["properties"], tuple(said["required"]), result={})
        super().__init__(**settings, signature=signature)
        self._source = said["source"]

    def load(self) -> None:
        """Start the process anew if a call has ended it.

        Raises:
            ToolError: it does not come up.
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

    def identity(self, hash_file: HashFile) -> Json:
        """Its key and its source file's content."""
        return ["callable", self._key, self._source]

    def close(self) -> None:
        """End the process."""
        self._process.kill()


def callable_tool(
    target: str, trusted: bool = False, version: str = "", **settings: Any
) -> FunctionTool | IsolatedTool:
    """A tool from an import path.

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
