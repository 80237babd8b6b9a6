"""What can go wrong with an endpoint: a request that failed, or an address, key or model that is wrong."""

from __future__ import annotations

from modalign.errors import ModalignError, UsageError


class EndpointError(ModalignError):
    """A request without a usable reply; others may do better.

    Attributes:
        status: the HTTP status, where the server answered.
        wait: seconds that the server asks to wait (``Retry-After``), where it did.
        transient: whether the same request may work later.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        wait: float | None = None,
        transient: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.wait = wait
        self.transient = transient


class EndpointUsageError(UsageError, EndpointError):
    """A wrong address, key or model name: no request can work before it is put right."""
