"""Where the answers to appends go: to a thread that waits, or to a future."""

from __future__ import annotations

import abc
import copy
import logging
import threading
from concurrent.futures import Future
from typing import Generic, TypeVar

from .protocol import AppendError, AppendUncertain
from .storage import Appended

__all__ = ["BlockingReply", "FutureReply", "RangeReply", "own_error"]

T = TypeVar("T")


def own_error(error: AppendError) -> AppendError:
    """Return a copy for one caller: raising an exception writes into it, and a failed batch has many callers."""
    mine = copy.copy(error)
    mine.__cause__ = error.__cause__
    return mine


class BlockingReply:
    """The answer to a caller that waits for it; one lock, no condition."""

    __slots__ = ("_answer", "_settled")

    def __init__(self) -> None:
        self._settled = threading.Lock()
        self._settled.acquire()
        self._answer: Appended | AppendError | None = None

    def begin(self) -> bool:
        """A waiting caller cannot cancel."""
        return True

    def settle(self, answer: Appended | AppendError) -> None:
        """Wake the caller."""
        self._answer = answer
        self._settled.release()

    def wait(self) -> Appended:
        """Return the numbers, or raise why there are none."""
        self._settled.acquire()
        answer = self._answer
        if isinstance(answer, Appended):
            return answer
        raise own_error(answer or AppendUncertain(session_id="", reason="woken without an answer"))


class _AnyFutureReply(abc.ABC, Generic[T]):
    """The answer to a caller that holds a future."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: Future[T] = Future()

    def begin(self) -> bool:
        """False when the future was cancelled; afterwards it cannot be any more."""
        return self.future.set_running_or_notify_cancel()

    def settle(self, answer: Appended | AppendError) -> None:
        """Resolve the future; its callbacks run here."""
        try:
            if isinstance(answer, Appended):
                self.future.set_result(self._result(answer))
            else:
                self.future.set_exception(own_error(answer))
        except BaseException:
            # A future passes on a callback's SystemExit, and complains when its holder has settled it himself. Neither
            # may end the actor's thread, or keep the answers from the other callers of the batch.
            logging.getLogger("concurrent.futures").exception("exception settling %r", self.future)

    @abc.abstractmethod
    def _result(self, answer: Appended) -> T:
        """Return what the future is resolved with."""


class FutureReply(_AnyFutureReply[int]):
    """The answer to ``submit``: the number of the event."""

    __slots__ = ()

    def _result(self, answer: Appended) -> int:
        return answer.first_seq


class RangeReply(_AnyFutureReply[tuple[int, int]]):
    """The answer to ``submit_many``: the first and last number."""

    __slots__ = ()

    def _result(self, answer: Appended) -> tuple[int, int]:
        return answer.first_seq, answer.last_seq
