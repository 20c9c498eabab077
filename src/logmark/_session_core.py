"""What a session is made of: its place in the runtime, its actor, and the end of both."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from pykka import ActorDeadError, ActorRef, Timeout

from .actors import Gate, Watermark
from .actors.messages import Observed
from .protocol import RuntimeClosed, SessionDeleted, StorageRejected

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["SessionCore"]


class SessionCore:
    """A session's actor, started when it is first needed. Safe from any thread."""

    def __init__(self, runtime: Runtime, session_id: str) -> None:
        self._runtime = runtime
        self._id = session_id
        self._gate: Gate | None = None
        self._ref: ActorRef[Any] | None = None
        self._watermark = Watermark(runtime.clock, changes=runtime.changes, session_id=session_id)
        self._starting = threading.Lock()
        self._deleted: SessionDeleted | None = None

    @property
    def session_id(self) -> str:
        """The id that the session was opened by."""
        return self._id

    @property
    def runtime(self) -> Runtime:
        """The runtime that the session was opened by."""
        return self._runtime

    @property
    def gate(self) -> Gate | None:
        """The bound of the session's inbox, once something was appended."""
        return self._gate

    # -- the actor ----------------------------------------------------------------------------------------------

    def _open_gate(self) -> Gate:
        with self._starting:
            if self._gate is None:
                self._gate = Gate(self._id, self._runtime.limits, self._runtime.clock)
            return self._gate

    def _actor(self) -> ActorRef[Any]:
        ref = self._ref
        if ref is not None and ref.is_alive():
            return ref
        gate = self._open_gate()
        with self._starting:
            if self._ref is None or not self._ref.is_alive():
                self._runtime.check_usable()
                try:
                    self._ref = self._runtime.actors.start_session(self._id, gate, self._watermark)
                except RuntimeError as error:  # no thread for it
                    raise StorageRejected(session_id=self._id, reason=f"there is no actor: {error!r}") from error
            return self._ref

    def _tell(self, message: object) -> None:
        try:
            if self._ref is not None:
                self._ref.tell(message)
                return
        except ActorDeadError:
            pass  # it has given up: the next one takes the message, unless the runtime is closed
        try:
            self._actor().tell(message)
        except ActorDeadError:
            raise RuntimeClosed from None

    def observed(self, last_seq: int) -> None:
        """Learn from the watcher how far the log goes."""
        if last_seq <= self._watermark.seq:
            return
        ref = self._ref
        if ref is None:
            self._watermark.rise(last_seq)
            return
        try:
            ref.tell(Observed(last_seq))
        except ActorDeadError:
            return  # closing

    # -- the end ------------------------------------------------------------------------------------------------

    @property
    def deleted(self) -> SessionDeleted | None:
        """What is raised since it became known that the session was deleted."""
        return self._deleted

    def note_deleted(self, error: SessionDeleted) -> None:
        """Learn that the session was deleted, here or by another process, and let go of who waits for its events."""
        self._deleted = error
        self._watermark.end()

    def drain(self, deadline: float) -> bool:
        """Accept nothing more and wait until all that was accepted is answered; False at the (monotonic) deadline."""
        gate = self._gate
        if gate is None:
            return True
        gate.close()
        return gate.wait_empty(deadline)

    def stop(self) -> None:
        """Stop the session's actors, after what they were told before."""
        self._watermark.end()
        with self._starting:
            ref = self._ref
        if ref is not None:
            try:
                ref.stop(block=True, timeout=self._runtime.limits.close_wait_s)
            except Timeout:
                self._runtime.log.error("session_stop_timed_out", session=self._id)
                return
        gate = self._gate
        if gate is not None:
            self._runtime.log.info(
                "session_closed",
                session=self._id,
                last_seq=self._watermark.seq,
                accepted=gate.accepted,
                answered=gate.answered,
            )
