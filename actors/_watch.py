"""The WatchActor: learns what other processes append to the sessions that somebody follows here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pykka import ActorDeadError

from ..protocol import Clock, Limits, SessionDeleted
from ..storage import EventStore, Logger
from ._base import LogmarkActor
from ._dispatch import Dispatcher
from ._seams import BlockingReads, Timers
from .messages import Changed, Looked, Unwatch, Watch, WatchTick

__all__ = ["WatchActor"]


class WatchActor(LogmarkActor):
    """Asks the store how far the watched sessions go, ``Limits.watch_interval_s`` after each answer.

    A store that says by itself what has changed (``EventStore.watch``) is asked about that, at once, and about
    everything only as often as it deems worth it.

    Args:
        observed: called with a session and the number of its last event, or what says that it was deleted; must not
            block.
    """

    def __init__(
        self,
        *,
        store: EventStore,
        observed: Callable[[str, int | SessionDeleted], None],
        timers: Timers,
        reads: BlockingReads,
        limits: Limits,
        dispatcher: Dispatcher,
        clock: Clock,
        log: Logger,
    ) -> None:
        super().__init__(
            dispatcher=dispatcher,
            clock=clock,
            log=log.bind(actor="watch"),
            restarts_max=limits.actor_restarts_max,
            restart_window_s=limits.actor_restart_window_s,
            timers=timers,
        )
        self._store = store
        self._observed = observed
        self._timers = timers
        self._reads = reads
        self._interval_s = limits.watch_interval_s
        self._is_told: bool | None = None
        self._watched: dict[str, int] = {}
        self._failed: set[str] = set()
        self._due: set[str] = set()
        self._ticking = False
        self._looking = False

    def on_receive(self, message: Any) -> None:
        """Count who is watched, look, tell."""
        match message:
            case Watch():
                self._watched[message.session_id] = self._watched.get(message.session_id, 0) + 1
                if self._is_told is None:
                    self._begin_to_be_told()
                if self._is_told:  # a hint may have come and gone before anybody watched
                    self._due.add(message.session_id)
            case Unwatch():
                self._unwatch(message.session_id)
            case WatchTick():
                self._ticking = False
                self._due.update(self._watched)
            case Changed(session_id=None):
                self._due.update(self._watched)
            case Changed(session_id=str() as session_id) if session_id in self._watched:
                self._due.add(session_id)
            case Changed():
                pass  # somebody else's business
            case Looked():
                self._looking = False
                self._on_looked(message)
            case _:
                super().on_receive(message)

    def on_drained(self) -> None:
        """Look at what is due, one look at a time; look again later, while there is something to look at."""
        if self._due and not self._looking:
            sessions = tuple(session_id for session_id in self._watched if session_id in self._due)
            self._due.clear()
            if sessions:
                self._looking = True
                try:
                    self._reads.submit(lambda: self._look(sessions))
                except RuntimeError:  # no thread for it: look at the next tick
                    self._looking = False
        if self._watched and not self._ticking and not self._looking:
            self._ticking = True
            self._timers.after(self._interval_s, self.actor_ref, WatchTick())

    def _begin_to_be_told(self) -> None:
        interval_s = self._store.watch(self._changed)
        self._is_told = interval_s is not None
        if interval_s is not None:
            self._interval_s = interval_s

    def _changed(self, session_id: str | None) -> None:
        """Pass a hint on; the store calls this in a thread of its own."""
        try:
            self.actor_ref.tell(Changed(session_id))
        except ActorDeadError:
            self._log.debug("hint_dropped", session=session_id)

    def _unwatch(self, session_id: str) -> None:
        count = self._watched.get(session_id, 0) - 1
        if count > 0:
            self._watched[session_id] = count
        else:
            self._watched.pop(session_id, None)
            self._failed.discard(session_id)

    def _look(self, sessions: tuple[str, ...]) -> None:
        """Ask the store; runs where it may block."""
        found: dict[str, int | SessionDeleted] = {}
        failed: dict[str, str] = {}
        try:
            answers = self._store.last_seqs(sessions)
        except Exception as error:  # whatever it is: a look that never answers would be the last
            answers = dict.fromkeys(sessions, error)
        for session_id, answer in answers.items():
            if isinstance(answer, int | SessionDeleted):
                found[session_id] = answer
            else:
                failed[session_id] = repr(answer)
        try:
            self.actor_ref.tell(Looked(found, failed))
        except ActorDeadError:
            self._log.debug("look_dropped", sessions=len(sessions))

    def _on_looked(self, message: Looked) -> None:
        for session_id, error in message.failed.items():
            if session_id not in self._failed:  # once: whoever reads the session gets the error itself
                self._failed.add(session_id)
                self._log.warning("watch_failed", session=session_id, error=error)
        for session_id, last_seq in message.found.items():
            self._failed.discard(session_id)
            self._observed(session_id, last_seq)

    def on_message_failed(self, message: Any) -> None:
        """Look again when the tick or the answer was lost; one that is still on its way goes on by itself."""
        if isinstance(message, WatchTick):
            self._ticking = False
        elif isinstance(message, Looked):
            self._looking = False
