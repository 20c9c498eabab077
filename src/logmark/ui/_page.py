"""Serving the page: the public way in."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..protocol import InvalidArgument
from ..storage import add_sink, remove_sink
from ._overview import Overview
from ._trails import Trails

if TYPE_CHECKING:
    from .._runtime import Runtime
    from ._viewer import Viewer

__all__ = ["LivePage", "serve_page"]


class Hall:
    """What the browsers of one page share. Safe from any thread."""

    def __init__(self, runtime: Runtime, tokens: Mapping[str, str], *, writing: bool) -> None:
        self.runtime = runtime
        self.log = runtime.log.bind(actor="page")
        self.trails = Trails() if writing else None
        self.overview = Overview(runtime)
        self.verifying = threading.Semaphore(1)  # reading a whole session is work for the disk: one at a time
        self._tokens = [(hashlib.sha256(token.encode()).digest(), name) for token, name in tokens.items()]
        self._viewers: set[Viewer] = set()
        self._mutex = threading.Lock()
        if self.trails is not None:
            add_sink(self.trails)

    def principal_of(self, token: str) -> str | None:
        """Return whose token it is. Every token is compared, in constant time, so that time tells nothing."""
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        found = None
        for known, name in self._tokens:
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def add(self, viewer: Viewer) -> None:
        """Count a browser in."""
        with self._mutex:
            self._viewers.add(viewer)

    def remove(self, viewer: Viewer) -> None:
        """Count it out."""
        with self._mutex:
            self._viewers.discard(viewer)

    def close(self) -> None:
        """Let every browser go, and stop looking."""
        with self._mutex:
            viewers = tuple(self._viewers)
        for viewer in viewers:
            viewer.abort()
        self.overview.close()
        if self.trails is not None:
            remove_sink(self.trails)


class LivePage:
    """A page that is being served. Safe from any thread; a context manager that closes."""

    def __init__(self, hall: Hall, *, host: str, port: int, hosts: Sequence[str]) -> None:
        from ._listener import PageListener

        self._hall = hall
        self._listener = PageListener(hall, host=host, port=port, hosts=hosts)
        self._mutex = threading.Lock()
        self._closed = False

    @property
    def url(self) -> str:
        """Where a browser finds it, such as ``http://127.0.0.1:7778/``."""
        return self._listener.url

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.port

    def close(self) -> None:
        """Let every browser go and stop. The runtime stays open. A second call does nothing."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            self._listener.close()
            self._hall.close()
            self._hall.log.info("page_closed", url=self.url)

    def __enter__(self) -> Self:
        """Return the page; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the page."""
        self.close()

    def __repr__(self) -> str:
        return f"<LivePage {self.url}{' closed' if self._closed else ''}>"


def serve_page(
    runtime: Runtime,
    *,
    tokens: Mapping[str, str],
    host: str = "127.0.0.1",
    port: int = 0,
    hosts: Sequence[str] = (),
    writing: bool = True,
) -> LivePage:
    """Serve the live page of a runtime's store to browsers of this machine, and return at once.

    It only looks: nothing that a browser sends changes the store. Whoever has a token sees every session of the store,
    so these are the tokens of those who look after it, not of its clients.

    Args:
        runtime: it is followed through the public subscription API, and costs its appends nothing but a log sink.
        tokens: bearer tokens and whom each stands for.
        host: a loopback address of this machine; from elsewhere it is reached through a tunnel such as ``ssh -L``.
        port: 0 takes a free one; see ``LivePage.port``.
        hosts: names beside the loopback ones that a browser may use for it.
        writing: whether this process may write to the store: then its log events are kept, in bounds, to tell of the
            batch, the sync and the deliveries of an event.

    Raises:
        InvalidArgument: there are no tokens, or the address is not a loopback one.
        MissingExtra: the package ``websockets`` is not installed.
        StorageUnavailable: the address cannot be bound.
        RuntimeClosed, ForkedRuntime: there is no runtime here.
    """
    from ._listener import check_loopback

    runtime.check_usable()
    check_loopback(host)
    if not tokens or not all(tokens) or not all(tokens.values()):
        raise InvalidArgument("tokens maps non-empty text to non-empty text, and without any nobody could look")
    hall = Hall(runtime, tokens, writing=writing)
    try:
        page = LivePage(hall, host=host, port=port, hosts=hosts)
    except BaseException:
        hall.close()
        raise
    hall.log.info("page_opened", url=page.url)
    return page
