"""Word of what others append: NOTIFY after a commit, LISTEN where somebody follows.

A notification is a hint and no part of an append. Sent in the append's own transaction it would make all commits of
the database wait for each other, as PostgreSQL takes one lock for all transactions that notify and holds it over the
wait for the disk. So it is sent afterwards, on a connection of its own, once for many appends. One that is lost, with
its sender or with a connection, costs time and nothing else: followers look at the log by themselves now and then, and
the log decides what is there.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import psycopg

from ._logging import Logger
from ._postgres_pool import Connection, Connections, ServerTooWeak, Unreachable, hang_up

__all__ = ["Listener", "Notifier", "channel_of"]

_PAYLOAD_CHARS_MAX = 7900  # the server takes 7999 bytes
_GAP_S = 0.005
_ASK_S = 0.25
_PAUSE_S = 0.1
_PAUSE_S_MAX = 1.0
_SLICE_S = 1.0
_CONNECT_S = 5.0
_LOCK_KEY = 0x6C6F676D  # "logm"
# Whoever listens holds an advisory lock, which all can see whatever their role.
_LISTENS = "SELECT pg_advisory_lock_shared(%s, hashtext(%s))"
_NOTIFY = """
    SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS each (payload)
    WHERE EXISTS (
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = (hashtext(%s)::bigint & 4294967295)::oid
            AND objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND pid <> ALL (%s::int[])
    )
"""


def channel_of(schema: str) -> str:
    """Return the channel of the store in a schema; channels are the database's own."""
    return f"lm_{schema.encode().hex()}"[:63]


class _Worker:
    """A thread with a connection of its own, which it makes again whenever it is lost."""

    name: str
    _may_finish = True
    """Whether what is under way is waited for at the end."""

    def __init__(self, connections: Connections, log: Logger) -> None:
        self._connections = connections
        self._log = log
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None

    def _start(self) -> None:
        """Start the thread unless it runs; the condition is held."""
        if self._thread is not None or self._closed:
            return
        thread = threading.Thread(target=self._run, name=f"logmark-postgres-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: followers look for themselves
            return
        self._thread = thread

    def _run(self) -> None:
        pause_s = _PAUSE_S
        while not self._closed:
            try:
                connection = self._connections.connect(time.monotonic() + _CONNECT_S)
                try:
                    pause_s = _PAUSE_S
                    with self._changed:
                        self._connection = connection
                    self._work(connection)
                finally:
                    with self._changed:
                        self._connection = None
                    connection.close()
            except (Unreachable, ServerTooWeak, psycopg.Error) as error:
                self._log.debug("hints_interrupted", reason=str(error).strip())
            with self._changed:
                if not self._closed:
                    self._changed.wait(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    def _work(self, connection: Connection) -> None:
        raise NotImplementedError

    def _is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
            if self._connection is not None and not self._may_finish:
                hang_up(self._connection)
        if thread is not None and thread is not threading.current_thread():
            thread.join(2 * _SLICE_S + _CONNECT_S)


class Notifier(_Worker):
    """Tells the other processes which sessions were appended to, as long as one of them listens.

    Whether one does is asked when it was last known not to, and at most so often: a program without followers elsewhere
    pays next to nothing, and the first hints to a new follower come a little later.
    """

    name = "notify"

    def __init__(self, connections: Connections, channel: str, log: Logger) -> None:
        super().__init__(connections, log)
        self._channel = channel
        self._pending: dict[str, None] = {}
        self._is_heard = True
        self.own_listeners: set[int] = set()
        """Backends of this process that listen; they need not be told what it has done itself."""

    def appended(self, session_id: str) -> None:
        """Have the others told; returns at once."""
        if session_id in self._pending:
            return
        with self._changed:
            self._pending[session_id] = None
            if self._is_heard:
                self._changed.notify()
            self._start()

    def _work(self, connection: Connection) -> None:
        connection.deadline = time.monotonic() + _CONNECT_S
        connection.execute("SET synchronous_commit = off")  # there is nothing to keep
        while True:
            with self._changed:
                if not self._is_heard and not self._closed:
                    self._changed.wait(_ASK_S)
                while not self._pending and not self._closed:
                    self._changed.wait(_SLICE_S)
                if self._closed and not (self._pending and self._is_heard):
                    return
                sessions = list(self._pending)
                self._pending.clear()
            connection.deadline = time.monotonic() + _CONNECT_S
            row = connection.execute(_NOTIFY, (self._channel, _payloads(sessions), *self._heard_by())).fetchone()
            with self._changed:
                self._is_heard = row is not None
                if not self._closed:
                    self._changed.wait_for(lambda: self._closed, _GAP_S)  # what comes meanwhile shares the next one

    def _heard_by(self) -> tuple[int, str, list[int]]:
        return _LOCK_KEY, self._channel, list(self.own_listeners)


def _payloads(sessions: list[str]) -> list[str]:
    """Return the session ids in hexadecimal, as many in a notification as go in."""
    payloads: list[str] = []
    for session_id in sessions:
        word = session_id.encode().hex()
        if payloads and len(payloads[-1]) + len(word) < _PAYLOAD_CHARS_MAX:
            payloads[-1] += f" {word}"
        else:
            payloads.append(word)
    return payloads


class Listener(_Worker):
    """Hears which sessions others have appended to.

    Args:
        connections: to the server.
        channel: of the store.
        changed: gets each session, and None after a time in which something may have been missed.
        notifier: of the same store; learns which backend listens here.
        log: where interruptions go.
    """

    name = "listen"
    _may_finish = False

    def __init__(
        self,
        connections: Connections,
        channel: str,
        changed: Callable[[str | None], None],
        notifier: Notifier,
        log: Logger,
    ) -> None:
        super().__init__(connections, log)
        self._channel = channel
        self._tell = changed
        self._notifier = notifier

    def start(self) -> None:
        """Begin to listen."""
        with self._changed:
            self._start()

    def _work(self, connection: Connection) -> None:
        connection.deadline = time.monotonic() + _CONNECT_S
        backend = connection.info.backend_pid
        connection.execute(f'LISTEN "{self._channel}"'.encode())
        connection.execute(_LISTENS, (_LOCK_KEY, self._channel))
        self._notifier.own_listeners.add(backend)
        try:
            self._tell(None)
            connection.deadline = math.inf
            while not self._is_closed():
                for notification in connection.notifies(timeout=_SLICE_S):
                    self._hear(notification.payload)
                    if self._is_closed():
                        return
        finally:
            self._notifier.own_listeners.discard(backend)

    def _hear(self, payload: str) -> None:
        try:
            sessions = [bytes.fromhex(word).decode() for word in payload.split(" ")]
        except ValueError:  # not one of ours
            self._tell(None)
            return
        for session_id in sessions:
            self._tell(session_id)
