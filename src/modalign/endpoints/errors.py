"""Errors of an endpoint: a failed request, or a wrong address, key or model."""

from __future__ import annotations

from modalign.errors import ModalignError, UsageError


class EndpointError(ModalignError):
    """A request without a usable reply; others may succeed.

    Attributes:
        status: the HTTP status, if the server answered.
        wait: seconds that the server asked to wait (``Retry-After``), if any.
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
    """A wrong address, key or model name: no request can succeed until it is corrected."""
