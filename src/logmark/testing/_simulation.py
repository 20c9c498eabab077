"""The whole runtime on one thread, under a seeded scheduler, a virtual clock and a disk that fails.

The real actors, store, sessions and subscriptions of several processes run on one simulated machine. Every choice, of
which turn comes next, which operation fails, when a process dies or the power goes, comes from the seed, so a failing
seed fails again in the same step. A plain model beside it knows what was submitted and what was answered, and at the
end everything is compared with what is in the log.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import random
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pykka import ActorRegistry

from .. import Limits
from .._runtime import Runtime
from .._subscription import Subscription
from ..protocol import (
    AppendUncertain,
    CursorAhead,
    JobMark,
    JobMarks,
    LogCorrupt,
    LogmarkError,
    SessionHalted,
    StorageUnavailable,
    SubscriptionClosed,
    WaitTimeout,
)
from ..storage import FileEventStore, Logger, add_sink, get_logger, remove_sink
from ._clock import ManualClock
from ._faults import Crashed
from ._faulty_files import FaultyFiles
from ._log_check import LogCheck
from ._sim_model import Attempt, Model, SimulationFailure
from ._sim_seams import SimScheduler

__all__ = ["Simulation", "SimulationReport"]

_STORE = "/store"
_SESSIONS = ("alpha", "beta", "Gamma/1")
_LIMITS = Limits(
    segment_bytes_max=4_000,
    subscriber_events_max=8,
    batch_events_max=6,
    read_chunk_bytes=512,
    lock_wait_s=0.5,
    persist_threads_max=2,
    watch_interval_s=0.05,
    open_sessions_max=2,
    marks_unsaved_events_max=5,
    actor_restarts_max=50,
)
_numbers = itertools.count(1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SimulationReport:
    """What a simulation did.

    Attributes:
        steps: scheduler steps, turns of actors included.
        acknowledged: appends that returned a number.
        crashes, power_cuts, halts: how often each happened.
        delivered: events that subscribers got.
        trace: one line for each step, when the trace was asked for.
    """

    seed: int
    steps: int
    acknowledged: int
    crashes: int
    power_cuts: int
    halts: int
    delivered: int
    trace: tuple[str, ...] = ()


@dataclasses.dataclass(slots=True)
class _Follower:
    """A subscriber that lives through crashes: it comes back with the number that it wants next."""

    session_id: str
    subscription: Subscription | None
    seen: list[tuple[int, str]]
    next_seq: int | None = None


class _Process:
    """One process: its view of the disk, its scheduler, its runtime while it is alive."""

    def __init__(self, name: str, files: FaultyFiles, clock: ManualClock, rng: random.Random, log: Logger) -> None:
        self.name = name
        self.files = files
        self.clock = clock
        self.rng = rng
        self.log = log
        self.scheduler = SimScheduler(clock, rng)
        self.runtime: Runtime | None = None

    def start(self) -> bool:
        self.scheduler = SimScheduler(self.clock, self.rng)
        try:
            store = FileEventStore(_STORE, limits=_LIMITS, files=self.files, clock=self.clock)
        except StorageUnavailable:
            return False
        self.runtime = Runtime(store, limits=_LIMITS, seams=self.scheduler.seams, log=self.log)
        return True

    def die(self) -> None:
        runtime, self.runtime = self.runtime, None
        if runtime is not None:
            runtime.abandon()
        self.scheduler.clear()


class Simulation:
    """One run, wholly determined by its seed.

    Args:
        seed: any integer.
        steps: how many steps of chance, before everything is healed and compared.
        trace: keep a line for each step in the report.

    Raises from ``run``:
        SimulationFailure: a promise was broken; it says the seed and the step.
    """

    def __init__(self, seed: int, *, steps: int = 250, trace: bool = False) -> None:
        self.seed = seed
        self._number = next(_numbers)
        self._steps = steps
        self._rng = random.Random(seed)
        self._clock = ManualClock()
        self._model = Model()
        log = get_logger(simulation=self._number)
        first = FaultyFiles()
        count = self._rng.choice((1, 1, 2, 3))
        views = [first, *(first.another_process() for _ in range(count - 1))]
        self._processes = [_Process(f"p{n}", view, self._clock, self._rng, log) for n, view in enumerate(views)]
        self._waiting: list[tuple[Attempt, Future[Any], _Process]] = []
        self._followers: list[_Follower] = []
        self._trace: list[str] | None = [] if trace else None
        self._step = 0
        self._counts = {"crashes": 0, "power_cuts": 0, "halts": 0}
        self._faulty = self._rng.random() < 0.8
        self._ids = itertools.count(1)
        self._check = LogCheck(lambda event: event.get("simulation") == self._number)
        self._peaceful_actions: list[tuple[Callable[[_Process], None], float]] = [
            (self._submit, 22),
            (self._turns, 50),
            (self._follow, 8),
            (self._pass_time, 6),
            (self._send, 4),
            (self._close, 1),
        ]
        self._actions = [
            *self._peaceful_actions,
            (self._break_something, 5),
            (self._repair, 2),
            (self._kill, 1),
            (self._power_cut, 0.5),
        ]

    def run(self) -> SimulationReport:
        """Run to the end and return what happened."""
        before = set(ActorRegistry.get_all())
        add_sink(self._check)
        try:
            for step in range(self._steps):
                self._step = step
                self._one_step()
            self._settle_all()
            self._compare()
            self._check.verify()
        except SimulationFailure:
            raise
        except AssertionError as error:
            raise self._fail(str(error)) from error
        except (Exception, Crashed) as error:
            raise SimulationFailure(self.seed, self._step, f"unexpected {error!r}") from error
        finally:
            remove_sink(self._check)
            for process in self._processes:
                process.die()
            for ref in ActorRegistry.get_all():
                if ref not in before:
                    ActorRegistry.unregister(ref)
        return SimulationReport(
            seed=self.seed,
            steps=self._step,
            acknowledged=self._model.acknowledged,
            delivered=sum(len(follower.seen) for follower in self._followers),
            trace=tuple(self._trace or ()),
            **self._counts,
        )

    @property
    def trace(self) -> list[str]:
        """The steps so far, when the trace was asked for."""
        return self._trace or []

    def _say(self, line: str) -> None:
        if self._trace is not None:
            self._trace.append(f"{self._step:5} {line}")

    def _fail(self, message: str) -> SimulationFailure:
        return SimulationFailure(self.seed, self._step, message)

    # -- the steps of chance ------------------------------------------------------------------------------------

    def _one_step(self) -> None:
        process = self._rng.choice(self._processes)
        if process.runtime is None:
            self._say(f"{process.name} starts")
            self._guarded(process, process.start)
            return
        actions = self._actions if self._faulty else self._peaceful_actions
        action = self._rng.choices([each for each, _ in actions], [weight for _, weight in actions])[0]
        self._guarded(process, lambda: action(process))

    def _guarded(self, process: _Process, action: Callable[[], object]) -> None:
        """Do something in a process; when the disk makes it crash, it is dead."""
        try:
            action()
        except Crashed:
            self._crash(process, "crashes in an operation")
        self._collect()

    def _pass_time(self, process: _Process) -> None:
        self._clock.advance(self._rng.choice((0.001, 0.05, 0.3)))
        process.scheduler.fire_timers()

    def _turns(self, process: _Process) -> None:
        for _ in range(self._rng.choice((1, 1, 2, 5, 12))):
            if not process.scheduler.step():
                return

    def _submit(self, process: _Process) -> None:
        runtime = process.runtime
        assert runtime is not None
        session_id = self._rng.choice(_SESSIONS)
        session = runtime.session(session_id)
        attempt = self._model.next_attempt(session_id, self._rng, self._ids)
        expected: int | None = None
        try:
            if self._rng.random() < 0.1:
                expected = session.last_seq + self._rng.choice((0, 0, 1, -1))
                expected = max(0, expected)
            future: Future[Any]
            if len(attempt.events) == 1 and self._rng.random() < 0.7:
                only = attempt.events[0]
                future = session.submit(
                    "job.event", only.payload, id=only.event_id, job_id=only.job_id, expected_seq=expected
                )
                attempt.single = True
            else:
                future = session.submit_many(attempt.envelopes(), expected_seq=expected)
        except LogmarkError as error:
            self._say(f"{process.name} {session_id}: refused at the call: {type(error).__name__}")
            attempt.answered(error)
            return
        attempt.expected_seq = expected
        self._waiting.append((attempt, future, process))
        self._say(f"{process.name} {session_id}: submits {[event.event_id for event in attempt.events]}")

    def _send(self, process: _Process) -> None:
        assert process.runtime is not None
        process.runtime.session(self._rng.choice(_SESSIONS)).send("session.ping", {"n": self._step})

    def _follow(self, process: _Process) -> None:
        """Open a subscription, read from one, or close one and come back later."""
        assert process.runtime is not None
        follower = self._rng.choice(self._followers) if self._followers and self._rng.random() < 0.8 else None
        if follower is None:
            follower = _Follower(self._rng.choice(_SESSIONS), None, [])
            follower.next_seq = self._rng.choice((1, 1, None))
            self._followers.append(follower)
        if follower.subscription is None:
            self._subscribe(process.runtime, follower)
        elif self._rng.random() < 0.1:
            follower.next_seq = follower.subscription.next_seq
            follower.subscription.close()
            follower.subscription = None
        else:
            self._read(follower, self._rng.randrange(1, 20))

    def _subscribe(self, runtime: Runtime, follower: _Follower) -> None:
        session = runtime.session(follower.session_id)
        try:
            follower.subscription = session.subscribe(follower.next_seq, control=self._rng.random() < 0.5)
        except CursorAhead as error:
            raise self._fail(f"a subscriber that was at {follower.next_seq} is told {error}") from error
        except (SessionHalted, LogCorrupt, StorageUnavailable, LogmarkError) as error:
            self._say(f"{follower.session_id}: subscription refused: {type(error).__name__}")
            return
        if follower.next_seq is None:
            follower.next_seq = follower.subscription.next_seq

    def _read(self, follower: _Follower, count: int) -> None:
        subscription = follower.subscription
        assert subscription is not None
        for _ in range(count):
            try:
                event = subscription.get(timeout=0)
            except WaitTimeout:
                return
            except SubscriptionClosed:
                follower.next_seq, follower.subscription = subscription.next_seq, None
                return
            except LogmarkError as error:
                self._say(f"{follower.session_id}: reading: {type(error).__name__}: {error}")
                return
            if event.event_seq is None:
                continue
            if follower.seen and event.event_seq <= follower.seen[-1][0]:
                raise self._fail(f"{follower.session_id}: {event.event_seq} shown after {follower.seen[-1][0]}")
            if not self._model.was_submitted(follower.session_id, str(event.id), event.payload):
                raise self._fail(f"{follower.session_id}: shown an event that nobody submitted: {event!r}")
            follower.seen.append((event.event_seq, str(event.id)))
            follower.next_seq = event.event_seq + 1

    # -- what goes wrong ----------------------------------------------------------------------------------------

    def _break_something(self, process: _Process) -> None:
        what = self._rng.choice(("enospc", "eio", "sync", "short", "crash", "crash", "sync_dir", "read", "truncate"))
        n = self._rng.choice((1, 1, 2, 3, 7))
        files = process.files
        self._say(f"{process.name}: will fail: {what} {n}")
        match what:
            case "enospc":
                files.fail("write", n, error=errno.ENOSPC)
            case "eio":
                files.fail("write", n, error=errno.EIO)
            case "sync":
                files.fail("sync", n, error=errno.EIO)
            case "sync_dir":
                files.fail("sync_dir", n, error=errno.EIO)
            case "read":
                files.fail("read", n, error=errno.EIO)
            case "truncate":
                files.fail("truncate", n, error=errno.EIO)
            case "short":
                files.short("write", n, size=self._rng.randrange(0, 200))
            case _:
                files.crash(self._rng.choice((None, None, "write", "sync", "rename")), self._rng.randrange(1, 40))

    def _crash(self, process: _Process, how: str) -> None:
        self._say(f"{process.name} {how}")
        self._counts["crashes"] += 1
        runtime = process.runtime
        process.die()
        process.files.heal()
        process.files.restart()
        self._orphan({process}, {runtime})

    def _kill(self, process: _Process) -> None:
        self._crash(process, "is killed")

    def _power_cut(self, _: _Process) -> None:
        self._say("the power goes")
        self._counts["power_cuts"] += 1
        runtimes = {process.runtime for process in self._processes}
        for process in self._processes:
            process.die()
            process.files.heal()
        self._processes[0].files.power_cut(self._rng)
        self._orphan(set(self._processes), runtimes)

    def _orphan(self, processes: set[_Process], runtimes: set[Runtime | None]) -> None:
        """Callers and subscribers of the dead get no answer: their appends may or may not be in the log."""
        for attempt, _, owner in self._waiting:
            if owner in processes:
                attempt.answered(None)
        self._waiting = [each for each in self._waiting if each[2] not in processes]
        stores = {id(runtime.store) for runtime in runtimes if runtime is not None}
        for follower in self._followers:
            subscription = follower.subscription
            if subscription is not None and id(subscription.store) in stores:
                follower.subscription = None

    def _repair(self, process: _Process) -> None:
        assert process.runtime is not None
        session_id = self._rng.choice(_SESSIONS)
        store = process.runtime.store
        try:
            if store.halted(session_id) is None:
                return
            self._counts["halts"] += 1
            steps = store.repair(session_id)
        except LogmarkError as error:
            self._say(f"{process.name} {session_id}: repair failed: {error!r}")
            return
        self._say(f"{process.name} {session_id}: repaired: {steps}")

    def _close(self, process: _Process) -> None:
        """Close in an orderly way: what was accepted is answered."""
        runtime = process.runtime
        assert runtime is not None
        self._say(f"{process.name} closes")
        process.scheduler.run_until_idle()
        self._collect()
        left = [attempt for attempt, _, owner in self._waiting if owner is process]
        if left:
            raise self._fail(f"idle, and not answered: {left}")
        process.die()
        process.files.restart()
        self._orphan({process}, {runtime})

    # -- answers ------------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        for attempt, future, _ in [each for each in self._waiting if each[1].done()]:
            error = future.exception()
            if error is not None and not isinstance(error, LogmarkError):
                raise self._fail(f"an append failed with {error!r}")
            if isinstance(error, AppendUncertain):
                self._say(f"{attempt.session_id}: uncertain: {error.reason}")
                if error.reason.startswith("the writer failed"):
                    raise self._fail(f"the store raised something: {error.reason}")
            attempt.answered(error)
            if error is None:
                result = future.result()
                first, last = (result, result) if attempt.single else result
                self._say(f"{attempt.session_id}: {first}..{last}")
                problem = self._model.acknowledge(attempt, first, last)
                if problem is not None:
                    raise self._fail(problem)
        self._waiting = [each for each in self._waiting if not each[1].done()]

    # -- the end ------------------------------------------------------------------------------------------------

    def _settle_all(self) -> None:
        """Heal the disk, let everybody finish, repair what is halted, and let every subscriber catch up."""
        self._say("everything is healed")
        for process in self._processes:
            if process.files.crashed:
                self._crash(process, "has crashed")
            process.files.heal()
            if process.runtime is None and not process.start():
                raise self._fail("the store cannot be opened on a sound disk")
            process.scheduler.run_until_idle()
        self._collect()
        if self._waiting:
            raise self._fail(f"never answered: {[attempt for attempt, _, _ in self._waiting]}")
        for process in self._processes:  # also a halt that only the process knows whose disk did not take the marker
            for session_id in _SESSIONS:
                if process.runtime is not None:
                    self._mend(process.runtime, session_id)
        self._let_followers_catch_up()

    def _let_followers_catch_up(self) -> None:
        runtime = self._processes[0].runtime
        assert runtime is not None
        for follower in self._followers:
            if follower.subscription is None and follower.next_seq is not None:
                self._subscribe(runtime, follower)
        for _ in range(3):
            for process in self._processes:
                self._clock.advance(1)
                process.scheduler.fire_timers()
                process.scheduler.run_until_idle()
        for follower in self._followers:
            for _ in range(2):  # who was reading while a repair replaced the segments is told so once, and goes on
                if follower.subscription is not None:
                    self._read(follower, 1_000_000)

    def _mend(self, runtime: Runtime, session_id: str) -> None:
        """Repair what is halted; without a halt nothing may be wrong."""
        store = runtime.store
        if store.halted(session_id) is not None:
            self._counts["halts"] += 1
            store.repair(session_id)
        harmful = [finding for finding in store.verify(session_id) if not finding.harmless]
        if harmful:
            raise self._fail(f"{session_id}: {harmful}")
        # Whoever looks first recovers what a dead process wrote and told nobody of; only then can it be followed.
        store.last_seq(session_id)

    def _compare(self) -> None:
        runtime = self._processes[0].runtime
        assert runtime is not None
        for session_id in _SESSIONS:
            log = [(event.event_seq or 0, str(event.id), event.payload) for event in runtime.session(session_id).read()]
            problem = self._model.compare(session_id, log)
            if problem is not None:
                raise self._fail(problem)
            by_seq = [(seq, event_id) for seq, event_id, _ in log]
            for follower in self._followers:
                if follower.session_id == session_id and follower.seen:
                    shown = [each for each in by_seq if each[0] >= follower.seen[0][0]]
                    if follower.seen != shown:
                        raise self._fail(f"{session_id}: a subscriber saw {follower.seen}, the log has {shown}")
            self._compare_marks(runtime, session_id)

    def _compare_marks(self, runtime: Runtime, session_id: str) -> None:
        recount = JobMarks(runtime.types)
        recount.apply(runtime.store.read(session_id))
        answers: list[list[JobMark] | LogmarkError] = []
        runtime.session(session_id).ask_marks(None, answers.append)
        self._processes[0].scheduler.run_until_idle()
        if answers != [recount.all()]:
            raise self._fail(f"{session_id}: marks {answers}, a recount gives {recount.all()}")
