"""Tools of an MCP server: a stdio server in a process of its own, good and bad."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from modalign.data.records import Media
from modalign.errors import UsageError
from modalign.tools.base import Tool
from modalign.tools.build import build_tool
from modalign.tools.guard import call_safely
from modalign.tools.mcp_media import media_place
from modalign.tools.spec import McpSpec

pytest.importorskip("mcp")
SERVER = Path(__file__).with_name("mcp_server.py")
COMMAND = (sys.executable, str(SERVER))
DATA = tiny.png_bytes(0)
MEDIUM = Media("image", data=DATA)


def tool(which: str, **fields: Any) -> Tool:
    return build_tool(McpSpec(command=COMMAND, tool=which, **fields))


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[Tool]:
    """A first user of the server: it runs as long as this file's tests."""
    first = tool("process_id", name="first")
    yield first
    first.close()


def test_the_medium_goes_where_the_input_schema_says() -> None:
    size = f"{len(DATA)} bytes"
    assert call_safely(tool("size_of_file"), MEDIUM).result == size
    assert call_safely(tool("size_of_file"), MEDIUM, unit="octets").result == f"{len(DATA)} octets"
    assert call_safely(tool("size_of_base64"), MEDIUM).result == size
    url = call_safely(tool("head_of_url"), MEDIUM).result
    assert url == "data:application/octet-stream;base64"
    given = tool("ambiguous", media_argument="second", media_as="path")
    assert str(call_safely(given, MEDIUM, first="see ").result).startswith("see /")


def test_what_is_left_of_the_schema_is_the_signature() -> None:
    one = tool("size_of_file")
    assert list(one.signature.properties) == ["unit"]
    assert one.signature.required == ()
    assert one.description == "Say how large a file is."
    assert one.parameters is None


def test_structured_results_are_lines() -> None:
    lines = call_safely(tool("objects"), MEDIUM).lines
    assert [(line.text, line.score) for line in lines] == [("cat", 0.9), ("dog", 0.4)]


def test_tools_of_one_command_share_the_server(server: Tool) -> None:
    other = tool("process_id")
    assert call_safely(other, MEDIUM).result == call_safely(server, MEDIUM).result
    other.close()
    assert call_safely(server, MEDIUM).problem is None


def test_a_failing_tool_is_told() -> None:
    outcome = call_safely(tool("fails"), MEDIUM)
    assert outcome.problem == "raised"
    assert "no such luck" in outcome.message


@pytest.mark.parametrize(
    ("name", "timeout", "problem"), [("hangs", 0.5, "timeout"), ("dies", 30.0, "died")]
)
def test_a_server_that_hangs_or_dies_is_started_anew(
    name: str, timeout: float, problem: str, server: Tool
) -> None:
    before = call_safely(server, MEDIUM).result
    outcome = call_safely(tool(name, timeout=timeout), MEDIUM)
    assert outcome.problem == problem
    after = call_safely(server, MEDIUM)
    assert after.problem is None
    assert after.result != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool": "nothing"}, "has no tool 'nothing'; it has ambiguous, dies"),
        ({"tool": "ambiguous"}, "set media_argument and media_as"),
        ({"tool": "objects", "media_argument": "x"}, "no argument 'x'; it has path"),
        ({"tool": "x", "command": ("no-such-program",)}, "cannot be reached"),
        ({"tool": "x", "command": (sys.executable, "-c", "pass")}, "cannot be reached"),
    ],
)
def test_what_cannot_be_used_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_tool(McpSpec(**{"command": COMMAND, **fields}))


@pytest.mark.parametrize(
    ("properties", "place"),
    [
        ({"q": {"type": "string"}, "file_path": {"type": "string"}}, ("file_path", "path")),
        (
            {"path": {"type": "string"}, "imageBytes": {"contentEncoding": "base64"}},
            ("imageBytes", "base64"),
        ),
        ({"source": {"type": "string", "format": "uri"}}, ("source", "data_url")),
        ({"image": {"type": "string"}, "mode": {"type": "string"}}, ("image", "base64")),
        ({"url": {"type": "string"}, "path": {"type": "string"}}, ("url", "data_url")),
        ({"count": {"type": "integer"}, "source": {"type": "string"}}, ("source", "path")),
    ],
)
def test_the_place_of_the_medium(properties: dict[str, Any], place: tuple[str, str]) -> None:
    schema = {"properties": properties, "required": ["source"] if "source" in properties else []}
    assert media_place(schema, "t") == place


def test_the_servers_source_is_part_of_the_identity(tmp_path: Path) -> None:
    one = tool("objects")
    assert one.fingerprint(lambda path: "a") != one.fingerprint(lambda path: "b")
