"""Fetch media from allowed hosts, and from public addresses only.

A name is resolved once, every address it has is looked at, and the connection goes to an address that was
looked at: a name whose address changes between the check and the connection (DNS rebinding) gains nothing.
Every redirect is checked in the same way. No proxy of the environment is used, as it would resolve anew.
One deadline holds for all of it: every wait on the network is cut to what is left of it, and all bytes are
counted, whatever part of an answer they are.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore2
import httpx2

from modalign.errors import DataError, UsageError, first_line

REDIRECTS = 3
IDLE_SECONDS = 10.0  # without a byte
OVERHEAD = (
    2**20
)  # bytes that an answer may have besides its content: headers, chunks' sizes, trailers
PORTS = {"http": 80, "https": 443}
# Blocks that IANA's registries of special-purpose addresses name, reachable or not, and those with another
# address inside, which a router on the way may unpack. Python's is_global differs between its versions.
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *(
                "172.16.0.0/12",
                "192.0.0.0/24",
                "192.0.2.0/24",
                "192.31.196.0/24",
                "192.52.193.0/24",
            ),
            *("192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
            *("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
        ),
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA has given out of IPv6
_FAILURES = (
    *(httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException),
    *(httpcore2.UnsupportedProtocol, ssl.SSLError, OSError, ValueError),
)

Resolver = Callable[[str, int], Sequence[str]]


class FetchError(DataError):
    """A URL that is not fetched, or could not be."""


def resolve(host: str, port: int) -> list[str]:
    """Return all addresses of a name.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether an address is on the open internet: not this machine, not a private network, not reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip not in _GLOBAL_UNICAST:
            return False
    return not any(ip in network for network in _SPECIAL)


class Fetcher:
    """Fetches from allowed hosts.

    Args:
        allowed: ``name`` (at the default port of http or https) or ``name:port``.
        most: maximum bytes of a response.
        seconds: for one medium, including redirects.
        resolver: name and port -> addresses.
        acceptable: whether an address may be connected to.

    Raises:
        UsageError: an allowed host is not a host name.
    """

    def __init__(
        self,
        allowed: Sequence[str],
        most: int,
        seconds: float,
        *,
        resolver: Resolver = resolve,
        acceptable: Callable[[str], bool] = is_public,
    ) -> None:
        self.allowed = frozenset(map(_host, allowed))
        self.most = most
        self.seconds = seconds
        self.resolver = resolver
        self.acceptable = acceptable

    def fetch(self, url: str) -> bytes:
        """Return the content of an http(s) URL.

        Raises:
            FetchError: a host or address is not allowed, or the response is too large, too slow or an error.
        """
        limits = _Limits(self.most, self.seconds)
        for _ in range(REDIRECTS + 1):
            content, target = self._once(url, limits)
            if target is None:
                return content
            try:
                url = urljoin(url, target)
            except ValueError:
                raise FetchError(f"{_shown(url)}: redirects to what is no URL") from None
        raise FetchError(f"{_shown(url)}: more than {REDIRECTS} redirects: give the last address")

    def _once(self, url: str, limits: _Limits) -> tuple[bytes, str | None]:
        """The content, or where a redirect leads."""
        parts, port = self._checked(url)
        backend = _Backend(self._address(parts, port, url, limits), limits)
        host = parts.hostname or ""
        named = f"[{host}]" if ":" in host else host
        headers: dict[bytes | str, bytes | str] = {
            "Host": named if port == PORTS[parts.scheme] else f"{named}:{port}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",  # so that what is counted is what is kept
        }
        try:
            with (
                httpcore2.ConnectionPool(ssl_context=_trusted(), network_backend=backend) as pool,
                pool.stream(
                    "GET",
                    httpcore2.URL(
                        scheme=parts.scheme.encode(),
                        host=host.encode("idna"),
                        port=port,
                        target=_target(parts).encode("ascii"),
                    ),
                    headers=headers,
                    extensions={
                        "timeout": dict.fromkeys(("connect", "read", "write"), IDLE_SECONDS)
                    },
                ) as response,
            ):
                answered = {name.lower(): value for name, value in response.headers}
                if response.status in (301, 302, 303, 307, 308) and b"location" in answered:
                    return b"", answered[b"location"].decode("latin-1")
                return _content(response, answered, url, limits), None
        except _MuchError:
            raise FetchError(f"{_shown(url)}: larger than {self.most:,} bytes: shrink it") from None
        except _FAILURES as error:
            if limits.left() <= 0:
                raise self._late(url) from None
            said = first_line(error) or type(error).__name__
            raise FetchError(f"{_shown(url)}: cannot be fetched ({said})") from None

    def _late(self, url: str) -> FetchError:
        return FetchError(f"{_shown(url)}: not there within {self.seconds:g} s")

    def _checked(self, url: str) -> tuple[SplitResult, int]:
        """Check a URL and return its parts and port."""
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS.get(parts.scheme, 0)
            host = (parts.hostname or "").encode("idna").decode("ascii") if parts.hostname else ""
            _target(parts).encode("ascii")
        except ValueError:  # UnicodeError is one
            raise FetchError(f"{_shown(url)}: is not a URL: percent-encode it") from None
        if parts.scheme not in PORTS:
            raise FetchError(f"{_shown(url)}: only http and https are fetched")
        if parts.username is not None or parts.password is not None:
            raise FetchError("a URL with a user or a password in it is not fetched")
        named = host if port == PORTS[parts.scheme] else f"{host}:{port}"
        if named.lower() not in self.allowed:
            raise FetchError(
                f"{_shown(url)}: {named} is not among the hosts that this server fetches from; send the "
                f"medium as a data URL, or start the server with --allow-url {named}"
            )
        return parts, port

    def _address(self, parts: SplitResult, port: int, url: str, limits: _Limits) -> str:
        host = parts.hostname or ""
        addresses = _in_time(lambda: self.resolver(host, port), limits)
        if addresses is None:
            raise self._late(url)
        if not addresses:
            raise FetchError(f"{_shown(url)}: the name {host} has no address")
        if not all(map(self.acceptable, addresses)):
            raise FetchError(
                f"{_shown(url)}: {host} resolves to an address that is private, of this machine or "
                "reserved; these are never fetched"
            )
        return addresses[0]


