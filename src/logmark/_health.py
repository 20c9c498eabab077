"""How a runtime is: a plain object, made without waiting for the disk."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .actors import Instruments, Notice
from .protocol import Clock
from .storage import EventStore

if TYPE_CHECKING:
    from ._subscription import Subscription
    from .actors import Gate

__all__ = ["Health", "LastError", "Monitor", "Status"]

Status = Literal["ok", "degraded", "unavailable", "closing", "closed"]

_PROBE_WAIT_S = 0.25
_PROBE_FRESH_S = 1.0
_STALLED_S = 10.0
_HALTED_MAX = 10_000
_USERINFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.]*://[^/?#@:]*):[^/?#]*@")
_SECRET = re.compile(r"(?i)([?&][^=&]*(?:password|secret|token|passwd)[^=&]*=)[^&#]*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LastError:
    """The last error of the log: its event, the session if it has one, when it was, and what it said."""

    event: str
    session_id: str | None
    at: dt.datetime
    detail: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a runtime was at one moment. Made by ``Runtime.health``; frozen, and nothing in it is shared.

    Attributes:
        status: ``ok``; ``degraded``: it works, but something needs a person; ``unavailable``: the store does not
            answer; ``closing``, ``closed``.
        problems: a word for each thing that keeps it from being ``ok``: ``store_unreachable``, ``session_halted``,
            ``append_stalled``, ``closing``, ``closed``, ``forked``.
        at: when it was asked.
        store: the store's URL, without passwords.
        reachable: whether the store answered within a quarter of a second, or a second ago; None when it was not asked.
        sessions: session objects that the runtime holds.
        halted: ids of sessions known to be halted: those that this runtime has seen halt, and not repaired since.
        inbox_events, inbox_bytes: accepted and not yet answered, of all sessions.
        oldest_append_s: age of the oldest append that the disk has not answered, 0 when there is none.
        writers: threads that write.
        restarts: actors that were restarted, since the runtime was opened.
        given_up: actors that failed too often and were stopped for good.
        subscriptions: those that are open.
        lag: how many events the log is ahead of all subscribers together.
        lag_max: the same of the one that is furthest behind.
        last_error: the last error in the log, or None.
    """

    status: Status
    problems: tuple[str, ...]
    at: dt.datetime
    store: str
    reachable: bool | None
    sessions: int
    halted: tuple[str, ...]
    inbox_events: int
    inbox_bytes: int
    oldest_append_s: float
    writers: int
    restarts: int
    given_up: int
    subscriptions: int
    lag: int
    lag_max: int
    last_error: LastError | None

    @property
    def is_serving(self) -> bool:
        """Whether appends and reads can be expected to work: ``ok`` or ``degraded``."""
        return self.status in {"ok", "degraded"}

    def public(self) -> dict[str, Any]:
        """Return what anybody may know, as JSON values: numbers and words, no id, path or text of an error."""
        error = self.last_error
        return {
            "status": self.status,
            "problems": list(self.problems),
            "at": _text(self.at),
            "engine": self.store.partition(":")[0],
            "reachable": self.reachable,
            "sessions": self.sessions,
            "sessions_halted": len(self.halted),
            "inbox_events": self.inbox_events,
            "inbox_bytes": self.inbox_bytes,
            "oldest_append_s": round(self.oldest_append_s, 3),
            "writers": self.writers,
            "restarts": self.restarts,
            "given_up": self.given_up,
            "subscriptions": self.subscriptions,
            "lag": self.lag,
            "lag_max": self.lag_max,
            "last_error": None if error is None else {"event": error.event, "at": _text(error.at)},
        }


class _Session(Protocol):
    @property
    def gate(self) -> Gate | None:
        """The bound of its inbox, once it has one."""
        ...


