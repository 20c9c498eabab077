"""Where the answers to appends go: to a thread that waits, or to a future."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from typing import Any, Self, TypeVar, cast

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
    """The answer to a caller that waits for it, and that caller, asleep; one lock, no condition."""

    __slots__ = ("_answer", "_settled", "_then")

    def __init__(self) -> None:
        self._settled = threading.Lock()
        self._settled.acquire()
        self._answer: Appended | AppendError | None = None
        self._then: Callable[[], None] | None = None

    def begin(self) -> bool:
        """A waiting caller cannot cancel."""
        return True

    def settle(self, answer: Appended | AppendError) -> Self:
        """Take the answer, with which the caller may be woken."""
        self._answer = answer
        return self

    def wake(self, then: Callable[[], None] | None = None, /) -> None:
        """Wake the caller, who calls ``then`` first."""
        self._then = then
        self._settled.release()

    def is_settled(self) -> bool:
        """Say whether the answer is there."""
        return self._answer is not None

    def wait(self) -> Appended:
        """Return the numbers, or raise why there are none."""
        try:
            self._settled.acquire()
        finally:
            if self._then is not None:
                self._then()
        answer = self._answer
        if isinstance(answer, Appended):
            return answer
        raise own_error(answer or AppendUncertain(session_id="", reason="woken without an answer"))


_settling = threading.Lock()
"""Held for each change of a future that nobody has waited for yet; never while anything else is called."""

_LAZY: Mapping[str, Callable[[], Any]] = {"_condition": threading.Condition, "_waiters": list, "_done_callbacks": list}


class _LazyFuture(Future[T]):
    """A ``concurrent.futures.Future`` that makes what waiting needs when somebody waits.

    Most futures of ``submit`` are settled before anyone looks, and a condition with its locks costs as much as all else
    in an append. Until there is a condition, the state changes under a lock shared by all; from then on, everything is
    the standard library's.
    """

    _state = PENDING
    _result = None
    _exception = None

    def __init__(self) -> None:  # the base class would make all of it at once  # pyright: ignore[reportMissingSuperCall]
        pass

    def __getattr__(self, name: str) -> Any:
        """Make one of the three parts when it is first asked for."""
        if name not in _LAZY:
            raise AttributeError(name)
        with _settling:
            return self.__dict__.setdefault(name, _LAZY[name]())

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise what the append failed with; see ``concurrent.futures.Future``."""
        if self._state is FINISHED and self._exception is None:
            return cast("T", self._result)
        return super().result(timeout)

    def begin(self) -> bool:
        """Leave the state in which it can be cancelled; False when it was."""
        with _settling:
            if "_condition" not in self.__dict__:
                self._state = RUNNING
                return True
        return self.set_running_or_notify_cancel()

    def finish(self, result: T) -> None:
        """Settle it with a result; its callbacks run here."""
        with _settling:
            if "_condition" not in self.__dict__:
                self._result = result
                self._state = FINISHED
                return
        _guarded(self, self.set_result, result)


class FutureReply(_LazyFuture[int]):
    """The answer to ``submit``, the number of the event, and the future that its caller holds."""

    def settle(self, answer: Appended | AppendError) -> None:
        """Resolve the future; its callbacks run here."""
        if isinstance(answer, Appended):
            self.finish(answer.first_seq)
        else:
            _guarded(self, self.set_exception, own_error(answer))


class RangeReply(_LazyFuture[tuple[int, int]]):
    """The answer to ``submit_many``, the first and last number, and the future that its caller holds."""

    def settle(self, answer: Appended | AppendError) -> None:
        """Resolve the future; its callbacks run here."""
        if isinstance(answer, Appended):
            self.finish((answer.first_seq, answer.last_seq))
        else:
            _guarded(self, self.set_exception, own_error(answer))


def _guarded(future: Future[Any], settle: Callable[[Any], None], value: object) -> None:
    try:
        settle(value)
    except BaseException:
        # A future passes on a callback's SystemExit, and complains when its holder has settled it himself. Neither
        # may end the actor's thread, or keep the answers from the other callers of the batch.
        logging.getLogger("concurrent.futures").exception("exception settling %r", future)
