"""Driving a participant with many callers, and taking turns between participants.

A machine's speed changes from second to second, so that two figures taken one after the other say little about each
other. Here every round lets each contender work for the same short time, one after the other, in an order that turns by
one each round; ratios are taken within a round, and the median over the rounds is reported.
"""

from __future__ import annotations

import dataclasses
import gc
import resource
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from typing import Self

from .events import ring
from .participants import Caller, Participant

__all__ = [
    "Bout",
    "Sample",
    "Shape",
    "Usage",
    "WrongResult",
    "check_waited",
    "drive",
    "percentile",
    "run_bout",
    "verify",
]

_JOIN_S = 120.0


class WrongResult(Exception):
    """A participant's store does not hold what was acknowledged: its figures are worth nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """How the work is asked for."""

    callers: int = 1
    sessions: int = 1
    batch: int = 1
    """Events in one call."""
    window: int = 0
    """Unanswered submissions that a caller may have; 0: each call waits."""

    @property
    def label(self) -> str:
        """Name the shape for a table."""
        text = f"{_count(self.callers, 'caller')}, {_count(self.sessions, 'session')}"
        if self.batch > 1:
            text += f", {self.batch} per call"
        if self.window:
            text += f", {self.window} unanswered each"
        return text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """What this process has had of the processor."""

    user_s: float
    """In its own code, which is the interpreter and its libraries."""
    kernel_s: float
    """In system calls: writing, syncing, waking threads and putting them to sleep."""
    switches: int
    """How often one of its threads went to sleep or was taken off the processor."""

    @classmethod
    def now(cls) -> Self:
        """Return what it has had so far."""
        found = resource.getrusage(resource.RUSAGE_SELF)
        return cls(found.ru_utime, found.ru_stime, found.ru_nvcsw + found.ru_nivcsw)

    def since(self, before: Usage) -> Usage:
        """Return what came after an earlier moment."""
        return Usage(self.user_s - before.user_s, self.kernel_s - before.kernel_s, self.switches - before.switches)


@dataclasses.dataclass(slots=True)
class Sample:
    """What one contender did in one round."""

    events: int
    elapsed_s: float
    latencies_ns: list[int]
    """Of every call that waited for its answer."""
    by_session: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    usage: Usage | None = None

    @property
    def rate(self) -> float:
        """Events in a second."""
        return self.events / self.elapsed_s


class _Loop:
    """One caller thread's work in one round."""

    def __init__(self, shape: Shape, session_ids: Sequence[str]) -> None:
        self.shape = shape
        self.session_ids = session_ids
        self.payloads = ring()
        self.events = 0
        self.latencies_ns: list[int] = []
        self.began = self.ended = 0.0
        self.error: BaseException | None = None

    def by_session(self) -> Iterator[tuple[str, int]]:
        """Yield how many events each session got; they get theirs in turn."""
        each, more = divmod(self.events, len(self.session_ids))
        for place, session_id in enumerate(self.session_ids):
            yield session_id, each + (place < more)

    def run(self, participant: Participant, start: threading.Barrier, seconds: float, events: int | None) -> None:
        """Work, and keep what went wrong for the thread that waits for all."""
        try:
            callers = [participant.caller(session_id) for session_id in self.session_ids]
            try:
                start.wait()
                self.began = time.perf_counter()
                deadline = self.began + seconds
                if len(callers) > 1 or events is not None:
                    self._in_turn(callers, deadline, events)
                elif self.shape.window:
                    self._submit(callers[0], deadline)
                elif self.shape.batch > 1:
                    self._batches(callers[0], deadline)
                else:
                    self._appends(callers[0], deadline)
                self.ended = time.perf_counter()
            finally:
                for caller in callers:
                    caller.close()
        except BaseException as error:
            self.error = error
            start.abort()

    def _appends(self, caller: Caller, deadline: float) -> None:
        clock, append, note, payloads = time.perf_counter_ns, caller.append, self.latencies_ns.append, self.payloads
        deadline_ns = int(deadline * 1e9)
        size, events, now = len(payloads), 0, clock()
        while now < deadline_ns:
            append(payloads[events % size])
            events += 1
            before, now = now, clock()
            note(now - before)
        self.events = events

    def _in_turn(self, callers: Sequence[Caller], deadline: float, events_max: int | None) -> None:
        """Append to several sessions, one after the other."""
        clock, note, payloads = time.perf_counter_ns, self.latencies_ns.append, self.payloads
        deadline_ns = int(deadline * 1e9)
        sessions, size, events, now = len(callers), len(payloads), 0, clock()
        while now < deadline_ns if events_max is None else events < events_max:
            callers[events % sessions].append(payloads[events % size])
            events += 1
            before, now = now, clock()
            note(now - before)
        self.events = events

    def _batches(self, caller: Caller, deadline: float) -> None:
        batch = [self.payloads[number % len(self.payloads)] for number in range(self.shape.batch)]
        before = time.perf_counter_ns()
        deadline_ns = int(deadline * 1e9)
        while before < deadline_ns:
            caller.append_batch(batch)
            self.events += len(batch)
            now = time.perf_counter_ns()
            self.latencies_ns.append(now - before)
            before = now

    def _submit(self, caller: Caller, deadline: float) -> None:
        payloads, window = self.payloads, self.shape.window
        size, events = len(payloads), 0
        unanswered: deque[Future[int]] = deque()
        while time.perf_counter() < deadline:
            if len(unanswered) == window:
                unanswered.popleft().result()
            unanswered.append(caller.submit(payloads[events % size]))
            events += 1
        while unanswered:
            unanswered.popleft().result()
        self.events = events


