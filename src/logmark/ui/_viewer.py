"""One browser: what it asks for, and what it is told without asking.

A reader thread answers questions in their order. A second thread tells what is new: events of the session that is open
(through a subscription, like any follower's), marks of its jobs, the sessions of the store. What a browser is told is
bounded per moment and not per event: numbers are all it needs to ask for whatever it was not sent.

Frames are JSON objects with an ``op``; the list is in ``docs/ui.md``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import orjson
from websockets.exceptions import ConnectionClosed, WebSocketException

from .._cursor import cursor_marks
from ..cli._text import error_text, printable
from ..protocol import (
    SEQ_MAX,
    JobMark,
    JobMarks,
    LogmarkError,
    RawEnvelope,
    SubscriptionClosed,
    WaitTimeout,
)
from ._overview import info_of
from ._reading import Filter, event_in_full, find, row_of, window

if TYPE_CHECKING:
    from websockets.sync.server import ServerConnection

    from .._runtime import Runtime
    from .._session import Session
    from .._subscription import Subscription
    from ._page import Hall

__all__ = ["FRAME_BYTES_MAX", "Viewer"]

FRAME_BYTES_MAX = 64 * 1024
LIVE_ROWS_MAX = 200
_PROTOCOL = 1
_LOGIN_WAIT_S = 10.0
_PACE_S = 0.08
_DRAIN_S = 0.25
_MARKS_PACE_S = 0.4
_RETRY_S = 1.0
_JOBS_MAX = 1000
_TEXTS_MAX = 16
_CURSORS_MAX = 50
_FOLDED_EVENTS_MAX = 200_000
_BAD_TOKEN = 4401
_BAD_FRAME = 1008

Frame = dict[str, Any]


class _BadFrame(Exception):
    """The browser has sent what no page of ours would."""


def _text(frame: Frame, name: str, characters_max: int = 1000) -> str:
    value = frame.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= characters_max:
        raise _BadFrame(name)
    return value


def _number(frame: Frame, name: str) -> int:
    value = frame.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= SEQ_MAX:
        raise _BadFrame(name)
    return value


def _texts(frame: Frame, name: str) -> tuple[str, ...]:
    values: Any = frame.get(name, [])
    if not isinstance(values, list):
        raise _BadFrame(name)
    texts = cast("Sequence[Any]", values)
    if len(texts) > _TEXTS_MAX or not all(isinstance(each, str) and each for each in texts):
        raise _BadFrame(name)
    return tuple(texts)


def _readers(runtime: Runtime, session_id: str, seq: int) -> Frame:
    """Return how many subscribers of this process have taken an event or are still before it, and all cursors."""
    taken = [each.next_seq > seq for each in runtime.subscriptions() if each.session_id == session_id]
    cursors: list[tuple[str, int]] = []
    with contextlib.suppress(LogmarkError):  # then nothing is known of them
        cursors = [(printable(mark.name), mark.position) for mark in cursor_marks(runtime.store, session_id)]
    return {"taken": sum(taken), "before": len(taken) - sum(taken), "cursors": cursors[:_CURSORS_MAX]}


@dataclasses.dataclass(slots=True)
class _Followed:
    """The session that a browser has open.

    Attributes:
        told: the highest number that the browser was told of.
        sent_marks: what it knows of each job.
        marks: what an actor has answered since, to be told; its error when there are none to be had.
        asked: whether an answer is under way.
    """

    session: Session
    told: int
    subscription: Subscription | None = None
    trouble: str | None = None
    retry_at: float = 0.0
    marks: list[JobMark] | LogmarkError | None = None
    marks_due: bool = True
    marks_at: float = 0.0
    asked: bool = False
    sent_marks: dict[str, JobMark] = dataclasses.field(default_factory=dict[str, JobMark])
    notes_told: int = 0


class Viewer:
    """One connection."""

    def __init__(self, hall: Hall, connection: ServerConnection) -> None:
        self._hall = hall
        self._runtime = hall.runtime
        self._connection = connection
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._mutex = threading.Lock()
        self._wanted: tuple[str, int] | None = None
        self._wanted_changed = False
        self._shown: dict[str, Frame] = {}
        self._shown_error: str | None = None
        self._verifying = threading.Lock()
        self._teller: threading.Thread | None = None
        self._answers: dict[str, Callable[[Frame], None]] = {
            "open": self._open,
            "close": self._close_session,
            "window": self._window,
            "find": self._find,
            "event": self._event,
            "verify": self._verify,
        }

    # -- the connection ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve the connection until it ends."""
        if not self._let_in():
            return
        self._teller = threading.Thread(target=self._tell, name="page-teller", daemon=True)
        self._teller.start()
        self._hall.overview.add(self._wake)
        try:
            while True:
                self._take(self._connection.recv())
        except _BadFrame as error:
            self._connection.close(_BAD_FRAME, f"not understood: {str(error)[:60]}")
        except ConnectionClosed:
            return

    def _let_in(self) -> bool:
        """Read the first frame, which has the token."""
        try:
            frame = self._parse(self._connection.recv(_LOGIN_WAIT_S))
            token = _text(frame, "token") if frame.get("op") == "hello" else ""
        except (TimeoutError, ConnectionClosed, _BadFrame):
            token = ""
        principal = self._hall.principal_of(token)
        if principal is None:
            address = self._connection.remote_address
            peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unknown"
            self._hall.log.warning("page_login_refused", peer=peer)
            self._connection.close(_BAD_TOKEN, "this token is not known")
            return False
        from importlib.metadata import version

        self._send(
            {
                "op": "welcome",
                "v": _PROTOCOL,
                "store": printable(self._runtime.store.url),
                "version": version("logmark"),
                "principal": principal,
                "writing": self._hall.trails is not None,
            }
        )
        return True

    def _parse(self, data: str | bytes) -> Frame:
        try:
            frame = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise _BadFrame("JSON") from error
        if not isinstance(frame, dict):
            raise _BadFrame("object")
        return cast("Frame", frame)

    def _take(self, data: str | bytes) -> None:
        frame = self._parse(data)
        answer = self._answers.get(str(frame.get("op")))
        if answer is None:
            raise _BadFrame("op")
        try:
            answer(frame)
        except (LogmarkError, OSError) as error:
            self._send({"op": "failed", "id": frame.get("id"), "text": error_text(error)})

    def _send(self, frame: Frame) -> None:
        self._connection.send(orjson.dumps(frame), text=True)

    def abort(self) -> None:
        """End the connection at once, from any thread."""
        self._ended.set()
        self._wake.set()
        with contextlib.suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Stop telling, after the connection has ended."""
        self._hall.overview.remove(self._wake)
        self._ended.set()
        self._wake.set()
        if self._teller is not None:
            self._teller.join(self._runtime.limits.close_wait_s)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _open(self, frame: Frame) -> None:
        session_id, told = _text(frame, "session"), _number(frame, "told")
        self._runtime.session(session_id)  # refuses what is no id
        with self._mutex:
            self._wanted, self._wanted_changed = (session_id, told), True
        self._wake.set()

    def _close_session(self, _frame: Frame) -> None:
        with self._mutex:
            self._wanted, self._wanted_changed = None, True
        self._wake.set()

    def _window(self, frame: Frame) -> None:
        found = window(self._runtime, _text(frame, "session"), _number(frame, "from"), _number(frame, "to"))
        self._send({"op": "window", "id": frame.get("id"), **found})

    def _find(self, frame: Frame) -> None:
        wanted = Filter(
            job=None if frame.get("job") is None else _text(frame, "job"),
            types=_texts(frame, "types"),
            words=_texts(frame, "words"),
        )
        after = None if frame.get("after") is None else _number(frame, "after")
        before = None if frame.get("before") is None else _number(frame, "before")
        found = find(self._runtime, _text(frame, "session"), wanted, after=after, before=before)
        self._send({"op": "find", "id": frame.get("id"), **found})

    def _event(self, frame: Frame) -> None:
        session_id, seq = _text(frame, "session"), _number(frame, "seq")
        found = event_in_full(self._runtime, session_id, seq)
        trail = None if self._hall.trails is None else self._hall.trails.of(session_id, seq)
        readers = _readers(self._runtime, session_id, seq)
        self._send({"op": "event", "id": frame.get("id"), "event": found, "trail": trail, "readers": readers})

    def _verify(self, frame: Frame) -> None:
        session_id = _text(frame, "session")
        if not self._verifying.acquire(blocking=False):
            self._send({"op": "failed", "id": frame.get("id"), "text": "a session is being verified already"})
            return
        thread = threading.Thread(
            target=self._verify_aside, args=(session_id, frame.get("id")), name="page-verifier", daemon=True
        )
        try:
            thread.start()
        except BaseException:
            self._verifying.release()
            raise

    def _verify_aside(self, session_id: str, number: Any) -> None:
        """Read a whole session without keeping the browser's other questions waiting."""
        answer: Frame
        with self._hall.verifying:
            try:
                findings = [] if self._ended.is_set() else self._runtime.store.verify(session_id)
                answer = {
                    "op": "verify",
                    "id": number,
                    "findings": [
                        {
                            "kind": each.kind,
                            "detail": printable(each.detail),
                            "harmless": each.harmless,
                            "seq": each.event_seq,
                            "place": None if each.place is None else printable(each.place),
                        }
                        for each in findings
                    ],
                }
            except (LogmarkError, OSError) as error:
                answer = {"op": "failed", "id": number, "text": error_text(error)}
        self._verifying.release()
        with contextlib.suppress(WebSocketException, OSError):  # the browser is gone
            self._send(answer)

    # -- what is told without being asked ---------------------------------------------------------------------------

    def _tell(self) -> None:
        followed: _Followed | None = None
        try:
            while True:
                self._wake.wait(_RETRY_S)
                self._wake.clear()
                if self._ended.is_set():
                    return
                with self._mutex:
                    wanted, changed, self._wanted_changed = self._wanted, self._wanted_changed, False
                if changed:
                    self._unfollow(followed)
                    followed = None if wanted is None else self._begin(*wanted)
                    if followed is None and wanted is not None:
                        with self._mutex:
                            self._wanted_changed = True  # to be tried again, unless it is another one by then
                if followed is not None:
                    self._follow(followed)
                self._tell_sessions()
                self._ended.wait(_PACE_S)  # what comes in the meantime is told at once, in one frame
        except (WebSocketException, OSError):
            return  # the browser is gone
        except Exception as error:
            self._hall.log.error("page_connection_failed", exc_info=error)
            self.abort()
        finally:
            self._unfollow(followed)

    def _begin(self, session_id: str, told: int) -> _Followed | None:
        """Tell how far a session goes; None when the store cannot say so at the moment."""
        try:
            session = self._runtime.session(session_id)
            info = info_of(self._runtime, session_id)
        except LogmarkError as error:
            self._send({"op": "trouble", "session": session_id, "text": error_text(error), "last": told})
            return None
        # A browser that comes back is told of what it missed, unless that is so much that it had better ask for it.
        start = told if 0 < told <= info.last_seq <= told + LIVE_ROWS_MAX else info.last_seq
        self._send(
            {
                "op": "opened",
                "session": session_id,
                "first": info.first_available,
                "last": start,
                "next": info.next_seq,
            }
        )
        return _Followed(session, start)

    def _unfollow(self, followed: _Followed | None) -> None:
        if followed is not None and followed.subscription is not None:
            followed.subscription.close()
            followed.subscription = None

    def _follow(self, followed: _Followed) -> None:
        """Tell what there is of the open session: events, then marks, then troubles."""
        now = self._runtime.clock.monotonic()
        if followed.subscription is None and now >= followed.retry_at:
            followed.retry_at = now + _RETRY_S
            try:
                last_seq = followed.session.last_seq
                if last_seq > followed.told + LIVE_ROWS_MAX:
                    followed.told = last_seq - LIVE_ROWS_MAX
                followed.subscription = followed.session.follow(followed.told + 1, on_change=self._wake.set)
            except LogmarkError as error:
                self._in_trouble(followed, error)
        if followed.subscription is not None:
            self._tell_events(followed, followed.subscription)
        self._tell_marks(followed, now)
        if self._hall.trails is not None:
            notes = self._hall.trails.notes(followed.session.session_id, followed.notes_told)
            if notes:
                followed.notes_told = notes[-1]["n"]
                self._send({"op": "notes", "session": followed.session.session_id, "notes": notes})

    def _tell_events(self, followed: _Followed, subscription: Subscription) -> None:
        rows: deque[RawEnvelope] = deque(maxlen=LIVE_ROWS_MAX)
        deadline = self._runtime.clock.monotonic() + _DRAIN_S
        try:
            for count in range(1, 1_000_000):
                rows.append(subscription.get_raw(0))
                if count % LIVE_ROWS_MAX == 0 and self._runtime.clock.monotonic() > deadline:
                    self._wake.set()
                    break
        except WaitTimeout:
            if followed.trouble is not None:
                self._say_trouble(followed, None)
        except (SubscriptionClosed, LogmarkError) as error:
            self._unfollow(followed)
            self._in_trouble(followed, error)
        last_seq = max(followed.told, subscription.next_seq - 1)
        if last_seq > followed.told or rows:
            followed.told = last_seq
            followed.marks_due = True
            session_id = followed.session.session_id
            self._send({"op": "live", "session": session_id, "last": last_seq, "rows": [row_of(row) for row in rows]})
        if subscription.lag > 10 * LIVE_ROWS_MAX:
            # Far behind a burst: what lies between is there when the browser asks for it.
            self._unfollow(followed)
            followed.retry_at = 0.0
            self._wake.set()

    def _in_trouble(self, followed: _Followed, error: LogmarkError) -> None:
        text = error_text(error)
        if text != followed.trouble:
            self._say_trouble(followed, text)

    def _say_trouble(self, followed: _Followed, text: str | None) -> None:
        """Tell why events cannot be followed, and how far the log goes, which is not as far as they were told."""
        followed.trouble = text
        session_id = followed.session.session_id
        last_seq = followed.told
        with contextlib.suppress(LogmarkError):  # it is what the trouble is about
            last_seq = max(last_seq, info_of(self._runtime, session_id).last_seq)
        self._send({"op": "trouble", "session": session_id, "text": text, "last": last_seq})

    # -- marks ------------------------------------------------------------------------------------------------------

    def _tell_marks(self, followed: _Followed, now: float) -> None:
        with self._mutex:
            marks, followed.marks = followed.marks, None
        if marks is not None:
            self._send_marks(followed, marks if isinstance(marks, list) else self._fold(followed.session))
        if followed.marks_due and not followed.asked and now - followed.marks_at >= _MARKS_PACE_S:
            followed.marks_due, followed.asked, followed.marks_at = False, True, now

            def answer(given: list[JobMark] | LogmarkError) -> None:
                with self._mutex:
                    followed.asked, followed.marks = False, given
                self._wake.set()

            known = self._hall.overview.now()[0].get(followed.session.session_id, {})
            if known.get("halted") or known.get("damage"):
                answer(self._fold(followed.session))  # its actor could not, and would say so in the log
                return
            try:
                followed.session.ask_marks(None, answer)
            except LogmarkError as error:
                answer(error)

    def _fold(self, session: Session) -> list[JobMark]:
        """Return the marks of a session that is halted or damaged, as far as its log can be read."""
        marks = JobMarks(self._runtime.types, rule_failed=lambda _event, _error: None)
        with contextlib.suppress(LogmarkError):
            marks.apply(session.read_raw(1, _FOLDED_EVENTS_MAX, halted_ok=True))
        return marks.all()

    def _send_marks(self, followed: _Followed, marks: list[JobMark]) -> None:
        latest: Iterable[JobMark] = marks
        if len(marks) > _JOBS_MAX:
            latest = sorted(marks, key=lambda mark: mark.last_seq)[-_JOBS_MAX:]
        changed = [mark for mark in latest if followed.sent_marks.get(mark.job_id) != mark]
        if changed or not followed.sent_marks:
            followed.sent_marks = {mark.job_id: mark for mark in latest}
            self._send(
                {
                    "op": "jobs",
                    "session": followed.session.session_id,
                    "total": len(marks),
                    "marks": [
                        [mark.job_id, mark.first_seq, mark.last_seq, mark.count, printable(mark.status)]
                        for mark in changed
                    ],
                }
            )

    # -- sessions ---------------------------------------------------------------------------------------------------

    def _tell_sessions(self) -> None:
        """Tell which sessions have changed since they were last told."""
        rows, error = self._hall.overview.now()
        if rows is self._shown and error == self._shown_error:
            return
        changed = [row for session_id, row in rows.items() if self._shown.get(session_id) != row]
        gone = [session_id for session_id in self._shown if session_id not in rows]
        if changed or gone or error != self._shown_error or not self._shown:
            self._send({"op": "sessions", "changed": changed, "gone": gone, "error": error})
        self._shown, self._shown_error = rows, error
