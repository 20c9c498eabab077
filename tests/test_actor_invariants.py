"""The four promises hold after any list of appends, failures, deaths and restarts, in any interleaving of the turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logmark.actors import BroadcastActor, JobActor, SessionActor
from logmark.protocol import AppendError, AppendUncertain, JobMarks, Limits, RawEnvelope, StorageRejected
from logmark.storage import EventStore, SessionBatch
from logmark.testing import (
    ActorHarness,
    HeldCommit,
    ManualTimers,
    MockWriter,
    RecordingSubscriber,
    StepDispatcher,
    encoded_event,
    request_of,
)

NO_SPACE = StorageRejected(session_id="session", reason="no space left", errno=28)
LIMITS = Limits(batch_events_max=4, actor_restarts_max=1000)


class Auditor(RecordingSubscriber):
    """A subscriber that looks at each offer whether it is on disk: before anybody sees it, it must be."""

    def __init__(self, store: EventStore) -> None:
        super().__init__()
        self._store = store
        self.too_early: list[object] = []

    def offer(self, envelopes: tuple[RawEnvelope, ...], last_seq: int) -> None:
        super().offer(envelopes, last_seq)
        stored = {event.event_seq or 0: event for event in self._store.read("session", halted_ok=True)}
        self.too_early += [each for each in envelopes if each.event_seq is not None and stored[each.event_seq] != each]
        if last_seq > max(stored, default=0):
            self.too_early.append(last_seq)


class World:
    """A session, what is done to it, and what became of that."""

    def __init__(self, harness: ActorHarness) -> None:
        self.harness = harness
        self.turns = StepDispatcher()
        self.futures: dict[str, Future[int]] = {}
        self.sent: list[str] = []
        self.held: list[HeldCommit] = []
        self.questions: list[Future[Any]] = []
        self.auditors: list[Auditor] = []
        self.writers: list[MockWriter] = []
        self.actors_failed = False
        self._undo: list[Callable[[], None]] = []
        self._session_breaks = False

    def do(self, name: str, n: int) -> None:
        """Do one thing; as ``Session`` does, start an actor where the last one has given up."""
        if not self.harness.session.is_alive():
            self.harness.session = self.harness.start_session()
        getattr(self, name)(n)

    # Each is one thing that may happen; the number says how much of it.

    def append(self, n: int) -> None:
        for _ in range(n):
            event_id = f"e{len(self.futures)}"
            job_id = f"job-{n}" if n % 2 else None
            self.futures[event_id] = self.harness.append("job.event", n, id=event_id, job_id=job_id)

    def append_many(self, n: int) -> None:
        event_id = f"e{len(self.futures)}"
        events = [encoded_event("job.event", id=f"{event_id}.{part}") for part in range(1, n)]
        self.futures[event_id] = self.harness.append_many([encoded_event("job.event", id=event_id), *events])

    def send(self, n: int) -> None:
        for _ in range(n):
            self.sent.append(f"session.{len(self.sent)}")
            self.harness.send(self.sent[-1])

    def cancel(self, n: int) -> None:
        for future in list(self.futures.values())[-n:]:
            future.cancel()

    def turn(self, n: int) -> None:
        dispatcher = self.harness.dispatcher
        assert isinstance(dispatcher, StepDispatcher)
        for _ in range(n):
            dispatcher.step()

    def hold(self, n: int) -> None:
        self.held.append(self.harness.writer.hold())

    def release(self, n: int) -> None:
        for held in self.held[:n]:
            held.release()

    def fail(self, n: int) -> None:
        self.harness.writer.fail_next(NO_SPACE, request=None if n > 2 else n)

    def doubt(self, n: int) -> None:
        self.harness.writer.fail_next(AppendUncertain(session_id="session", reason="fsync failed"))

    def die(self, n: int) -> None:
        if n == 1:
            self.harness.writer.die()
        else:
            self.harness.writer.die_next(silent=n > 2, written=n > 3)
        self.replace(n)

    def replace(self, n: int) -> None:
        harness = self.harness
        self.writers.append(harness.writer)
        harness.writer = MockWriter(store=harness.store, dispatcher=harness.dispatcher, clock=harness.clock)

    def clear(self, n: int) -> None:
        self.harness.store.clear_halt("session")

    def subscribe(self, n: int) -> None:
        self.auditors.append(Auditor(self.harness.store))
        self.harness.subscribe(self.auditors[-1])

    def ask(self, n: int) -> None:
        self.questions.append(self.harness.marks())

    def others(self, n: int) -> None:
        self.harness.store.append([SessionBatch("session", tuple(request_of() for _ in range(n)))])
        self.harness.observe(self.harness.store.last_seq("session"))

    def time(self, n: int) -> None:
        timers = self.harness.timers
        assert isinstance(timers, ManualTimers)
        timers.advance(n / 10)

    def break_session(self, n: int) -> None:
        if not self._session_breaks:  # a second failure, while it mends the first, is the end of it and no restart
            self._session_breaks = True
            self._raise_once(SessionActor, ["_on_persisted", "_announce", "on_drained", "_on_observed"][n - 1])

    def break_others(self, n: int) -> None:
        owner, name = [(BroadcastActor, "_offer"), (JobActor, "_fold"), (JobActor, "on_drained")][n % 3]
        self._raise_once(owner, name)

    def _raise_once(self, owner: Any, name: str) -> None:
        self.actors_failed = True
        original = getattr(owner, name)

        def raising(*args: Any, **options: Any) -> Any:
            setattr(owner, name, original)
            if owner is SessionActor:
                self._session_breaks = False
            raise RuntimeError(name)

        setattr(owner, name, raising)
        self._undo.insert(0, lambda: setattr(owner, name, original))

    def mend(self) -> None:
        """Forget the failures that have not happened yet."""
        self._session_breaks = False
        for undo in self._undo:
            undo()
        self._undo.clear()
        for writer in (*self.writers, self.harness.writer):
            writer._plans.clear()

    def settle(self) -> None:
        for _ in range(20):
            for held in self.held:
                held.release()
            self.harness.advance(1.0)
        self.mend()
        self.do("replace", 1)
        self.harness.advance(1.0)
        self.harness.store.clear_halt("session")

    def check(self) -> None:
        harness = self.harness
        log = {event.event_seq or 0: event for event in harness.log}
        ids = {event.id: seq for seq, event in log.items()}

        assert list(log) == list(range(1, len(log) + 1))
        for event_id, future in self.futures.items():
            assert future.done(), f"{event_id} was left without an answer"
            if future.cancelled():
                assert event_id not in ids
                continue
            error = future.exception(0)
            if error is None:
                assert ids[event_id] == future.result(0)
            else:
                assert isinstance(error, AppendError)
                assert isinstance(error, AppendUncertain) or event_id not in ids
        assert all(question.done() for question in self.questions)
        assert (harness.gate.events, harness.gate._bytes) == (0, 0)
        assert harness.last_seq == len(log)
        self.check_orders(log)

        marks = JobMarks(harness.types)
        marks.apply(harness.log)
        question = harness.marks()
        harness.run()
        assert question.result(0) == marks.all()

    def check_orders(self, log: dict[int, RawEnvelope]) -> None:
        submitted = [event.id for event in log.values() if event.id in self.futures]
        assert submitted == sorted(submitted, key=lambda event_id: int((event_id or "")[1:]))
        for auditor in self.auditors:
            assert auditor.too_early == []
            assert auditor.seqs == sorted(set(auditor.seqs))
            assert auditor.ended or auditor.last_seq == len(log)
            controls = [name for name in auditor.types if name.startswith("session.")]
            assert controls == [name for name in self.sent if name in controls]
        if not self.actors_failed:
            assert not any(auditor.ended for auditor in self.auditors)
            controls = [name for name in self.auditors[0].types if name.startswith("session.")]
            assert controls == self.sent


OPERATIONS = [name for name in vars(World) if name in (
    "append", "append_many", "send", "cancel", "turn", "hold", "release", "fail", "doubt", "die", "clear",
    "subscribe", "ask", "others", "time", "break_session", "break_others",
)]  # fmt: skip

steps = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(1, 4)), max_size=40)


@example(script=[("append", 1), ("turn", 4), ("hold", 1), ("append", 2), ("turn", 4), ("die", 1), ("time", 3)])
@example(script=[("hold", 1), ("append", 1), ("turn", 4), ("break_session", 1), ("release", 1), ("append", 2)])
@example(
    script=[("hold", 1), ("append", 1), ("turn", 4), ("append", 2), ("send", 1), ("break_session", 4), ("others", 1)]
)
@given(script=steps)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_promises_hold_whatever_happens(script: list[tuple[str, int]]) -> None:
    """Rows 43 to 49, 53, 60 and 64 in any mixture."""
    with ActorHarness(stepped=True, limits=LIMITS, failures_ok=True) as harness:
        world = World(harness)
        with contextlib.ExitStack() as stack:
            stack.callback(world.mend)
            world.subscribe(1)
            harness.run()
            for name, n in script:
                world.do(name, n)
            world.settle()
            world.futures["e999999"] = harness.append(id="e999999")
            harness.advance(1.0)
            assert world.futures["e999999"].exception(0) is None
            world.check()
