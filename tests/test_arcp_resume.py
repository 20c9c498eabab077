"""Resume: after drops, takeovers, restarts and kills, what a client is sent has no repeat, no hole and one end."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.errors import JobEnded
from logmark.gateway import AgentContext, Gateway, GatewayLimits
from logmark.gateway._instance import Instance, instance_log
from logmark.gateway._jobs import _append_unless_ended
from logmark.testing import ArcpProbe, eventually, wire_faults

TOKENS = {"token": "alice", "other": "bob"}
SERVER = Path(__file__).parent / "workers" / "arcp_server.py"
QUICK = GatewayLimits(tick_interval_s=0.05, close_wait_s=5)
SOON = 30.0


class Steps:
    """What the agent ``stepped`` waits for: one permission for each event."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.stop = threading.Event()

    def allow(self, count: int) -> None:
        self.permits.release(count)


@pytest.fixture
def steps() -> Iterator[Steps]:
    made = Steps()
    yield made
    made.stop.set()


@pytest.fixture
def opened(tmp_path: Path, steps: Steps) -> Iterator[Callable[..., tuple[logmark.Runtime, Gateway]]]:
    """Open the store of the test and serve it; what is open at the end is closed."""
    with contextlib.ExitStack() as stack:

        def make(limits: GatewayLimits = QUICK) -> tuple[logmark.Runtime, Gateway]:
            runtime = stack.enter_context(logmark.open(str(tmp_path / "store")))

            @runtime.agent("stepped", version="1.0.0")
            def stepped(ctx: AgentContext, given: Any) -> Any:
                for index in range(given["n"]):
                    while not steps.permits.acquire(timeout=0.01):
                        if ctx.cancelled.is_set() or steps.stop.is_set():
                            return None
                    ctx.log("info", str(index))
                return given["n"]

            gateway = stack.enter_context(logmark.serve(runtime, tokens=TOKENS, limits=limits))
            return runtime, gateway

        yield make


Opened = Callable[..., tuple[logmark.Runtime, Gateway]]


def refused(gateway: Gateway, position: tuple[str, str, int], token: str = "token") -> str:
    with ArcpProbe(gateway.url, token, resume=position) as probe:
        assert probe.frames[0]["type"] == "session.error"
        assert probe.closed.wait(SOON)
        return str(probe.frames[0]["payload"]["code"])


# -- drops -------------------------------------------------------------------------------------------------------------


def test_what_was_missed_comes_with_its_numbers_and_ids_then_what_is_new(opened: Opened, steps: Steps) -> None:
    runtime, gateway = opened()
    first = ArcpProbe(gateway.url)
    job = first.submit("stepped", {"n": 30})
    steps.allow(10)
    first.wait_seq(10)
    first.kill()
    steps.allow(10)
    runtime.session(first.session_id).wait_for(20, timeout=SOON)
    with ArcpProbe(gateway.url, resume=(*first.position[:2], 7)) as back:
        assert back.session_id == first.session_id
        back.wait_seq(20)
        seen = {each["event_seq"]: each["id"] for each in first.events()}
        assert all(each["id"] == seen[each["event_seq"]] for each in back.events() if each["event_seq"] in seen)
        steps.allow(10)
        back.wait_end(job)
        assert [each["event_seq"] for each in back.events()] == list(range(8, 32))
        assert back.faults() == []


def test_a_session_is_taken_over_while_its_old_socket_looks_open(opened: Opened, steps: Steps) -> None:
    _, gateway = opened()
    first = ArcpProbe(gateway.url)
    job = first.submit("stepped", {"n": 20})
    for round_ in range(1, 5):
        steps.allow(4)
        first.wait_seq(4 * round_)
        second = ArcpProbe(gateway.url, resume=first.position)
        assert second.welcome["payload"]["session_id"] == first.session_id
        assert first.closed.wait(SOON)
        assert first.faults() == []
        first.close()
        first = second
    steps.allow(4)
    first.wait_end(job)
    assert first.faults() == []
    first.close()


