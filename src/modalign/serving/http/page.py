"""The page at ``/``: a few files without a framework, with headers that restrict it to this server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
    "Cache-Control": "no-cache",  # pages and scripts must be of the same version
}
_FILES = {
    "/" if file.name == "index.html" else f"/page/{file.name}": file
    for file in sorted(resources.files("modalign.serving").joinpath("page").iterdir(), key=str)
    if file.name.rpartition(".")[2] in _TYPES
}
PATHS = frozenset(_FILES)  # they reveal nothing about the model or requests


def add_page(app: FastAPI) -> None:
    """Add the page's files to an application, without listing them in the API's document."""
    for path, file in _FILES.items():
        route = _giving(file.read_bytes(), _TYPES[file.name.rpartition(".")[2]])
        app.add_api_route(path, route, methods=["GET", "HEAD"], include_in_schema=False)


def _giving(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def give() -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return give
