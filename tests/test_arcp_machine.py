"""The connection's state machine and the ledger, driven at random: whatever arrives, in whatever order."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from logmark.protocol import UlidSequence
from logmark.protocol.arcp import (
    ERROR_CODES,
    FEATURES,
    READERS,
    RESET,
    Accepted,
    Answer,
    Cancel,
    Cancelled,
    Connection,
    Done,
    Effect,
    Fact,
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
    Subscribed,
    Unsubscribe,
    Welcomed,
    accepted_payload,
    list_jobs,
)

SECOND_NS = 10**9
WINDOW_S = 600
UNANSWERED = {"session.pong", "session.ack", "session.bye", "job.unsubscribe"}
PROFILE = Profile(
    name="logmark",
    version="1",
    dialect="neutral",
    features=frozenset(FEATURES),
    resume_window_s=WINDOW_S,
    heartbeat_interval_s=30,
    handshake_wait_s=10,
    frame_bytes_max=64 * 1024,
    depth_max=16,
)


class World:
    """A gateway without sockets, threads or disk: the least that the machine and the ledger need around them."""

    def __init__(self) -> None:
        self.time_s = 1_000_000.0
        self.ulids = UlidSequence(lambda bits: 7)
        self.facts: list[Fact] = []
        self.ledger = self.new_ledger()
        self.lengths: dict[str, int] = {}
        self.tokens: list[tuple[str, str]] = [("sess_none", "rtk_none")]
        self.job_ids: list[str] = ["job_none"]
        self.keys: dict[str, tuple[str, str]] = {}
        self.connection = self.connect()
        self.frames: list[dict[str, Any]] = []

    @property
    def now(self) -> Moment:
        return Moment(int(self.time_s * SECOND_NS), self.time_s)

    def new_id(self) -> str:
        return self.ulids.next(int(self.time_s * 1000))

    def new_ledger(self) -> Ledger:
        return Ledger("alice", resume_window_ns=WINDOW_S * SECOND_NS, retention_ns=3600 * SECOND_NS)

    def connect(self) -> Connection:
        self.frames = []
        return Connection(PROFILE, new_id=self.new_id, now=self.now)

    def append(self, facts: list[Fact]) -> None:
        for type_, payload in facts:
            stored = orjson.loads(orjson.dumps(payload))
            self.facts.append((type_, stored))
            self.ledger.apply(len(self.facts), type_, stored)

    def carry_out(self, effects: list[Effect]) -> list[dict[str, Any]]:
        sent = self.sent_by(effects)
        self.frames += sent
        return sent

    def sent_by(self, effects: list[Effect]) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        for index, effect in enumerate(effects):
            if isinstance(effect, Send):
                sent.append(orjson.loads(effect.data))
            elif isinstance(effect, Leave):
                assert index == len(effects) - 1
            else:
                answer = self.decide(effect.request)
                again = self.connection.answer(effect.request, answer, self.now)
                sent += self.sent_by(again)
                assert self.connection.answer(effect.request, answer, self.now) == []  # one answer, whoever tries again
        return sent

    def decide(self, request: Request) -> Answer:
        now_ns, session_id = self.now.wall_ns, self.connection.session_id or ""
        match request:
            case Hello():
                return self.hello(request)
            case Submit():
                again = self.ledger.repeated(request.idempotency_key, request.fingerprint)
                if isinstance(again, Refusal):
                    return again
                job = again or self.job_of(request, session_id)
                if again is None:
                    facts = self.ledger.accept_job(job, running_max=5)
                    if isinstance(facts, Refusal):
                        return facts
                    self.append(facts)
                    self.job_ids.append(job.job_id)
                return Accepted(job.job_id, accepted_payload(job, None), job.trace_id)
            case Cancel():
                cancelled = self.ledger.cancel_job(
                    request.job_id, session_id=session_id, reason=request.reason, now_ns=now_ns
                )
                if isinstance(cancelled, Refusal):
                    return cancelled
                self.append(cancelled)
                return Cancelled(request.job_id, {})
            case ListJobs():
                return list_jobs(request, self.ledger, lambda job: (job.status, 3), jobs_max=3, bytes_max=600)
            case Subscribe():
                decided = self.ledger.subscribe(
                    request.job_id,
                    session_id=session_id,
                    subscription_id=f"sub_{self.new_id()}",
                    copied_after=0,
                    after_seq=request.from_event_seq,
                    high_water=3,
                    ended=False,
                    history=request.history,
                    subscriptions_max=2,
                    now_ns=now_ns,
                )
                if isinstance(decided, Refusal):
                    return decided
                self.append(decided[1])
                return Subscribed(request.job_id, {"subscribed_from": 3})
            case Unsubscribe():
                self.append(self.ledger.unsubscribe(request.job_id, session_id=session_id, reason="", now_ns=now_ns))
                return Done()
            case _:
                return Done()

    def hello(self, request: Hello) -> Answer:
        if request.token == "wrong":
            return Refusal("UNAUTHENTICATED", "no")
        token, features = f"rtk_{self.new_id()}", frozenset(FEATURES)
        resume = request.resume
        if resume is None:
            session_id, after_seq = f"sess_{self.new_id()}", 0
            self.append(
                self.ledger.open_session(
                    session_id, token_hash=token, features=features, instance="i", now_ns=self.now.wall_ns
                )
            )
            self.lengths[session_id] = 0
        else:
            session_id, after_seq = resume.session_id, resume.last_event_seq
            record = self.ledger.session(session_id)
            before = None if record is None else dataclasses.replace(record)
            decided = self.ledger.resume_session(
                session_id,
                presented_hash=resume.resume_token,
                last_event_seq=after_seq,
                log_first_seq=1,
                log_last_seq=self.lengths.get(session_id, 0),
                token_hash=token,
                features=features,
                instance="i",
                now_ns=self.now.wall_ns,
            )
            if isinstance(decided, Refusal):
                assert self.ledger.session(session_id) == before  # a wrong guess burns nothing
                return decided
            assert before is not None
            assert before.token_hash == resume.resume_token  # the newest one, and no other
            self.append(decided)
        self.tokens.append((session_id, token))
        return Welcomed(session_id=session_id, resume_token=token, agents=[], after_seq=after_seq)

    def job_of(self, request: Submit, session_id: str) -> JobRecord:
        return JobRecord(
            job_id=f"job_{self.new_id()}",
            session_id=session_id,
            agent=request.agent,
            version="1",
            lease={},
            lease_constraints=None,
            budget=None,
            trace_id=request.trace_id,
            parent_job_id=request.parent_job_id,
            instance="i",
            accepted_at_ns=self.now.wall_ns,
            idempotency_key=request.idempotency_key,
            fingerprint=request.fingerprint,
        )


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**19) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    *("agent", "auth", "capabilities", "client", "cursor", "features", "filter", "from_event_seq", "history"),
    *("idempotency_key", "input", "job_id", "last_processed_seq", "lease_request", "limit", "max_runtime_sec"),
    *("nonce", "parent_job_id", "reason", "resume", "token"),
]


@st.composite
def frames(draw: st.DrawFn, world_tokens: int = 8) -> dict[str, Any]:
    """Draw a frame that is mostly right: of a known type, with members that mostly fit, and references to fill in."""
    type_ = draw(st.sampled_from([*READERS, "session.hello", "job.submit", "job.submit", "session.ack", "no.such"]))
    payload: dict[str, Any] = {}
    if type_ in ("session.hello", "session.resume"):
        payload["auth"] = {"scheme": "bearer", "token": draw(st.sampled_from(["t", "t", "t", "wrong"]))}
        payload["capabilities"] = {"features": draw(st.sampled_from([list(FEATURES), list(FEATURES), [], ["ack"]]))}
        if type_ == "session.resume" or draw(st.booleans()):
            block = {
                "$token": draw(st.integers(0, world_tokens)),
                "last_event_seq": draw(st.sampled_from([0, 1, 2, 99])),
            }
            payload |= block if type_ == "session.resume" else {"resume": block}
    elif type_ == "job.submit":
        payload = {"agent": "a", "input": draw(st.sampled_from([1, 1.0, {"a": [1]}, None]))}
        payload |= draw(st.sampled_from([{}, {"idempotency_key": "k"}, {"parent_job_id": "$job"}]))
    elif type_ == "session.ack":
        payload = {"last_processed_seq": draw(st.integers(0, 12))}
    elif type_.startswith("job."):
        payload = {"job_id": "$job", "history": draw(st.booleans()), "from_event_seq": draw(st.integers(0, 4))}
    elif type_ == "session.list_jobs":
        payload = draw(
            st.sampled_from([{}, {"limit": 1}, {"cursor": "no"}, {"filter": {"status": ["pending"], "agent": "a"}}])
        )
    if draw(st.integers(0, 5)) == 0:
        payload[draw(st.sampled_from(NAMES))] = draw(JUNK)
    frame: dict[str, Any] = {"arcp": "1.1", "id": draw(st.sampled_from(["x", "y", "z"])), "type": type_}
    frame |= {"payload": payload, "$job": draw(st.integers(0, 5))}
    if draw(st.integers(0, 8)) == 0:
        frame[draw(st.sampled_from(["arcp", "id", "type", "session_id", "trace_id", "payload", "extra"]))] = draw(JUNK)
    return frame


def filled_in(frame: dict[str, Any], world: World) -> bytes:
    """Put the tokens and jobs of the world where a frame refers to them."""
    job_id = world.job_ids[-1 - frame.pop("$job") % len(world.job_ids)]
    payload = frame.get("payload")
    if isinstance(payload, dict):
        for block in (payload, payload.get("resume")):
            if isinstance(block, dict) and "$token" in block:
                block["session_id"], block["resume_token"] = world.tokens[-1 - block.pop("$token") % len(world.tokens)]
        for name in ("job_id", "parent_job_id"):
            if payload.get(name) == "$job":
                payload[name] = job_id
    return orjson.dumps(frame)


WHATS = st.sampled_from(["emit", "end", "drop", "restart", "reset", "session", "resume", "job", "key"])
STEPS = st.lists(
    st.one_of(
        frames(),
        frames(),
        WHATS,
        WHATS,
        WHATS,
        st.binary(max_size=30),
        st.sampled_from([0.1, 6.0, 31.0, 700.0]),
    ),
    min_size=5,
    max_size=40,
)


def observable(ledger: Ledger) -> object:
    sessions = observed(ledger)
    return (
        ledger.sizes,
        list(ledger.jobs_after(None)),
        sessions,
        {each: ledger.subscriptions(each) for each in sessions},
    )


@given(STEPS)
@example(["session", "resume", "resume", "drop", "session", "resume", "restart"])
@example(["session", "key", "key", "emit", "reset", "key", "end", "restart", "session", "key"])
@example(["session", "job", "drop", 700.0, "resume", "session", "reset"])
@settings(max_examples=400)
def test_whatever_comes_the_machine_keeps_its_rules(steps: list[Any]) -> None:
    world = World()
    for step in steps:
        connection = world.connection
        acked, known, ended = connection.acked, len(world.frames), connection.state == "closed"
        take(world, step)
        if world.connection is not connection:
            continue
        assert acked <= connection.acked <= connection.emitted
        assert not (ended and len(world.frames) > known)
        check_frames(world.frames, known)
    check_facts(world)


def take(world: World, step: Any) -> None:
    """Let one thing happen."""
    connection = world.connection
    match step:
        case dict() | bytes():
            state = connection.state
            data = filled_in(copy.deepcopy(step), world) if isinstance(step, dict) else step
            check_answers(step, state, world.carry_out(connection.receive(data, world.now)))
        case float():
            world.time_s += step
            world.carry_out(connection.tick(world.now))
        case _:
            ACTIONS[step](world)


def emit(world: World) -> None:
    session_id = world.connection.session_id
    if session_id is not None:
        world.lengths[session_id] += 1
        world.connection.sent(world.lengths[session_id], world.now)


def end(world: World) -> None:
    for job in world.ledger.unended()[:1]:
        for _ in range(2):  # whoever comes second writes nothing
            now_ns = world.now.wall_ns
            world.append(world.ledger.end_job(job.job_id, status="success", last_event_seq=3, now_ns=now_ns))


def drop(world: World) -> None:
    session_id = world.connection.session_id
    if session_id is not None:
        tokens = [token for known, token in world.tokens if known == session_id]
        for token in tokens:  # what ended before its successor came changes nothing
            attached = session_id in observed(world.ledger)
            now_ns = world.now.wall_ns
            world.append(
                world.ledger.detach_session(session_id, token_hash=token, reason="lost", now_ns=now_ns),
            )
            assert (session_id in observed(world.ledger)) == (attached and token is not tokens[-1])
    world.connection = world.connect()


def restart(world: World) -> None:
    drop(world)
    refold(world)


def reset(world: World) -> None:
    before = observable(world.ledger)
    world.append(world.ledger.reset())
    assert observable(world.ledger) == before
    refold(world)


def session(world: World, **payload: Any) -> None:
    """Say a good hello, on a new connection where that is needed."""
    if world.connection.state != "opening":
        world.connection = world.connect()
    payload |= {"auth": {"token": "t"}, "capabilities": {"features": FEATURES}}
    told(world, {"type": "session.hello", "payload": payload})


def resume(world: World) -> None:
    """Take over the last session, whose connection may still look well."""
    session_id, token = world.tokens[-1]
    world.connection = world.connect()
    session(world, resume={"session_id": session_id, "resume_token": token, "last_event_seq": 0})


def job(world: World, **key: str) -> None:
    submit = {"type": "job.submit", "id": "x", "payload": {"agent": "a", **key}}
    state = world.connection.state
    check_answers(submit, state, told(world, submit))


ACTIONS: dict[str, Callable[[World], None]] = {
    "emit": emit,
    "end": end,
    "drop": drop,
    "restart": restart,
    "reset": reset,
    "session": session,
    "resume": resume,
    "job": job,
    "key": lambda world: job(world, idempotency_key="k"),
}


def observed(ledger: Ledger) -> set[str]:
    return {record.session_id for record in ledger.attached()}


def check_frames(frames: list[dict[str, Any]], known: int) -> None:
    for frame in frames[known:]:
        assert "event_seq" not in frame
        assert frame["arcp"] == "1.1"
        assert frame["type"] != "session.error" or frame["payload"]["code"] in ERROR_CODES
    assert all(frame["type"] in ("session.welcome", "session.error") for frame in frames[:1])
    assert sum(frame["type"] == "session.welcome" for frame in frames) <= 1


def check_answers(step: Any, state: str, sent: list[dict[str, Any]]) -> None:
    """One answer for each request, and none where the draft has none."""
    if state == "closed":
        assert sent == []
        return
    assert len(sent) <= 1
    type_ = step.get("type") if isinstance(step, dict) else None
    if isinstance(type_, str) and type_ in READERS and type_ not in UNANSWERED:
        assert len(sent) == 1
    if sent and isinstance(step, dict) and sent[0]["type"] != "session.pong":
        answered = sent[0]["payload"].get("request_id")
        if sent[0]["type"] not in ("session.welcome", "session.closed") and step.get("id") in ("x", "y", "z"):
            assert answered == step["id"]


def check_facts(world: World) -> None:
    ends = [payload["job_id"] for type_, payload in since_reset(world.facts) if type_ == "arcp.job_ended"]
    accepted = [payload for type_, payload in since_reset(world.facts) if type_ == "arcp.job_accepted"]
    assert len(ends) == len(set(ends))
    keys = [payload["idempotency_key"] for payload in accepted if "idempotency_key" in payload]
    assert len(keys) == len(set(keys))
    tokens = {token for _, token in world.tokens}
    assert len(tokens) == len(world.tokens)


def since_reset(facts: list[Fact]) -> list[Fact]:
    resets = [index for index, (type_, _) in enumerate(facts) if type_ == RESET]
    return facts[resets[-1] if resets else 0 :]


def refold(world: World) -> None:
    """A new process folds the same log, from its last reset on, and knows the same."""
    again = world.new_ledger()
    behind = len(world.facts) - len(since_reset(world.facts))
    again.begin_at(behind + 1 if behind else 0)
    for seq, (type_, payload) in enumerate(world.facts, 1):
        again.apply(seq, type_, payload)
        again.apply(seq, type_, payload)  # a fact that is met twice is folded once
    assert observable(again) == observable(world.ledger)
    assert again.last_seq == world.ledger.last_seq
    world.ledger = again


def told(world: World, frame: object) -> list[dict[str, Any]]:
    data = frame if isinstance(frame, bytes) else orjson.dumps(frame)
    return world.carry_out(world.connection.receive(data, world.now))
