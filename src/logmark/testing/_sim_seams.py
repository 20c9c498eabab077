"""What the runtime of a simulated process runs on: one thread, where chance decides what comes next."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from pykka import ActorDeadError, ActorRef

from ..actors import Mailbox, Seams, Turns
from ._clock import ManualClock

__all__ = ["SimScheduler"]

_LINGERS = 0.5
_TURNS_MAX = 200_000


class _SimLinger:
    """Has the next batch handed over a turn later, every other time: chance decides what happens until then."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.is_due = False

    def plan(self, *, answered: int, waiting: int, commit_s: float) -> None:
        """See ``Linger.plan``."""
        del answered, waiting, commit_s
        self.is_due = self._rng.random() < _LINGERS

    def wait(self, inbox: Mailbox) -> None:
        """See ``Linger.wait``: the time has passed."""
        del inbox
        self.is_due = False


class SimScheduler:
    """Dispatcher, timers and blocking reads of one simulated process; every choice is the random generator's."""

    def __init__(self, clock: ManualClock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._ready: list[Turns | Callable[[], None]] = []
        self._due: list[tuple[float, int, ActorRef[Any], Any]] = []
        self._order = itertools.count()
        self.seams = Seams(
            clock=clock,
            dispatcher=self,
            writer_dispatcher=lambda _number: self,
            timers=self,
            reads=self,
            random_bits=rng.getrandbits,
            new_linger=lambda: _SimLinger(rng),
        )

    def schedule(self, actor: Turns) -> None:
        """See ``Dispatcher.schedule``."""
        self._ready.append(actor)

    def submit(self, work: Callable[[], None]) -> None:
        """See ``BlockingReads.submit``."""
        self._ready.append(work)

    def after(self, delay_s: float, ref: ActorRef[Any], message: Any) -> None:
        """See ``Timers.after``."""
        heapq.heappush(self._due, (self._clock.monotonic() + delay_s, next(self._order), ref, message))

    def step(self) -> bool:
        """Give one turn, or do one read, whichever chance picks; False when nothing is due."""
        if not self._ready:
            return False
        chosen = self._ready.pop(self._rng.randrange(len(self._ready)))
        if not isinstance(chosen, Turns):
            chosen()
        elif chosen.take_turn():
            self._ready.append(chosen)
        return True

    def fire_timers(self) -> None:
        """Tell what is due."""
        while self._due and self._due[0][0] <= self._clock.monotonic():
            _, _, ref, message = heapq.heappop(self._due)
            try:
                ref.tell(message)
            except ActorDeadError:
                continue  # a stopped actor's timers are void

    def run_until_idle(self) -> None:
        """Give turns until nothing is due.

        Raises:
            RuntimeError: there is no end.
        """
        for _ in range(_TURNS_MAX):
            if not self.step():
                return
        raise RuntimeError("the actors keep each other busy")

    def clear(self) -> None:
        """Forget everything: the process is dead."""
        self._ready.clear()
        self._due.clear()
