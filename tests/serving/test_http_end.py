"""How the server ends: it finishes what runs, takes no more, and does not wait for ever."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from modalign.errors import UsageError
from modalign.serving.http.server import (
    accepted_hosts,
    address_of,
    is_loopback,
    listening,
    serve,
)
from modalign.serving.http.settings import Settings, read_key
from serving.fake_engine import FakeEngine, served

SETTINGS = Settings("tiny", hosts=accepted_hosts("127.0.0.1"))
STREAM: dict[str, Any] = {"prompt": "a", "stream": True}


def run(
    engine: FakeEngine, act: Callable[[str], None], drain_seconds: float = 5.0
) -> tuple[int, float]:
    """Serve in the main thread, where signals are heard; ``act`` is given the address in another one.

    Returns:
        the exit code, and the seconds it took.
    """
    listener = listening("127.0.0.1", 0)
    failures: list[BaseException] = []

    def acting() -> None:
        try:
            act(address_of(listener, "127.0.0.1"))
        except BaseException as error:
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=acting)
    began = time.monotonic()
    before = signal.getsignal(signal.SIGTERM)
    code = serve(engine, SETTINGS, listener, ready=thread.start, drain_seconds=drain_seconds)
    took = time.monotonic() - began
    thread.join(10)
    if failures:
        raise failures[0]
    assert signal.getsignal(signal.SIGTERM) == before
    assert engine.closed
    return code, took


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_answers_end(number: int) -> None:
    engine = FakeEngine(steps=1)
    said = b""

    def act(url: str) -> None:
        nonlocal said
        with httpx2.stream("POST", f"{url}/v1/completions", json=STREAM) as stream:
            chunks = stream.iter_bytes()
            said = next(chunks)
            os.kill(os.getpid(), number)
            refused(url)
            engine.allow(None)
            said += b"".join(chunks)

    assert run(engine, act)[0] == 0
    assert said.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"stop"' in said


@pytest.mark.parametrize("stream", [False, True])
def test_twenty_four_running_answers_are_finished(stream: bool) -> None:
    engine = FakeEngine(steps=1, max_batch=24)

    def act(url: str) -> None:
        def one(_: int) -> str:
            asked = {"prompt": "a", "stream": stream}
            return httpx2.post(f"{url}/v1/completions", json=asked, timeout=30).text

        with ThreadPoolExecutor(24) as pool:
            answers = [pool.submit(one, number) for number in range(24)]
            engine.wait_for(lambda: len(engine.running) == 24)
            os.kill(os.getpid(), signal.SIGTERM)
            refused(url)
            engine.allow(None)
            assert all('"finish_reason":"stop"' in answer.result() for answer in answers)

    assert run(engine, act)[0] == 0
    assert not any(row.cancelled for row in engine.submitted)


def refused(url: str) -> None:
    """Ask until no connection is taken any more; a connection that still is gets an error."""
    while True:
        try:
            response = httpx2.get(f"{url}/health")
        except httpx2.ConnectError:
            return
        except httpx2.TransportError:  # accepted by the system, and closed
            continue
        assert response.status_code == 503


def test_a_second_signal_ends_at_once() -> None:
    engine = FakeEngine(steps=1)

    def act(url: str) -> None:
        with httpx2.stream("POST", f"{url}/v1/completions", json=STREAM) as stream:
            chunks = stream.iter_bytes()
            next(chunks)
            os.kill(os.getpid(), signal.SIGTERM)
            refused(url)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(httpx2.TransportError):
                list(chunks)

    code, took = run(engine, act, drain_seconds=60)
    assert code == 128 + signal.SIGTERM
    assert took < 20
    assert engine.submitted[0].cancelled


def test_it_does_not_wait_for_ever() -> None:
    engine = FakeEngine(steps=1)

    def act(url: str) -> None:
        with httpx2.stream("POST", f"{url}/v1/completions", json=STREAM) as stream:
            chunks = stream.iter_bytes()
            next(chunks)
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(httpx2.TransportError):
                list(chunks)

    assert run(engine, act, drain_seconds=1)[0] == 0
    assert engine.submitted[0].cancelled


def test_while_it_ends_requests_are_refused() -> None:
    with served(FakeEngine()) as server, httpx2.Client() as client:  # a connection that stays
        assert client.get(f"{server.url}/health").status_code == 200
        server.service.draining = True
        for response in (
            client.get(f"{server.url}/health"),
            client.post(f"{server.url}/v1/completions", json={"prompt": "a"}),
        ):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "draining"


def test_an_engine_that_is_drained_by_others_is_a_503() -> None:
    engine = FakeEngine()
    with served(engine) as server:
        engine.draining = True
        response = httpx2.post(f"{server.url}/v1/completions", json={"prompt": "a"})
        assert response.status_code == 503


# --- addresses and keys -------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_port_that_is_taken_is_named() -> None:
    first = listening("127.0.0.1", 0)
    with first, pytest.raises(UsageError, match="--port"):
        listening("127.0.0.1", first.getsockname()[1])
    with pytest.raises(UsageError, match="--host"):
        listening("no such host", 0)


def test_ipv6_addresses_are_written_in_brackets() -> None:
    with listening("::1", 0) as listener:
        assert address_of(listener, "::1") == f"http://[::1]:{listener.getsockname()[1]}"


@pytest.mark.parametrize("content", ["", "\n", "two words", "two\nlines", "schlüssel", "tab\tbed"])
def test_a_file_that_holds_no_key(content: str, tmp_path: Any) -> None:
    file = tmp_path / "key"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="contains no key") as caught:
        read_key(file)
    assert not content.strip() or content not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(tmp_path / "none")


def test_a_file_that_holds_a_key(tmp_path: Any) -> None:
    file = tmp_path / "key"
    file.write_text("abc-123\n")
    assert read_key(file) == "abc-123"
