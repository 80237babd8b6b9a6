"""Checks before every request (Host header, API key), and its line in the log."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modalign.serving.http.errors import ApiError
from modalign.serving.http.metrics import Metrics
from modalign.serving.http.page import PATHS
from modalign.serving.http.settings import Settings

access = logging.getLogger("modalign.serving.access")

OPEN = {"/health", *PATHS}  # accessible without a key: they reveal nothing about requests


class Gate:
    """ASGI middleware before everything else.

    Args:
        app: the protected application.
        settings: the key, and the allowed Host names.
        metrics: counts every request.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app = app
        self.hosts = settings.hosts
        self.key = None if settings.api_key is None else _digest(settings.api_key.encode("ascii"))
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            error = self._refusal(scope)
            await (self.app if error is None else error.response())(scope, receive, watched)
        finally:
            self._tell(scope, scope.get("modalign.status", status), time.monotonic() - began)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self.hosts:
            named = [value for name, value in headers if name == b"host"]
            if len(named) != 1 or _host(named[0]) not in self.hosts:
                return ApiError(
                    421,
                    "this server does not answer to that Host name; use the address it printed when it "
                    "started",
                    code="host_refused",
                )
        if self.key is not None and scope["path"] not in OPEN:
            given = [value for name, value in headers if name == b"authorization"]
            scheme, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
            # Digests, so that timing reveals neither the key's characters nor its length.
            right = hmac.compare_digest(_digest(key.strip()), self.key)
            if not right or scheme.lower() != b"bearer":
                return ApiError(
                    401,
                    "no valid API key: send the server's key as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        return None

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        """Log a request without query, body and headers; the path is its route, so that metrics stay few."""
        route: Any = scope.get("route")
        self.metrics.done(getattr(route, "path", "other"), status, seconds)
        client = scope.get("client")
        path = scope.get("raw_path", b"").partition(b"?")[0][:200]
        access.info(
            "%s %s %s %d %.3fs",
            client[0] if client else "-",
            scope["method"],
            path.decode("ascii", "backslashreplace"),
            status,
            seconds,
        )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


_HOST = re.compile(rb"(\[[0-9a-f:.]+\]|[a-z0-9_.-]*[a-z0-9_-])\.?(?::(\d{0,5}))?")


def _host(header: bytes) -> str | None:
    """Return the name in a Host header without the port, or None if it is malformed (RFC 9110, 7.2)."""
    found = _HOST.fullmatch(header.lower())
    if found is None or int(found[2] or 0) > 65535:
        return None
    return found[1].decode("ascii")
