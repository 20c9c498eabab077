"""What single messages mean to the connection's state machine: the draft's, the published clients', and nobody's."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from logmark.protocol.arcp import (
    FEATURES,
    READERS,
    TRANSITIONS,
    Accepted,
    Answer,
    Ask,
    Cancel,
    Cancelled,
    Connection,
    Done,
    Effect,
    Hello,
    JobRecord,
    Leave,
    Ledger,
    ListJobs,
    Moment,
    Profile,
    Refusal,
    Request,
    Send,
    Submit,
    Subscribe,
    Welcomed,
    accepted_payload,
    list_jobs,
)

PROFILE = Profile(
    name="logmark",
    version="1",
    dialect="neutral",
    features=frozenset(FEATURES),
    resume_window_s=600,
    heartbeat_interval_s=30,
    handshake_wait_s=10,
    frame_bytes_max=64 * 1024,
    depth_max=16,
)


class World:
    """A connection, and the least that answers its requests."""

    now = Moment(10**18, 0.0)

    def __init__(self) -> None:
        self.ids = itertools.count(1)
        self.ledger = Ledger("alice", resume_window_ns=10**12, retention_ns=10**12)
        self.facts = 0
        self.asked: list[Request] = []
        self.connection = self.connect()

    def connect(self) -> Connection:
        return Connection(PROFILE, new_id=lambda: str(next(self.ids)), now=self.now)

    def carry_out(self, effects: list[Effect]) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        for effect in effects:
            if isinstance(effect, Send):
                sent.append(orjson.loads(effect.data))
            elif isinstance(effect, Ask):
                self.asked.append(effect.request)
                answer = self.decide(effect.request)
                sent += self.carry_out(self.connection.answer(effect.request, answer, self.now))
        return sent

    def decide(self, request: Request) -> Answer:
        match request:
            case Hello():
                session_id = request.resume.session_id if request.resume else f"sess_{next(self.ids)}"
                return Welcomed(session_id=session_id, resume_token=f"rtk_{next(self.ids)}", agents=[], after_seq=0)
            case Submit():
                return self.submit(request)
            case Cancel():
                return Cancelled(request.job_id, {})
            case ListJobs():
                return list_jobs(request, self.ledger, lambda job: (job.status, 3), jobs_max=3, bytes_max=600)
            case Subscribe():
                return Refusal("JOB_NOT_FOUND", "there is no such job", request.job_id)
            case _:
                return Done()

    def submit(self, request: Submit) -> Answer:
        job = self.ledger.repeated(request.idempotency_key, request.fingerprint)
        if job is None:
            job = JobRecord(
                job_id=f"job_{next(self.ids)}",
                session_id="sess_1",
                agent=request.agent,
                version="1",
                lease={},
                lease_constraints=None,
                budget=None,
                trace_id=request.trace_id,
                parent_job_id=None,
                instance="i",
                accepted_at_ns=self.now.wall_ns,
                idempotency_key=request.idempotency_key,
                fingerprint=request.fingerprint,
            )
            facts = self.ledger.accept_job(job, running_max=9)
            assert isinstance(facts, list)
            self.facts += 1
            self.ledger.apply(self.facts, *facts[0])
        return job if isinstance(job, Refusal) else Accepted(job.job_id, accepted_payload(job, None), job.trace_id)


def opened(features: tuple[str, ...] = FEATURES) -> tuple[World, Connection]:
    world = World()
    hello = {"type": "session.hello", "payload": {"auth": {"token": "t"}, "capabilities": {"features": features}}}
    (welcome,) = told(world, hello)
    assert welcome["type"] == "session.welcome"
    return world, world.connection


def told(world: World, frame: object) -> list[dict[str, Any]]:
    data = frame if isinstance(frame, bytes) else orjson.dumps(frame)
    return world.carry_out(world.connection.receive(data, world.now))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"type":1}',
        b'{"type":""}',
        b'{"payload":{}}',
        b'{"type":"session.ping","payload":[]}',
        b'{"type":"session.ping","payload":{"nonce":7}}',
        b'{"type":"session.ping","arcp":"1.0"}',
        b'{"type":"session.ping","id":7}',
        b'{"type":"session.ping","session_id":"sess_other"}',
        b'{"type":"session.ping","type":"session.ping"}',
        b'{"type":"session.hello"}',
        b'{"type":"session.welcome"}',
        b'{"type":"session.ack","payload":{"last_processed_seq":-1}}',
        b'{"type":"session.ack","payload":{"last_processed_seq":true}}',
        b'{"type":"session.ack","payload":{"last_processed_seq":1.5}}',
        b'{"type":"job.submit","payload":{}}',
        b'{"type":"job.submit","payload":{"agent":"a","max_runtime_sec":0}}',
        b'{"type":"job.submit","trace_id":"00000000000000000000000000000000","payload":{"agent":"a"}}',
        b'{"type":"job.submit","trace_id":"XYZ","payload":{"agent":"a"}}',
        b'{"type":"job.subscribe","payload":{"job_id":"j","history":1}}',
        b'{"type":"job.subscribe","payload":{"job_id":"j","from_event_seq":-1}}',
        b'{"type":"job.cancel","payload":{}}',
        b'{"type":"session.list_jobs","payload":{"limit":0}}',
        b'{"type":"session.list_jobs","payload":{"cursor":"no"}}',
        b'{"type":"session.list_jobs","payload":{"filter":{"created_after":"yesterday"}}}',
        b'{"type":"session.list_jobs","payload":{"filter":{"status":[1]}}}',
        b'{"type":"session.ping","payload":' + b'{"a":' * 40 + b"1" + b"}" * 41,
        b'{"type":"session.ping","payload":{"a":"' + b"x" * 70_000 + b'"}}',
    ],
)
def test_what_is_malformed_is_answered_and_the_session_goes_on(data: bytes) -> None:
    world, connection = opened()
    (answer,) = told(world, data)
    assert (answer["type"], answer["payload"]["code"]) == ("session.error", "INVALID_REQUEST")
    assert connection.state == "open"
    assert told(world, {"type": "session.ping", "payload": {"nonce": "n"}})[0]["payload"]["ping_nonce"] == "n"


@pytest.mark.parametrize("state", TRANSITIONS)
@pytest.mark.parametrize("type_", [*READERS, "session.welcome", "job.event", "x"])
def test_a_message_is_understood_in_its_states_only(state: str, type_: str) -> None:
    world = World()
    if state == "open":
        world, _ = opened()
    elif state == "deciding":
        hello = {"type": "session.hello", "payload": {"auth": {"token": "t"}}}
        assert isinstance(world.connection.receive(orjson.dumps(hello), world.now)[0], Ask)
    elif state == "closed":
        world.connection.leave("", None, world.now)
    effects = world.connection.receive(orjson.dumps({"type": type_, "id": "x", "payload": {}}), world.now)
    refused = [orjson.loads(each.data) for each in effects if isinstance(each, Send) and each.type == "session.error"]
    if state == "closed":
        assert effects == []
    elif type_ not in TRANSITIONS[state]:  # type: ignore[index]
        assert [each["payload"]["request_id"] for each in refused] == ["x"]
    assert (Leave in map(type, effects)) == (
        state in ("opening", "deciding") or (state == "open" and type_ in ("session.close", "session.bye"))
    )


def test_a_feature_that_was_not_negotiated_cannot_be_used() -> None:
    world, connection = opened(features=("heartbeat",))
    for type_ in ("session.list_jobs", "job.subscribe", "job.unsubscribe"):
        (answer,) = told(world, {"type": type_, "payload": {"job_id": "j"}})
        assert answer["payload"]["code"] == "INVALID_REQUEST"
    connection.sent(5, world.now)
    assert told(world, {"type": "session.ack", "payload": {"last_processed_seq": 5}}) == []
    assert connection.acked == 0


def test_an_acknowledgement_only_rises_and_never_beyond_what_was_sent() -> None:
    world, connection = opened()
    connection.sent(5, world.now)
    for seq, expected in ((3, 3), (10**9, 5), (2, 5), (5, 5)):
        assert told(world, {"type": "session.ack", "payload": {"last_processed_seq": seq}}) == []
        assert connection.acked == expected
    assert connection.lag == 0


def test_what_the_draft_leaves_out_may_be_left_out() -> None:
    """Envelopes in the draft's examples have neither ``arcp`` nor ``id``; unknown members are ignored (section 5)."""
    world, _ = opened()
    (answer,) = told(world, {"type": "job.submit", "payload": {"agent": "a", "later": 1}, "later": {"x": 1}})
    assert answer["type"] == "job.accepted"
    assert "request_id" not in answer["payload"]
    (answer,) = told(world, {"type": "job.cancel", "job_id": answer["job_id"], "payload": {}})
    assert answer["type"] == "job.cancelled"


