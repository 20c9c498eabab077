"""On the wire: numbers, marks, subscriptions, cancels and keys, as a recorder sees them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.gateway import AgentContext, Gateway, GatewayLimits
from logmark.testing import ArcpProbe, eventually

TOKENS = {"token": "alice", "other": "bob"}


@pytest.fixture
def gate() -> threading.Event:
    """What the agent ``gated`` waits for."""
    return threading.Event()


@pytest.fixture
def rt(tmp_path: Path, gate: threading.Event) -> Iterator[logmark.Runtime]:
    with logmark.open(str(tmp_path / "store")) as runtime:

        @runtime.agent("count", version="1.0.0")
        def count(ctx: AgentContext, given: Any) -> Any:
            for index in range(given["n"]):
                ctx.progress(index, total=given["n"])
            return {"n": given["n"]}

        @runtime.agent("gated", version="2.0.0")
        def gated(ctx: AgentContext, given: Any) -> Any:
            ctx.log("info", "begun")
            while not gate.wait(0.005):
                if ctx.cancelled.is_set():
                    return None
            ctx.log("info", "ending")
            return given

        yield runtime


@pytest.fixture
def gateway(rt: logmark.Runtime) -> Iterator[Gateway]:
    with logmark.serve(rt, tokens=TOKENS, limits=GatewayLimits(jobs_running_max=4, close_wait_s=5)) as opened:
        yield opened


@pytest.fixture
def connect(gateway: Gateway) -> Iterator[Callable[..., ArcpProbe]]:
    probes: list[ArcpProbe] = []

    def make(token: str = "token", **options: Any) -> ArcpProbe:
        probes.append(ArcpProbe(gateway.url, token, **options))
        return probes[-1]

    yield make
    for probe in probes:
        probe.close()
        assert probe.faults() == []


Connect = Callable[..., ArcpProbe]


def test_jobs_of_one_session_share_one_gap_free_numbering(connect: Connect) -> None:
    probe = connect()
    jobs = [probe.submit("count", {"n": 60}) for _ in range(4)]
    ends = {job: probe.wait_end(job) for job in jobs}
    assert [each["event_seq"] for each in probe.events()] == list(range(1, 4 * 61 + 1))
    assert all(len(probe.events(job)) == 61 for job in jobs)
    listed = {each["job_id"]: each for each in probe.ask("session.list_jobs")["payload"]["jobs"]}
    for job, end in ends.items():
        assert (listed[job]["status"], listed[job]["last_event_seq"]) == ("success", end["event_seq"])


def test_an_observed_number_can_be_acknowledged(connect: Connect) -> None:
    probe = connect()
    probe.wait_end(probe.submit("count", {"n": 3}))
    for seq in (4, 2, 10**6):
        probe.send("session.ack", {"last_processed_seq": seq})
    probe.ping()
    assert [each["type"] for each in probe.frames if each["type"] == "session.error"] == []


def test_marks_are_those_of_the_last_event_also_while_a_job_runs(connect: Connect, gate: threading.Event) -> None:
    first, second = connect(), connect()
    job = first.submit("gated", 7)
    first.wait_seq(1)
    (listed,) = second.ask("session.list_jobs", {"filter": {"status": ["running"]}})["payload"]["jobs"]
    assert (listed["job_id"], listed["last_event_seq"], listed["agent"]) == (job, 1, "gated@2.0.0")
    subscribed = second.ask("job.subscribe", {"job_id": job})["payload"]
    assert (subscribed["subscribed_from"], subscribed["replayed"], subscribed["current_status"]) == (
        1,
        False,
        "running",
    )
    gate.set()
    end = second.wait_end(job)
    assert [each["payload"].get("kind", each["type"]) for each in second.events(job)] == ["log", "job.result"]
    again = second.ask("job.subscribe", {"job_id": job})["payload"]
    assert (again["subscribed_from"], again["current_status"]) == (end["stream_seq"], "success")
    assert second.ask("session.list_jobs")["payload"]["jobs"][0]["last_event_seq"] == end["stream_seq"]


@pytest.mark.parametrize("after", [0, 25, 50])
def test_history_is_what_lies_behind_a_number_then_what_comes(
    connect: Connect, gate: threading.Event, after: int
) -> None:
    owner, follower = connect(), connect()
    job = owner.submit("count", {"n": 50})
    owner.wait_end(job)
    live = owner.submit("gated")
    owner.wait_seq(52)
    follower.wait_end(follower.submit("count", {"n": 5}))
    for each in (job, live):
        frame = follower.ask("job.subscribe", {"job_id": each, "history": True, "from_event_seq": after})
        assert frame["type"] == "job.subscribed"
        assert frame["payload"]["replayed"] is True
    follower.wait_end(job)
    gate.set()
    follower.wait_end(live)
    originals = {each["event_seq"]: each for each in owner.events()}
    for job_id in (job, live):
        copies = follower.events(job_id)
        wanted = [seq for seq, each in originals.items() if each["job_id"] == job_id and seq > after]
        assert [each["stream_seq"] for each in copies] == wanted
        for copy in copies:
            assert copy["payload"] == originals[copy["stream_seq"]]["payload"]  # body.ts preserved
            assert copy["id"] != originals[copy["stream_seq"]]["id"]
            assert follower.frames.index(copy) > 0


def test_the_answer_comes_before_the_events_it_is_about(connect: Connect) -> None:
    owner, follower = connect(), connect()
    job = owner.submit("count", {"n": 20})
    owner.wait_end(job)
    follower.ask("job.subscribe", {"job_id": job, "history": True})
    follower.wait_end(job)
    kinds = [each["type"] for each in follower.frames]
    assert kinds.index("job.subscribed") < kinds.index("job.event")
    owned = [each["type"] for each in owner.frames]
    assert owned.index("job.accepted") < owned.index("job.event")


def test_a_pause_keeps_the_events_out_of_the_answer_s_burst(rt: logmark.Runtime) -> None:
    """Published clients drop what comes before they have read the answer."""
    limits = GatewayLimits(history_pause_s=0.5)
    with (
        logmark.serve(rt, tokens=TOKENS, limits=limits) as gateway,
        ArcpProbe(gateway.url) as owner,
        ArcpProbe(gateway.url) as follower,
    ):
        job = owner.submit("count", {"n": 1})
        owner.wait_end(job)
        answer = follower.ask("job.subscribe", {"job_id": job, "history": True})
        follower.wait_end(job)
        at = follower.frames.index(answer)
        assert follower.arrived_at[at + 1] - follower.arrived_at[at] > 0.4


def test_many_subscriptions_make_one_stream(connect: Connect) -> None:
    owners = [connect() for _ in range(3)]
    jobs = [owner.submit("count", {"n": 80}) for owner in owners]
    follower = connect()
    own = follower.submit("count", {"n": 80})
    for job in jobs:
        follower.ask("job.subscribe", {"job_id": job, "history": True})
    for job in (own, *jobs):
        follower.wait_end(job)
        assert len(follower.events(job)) == 81
    assert follower.last_seq == 4 * 81


def test_a_kind_that_was_not_negotiated_is_not_sent(connect: Connect) -> None:
    owner, plain = connect(), connect(features=["subscribe"])
    job = owner.submit("count", {"n": 5})
    owner.wait_end(job)
    plain.ask("job.subscribe", {"job_id": job, "history": True})
    plain.wait_end(job)
    assert [each["type"] for each in plain.events()] == ["job.result"]
    own = plain.submit("count", {"n": 2})
    plain.wait_end(own)
    assert "progress" not in [each["payload"].get("kind") for each in plain.events(own)]


def test_what_is_unsubscribed_comes_no_more(connect: Connect, gate: threading.Event) -> None:
    owner, follower = connect(), connect()
    job = owner.submit("gated")
    owner.wait_seq(1)
    follower.ask("job.subscribe", {"job_id": job, "history": True})
    follower.wait_seq(1)
    follower.send("job.unsubscribe", {"job_id": job})
    follower.send("job.unsubscribe", {"job_id": job})  # a second time, as when the job ends meanwhile
    follower.ping()
    gate.set()
    owner.wait_end(job)
    follower.wait_end(follower.submit("count", {"n": 1}))
    assert len(follower.events(job)) == 1


def test_the_past_of_an_own_job_can_be_asked_for(connect: Connect, gate: threading.Event) -> None:
    """A client object that has resumed knows nothing of its jobs; this is how it gets at them."""
    probe = connect()
    job = probe.submit("gated")
    probe.wait_seq(1)
    probe.ask("job.subscribe", {"job_id": job, "history": True})
    assert probe.wait_seq(2)["payload"] == probe.wait_seq(1)["payload"]
    other = connect()
    other.ask("job.subscribe", {"job_id": job, "history": True})
    gate.set()
    for each in (probe, other):
        each.wait_end(job)
    assert [each.get("stream_seq") for each in probe.events(job)] == [None, 1, None, None]
    assert [each.get("stream_seq") for each in other.events(job)] == [1, 3, 4]  # a copy is not copied again


def test_a_position_beyond_the_log_is_no_silent_hole(connect: Connect) -> None:
    probe = connect()
    job = probe.submit("count", {"n": 1})
    probe.wait_end(job)
    answer = connect().ask("job.subscribe", {"job_id": job, "history": True, "from_event_seq": 999})
    assert answer["payload"]["code"] == "INVALID_REQUEST"


def test_pages_are_followed_by_a_cursor(connect: Connect) -> None:
    probe = connect()
    jobs = [probe.submit("count", {"n": 0}) for _ in range(7)]
    found: list[str] = []
    cursor = None
    while True:
        page = probe.ask("session.list_jobs", {"limit": 3, "cursor": cursor})["payload"]
        found += [each["job_id"] for each in page["jobs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == jobs
    created = probe.ask("session.list_jobs", {"limit": 5})["payload"]["jobs"][4]["created_at"]
    later = probe.ask("session.list_jobs", {"filter": {"created_after": created, "agent": "count"}})
    assert [each["job_id"] for each in later["payload"]["jobs"]] == jobs[5:]
    assert probe.ask("session.list_jobs", {"filter": {"agent": "gated"}})["payload"]["jobs"] == []


# -- keys --------------------------------------------------------------------------------------------------------------


def test_equal_submissions_at_once_are_one_job(connect: Connect, rt: logmark.Runtime) -> None:
    """Whoever repeats a key from another session sees the whole job there, as if it were its own."""
    runs: list[int] = []

    @rt.agent("once", version="1")
    def once(ctx: AgentContext, given: Any) -> Any:
        runs.append(1)
        ctx.log("info", "ran")
        return given

    probes = [connect() for _ in range(6)]
    barrier = threading.Barrier(len(probes))
    answers: list[dict[str, Any]] = []

    def submit(probe: ArcpProbe) -> None:
        barrier.wait()
        answers.append(probe.ask("job.submit", {"agent": "once", "input": {"a": 1}, "idempotency_key": "k"}))

    threads = [threading.Thread(target=submit, args=(probe,)) for probe in probes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    payloads = [{name: value for name, value in each["payload"].items() if name != "request_id"} for each in answers]
    assert payloads == [payloads[0]] * len(probes)
    for probe in probes:
        probe.wait_end(payloads[0]["job_id"])
        assert len(probe.events()) == 2
    for probe in probes:  # who has seen the job does not see it again
        assert probe.submit("once", {"a": 1}, idempotency_key="k") == payloads[0]["job_id"]
        probe.wait_end(probe.submit("count", {"n": 20}))
        assert len(probe.events(payloads[0]["job_id"])) == 2
    assert runs == [1]
    conflict = probes[0].ask("job.submit", {"agent": "once", "input": {"a": 2}, "idempotency_key": "k"})
    assert conflict["payload"]["code"] == "DUPLICATE_KEY"
    other = connect("other").ask("job.submit", {"agent": "once", "input": {"a": 2}, "idempotency_key": "k"})
    assert other["type"] == "job.accepted"


def test_a_refused_submission_frees_its_key(connect: Connect, rt: logmark.Runtime) -> None:
    probe = connect()
    refused = probe.ask("job.submit", {"agent": "later", "idempotency_key": "k"})
    assert refused["payload"]["code"] == "AGENT_NOT_AVAILABLE"
    rt.agent("later", version="1")(lambda ctx, given: given)
    assert probe.ask("job.submit", {"agent": "later", "idempotency_key": "k"})["type"] == "job.accepted"


# -- cancels -----------------------------------------------------------------------------------------------------------


def test_a_cancel_is_acknowledged_before_the_end(connect: Connect) -> None:
    probe = connect()
    running = probe.submit("gated")
    probe.wait_seq(1)
    blocked = [probe.submit("gated") for _ in range(3)]
    queued = probe.submit("gated")
    for job in (queued, running):
        probe.send("job.cancel", {"reason": "enough"}, job_id=job)
        end = probe.wait_end(job)
        # Published clients know no other final_status in job.error, and die of one.
        assert (end["payload"]["code"], end["payload"]["final_status"]) == ("CANCELLED", "error")
        kinds = [each["type"] for each in probe.frames if each.get("job_id") == job]
        assert kinds[-2:] == ["job.cancelled", "job.error"] or kinds.index("job.cancelled") < kinds.index("job.error")
    again = probe.ask("job.cancel", {"job_id": running})
    assert (again["type"], again["payload"]["current_status"]) == ("job.cancelled", "cancelled")
    for job in blocked:
        assert probe.ask("job.cancel", {}, job_id=job)["type"] == "job.cancelled"
        probe.wait_end(job)


def test_only_the_submitting_session_cancels_also_after_a_resume(connect: Connect) -> None:
    owner = connect()
    job = owner.submit("gated")
    owner.wait_seq(1)
    follower = connect()
    follower.ask("job.subscribe", {"job_id": job})
    for answer, code in (
        (follower.ask("job.cancel", {}, job_id=job), "PERMISSION_DENIED"),
        (owner.ask("job.cancel", {}, job_id="job_none"), "JOB_NOT_FOUND"),
    ):
        assert (answer["type"], answer["payload"]["code"]) == ("session.error", code)
    owner.kill()
    back = connect(resume=owner.position)
    assert back.ask("job.cancel", {}, job_id=job)["type"] == "job.cancelled"
    back.wait_end(job)
    assert follower.wait_end(job)["payload"]["code"] == "CANCELLED"


@pytest.mark.parametrize("round_", range(8))
def test_a_job_that_ends_while_it_is_cancelled_ends_once(connect: Connect, round_: int) -> None:
    probe = connect()
    job = probe.submit("count", {"n": round_})
    probe.send("job.cancel", {}, job_id=job)
    probe.wait_end(job)
    probe.wait_end(probe.submit("count", {"n": 1}))
    assert len([each for each in probe.events(job) if each["type"] != "job.event"]) == 1


def test_the_draft_s_own_forms_are_sent_when_asked_for(rt: logmark.Runtime) -> None:
    with logmark.serve(rt, tokens=TOKENS, compat="draft") as gateway, ArcpProbe(gateway.url) as probe:
        lease = {"cost.budget": ["USD:5.00"]}
        accepted = probe.ask("job.submit", {"agent": "gated", "lease_request": lease})["payload"]
        assert accepted["budget"] == {"USD": 5.0}
        probe.ask("job.cancel", {}, job_id=accepted["job_id"])
        assert probe.wait_end(accepted["job_id"])["payload"]["final_status"] == "cancelled"
        assert probe.faults() == []
        slow = probe.submit("gated", max_runtime_sec=0.05)
        end = probe.wait_end(slow)["payload"]
        assert (end["final_status"], end["code"]) == ("timed_out", "TIMEOUT")
    with logmark.serve(rt, tokens=TOKENS) as gateway, ArcpProbe(gateway.url) as probe:
        accepted = probe.ask("job.submit", {"agent": "gated", "lease_request": lease})["payload"]
        assert accepted["budget"] == {"USD": "USD:5.00"}
        probe.ask("job.cancel", {}, job_id=accepted["job_id"])
        # What the other dialect has written is shown in this one's form.
        probe.ask("job.subscribe", {"job_id": slow, "history": True})
        assert probe.wait_end(slow)["payload"]["final_status"] == "error"


# -- failures ----------------------------------------------------------------------------------------------------------


def test_an_emit_that_the_disk_refused_is_seen_by_nobody(
    connect: Connect, rt: logmark.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the client nor a subscriber, and it takes no number."""
    errors: list[str] = []
    refuse = threading.Event()
    owner, follower = connect(), connect()
    original = type(rt.store).append

    def append(self: Any, batches: Any) -> Any:
        if refuse.is_set() and [batch.session_id for batch in batches] == [owner.session_id]:
            refuse.clear()
            return [
                logmark.storage.BatchResult(
                    session_id=batch.session_id,
                    answers=tuple(
                        logmark.errors.StorageRejected(session_id=batch.session_id, reason="no space", errno=28)
                        for _ in batch.requests
                    ),
                    last_seq_before=self.last_seq(batch.session_id),
                    last_seq=self.last_seq(batch.session_id),
                )
                for batch in batches
            ]
        return original(self, batches)

    monkeypatch.setattr(type(rt.store), "append", append)

    @rt.agent("unlucky", version="1")
    def unlucky(ctx: AgentContext, given: Any) -> Any:
        for index in range(6):
            if index == 3:
                refuse.set()
            try:
                ctx.log("info", str(index))
            except logmark.AppendRejected as error:
                errors.append(type(error).__name__)
        return None

    job = owner.submit("unlucky")
    follower.ask("job.subscribe", {"job_id": job, "history": True})
    for probe in (owner, follower):
        probe.wait_end(job)
        messages = [each["payload"]["body"]["message"] for each in probe.events(job) if each["type"] == "job.event"]
        assert messages == ["0", "1", "2", "4", "5"]
    assert errors == ["StorageRejected"]


