"""Serving a runtime: the public way in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..protocol import InvalidArgument
from ._hub import Hub
from ._limits import GatewayLimits
from ._pages import Pages
from ._runner import Runner

if TYPE_CHECKING:
    import ssl

    from .._runtime import Runtime
    from ..protocol.arcp import Dialect

__all__ = ["Gateway", "make_hub", "serve"]


def make_hub(
    runtime: Runtime,
    *,
    tokens: Mapping[str, str] | None,
    anonymous: str | None,
    compat: Dialect,
    limits: GatewayLimits,
) -> Hub:
    """Put the two halves together: the runtime's agents and the connections."""
    from importlib.metadata import version

    if compat not in ("neutral", "draft"):
        message = f"compat is 'neutral' or 'draft', not {compat!r}"
        raise InvalidArgument(message)
    runtime.check_usable()
    runner = Runner(
        log=runtime.log,
        clock=runtime.clock,
        agents=runtime.agents,
        threads_max=limits.jobs_running_max,
        queue_max=limits.jobs_queued_max,
        abandoned_max=limits.jobs_abandoned_max,
        cancel_grace_s=limits.cancel_grace_s,
        result_bytes_max=limits.result_bytes_max,
    )
    hub = Hub(
        runtime,
        runtime.agents,
        runner,
        tokens=tokens,
        anonymous=anonymous,
        dialect=compat,
        limits=limits,
        version=version("logmark"),
    )
    hub.start()
    return hub


class Gateway:
    """A listening ARCP server. Safe from any thread; a context manager that closes.

    Its threads are daemons: a program that ends without closing leaves jobs unended, and the next server on this store
    ends them as those of a process that has died.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        host: str,
        port: int,
        origins: Sequence[str],
        hosts: Sequence[str],
        tls: ssl.SSLContext | None,
        metrics: Callable[[], bytes] | None,
    ) -> None:
        from ._websocket import WebSocketListener

        self._hub = hub
        pages = Pages(hub.runtime, metrics, hub.log)
        self._listener = WebSocketListener(
            hub, host=host, port=port, origins=origins, hosts=hosts, tls=tls, pages=pages
        )
        self._mutex = threading.Lock()
        self._closed = False

    @property
    def url(self) -> str:
        """Where clients connect, such as ``ws://127.0.0.1:7777/arcp``."""
        return self._listener.url

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.port

    def close(self, timeout_s: float | None = None) -> None:
        """Accept nothing new, let running jobs end within ``timeout_s`` seconds, tell the sessions, and stop.

        Jobs that are left end with INTERNAL_ERROR, retryable. Sessions can be resumed at the next server on the store.
        The runtime stays open. A second call does nothing; one from another thread waits for the first.
        """
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            self._listener.close()
            self._hub.close(self._hub.limits.close_wait_s if timeout_s is None else timeout_s)
            self._hub.log.info("gateway_closed", url=self.url)

    def __enter__(self) -> Self:
        """Return the gateway; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the gateway."""
        self.close()

    def __repr__(self) -> str:
        return f"<Gateway {self.url}{' closed' if self._closed else ''}>"


def serve(
    runtime: Runtime,
    *,
    tokens: Mapping[str, str],
    host: str = "127.0.0.1",
    port: int = 0,
    compat: Dialect = "neutral",
    allow_remote: bool = False,
    origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
    ssl: ssl.SSLContext | None = None,
    limits: GatewayLimits | None = None,
    metrics: Callable[[], bytes] | None = None,
) -> Gateway:
    """Serve a runtime's agents to ARCP clients over WebSocket, and return at once.

    Everything a client is told is in the runtime's store before it is told. Sessions, jobs, resume tokens (hashed) and
    idempotency keys are found again by the next server on the same store, in this process or another.

    ``GET /healthz`` answers anybody with ``Health.public``: 200 while the runtime works, 503 when it does not.

    Args:
        runtime: its agents (``Runtime.agent``) may still be registered while it is served.
        tokens: bearer tokens and whom each stands for. Principals see nothing of each other.
        host: an address of this machine; only loopback addresses without ``allow_remote``.
        port: 0 takes a free one; see ``Gateway.port``.
        compat: ``"neutral"`` sends only forms that every published client survives, ``"draft"`` the draft's own
            (``logmark.protocol.arcp``).
        allow_remote: listen on other addresses too. Tokens then travel in clear text unless ``ssl`` is given.
        origins: pages that may connect, such as ``https://console.example.org``; none by default.
        hosts: names beside ``host`` and the loopback ones that clients may use in ``Host``.
        ssl: serve ``wss://``.
        limits: every bound.
        metrics: returns what ``GET /metrics`` answers anybody with, such as ``PrometheusInstrumentation.exposition``;
            without it there is no such page.

    Raises:
        InvalidArgument: an argument is wrong; there are no tokens.
        MissingExtra: the package ``websockets`` is not installed.
        StorageUnavailable: the address cannot be bound.
        RuntimeClosed, ForkedRuntime: there is no runtime here.
    """
    from ._websocket import check_host

    check_host(host, allow_remote=allow_remote)
    hub = make_hub(runtime, tokens=tokens, anonymous=None, compat=compat, limits=limits or GatewayLimits())
    try:
        gateway = Gateway(hub, host=host, port=port, origins=origins, hosts=hosts, tls=ssl, metrics=metrics)
    except BaseException:
        hub.close(0.1)
        raise
    loopback = allow_remote is False
    hub.log.info("gateway_opened", url=gateway.url, compat=compat, loopback=loopback, encrypted=ssl is not None)
    return gateway