def test_a_token_is_good_once_and_a_wrong_guess_burns_nothing(opened: Opened) -> None:
    runtime, gateway = opened()
    with ArcpProbe(gateway.url) as first:
        session_id, token, _ = first.position
    assert refused(gateway, (session_id, "rtk_wrong", 0)) == "PERMISSION_DENIED"
    assert refused(gateway, (session_id, token, 0), token="other") == "PERMISSION_DENIED"
    assert refused(gateway, ("sess_none", token, 0)) == "PERMISSION_DENIED"
    assert refused(gateway, (session_id, token, 0), token="nobody") == "UNAUTHENTICATED"
    assert refused(gateway, (session_id, token, 1)) == "RESUME_WINDOW_EXPIRED"  # nothing like that was ever sent
    with ArcpProbe(gateway.url, resume=(session_id, token, 0)) as second:
        newest = second.position[1]
        assert newest != token
    assert refused(gateway, (session_id, token, 0)) == "PERMISSION_DENIED"
    with ArcpProbe(gateway.url, resume=(session_id, newest, 0)) as third:
        assert third.session_id == session_id
    stored = [
        event.payload_json for info in runtime.sessions() for event in runtime.session(info.session_id).read_raw()
    ]
    for secret in (token, newest, "token"):
        assert not any(f'"{secret}"'.encode() in each for each in stored)
    assert any(hashlib.sha256(newest.encode()).hexdigest().encode() in each for each in stored)


def test_a_session_outside_its_window_says_so(opened: Opened) -> None:
    _, gateway = opened(GatewayLimits(tick_interval_s=0.05, resume_window_s=0.05))
    with ArcpProbe(gateway.url) as first:
        position = first.position
    eventually(lambda: not gateway._hub.links(), timeout=SOON)
    threading.Event().wait(0.1)  # the window, in real time
    assert refused(gateway, position) == "RESUME_WINDOW_EXPIRED"


def test_a_hole_in_the_log_is_told_and_never_skipped(opened: Opened, steps: Steps) -> None:
    runtime, gateway = opened()
    with ArcpProbe(gateway.url) as first:
        job = first.submit("stepped", {"n": 2})
        steps.allow(1)
        first.wait_seq(1)
        position = first.position
    runtime.store.reserve(first.session_id, 5) if hasattr(runtime.store, "reserve") else pytest.skip("no reservations")
    steps.allow(1)
    assert job
    with ArcpProbe(gateway.url, resume=position) as back:
        error = back.wait_for(lambda frame: frame["type"] == "session.error")
        assert error["payload"]["code"] == "RESUME_WINDOW_EXPIRED"
        assert back.events() == []


def test_what_was_pruned_or_deleted_cannot_be_resumed(opened: Opened, steps: Steps) -> None:
    runtime, gateway = opened()
    with ArcpProbe(gateway.url) as first:
        job = first.submit("stepped", {"n": 3})
        steps.allow(3)
        first.wait_end(job)
        session_id, token, seq = first.position
    session = runtime.session(session_id)
    session.truncate_before(3)
    assert refused(gateway, (session_id, token, 1)) == "RESUME_WINDOW_EXPIRED"
    with ArcpProbe(gateway.url, resume=(session_id, token, 2)) as back:  # what it lacks is there
        back.wait_seq(seq)
        assert [each["event_seq"] for each in back.events()] == list(range(3, seq + 1))
        token = back.position[1]
        runtime.delete_session(session_id)
    assert refused(gateway, (session_id, token, seq)) == "RESUME_WINDOW_EXPIRED"


def test_drops_and_closes_cancel_no_job(opened: Opened, steps: Steps) -> None:
    _, gateway = opened()
    position = None
    job = ""
    for end in ("session.close", "session.bye", "kill"):
        with ArcpProbe(gateway.url, resume=position) as probe:
            job = job or probe.submit("stepped", {"n": 1})
            if end == "kill":
                probe.kill()
            else:
                probe.send(end, {"reason": "done"})
                assert probe.closed.wait(SOON)
                kinds = [each["type"] for each in probe.frames]
                assert ("session.closed" in kinds) == (end == "session.close")
            position = probe.position
    steps.allow(1)
    with ArcpProbe(gateway.url, resume=position) as probe:
        assert probe.wait_end(job)["payload"]["final_status"] == "success"