def test_a_runtime_that_is_closed_first_hangs_nothing(tmp_path: Path) -> None:
    runtime = logmark.open(str(tmp_path / "store"))
    gateway = logmark.serve(runtime, tokens=TOKENS)
    probe = ArcpProbe(gateway.url)
    probe.ping()
    runtime.close()
    probe.send("session.list_jobs")
    assert probe.wait_for(lambda frame: frame["type"] == "session.error")["payload"]["code"] == "INTERNAL_ERROR"
    gateway.close()
    assert probe.closed.wait(30)
    probe.close()


def test_the_end_of_a_server_is_told_after_the_last_event(rt: logmark.Runtime, gate: threading.Event) -> None:
    gateway = logmark.serve(rt, tokens=TOKENS)
    probe = ArcpProbe(gateway.url)
    job = probe.submit("gated")
    probe.wait_seq(1)
    closing = threading.Thread(target=gateway.close)
    closing.start()
    eventually(lambda: probe.ask("job.submit", {"agent": "count"})["type"] == "session.error", timeout=30)
    gate.set()
    closing.join()
    assert probe.closed.wait(30)
    assert [each["type"] for each in probe.frames[-2:]] == ["job.result", "session.bye"]
    assert probe.wait_end(job)["payload"]["final_status"] == "success"
    assert probe.faults() == []
    probe.close()
