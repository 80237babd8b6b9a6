"""A tool of a Model Context Protocol server, through the official client (``mcp``, version 2).

Tools of one command share its server process. The medium is passed in one argument of the server's tool (see
:mod:`modalign.tools.mcp_media`). A call without a timely answer, or a server that dies, closes the
connection; the next call restarts the server.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modalign.data.records import Media
from modalign.errors import UsageError, extra
from modalign.tools.base import (
    HashFile,
    Json,
    NotTextError,
    Signature,
    Tool,
    ToolDiedError,
    ToolError,
    ToolTimeoutError,
)
from modalign.tools.mcp_media import Form, media_place, written

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp import Client
    from mcp.types import CallToolResult

START_SECONDS = 60.0
GRACE_SECONDS = 2.0  # beyond the client's own deadline


class McpTool(Tool):
    """One tool of a server.

    Args:
        command: program and arguments of a stdio server, or one URL.
        tool: its name on the server.
        environment: further environment variables of the server.
        media_argument, media_as: argument and form of the medium; default: from the tool's
            input schema.
        **settings: of :class:`~modalign.tools.base.Tool`.

    Raises:
        UsageError: mcp is not installed, the server does not start or has no such tool, or its input
            schema does not show where the medium goes.
    """

    keeps_deadline = True

    def __init__(
        self,
        command: Sequence[str],
        tool: str,
        environment: Mapping[str, str],
        media_argument: str | None,
        media_as: Form | None,
        **settings: Any,
    ) -> None:
        self._command, self._tool, self._environment = command, tool, environment
        self._connection = Connection.to(command, environment)
        try:
            theirs = _find(self._connection, command[0], tool)
        except UsageError:
            self._connection.close()
            raise
        self._schema: dict[str, Any] = theirs.input_schema
        self._argument, self._form = media_place(self._schema, tool, media_argument, media_as)
        properties = dict(self._schema.get("properties", {}))
        properties.pop(self._argument, None)
        required = tuple(r for r in self._schema.get("required", ()) if r != self._argument)
        settings["name"] = _identifier(settings["name"] or tool)
        settings["description"] = settings["description"] or theirs.description or theirs.name
        super().__init__(**settings, signature=Signature(properties, required, result={}))

    def load(self) -> None:
        """Restart the server if a call has terminated it.

        Raises:
            ToolDiedError: it does not start.
        """
        self._connection.connect()

    def run(self, medium: Media, **arguments: Any) -> Any:
        """Call the server.

        Raises:
            ToolError: of the kind that happened.
        """
        with written(medium, self._form) as value:
            given = {self._argument: value, **arguments}
            return _result(self._connection.call(self._tool, given, self.timeout))

    def identity(self, hash_file: HashFile) -> Json:
        """Command, the content of files in it, the tool and its schema; not what the server itself reads."""
        program, *words = map(Path, self._command)
        hashes = [hash_file(word) if word.is_file() else str(word) for word in words]
        place = [self._argument, self._form]
        return ["mcp", program.name, *hashes, self._environment, self._tool, self._schema, place]

    def close(self) -> None:
        """End the server, if no other tool uses it."""
        self._connection.close()


class Connection:
    """A client in its own thread, connected on demand.

    Args:
        command: program and arguments of a stdio server, or one URL.
        environment: further environment variables of the server.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = tuple(command)
        self._environment = dict(environment)
        self._users = 0
        self._stack: ExitStack | None = None
        self._client: Client | None = None
        self._portal: BlockingPortal | None = None

    @classmethod
    def to(cls, command: Sequence[str], environment: Mapping[str, str]) -> Connection:
        """Return the shared connection to a server; each user closes it once."""
        key = (os.getpid(), tuple(command), tuple(sorted(environment.items())))
        connection = _CONNECTIONS.setdefault(key, cls(command, environment))
        connection._users += 1
        return connection

    def tools(self) -> list[Any]:
        """Return the server's tools, in the protocol's format.

        Raises:
            ToolError: it cannot be reached.
        """
        client = self.connect()
        found: list[Any] = []
        cursor: str | None = None
        while True:
            page = self._ask(partial(client.list_tools, cursor=cursor), START_SECONDS)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None:
                return found

    def call(self, tool: str, arguments: dict[str, Any], timeout: float) -> CallToolResult:
        """Call a tool of the server.

        Raises:
            ToolError: of the kind that happened; a timeout or the server's death ends the connection.
        """
        client = self.connect()
        request = partial(client.call_tool, tool, arguments, read_timeout_seconds=timeout)
        result: CallToolResult = self._ask(request, timeout)
        return result

    def close(self) -> None:
        """Stop the server when its last user closes it."""
        self._users -= 1
        if self._users <= 0:
            self._drop()

    def _drop(self) -> None:
        """Close the connection and the server; the next call opens new ones.

        Runs in its own thread, because a server that does not exit is waited for, then killed.
        """
        if self._stack is not None:
            threading.Thread(target=self._stack.close).start()
        self._stack = self._client = self._portal = None

    def connect(self) -> Client:
        """Return the client, connected if necessary.

        Raises:
            ToolDiedError: the server does not start.
        """
        if self._client is None:
            from anyio.from_thread import start_blocking_portal

            stack = ExitStack()
            portal = self._portal = stack.enter_context(start_blocking_portal())
            self._stack = stack
            try:
                self._client = stack.enter_context(portal.wrap_async_context_manager(self._open()))
            except Exception as error:  # whatever the transport raises, a group of exceptions too
                self._drop()
                raise ToolDiedError(f"{self._name} cannot be reached: {_first(error)}") from None
        return self._client

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Client]:
        import anyio
        from mcp import Client, StdioServerParameters, stdio_client

        with anyio.fail_after(START_SECONDS) as scope, open(os.devnull, "w") as unheard:
            server: Any = self._command[0]
            if not server.startswith(("http://", "https://")):
                parameters = StdioServerParameters(
                    command=server, args=list(self._command[1:]), env=self._environment
                )
                server = stdio_client(parameters, errlog=unheard)
            async with Client(server) as client:
                scope.deadline = math.inf
                yield client

    def _ask(self, request: Any, timeout: float) -> Any:
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED, REQUEST_TIMEOUT

        assert self._portal is not None
        late = f"{self._name} gave no answer within {timeout:g} s"
        try:
            return self._portal.start_task_soon(request).result(timeout + GRACE_SECONDS)
        except FutureTimeoutError:
            self._drop()
            raise ToolTimeoutError(late) from None
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                self._drop()
                raise ToolTimeoutError(late) from None
            if error.code == CONNECTION_CLOSED:
                self._drop()
                raise ToolDiedError(f"{self._name} has ended") from None
            raise ToolError(f"{self._name}: {error.message}") from None
        except Exception as error:
            self._drop()
            raise ToolDiedError(f"{self._name} has ended ({_first(error)})") from None

    @property
    def _name(self) -> str:
        return f"the MCP server {self._command[0]}"


