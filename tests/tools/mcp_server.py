"""A stdio MCP server for tests: tools that take a medium in every way, and bad ones."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tests", log_level="CRITICAL")


@server.tool()
def size_of_file(image_path: str, unit: str = "bytes") -> str:
    """Say how large a file is."""
    return f"{Path(image_path).stat().st_size} {unit}"


@server.tool()
def size_of_base64(image_base64: str) -> str:
    return f"{len(base64.b64decode(image_base64))} bytes"


@server.tool()
def head_of_url(image_url: str) -> str:
    return image_url.partition(",")[0]


@server.tool()
def objects(path: str) -> list[dict[str, object]]:
    return [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.4}]


@server.tool()
def ambiguous(first: str, second: str) -> str:
    return first + second


@server.tool()
def fails(path: str) -> str:
    raise ToolError("no such luck")


@server.tool()
def hangs(path: str) -> str:
    time.sleep(600)
    return ""


@server.tool()
def dies(path: str) -> str:
    os._exit(3)


@server.tool()
def process_id(path: str) -> int:
    return os.getpid()


if __name__ == "__main__":
    server.run()