def test_a_log_that_cannot_be_read_is_not_served_as_empty(opened: Opened, steps: Steps) -> None:
    runtime, gateway = opened()
    with ArcpProbe(gateway.url) as first:
        job = first.submit("stepped", {"n": 1})
        steps.allow(1)
        first.wait_end(job)
    runtime.store.halt(first.session_id, "on request")
    with ArcpProbe(gateway.url, resume=(*first.position[:2], 0)) as back:
        error = back.wait_for(lambda frame: frame["type"] == "session.error")
        assert error["payload"]["code"] == "INTERNAL_ERROR"
        assert back.closed.wait(SOON)
    runtime.store.clear_halt(first.session_id)


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_everything_is_there_after_a_restart(opened: Opened, steps: Steps) -> None:
    runtime, gateway = opened()
    owner, follower = ArcpProbe(gateway.url), ArcpProbe(gateway.url)
    answer = owner.ask("job.submit", {"agent": "stepped", "input": {"n": 3}, "idempotency_key": "k"})["payload"]
    job = answer["job_id"]
    follower.ask("job.subscribe", {"job_id": job, "history": True})
    steps.allow(3)
    owner.wait_end(job)
    follower.wait_seq(2)
    gateway.close()
    runtime.close()

    runtime, gateway = opened()
    with ArcpProbe(gateway.url, resume=owner.position) as back:
        again = back.ask("job.submit", {"agent": "stepped", "input": {"n": 3}, "idempotency_key": "k"})["payload"]
        assert {**again, "request_id": 0} == {**answer, "request_id": 0}
        (listed,) = back.ask("session.list_jobs")["payload"]["jobs"]
        assert (listed["job_id"], listed["status"], listed["last_event_seq"]) == (job, "success", 4)
        following = ArcpProbe(gateway.url, resume=(*follower.position[:2], 1))
        following.wait_end(job)
        assert [each["stream_seq"] for each in following.events()] == [2, 3, 4]
        assert following.faults() == []
        following.close()
        assert back.events() == []
    for probe in (owner, follower):
        probe.close()


@pytest.mark.parametrize("behind", [0, 2, 5])
def test_a_subscription_goes_on_where_its_copies_end_each_copied_once(
    opened: Opened, steps: Steps, behind: int
) -> None:
    """A process that died between copying and anything else: what counts is what lies in the follower's log."""
    runtime, gateway = opened()
    with ArcpProbe(gateway.url) as owner, ArcpProbe(gateway.url) as follower:
        job = owner.submit("stepped", {"n": 10})
        steps.allow(5)
        owner.wait_seq(5)
        follower.ask("job.subscribe", {"job_id": job, "history": True})
        follower.wait_seq(5)
        follower.kill()
        eventually(lambda: len(gateway._hub.links()) == 1, timeout=SOON)
        steps.allow(5)
        owner.wait_end(job)
        # What another process has copied meanwhile has the same ids, and is there once.
        record = gateway._hub.book("alice").read(lambda ledger: ledger.subscription(follower.session_id, job))
        assert record is not None
        from logmark.gateway._forward import _Forward

        other = _Forward(
            gateway._hub, record, frozenset(follower.welcome["payload"]["capabilities"]["features"]), lambda: None
        )
        source = [event for event in runtime.session(owner.session_id).read_raw(6) if event.job_id == job]
        other._append([other._copy(event) for event in source[:behind]])
        other._append([other._copy(event) for event in source[: behind + 1]])
        with ArcpProbe(gateway.url, resume=follower.position) as back:
            back.wait_end(job)
            assert [each["stream_seq"] for each in back.events()] == list(range(6, 12))
            assert back.faults() == []


