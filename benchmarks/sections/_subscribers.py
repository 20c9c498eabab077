"""What viewers cost those who append."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

from ..harness import Sample, Shape, WrongResult, drive, run_bout, verify
from ..participants import Logmark, Participant, Raw
from ..report import Row, rows_of
from ._base import Context

__all__ = ["Viewers", "subscribers"]

JOBS = 100
VIEWERS = 4
SHAPES = (Shape(callers=1), Shape(callers=16), Shape(callers=16, window=256))
_CATCH_UP_S = 60.0


class Viewers:
    """Threads that follow a session, each seeing every number once and in order."""

    def __init__(self, logmark: Logmark, session_id: str, viewers: int) -> None:
        session = logmark.runtime.session(session_id)
        self._subscriptions = [session.subscribe(from_seq=1) for _ in range(viewers)]
        self._seen = [0] * viewers
        self._wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._follow, args=(number,), name=f"viewer-{number}", daemon=True)
            for number in range(viewers)
        ]
        for thread in self._threads:
            thread.start()

    def _follow(self, number: int) -> None:
        seen = self._seen
        for event in self._subscriptions[number]:
            if event.event_seq != seen[number] + 1:
                self._wrong.append(f"viewer {number} got {event.event_seq} after {seen[number]}")
                return
            seen[number] += 1

    @property
    def lags(self) -> int:
        """How often one of them fell behind its queue and had to read the log."""
        return sum(subscription.lag_count for subscription in self._subscriptions)

    def wait_for(self, last_seq: int) -> None:
        """Wait until all have seen a number.

        Raises:
            WrongResult: one skipped or repeated something, or did not get there.
        """
        deadline = time.monotonic() + _CATCH_UP_S
        while min(self._seen) < last_seq and not self._wrong and time.monotonic() < deadline:
            time.sleep(0.0005)
        if self._wrong or min(self._seen) != last_seq:
            message = f"of {last_seq} events the viewers saw {self._seen}; {self._wrong}"
            raise WrongResult(message)

    def close(self) -> None:
        """End the subscriptions and the threads."""
        for subscription in self._subscriptions:
            subscription.close()
        for thread in self._threads:
            thread.join()


P = TypeVar("P", bound=Participant)


class _Watched(Generic[P]):
    """A store of its own, a session in it, and what has been appended to that."""

    def __init__(self, participant: P, directory: str, session_id: str) -> None:
        self.participant = participant
        self.session_id = session_id
        self.acknowledged = 0
        participant.open(directory)

    def contender(self, shape: Shape) -> Callable[[float], Sample]:
        """Return the work for a bout."""

        def work(seconds: float) -> Sample:
            sample = drive(self.participant, shape, [self.session_id], seconds)
            self.acknowledged += sample.events
            return sample

        return work

    def done(self) -> tuple[Participant, int]:
        """Return whom to ask, and for how many events."""
        return self.participant, self.acknowledged

    def close(self) -> None:
        """Close the store."""
        self.participant.close()


@contextlib.contextmanager
def _watched(context: Context, participant: P) -> Generator[_Watched[P], None, None]:
    watched = _Watched(participant, context.place(participant.name), "s")
    with contextlib.closing(watched):
        yield watched


def subscribers(context: Context) -> list[Row]:
    """Four viewers and the marks of a hundred jobs, or one viewer that never takes anything, against none."""
    return [row for shape in SHAPES for row in _subscribers(context, shape)]


def _subscribers(context: Context, shape: Shape) -> list[Row]:
    context.progress.begin(f"subscribers: {shape.label}")
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(_watched(context, Raw()))
        alone = stack.enter_context(_watched(context, Logmark()))
        stalled = stack.enter_context(_watched(context, Logmark()))
        viewed = stack.enter_context(_watched(context, Logmark(jobs=JOBS)))
        never = stalled.participant.runtime.session("s").subscribe()
        stack.enter_context(contextlib.closing(never))
        viewers = Viewers(viewed.participant, "s", VIEWERS)
        stack.enter_context(contextlib.closing(viewers))
        view = viewed.contender(shape)

        def work_and_see(seconds: float) -> Sample:
            # The clock stops when the callers have their answers; that the viewers come after costs nobody else's turn.
            sample = view(seconds)
            viewers.wait_for(viewed.acknowledged)
            return sample

        waiting = Shape(callers=shape.callers, sessions=shape.sessions)
        bout = run_bout(
            {
                raw.participant.label: raw.contender(waiting),
                "logmark, nobody watching": alone.contender(shape),
                "logmark, a stalled viewer": stalled.contender(shape),
                f"logmark, {VIEWERS} viewers, {JOBS} jobs": work_and_see,
            },
            rounds=context.rounds,
            seconds=context.seconds,
            step=context.progress.step,
        )
        for participant, acknowledged in (raw.done(), alone.done(), stalled.done(), viewed.done()):
            verify(participant, {"s": acknowledged})
        marks = viewed.participant.runtime.session("s").jobs()
        if sum(mark.count for mark in marks) != viewed.acknowledged:
            raise WrongResult("the marks do not add up to what was appended")
        against = dict.fromkeys(list(bout.contenders)[2:], ("logmark, nobody watching", "nobody watching"))
        return rows_of(bout, "subscribers", shape.label, against=against)