def _content(
    response: httpcore2.Response, headers: dict[bytes, bytes], url: str, limits: _Limits
) -> bytes:
    if response.status != 200:
        raise FetchError(f"{_shown(url)}: the host answered {response.status}")
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise FetchError(f"{_shown(url)}: the host sent it compressed, which was not asked for")
    content = bytearray()
    for chunk in response.iter_stream():
        content += chunk
        if len(content) > limits.most:
            raise _MuchError
    return bytes(content)


# --- one deadline, and every byte counted -------------------------------------------------------


class _MuchError(Exception):
    """More bytes than allowed."""


class _Limits:
    """What is left of a fetch's time and bytes, redirects included.

    Args:
        most: bytes of the content.
        seconds: for all of it, from now on.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.most = most
        self._deadline = time.monotonic() + seconds
        self._bytes = 2 * most + OVERHEAD

    def wait(self, timeout: float | None) -> float:
        """How long one wait may be.

        Raises:
            ReadTimeout: no time is left.
        """
        left = self.left()
        if left <= 0:
            raise httpcore2.ReadTimeout
        return left if timeout is None else min(left, timeout)

    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    def count(self, data: bytes) -> bytes:
        """Take bytes that came."""
        self._bytes -= len(data)
        if self._bytes < 0:
            raise _MuchError
        return data


class _Stream(httpcore2.NetworkStream):
    """A connection whose every wait ends with the deadline."""

    def __init__(self, inner: httpcore2.NetworkStream, limits: _Limits) -> None:
        self._inner, self._limits = inner, limits

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._limits.count(self._inner.read(max_bytes, self._limits.wait(timeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._limits.wait(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        """Go on encrypted."""
        wait = self._limits.wait(timeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, wait), self._limits)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore2.SyncBackend):
    """Connects to the address that was looked at, whatever the name leads to now."""

    def __init__(self, address: str, limits: _Limits) -> None:
        super().__init__()
        self._address, self._limits = address, limits

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        wait = self._limits.wait(timeout)
        inner = super().connect_tcp(self._address, port, wait, local_address, socket_options)
        return _Stream(inner, self._limits)


def _in_time(resolve: Callable[[], Sequence[str]], limits: _Limits) -> Sequence[str] | None:
    """Addresses, none where the name has none; None where no answer came in time, as resolvers have no limit."""
    found: list[Sequence[str]] = []

    def work() -> None:
        try:
            found.append(resolve())
        except (OSError, ValueError):  # a name that is none
            found.append(())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(max(limits.left(), 0))
    return found[0] if found else None


@cache
def _trusted() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


def _target(parts: SplitResult) -> str:
    path = parts.path or "/"
    return f"{path}?{parts.query}" if parts.query else path


def _host(text: str) -> str:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port
        name = host.encode("idna").decode("ascii") if host else ""
    except ValueError:
        parts, name, port = urlsplit(""), "", None
    if not name or parts.path or parts.query or parts.username is not None:
        raise UsageError(
            f"--allow-url {text}: give a host (images.example.org) or host:port, without scheme and path"
        )
    return f"{name}:{port}" if port else name


def _shown(url: str) -> str:
    """Return a URL without its query, which may contain a signature."""
    return url.partition("?")[0][:200]