def test_a_traceparent_gives_its_trace_id() -> None:
    world, _ = opened()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    for value in (trace, f"00-{trace}-00f067aa0ba902b7-01"):
        (answer,) = told(world, {"type": "job.submit", "trace_id": value, "payload": {"agent": "a"}})
        assert answer["trace_id"] == answer["payload"]["trace_id"] == trace


def test_the_resume_message_of_the_draft_is_understood() -> None:
    """Section 6.3 names ``session.resume``; published clients put the same into ``session.hello``."""
    world, _ = opened()
    session_id, token = "sess_1", "rtk_1"
    world.connection = connection = world.connect()
    payload = {"auth": {"token": "t"}, "resume_token": token, "last_event_seq": 0}
    (answer,) = told(world, {"type": "session.resume", "session_id": session_id, "payload": payload})
    assert answer["payload"]["session_id"] == session_id == connection.session_id
    assert answer["payload"]["resume_token"] != token


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": [1.0]}, {"b": [1], "a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": None}, {}, False),
        ([1, 2], [2, 1], False),
    ],
)
def test_a_fingerprint_is_of_the_parameters_however_they_are_spelled(one: Any, other: Any, same: bool) -> None:
    world, _ = opened()
    plain: dict[str, Any] = {"agent": "a", "idempotency_key": "k", "input": one}
    padded: dict[str, Any] = {"lease_request": {}, "max_runtime_sec": None, **plain, "input": other}
    answers = [told(world, {"type": "job.submit", "payload": each})[0] for each in (plain, padded)]
    assert (answers[1]["type"] == "job.accepted") == same
    if same:
        assert answers[0]["payload"] == answers[1]["payload"]
    else:
        assert answers[1]["payload"]["code"] == "DUPLICATE_KEY"


def test_every_other_parameter_counts_for_the_fingerprint() -> None:
    world, _ = opened()
    told(world, {"type": "job.submit", "payload": {"agent": "a", "idempotency_key": "k"}})
    for other in ({"max_runtime_sec": 5}, {"lease_request": {"tool.call": ["*"]}}, {"agent": "b"}, {"x": 1}):
        (answer,) = told(world, {"type": "job.submit", "payload": {"agent": "a", "idempotency_key": "k", **other}})
        assert answer["payload"]["code"] == "DUPLICATE_KEY"
