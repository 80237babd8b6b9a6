"""Connections that keep the server waiting: idle ones, half requests, answers that nobody takes.

200 idle or trickling connections at 160 file descriptors and nothing was answered for 75 s,
with 115 MB of log; 96 half-sent bodies refused everyone for 60 s; a client that never read a large JSON answer
kept it for ever. Clients that leave early cost no descriptor.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from modalign.serving.http import connections
from modalign.serving.http.settings import Settings
from reports.threads import reported
from serving.fake_engine import FakeEngine, Served, served
from serving.raw_http import SETTINGS, problem

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
FEW = replace(SETTINGS, connections=20, requests=10, body_seconds=30.0, head_seconds=30.0)


def address(server: Served) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return host, int(port)


@contextmanager
def opened(server: Served, sent: bytes, count: int) -> Iterator[list[socket.socket]]:
    """Connections that have sent something, and go on to send nothing."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            each = stack.enter_context(socket.create_connection(address(server), timeout=30))
            each.sendall(sent)
            found.append(each)
        yield found


def healthy(server: Served) -> None:
    assert httpx2.get(f"{server.url}/health", timeout=10).status_code == 200


def closed(connection: socket.socket) -> bool:
    """Whether the server closes it within its timeout."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


@reported("Kludex/uvicorn#1030")
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /hea",
        b"GET /health HTTP/1.1\r\nHost: loc",
        HEAD + b"Content-Length: 9",
        HEAD + b"Content-Length: 1000\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_idle_connections_make_room(sent: bytes) -> None:
    """More than there may be, at every stage of a request; whoever asks a question is heard."""
    with served(FakeEngine(), FEW) as server, opened(server, sent, 60) as idle:
        for _ in range(3):
            healthy(server)
            response = httpx2.post(f"{server.url}/v1/completions", json={"prompt": "a"})
            assert response.status_code == 200
        assert len(server.server.server_state.connections) <= FEW.connections + 1
        assert closed(idle[0])
    assert server.service.serving == 0


@reported("Kludex/uvicorn#1030")
def test_those_being_answered_stay() -> None:
    engine = FakeEngine(steps=1, max_batch=10)
    body = json.dumps({"prompt": "a", "stream": True}).encode()
    asked = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    with served(engine, FEW) as server, opened(server, asked, 10) as answered:
        engine.wait_for(lambda: len(engine.running) == 10)
        with opened(server, b"GET", 60):
            healthy(server)
            refused = httpx2.post(f"{server.url}/v1/completions", json={"prompt": "a"})
            assert problem(refused, 429)["code"] == "too_many_requests"
            engine.allow(None)
            for each in answered:
                answer = b"".join(iter(lambda each=each: each.recv(65_536), b""))
                assert b"[DONE]" in answer


@reported("afreidah/s3-orchestrator#127")
@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HTTP/1.1\r\nX: ", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGE"],
)
def test_a_head_must_come_within_its_time(sent: bytes) -> None:
    settings = replace(SETTINGS, head_seconds=0.2)
    with served(FakeEngine(), settings) as server, opened(server, sent, 1) as (one,):
        assert closed(one)
        assert not server.server.server_state.connections


@reported("afreidah/s3-orchestrator#127")
def test_drops_do_not_count_as_a_head() -> None:
    settings = replace(SETTINGS, head_seconds=0.5)
    with (
        served(FakeEngine(), settings) as server,
        opened(server, b"GET / HTTP/1.1\r\n", 1) as (one,),
    ):
        one.settimeout(0.05)
        for _ in range(200):
            try:
                one.sendall(b"X: y\r\n")
                assert one.recv(1000) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("it was let go on for ever")


@reported("ruhex/BGPLite#351")
def test_half_sent_bodies_refuse_nobody() -> None:
    """A request counts when its body is there."""
    half = HEAD + b"Content-Length: 1000\r\n\r\n{"
    settings = replace(SETTINGS, requests=4, body_seconds=30.0)
    with served(FakeEngine(), settings) as server, opened(server, half, 96):
        response = httpx2.post(f"{server.url}/v1/completions", json={"prompt": "a"})
        assert response.status_code == 200
        healthy(server)
        assert server.service.serving == 0


@reported("emmett-framework/granian#728")
def test_bodies_on_their_way_have_a_limit_together() -> None:
    """The oldest is dropped; memory is free again in the end."""
    size = 90_000
    half = HEAD + b"Content-Length: %d\r\n\r\n" % (size + 1) + b" " * size
    settings = replace(SETTINGS, bodies_bytes=4 * size, body_seconds=30.0)
    with served(FakeEngine(), settings) as server:
        with opened(server, half, 8) as sent:
            assert sent[0].recv(65_536).startswith(b"HTTP/1.1 429 ")
            response = httpx2.post(f"{server.url}/v1/completions", json={"prompt": "a" * size})
            assert response.status_code == 400  # read, and too long for the model
            assert server.service._bodies.size <= settings.bodies_bytes
        healthy(server)
        with ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(httpx2.post, f"{server.url}/v1/completions", json={"prompt": "a"})
                for _ in range(8)
            ]
            assert {each.result().status_code for each in asked} == {200}
        assert server.service._bodies.size == 0


@reported("emmett-framework/granian#728", "ruhex/BGPLite#351")
def test_a_body_in_tiny_pieces_is_given_up() -> None:
    """32 MB of it would cost the event loop a minute."""
    pieces = b"1\r\n \r\n" * 12_000
    with served(FakeEngine(), replace(SETTINGS, body_seconds=30.0)) as server:
        with opened(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + pieces, 1) as (one,):
            assert one.recv(65_536).startswith(b"HTTP/1.1 400 ")
        whole = b"".join(b"400\r\n" + b" " * 1024 + b"\r\n" for _ in range(60))
        said = b"c\r\n" + b'{"prompt":1}' + b"\r\n0\r\n\r\n"
        chunked = b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        with opened(server, HEAD + chunked + whole + said, 1) as (one,):
            assert b'"param":"prompt"' in b"".join(iter(lambda: one.recv(65_536), b""))


@reported("Telcoin-Association/telcoin-network#1055")
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_takes_is_given_up(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(lambda *_: [100_000 * "x"] * 200)
    body = json.dumps({"prompt": "a", "max_tokens": 200, "stream": stream}).encode()
    asked = HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    gone, lost = threading.Event(), connections.Connection.connection_lost
    monkeypatch.setattr(
        connections.Connection, "connection_lost", lambda *given: (lost(*given), gone.set())
    )
    with served(engine, replace(SETTINGS, stalled_seconds=0.3)) as server:
        with opened(server, asked, 1):
            assert gone.wait(20)
            assert not server.server.server_state.connections
        healthy(server)
        assert server.service.serving == 0


@reported("dom96/httpbeast#27")
def test_without_file_descriptors_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed accept closes an idle connection, and is told once."""
    left = 30
    accept = socket.socket.accept

    def scarce(listener: socket.socket) -> Any:
        nonlocal left
        if left > 0 and server_has(6):
            left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    def server_has(count: int) -> bool:
        return len(server.server.server_state.connections) >= count

    caplog.set_level(logging.WARNING)
    with served(FakeEngine(), FEW) as server:
        monkeypatch.setattr(socket.socket, "accept", scarce)
        with opened(server, b"GET", 40):
            healthy(server)
        assert left < 30
    told = [record for record in caplog.records if "no room" in record.getMessage()]
    assert len(told) == 1
    assert len(caplog.records) < 5