class Monitor:
    """Notes what a runtime's log warns of, and asks the store whether it is there.

    Args:
        store: the store.
        clock: the time.
    """

    def __init__(self, store: EventStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._mutex = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self._halted: dict[str, None] = {}
        self._last_error: LastError | None = None
        self._probe: _Probe | None = None
        self.instruments: Instruments | None = None

    def notice(self, level: str, event: str, keys: Mapping[str, Any]) -> None:
        """Take a warning or an error of the log."""
        now_ns = self._clock.time_ns()
        session_id = keys.get("session")
        with self._mutex:
            self._counts[event] += 1
            if level == "error":
                self._last_error = LastError(
                    event=event, session_id=session_id, at=_moment(now_ns), detail=_detail(keys)
                )
            if isinstance(session_id, str):
                if event in {"session_halted", "append_uncertain"}:
                    if len(self._halted) < _HALTED_MAX:
                        self._halted[session_id] = None
                elif event in {"halt_cleared", "session_repaired"}:
                    self._halted.pop(session_id, None)
        if self.instruments is not None:
            self.instruments.noticed(Notice(event=event, level=level, keys=keys, at_ns=now_ns))

    def health(
        self,
        *,
        sessions: Iterable[_Session],
        subscriptions: Iterable[Subscription],
        writers: int,
        stopped: Status | None,
        forked: bool,
        timeout_s: float,
    ) -> Health:
        """Put together how the runtime is."""
        now_ns = self._clock.time_ns()
        reachable = None if stopped is not None or forked else self._reach(timeout_s)
        count = events = size_bytes = 0
        oldest_ns: int | None = None
        for session in sessions:
            count += 1
            gate = session.gate
            if gate is None or not gate.events:
                continue
            events += gate.events
            size_bytes += gate.size_bytes
            if gate.oldest_ns is not None:
                oldest_ns = gate.oldest_ns if oldest_ns is None else min(oldest_ns, gate.oldest_ns)
        lags = [subscription.lag for subscription in subscriptions]
        oldest_s = 0.0 if oldest_ns is None else max(0, now_ns - oldest_ns) / 1e9
        with self._mutex:
            counts, halted, last_error = self._counts.copy(), tuple(self._halted), self._last_error
        problems = [name for name in (stopped, "forked" if forked else None) if name]
        problems += ["store_unreachable"] if reachable is False else []
        problems += ["append_stalled"] if oldest_s > _STALLED_S else []
        problems += ["session_halted"] if halted else []
        status: Status = "degraded" if problems else "ok"
        if forked or reachable is False:
            status = "unavailable"
        return Health(
            status=stopped or status,
            problems=tuple(problems),
            at=_moment(now_ns),
            store=_redacted(self._store.url),
            reachable=reachable,
            sessions=count,
            halted=halted,
            inbox_events=events,
            inbox_bytes=size_bytes,
            oldest_append_s=oldest_s,
            writers=writers,
            restarts=counts["actor_restarted"],
            given_up=counts["actor_gave_up"],
            subscriptions=len(lags),
            lag=sum(lags),
            lag_max=max(lags, default=0),
            last_error=last_error,
        )

    def _reach(self, timeout_s: float) -> bool | None:
        """Ask the store, in a thread of its own: one that hangs is waited for no longer than that, and once."""
        with self._mutex:
            probe = self._probe
            if probe is None or (probe.is_done and self._clock.monotonic() - probe.began > _PROBE_FRESH_S):
                probe = self._probe = _Probe(self._store.ping, self._clock.monotonic())
                try:
                    probe.start()
                except RuntimeError:  # no thread to be had: nothing is known
                    self._probe = None
                    return None
        return probe.wait(timeout_s)


class _Probe(threading.Thread):
    """One question to the store."""

    def __init__(self, ask: Callable[[], None], began: float) -> None:
        super().__init__(name="logmark-probe", daemon=True)
        self._ask = ask
        self._done = threading.Event()
        self._reached = False
        self.began = began

    @property
    def is_done(self) -> bool:
        """Whether the answer is there."""
        return self._done.is_set()

    def run(self) -> None:
        """Ask."""
        try:
            self._ask()
            self._reached = True
        except Exception:
            self._reached = False  # whatever it was, it is no answer
        finally:
            self._done.set()

    def wait(self, timeout_s: float) -> bool:
        """Return whether the store answered in time."""
        return self._done.wait(timeout_s) and self._reached


def _moment(time_ns: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(time_ns // 1000 / 1e6, dt.UTC)


def _text(moment: dt.datetime) -> str:
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _detail(keys: Mapping[str, Any]) -> str:
    return next((str(keys[name]) for name in ("reason", "error") if name in keys), "")


def _redacted(url: str) -> str:
    """Return a URL without a password, also one of an engine that does not leave it out by itself."""
    return _SECRET.sub(r"\1…", _USERINFO.sub(r"\1@", url))
