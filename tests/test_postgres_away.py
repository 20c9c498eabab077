"""The PostgreSQL server goes away at any moment of an append: nothing is lost, doubled or halted, and nobody hangs."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import logmark
from logmark.errors import (
    AppendUncertain,
    LockTimeout,
    LogCorrupt,
    SessionHalted,
    StorageRejected,
    StorageUnavailable,
    WrongExpectedSeq,
)
from logmark.protocol import AppendError, Limits
from logmark.storage import Appended, AppendRequest, SessionBatch
from logmark.testing import CapturedLogs, FaultyProxy, PostgresServer, eventually
from logmark.testing.conformance import append_batch, append_events, make_event, make_events, seqs_of, texts_of

pytest.importorskip("psycopg_pool", reason="logmark[postgres] is not installed")

import psycopg

from logmark.storage._postgres import PostgresEventStore

S = "session"
SOON = 30.0
LIMITS = Limits(server_wait_s=10.0, lock_wait_s=10.0)
HASTY = Limits(server_wait_s=0.5, lock_wait_s=0.1)
MOMENTS = ("before", "sent", "answered")
_numbers = itertools.count(1)

Open = Callable[..., PostgresEventStore]


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(postgres_server.port) as made:
        yield made


@pytest.fixture
def schema() -> str:
    return f"away_{next(_numbers)}"


@pytest.fixture
def open_store(postgres_server: PostgresServer, proxy: FaultyProxy, schema: str) -> Iterator[Open]:
    """Open the test's store behind the proxy, or past it."""
    opened: list[PostgresEventStore] = []

    def make(limits: Limits = LIMITS, *, direct: bool = False) -> PostgresEventStore:
        url = postgres_server.url(schema=schema, port=None if direct else proxy.port)
        opened.append(PostgresEventStore(url, limits=limits))
        return opened[-1]

    yield make
    proxy.heal()
    for store in opened:
        store.close()


def assert_sound(store: PostgresEventStore, texts: list[str], session_id: str = S) -> None:
    """Every text is there once, in this order, under the numbers from 1 on, and nothing is wrong or halted."""
    assert texts_of(store.read(session_id)) == texts
    assert seqs_of(store.read(session_id)) == list(range(1, len(texts) + 1))
    assert store.verify(session_id) == []
    assert store.halted(session_id) is None


# -- a connection is lost in the middle ------------------------------------------------------------------------------

APPENDS: dict[str, tuple[AppendRequest, ...]] = {
    "plain": (AppendRequest(make_events("needle")),),
    "with an id": (AppendRequest(make_events("needle", ids=["mine"])),),
    "expecting": (AppendRequest(make_events("needle"), 1),),
    "several": (AppendRequest(make_events("needle more")), AppendRequest(make_events("and"))),
    "careful": (AppendRequest(make_events("needle"), 1), AppendRequest(make_events("more"), 2)),
}


