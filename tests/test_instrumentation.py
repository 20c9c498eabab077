"""Being measured: what an instrumentation is told, and that its faults are its own."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.actors import AppendSpan, Notice, PersistedBatch
from logmark.errors import InvalidArgument, Overloaded, WrongExpectedSeq
from logmark.protocol import RawEnvelope
from logmark.storage import BatchResult, MemoryEventStore, SessionBatch
from logmark.testing import CapturedLogs, eventually

SOON = 30.0


class Heard(logmark.Instrumentation):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.batches: list[PersistedBatch] = []
        self.refused: list[str] = []
        self.notices: list[Notice] = []
        self.opened_by: list[Callable[[], Any]] = []
        self.closed_by: list[Callable[[], Any]] = []

    def opened(self, health: Callable[[], Any]) -> None:
        self.opened_by.append(health)

    def closed(self, health: Callable[[], Any]) -> None:
        self.closed_by.append(health)

    def batch_persisted(self, batch: PersistedBatch) -> None:
        self.batches.append(batch)

    def append_refused(self, error: str) -> None:
        self.refused.append(error)

    def noticed(self, notice: Notice) -> None:
        self.notices.append(notice)


class Span:
    trace_id: str | None = "ab" * 16
    extensions: Mapping[str, Any] = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}

    def __init__(self) -> None:
        self.ends: list[object] = []

    def end(self, answer: tuple[int, int] | BaseException) -> None:
        self.ends.append(answer)


class Tracer(Heard):
    """Traces everything, and keeps the spans."""

    traces = True

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[tuple[str, list[str], str | None]] = []
        self.spans: list[Span] = []
        self.delivered: list[tuple[int | None, float | None]] = []

    def append_begun(self, session_id: str, types: Sequence[str], trace_id: str | None) -> AppendSpan | None:
        self.begun.append((session_id, list(types), trace_id))
        self.spans.append(Span())
        return self.spans[-1]

    def event_delivered(self, event: RawEnvelope, waited_s: float | None) -> None:
        self.delivered.append((event.event_seq, waited_s))


class SlowStore(MemoryEventStore):
    """Lets no batch through until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.entered.set()
        assert self.go_on.wait(SOON)
        return super().append(batches)


def test_a_commit_is_told_once_with_what_became_of_each_append(store_url: str) -> None:
    heard = Heard()
    with logmark.open(store_url, instrumentation=heard) as runtime:
        session = runtime.session("a")
        session.append("x", {"n": 1}, id="one")
        session.append_many([("x", 1), ("x", 2), ("x", 3)])
        session.append("x", {"n": 1}, id="one")
        with pytest.raises(WrongExpectedSeq):
            session.append("x", expected_seq=1)

    said = [(b.session_id, b.first_seq, b.last_seq, b.events, b.retries, dict(b.errors)) for b in heard.batches]
    assert said == [
        ("a", 1, 1, 1, 0, {}),
        ("a", 2, 4, 3, 0, {}),
        ("a", 0, 0, 0, 1, {}),
        ("a", 0, 0, 0, 0, {"WrongExpectedSeq": 1}),
    ]
    assert [len(batch.appends_s) for batch in heard.batches] == [1, 1, 1, 0]
    assert all(batch.size_bytes > 0 for batch in heard.batches[:2])
    assert all(batch.appends_s[0] > 0 for batch in heard.batches[:3])
    assert all(0 <= batch.sync_s <= batch.commit_s < SOON for batch in heard.batches)
    assert (heard.opened_by, heard.closed_by) == ([runtime.health], [runtime.health])


def test_many_appends_that_share_a_commit_are_told_as_one() -> None:
    store, heard = SlowStore(), Heard()
    with logmark.Runtime(store, instrumentation=heard) as runtime:
        session = runtime.session("a")
        first = session.submit("x")
        assert store.entered.wait(SOON)
        rest = [session.submit("x") for _ in range(20)]
        store.go_on.set()
        assert [future.result(SOON) for future in (first, *rest)] == list(range(1, 22))

    assert [(batch.events, len(batch.appends_s)) for batch in heard.batches] == [(1, 1), (20, 20)]


def test_the_callers_of_a_commit_come_after_it_is_told(store_url: str) -> None:
    heard = Heard()
    with logmark.open(store_url, instrumentation=heard) as runtime:
        for number in range(1, 20):
            runtime.session("a").append("x")
            assert sum(batch.events for batch in heard.batches) == number


def test_an_append_that_finds_no_place_is_told() -> None:
    store, heard = SlowStore(), Heard()
    limits = logmark.Limits(inbox_events_max=1, inbox_wait_s=0.01)
    with logmark.Runtime(store, limits=limits, instrumentation=heard) as runtime:
        session = runtime.session("a")
        waiting = session.submit("x")
        with pytest.raises(Overloaded):
            session.submit("x")
        store.go_on.set()
        waiting.result(SOON)

    assert heard.refused == ["Overloaded"]