_CONNECTIONS: dict[tuple[object, ...], Connection] = {}


def _result(answer: CallToolResult) -> Any:
    """Return the structured result (MCP wraps non-objects as ``result``) if there is one, else the texts."""
    texts = [block.text for block in answer.content if block.type == "text"]
    if answer.is_error:
        raise ToolError(" ".join(texts) or "the server's tool failed and did not say why")
    structured = answer.structured_content
    if structured is not None:
        wrapped = isinstance(structured, dict) and set(structured) == {"result"}
        return structured["result"] if wrapped else structured
    if not texts and answer.content:
        kinds = ", ".join(sorted({block.type for block in answer.content}))
        raise NotTextError(f"the server's tool gave {kinds} and no text")
    return texts


def _find(connection: Connection, server: str, tool: str) -> Any:
    try:
        import mcp  # noqa: F401 - the official client
    except ImportError as error:
        raise UsageError(
            f"tools of MCP servers need the mcp client ({error}): {extra('tools')}"
        ) from None
    try:
        offered = {each.name: each for each in connection.tools()}
    except ToolError as error:
        raise UsageError(f"tool {tool!r}: {error}") from None
    if tool not in offered:
        there = ", ".join(sorted(offered)) or "none"
        raise UsageError(f"the MCP server {server} has no tool {tool!r}; it has {there}")
    return offered[tool]


def _identifier(name: str) -> str:
    """Convert a server's tool name to an identifier (``read-text``)."""
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name)


def _first(error: BaseException) -> str:
    """Return the message of the first error in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
