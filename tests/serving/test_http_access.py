"""Bodies, hosts and keys that are refused, each in the one shape that errors have."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest

from modalign.serving.http.server import accepted_hosts
from serving.fake_engine import FakeEngine, Served, served
from serving.raw_http import HELLO, JSON, SETTINGS, post, problem, raw

KEY = "key-that-must-not-be-told"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeEngine(), SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    with served(FakeEngine(), replace(SETTINGS, api_key=KEY)) as running:
        yield running


# --- errors that the framework makes ------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("GET", "/docs", 404),  # FastAPI's own pages load scripts from elsewhere
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/health", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
    ],
)
def test_every_error_has_the_same_shape(
    server: Served, method: str, path: str, status: int
) -> None:
    assert path in problem(httpx2.request(method, server.url + path), status)["message"]


# --- bodies -------------------------------------------------------------------------------------


def test_a_body_too_large_by_its_header(server: Served) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = raw(server, head + b"Content-Length: 100001\r\n\r\n{")  # the rest is never sent
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than the 0.0953674 MB" in answer


def test_a_body_too_large_in_chunks(server: Served) -> None:
    """No Content-Length: noticed while reading."""

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 1000

    url = f"{server.url}/v1/chat/completions"
    problem(httpx2.post(url, content=endless(), headers=JSON), 413)


def test_a_body_that_does_not_come(server: Served) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = raw(server, head + b"Content-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_read(server: Served, kind: str) -> None:
    """A page elsewhere can send these without asking first; it cannot send JSON."""
    url = f"{server.url}/v1/chat/completions"
    content = json.dumps({"messages": HELLO}).encode()
    problem(httpx2.post(url, content=content, headers={"Content-Type": kind}), 415)


def test_other_origins_get_no_permission(server: Served) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "GET"):
        response = httpx2.request(method, f"{server.url}/v1/models", headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b"[" * 50_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',  # half a character
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    ],
)
def test_bodies_that_are_no_request(server: Served, content: bytes) -> None:
    url = f"{server.url}/v1/chat/completions"
    problem(httpx2.post(url, content=content, headers=JSON), 400)


# --- hosts and keys -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:99", "[::1]:8000", "LOCALHOST:1", "localhost."]
)
def test_names_of_this_machine_are_answered(server: Served, host: str) -> None:
    assert httpx2.get(f"{server.url}/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", ""]
)
def test_other_names_are_not(server: Served, host: str) -> None:
    """DNS rebinding: a page's name that leads here is still the page's name."""
    response = httpx2.get(f"{server.url}/v1/models", headers={"Host": host})
    assert problem(response, 421)["code"] == "host_refused"


def test_two_names_are_not_one(server: Served) -> None:
    answer = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", b"")[:15]
    assert answer.split()[1] in (b"400", b"421")


def test_which_names_are_accepted() -> None:
    assert accepted_hosts("::1") == {"localhost", "127.0.0.1", "[::1]"}
    assert accepted_hosts("127.0.0.2") == {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}
    assert accepted_hosts("0.0.0.0") == frozenset()  # its names are not known; a key is asked for


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        KEY,
        f"Basic {KEY}",
        "Bearer",
        "Bearer wrong",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nowhere"])
def test_without_the_key_nothing_is_told(locked: Served, header: str | None, path: str) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = httpx2.get(locked.url + path, headers=headers)
    assert problem(response, 401)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text


def test_with_the_key_all_is(locked: Served) -> None:
    for scheme in ("Bearer", "bearer"):
        response = httpx2.get(
            f"{locked.url}/v1/models", headers={"Authorization": f"{scheme} {KEY}"}
        )
        assert response.status_code == 200
    assert httpx2.get(f"{locked.url}/health").status_code == 200  # for load balancers, without one


def test_neither_keys_nor_bodies_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    settings = replace(SETTINGS, api_key=KEY)
    with caplog.at_level(logging.DEBUG), served(FakeEngine(), settings) as locked:
        secret = [{"role": "user", "content": "a private question"}]
        response = post(
            locked,
            {"messages": secret},
            "chat/completions?api_key=" + KEY,
            headers={"Authorization": f"Bearer {KEY}"},
        )
        assert response.status_code == 200
        httpx2.get(f"{locked.url}/v1/models", headers={"Authorization": f"Bearer {KEY}x"})
    ours = [each.getMessage() for each in caplog.records if "modalign" in each.name]
    assert len(ours) == 2
    told = " ".join(ours)
    assert "POST /v1/chat/completions 200" in told
    assert "GET /v1/models 401" in told
    assert KEY not in told
    assert "private" not in told
    assert KEY not in repr(settings)
