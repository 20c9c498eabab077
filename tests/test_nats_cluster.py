"""Three NATS servers with three replicas, one of which is killed again and again: nothing lost, doubled or left out.

LOGMARK_SOAK_S=600 makes the killing go on for so many seconds, and the processes append 2 times 1,000 events.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import logmark
from logmark.errors import AppendUncertain, LockTimeout, StorageRejected, StorageUnavailable
from logmark.protocol import Limits
from logmark.testing import NatsCluster, NatsServer, eventually
from logmark.testing.conformance import append_events, make_event, seqs_of

pytest.importorskip("nats", reason="logmark[nats] is not installed")

from logmark.storage._nats import NatsEventStore

T = TypeVar("T")
WORKER = Path(__file__).parent / "workers" / "server_peer.py"
SESSION = "shared"
SOON = 100.0
LIMITS = Limits(server_wait_s=20.0)
SOAK_S = float(os.environ.get("LOGMARK_SOAK_S", "0"))
KILLS = 2
COUNT = 1000 if SOAK_S else 150
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[NatsCluster]:
    with NatsCluster() as made:
        yield made


@pytest.fixture
def name(cluster: NatsCluster) -> Iterator[str]:
    yield f"cluster_{next(_numbers)}"
    for server in cluster.servers:
        if not server.is_running:
            server.start(wait=False)
    cluster.wait_ready()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def begin(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(WORKER), *map(str, words)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait(SOON)
        if process.stdout is not None:
            process.stdout.close()


def result_of(process: subprocess.Popen[str], timeout: float = SOON) -> Any:
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def answered(ask: Callable[[], T], timeout: float = SOON) -> T:
    """Return the answer to a question, asked again while the servers elect whom they follow."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return ask()
        except StorageUnavailable:
            if time.monotonic() > deadline:
                raise


def kill_another(cluster: NatsCluster, name: str) -> NatsServer:
    """Kill a server that does not lead the stream, and return it."""
    eventually(lambda: cluster.leader(name) is not None, timeout=SOON)
    leader = cluster.leader(name)
    other = next(server for server in cluster.servers if server is not leader and server.is_running)
    other.kill()
    return other


def kill_leader(cluster: NatsCluster, name: str) -> NatsServer:
    """Kill the server that leads the stream, as a crash does, and return it."""
    found: list[NatsServer] = []

    def look() -> bool:
        leader = cluster.leader(name)
        if leader is not None:
            found.append(leader)
        return bool(found)

    eventually(look, timeout=SOON)
    found[0].kill()
    return found[0]


@pytest.mark.slow
@pytest.mark.timeout(240 + 2 * SOAK_S)
def test_the_leader_is_killed_in_the_middle_of_appends_again_and_again(cluster: NatsCluster, name: str) -> None:
    """Row 12 of issue 6: every append that was acknowledged is there, once, under the number that was told."""
    acknowledged: list[tuple[str, int]] = []
    done = threading.Event()
    ready = threading.Semaphore(0)
    with logmark.open(cluster.url(name), limits=LIMITS) as runtime:
        session = runtime.session(SESSION)

        def append(writer: str) -> None:
            for number in itertools.count():
                if done.is_set():
                    return
                event_id = f"{writer}-{number}"
                while True:
                    try:
                        seq = session.append("note", {"n": number}, id=event_id)
                    except (AppendUncertain, StorageRejected, StorageUnavailable, LockTimeout):
                        continue
                    acknowledged.append((event_id, seq))
                    ready.release()
                    break

        threads = [threading.Thread(target=append, args=(writer,)) for writer in "abc"]
        for thread in threads:
            thread.start()
        began, kills = time.monotonic(), 0
        while kills < KILLS or time.monotonic() - began < SOAK_S:
            for _ in range(40):
                assert ready.acquire(timeout=SOON)
            killed = kill_leader(cluster, name)
            kills += 1
            for _ in range(40):  # two of three go on
                assert ready.acquire(timeout=SOON)
            killed.start()
        done.set()
        for thread in threads:
            thread.join(SOON)
            assert not thread.is_alive()

        found = answered(lambda: [(event.id, event.event_seq) for event in session.read()])
        assert [seq for _, seq in found] == list(range(1, len(found) + 1))
        assert len({event_id for event_id, _ in found}) == len(found)
        assert sorted(found, key=lambda each: each[1] or 0) == sorted(acknowledged, key=lambda each: each[1])
        assert answered(lambda: runtime.store.verify(SESSION)) == []
        assert answered(lambda: runtime.store.halted(SESSION)) is None