@pytest.mark.parametrize("kind", APPENDS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_append_whose_connection_is_cut_is_answered_truthfully(
    open_store: Open, proxy: FaultyProxy, moment: str, kind: str
) -> None:
    """The engine asks the server what has become of it, by making the same append again under its ids."""
    store = open_store()
    append_events(store, S, make_event("first"))
    fault = proxy.fault(b"needle", moment)  # type: ignore[arg-type]

    result = append_batch(store, S, *APPENDS[kind])

    fault.wait()
    numbers = [(answer.first_seq, answer.last_seq) for answer in result.answers if isinstance(answer, Appended)]
    sizes = [len(request.events) for request in APPENDS[kind]]
    ends = list(itertools.accumulate(sizes, initial=1))
    assert numbers == [(start + 1, end) for start, end in itertools.pairwise(ends)]
    if moment == "before":
        assert [answer.written for answer in result.answers if isinstance(answer, Appended)] == [True] * len(sizes)
    assert result.last_seq == ends[-1]
    words = [event.payload_json.decode() for request in APPENDS[kind] for event in request.events]
    assert_sound(store, ["first", *(word.split('"')[3] for word in words)])


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_commit_of_a_careful_append_is_lost(open_store: Open, proxy: FaultyProxy, moment: str) -> None:
    """Two round trips: the rows were locked and the ids looked for, and the connection goes with COMMIT."""
    store = open_store()
    append_events(store, S, make_event("first"))
    fault = proxy.fault(b"COMMIT", moment)  # type: ignore[arg-type]

    first, second = append_batch(
        store, S, AppendRequest(make_events("a"), 1), AppendRequest(make_events("b"), 2)
    ).answers

    fault.wait()
    assert isinstance(first, Appended)
    assert isinstance(second, Appended)
    assert (first.first_seq, second.first_seq) == (2, 3)
    assert_sound(store, ["first", "a", "b"])


@pytest.mark.parametrize("moment", MOMENTS)
def test_several_sessions_of_one_call_lose_their_connection(open_store: Open, proxy: FaultyProxy, moment: str) -> None:
    store = open_store()
    for name in ("a", "b", "c"):
        append_events(store, name, make_event("first"))
    fault = proxy.fault(b"needle", moment)  # type: ignore[arg-type]

    results = store.append([SessionBatch(name, (AppendRequest(make_events("needle")),)) for name in ("c", "a", "b")])

    fault.wait()
    for result in results:
        (answer,) = result.answers
        assert isinstance(answer, Appended)
        assert (answer.first_seq, result.last_seq) == (2, 2)
        assert_sound(store, ["first", "needle"], result.session_id)


@pytest.mark.parametrize("moment", MOMENTS)
def test_others_append_between_the_loss_and_the_question(open_store: Open, proxy: FaultyProxy, moment: str) -> None:
    """An expectation that the lost append met must not fail because of itself, nor hold because of a stranger."""
    store, other = open_store(), open_store(direct=True)
    append_events(store, S, make_event("first"))
    fault = proxy.fault(b"needle", moment, refuse=True)  # type: ignore[arg-type]
    answers: list[Appended | AppendError] = []
    thread = threading.Thread(
        target=lambda: answers.extend(append_batch(store, S, AppendRequest(make_events("needle"), 1)).answers)
    )
    thread.start()
    fault.wait()
    # What was sent may still be under way: the stranger's append comes after it, or instead of it.
    append_events(other, S, make_event("stranger"))
    proxy.heal()
    thread.join(SOON)

    (answer,) = answers
    texts = texts_of(other.read(S))
    if isinstance(answer, Appended):
        assert texts[answer.first_seq - 1] == "needle"
        assert moment != "before"
    else:
        assert isinstance(answer, WrongExpectedSeq)
        assert "needle" not in texts
    assert_sound(other, texts)


# -- no answer until the deadline ------------------------------------------------------------------------------------


def test_a_server_that_falls_silent_leaves_the_outcome_unknown_and_the_session_open(
    open_store: Open, proxy: FaultyProxy
) -> None:
    """It has written the event, and its answer never comes: said as such, in time, and a retry settles it."""
    store, other = open_store(HASTY), open_store(direct=True)
    append_events(store, S, make_event("first"))
    fault = proxy.fault(b"needle", "silent")
    began = time.monotonic()
    (answer,) = append_batch(store, S, AppendRequest((make_event("needle", id="mine"),))).answers

    assert time.monotonic() - began < SOON
    assert fault.happened.is_set()
    assert isinstance(answer, AppendUncertain)
    assert (answer.halted, answer.first_event_id) == (False, "mine")
    assert "retry" in str(answer)
    assert other.halted(S) is None
    assert append_events(store, S, make_event("needle", id="mine")) == Appended(2, 2, written=False)
    assert append_events(store, S, make_event("next")) == Appended(3, 3)
    assert_sound(other, ["first", "needle", "next"])


def test_an_answer_that_is_lost_with_the_server_is_an_unknown_outcome(open_store: Open, proxy: FaultyProxy) -> None:
    store, other = open_store(HASTY), open_store(direct=True)
    append_events(store, S, make_event("first"))
    proxy.fault(b"needle", "answered", refuse=True)
    (answer,) = append_batch(store, S, AppendRequest((make_event("needle", id="mine"),))).answers
    assert isinstance(answer, AppendUncertain)
    assert not answer.halted

    (refused,) = append_batch(store, S, AppendRequest(make_events("refused"))).answers
    assert isinstance(refused, StorageRejected)  # this one was never sent, so nothing of it can be there
    with pytest.raises(StorageUnavailable, match="could not be reached"):
        list(store.read(S))
    with pytest.raises(StorageUnavailable):
        store.last_seq(S)
    with pytest.raises(StorageUnavailable):
        store.halt(S, "why")
    with pytest.raises(StorageRejected):
        store.reserve(S, 10)
    proxy.heal()
    assert append_events(store, S, make_event("needle", id="mine")) == Appended(2, 2, written=False)
    assert_sound(other, ["first", "needle"])


def test_a_session_heals_by_itself_when_the_server_is_back(
    open_store: Open, proxy: FaultyProxy, logs: CapturedLogs
) -> None:
    """An append that waits for the server goes through as soon as there is one; the outage is logged once."""
    store = open_store()
    append_events(store, S, make_event("first"))
    proxy.refuse()
    answers: list[Appended] = []
    thread = threading.Thread(target=lambda: answers.append(append_events(store, S, make_event("waiting"))))
    thread.start()
    eventually(lambda: logs.named("server_lost"), timeout=SOON)
    proxy.heal()
    thread.join(SOON)

    assert answers == [Appended(2, 2)]
    assert_sound(store, ["first", "waiting"])
    assert len(logs.named("server_lost")) == 1
    assert len(logs.named("server_reached")) == 1


def test_a_stopped_server_is_waited_for_until_the_deadline_only(
    postgres_server: PostgresServer, open_store: Open
) -> None:
    """Its sockets stay open and its system acknowledges every byte, so only the engine's own clock can tell."""
    store = open_store(HASTY, direct=True)
    append_events(store, S, make_event("first"))
    postgres_server.pause()
    try:
        began = time.monotonic()
        (answer,) = append_batch(store, S, AppendRequest((make_event("a", id="a"),))).answers
        assert isinstance(answer, AppendUncertain)
        with pytest.raises(StorageUnavailable):
            list(store.read(S))
        assert time.monotonic() - began < SOON
    finally:
        postgres_server.resume()
    retried = AppendRequest((make_event("a", id="a"),))
    eventually(lambda: isinstance(append_batch(store, S, retried).answers[0], Appended), timeout=SOON)
    assert_sound(open_store(direct=True), ["first", "a"])


def test_a_pool_with_no_connection_left_says_so(open_store: Open) -> None:
    store = open_store(Limits(server_wait_s=0.4, lock_wait_s=0.2, server_connections_max=1), direct=True)
    append_events(store, S, make_event("first"))
    with store._connections.use(time.monotonic() + SOON):
        (answer,) = append_batch(store, S, AppendRequest(make_events("a"))).answers
        assert isinstance(answer, StorageRejected)
        assert "server_connections_max" in str(answer)
        with pytest.raises(StorageUnavailable, match="server_connections_max"):
            store.last_seq(S)
    assert append_events(store, S, make_event("b")) == Appended(2, 2)


def test_a_lock_that_is_held_too_long_concerns_its_session_only(
    postgres_server: PostgresServer, open_store: Open, schema: str
) -> None:
    store = open_store(Limits(lock_wait_s=0.3), direct=True)
    for name in ("a", "b", "c"):
        append_events(store, name, make_event("first"))
    with psycopg.connect(postgres_server.url().partition("?")[0]) as stranger:
        stranger.execute(f"SELECT FROM {schema}.logmark_sessions WHERE session_id = 'b' FOR UPDATE".encode())
        results = store.append([SessionBatch(name, (AppendRequest(make_events("x")),)) for name in ("a", "b", "c")])
        answers = [result.answers[0] for result in results]
        assert [type(answer) for answer in answers] == [Appended, LockTimeout, Appended]
        with pytest.raises(LockTimeout):
            store.reserve("b", 10)
        # Also when it is found out late: "b" needs the careful way, after "a" and "c" are committed.
        twice = (AppendRequest(make_events("y"), None), AppendRequest(make_events("z"), 77))
        results = store.append(
            [SessionBatch(name, twice if name == "b" else (AppendRequest(make_events("y")),)) for name in "abc"]
        )
        assert [type(result.answers[0]) for result in results] == [Appended, LockTimeout, Appended]
    assert append_events(store, "b", make_event("x")) == Appended(2, 2)
    assert_sound(store, ["first", "x"], "b")
    for name in ("a", "c"):
        assert_sound(store, ["first", "x", "y"], name)


def test_a_reader_goes_on_where_its_connection_was_lost(open_store: Open, proxy: FaultyProxy) -> None:
    store = open_store(Limits(read_chunk_bytes=500))
    append_events(store, S, *make_events(" ".join(f"e{number}" for number in range(100))))
    found: list[int | None] = []
    for event in store.read(S):
        if len(found) % 20 == 0:
            proxy.cut_all()
        found.append(event.event_seq)
    assert found == list(range(1, 101))


# -- the runtime above -----------------------------------------------------------------------------------------------


def test_an_unknown_outcome_does_not_halt_the_session_of_a_runtime(
    postgres_server: PostgresServer, proxy: FaultyProxy, schema: str
) -> None:
    with logmark.open(postgres_server.url(schema=schema, port=proxy.port), limits=HASTY) as runtime:
        session = runtime.session(S)
        with session.subscribe(1) as subscription:
            assert session.append("note", "first") == 1
            fault = proxy.fault(b"needle", "silent")
            with pytest.raises(AppendUncertain) as caught:
                session.append("note", "needle", id="mine")
            assert fault.happened.is_set()
            assert not caught.value.halted
            assert session.append("note", "next") == 3
            assert session.append("note", "needle", id="mine") == 2
            assert [subscription.get(SOON).payload for _ in range(3)] == ["first", "needle", "next"]
        assert next(iter(runtime.sessions())).halted is None


def test_a_follower_misses_nothing_when_all_its_connections_are_cut(
    postgres_server: PostgresServer, proxy: FaultyProxy, schema: str
) -> None:
    """Also the one that it listens on: the log is what it goes by."""
    with (
        logmark.open(postgres_server.url(schema=schema, port=proxy.port)) as follower,
        logmark.open(postgres_server.url(schema=schema)) as writer,
    ):
        session = writer.session(S)
        with follower.session(S).subscribe(1) as subscription:
            for number in range(1, 61):
                assert session.append("note", number) == number
                if number % 20 == 0:
                    proxy.cut_all()
                if number % 3 == 0:
                    assert [subscription.get(SOON).event_seq for _ in range(3)] == [number - 2, number - 1, number]


def test_appends_go_on_through_immediate_stops_of_the_server(postgres_server: PostgresServer, schema: str) -> None:
    """Row 12 of issue 6: four threads append with ids of their own, twice the server is killed and started again."""
    stops, count = 2, 60
    limits = Limits(server_wait_s=20.0)
    acknowledged: list[tuple[str, int]] = []
    halfway = threading.Semaphore(0)
    with logmark.open(postgres_server.url(schema=schema), limits=limits) as runtime:
        session = runtime.session(S)

        def append(name: str) -> None:
            for number in range(count):
                event_id = f"{name}-{number}"
                while True:
                    try:
                        seq = session.append("note", event_id, id=event_id)
                    except (AppendUncertain, StorageRejected, StorageUnavailable):
                        continue  # each of them took the engine as long as it may take
                    acknowledged.append((event_id, seq))
                    break
                if number in (count // 3, 2 * count // 3):
                    halfway.release()

        threads = [threading.Thread(target=append, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for _ in range(stops):
            assert halfway.acquire(timeout=SOON)
            postgres_server.stop("immediate")
            postgres_server.start()
        for thread in threads:
            thread.join(2 * SOON)
        assert len(acknowledged) == 4 * count
        found = [(event.id, event.event_seq) for event in session.read()]
        assert sorted(found, key=lambda each: each[1] or 0) == sorted(acknowledged, key=lambda each: each[1])
        assert [seq for _, seq in found] == list(range(1, 4 * count + 1))
        assert runtime.store.verify(S) == []
        assert runtime.store.halted(S) is None


# -- another server --------------------------------------------------------------------------------------------------


def test_a_synchronous_standby_takes_over_with_everything_and_an_old_copy_is_noticed() -> None:
    """Failover keeps what was acknowledged; a server that lacks some of it gets no number to give out again."""
    with PostgresServer() as primary, PostgresServer(standby_of=primary) as standby:
        with psycopg.connect(primary.url().partition("?")[0], autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
        with FaultyProxy(primary.port) as proxy:
            store = PostgresEventStore(primary.url(port=proxy.port), limits=LIMITS)
            append_events(store, S, *make_events("a b c"))
            primary.stop("immediate")
            standby.promote()
            proxy.redirect(standby.port)
            proxy.cut_all()
            assert append_events(store, S, make_event("d")) == Appended(4, 4)
            assert_sound(store, ["a", "b", "c", "d"])

            primary.start()
            with psycopg.connect(primary.url().partition("?")[0], autocommit=True) as connection:
                connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
                connection.execute("SELECT pg_reload_conf()")
            proxy.redirect(primary.port)
            proxy.cut_all()
            with pytest.raises(LogCorrupt, match="standby"):
                append_events(store, S, make_event("again 4"))
            with pytest.raises(LogCorrupt):
                store.info(S)
            assert [finding.kind for finding in store.verify(S)] == ["lost"]
            assert store.repair(S)
            assert append_events(store, S, make_event("e")) == Appended(5, 5)
            assert seqs_of(store.read(S)) == [1, 2, 3, 5]
            assert store.verify(S) == []
            store.close()


def test_a_halt_made_elsewhere_answers_an_append_in_doubt_as_uncertain(open_store: Open, proxy: FaultyProxy) -> None:
    store, other = open_store(), open_store(direct=True)
    append_events(store, S, make_event("first"))
    fault = proxy.fault(b"needle", "answered", refuse=True)
    answers: list[Appended | AppendError] = []
    thread = threading.Thread(
        target=lambda: answers.extend(append_batch(store, S, AppendRequest(make_events("needle"))).answers)
    )
    thread.start()
    fault.wait()
    other.halt(S, "an operator says so")
    proxy.heal()
    thread.join(SOON)

    (answer,) = answers
    assert isinstance(answer, AppendUncertain)
    assert answer.halted
    (refused,) = append_batch(store, S, AppendRequest(make_events("later"))).answers
    assert isinstance(refused, SessionHalted)


# -- a fork ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_leaves_the_connections_to_its_parent(postgres_server: PostgresServer, schema: str) -> None:
    with logmark.open(postgres_server.url(schema=schema)) as runtime:
        session = runtime.session(S)
        with session.subscribe(1) as subscription:
            assert session.append("note", 1) == 1
            child = os.fork()
            if child == 0:
                try:
                    runtime.close()
                    del runtime, session
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            assert session.append("note", 2) == 2
            assert [subscription.get(SOON).event_seq for _ in range(2)] == [1, 2]


FORKING = """
import os, signal, sys, time
import logmark

runtime = logmark.open(sys.argv[1])
runtime.session("session").append("note", 1)
with runtime.store._connections.use(time.monotonic() + 60) as connection:
    connection.execute("BEGIN")
    connection.execute(runtime.store._sql.lock, ([b"session"],))
    if os.fork() == 0:
        sys.stdin.read()  # lives until the test lets it go
        os._exit(0)
    os.write(1, b"locked\\n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_does_not_keep_the_lock_of_its_dead_parent(postgres_server: PostgresServer, schema: str) -> None:
    url = postgres_server.url(schema=schema)
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKING, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"locked\n"
    parent.wait(SOON)
    store = PostgresEventStore(url, limits=Limits(lock_wait_s=5.0))
    assert append_events(store, S, make_event()) == Appended(2, 2)
    parent.stdin.close()
    parent.stdout.close()
    store.close()
