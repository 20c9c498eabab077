"""The feed: every event of every session of a store, from one iterator, live."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from ._feed_position import Epoch, Place, check_of, decode_position
from ._subscription import check_timeout
from .protocol import (
    CursorAhead,
    Envelope,
    EnvelopeFields,
    ForkedRuntime,
    InvalidArgument,
    LogmarkError,
    RawEnvelope,
    SeqPruned,
    SessionDeleted,
    StaleCursor,
    StorageUnavailable,
    SubscriptionClosed,
    WaitTimeout,
)

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Feed", "FeedEvent"]

_BLOCK_EVENTS_MAX = 256
_BLOCK_BYTES_MAX = 256 * 1024
_RECENT_MAX = 256
_POLL_SHARE = 10  # a poll that takes a second is followed by ten without
_CHECK_BITS = 16


class FeedEvent(Envelope):
    """An event as a feed hands it out: an envelope with its ``position``."""

    __slots__ = ("_place", "_shown")

    _place: Place | str
    _shown: Envelope | None

    @classmethod
    def of(cls, event: Envelope, place: Place | str) -> FeedEvent:
        """Make one of an envelope."""
        self = cls.like(event)
        self._place = place
        self._shown = None if type(event) is Envelope else event  # which shows what is stored in its own way
        return self

    @property
    def fields(self) -> EnvelopeFields:
        """The fields beside session, number and payload."""
        return super().fields if self._shown is None else self._shown.fields

    @property
    def payload(self) -> Any:
        """The payload: any JSON value."""
        return super().payload if self._shown is None else self._shown.payload

    @property
    def position(self) -> str:
        """Where the feed stands behind this event: ``Runtime.feed(after=…)`` goes on from there, in any process.

        Text without blanks, opaque and durable, whose length grows with the number of sessions that the feed has come
        by. It is made when it is asked for, in a time that grows with that number: ask once for many events.
        """
        place = self._place
        if not isinstance(place, str):
            place = self._place = place.encode()
        return place

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the envelope that it is and its position, without what other events' positions are made of."""
        return FeedEvent.of, (self._shown or Envelope.like(self), self.position)


