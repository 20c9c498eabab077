"""A principal's ledger and the log of facts under it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..protocol import Overloaded, WrongExpectedSeq
from ..protocol.arcp import RESET, Fact, Ledger

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["Book", "facts_log"]

T = TypeVar("T")
_ATTEMPTS_MAX = 64


def facts_log(principal: str) -> str:
    """Return the session that holds a principal's facts."""
    return f"arcp/principals/{principal}"


class Book:
    """A ledger that is as its log says. Safe from any thread, and beside other processes on the same store."""

    def __init__(
        self, runtime: Runtime, principal: str, *, resume_window_s: float, retention_s: float, facts_max: int
    ) -> None:
        self.principal = principal
        self._runtime = runtime
        self._facts_max = facts_max
        self._session = runtime.session(facts_log(principal))
        self._ledger = Ledger(
            principal, resume_window_ns=int(resume_window_s * 1e9), retention_ns=int(retention_s * 1e9)
        )
        self._lock = threading.RLock()
        self._ledger.begin_at(self._last_reset())

    def _last_reset(self) -> int:
        """Return the number of the last ``arcp.ledger_reset``; what lies before it is repeated behind it."""
        if self._session.last_seq == 0:
            return 0
        for fact in self._runtime.store.read_backwards(self._session.session_id, before_seq=None):
            if fact.type == RESET:
                return fact.event_seq or 0
        return 0

    def read(self, look: Callable[[Ledger], T]) -> T:
        """Look at the ledger as it is now.

        Raises:
            SessionHalted, LogCorrupt, StorageUnavailable: the facts cannot be read.
        """
        with self._lock:
            self._refresh()
            return look(self._ledger)

    def decide(self, decision: Callable[[Ledger], tuple[T, list[Fact]]]) -> T:
        """Decide on the ledger as it is now, and make the decision durable before it is told.

        The facts are appended on condition that nobody has appended since the ledger was read; if somebody has, the
        decision is made again, on what is then known.

        Raises:
            AppendError: the facts were not stored, and so nothing was decided.
        """
        with self._lock:
            for _ in range(_ATTEMPTS_MAX):
                self._refresh()
                result, facts = decision(self._ledger)
                if not facts:
                    return result
                try:
                    first, _last = self._session.append_many(facts, expected_seq=self._ledger.last_seq)
                except WrongExpectedSeq:
                    continue
                for seq, (type_, payload) in enumerate(facts, first):
                    self._ledger.apply(seq, type_, payload)
                return result
        raise Overloaded(session_id=self._session.session_id, waited_s=0, waiting_events=_ATTEMPTS_MAX)

    def forget(self, now_ns: int) -> None:
        """Free the memory of what nobody can ask for any more, and write the rest anew when the log has grown long.

        Raises:
            AppendError: as for ``decide``; nothing was forgotten in the log.
        """
        with self._lock:
            self._ledger.forget(now_ns)
            if self._ledger.facts_since_reset > max(self._facts_max, 4 * sum(self._ledger.sizes)):
                self.decide(lambda ledger: (None, ledger.reset()))

    def _refresh(self) -> None:
        if self._session.last_seq > self._ledger.last_seq:
            for fact in self._session.read(self._ledger.last_seq + 1):
                self._ledger.apply(fact.event_seq or 0, fact.type, fact.payload)
