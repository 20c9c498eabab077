"""The runtime, from an event loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

from .. import open as open_runtime
from .._runtime import Runtime
from ..protocol import Limits
from ..storage import SessionInfo
from ._bridge import Bridges
from ._feed import AsyncFeed
from ._reading import AsyncItems
from ._session import AsyncSession

__all__ = ["AsyncRuntime", "Opening", "open", "wrap"]

T = TypeVar("T")


class AsyncRuntime:
    """A runtime as an event loop sees it; an asynchronous context manager that closes. See ``open`` and ``wrap``.

    Made and used in coroutines; of one loop, or of several one after the other or in several threads. Calls of the
    runtime itself that may block are made in up to ``Limits.aio_threads_max`` threads.
    """

    def __init__(self, runtime: Runtime, bridges: Bridges, *, owns: bool) -> None:
        self.runtime = runtime
        """The runtime itself, for whatever does not block; what does goes through ``run``."""
        self.bridges = bridges
        self._owns = owns
        self._sessions: weakref.WeakValueDictionary[str, AsyncSession] = weakref.WeakValueDictionary()

    def session(self, session_id: str) -> AsyncSession:
        """Return the session with this id; see ``Runtime.session``. It does not block."""
        session = self.runtime.session(session_id)
        known = self._sessions.get(session_id)
        if known is None or known.session is not session:
            known = self._sessions[session_id] = AsyncSession(self, session)
        return known

    def sessions(self) -> AsyncItems[SessionInfo]:
        """Iterate over every session in the store, in the order of their ids; see ``Runtime.sessions``."""
        self.runtime.check_usable()
        return AsyncItems(self.bridges, self.runtime.sessions)

    async def delete_session(self, session_id: str) -> None:
        """Remove a session with all that is kept of it; see ``Runtime.delete_session``."""
        await self.run(self.runtime.delete_session, session_id)

    def feed(self, after: str | None = None, prefix: str = "", *, timeout: float | None = None) -> AsyncFeed:
        """Return an iterator over the events of all sessions, live, each with its ``position``; see ``Runtime.feed``.

        Making a position takes as long as there are sessions: of a store with very many, ask for it in a thread
        (``await rt.run(lambda: event.position)``).
        """
        return AsyncFeed(self.bridges, lambda: self.runtime.feed(after, prefix), timeout)

    async def run(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Make a call that may block, of this runtime or its store, in one of its threads.

        It runs to its end, also when the caller is cancelled. For what this module has no coroutine for:
        ``await rt.run(rt.runtime.store.verify, "chat-42")``.
        """
        self.runtime.check_usable()
        return await self.bridges.run(lambda: call(*args, **options))

    async def close(self) -> None:
        """Refuse what is new, finish what was accepted, stop; see ``Runtime.close``. A second call does nothing.

        It closes the runtime that ``open`` has opened; one that was wrapped stays open. When the caller is cancelled,
        the closing goes on in its thread.
        """
        if self._owns:
            await self.bridges.run(self.runtime.close, apart=True)
        self.bridges.close()

    async def __aenter__(self) -> Self:
        """Return the runtime; leaving closes it."""
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the runtime."""
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncRuntime {self.runtime.store.url}>"


class Opening:
    """A store about to be opened: ``async with open(url) as rt``, or ``rt = await open(url)``."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url
        self._options = options
        self._opened: AsyncRuntime | None = None

    def __await__(self) -> Generator[Any, None, AsyncRuntime]:
        """Open the store; who awaits this closes the runtime himself."""
        return self._open().__await__()

    async def _open(self) -> AsyncRuntime:
        limits: Limits = self._options.get("limits") or Limits()
        bridges = Bridges(limits.aio_threads_max)
        try:
            runtime = await bridges.run(lambda: open_runtime(self._url, **self._options), Runtime.close)
        except BaseException:
            bridges.close()
            raise
        return AsyncRuntime(runtime, bridges, owns=True)

    async def __aenter__(self) -> AsyncRuntime:
        """Open the store; leaving closes it."""
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the runtime."""
        if self._opened is not None:
            await self._opened.close()


def open(url: str, **options: Any) -> Opening:
    """Open a store for an event loop: ``async with logmark.aio.open("data") as rt``.

    Args:
        url: as for ``logmark.open``.
        options: as for ``logmark.open``.

    Returns:
        what is entered, or awaited, to open it; that raises what ``logmark.open`` raises.
    """
    return Opening(url, options)


def wrap(runtime: Runtime) -> AsyncRuntime:
    """Return an open runtime as an event loop sees it, for programs that use it from threads too.

    Closing it ends its threads and leaves the runtime open.
    """
    return AsyncRuntime(runtime, Bridges(runtime.limits.aio_threads_max), owns=False)
