"""What is on the wire: 1, 2, 3, … in every session, no number on control frames, marks that are the last event's."""

from __future__ import annotations

import importlib.util
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.gateway import Gateway, GatewayLimits
from logmark.testing import ArcpProbe, CapturedLogs, wire_faults

SOON = 30.0
TOKENS = {"token-a": "alice", "token-b": "bob"}


@pytest.fixture
def runtime() -> Iterator[logmark.Runtime]:
    path = Path(__file__).parent / "workers" / "arcp_agents.py"
    spec = importlib.util.spec_from_file_location("arcp_agents", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with logmark.open("memory:") as opened:
        module.register(opened)
        yield opened


@pytest.fixture
def gateway(runtime: logmark.Runtime) -> Iterator[Gateway]:
    limits = GatewayLimits(cancel_grace_s=0.1, stall_wait_s=0.5, close_wait_s=1.0, queue_events_max=64)
    with logmark.serve(runtime, tokens=TOKENS, limits=limits) as served:
        yield served


def entry_of(client: ArcpProbe, job_id: str) -> dict[str, Any]:
    jobs: list[dict[str, Any]] = client.ask("session.list_jobs", {"limit": 1000})["payload"]["jobs"]
    return next(entry for entry in jobs if entry["job_id"] == job_id)


def test_numbers_run_over_all_jobs_of_a_session_and_only_over_events(gateway: Gateway) -> None:
    with ArcpProbe(gateway.url, "token-a") as client:
        jobs = [client.submit("steps", {"count": 30, "every_s": 0.001}) for _ in range(4)]
        jobs += [client.submit("every_kind", {}), client.submit("fail"), client.submit("bulk", {"count": 1200})]
        client.send("session.ping", {"nonce": "p1", "sent_at": "2026-01-01T00:00:00Z"})
        for job_id in jobs:
            client.wait_end(job_id)
        assert (client.faults(), client.last_seq) == ([], 4 * 31 + 13 + 2 + 1201)
        assert {frame["type"] for frame in client.frames if "event_seq" not in frame} >= {
            "session.welcome",
            "session.pong",
            "job.accepted",
        }
        for job_id in jobs:
            assert [frame["type"] for frame in client.events(job_id)].count("job.result") <= 1
            assert client.events(job_id)[-1]["type"] in ("job.result", "job.error")


def test_marks_are_the_last_event_of_the_job_at_every_moment(gateway: Gateway, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ArcpProbe(gateway.url, "token-a") as client, ArcpProbe(gateway.url, "token-a") as viewer:
        other = client.submit("steps", {"count": 5})
        client.wait_end(other)
        job_id = client.submit("gated", {"gate": str(gate), "then": 2})
        seq = client.wait_for(lambda frame: frame.get("job_id") == job_id and "event_seq" in frame)["event_seq"]
        assert seq == 7
        assert entry_of(viewer, job_id)["last_event_seq"] == seq
        subscribed = viewer.ask("job.subscribe", {"job_id": job_id, "history": True}, job_id=job_id)
        assert subscribed["payload"]["subscribed_from"] == seq
        gate.touch()
        end = client.wait_end(job_id)["event_seq"]
        assert end == client.events(job_id)[-1]["event_seq"] == 10
        assert entry_of(client, job_id)["last_event_seq"] == entry_of(viewer, job_id)["last_event_seq"] == end
        again = viewer.ask("job.subscribe", {"job_id": job_id, "history": False}, job_id=job_id)
        assert again["payload"]["subscribed_from"] == end
        viewer.wait_end(job_id)
        assert (client.faults(), client.last_seq, viewer.faults(), viewer.last_seq) == ([], 10, [], 4)


def test_an_ack_of_what_was_seen_is_taken_and_one_beyond_it_harms_nothing(gateway: Gateway) -> None:
    with ArcpProbe(gateway.url, "token-a") as client:
        client.wait_end(client.submit("steps", {"count": 20}))
        for seq in (21, 5, 0, 10**9, 21):
            client.send("session.ack", {"last_processed_seq": seq})
        client.ask("session.list_jobs")
        client.wait_end(client.submit("quick@1.0.0"))
        assert (client.faults(), client.last_seq) == ([], 22)
        assert [frame["type"] for frame in client.frames if frame["type"].endswith("error")] == []
        client.kill()
        with ArcpProbe(gateway.url, "token-a", resume=(*client.position[:2], 0)) as again:
            again.wait_seq(22)
            assert (again.faults(), len(again.events())) == ([], 22)


def test_subscribed_comes_first_then_history_then_what_is_new_without_a_seam(gateway: Gateway) -> None:
    """Viewers join at random moments of a job; each sees all of it, once, in an own space that its own jobs share."""
    chance = random.Random(7)
    with ArcpProbe(gateway.url, "token-a") as client:
        job_id = client.submit("steps", {"count": 300, "every_s": 0.001})
        viewers: list[tuple[ArcpProbe, int, str]] = []
        for _ in range(5):
            client.wait_seq(min(300, client.last_seq + chance.randrange(1, 60)))
            viewer = ArcpProbe(gateway.url, "token-a")
            own = viewer.submit("steps", {"count": 40, "every_s": 0.001})
            from_seq = chance.choice([0, 0, 17])
            viewer.send("job.subscribe", {"job_id": job_id, "history": True, "from_event_seq": from_seq}, job_id=job_id)
            viewers.append((viewer, from_seq, own))
        client.wait_end(job_id)
        originals = client.events(job_id)
        for viewer, from_seq, own in viewers:
            viewer.wait_end(job_id)
            viewer.wait_end(own)
            assert viewer.faults() == []
            copies = viewer.events(job_id)
            subscribed = viewer.frames.index(next(f for f in viewer.frames if f["type"] == "job.subscribed"))
            assert viewer.frames.index(copies[0]) > subscribed
            assert [frame["payload"] for frame in copies] == [frame["payload"] for frame in originals[from_seq:]]
            assert [frame["payload"]["body"]["current"] for frame in viewer.events(own)[:-1]] == list(range(1, 41))
            viewer.close()
        assert client.faults() == []


def test_every_session_is_whole_after_many_lost_connections(gateway: Gateway) -> None:
    """A submitter and a viewer that lose their connections all the time, half-open ones among them."""
    chance = random.Random(11)
    count = 400

    def follow(client: ArcpProbe, job_id: str, tape: list[dict[str, Any]]) -> None:
        left: list[ArcpProbe] = []
        after = 0
        while True:
            some = after + chance.randrange(1, 40)
            found = client.wait_for(lambda frame, some=some: frame.get("event_seq", 0) >= min(some, count + 1))  # type: ignore[misc]
            session_id, resume_token, position = client.position
            tape += [frame for frame in client.frames if frame.get("event_seq", 0) <= position]
            if found["event_seq"] == count + 1 or position == count + 1:
                break
            if chance.random() < 0.5:
                client.kill()
            else:
                left.append(client)  # its socket stays open
            client = ArcpProbe(gateway.url, "token-a", resume=(session_id, resume_token, position))
            after = position
        for each in (*left, client):
            each.close()

    tapes: dict[str, list[dict[str, Any]]] = {"submitter": [], "viewer": []}
    submitter, viewer = ArcpProbe(gateway.url, "token-a"), ArcpProbe(gateway.url, "token-a")
    job_id = submitter.submit("steps", {"count": count, "every_s": 0.002})
    viewer.ask("job.subscribe", {"job_id": job_id, "history": True}, job_id=job_id)
    threads = [
        threading.Thread(target=follow, args=(client, job_id, tapes[name]))
        for client, name in ((submitter, "submitter"), (viewer, "viewer"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    for name, tape in tapes.items():
        assert wire_faults(tape) == [], name
        steps = [frame["payload"]["body"]["current"] for frame in tape if frame["type"] == "job.event"]
        assert steps == list(range(1, count + 1)), name
        welcomes = sum(frame["type"] == "session.welcome" for frame in tape)
        assert welcomes > 2, name


def test_a_client_that_does_not_read_is_let_go_and_loses_nothing(gateway: Gateway, logs: CapturedLogs) -> None:
    count = 6000
    with (
        ArcpProbe(gateway.url, "token-a") as other,
        ArcpProbe(gateway.url, "token-a", reading=False, receive_buffer_bytes=64 * 1024) as stalled,
    ):
        stalled.send("job.submit", {"agent": "bulk", "input": {"count": count, "size": 2000}})
        entries: list[dict[str, Any]] = []
        while not entries or entries[0]["status"] != "success":
            entries = other.ask("session.list_jobs")["payload"]["jobs"]
        assert entries[0]["last_event_seq"] == count + 1
        logs.wait_for("arcp_session_detached", timeout=SOON, reason="stalled")
        stalled.kill()
        with ArcpProbe(gateway.url, "token-a", resume=stalled.position) as again:
            again.wait_seq(count + 1)
            assert (again.faults(), len(again.events())) == ([], count + 1)


def test_a_resume_at_every_position_gives_the_rest(gateway: Gateway) -> None:
    client = ArcpProbe(gateway.url, "token-a")
    client.wait_end(client.submit("every_kind"))
    originals = client.events()
    for position in range(len(originals)):
        client.kill()
        client = ArcpProbe(gateway.url, "token-a", resume=(*client.position[:2], position))
        client.wait_seq(len(originals))
        assert client.events() == originals[position:]
        assert client.frames[0]["type"] == "session.welcome"
    client.close()


def test_the_principal_of_a_session_is_looked_at_for_every_verb(gateway: Gateway) -> None:
    with ArcpProbe(gateway.url, "token-a") as alice, ArcpProbe(gateway.url, "token-b") as bob:
        job_id = alice.submit("obey")
        alice.wait_seq(1)
        for verb in ("job.subscribe", "job.cancel"):
            answer = bob.ask(verb, {"job_id": job_id, "reason": "x"}, job_id=job_id)
            assert answer["type"] == "session.error"
            assert answer["payload"]["code"] in ("JOB_NOT_FOUND", "PERMISSION_DENIED")
        assert bob.ask("session.list_jobs")["payload"]["jobs"] == []
        with ArcpProbe(gateway.url, "token-b", resume=alice.position) as thief:
            assert thief.frames[0]["payload"]["code"] == "PERMISSION_DENIED"
        assert entry_of(alice, job_id)["status"] == "running"
        assert bob.events() == []


def test_only_the_submitting_session_cancels(gateway: Gateway) -> None:
    with ArcpProbe(gateway.url, "token-a") as owner, ArcpProbe(gateway.url, "token-a") as viewer:
        job_id = owner.submit("obey")
        owner.wait_seq(1)
        viewer.ask("job.subscribe", {"job_id": job_id, "history": True}, job_id=job_id)
        refused = viewer.ask("job.cancel", {"reason": "mine now"}, job_id=job_id)
        assert refused["payload"]["code"] == "PERMISSION_DENIED"
        owner.kill()
        with ArcpProbe(gateway.url, "token-a", resume=owner.position) as again:
            again.send("job.cancel", {"reason": "enough"}, job_id=job_id)
            acknowledged = again.wait_for(lambda frame: frame["type"] == "job.cancelled")
            end = again.wait_end(job_id)
            assert again.frames.index(acknowledged) < again.frames.index(end)
            assert (end["payload"]["code"], end["payload"]["final_status"]) == ("CANCELLED", "error")
            assert "event_seq" not in acknowledged
            viewer.wait_end(job_id)
            assert (viewer.faults(), viewer.last_seq, again.faults(), again.last_seq) == ([], 3, [], 3)


def test_a_watcher_is_told_what_is_left_of_the_budget(gateway: Gateway) -> None:
    with ArcpProbe(gateway.url, "token-a") as client, ArcpProbe(gateway.url, "token-a") as viewer:
        lease = {"cost.budget": ["USD:1.00", "calls:3"]}
        job_id = client.submit("spend", [0.25, 0.5], lease_request=lease)
        client.wait_end(job_id)
        for _ in range(2):
            answer = viewer.ask("job.subscribe", {"job_id": job_id}, job_id=job_id)
            assert answer["payload"]["budget"] == {"USD": "USD:0.25", "calls": "calls:3"}
        unspent = client.submit("spend", [], lease_request=lease)
        client.wait_end(unspent)
        answer = viewer.ask("job.subscribe", {"job_id": unspent}, job_id=unspent)
        assert answer["payload"]["budget"] == {"USD": "USD:1.00", "calls": "calls:3"}


def test_a_trace_goes_with_the_job_to_its_agent_and_its_events(gateway: Gateway) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    with ArcpProbe(gateway.url, "token-a") as client:
        client.send(
            "job.submit",
            {"agent": "spend", "input": [0.25], "lease_request": {}},
            trace_id=f"00-{trace_id}-00f067aa0ba902b7-01",
        )
        accepted = client.wait_for(lambda frame: frame["type"] == "job.accepted")
        job_id = accepted["payload"]["job_id"]
        assert client.wait_end(job_id)["payload"]["result"] == trace_id
        assert accepted["payload"]["trace_id"] == trace_id
        assert {frame["trace_id"] for frame in client.events(job_id)} == {trace_id}
        assert entry_of(client, job_id)["trace_id"] == trace_id


def test_a_parent_is_kept_and_told_and_must_be_a_job_of_the_principal(gateway: Gateway) -> None:
    with ArcpProbe(gateway.url, "token-a") as client, ArcpProbe(gateway.url, "token-b") as stranger:
        parent = client.submit("quick")
        answer = client.ask("job.submit", {"agent": "family", "input": None, "parent_job_id": parent})
        child = answer["payload"]["job_id"]
        assert answer["payload"]["parent_job_id"] == parent
        assert client.wait_end(child)["payload"]["result"] == parent
        assert entry_of(client, child)["parent_job_id"] == parent
        for who, job_id in ((client, "job_01M7YYTQDQ3CQ4DDJ2KMZYBQA5"), (stranger, parent)):
            refused = who.ask("job.submit", {"agent": "family", "input": None, "parent_job_id": job_id})
            assert refused["payload"]["code"] == "JOB_NOT_FOUND"


def test_the_drafts_own_forms_are_to_be_had(runtime: logmark.Runtime) -> None:
    limits = GatewayLimits(cancel_grace_s=0.1, close_wait_s=1.0)
    with (
        logmark.serve(runtime, tokens=TOKENS, compat="draft", limits=limits) as gateway,
        ArcpProbe(gateway.url, "token-a") as client,
    ):
        answer = client.ask(
            "job.submit", {"agent": "obey", "input": None, "lease_request": {"cost.budget": ["USD:5.00"]}}
        )
        assert answer["payload"]["budget"] == {"USD": 5.0}
        job_id = answer["payload"]["job_id"]
        client.wait_seq(1)
        client.send("job.cancel", {"reason": "enough"}, job_id=job_id)
        assert client.wait_end(job_id)["payload"]["final_status"] == "cancelled"
        late = client.submit("hang", {"seconds": 2}, max_runtime_sec=1)
        end = client.wait_end(late)["payload"]
        assert (end["code"], end["final_status"]) == ("TIMEOUT", "timed_out")
        client.send("session.close", {"reason": "done"})
        closed = client.wait_for(lambda frame: frame["type"] == "session.closed")
        assert "event_seq" not in closed
        assert client.closed.wait(SOON)
