"""Fetching media from the few hosts that were allowed, and from public addresses only.

A name is resolved once, every address it has is looked at, and the connection goes to an address that was
looked at: a name whose address changes between the check and the connection (DNS rebinding) gains nothing.
Every redirect is checked in the same way. No proxy of the environment is used, as it would resolve anew.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2

from modalign.errors import DataError, UsageError

REDIRECTS = 3
IDLE_SECONDS = 10.0  # without a byte
PORTS = {"http": 80, "https": 443}
# Addresses with another address inside, which a router on the way may unpack.
_WRAPPING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")))

Resolver = Callable[[str, int], Sequence[str]]


class FetchError(DataError):
    """A URL that is not fetched, or could not be."""


def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name.

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
        if ip.teredo is not None or any(ip in network for network in _WRAPPING):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class Fetcher:
    """Fetches from allowed hosts.

    Args:
        allowed: ``name`` (at http's or https's own port) or ``name:port``.
        most: bytes of a response.
        seconds: for one medium, redirects included.
        resolver: name and port -> addresses.
        acceptable: whether an address may be connected to.

    Raises:
        UsageError: an allowed host that is no host name.
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
        """The content behind an http(s) URL.

        Raises:
            FetchError: a host or address that is not allowed, too much, too slow, or no success.
        """
        deadline = time.monotonic() + self.seconds
        with httpx2.Client(trust_env=False, follow_redirects=False, timeout=IDLE_SECONDS) as client:
            for _ in range(REDIRECTS + 1):
                content, target = self._once(client, url, deadline)
                if target is None:
                    return content
                url = urljoin(url, target)
        raise FetchError(f"{_shown(url)}: more than {REDIRECTS} redirects: give the last address")

    def _once(self, client: httpx2.Client, url: str, deadline: float) -> tuple[bytes, str | None]:
        """The content, or where a redirect leads."""
        parts, port = self._checked(url)
        address = self._address(parts, port, url)
        literal = f"[{address}]" if ":" in address else address
        host = parts.hostname or ""
        named = f"[{host}]" if ":" in host else host
        request = client.build_request(
            "GET",
            httpx2.URL(
                scheme=parts.scheme,
                host=literal,
                port=port,
                raw_path=_target(parts).encode("ascii"),
            ),
            headers={
                "Host": named if port == PORTS[parts.scheme] else f"{named}:{port}",
                "Accept-Encoding": "identity",  # so that what is counted is what is kept
            },
            extensions={"sni_hostname": host},  # the certificate is the name's, not the address's
        )
        try:
            response = client.send(request, stream=True)
            try:
                if response.has_redirect_location:
                    return b"", response.headers["location"]
                return self._content(response, url, deadline), None
            finally:
                response.close()
        except httpx2.HTTPError as error:
            said = str(error) or type(error).__name__
            raise FetchError(f"{_shown(url)}: cannot be fetched ({said})") from None

    def _checked(self, url: str) -> tuple[SplitResult, int]:
        """The parts of a URL of an allowed host, and its port."""
        try:
            parts = urlsplit(url)
            port = parts.port or PORTS.get(parts.scheme, 0)
            host = (parts.hostname or "").encode("idna").decode("ascii") if parts.hostname else ""
            _target(parts).encode("ascii")
        except ValueError:  # UnicodeError is one
            raise FetchError(f"{_shown(url)}: is no URL: percent-encode it") from None
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

    def _address(self, parts: SplitResult, port: int, url: str) -> str:
        host = parts.hostname or ""
        try:
            addresses = self.resolver(host, port)
        except OSError:
            addresses = []
        if not addresses:
            raise FetchError(f"{_shown(url)}: the name {host} has no address")
        if not all(map(self.acceptable, addresses)):
            raise FetchError(
                f"{_shown(url)}: {host} leads to an address that is private, of this machine or "
                "reserved; such are never fetched"
            )
        return addresses[0]

    def _content(self, response: httpx2.Response, url: str, deadline: float) -> bytes:
        if response.status_code != 200:
            raise FetchError(f"{_shown(url)}: the host answered {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise FetchError(f"{_shown(url)}: the host sent it compressed, which was not asked for")
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > self.most:
                raise FetchError(f"{_shown(url)}: larger than {self.most:,} bytes: shrink it")
            if time.monotonic() > deadline:
                raise FetchError(f"{_shown(url)}: not there within {self.seconds:g} s")
        return bytes(content)


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
    """A URL without its query, which may hold a signature."""
    return url.partition("?")[0][:200]