class Feed:
    """An iterator over the events of all sessions of a store, live; made by ``Runtime.feed``.

    Within a session events come in the order of their numbers, each once and none skipped; between sessions there is no
    order, and sessions that have much to tell take turns. New sessions are found, whoever makes them. It rests on one
    number for each session and nothing else, so it does not matter in which order commits become visible.

    What is wrong with one session is raised when it is met, once, and the iteration can go on behind it:
    ``SeqPruned`` (events that were not handed out yet are gone; it goes on with the first that is available),
    ``SessionDeleted``, ``SessionHalted``, ``LogCorrupt``, ``SchemaMismatch`` (the session is passed over until it can
    be read). A position of another store is an error for good: ``CursorAhead``, ``StaleCursor``.

    No thread and no file is held for a session. One thread at a time reads; ``close`` may be called from any.
    """

    def __init__(
        self, runtime: Runtime, *, after: str | None = None, prefix: str = "", timeout: float | None = None
    ) -> None:
        runtime.check_usable()
        if not isinstance(cast("object", prefix), str):
            message = f"prefix is text, not {prefix!r}"
            raise InvalidArgument(message)
        self._runtime = runtime
        self._store = runtime.store
        self._prefix = prefix
        self._timeout = check_timeout(timeout)
        self._reading = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._hints: dict[str, None] = {}
        self._poll_asked = False
        self._closed = False
        self._ready: dict[str, None] = {}
        self._block: deque[RawEnvelope] = deque()
        self._errors: deque[LogmarkError] = deque()
        self._told: dict[str, str] = {}
        self._fatal: LogmarkError | None = None
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._on_change: Callable[[], None] | None = None
        self._vector = {} if after is None or after == "now" else decode_position(after)
        hinted_s = runtime.open_feed(self)
        self._poll_s = max(runtime.limits.watch_interval_s, hinted_s or 0.0)
        self._poll_at = self._look_at = runtime.clock.monotonic()
        if after == "now":
            self._start_now()
        self._epoch = Epoch(dict(self._vector))

    def _start_now(self) -> None:
        for session_id, answer in self._store.last_seqs(self._sessions()).items():
            if isinstance(answer, int):
                self._vector[session_id] = answer << _CHECK_BITS

    def _sessions(self) -> list[str]:
        return [session_id for session_id in self._store.sessions() if session_id.startswith(self._prefix)]

    # -- from others --------------------------------------------------------------------------------------------

    def hint(self, session_id: str | None) -> None:
        """Learn that a session has grown; in any thread."""
        with self._changed:
            if session_id is None:
                self._poll_asked = True
            elif session_id.startswith(self._prefix):
                self._hints[session_id] = None
            else:
                return
            self._changed.notify_all()
        if self._on_change is not None:
            self._on_change()

    def end(self) -> None:
        """Learn that the runtime is closing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._on_change is not None:
            self._on_change()

    def tell(self, on_change: Callable[[], None]) -> None:
        """Have ``on_change`` called, in any thread, whenever there may be something to read; it must not block.

        For readers that poll (``get`` with a timeout of 0); they come by ``poll_in_s`` seconds later at the latest.
        """
        self._on_change = on_change

    # -- for the reader -----------------------------------------------------------------------------------------

    @property
    def position(self) -> str:
        """Where the feed stands behind the event that was handed out last; see ``FeedEvent.position``."""
        return Place(self._epoch, len(self._epoch.log)).encode()

    @property
    def poll_in_s(self) -> float:
        """In how many seconds it is worth looking without having been told."""
        return max(0.0, min(self._poll_at, self._look_at) - self._runtime.clock.monotonic())

    def get(self, timeout: float | None = None) -> FeedEvent:
        """Return the next event, waiting for it.

        Args:
            timeout: seconds; None waits without end, 0 does not wait.

        Raises:
            WaitTimeout: a ``TimeoutError``: none came in time. Nothing is lost: the next call goes on.
            SeqPruned, SessionDeleted, SessionHalted, LogCorrupt, SchemaMismatch: of one session; the next call goes on.
            CursorAhead, StaleCursor: the position is of another store, or of a log that was restored from a copy.
            SubscriptionClosed: the feed or its runtime was closed.
            ForkedRuntime: this is a fork of the process that opened it.
        """
        self._runtime.check_process()
        timeout = check_timeout(timeout)
        with self._reading:
            clock = self._runtime.clock
            deadline = None if timeout is None else clock.monotonic() + timeout
            while True:
                if self._closed:
                    raise SubscriptionClosed(session_id=f"{self._prefix}*")
                if self._fatal is not None:
                    raise self._fatal
                if self._block:
                    return self._hand_out()
                if self._errors:
                    raise self._errors.popleft()
                self._take_hints()
                if self._look_if_due():
                    continue
                if self._ready:
                    self._load(next(iter(self._ready)))
                elif not self._wait(deadline):
                    what = f"an event of a session {self._prefix}*"
                    raise WaitTimeout(session_id="", what=what, timeout_s=timeout or 0)

    def _hand_out(self) -> FeedEvent:
        raw = self._block.popleft()
        event = self._runtime.upcasters.typed(raw.decode())
        session_id = raw.session_id or ""
        self._move(session_id, (raw.event_seq or 0) << _CHECK_BITS | check_of(raw.id))
        return FeedEvent.of(event, Place(self._epoch, len(self._epoch.log)))

    def _move(self, session_id: str, place: int | None) -> None:
        if self._epoch.is_full:
            self._epoch = Epoch(dict(self._vector))
        if place is None:
            self._vector.pop(session_id, None)
        else:
            self._vector[session_id] = place
        self._epoch.log.append((session_id, place))

    def _take_hints(self) -> None:
        with self._changed:
            hints, self._hints = self._hints, {}
            if self._poll_asked:
                self._poll_asked = False
                self._poll_at = self._runtime.clock.monotonic()
        for session_id in hints:
            self._ready[session_id] = None
            self._note_recent(session_id)

    def _note_recent(self, session_id: str) -> None:
        self._recent[session_id] = None
        self._recent.move_to_end(session_id)
        if len(self._recent) > _RECENT_MAX:
            self._recent.popitem(last=False)

    def _wait(self, deadline: float | None) -> bool:
        """Wait for a hint or for the next look; False when the deadline has passed."""
        clock = self._runtime.clock
        with self._changed:
            if self._hints or self._poll_asked or self._closed:
                return True
            now = clock.monotonic()
            if deadline is not None and now >= deadline:
                return False
            until = min(self._poll_at, self._look_at)
            if deadline is not None:
                until = min(until, deadline)
            self._changed.wait(max(0.0, until - now))
        return True

    # -- looking ------------------------------------------------------------------------------------------------

    def _look_if_due(self) -> bool:
        """Look at the store when it is time: at all of it now and then, more often at who has grown lately."""
        clock = self._runtime.clock
        began = clock.monotonic()
        if began >= self._poll_at:
            self._poll_at = self._look_at = began + self._poll_s  # also when the store does not answer
            self._poll()
            took_s = clock.monotonic() - began
            self._poll_at = began + took_s + max(self._poll_s, _POLL_SHARE * took_s)
            self._look_at = self._poll_at if not self._recent else clock.monotonic() + self._poll_s
            return True
        if began >= self._look_at:
            self._look_at = began + self._poll_s
            self._compare(list(self._recent))
            took_s = clock.monotonic() - began
            self._look_at = began + took_s + max(self._poll_s, _POLL_SHARE * took_s)
            return True
        return False

    def _poll(self) -> None:
        sessions = self._sessions()
        self._compare(sessions)
        known = set(sessions)
        for session_id in [each for each in self._vector if each not in known and each.startswith(self._prefix)]:
            info = self._store.info(session_id)
            if info.deleted:
                self._compare([session_id])
            elif self._vector[session_id] >> _CHECK_BITS > info.last_seq:
                self._fail(session_id, info.last_seq)

    def _compare(self, sessions: list[str]) -> None:
        """See which sessions have more than was handed out."""
        if not sessions:
            return
        for session_id, answer in self._store.last_seqs(sessions).items():
            if isinstance(answer, int):
                seq = self._vector.get(session_id, 0) >> _CHECK_BITS
                if answer > seq:
                    self._ready[session_id] = None
                elif answer < seq and self._store.info(session_id).next_seq <= seq:
                    self._fail(session_id, answer)
            elif isinstance(answer, LogmarkError) and not isinstance(answer, StorageUnavailable):
                self._tell_once(session_id, answer)
            else:
                raise answer

    def _fail(self, session_id: str, last_seq: int) -> None:
        cursor = self._vector[session_id] >> _CHECK_BITS
        self._fatal = CursorAhead(session_id=session_id, cursor=cursor, last_seq=last_seq)

    def _tell_once(self, session_id: str, error: LogmarkError) -> None:
        """Raise what is wrong with a session at the next call, unless that was done."""
        self._ready.pop(session_id, None)
        if isinstance(error, SessionDeleted):
            self._recent.pop(session_id, None)
            if session_id not in self._vector:
                return  # nothing of it was ever handed out
            self._move(session_id, None)
        elif self._told.get(session_id) == str(error):
            return
        else:
            self._told[session_id] = str(error)
        self._errors.append(error)

    # -- reading ------------------------------------------------------------------------------------------------

    def _load(self, session_id: str) -> None:
        """Read the next block of a session, and put it behind the others if there may be more."""
        del self._ready[session_id]
        place = self._vector.get(session_id, 0)
        seq, check = place >> _CHECK_BITS, place & 0xFFFF
        size_bytes = 0
        try:
            # From the one that was handed out last, to see that it still is; from the next, when nobody knows it.
            for event in self._store.read(session_id, from_seq=seq if check else seq + 1):
                number = event.event_seq or 0
                if number <= seq:
                    if number == seq and check_of(event.id) != check:
                        was, found = f"…{check:04x}", event.id or ""
                        self._fatal = StaleCursor(
                            session_id=session_id, name="feed", seq=seq, event_id=was, found_id=found
                        )
                        return
                    continue
                self._block.append(event)
                size_bytes += event.stored_bytes
                if len(self._block) >= _BLOCK_EVENTS_MAX or size_bytes >= _BLOCK_BYTES_MAX:
                    self._ready[session_id] = None
                    break
        except SeqPruned as error:
            self._pruned(session_id, seq, error)
        except (ForkedRuntime, StorageUnavailable):
            self._ready[session_id] = None  # the store's trouble, not the session's: tried again
            raise
        except LogmarkError as error:
            if self._block:
                self._ready[session_id] = None  # what came before it first
            else:
                self._tell_once(session_id, error)
        else:
            self._told.pop(session_id, None)
        if self._block:
            self._note_recent(session_id)

    def _pruned(self, session_id: str, seq: int, error: SeqPruned) -> None:
        self._ready[session_id] = None
        if self._block:
            return  # while it was read: what was read first
        if error.first_available > seq + 1:
            missing = SeqPruned(session_id=session_id, seq=seq + 1, first_available=error.first_available)
            self._errors.append(missing)
        self._move(session_id, (error.first_available - 1) << _CHECK_BITS)

    # -- iterating ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[FeedEvent]:
        """Iterate until the feed is closed, or nothing came for ``timeout`` seconds."""
        return self

    def __next__(self) -> FeedEvent:
        """Return the next event; StopIteration at the end. After an error of one session it goes on."""
        try:
            return self.get(self._timeout)
        except (SubscriptionClosed, WaitTimeout):
            raise StopIteration from None

    def close(self) -> None:
        """End the iteration, in whatever thread it is. A second call does nothing, nor does one in a forked child."""
        try:
            self._runtime.check_process()
        except ForkedRuntime:
            return
        self._runtime.close_feed(self)
        self.end()

    def __enter__(self) -> Self:
        """Return the feed; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the feed."""
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._vector)} sessions"
        return f"<Feed {self._prefix}* {state}>"
