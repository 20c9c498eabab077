"""What became of an append whose caller was cancelled."""

from __future__ import annotations

import asyncio
import threading

from .._replies import own_error
from ..protocol import AppendError, AppendRejected
from ..storage import Appended
from ._bridge import Bridge

__all__ = ["CancelledAppend", "LoopReply", "cancelled_append", "note_cancelled"]

_ATTRIBUTE = "logmark_append"
_changing = threading.Lock()
"""Held for each change of a reply's state, never while anything else is called."""


class LoopReply:
    """The answer to an append, brought into the loop that waits for it. An ``AppendReply``."""

    __slots__ = ("_bridge", "_waiting", "answer", "is_handed_over", "is_withdrawn")

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._waiting: list[asyncio.Future[Appended]] = []
        self.is_handed_over = False
        self.is_withdrawn = False
        self.answer: Appended | AppendError | None = None

    def begin(self) -> bool:
        """See ``AppendReply.begin``; called by the SessionActor."""
        with _changing:
            self.is_handed_over = not self.is_withdrawn
            return self.is_handed_over

    def settle(self, answer: Appended | AppendError) -> None:
        """See ``AppendReply.settle``; called by the SessionActor."""
        self.answer = answer
        self._bridge.post(self._deliver)

    def withdraw(self) -> bool:
        """Take the append back; False when the disk has it, or the answer is there."""
        with _changing:
            self.is_withdrawn = self.answer is None and not self.is_handed_over
            return self.is_withdrawn

    def _deliver(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            self._give(each)

    def _give(self, waiter: asyncio.Future[Appended]) -> None:
        if waiter.done():
            return
        if isinstance(self.answer, Appended):
            waiter.set_result(self.answer)
        elif self.answer is not None:
            waiter.set_exception(own_error(self.answer))

    async def wait(self) -> Appended:
        """Return the numbers, or raise why there are none; in the loop that the append was made in."""
        waiter: asyncio.Future[Appended] = self._bridge.loop.create_future()
        self._waiting.append(waiter)
        if self.answer is not None:
            self._deliver()
        return await waiter


class CancelledAppend:
    """An append whose caller was cancelled: whether it was written, and how to find out.

    Attributes:
        session_id: the session.
        event_ids: the ids of its events. An append under the same ids writes them once, whatever became of this one.
    """

    __slots__ = ("_reply", "event_ids", "session_id")

    def __init__(self, session_id: str, event_ids: tuple[str, ...], reply: LoopReply) -> None:
        self.session_id = session_id
        self.event_ids = event_ids
        self._reply = reply

    @property
    def written(self) -> bool | None:
        """False: certainly not, and it never will be. True: it is durable. None: the disk has it and has not answered.

        None becomes True or False with the answer, and stays for good when that is ``AppendUncertain``.
        """
        if self._reply.is_withdrawn:
            return False
        answer = self._reply.answer
        if isinstance(answer, Appended):
            return True
        return False if isinstance(answer, AppendRejected) else None

    async def outcome(self) -> tuple[int, int] | None:
        """Wait for the disk and return the first and the last number; None when the append was taken back in time.

        In the loop that the append was made in.

        Raises:
            AppendError: what the append would have raised.
        """
        if self._reply.is_withdrawn:
            return None
        answer = await self._reply.wait()
        return answer.first_seq, answer.last_seq

    def __repr__(self) -> str:
        return f"<CancelledAppend session={self.session_id!r} events={len(self.event_ids)} written={self.written}>"

    def __str__(self) -> str:
        said = {True: "is durable", False: "was not written", None: "is with the disk, which has not answered yet"}
        first, others = self.event_ids[0], len(self.event_ids) - 1
        ids = f"{first} and {others} more" if others else first
        return f"the append to session {self.session_id!r} (event id {ids}) {said[self.written]}"


def note_cancelled(error: asyncio.CancelledError, append: CancelledAppend) -> None:
    """Attach to the cancellation what it has cancelled.

    The error itself stays what it is: ``asyncio.timeout`` and others tell it by its very class and arguments.
    """
    setattr(error, _ATTRIBUTE, append)
    error.add_note(str(append))


def cancelled_append(error: BaseException) -> CancelledAppend | None:
    """Return the append that an error has cancelled, or None.

    Takes the ``CancelledError`` of the append, or what was raised because of it, such as the ``TimeoutError`` of
    ``asyncio.timeout`` and ``asyncio.wait_for``.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        found = getattr(each, _ATTRIBUTE, None)
        if isinstance(found, CancelledAppend):
            return found
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return None