@reported("Kludex/uvicorn#1030")
def test_the_limit_follows_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    here = len(os.listdir("/dev/fd"))
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (here + 100, here + 100))
    limit = connections.connection_limit(Settings("m"))
    assert 60 <= limit <= 100 - connections.FILES
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (10, 10))
    assert connections.connection_limit(Settings("m")) == connections.LEAST
    infinite = connections.resource.RLIM_INFINITY
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (infinite, infinite))
    assert connections.connection_limit(Settings("m")) == Settings("m").connections


@reported("ollama/ollama#18344")
def test_clients_that_leave_cost_nothing() -> None:
    """Of many, every second leaves in the midst of its answer; the others are answered to the end."""
    engine = FakeEngine(max_batch=8, max_waiting=80)
    body = json.dumps({"prompt": "a", "stream": True}).encode()
    asked = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)

    def one(number: int) -> bytes:
        with socket.create_connection(address(server), timeout=30) as connection:
            connection.sendall(asked)
            if number % 2:
                return connection.recv(10)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    with served(engine, replace(SETTINGS, requests=96)) as server:
        healthy(server)
        before = len(os.listdir("/dev/fd"))
        with ThreadPoolExecutor(16) as pool:
            said = list(pool.map(one, range(128)))
        engine.wait_for(lambda: not engine.running and not engine.waiting)
        with selectors.DefaultSelector():  # a turn of the loop
            healthy(server)
        assert all(b"[DONE]" in each for each in said[::2])
        assert server.service.serving == 0
        assert len(os.listdir("/dev/fd")) <= before + 3