@pytest.mark.slow
@pytest.mark.timeout(240 + 2 * SOAK_S)
@pytest.mark.parametrize("kill", [None, kill_another, kill_leader] if SOAK_S else [kill_another])
def test_two_processes_append_while_a_third_follows(
    cluster: NatsCluster,
    name: str,
    start: Callable[..., subprocess.Popen[str]],
    kill: Callable[[NatsCluster, str], NatsServer] | None,
) -> None:
    """Row "shown by" of issue 6: all of both, once, in order; also when a server is killed and started again."""
    url = cluster.url(name)
    store = NatsEventStore(url)
    follower = start("follow", url, 2 * COUNT)
    writers = [start("append", url, writer, COUNT) for writer in ("left", "right")]

    def is_halfway() -> bool:
        try:
            return store.last_seq(SESSION) > COUNT // 2
        except StorageUnavailable:
            return False

    if kill is not None:
        eventually(is_halfway, timeout=SOON)
        kill(cluster, name).start()
    answers = [(seq, event_id) for writer in writers for event_id, seq in result_of(writer)]
    seen = [tuple(each) for each in result_of(follower)]

    assert [seq for seq, _ in seen] == list(range(1, 2 * COUNT + 1))
    assert seen == sorted(answers)
    for writer in ("left", "right"):
        mine = [event_id for _, event_id in seen if event_id.startswith(writer)]
        assert mine == [f"{writer}-{number}" for number in range(COUNT)]
    assert answered(lambda: [(event.event_seq, event.id) for event in store.read(SESSION)]) == seen
    assert answered(lambda: store.verify(SESSION)) == []
    assert answered(lambda: store.halted(SESSION)) is None
    store.close()


def test_a_store_answers_when_the_server_that_it_is_connected_to_is_killed(cluster: NatsCluster, name: str) -> None:
    """The next of the URL's hosts takes over; a majority is enough, and less than that is refused in time."""
    store = NatsEventStore(cluster.url(name), limits=Limits(server_wait_s=20.0))
    append_events(store, SESSION, make_event("first"))
    client = store._link._client
    assert client is not None
    assert client.connected_url is not None
    connected = next(server for server in cluster.servers if server.port == client.connected_url.port)
    connected.kill()
    assert append_events(store, SESSION, make_event("second")).first_seq == 2
    assert seqs_of(store.read(SESSION)) == [1, 2]
    hasty = NatsEventStore(cluster.url(name, monitor=""), limits=Limits(server_wait_s=1.0, lock_wait_s=0.5))
    another = next(server for server in cluster.servers if server.is_running)
    another.kill()
    with pytest.raises((AppendUncertain, StorageRejected)):
        append_events(hasty, SESSION, make_event("third", id="third"))
    connected.start(wait=False)
    another.start(wait=False)
    cluster.wait_ready()
    assert append_events(store, SESSION, make_event("third", id="third")).first_seq == 3
    assert seqs_of(store.read(SESSION)) == [1, 2, 3]
    assert store.verify(SESSION) == []
    hasty.close()
    store.close()


def test_fewer_replicas_than_asked_for_are_refused(cluster: NatsCluster, name: str) -> None:
    NatsEventStore(cluster.url(name, replicas=1)).close()
    with pytest.raises(StorageUnavailable, match="it has 1 replicas, and 3 were asked for"):
        NatsEventStore(cluster.url(name, replicas=3))