def drive(
    participant: Participant,
    shape: Shape,
    session_ids: Sequence[str],
    seconds: float,
    *,
    events_each: int | None = None,
) -> Sample:
    """Let the shape's callers work for some time; the clock stops when the last one has its last answer.

    Args:
        participant: who works.
        shape: what the work is.
        session_ids: as many as the shape has sessions; each caller works on one of them, or on its share in turn.
        seconds: for how long.
        events_each: how many events each caller appends to its share of sessions instead, however long that takes.
    """
    loops = [_Loop(shape, _share(session_ids, shape, number)) for number in range(shape.callers)]
    start = threading.Barrier(shape.callers + 1)
    threads = [
        threading.Thread(
            target=loop.run, args=(participant, start, seconds, events_each), name=f"caller-{number}", daemon=True
        )
        for number, loop in enumerate(loops)
    ]
    gc.collect()
    for thread in threads:
        thread.start()
    try:
        start.wait(_JOIN_S)
    except threading.BrokenBarrierError:
        _raise_first(loops)
        raise
    before = Usage.now()
    try:
        for thread in threads:
            thread.join(_JOIN_S + seconds)
    except KeyboardInterrupt:
        for thread in threads:  # nobody may close the stores while they are still written to
            thread.join(_JOIN_S)
        raise
    _raise_first(loops)
    if any(thread.is_alive() for thread in threads):
        message = f"{participant.name}: a caller got no answer in {_JOIN_S:.0f} s"
        raise WrongResult(message)
    usage = Usage.now().since(before)
    by_session: dict[str, int] = {}
    for loop in loops:
        for session_id, count in loop.by_session():
            by_session[session_id] = by_session.get(session_id, 0) + count
    return Sample(
        events=sum(loop.events for loop in loops),
        elapsed_s=max(loop.ended for loop in loops) - min(loop.began for loop in loops),
        latencies_ns=[latency for loop in loops for latency in loop.latencies_ns],
        by_session=by_session,
        usage=usage,
    )


def _share(session_ids: Sequence[str], shape: Shape, caller: int) -> Sequence[str]:
    """Return the sessions of one caller: one, or its part of them when there are more than callers."""
    if shape.sessions > shape.callers:
        return session_ids[caller :: shape.callers]
    return (session_ids[caller % shape.sessions],)


def _raise_first(loops: Sequence[_Loop]) -> None:
    errors = [loop.error for loop in loops if loop.error is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error


@dataclasses.dataclass(slots=True)
class Bout:
    """Contenders at one piece of work: by name, a function that works for some seconds. The first one is the limit."""

    contenders: dict[str, Callable[[float], Sample]]
    samples: dict[str, list[Sample]] = dataclasses.field(default_factory=dict[str, list[Sample]])
    failed: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Peers that could not do it, and why."""

    def drop(self, name: str, error: Exception) -> None:
        """Report a peer as failed instead of what it did."""
        self.failed[name] = str(error) if isinstance(error, WrongResult) else f"failed: {error!r}"
        self.samples.pop(name, None)

    def ratios(self, name: str, to: str) -> list[float]:
        """Return the ratio of two contenders' rates in each round."""
        pairs = zip(self.samples[name], self.samples[to], strict=True)
        return [ours.rate / theirs.rate for ours, theirs in pairs]


def run_bout(
    contenders: dict[str, Callable[[float], Sample]],
    *,
    rounds: int,
    seconds: float,
    step: Callable[[str], None],
    may_fail: Collection[str] = (),
) -> Bout:
    """Warm everybody up, then let them take turns.

    Args:
        contenders: the limit first.
        rounds: how many turns each one has.
        seconds: how long a turn is.
        step: called before each turn.
        may_fail: peers, which drop out when they raise; anybody else's error ends the run.
    """
    bout = Bout(contenders)

    def turn(name: str, length_s: float) -> Sample | None:
        if name in bout.failed:
            return None
        step(name)
        try:
            return contenders[name](length_s)
        except Exception as error:
            if name not in may_fail:
                raise
            bout.drop(name, error)
            return None

    names = list(contenders)
    for name in names:
        bout.samples[name] = []
        turn(name, min(seconds / 3, 0.1))
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            sample = turn(name, seconds)
            if sample is not None:
                bout.samples[name].append(sample)
    return bout


def verify(participant: Participant, acknowledged: dict[str, int]) -> None:
    """Ask the store for all that was acknowledged.

    Raises:
        WrongResult: something is missing, or the numbers are not 1, 2, 3, …
    """
    for session_id, count in acknowledged.items():
        tally = participant.tally(session_id)
        if (tally.count, tally.first, tally.last) != (count, min(count, 1), count):
            message = f"{participant.name}: {count} events of {session_id} were acknowledged, the store has {tally}"
            raise WrongResult(message)


def check_waited(name: str, samples: Sequence[Sample], least_us: float) -> None:
    """See that no answer came sooner than a sync takes at least, as it does on a slowed disk.

    Raises:
        WrongResult: one did, so it did not wait for the disk.
    """
    soonest_us = min((latency for sample in samples for latency in sample.latencies_ns), default=0) / 1000
    if any(sample.latencies_ns for sample in samples) and soonest_us < least_us:
        message = f"{name}: an answer after {soonest_us:.0f} µs, when each sync takes {least_us:.0f} µs at least"
        raise WrongResult(message)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, of which half the values of a sorted list lie below the 50th."""
    if len(values) < 2:  # quantiles needs two
        return float(values[0])
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
