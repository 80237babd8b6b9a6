"""A server on localhost that answers as it is told, and a clock that does not wait."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """One HTTP response; ``cut`` promises more bytes than it sends."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def said(text: str = "", calls: list[tuple[str, Any]] | None = None, tokens: int = 3) -> Answer:
    """A chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        message["tool_calls"] = [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": tokens}
    return Answer({"object": "chat.completion", "choices": [choice], "usage": usage})


@dataclass
class StandIn:
    """What the server was asked, and where it is."""

    url: str
    answer: Callable[[dict[str, Any], int], Answer]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    models: list[str] | None = None
    running: int = 0
    most_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Answer] | list[Answer]) -> Iterator[StandIn]:
    """A server that answers by a function of (request, number of the request), or from a list."""
    function = (lambda _, n: answer[n]) if isinstance(answer, list) else answer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            if stand_in.models is None:
                self.send(Answer({"error": "nothing here"}, 404))
            else:
                self.send(Answer({"data": [{"id": name} for name in stand_in.models]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stand_in.lock:
                stand_in.running += 1
                stand_in.most_running = max(stand_in.most_running, stand_in.running)
                number = len(stand_in.bodies)
                stand_in.bodies.append({"path": self.path} | body)
                stand_in.headers.append(dict(self.headers))
            try:
                self.send(function(body, number))
            finally:
                with stand_in.lock:
                    stand_in.running -= 1

        def send(self, response: Answer) -> None:
            content = response.content()
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + 100 * response.cut))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = response.cut

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in = StandIn(f"http://127.0.0.1:{server.server_address[1]}/v1", function)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class FakeClock:
    """Time that passes only by waiting; it keeps every wait."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self.time = start
        self.waits: list[float] = []
        self.lock = threading.Lock()

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.waits.append(seconds)
            self.time += seconds
