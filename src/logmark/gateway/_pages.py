"""Plain HTTP requests to the gateway: ``GET /healthz`` and ``GET /metrics``.

They need no token, so nothing in them is a secret: no session, principal, path or text of an error
(``Health.public``). A ``Host`` that is an address is fine here: a page in a browser that wants to read another
server's answers (DNS rebinding) comes with a name, and probes come with an address.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from ..storage import Logger

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["Page", "Pages"]

_TEXT = "text/plain; charset=utf-8"
_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
_JSON = "application/json"


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """An answer to a plain request."""

    status: HTTPStatus
    content_type: str
    text: str


class Pages:
    """Answers plain requests. Safe from any thread.

    Args:
        runtime: whose health it is.
        metrics: returns an exposition for Prometheus, or None when there are no metrics.
        log: gets ``gateway_page_failed``.
    """

    def __init__(self, runtime: Runtime, metrics: Callable[[], bytes] | None, log: Logger) -> None:
        self._runtime = runtime
        self._log = log
        self._metrics = metrics

    def has(self, path: str) -> bool:
        """Say whether there is a page."""
        return path == "/healthz" or (path == "/metrics" and self._metrics is not None)

    def answer(self, path: str) -> Page:
        """Make a page; never raises."""
        try:
            if path == "/metrics" and self._metrics is not None:
                return Page(HTTPStatus.OK, _EXPOSITION, self._metrics().decode())
            health = self._runtime.health()
            status = HTTPStatus.OK if health.is_serving else HTTPStatus.SERVICE_UNAVAILABLE
            return Page(status, _JSON, json.dumps(health.public()) + "\n")
        except Exception as error:
            self._log.warning("gateway_page_failed", path=path, error=repr(error), exc_info=error)
            return Page(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, "this page could not be made; the log says why\n")
