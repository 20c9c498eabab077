"""Pruning by age and by acknowledgement, and the report: what may go, what stays, and what is said of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

import logmark
from logmark.errors import InvalidArgument, SeqPruned
from logmark.testing import CommandRun

Run = Callable[..., CommandRun]
NOW = dt.datetime.now(dt.UTC)


def days_ago(days: float) -> dt.datetime:
    return NOW - dt.timedelta(days=days)


def filled(runtime: logmark.Runtime, *ages: float, name: str = "s") -> logmark.Session:
    session = runtime.session(name)
    for number, age in enumerate(ages, 1):
        session.append("note", number, timestamp=days_ago(age), job_id="job-1")
    return session


# -- Session.prune ---------------------------------------------------------------------------------------------------


def test_what_is_older_goes_and_numbering_goes_on(runtime: logmark.Runtime) -> None:
    session = filled(runtime, 40, 35, 31, 5, 1)
    assert session.prune(keep_days=30) == 4
    with pytest.raises(SeqPruned) as refused:
        session.read(1)
    assert refused.value.first_available == 4
    assert [event.event_seq for event in session.read(4)] == [4, 5]
    assert session.append("note") == 6
    assert session.job("job-1").mark.count == 5  # what was pruned is counted


def test_only_a_beginning_goes_whatever_times_producers_give(runtime: logmark.Runtime) -> None:
    session = filled(runtime, 40, 5, 90, 1)
    assert session.prune(keep_days=30) == 2
    assert [event.event_seq for event in session.read(2)] == [2, 3, 4]


def test_everything_may_be_old(runtime: logmark.Runtime) -> None:
    session = filled(runtime, 40, 35)
    assert session.prune(keep_days=30) == 3
    assert session.page().events == ()
    assert (session.page().has_more, session.last_seq, session.append("note")) == (False, 2, 3)


def test_the_slowest_cursor_decides(runtime: logmark.Runtime) -> None:
    session = filled(runtime, *[1] * 10)
    session.cursor("quick").ack(9)
    session.cursor("slow").ack(4)
    assert session.prune(acked=True) == 5
    assert session.prune(acked=True) == 5
    session.cursor("slow").ack(10)
    assert session.prune(acked=True) == 10


def test_without_a_cursor_nobody_has_acknowledged_anything(runtime: logmark.Runtime) -> None:
    session = filled(runtime, *[1] * 3)
    assert session.prune(acked=True) == 1
    session.cursor("new").ack(0)
    assert session.prune(acked=True) == 1


def test_both_conditions_have_to_hold(runtime: logmark.Runtime) -> None:
    session = filled(runtime, 40, 40, 40, 1, 1)
    session.cursor("ui").ack(2)
    assert session.prune(keep_days=30, acked=True) == 3
    session.cursor("ui").ack(5)
    assert session.prune(keep_days=30, acked=True) == 4


@pytest.mark.parametrize(
    "arguments", [{}, {"keep_days": -1}, {"keep_days": "7"}, {"keep_days": float("nan")}, {"keep_days": 1e12}]
)
def test_what_would_remove_everything_by_mistake_is_refused(
    runtime: logmark.Runtime, arguments: dict[str, Any]
) -> None:
    session = filled(runtime, 40)
    with pytest.raises(InvalidArgument):
        session.prune(**arguments)
    assert session.first_seq == 1


# -- logmark prune ---------------------------------------------------------------------------------------------------


@pytest.fixture
def store(store_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if store_url == "memory:":
        pytest.skip("gone with its process")
    monkeypatch.setenv("LOGMARK_STORE", store_url)
    with logmark.open(store_url) as runtime:
        filled(runtime, 40, 35, 1, name="old")
        filled(runtime, 2, 1, name="new")
        filled(runtime, 40, 1, name="read").cursor("ui").ack(1)
    return store_url


def test_prune_says_what_it_does_and_does_it_once(store: str, run: Run) -> None:
    dry = run("prune", "--keep-days", 30, "--dry-run", "--json")
    done = run("prune", "--keep-days", 30, "--json")
    again = run("prune", "--keep-days", 30)
    assert [ran.code for ran in (dry, done, again)] == [0, 0, 0]
    assert {each["session_id"]: each["removed"] for each in dry.objects} == {"new": 0, "old": 2, "read": 1}
    assert [{**each, "dry_run": True} for each in done.objects] == dry.objects
    assert again.out == "0 numbers of 3 sessions pruned\n"
    with logmark.open(store) as runtime:
        assert {info.session_id: info.first_available for info in runtime.sessions()} == {"new": 1, "old": 3, "read": 2}
        assert runtime.session("old").job("job-1").mark.count == 3


def test_prune_of_what_was_acknowledged_by_name(store: str, run: Run) -> None:
    assert run("prune", "--acked", "read").out.splitlines() == [
        "read: begins with 2, 1 number less",
        "1 number of 1 session pruned",
    ]
    assert run("prune", "--acked").out == "0 numbers of 3 sessions pruned\n"


@pytest.mark.parametrize("arguments", [(), ("--keep-days", "-1"), ("--keep-days", "soon"), ("--acked", "nobody")])
def test_prune_that_cannot_be_meant_is_a_usage_error(store: str, run: Run, arguments: tuple[str, ...]) -> None:
    assert run("prune", *arguments).code == 2


def test_a_session_that_cannot_be_pruned_does_not_stop_the_others(store: str, run: Run) -> None:
    with logmark.open(store) as runtime:
        runtime.store.halt("old", "the disk broke")
    ran = run("prune", "--keep-days", 30, "--json")
    found = {each["session_id"]: each for each in ran.objects}
    assert ran.code == 1
    assert "halted" in found["old"]["error"]
    assert found["read"]["removed"] == 1


# -- logmark report --------------------------------------------------------------------------------------------------


def test_a_report_equals_a_recount(store: str, run: Run) -> None:
    with logmark.open(store) as runtime:
        session = runtime.session("jobs")
        session.append("job.event", 1, job_id="a")
        session.append("job.result", {"final_status": "success"}, job_id="a")
        session.append("job.event", 1, job_id="b")
        session.cursor("ui").ack(1)
        size = sum(len(event.head_json or b"") + len(event.payload_json) for event in session.read_raw())
        session.seal()
    run("prune", "--keep-days", 30, "old")
    ran = run("report", "--json")
    *sessions, total = ran.objects
    found = {each["session_id"]: each for each in sessions}
    assert ran.code == 0
    jobs = found["jobs"]
    assert (jobs["events"], jobs["bytes"], jobs["first_seq"], jobs["last_seq"]) == (3, size, 1, 3)
    assert (jobs["jobs"], jobs["sealed"], jobs["halted"]) == ({"running": 1, "success": 1}, True, None)
    assert [(each["name"], each["position"], each["lag"]) for each in jobs["cursors"]] == [("ui", 1, 2)]
    old = found["old"]
    assert (old["events"], old["first_available"], old["first_seq"], old["last_seq"]) == (1, 3, 3, 3)
    assert old["jobs"] == {"running": 1}
    assert (total["sessions"], total["events"]) == (4, sum(each["events"] for each in sessions))
    assert (total["cursors"], total["lag_max"], total["sealed"], total["halted"]) == (2, 2, 1, 0)


def test_a_report_for_a_person_names_who_is_behind(store: str, run: Run) -> None:
    ran = run("report", "read")
    header, line, behind, total = ran.out.splitlines()
    assert header.split()[:3] == ["SESSION", "EVENTS", "BYTES"]
    assert line.split()[:2] == ["read", "2"]
    assert behind.startswith("cursor ui of read is 1 event behind, at 1; it moved ")
    assert total.startswith("1 session, 2 events, ")


def test_a_halted_session_is_reported_with_the_others(store: str, run: Run) -> None:
    with logmark.open(store) as runtime:
        runtime.store.halt("old", "the disk broke")
    ran = run("report", "--json")
    found = {each.get("session_id"): each for each in ran.objects}
    assert (found["old"]["halted"], found["old"]["events"]) == ("the disk broke", 3)
    assert found[None]["halted"] == 1
