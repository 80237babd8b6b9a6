"""Run the server: socket, ready line, signals, and clean shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
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
from modalign.memory import return_freed_memory
from modalign.serving.http.app import Service, build_app
from modalign.serving.http.connections import RESERVE, Connection, Door
from modalign.serving.http.settings import Settings
from modalign.serving.requests import Engine

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
# Seconds after which a thread yields. The model's thread releases the interpreter at every operation and would
# wait Python's 5 ms to get it back from the event loop: a third of a small model's throughput.
SWITCH = 5e-5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def accepted_hosts(host: str) -> frozenset[str]:
    """Return the allowed Host names: for a loopback address only its own, else any.

    A page that rebinds its DNS name to this machine sends its own name.
    """
    if not is_loopback(host):
        return frozenset()
    return LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host.lower()}


def listening(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 chooses a free one.

    Raises:
        UsageError: the address or port is not available.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # With its protocol, because asyncio sends small packets at once only on sockets marked as TCP.
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
    """Return the URL of a listening socket, without a path."""
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
    """Serve until a signal comes, then finish running requests.

    Args:
        engine: closed at the end.
        settings: of the server.
        listener: a listening socket.
        ready: called when the server is ready.
        drain_seconds: time for running requests to finish after the first signal; then they are cancelled.
        stopping: called at the first signal.

    Returns:
        The exit code: 0, or 128 plus the signal number if a second signal stopped it.
    """
    return_freed_memory()  # large pictures would stay in memory for ever
    service = Service(engine, settings)
    if engine.modalities:
        service.decoders.start()
    server = StoppableServer(service, ready, stopping, drain_seconds)
    sys.setswitchinterval(SWITCH)
    # A collection over all that was loaded stops every thread, for up to a second: leave it out from now on.
    gc.collect()
    gc.freeze()
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()
        engine.close()
        service.close()
    return server.exit_code


class StoppableServer(uvicorn.Server):
    """uvicorn with our signals: the first one shuts it down cleanly, the second at once.

    Args:
        service: marked as draining on shutdown.
        ready: called when the server is ready.
        stopping: called at the first signal.
        drain_seconds: time for running requests to finish.
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
                http=Connection,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,  # our own log omits the query
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=max(1, round(drain_seconds)),
            )
        )
        self.service = service
        self.ready, self.stopping = ready, stopping
        self.exit_code = 0
        self._door = Door(service.settings, self._connection, self.server_state.connections)
        self._accepting: list[asyncio.Task[None]] = []

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start answering."""
        await super().startup([])  # connections are accepted by the Door, not by uvicorn
        self.service.most = min(self.service.most, self._door.limit - RESERVE)
        self._accepting = [asyncio.create_task(self._door.accept(each)) for each in sockets or ()]
        self.ready()

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections once a second."""
        if counter % 10 == 0:
            self._door.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let those that are answered end."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    def stop(self) -> None:
        """Stop accepting requests; end when running ones are done."""
        self.service.draining = True
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs; does nothing outside the main thread."""
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
