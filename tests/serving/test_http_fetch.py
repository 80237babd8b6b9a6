"""Fetching media: only from allowed hosts, only at public addresses, only so much and for so long."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

import tiny
from modalign.errors import UsageError
from modalign.serving.http.fetch import Fetcher, FetchError
from serving.fake_engine import FakeEngine, served

PNG = tiny.png_bytes(0)
NAME = "images.example"


@contextmanager
def host(answer: Callable[[Any], None]) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """A web server on 127.0.0.1: its port, and the (path, Host) that it was asked for."""
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Host"]))
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_port, seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def say(handler: Any, body: bytes = PNG, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def fetcher(port: int, *more: str, most: int = 10_000, seconds: float = 5.0) -> Fetcher:
    """One whose names all lead to 127.0.0.1, which it takes for public."""
    return Fetcher(
        [f"{NAME}:{port}", *more],
        most,
        seconds,
        resolver=lambda *_: ["127.0.0.1"],
        acceptable=lambda _: True,
    )


def test_a_medium_is_fetched_from_the_address_that_was_looked_at() -> None:
    looked: list[str] = []

    def acceptable(address: str) -> bool:
        looked.append(address)
        return True

    asked: list[tuple[str, int]] = []

    def resolver(name: str, port: int) -> list[str]:
        asked.append((name, port))
        # A second look would lead elsewhere (DNS rebinding): there is none.
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with host(say) as (port, seen):
        found = Fetcher(
            [f"{NAME}:{port}"], 10_000, 5.0, resolver=resolver, acceptable=acceptable
        ).fetch(f"http://{NAME.upper()}:{port}/a%20b.png?x=1#part")
    assert found == PNG
    assert (asked, looked) == ([(NAME, port)], ["127.0.0.1"])
    assert seen == [("/a%20b.png?x=1", f"{NAME}:{port}")]


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with host(say) as (port, _):
        assert fetcher(port).fetch(f"http://{NAME}:{port}/") == PNG


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example:{port}/",
        "http://images.example/",  # another port
        "http://images.example.evil.example:{port}/",
        "http://127.0.0.1:{port}/",
        "http://2130706433:{port}/",  # 127.0.0.1 as a number
        "http://user:secret@images.example:{port}/",
        "http://images.example:{port}:80/",
        "ftp://images.example:{port}/",
        "http:///a",
        "http://[::1/",
        "http://images.example:{port}/é",
        "http://images.example:99999/",
    ],
)
def test_other_urls_are_refused_before_anything_is_resolved(url: str) -> None:
    def resolver(*_: Any) -> list[str]:
        raise AssertionError("resolved")

    guarded = Fetcher([f"{NAME}:7"], 10, 1.0, resolver=resolver)
    with pytest.raises(FetchError) as caught:
        guarded.fetch(url.format(port=7))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:10.0.0.1"]])
def test_an_allowed_name_with_a_private_address_is_refused(addresses: list[str]) -> None:
    guarded = Fetcher([NAME], 10, 1.0, resolver=lambda *_: addresses)
    with pytest.raises(FetchError, match="private"):
        guarded.fetch(f"https://{NAME}/a.png")


def test_a_name_without_an_address() -> None:
    def resolver(*_: Any) -> list[str]:
        raise OSError("no such name")

    with pytest.raises(FetchError, match="has no address"):
        Fetcher([NAME], 10, 1.0, resolver=resolver).fetch(f"http://{NAME}/")


def test_redirects_are_checked_like_the_first_address() -> None:
    target = ""

    def answer(handler: Any) -> None:
        if handler.path == "/start":
            say(handler, b"", 302, Location=target)
        elif handler.path == "/circle":
            say(handler, b"", 302, Location="/circle")
        else:
            say(handler)

    with host(answer) as (port, seen):
        guarded = fetcher(port)
        target = "/end.png"
        assert guarded.fetch(f"http://{NAME}:{port}/start") == PNG
        before = len(seen)
        for target in ("http://127.0.0.1:{port}/x", "//evil.example/x", "file:///etc/passwd"):
            target = target.format(port=port)
            with pytest.raises(FetchError):
                guarded.fetch(f"http://{NAME}:{port}/start")
        assert len(seen) == before + 3  # none of them was followed
        with pytest.raises(FetchError, match="more than 3 redirects"):
            guarded.fetch(f"http://{NAME}:{port}/circle")


def test_a_redirect_to_an_allowed_name_with_a_private_address_is_refused() -> None:
    def resolver(name: str, _: int) -> list[str]:
        return ["127.0.0.1"] if name == NAME else ["10.0.0.1"]

    with host(lambda handler: say(handler, b"", 307, Location="http://inner.example/")) as (
        port,
        _,
    ):
        guarded = Fetcher(
            [f"{NAME}:{port}", "inner.example"],
            10,
            5.0,
            resolver=resolver,
            acceptable=lambda address: address == "127.0.0.1",
        )
        with pytest.raises(
            FetchError, match=r"inner\.example resolves to an address that is private"
        ):
            guarded.fetch(f"http://{NAME}:{port}/")


def test_too_much_is_not_read_to_its_end() -> None:
    sent = 0

    def endless(handler: Any) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(10_000):
                handler.wfile.write(10_000 * b"x")
                sent += 10_000
        except OSError:
            pass

    with host(endless) as (port, _), pytest.raises(FetchError, match="larger than 10,000 bytes"):
        fetcher(port).fetch(f"http://{NAME}:{port}/")
    assert sent < 50_000_000


def test_a_host_that_drips_is_given_up() -> None:
    done = threading.Event()

    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not done.wait(0.02):
                handler.wfile.write(b"x")
        except OSError:
            pass

    try:
        with host(drip) as (port, _), pytest.raises(FetchError, match=r"within 0\.2 s"):
            fetcher(port, seconds=0.2).fetch(f"http://{NAME}:{port}/")
    finally:
        done.set()


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (404, {}, "answered 404"),
        (200, {"Content_Encoding": "gzip"}, "compressed"),
        (206, {}, "206"),
    ],
)
def test_answers_that_are_not_the_medium(status: int, headers: dict[str, str], said: str) -> None:
    with (
        host(lambda handler: say(handler, PNG, status, **headers)) as (port, _),
        pytest.raises(FetchError, match=said),
    ):
        fetcher(port).fetch(f"http://{NAME}:{port}/?signature=secret")


def test_nobody_there() -> None:
    with host(say) as (port, _):
        pass
    with pytest.raises(FetchError, match="cannot be fetched") as caught:
        fetcher(port).fetch(f"http://{NAME}:{port}/?signature=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "http://x.org", "x.org/a", "x.org:port", "u@x.org"])
def test_hosts_to_allow_are_hosts(wrong: str) -> None:
    with pytest.raises(UsageError, match="--allow-url"):
        Fetcher([wrong], 1, 1.0)


def test_an_image_in_a_chat_by_its_address() -> None:
    engine = FakeEngine()
    with served(engine) as server, host(say) as (port, _):
        body = {"messages": [{"role": "user", "content": [part(f"http://{NAME}:{port}/a.png")]}]}
        url = f"{server.url}/v1/chat/completions"
        refusal = httpx2.post(url, json=body)
        assert refusal.json()["error"]["code"] == "url_refused"
        assert f"--allow-url {NAME}:{port}" in refusal.json()["error"]["message"]
        server.service.fetcher = fetcher(port)
        assert httpx2.post(url, json=body).status_code == 200
    assert engine.turns[0][0].parts[0].data == PNG  # type: ignore[union-attr]


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
