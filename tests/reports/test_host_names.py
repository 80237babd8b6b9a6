"""Host headers that begin like this machine's name and are another's.

``127.0.0.1:80.evil.com`` passed, so that a page of that name could ask the server.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modalign.serving.http.gate import _host
from modalign.serving.http.server import LOOPBACK_NAMES
from reports.threads import reported
from serving.fake_engine import FakeEngine, Served, served
from serving.raw_http import SETTINGS, raw

NAMES = sorted(LOOPBACK_NAMES)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeEngine(), SETTINGS) as running:
        yield running


@reported("gptme/gptme#3324", "mgedmin/restview#51")
@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1:80.evil.com",
        b"127.0.0.1:80:80",
        b"127.0.0.1:evil.com",
        b"127.0.0.1:-1",
        b"127.0.0.1:+80",
        b"127.0.0.1:8 0",
        b"127.0.0.1:65536",
        b"127.0.0.1:0000080",
        b"127.0.0.1:\xb2",
        b"localhost:80@evil.com",
        b"localhost@evil.com",
        b"evil.com@localhost",
        b"localhost/.evil.com",
        b"localhost#.evil.com",
        b"localhost?.evil.com",
        b"localhost\\.evil.com",
        b"localhost,evil.com",
        b"localhost evil.com",
        b"localhost..",
        b"localhost%2eevil.com",
        b"[::1]evil.com",
        b"[::1].evil.com",
        b"[::1]:80.evil.com",
        b"[::1",
        b"::1",
        b"[::1%25evil]",
        b"[[::1]]",
        b"http://localhost",
        b"local\xa0host",
        b"localhost\xa0",
        b".localhost",
        b"",
    ],
)
def test_forms_that_are_none_of_ours(server: Served, host: bytes) -> None:
    answer = raw(
        server, b"GET /health HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
    )
    assert answer.split()[1] in (b"421", b"400"), answer


@reported("mgedmin/restview#51")
@given(
    st.sampled_from(NAMES),
    st.one_of(st.none(), st.integers(0, 65535)),
    st.booleans(),
    st.booleans(),
)
def test_our_names_with_any_port(name: str, port: int | None, upper: bool, dot: bool) -> None:
    text = (name.upper() if upper else name) + ("." if dot else "")
    text += "" if port is None else f":{port}"
    assert _host(text.encode()) == name


@reported("gptme/gptme#3324")
@given(
    st.sampled_from(NAMES),
    st.sampled_from(["", ":", ":80", ".", "@", "/"]),
    st.text(st.characters(max_codepoint=255), min_size=1, max_size=12),
    st.booleans(),
)
def test_nothing_else_is_one_of_them(name: str, between: str, rest: str, before: bool) -> None:
    """Whoever reads a name from a header must find what a browser put there: the page's own."""
    host = rest + between + name if before else name + between + rest
    if _host(host.encode("latin-1")) in LOOPBACK_NAMES:
        port = host.lower().removeprefix(name).removeprefix(".").removeprefix(":")
        assert port == "" or port.isdecimal()