@pytest.mark.parametrize("engine", ["file", "sqlite"])
def test_halts_and_torn_tails_are_told_whatever_the_log_lets_through(engine: str, tmp_path: Path) -> None:
    logmark.logs.configure(level="error", stream=io.StringIO())
    heard = Heard()
    with logmark.open(f"{engine}:{tmp_path / 'store'}", instrumentation=heard) as runtime:
        runtime.session("a").append("x")
        runtime.store.halt("a", "on purpose")
        runtime.store.clear_halt("a")

    told = [(notice.event, notice.level, notice.keys["session"]) for notice in heard.notices]
    assert told == [("session_halted", "error", "a"), ("halt_cleared", "warning", "a")]


def test_a_restart_is_told_with_its_actor(raise_once: Callable[..., list[Any]]) -> None:
    heard = Heard()
    with logmark.open("memory:", instrumentation=heard) as runtime:
        session = runtime.session("a")
        session.append("x")
        raise_once(logmark.actors.SessionActor, "_on_persisted")
        session.append("x")

    assert [(notice.event, notice.keys["actor"]) for notice in heard.notices] == [
        ("actor_failed", "session"),
        ("actor_restarted", "session"),
    ]


def test_each_runtime_has_its_own_news(tmp_path: Path) -> None:
    ours, theirs = Heard(), Heard()
    with (
        logmark.open(str(tmp_path / "ours"), instrumentation=ours) as mine,
        logmark.open(str(tmp_path / "theirs"), instrumentation=theirs) as other,
    ):
        mine.session("a").append("x")
        mine.store.halt("a", "on purpose")
        assert (len(ours.batches), len(theirs.batches)) == (1, 0)
        assert ([notice.event for notice in ours.notices], theirs.notices) == (["session_halted"], [])
        assert (mine.health().halted, other.health().halted) == (("a",), ())


def test_a_store_that_is_closed_by_its_runtime_no_longer_tells_it() -> None:
    heard = Heard()
    store = MemoryEventStore()
    store.log = logmark.logs.get_logger(actor="store")
    with logmark.Runtime(store, instrumentation=heard):
        store.log.warning("watch_failed", session="a", error="it is a test")
    store.log.warning("watch_failed", session="a", error="it is a test")

    assert len(heard.notices) == 1


class Broken(logmark.Instrumentation):
    """Raises whenever it is told anything."""

    traces = True

    def __init__(self) -> None:
        self.calls: list[str] = []

    def _raise(self, name: str) -> None:
        self.calls.append(name)
        raise ZeroDivisionError(name)

    def opened(self, health: Callable[[], Any]) -> None:
        self._raise("opened")

    def closed(self, health: Callable[[], Any]) -> None:
        self._raise("closed")

    def batch_persisted(self, batch: PersistedBatch) -> None:
        self._raise("batch_persisted")

    def append_refused(self, error: str) -> None:
        self._raise("append_refused")

    def noticed(self, notice: Notice) -> None:
        self._raise("noticed")

    def append_begun(self, session_id: str, types: Sequence[str], trace_id: str | None) -> AppendSpan | None:
        self._raise("append_begun")
        return None

    def event_delivered(self, event: RawEnvelope, waited_s: float | None) -> None:
        self._raise("event_delivered")


