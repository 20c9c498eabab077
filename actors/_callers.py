"""The callers of a session's appends: whether they still want them, their answers, and their places."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocol import AppendError
from ..storage import Appended, Logger
from ._gate import Gate
from ._relay import Relay, Sleeper
from .messages import Append

__all__ = ["Callers"]


class Callers:
    """What a SessionActor says to its callers. Used in its turns, and in what it puts off.

    A caller's own mistake, such as settling the future itself, keeps the answers from nobody else.

    Args:
        gate: gets the places of answered appends back.
        log: gets ``reply_failed``.
    """

    __slots__ = ("_gate", "_log", "_relay")

    def __init__(self, gate: Gate, log: Logger) -> None:
        self._gate = gate
        self._log = log
        self._relay: Relay | None = None

    def begin(self, append: Append) -> bool:
        """Say whether an append is still wanted; from here on it can no longer be cancelled."""
        try:
            return append.reply.begin()
        except Exception as error:
            self._note(error)
            return False

    def answer(
        self, appends: Sequence[Append], answers: Sequence[Appended | AppendError], *, relayed: bool = False
    ) -> None:
        """Give each its answer, and the places of all back.

        Args:
            appends: in order.
            answers: to each of them.
            relayed: they are waited for next, and are back sooner if each wakes the one after it; whoever waits calls
                ``end_relay``.
        """
        sleepers: list[Sleeper] = []
        for append, answer in zip(appends, answers, strict=True):
            try:
                sleeper = append.reply.settle(answer)
            except Exception as error:
                self._note(error)
                continue
            if sleeper is None:
                continue
            if relayed:
                sleepers.append(sleeper)
            else:
                sleeper.wake()
        if sleepers:
            self.end_relay()
            self._relay = Relay(sleepers)
            self._relay.advance()
        self.leave(appends)

    def end_relay(self) -> None:
        """Wake who is left: nobody sleeps on because the one before him was interrupted."""
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.finish()

    def reject(self, append: Append, error: AppendError) -> None:
        """Answer an append that comes to no writer."""
        if self.begin(append):
            self.answer((append,), (error,))
        else:
            self.leave((append,))

    def leave(self, appends: Sequence[Append]) -> None:
        """Give the places of appends back that were answered, or that nobody wants any more."""
        if len(appends) == 1:
            append = appends[0]
            self._gate.leave(len(append.request.events), append.size_bytes)
        else:
            self._gate.leave(
                sum([len(append.request.events) for append in appends]),
                sum([append.size_bytes for append in appends]),
                len(appends),
            )

    def _note(self, error: Exception) -> None:
        self._log.error("reply_failed", error=repr(error), exc_info=error)
