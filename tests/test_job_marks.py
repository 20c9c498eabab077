"""Every job knows its mark: the fold over any history equals a recount, and a terminal status is never left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import logmark
from logmark import Envelope, JobMark, RawEnvelope
from logmark.protocol import EventTypes, JobMarks
from logmark.testing import CapturedLogs

TERMINAL = ("success", "error", "cancelled", "timed_out")
OWN_RULES: dict[str, Any] = {
    "build.started": "running",
    "build.queued": "pending",
    "build.blocked": "blocked",
    "build.done": lambda payload: payload.get("status") if isinstance(payload, dict) else None,
    "build.failed": "error",
}


class Happening(NamedTuple):
    type: str
    payload: Any
    status: str | None  # what it makes of its job; None: running, if it is not more yet


HAPPENINGS = (
    Happening("job.event", {"kind": "log"}, None),
    Happening("message.created", 1, None),
    Happening("job.event", {"final_status": "error"}, None),
    Happening("job.result", {"final_status": "success"}, "success"),
    Happening("job.result", {}, "success"),
    Happening("job.result", None, "success"),
    Happening("job.result", {"final_status": "cancelled"}, "cancelled"),
    Happening("job.result", {"final_status": "timed_out"}, "timed_out"),
    Happening("job.result", {"final_status": ["x"]}, "success"),
    Happening("job.error", {"final_status": "error"}, "error"),
    Happening("job.error", None, "error"),
    Happening("job.error", {"code": "CANCELLED"}, "cancelled"),
    Happening("job.error", {"code": "TIMEOUT"}, "timed_out"),
    Happening("job.error", {"code": {"a": 1}}, "error"),
    Happening("job.error", {"final_status": "cancelled"}, "cancelled"),
    Happening("job.error", {"final_status": "timed_out", "code": "X"}, "timed_out"),
    Happening("job.error", {"final_status": "success"}, "error"),
    Happening("build.started", {}, "running"),
    Happening("build.blocked", {}, "blocked"),
    Happening("build.queued", {}, "pending"),
    Happening("build.failed", {}, "error"),
    Happening("build.done", {"status": "success"}, "success"),
    Happening("build.done", {"status": "half-way"}, "half-way"),
)
histories = st.lists(st.tuples(st.sampled_from(["a", "b", "é", None]), st.sampled_from(HAPPENINGS)), max_size=40)


def recount(history: list[tuple[int, str | None, Happening]]) -> list[JobMark]:
    """Count again in the plainest way, job by job."""
    found: list[JobMark] = []
    for job_id in dict.fromkeys(job_id for _, job_id, _ in history if job_id is not None):
        mine = [(seq, happening) for seq, each, happening in history if each == job_id]
        status = "pending"
        for _, happening in mine:
            if status not in TERMINAL:
                status = happening.status or ("running" if status == "pending" else status)
        found.append(JobMark(job_id=job_id, first_seq=mine[0][0], last_seq=mine[-1][0], count=len(mine), status=status))
    return found


def raw(seq: int, job_id: str | None, happening: Happening) -> RawEnvelope:
    envelope = Envelope(type=happening.type, payload=happening.payload, job_id=job_id, event_seq=seq, session_id="s")
    return RawEnvelope.from_wire(envelope.to_wire())


@given(histories, st.lists(st.integers(1, 5), max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_the_fold_equals_a_recount_however_it_is_fed(
    happenings: list[tuple[str | None, Happening]], gaps: list[int], cuts: list[int]
) -> None:
    """Events come in batches, some twice (catch-up and live overlap), and reserved numbers leave gaps."""
    seq = 0
    history: list[tuple[int, str | None, Happening]] = []
    for index, (job_id, happening) in enumerate(happenings):
        seq += gaps[index] if index < len(gaps) else 1
        history.append((seq, job_id, happening))
    events = [raw(*each) for each in history]
    marks = JobMarks(EventTypes(job_status=OWN_RULES))
    before: dict[str, JobMark] = {}
    for start in (0, *sorted(cuts)):
        moved = marks.apply(events[: start + 3])
        now = {mark.job_id: mark for mark in marks.all()}
        assert {mark.job_id: mark for mark in moved} == {
            name: now[name] for name in now if before.get(name) != now[name]
        }
        for name, mark in before.items():
            assert now[name].last_seq >= mark.last_seq
            if mark.status in TERMINAL:
                assert now[name].status == mark.status
        before = now
    marks.apply(events)
    assert marks.all() == recount(history)
    assert marks.last_seq == seq
    for mark in marks.all():
        assert marks.get(mark.job_id) == mark
        assert mark.first_seq <= mark.last_seq
        assert 1 <= mark.count <= mark.last_seq - mark.first_seq + 1
    assert marks.apply(events) == []
    assert marks.get("unknown") == JobMark(job_id="unknown", first_seq=0, last_seq=0, count=0, status="pending")


def test_control_envelopes_move_no_mark() -> None:
    marks = JobMarks(EventTypes())
    assert marks.apply([RawEnvelope.from_wire(b'{"type":"job.accepted","job_id":"j"}')]) == []
    assert marks.all() == []


@given(histories)
def test_a_session_says_the_same_live_and_after_a_restart(happenings: list[tuple[str | None, Happening]]) -> None:
    """What the actors fold live, in whatever batches, is what a new runtime on the same store reads."""
    with logmark.open("memory:", job_status=OWN_RULES) as runtime:
        session = runtime.session("s")
        for job_id, happening in happenings:
            session.submit(happening.type, happening.payload, job_id=job_id)
        history = [(seq, job_id, Happening(*happening)) for seq, (job_id, happening) in enumerate(happenings, 1)]
        session.wait_for(len(history), timeout=10)
        expected = recount(history)
        assert session.jobs() == expected
        for mark in expected:
            assert session.job(mark.job_id).mark == mark
        with logmark.Runtime(runtime.store, types=runtime.types) as another:
            assert another.session("s").jobs() == expected


def test_marks_are_there_at_once_after_a_restart(tmp_path: Path) -> None:
    url = str(tmp_path)
    with logmark.open(url) as runtime:
        session = runtime.session("s")
        for n in range(5):
            session.append("job.event", {"n": n}, job_id="a")
        session.append("job.result", {}, job_id="a")
        session.append("job.event", {}, job_id="b")
        expected = session.jobs()
    assert [(mark.job_id, mark.first_seq, mark.last_seq, mark.count, mark.status) for mark in expected] == [
        ("a", 1, 6, 6, "success"),
        ("b", 7, 7, 1, "running"),
    ]
    with logmark.open(url) as runtime:
        assert runtime.session("s").job("b").mark == expected[1]
        assert runtime.session("s").jobs() == expected
        runtime.session("s").append("job.event", {}, job_id="a")
        assert runtime.session("s").job("a").mark == dataclasses.replace(expected[0], last_seq=8, count=7)


def test_an_event_of_no_job_moves_no_mark(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append("x")
    session.append("job.result", {})
    assert session.jobs() == []
    assert session.job("j").mark == JobMark(job_id="j", first_seq=0, last_seq=0, count=0, status="pending")


@pytest.mark.parametrize("rule", [lambda payload: payload["missing"], lambda payload: 1 / 0])
def test_a_rule_that_raises_costs_the_status_and_nothing_else(
    rule: Callable[[Any], str | None], store_url: str, logs: CapturedLogs
) -> None:
    with logmark.open(store_url, job_status={"x": rule}) as runtime:
        session = runtime.session("s")
        for _ in range(8):  # more than an actor may be restarted
            session.append("x", {}, job_id="j")
        assert session.job("j").mark == JobMark(job_id="j", first_seq=1, last_seq=8, count=8, status="running")
        session.append("job.result", {}, job_id="j")
        assert session.job("j").mark.status == "success"
    assert {each["seq"] for each in logs.named("job_status_rule_failed", session="s")} == set(range(1, 9))
    assert logs.named("actor_failed") == []


def test_a_rule_gets_a_payload_of_its_own(store_url: str) -> None:
    def spoil(payload: Any) -> str:
        payload.clear()
        return "blocked"

    with logmark.open(store_url, job_status={"x": spoil}) as runtime:
        session = runtime.session("s")
        with session.subscribe(1) as subscription:
            session.append("x", {"n": 1}, job_id="j")
            assert session.job("j").mark.status == "blocked"
            assert subscription.get(5).payload == {"n": 1}
            assert next(session.read()).payload == {"n": 1}
