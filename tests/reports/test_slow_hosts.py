"""Hosts that keep whoever fetches from them waiting, or lead them astray.

The deadline was looked at between chunks of the body only, so that slow headers, chunk
extensions, trailers and endless 103 lasted as long as the host liked; a redirect to ``http://[::1`` raised.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from modalign.serving.http.fetch import Fetcher, FetchError
from reports.threads import reported, tried

NAME = "images.example"
SECONDS = 0.3
Talk = Callable[[Callable[[bytes], None]], None]


@contextmanager
def host(talk: Talk) -> Iterator[int]:
    """A host on 127.0.0.1 that says what it likes to everyone; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(65_536)
                    talk(connection.sendall)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def fetcher(port: int, **options: object) -> Fetcher:
    leads = {"resolver": lambda *_: ["127.0.0.1"], "acceptable": lambda _: True}
    return Fetcher([f"{NAME}:{port}"], 10_000, SECONDS, **(leads | options))  # type: ignore[arg-type]


def dripping(begin: bytes, drop: bytes) -> Talk:
    """A beginning, then a drop at a time for ever: never idle for long."""

    def talk(send: Callable[[bytes], None]) -> None:
        send(begin)
        while True:
            send(drop)
            time.sleep(0.02)

    return talk


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "status line": (b"HTTP/1.1 200 ", b"O"),
    "one header": (OK + b"X: ", b"x"),
    "many headers": (OK, b"X: y\r\n"),
    "endless 103": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "endless 100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a chunk's extension": (CHUNKED + b"1;", b"x"),
    "a chunk's size": (CHUNKED, b"0"),
    "small chunks": (CHUNKED, b"1;x=y\r\na\r\n"),
    "trailers": (CHUNKED + b"1\r\na\r\n0\r\n", b"X: y\r\n"),
    "the body": (OK + b"Content-Length: 9999\r\n\r\n", b"x"),
    "a redirect's headers": (b"HTTP/1.1 302 Found\r\nLocation: /\r\n", b"X: y\r\n"),
}


@reported("encode/httpx#1450", "cloudflare/pingora#992", "oven-sh/bun#36146")
@pytest.mark.parametrize("part", DRIPS)
def test_the_deadline_holds_in_every_part_of_an_answer(part: str) -> None:
    began = time.monotonic()
    with host(dripping(*DRIPS[part])) as port, pytest.raises(FetchError, match=r"within 0\.3 s"):
        fetcher(port).fetch(f"http://{NAME}:{port}/")
    assert time.monotonic() - began < SECONDS + 5


@reported("encode/httpx#1450")
def test_silence_and_redirects_share_the_deadline() -> None:
    def redirect(send: Callable[[bytes], None]) -> None:
        time.sleep(SECONDS / 2)
        send(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")

    with host(redirect) as port, pytest.raises(FetchError, match=r"within 0\.3 s"):
        fetcher(port).fetch(f"http://{NAME}:{port}/")
    done = threading.Event()
    with host(lambda send: done.wait(20) and None) as port:  # accepts, and says nothing
        with pytest.raises(FetchError, match=r"within 0\.3 s"):
            fetcher(port).fetch(f"http://{NAME}:{port}/")
        done.set()


@reported("encode/httpx#1450")
def test_a_handshake_that_never_ends() -> None:
    drip = dripping(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"\x00")
    with host(drip) as port, pytest.raises(FetchError, match=r"within 0\.3 s"):
        fetcher(port).fetch(f"https://{NAME}:{port}/")


@reported("encode/httpx#1450")
def test_a_name_that_is_not_resolved_in_time() -> None:
    done = threading.Event()
    with pytest.raises(FetchError, match=r"within 0\.3 s"):
        fetcher(7, resolver=lambda *_: done.wait(20) and []).fetch(f"http://{NAME}:7/")
    done.set()


@reported("cloudflare/pingora#992")
@pytest.mark.parametrize(
    "part", ["endless 103", "a chunk's extension", "small chunks", "many headers"]
)
def test_much_of_anything_is_not_read_to_its_end(part: str) -> None:
    begin, drop = DRIPS[part]
    sent = 0

    def flood(send: Callable[[bytes], None]) -> None:
        nonlocal sent
        send(begin)
        while sent < 2**28:
            send(drop * 10_000)
            sent += len(drop) * 10_000

    with host(flood) as port, pytest.raises(FetchError):
        fetcher(port).fetch(f"http://{NAME}:{port}/")
    assert sent < 2**26


@tried("a host that redirects to http://[::1 and its like")
@pytest.mark.parametrize(
    "target",
    [
        b"http://[::1", b"//[::1", b"http://[::1]:x/", b"http://\xff\xfe/", b"http://" + b"a" * 300 + b"/",
        b"http://:80", b"http://a..b/", b"//", b"http:", b"http://[v1.x]/", b"javascript:alert(1)",
        b"http://images.example:99999/", b"http://images.example\\@127.0.0.1/", b"",
    ],
)  # fmt: skip
def test_redirects_to_what_is_no_url(target: bytes) -> None:
    found = b"HTTP/1.1 302 Found\r\nLocation: " + target + b"\r\nContent-Length: 0\r\n\r\n"
    with host(lambda send: send(found)) as port, pytest.raises(FetchError):
        fetcher(port).fetch(f"http://{NAME}:{port}/")


@tried("hosts that do not speak HTTP")
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\0" * 100,
        b"HTTP/1.1 999999 x\r\n\r\n",
        OK,
        b"220 mail\r\n",
    ],
)
def test_hosts_that_speak_something_else(said: bytes) -> None:
    with host(lambda send: send(said)) as port, pytest.raises(FetchError):
        fetcher(port).fetch(f"http://{NAME}:{port}/")
