"""Actors without threads: turns, timers and blocking reads that happen when the test says so."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from pykka import ActorDeadError, ActorRef

from ..actors import Turns
from ._clock import ManualClock

__all__ = ["InlineReads", "ManualTimers", "StepDispatcher"]


class StepDispatcher:
    """Gives turns on the test's own thread, one at a time, in the order in which the actors became ready.

    Implements ``logmark.actors.Dispatcher``. Nothing runs before ``step`` or ``run_until_idle``, so what waits in the
    inboxes and in which batches it is taken is the test's decision. Any thread may tell actors; one at a time steps.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._due: deque[Turns] = deque()
        self._stepping = threading.Lock()

    def schedule(self, actor: Turns) -> None:
        """See ``Dispatcher.schedule``."""
        with self._mutex:
            self._due.append(actor)

    @property
    def due(self) -> tuple[Turns, ...]:
        """The actors that are due a turn, the next one first."""
        with self._mutex:
            return tuple(self._due)

    def step(self) -> bool:
        """Give one turn; False when no actor is due.

        Raises:
            RuntimeError: called from within a turn, or by two threads at once.
        """
        if not self._stepping.acquire(blocking=False):
            message = "a turn is running: turns are given one at a time"
            raise RuntimeError(message)
        try:
            with self._mutex:
                if not self._due:
                    return False
                actor = self._due.popleft()
            if actor.take_turn():
                self.schedule(actor)
            return True
        finally:
            self._stepping.release()

    def run_until_idle(self, turns_max: int = 100_000) -> int:
        """Give turns until no actor is due, and return how many they were.

        Raises:
            RuntimeError: there was no end after ``turns_max`` turns: actors keep each other busy.
        """
        for turns in range(turns_max):
            if not self.step():
                return turns
        message = f"actors were still due after {turns_max} turns: {self.due!r}"
        raise RuntimeError(message)


class ManualTimers:
    """Timers on a manual clock; implements ``logmark.actors.Timers``. Safe from any thread.

    Args:
        clock: whose time it is; by default one of its own.
    """

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self._mutex = threading.Lock()
        self._due: list[tuple[float, int, ActorRef[Any], Any]] = []
        self._order = itertools.count()

    def after(self, delay_s: float, ref: ActorRef[Any], message: Any) -> None:
        """See ``Timers.after``."""
        with self._mutex:
            heapq.heappush(self._due, (self.clock.monotonic() + delay_s, next(self._order), ref, message))

    @property
    def pending(self) -> list[tuple[float, Any]]:
        """What will be told: moment (of the monotonic clock) and message, the earliest first."""
        with self._mutex:
            return [(at, message) for at, _, _, message in sorted(self._due, key=lambda each: each[:2])]

    def advance(self, seconds: float) -> int:
        """Move the clock forward, telling each message at its moment; return how many were told.

        The messages are told and not yet handled: with a ``StepDispatcher``, run it next.
        """
        until = self.clock.monotonic() + seconds
        told = 0
        while True:
            with self._mutex:
                if not self._due or self._due[0][0] > until:
                    break
                at, _, ref, message = heapq.heappop(self._due)
            self.clock.advance(max(0.0, at - self.clock.monotonic()))
            try:
                ref.tell(message)
            except ActorDeadError:
                continue  # a stopped actor's timers are void
            told += 1
        self.clock.advance(max(0.0, until - self.clock.monotonic()))
        return told


class InlineReads:
    """Blocking reads on the thread that submits them; implements ``logmark.actors.BlockingReads``.

    While ``held``, reads wait for ``run``, as they wait for a slow disk. Safe from any thread.
    """

    def __init__(self, *, held: bool = False) -> None:
        self._mutex = threading.Lock()
        self._held = held
        self._waiting: deque[Callable[[], None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        """See ``BlockingReads.submit``."""
        with self._mutex:
            if self._held:
                self._waiting.append(work)
                return
        work()

    @property
    def waiting(self) -> int:
        """How many reads are held."""
        with self._mutex:
            return len(self._waiting)

    def hold(self) -> None:
        """Hold every read from now on."""
        with self._mutex:
            self._held = True

    def run(self, reads_max: int | None = None) -> int:
        """Do what is held, in the order of submission, at most ``reads_max`` reads; return how many were done."""
        done = 0
        while reads_max is None or done < reads_max:
            with self._mutex:
                if not self._waiting:
                    break
                work = self._waiting.popleft()
            work()
            done += 1
        return done

    def release(self) -> int:
        """Hold no more, and do what is held; return how many reads that were."""
        with self._mutex:
            self._held = False
        return self.run()
