"""Several processes on one PostgreSQL store: one sequence, seen by a follower once and in order, whatever happens."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Limits
from logmark.errors import SessionHalted, StorageUnavailable
from logmark.storage import get_logger
from logmark.testing import PostgresServer, eventually

pytest.importorskip("psycopg_pool", reason="logmark[postgres] is not installed")

from logmark.storage._postgres import PostgresEventStore

WORKER = Path(__file__).parent / "workers" / "server_peer.py"
SESSION = "shared"
COUNT = 1000
SOON = 100.0
_numbers = itertools.count(1)


@pytest.fixture
def url(postgres_server: PostgresServer) -> str:
    return postgres_server.url(schema=f"processes_{next(_numbers)}")


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


def result_of(process: subprocess.Popen[str]) -> Any:
    output, _ = process.communicate(timeout=SOON)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def length(store: PostgresEventStore) -> int:
    try:
        return store.last_seq(SESSION)
    except StorageUnavailable:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kills", [0, 1], ids=["in peace", "killed in the middle"])
def test_two_processes_append_while_a_third_follows(
    postgres_server: PostgresServer, url: str, start: Callable[..., subprocess.Popen[str]], kills: int
) -> None:
    """Row "shown by" of issue 6: 1..2,000, once, in order; also when the server is killed and started again."""
    store = PostgresEventStore(url)
    follower = start("follow", url, 2 * COUNT)
    writers = [start("append", url, name, COUNT) for name in ("left", "right")]
    for _ in range(kills):
        eventually(lambda: length(store) > COUNT // 2, timeout=SOON)
        postgres_server.stop("immediate")
        postgres_server.start()
    answers = [(seq, event_id) for writer in writers for event_id, seq in result_of(writer)]
    seen = [tuple(each) for each in result_of(follower)]

    assert [seq for seq, _ in seen] == list(range(1, 2 * COUNT + 1))
    assert seen == sorted(answers)
    for name in ("left", "right"):
        mine = [event_id for _, event_id in seen if event_id.startswith(name)]
        assert mine == [f"{name}-{number}" for number in range(COUNT)]
    assert [(event.event_seq, event.id) for event in store.read(SESSION)] == seen
    assert store.verify(SESSION) == []
    assert store.halted(SESSION) is None
    store.close()


def test_a_follower_hears_of_an_append_elsewhere_without_polling(url: str) -> None:
    """The hint arrives long before the next look would be made."""
    limits = Limits(watch_interval_s=50.0)
    with (
        logmark.open(url, limits=limits) as one,
        logmark.open(url, limits=limits) as two,
        one.session(SESSION).subscribe(1) as subscription,
    ):
        two.session(SESSION).append("note", 0)
        subscription.get(SOON)  # now it listens
        delays: list[float] = []
        for number in range(1, 12):
            two.session(SESSION).append("note", number)
            began = time.monotonic()
            assert subscription.get(SOON).payload == number
            delays.append(time.monotonic() - began)
    assert sorted(delays)[len(delays) // 2] < 0.5


def test_marks_halts_and_ids_hold_in_the_other_runtime(url: str) -> None:
    with logmark.open(url) as one, logmark.open(url) as two:
        here, there = one.session(SESSION), two.session(SESSION)
        assert here.append("job.event", {"n": 1}, job_id="build", id="mine") == 1
        assert there.append("job.event", {"n": 1}, job_id="build", id="mine") == 1
        assert there.append("job.result", {}, job_id="build") == 2
        for session in (here, there):
            mark = session.job("build").mark
            assert mark is not None
            assert (mark.first_seq, mark.last_seq, mark.count, mark.status) == (1, 2, 2, "success")
        one.store.halt(SESSION, "an operator says so")
        with pytest.raises(SessionHalted):
            there.append("note", 1)
        with pytest.raises(SessionHalted):
            list(there.read())
        two.store.clear_halt(SESSION)
        assert here.append("note", 1) == 3


def test_hints_are_told_of_every_session_whatever_their_number(url: str) -> None:
    """A notification holds less than 8,000 bytes; what does not go in goes into the next."""
    from logmark.storage import AppendRequest, SessionBatch
    from logmark.storage._postgres_hints import Listener
    from logmark.testing.conformance import make_event

    store, listening = PostgresEventStore(url), PostgresEventStore(url)
    heard: set[str | None] = set()
    channel, notifier = listening._channel, listening._notifier
    listener = Listener(listening._connections, channel, heard.add, notifier, get_logger())
    listener.start()
    eventually(lambda: None in heard, timeout=SOON)
    names = {f"{number:03}" + "\N{PILE OF POO}" * 49 for number in range(60)}
    store.append([SessionBatch(name, (AppendRequest((make_event(),)),)) for name in names])
    eventually(lambda: names <= heard, timeout=SOON)
    listener.close()
    listening.close()
    store.close()
