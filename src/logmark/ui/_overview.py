"""The sessions of a store as they are now, sampled once for every browser that looks."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from .._cursor import cursor_marks
from ..cli._text import error_text, printable
from ..protocol import LogCorrupt, LogmarkError, SchemaMismatch
from ..storage import SessionInfo

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["Overview", "info_of"]

_INTERVAL_S = 1.0
_RATE_WINDOW_S = 5.0
_CURSORS_OF_SESSIONS_MAX = 100  # in a store of more, reading them all each second would be work
_PAUSE_FACTOR = 5  # a store that takes long to look at is looked at less often

Row = dict[str, Any]


def info_of(runtime: Runtime, session_id: str) -> SessionInfo:
    """Return what is known of a session, also when its log is damaged, as ``Runtime.sessions`` does.

    Raises:
        StorageUnavailable: the store cannot be reached.
    """
    try:
        return runtime.store.info(session_id)
    except (LogCorrupt, SchemaMismatch) as error:
        bad_seq = error.event_seq if isinstance(error, LogCorrupt) else None
        good = max(0, (bad_seq or 1) - 1)
        return SessionInfo(session_id=session_id, last_seq=good, next_seq=good + 1, damage=str(error))


def _describe(info: SessionInfo) -> Row:
    return {
        "id": info.session_id,
        "last": info.last_seq,
        "next": info.next_seq,
        "first": max(info.first_available, 1),
        "halted": None if info.halted is None else printable(info.halted),
        "damage": None if info.damage is None else printable(info.damage),
        "sealed": info.sealed,
    }


class Overview:
    """Samples the sessions while somebody looks. Safe from any thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._log = runtime.log.bind(actor="page")
        self._mutex = threading.Lock()
        self._wake = threading.Event()
        self._samples: dict[str, deque[tuple[float, int]]] = {}
        self._rows: dict[str, Row] = {}
        self._error: str | None = None
        self._listeners: set[threading.Event] = set()
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, listener: threading.Event) -> None:
        """Set an event after each sample from now on."""
        with self._mutex:
            self._listeners.add(listener)
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="page-overview", daemon=True)
                self._thread.start()
        self._wake.set()

    def remove(self, listener: threading.Event) -> None:
        """Undo ``add``."""
        with self._mutex:
            self._listeners.discard(listener)

    def now(self) -> tuple[dict[str, Row], str | None]:
        """Return the sessions by id as they were last seen, and why they could not be seen, if so."""
        with self._mutex:
            return self._rows, self._error

    def close(self) -> None:
        """Stop sampling."""
        with self._mutex:
            self._closing = True
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join(self._runtime.limits.close_wait_s)

    def _run(self) -> None:
        while True:
            began = self._runtime.clock.monotonic()
            self._sample(began)
            took_s = self._runtime.clock.monotonic() - began
            with self._mutex:
                listeners = tuple(self._listeners)
            for listener in listeners:
                listener.set()
            self._wake.wait(max(_INTERVAL_S, took_s * _PAUSE_FACTOR) if listeners else None)
            self._wake.clear()
            if self._closing:
                return

    def _sample(self, now: float) -> None:
        rows: dict[str, Row] = {}
        error: str | None = None
        lags: dict[str, int] = {}
        for subscription in self._runtime.subscriptions():
            lags[subscription.session_id] = max(subscription.lag, lags.get(subscription.session_id, 0))
        try:
            for info in self._runtime.sessions():
                if self._closing:
                    return
                rows[info.session_id] = self._row(info, now, lags.get(info.session_id))
        except Exception as failure:  # whatever it is, who looks is told, and the next sample may be better
            if not isinstance(failure, LogmarkError | OSError):
                self._log.error("page_overview_failed", exc_info=failure)
            error = error_text(failure)
            rows = self._rows
        for gone in self._samples.keys() - rows.keys():
            del self._samples[gone]
        with self._mutex:
            self._rows, self._error = rows, error

    def _row(self, info: SessionInfo, now: float, lag: int | None) -> Row:
        samples = self._samples.setdefault(info.session_id, deque())
        samples.append((now, info.last_seq))
        while len(samples) > 2 and now - samples[0][0] > _RATE_WINDOW_S:  # noqa: PLR2004 - a rate needs two
            samples.popleft()
        since, before = samples[0]
        rate = (info.last_seq - before) / (now - since) if now > since else 0.0
        return {**_describe(info), "rate": round(max(0.0, rate), 1), "lag": self._lag(info, lag)}

    def _lag(self, info: SessionInfo, lag: int | None) -> int | None:
        """Return how far the furthest reader is behind, of those followed here and of the cursors; None without any."""
        lags = [] if lag is None else [lag]
        if len(self._rows) <= _CURSORS_OF_SESSIONS_MAX:
            with contextlib.suppress(LogmarkError):  # what is wrong is told beside it
                lags += [mark.lag for mark in cursor_marks(self._runtime.store, info.session_id)]
        return max(lags, default=None)
