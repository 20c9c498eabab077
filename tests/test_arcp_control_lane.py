"""Control frames stand behind no event, and a slow client costs its own position and nobody's memory or time."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

import logmark
from logmark.gateway import AgentContext, Gateway, GatewayLimits
from logmark.testing import ArcpProbe, eventually

SOON = 30.0
ANSWER_S_MAX = 0.05


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def opened(tmp_path: Path, stop: threading.Event) -> Iterator[Callable[..., Gateway]]:
    with logmark.open(str(tmp_path / "store"), limits=logmark.Limits(subscriber_bytes_max=4 * 1024 * 1024)) as runtime:

        @runtime.agent("flood", version="1")
        def flood(ctx: AgentContext, given: Any) -> Any:
            while not stop.is_set() and not ctx.cancelled.is_set():
                ctx.log("info", "x" * 200)
            return None

        @runtime.agent("bulk", version="1")
        def bulk(ctx: AgentContext, given: Any) -> Any:
            for _ in range(given["n"] // 100):
                ctx.emit_many([("log", {"level": "info", "message": "x" * given.get("size", 10)})] * 100)
            return given["n"]

        gateways: list[Gateway] = []

        def make(**limits: Any) -> Gateway:
            bounds = dataclasses.replace(GatewayLimits(tick_interval_s=0.05, close_wait_s=5), **limits)
            gateways.append(logmark.serve(runtime, tokens={"token": "alice"}, limits=bounds))
            return gateways[-1]

        yield make
        stop.set()
        for gateway in gateways:
            gateway.close()


Opened = Callable[..., Gateway]


def answer_times(probe: ArcpProbe, rounds: int = 25) -> tuple[list[float], list[float]]:
    pongs, lists = [], []
    for _ in range(rounds):
        pongs.append(probe.ping())
        before = len(probe.frames)
        probe.ask("session.list_jobs")
        lists.append(probe.arrived_at[-1] - probe.arrived_at[before - 1])
    return pongs, lists


def test_a_pong_and_a_list_answer_at_once_while_a_job_streams(opened: Opened) -> None:
    with ArcpProbe(opened().url) as probe:
        probe.submit("flood")
        probe.wait_seq(50)
        pongs, lists = answer_times(probe)
        # The lower quartile: a busy machine makes some of them late, a queue behind events would make all of them.
        assert statistics.quantiles(pongs)[0] < ANSWER_S_MAX
        assert statistics.quantiles(lists)[0] < ANSWER_S_MAX
        assert probe.faults() == []


def test_an_answer_overtakes_the_events_that_wait(opened: Opened) -> None:
    """Without a clock: the pong comes while most of a long history is still to be sent."""
    gateway = opened()
    with ArcpProbe(gateway.url) as owner, ArcpProbe(gateway.url) as probe:
        job = owner.submit("bulk", {"n": 8000})
        owner.wait_end(job)
        with ArcpProbe(gateway.url, resume=(*owner.position[:2], 0)) as back:
            back.ping()
            pong = next(index for index, each in enumerate(back.frames) if each["type"] == "session.pong")
            assert sum("event_seq" in each for each in back.frames[:pong]) < 4000
            back.wait_end(job)
            assert back.faults() == []
        probe.ask("job.subscribe", {"job_id": job, "history": True})
        probe.wait_end(job)
        assert len(probe.events()) == 8001


def test_a_stalled_client_is_let_go_and_loses_nothing(opened: Opened) -> None:
    gateway = opened(stall_wait_s=0.5)
    stalled = ArcpProbe(gateway.url, reading=False, receive_buffer_bytes=4096)
    with ArcpProbe(gateway.url) as other:
        stalled.send("job.submit", {"agent": "bulk", "input": {"n": 1500, "size": 4000}})
        eventually(lambda: other.ask("session.list_jobs")["payload"]["jobs"], timeout=SOON)
        assert other.ping() < SOON
        (link,) = [each for each in gateway._hub.links() if each.session_id == stalled.session_id]
        eventually(lambda: link.is_ended, timeout=SOON)
        assert len(link._control) <= 2
        events = link._events
        assert events is None
        (job,) = [each["job_id"] for each in other.ask("session.list_jobs")["payload"]["jobs"]]
    with ArcpProbe(gateway.url, resume=stalled.position) as back:
        assert back.wait_end(job)["payload"]["final_status"] == "success"  # it went on without its client
        assert len(back.events()) == 1501
        assert back.faults() == []
    stalled.kill()


def test_control_frames_that_nobody_reads_are_bounded(opened: Opened) -> None:
    gateway = opened(control_frames_max=50, stall_wait_s=1000.0)
    stalled = ArcpProbe(gateway.url, reading=False, receive_buffer_bytes=4096)
    (link,) = gateway._hub.links()

    def flood() -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            while True:
                stalled.send("session.ping", {"nonce": "n" * 150})

    thread = threading.Thread(target=flood)
    thread.start()
    eventually(lambda: link.is_ended, timeout=SOON)
    thread.join(SOON)
    assert link._control_bytes < 100_000
    stalled.kill()


def test_a_client_that_lags_is_told_in_its_stream_once(opened: Opened) -> None:
    gateway = opened(lag_events_max=100)
    with ArcpProbe(gateway.url) as probe:
        probe.submit("flood")
        probe.wait_seq(5)
        probe.send("session.ack", {"last_processed_seq": 5})
        told = probe.wait_for(lambda frame: frame["payload"].get("body", {}).get("phase") == "back_pressure")
        assert told["payload"]["kind"] == "status"
        probe.wait_seq(told["event_seq"] + 200)
        phases = [each["payload"].get("body", {}).get("phase") for each in probe.events()]
        assert phases.count("back_pressure") == 1
        probe.send("session.ack", {"last_processed_seq": probe.last_seq})
        assert probe.faults() == []


def test_a_peer_that_does_not_answer_is_given_up_and_its_job_goes_on(opened: Opened, stop: threading.Event) -> None:
    gateway = opened(heartbeat_interval_s=0.2)
    with ArcpProbe(gateway.url) as probe:
        job = probe.submit("flood")
        probe.wait_for(lambda frame: frame["type"] == "session.ping")
        lost = probe.wait_for(lambda frame: frame["type"] == "session.error")
        assert lost["payload"]["code"] == "HEARTBEAT_LOST"
        assert probe.closed.wait(SOON)
        position = probe.position
    with ArcpProbe(gateway.url, features=["ack"], resume=position) as back:  # without heartbeats it may be silent
        back.wait_seq(position[2] + 20)
        stop.set()
        assert back.wait_end(job)["payload"]["final_status"] == "success"
        assert back.faults() == []


@pytest.mark.slow
def test_five_hundred_connections_at_once(opened: Opened) -> None:
    gateway = opened()
    probes: list[ArcpProbe] = []

    def connect() -> None:
        probes.extend(ArcpProbe(gateway.url) for _ in range(125))

    threads = [threading.Thread(target=connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(probes) == 500
    for probe in probes:
        probe.send("job.submit", {"agent": "bulk", "input": {"n": 0}})
    for probe in probes:
        accepted = probe.wait_for(lambda frame: frame["type"] == "job.accepted")
        probe.wait_end(accepted["payload"]["job_id"])
        assert probe.faults() == []
    gateway.close()
    assert all(probe.closed.wait(SOON) for probe in probes)
    for probe in probes:
        probe.close()
