"""Which types carry a number: one table, and no way around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import logmark
from logmark import Envelope
from logmark.errors import AppendRejected, InvalidArgument, InvalidEvent, NotControl, NotCountable
from logmark.protocol import ARCP_COUNTABLE, EventTypes

ARCP_CONTROL = (
    "session.hello",
    "session.welcome",
    "session.error",
    "session.ping",
    "session.pong",
    "session.ack",
    "session.list_jobs",
    "session.jobs",
    "session.close",
    "session.closed",
    "session.bye",
    "session.resume",
    "job.submit",
    "job.accepted",
    "job.cancel",
    "job.cancelled",
    "job.subscribe",
    "job.subscribed",
    "job.unsubscribe",
    "session.",
    "job.",
    "session.whatever_comes",
    "job.event.x",
    "job.events",
    "job.result ",
)
OWN = ("message.created", "jobs.event", "sessions.ping", "session", "job", "ping", "Job.event", "JOB.RESULT", "x", " ")

APPENDS: dict[str, Callable[[logmark.Session, str], object]] = {
    "append": lambda session, type_: session.append(type_),
    "submit": lambda session, type_: session.submit(type_).result(5),
    "append_many pair": lambda session, type_: session.append_many([("x", 1), (type_, 1)]),
    "append_many envelope": lambda session, type_: session.append_many([Envelope(type="x"), Envelope(type=type_)]),
    "job": lambda session, type_: session.job("j").append(type_),
}


def test_exactly_three_arcp_types_are_countable() -> None:
    assert {"job.event", "job.result", "job.error"} == ARCP_COUNTABLE
    types = EventTypes()
    assert [each for each in (*ARCP_CONTROL, *ARCP_COUNTABLE) if types.is_countable(each)] == list(ARCP_COUNTABLE)
    assert all(types.is_countable(each) for each in OWN)


def test_own_types_are_countable_unless_registered() -> None:
    types = EventTypes(control=["typing.started", "ping"])
    assert not types.is_countable("typing.started")
    assert not types.is_countable("ping")
    assert types.is_countable("typing.started.x")
    assert types.is_countable("job.event")
    assert not types.is_countable("job.accepted")


@pytest.mark.parametrize("how", APPENDS)
def test_a_control_type_is_never_numbered_or_stored(store_url: str, how: str) -> None:
    with logmark.open(store_url, control_types={"typing.started"}) as runtime:
        session = runtime.session("s")
        for type_ in (*ARCP_CONTROL, "typing.started"):
            with pytest.raises(NotCountable) as caught:
                APPENDS[how](session, type_)
            assert caught.value.type == type_
            assert isinstance(caught.value, InvalidEvent | AppendRejected)
        assert session.last_seq == 0
        assert list(session.read()) == []
        assert list(runtime.sessions()) == []


@pytest.mark.parametrize("type_", [*sorted(ARCP_COUNTABLE), *OWN])
def test_a_countable_type_is_never_sent_as_control(store_url: str, type_: str) -> None:
    with logmark.open(store_url, control_types=["typing.started"]) as runtime:
        session = runtime.session("s")
        with session.subscribe(1, control=True) as subscription:
            with pytest.raises(NotControl) as caught:
                session.send(type_)
            assert caught.value.type == type_
            assert isinstance(caught.value, ValueError)
            for append in APPENDS.values():
                append(session, type_)
            assert [subscription.get(5).type for _ in range(7)].count(type_) >= 5


def test_registered_types_are_sent_unnumbered_and_unstored(store_url: str) -> None:
    with logmark.open(store_url, control_types=["typing.started"]) as runtime:
        session = runtime.session("s")
        with session.subscribe(control=True) as subscription:
            session.send("typing.started", {"who": "me"}, job_id="j", id="01J", trace_id="t", source=1)
            event = subscription.get(5)
            assert (event.type, event.event_seq, event.payload) == ("typing.started", None, {"who": "me"})
            assert (event.job_id, event.id, event.trace_id, event.source) == ("j", "01J", "t", 1)
            assert event.session_id == "s"
            assert event.timestamp is not None
        assert session.last_seq == 0
        assert list(runtime.sessions()) == []
        assert session.jobs() == []


@pytest.mark.parametrize("engine", ["memory:"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"control_types": "ping"},
        {"control_types": [""]},
        {"control_types": [5]},
        {"control_types": ["session.ping"]},
        {"control_types": ["job.event"]},
        {"control_types": ["job.mine"]},
        {"job_status": {"job.result": "success"}},
        {"job_status": {"session.x": "running"}},
        {"job_status": {"": "running"}},
        {"job_status": {5: "running"}},
        {"job_status": {"x": None}},
        {"job_status": {"x": ""}},
        {"job_status": {"x": 5}},
    ],
    ids=repr,
)
def test_arcps_own_table_cannot_be_changed_nor_a_rule_be_nonsense(engine: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        logmark.open(engine, **arguments)
