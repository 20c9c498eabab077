"""The way of ingested events into the store: many under way at once, in order, and none after one that failed."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

from ..protocol import Envelope, InvalidEvent, LogmarkError

if TYPE_CHECKING:
    from .._runtime import Runtime
    from .._session import Session

__all__ = ["FailedSession", "Feed"]

# Enough to fill a session's next commit (Limits.batch_events_max) while the last one is written, and far below what its
# inbox holds (Limits.inbox_events_max, inbox_bytes_max), so that ``submit`` never waits for room.
_SESSION_EVENTS_MAX = 8192
_EVENTS_MAX = 32_768
_BYTES_MAX = 16 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class FailedSession:
    """A session that took no more events: why, and how many of the input it lacks."""

    session_id: str
    error: LogmarkError | OSError
    refused: int


class _SessionFeed:
    """One session's events under way.

    A failed append may be followed by one that succeeds: the lock came free, the disk got room. The second ingest
    would then append the failed event behind it, out of order. So the first failure ends the session's part of the
    ingest: the answer is handled in the SessionActor, before it hands on the next batch, and cancels what waits there.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.session: Session | None = None
        self.highest_seq = 0
        self.refused = 0
        self.error: LogmarkError | OSError | None = None
        self._mutex = threading.Lock()
        self._under_way: deque[Future[int]] = deque()

    def __len__(self) -> int:
        return len(self._under_way)

    def fail(self, error: LogmarkError | OSError) -> None:
        """Take nothing more, and call back what the disk has not begun with."""
        with self._mutex:
            self.error = self.error or error
            waiting = list(self._under_way)
        for future in waiting:
            future.cancel()

    def submit(self, session: Session, envelope: Envelope) -> Future[int] | None:
        """Submit one event; None when the session has failed."""
        # The lock closes the moment between looking at ``error`` and being among those that ``fail`` cancels.
        with self._mutex:
            if self.error is not None:
                return None
            future = session.submit(
                envelope.type,
                envelope.payload,
                job_id=envelope.job_id,
                id=envelope.id,
                source=envelope.source,
                stream_seq=envelope.stream_seq,
                trace_id=envelope.trace_id,
                timestamp=envelope.timestamp_text,
                extensions=envelope.extensions,
            )
            self._under_way.append(future)
        future.add_done_callback(self._answered)
        return future

    def _answered(self, future: Future[int]) -> None:
        if not future.cancelled():
            error = future.exception()
            if isinstance(error, LogmarkError):
                self.fail(error)

    def retire(self, future: Future[int]) -> bool | None:
        """Wait for the answer to the oldest event: True when it was stored, False when it was there, None if refused.

        The numbers of one session's new events rise, so one that does not was given before.
        """
        try:
            seq = future.result()
        except CancelledError:
            stored = None
        except LogmarkError as error:
            self.fail(error)
            stored = None
        else:
            stored = seq > self.highest_seq
            self.highest_seq = max(self.highest_seq, seq)
        with self._mutex:
            self._under_way.popleft()
        return stored


class Feed:
    """Appends events to their sessions with ``Session.submit``. Not thread-safe: one thread feeds."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._sessions: dict[str, _SessionFeed] = {}
        self._under_way: deque[tuple[_SessionFeed, Future[int], int]] = deque()
        self._bytes = 0
        self.stored = 0
        """Events that got a number."""
        self.repeated = 0
        """Events whose id was there already, and which were answered with the number of the first."""

    @property
    def refused(self) -> int:
        """Events of sessions that failed."""
        return sum(feed.refused for feed in self._sessions.values())

    @property
    def sessions(self) -> int:
        """Sessions that the input has events of."""
        return len(self._sessions)

    def failed(self) -> list[FailedSession]:
        """Return the sessions that took not all of their events."""
        return [
            FailedSession(feed.session_id, feed.error, feed.refused)
            for feed in self._sessions.values()
            if feed.error is not None
        ]

    def put(self, session_id: str, envelope: Envelope, size_bytes: int) -> None:
        """Hand one event on, waiting while too many are under way.

        Raises:
            InvalidEvent: the event cannot be stored as it is; its session goes on.
        """
        feed = self._sessions.get(session_id)
        if feed is None:
            feed = self._sessions[session_id] = self._open(session_id)
        while self._under_way and (
            len(feed) >= _SESSION_EVENTS_MAX
            or len(self._under_way) >= _EVENTS_MAX
            or self._bytes + size_bytes > _BYTES_MAX
        ):
            self._retire()
        future = None
        if feed.session is not None:
            try:
                future = feed.submit(feed.session, envelope)
            except InvalidEvent:
                raise
            except LogmarkError as error:
                feed.fail(error)
        if future is None:
            feed.refused += 1
            return
        self._under_way.append((feed, future, size_bytes))
        self._bytes += size_bytes

    def finish(self) -> None:
        """Wait for the answers to everything that was handed on."""
        while self._under_way:
            self._retire()

    def _open(self, session_id: str) -> _SessionFeed:
        feed = _SessionFeed(session_id)
        try:
            session = self._runtime.session(session_id)
            feed.highest_seq = session.last_seq
            feed.session = session
        except (LogmarkError, OSError) as error:
            feed.error = error
        return feed

    def _retire(self) -> None:
        feed, future, size_bytes = self._under_way.popleft()
        self._bytes -= size_bytes
        stored = feed.retire(future)
        if stored is None:
            feed.refused += 1
        elif stored:
            self.stored += 1
        else:
            self.repeated += 1