class Server:
    """A serving process."""

    def __init__(self, store: Path, tick_s: float) -> None:
        command = [sys.executable, str(SERVER), f"file:{store}", str(tick_s)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(tick_s: float = 0.05) -> Server:
        servers.append(Server(tmp_path / "store", tick_s))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


def test_a_job_whose_process_was_killed_ends_once_and_first_of_all(start: Callable[..., Server]) -> None:
    server = start()
    owner, follower = ArcpProbe(server.url), ArcpProbe(server.url)
    job = owner.submit("begin", {"n": 3}, idempotency_key="k")
    follower.ask("job.subscribe", {"job_id": job, "history": True})
    for probe in (owner, follower):
        probe.wait_seq(3)
    server.kill()
    for probe in (owner, follower):
        probe.close()
        assert probe.faults() == []

    server = start(1000.0)  # no upkeep comes in time to do it: who asks first finds it done
    positions = []
    for probe in (owner, follower):
        with ArcpProbe(server.url, resume=probe.position) as back:
            (end,) = [back.wait_seq(4)]
            assert (end["type"], end["payload"]["code"], end["payload"]["retryable"]) == (
                "job.error",
                "INTERNAL_ERROR",
                True,
            )
            assert [each["event_seq"] for each in back.events()] == [4]
            (listed,) = back.ask("session.list_jobs")["payload"]["jobs"]
            assert (listed["status"], listed["last_event_seq"]) == ("error", 4)
            again = back.ask("job.submit", {"agent": "begin", "input": {"n": 3}, "idempotency_key": "k"})
            assert again["payload"]["job_id"] == job
            positions.append(back.position)
    server.kill()

    server = start()
    for session_id, token, _ in positions:
        with ArcpProbe(server.url, resume=(session_id, token, 0)) as back:
            back.wait_seq(4)
            back.ping()
            assert [each["type"] for each in back.events()] == ["job.event"] * 3 + ["job.error"]
            assert back.faults() == []


def test_a_server_that_is_killed_at_any_moment_leaves_no_hole(start: Callable[..., Server]) -> None:
    frames: list[dict[str, Any]] = []
    position = None
    jobs: list[str] = []
    for round_ in range(3):
        server = start()
        probe = ArcpProbe(server.url, resume=position)
        jobs.append(probe.submit("count", {"n": 400}))
        probe.wait_seq(probe.after_seq + 40 + 37 * round_)
        server.kill()
        assert probe.closed.wait(SOON)
        probe.close()
        assert probe.faults() == []
        frames += probe.frames if not frames else probe.events()
        position = probe.position
    server = start()
    with ArcpProbe(server.url, resume=position) as probe:
        last = probe.wait_end(jobs[-1])
        frames += probe.events()
    assert wire_faults(frames) == []
    ends = [each for each in frames if each["type"] in ("job.result", "job.error")]
    assert [each["job_id"] for each in ends] == jobs
    assert last["payload"]["code"] == "INTERNAL_ERROR"


# -- two servers on one store ------------------------------------------------------------------------------------------


def test_a_session_moves_to_another_server_and_its_job_stays(opened: Opened, steps: Steps) -> None:
    _, here = opened()
    _, there = opened()
    first = ArcpProbe(here.url)
    job = first.submit("stepped", {"n": 10})
    steps.allow(3)
    first.wait_seq(3)
    second = ArcpProbe(there.url, resume=first.position)
    assert first.closed.wait(SOON)  # the other server has learned of it
    steps.allow(3)
    second.wait_seq(6)
    (listed,) = second.ask("session.list_jobs")["payload"]["jobs"]
    assert (listed["status"], listed["last_event_seq"]) == ("running", 6)
    assert second.ask("job.cancel", {"job_id": job})["type"] == "job.cancelled"
    assert second.wait_end(job)["payload"]["code"] == "CANCELLED"
    assert (first.faults(), second.faults()) == ([], [])
    assert refused(here, first.position) == "PERMISSION_DENIED"
    for probe in (first, second):
        probe.close()


def test_equal_keys_at_two_servers_are_one_job(opened: Opened, steps: Steps) -> None:
    gateways = [opened()[1] for _ in range(2)]
    probes = [ArcpProbe(gateway.url) for gateway in gateways for _ in range(3)]
    barrier = threading.Barrier(len(probes))
    jobs: list[str] = []

    def submit(probe: ArcpProbe) -> None:
        barrier.wait()
        jobs.append(probe.submit("stepped", {"n": 1}, idempotency_key="k"))

    threads = [threading.Thread(target=submit, args=(probe,)) for probe in probes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(jobs)) == 1
    steps.allow(1)
    for probe in probes:
        probe.wait_end(jobs[0])
        assert probe.faults() == []
        probe.close()


def test_the_jobs_of_a_server_elsewhere_end_when_it_has_been_silent(
    opened: Opened, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can see whether a process on another machine lives; it counts as alive while it says so."""
    limits = GatewayLimits(tick_interval_s=0.05, instance_beat_s=0.3, instance_silence_s=3.0)
    _, here = opened(limits)
    owner = ArcpProbe(here.url)
    job = owner.submit("stepped", {"n": 5})
    steps.allow(1)
    owner.wait_seq(1)
    original = Instance.__init__

    def elsewhere(self: Instance, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self._place = ["another", "machine", "altogether"]
        self.id = ":".join([*self._place, *self.id.split(":")[3:]])

    monkeypatch.setattr(Instance, "__init__", elsewhere)
    runtime, there = opened(limits)
    with ArcpProbe(there.url, resume=owner.position) as second:
        runtime.session(instance_log(here._hub.instance.id)).wait_for(4, timeout=SOON)  # it goes on saying so
        steps.allow(1)
        second.wait_seq(2)
        (listed,) = second.ask("session.list_jobs")["payload"]["jobs"]
        assert listed["status"] == "running"
        monkeypatch.setattr(here._hub.instance, "beat", lambda: None)
        end = second.wait_end(job)
        assert (end["payload"]["code"], end["event_seq"]) == ("INTERNAL_ERROR", 3)
        # It was alive after all, but has learned that it was given up: it adds nothing behind the end.
        steps.allow(3)
        eventually(lambda: here._hub.live_job(job) is None, timeout=SOON)
        second.wait_end(second.submit("stepped", {"n": 0}))
        assert [each["type"] for each in second.events(job)] == ["job.event", "job.error"]
        assert second.faults() == []
    owner.close()


def test_an_end_that_comes_in_between_is_met_and_not_passed(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may have been given up looks, and appends on condition that nothing has come since."""
    runtime, _ = opened()
    session = runtime.session("sess_1")
    original = logmark.Session.append_many
    event, end = (
        logmark.Envelope(type=type_, payload={"final_status": "error"}, job_id="job_1")
        for type_ in ("job.event", "job.error")
    )
    others = [end]

    def append_many(self: logmark.Session, events: Any, **options: Any) -> tuple[int, int]:
        while others:
            original(self, [others.pop()])
        return original(self, events, **options)

    monkeypatch.setattr(logmark.Session, "append_many", append_many)
    for late in (event, end):
        with pytest.raises(JobEnded):
            _append_unless_ended(session, "job_1", [late])
    assert [each.type for each in session.read()] == ["job.error"]


def test_the_facts_are_written_anew_before_there_are_too_many(opened: Opened, steps: Steps) -> None:
    runtime, gateway = opened(GatewayLimits(tick_interval_s=0.05, facts_max=20, retention_s=0.05))
    with ArcpProbe(gateway.url) as probe:
        for _ in range(12):
            steps.allow(1)
            probe.wait_end(probe.submit("stepped", {"n": 1}))
        facts = runtime.session("arcp/principals/alice")
        eventually(lambda: any(each.type == "arcp.ledger_reset" for each in facts.read()), timeout=SOON)
        steps.allow(1)
        last = probe.submit("stepped", {"n": 1}, idempotency_key="k")
        probe.wait_end(last)
        position = probe.position
    gateway.close()
    runtime.close()
    _, gateway = opened()
    with ArcpProbe(gateway.url, resume=position) as back:
        assert back.submit("stepped", {"n": 1}, idempotency_key="k") == last
        assert last in [each["job_id"] for each in back.ask("session.list_jobs")["payload"]["jobs"]]
