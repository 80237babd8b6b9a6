"""Running the server: a socket, the ready line, signals, and an orderly end."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from modalign.errors import UsageError
from modalign.serving.http.app import Service, build_app
from modalign.serving.http.settings import Settings
from modalign.serving.requests import Engine

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
# Seconds after which a thread gives way. The model's thread lets go of the interpreter at every operation and
# would wait Python's 5 ms to have it back from the event loop: a third of the throughput of a small model.
SWITCH = 5e-5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def accepted_hosts(host: str) -> frozenset[str]:
    """Names that the Host header may have: of a loopback address only its own, else any.

    A page whose name's address was changed to this machine's (DNS rebinding) sends its own name.
    """
    if not is_loopback(host):
        return frozenset()
    return LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host.lower()}


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UsageError: the address or the port cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With its protocol named: asyncio sends small packets at once only on sockets that say TCP.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        return listener
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or error
        raise UsageError(
            f"cannot listen on {host} port {port} ({said}): choose another --port (0 takes a free one) or "
            "--host"
        ) from None


def address_of(listener: socket.socket, host: str) -> str:
    """The URL of a listening socket, without a path."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def serve(
    engine: Engine,
    settings: Settings,
    listener: socket.socket,
    *,
    ready: Callable[[], None],
    drain_seconds: float = 30.0,
    stopping: Callable[[], None] = lambda: None,
) -> int:
    """Serve until a signal comes, then finish what runs.

    Args:
        engine: closed at the end.
        settings: of the server.
        listener: a listening socket.
        ready: called when requests are answered.
        drain_seconds: for running requests to end after the first signal; then they are cancelled.
        stopping: called at the first signal.

    Returns:
        the exit code: 0, or 128 and the signal's number where a second one cut the end short.
    """
    service = Service(engine, settings)
    server = StoppableServer(service, ready, stopping, drain_seconds)
    sys.setswitchinterval(SWITCH)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        engine.close()
        service.pool.shutdown(wait=False, cancel_futures=True)
    return server.exit_code


class StoppableServer(uvicorn.Server):
    """uvicorn with our signals: the first one ends it in order, the second at once.

    Args:
        service: told that it takes no more.
        ready: called when requests are answered.
        stopping: called at the first signal.
        drain_seconds: for running requests to end.
    """

    def __init__(
        self,
        service: Service,
        ready: Callable[[], None] = lambda: None,
        stopping: Callable[[], None] = lambda: None,
        drain_seconds: float = 30.0,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                build_app(service),
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,  # ours says less: no query
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=max(1, round(drain_seconds)),
            )
        )
        self.service = service
        self.ready, self.stopping = ready, stopping
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self.ready()

    def stop(self) -> None:
        """Take no more requests; end when those that run are done."""
        self.service.draining = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals for as long as the server runs; outside the main thread there are none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {number: signal.signal(number, self._told) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self, number: int, _: FrameType | None) -> None:
        if self.should_exit:
            self.exit_code = 128 + number
            self.force_exit = True
        else:
            self.stopping()
            self.stop()