def test_one_that_raises_costs_nobody_anything_and_is_logged_once_for_each_method(
    store_url: str, logs: CapturedLogs
) -> None:
    broken, heard = Broken(), Heard()
    traced = {"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}
    with logmark.open(store_url, instrumentation=[broken, heard]) as runtime:
        session = runtime.session("a")
        with session.subscribe(from_seq=1) as viewer:
            for seq in range(1, 4):
                assert session.append("x", extensions=traced) == seq
            assert session.submit("x", extensions=traced).result(SOON) == 4
            assert session.append_many([("x", 1), ("x", 2)]) == (5, 6)
            assert [viewer.get(timeout=SOON).event_seq for _ in range(6)] == list(range(1, 7))
        assert session.jobs() == []

    failed = [each["hook"] for each in logs.named("instrumentation_failed")]
    assert sorted(failed) == sorted(set(broken.calls))
    assert {"opened", "closed", "batch_persisted", "append_begun", "event_delivered", "noticed"} == set(failed)
    assert sum(batch.events for batch in heard.batches) == 6  # the one behind it is told all the same
    assert {each["level"] for each in logs.named("actor_failed")} == set()


def test_a_span_that_raises_at_its_end_is_its_own_affair(logs: CapturedLogs) -> None:
    class Bad(Tracer):
        def append_begun(self, session_id: str, types: Sequence[str], trace_id: str | None) -> AppendSpan | None:
            span = Span()
            span.end = lambda answer: 1 / 0  # type: ignore[assignment, method-assign]
            return span

    with logmark.open("memory:", instrumentation=Bad()) as runtime:
        session = runtime.session("a")
        assert [session.append("x"), session.submit("x").result(SOON)] == [1, 2]

    assert [each["hook"] for each in logs.named("instrumentation_failed")] == ["append_ended"]


def test_every_way_of_appending_is_traced_from_its_call_to_its_answer(store_url: str) -> None:
    tracer = Tracer()
    with logmark.open(store_url, instrumentation=tracer) as runtime:
        session = runtime.session("a")
        with session.subscribe() as viewer:
            session.append("x", trace_id="cd" * 16)
            session.submit("y", {}).result(SOON)
            session.append_many([("x", 1), logmark.Envelope(type="y", trace_id="ef" * 16, extensions={"own": 1})])
            session.submit_many([logmark.Envelope(type="z", extensions={"traceparent": "theirs"})]).result(SOON)
            with pytest.raises(WrongExpectedSeq):
                session.append("x", expected_seq=1)
            with pytest.raises(WrongExpectedSeq):
                session.submit("x", expected_seq=1).result(SOON)
            with pytest.raises(logmark.errors.InvalidEvent):
                session.append("x", object())
            events = [viewer.get(timeout=SOON) for _ in range(5)]

    assert tracer.begun[:4] == [
        ("a", ["x"], "cd" * 16),
        ("a", ["y"], None),
        ("a", ["x", "y"], None),
        ("a", ["z"], None),
    ]
    ends = [span.ends for span in tracer.spans]
    assert ends[:4] == [[(1, 1)], [(2, 2)], [(3, 4)], [(5, 5)]]
    assert [[type(end).__name__ for end in each] for each in ends[4:]] == [
        ["WrongExpectedSeq"],
        ["WrongExpectedSeq"],
        ["NotEncodable"],
    ]
    # What the producer says counts, and an event of another trace gets no context that contradicts it.
    assert [event.trace_id for event in events] == ["cd" * 16, "ab" * 16, "ab" * 16, "ef" * 16, "ab" * 16]
    assert [event.extensions for event in events] == [
        {},
        Span.extensions,
        Span.extensions,
        {"own": 1},
        {"traceparent": "theirs"},
    ]
    assert [seq for seq, _ in tracer.delivered] == [2, 3, 5]
    assert all(waited_s is not None and 0 <= waited_s < SOON for _, waited_s in tracer.delivered)
    assert [list(batch.spans) for batch in tracer.batches][:4] == [[span] for span in tracer.spans[:4]]


def test_a_cancelled_append_ends_its_span() -> None:
    store, tracer = SlowStore(), Tracer()
    with logmark.Runtime(store, instrumentation=tracer) as runtime:
        session = runtime.session("a")
        first = session.submit("x")
        assert store.entered.wait(SOON)
        second = session.submit("x")
        assert second.cancel()
        store.go_on.set()
        first.result(SOON)

    eventually(lambda: all(span.ends for span in tracer.spans), timeout=SOON)
    assert [type(span.ends[0]).__name__ for span in tracer.spans] == ["tuple", "CancelledError"]


def test_without_a_tracer_events_are_stored_as_they_are_given() -> None:
    with logmark.open("memory:", instrumentation=Heard()) as runtime:
        assert runtime.tracing is None
        session = runtime.session("a")
        session.append("x")
        (event,) = session.read()

    assert (event.trace_id, event.extensions) == (None, {})


@pytest.mark.parametrize("wrong", ["prometheus", object(), [Heard(), None], logmark.Instrumentation])
def test_what_is_no_instrumentation_is_refused_before_there_is_a_store(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="instrumentation"):
        logmark.open(str(tmp_path / "store"), instrumentation=wrong)
    assert not (tmp_path / "store").exists()


def test_only_one_may_trace() -> None:
    with pytest.raises(InvalidArgument, match="only one"):
        logmark.open("memory:", instrumentation=[Tracer(), Tracer()])


def test_runtimes_that_share_a_logger_do_not_share_their_news() -> None:
    log, ours, theirs = logmark.logs.get_logger(), Heard(), Heard()
    with (
        logmark.Runtime(MemoryEventStore(), log=log, instrumentation=ours) as mine,
        logmark.Runtime(MemoryEventStore(), log=log, instrumentation=theirs),
    ):
        mine.log.warning("watch_failed", session="a", error="it is a test")

    assert (len(ours.notices), len(theirs.notices)) == (1, 0)
