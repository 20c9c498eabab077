"""Sessions in PostgreSQL that are pruned, sealed and deleted, and records: old tables, lost connections, processes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from logmark.errors import (
    AppendUncertain,
    LockTimeout,
    LogCorrupt,
    RecordChanged,
    SeqPruned,
    SessionDeleted,
    StorageUnavailable,
)
from logmark.protocol import AppendError, Limits
from logmark.storage import Appended, AppendRequest, Snapshot
from logmark.testing import FaultyProxy, PostgresServer
from logmark.testing.conformance import (
    append_batch,
    append_events,
    make_event,
    make_events,
    raised_by,
    run_together,
    seqs_of,
    texts_of,
)

pytest.importorskip("psycopg_pool", reason="logmark[postgres] is not installed")

import psycopg

from logmark.storage import _postgres_lifetimes
from logmark.storage._postgres import PostgresEventStore
from logmark.storage._postgres_pool import Connection

S = "session"
SOON = 60.0
FIRST_VERSION = Path(__file__).parent / "data" / "postgres-schema-1.sql"
WORKER = Path(__file__).parent / "workers" / "pruning_peer.py"
LIMITS = Limits(server_wait_s=10.0, lock_wait_s=10.0)
HASTY = Limits(server_wait_s=0.5, lock_wait_s=0.1)
SMALL_PAGES = Limits(read_chunk_bytes=97)
_numbers = itertools.count(1)

Open = Callable[..., PostgresEventStore]


@pytest.fixture
def schema() -> str:
    return f"lifetimes_{next(_numbers)}"


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(postgres_server.port) as made:
        yield made


@pytest.fixture
def open_store(postgres_server: PostgresServer, proxy: FaultyProxy, schema: str) -> Iterator[Open]:
    """Open the test's store past the proxy, or behind it."""
    opened: list[PostgresEventStore] = []

    def make(limits: Limits = LIMITS, *, proxied: bool = False) -> PostgresEventStore:
        url = postgres_server.url(schema=schema, port=proxy.port if proxied else None)
        opened.append(PostgresEventStore(url, limits=limits))
        return opened[-1]

    yield make
    proxy.heal()
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Open) -> PostgresEventStore:
    return open_store()


@pytest.fixture
def sql(postgres_server: PostgresServer, schema: str) -> Iterator[Any]:
    """A connection of one's own, whose statements are of the test's schema."""
    with psycopg.connect(postgres_server.url().partition("?")[0], autocommit=True) as connection:
        connection.execute(f"SET search_path = {schema}".encode())
        yield connection


def fill(store: PostgresEventStore, count: int) -> None:
    """Append the events 1, 2, …, each with its number as its text."""
    append_events(store, S, *make_events(" ".join(str(number) for number in range(1, count + 1))))


# -- stores of an earlier version ------------------------------------------------------------------------------------


def test_a_store_of_the_first_version_is_brought_up_to_date(
    postgres_server: PostgresServer, schema: str, sql: Any, open_store: Open
) -> None:
    """In place, by whoever is first of several, with all that is in it."""
    newer = f"{schema}_newer"
    made = PostgresEventStore(postgres_server.url(schema=newer))
    append_events(made, S, *make_events("a b c", ids="abc"))
    made.reserve(S, 5)
    append_events(made, S, make_event("f", id="f"))
    made.save_snapshot(S, "marks", Snapshot(6, b"derived"))
    made.halt("halted", "why")
    made.close()
    sql.execute(FIRST_VERSION.read_text(encoding="utf-8").replace("{schema}", schema).encode())
    columns = "session_key, session_id, last_seq, through_seq, prior_seq, halted_at, halt_reason, halt_event_id"
    sql.execute(
        f"INSERT INTO logmark_sessions ({columns}) OVERRIDING SYSTEM VALUE"
        f" SELECT {columns} FROM {newer}.logmark_sessions".encode()
    )
    for table in ("logmark_events", "logmark_reservations", "logmark_snapshots"):
        sql.execute(f"INSERT INTO {table} SELECT * FROM {newer}.{table}".encode())
    sql.execute("ALTER TABLE logmark_sessions ALTER COLUMN session_key RESTART WITH 100")

    stores: list[PostgresEventStore] = []
    run_together(*[lambda: stores.append(open_store())] * 3)
    store, other, _ = stores
    assert sql.execute("SELECT version FROM logmark_store").fetchone() == (2,)
    assert texts_of(store.read(S)) == ["a", "b", "c", "f"]
    assert store.load_snapshot(S, "marks") == Snapshot(6, b"derived")
    assert append_events(store, S, make_event(id="b")) == Appended(2, 2, written=False)
    assert append_events(store, S, make_event("g")) == Appended(7, 7)
    assert append_events(store, "new", make_event("h")) == Appended(1, 1)
    assert store.verify(S) == store.verify_store() == []
    assert store.halted("halted") is not None
    info = store.info(S)
    assert (info.first_available, info.sealed, info.deleted) == (1, False, False)
    assert store.truncate_before(S, 3) == 3
    assert store.save_record(S, "ui", b"6", version=0) == 1
    assert store.seal(S) == 7
    assert seqs_of(other.read(S, from_seq=3)) == [3, 6, 7]


@pytest.mark.parametrize("end", ["seal", "delete"])
def test_the_server_itself_refuses_what_an_earlier_version_would_append(
    store: PostgresEventStore, sql: Any, end: str
) -> None:
    """A program that has the store open since before the migration knows of no seals."""
    fill(store, 3)
    getattr(store, end)(S)
    with pytest.raises(psycopg.errors.CheckViolation):
        sql.execute("UPDATE logmark_sessions SET last_seq = 4, through_seq = 4")
    assert store.last_seq(S) == 3


# -- connections that are lost ---------------------------------------------------------------------------------------

CALLS: dict[str, tuple[bytes, Callable[[PostgresEventStore], object], object]] = {
    "truncate": (b"COMMIT", lambda store: store.truncate_before(S, 4), 4),
    "seal": (b"COMMIT", lambda store: store.seal(S), 5),
    "delete": (b"COMMIT", lambda store: store.delete(S), None),
    "new record": (b"needle", lambda store: store.save_record(S, "ui", b"needle", version=0), 1),
    "record": (b"needle", lambda store: store.save_record(S, "there", b"needle", version=1), 2),
    "removed record": (b"needle", lambda store: store.save_record(S, "needle", None, version=1), 0),
}


@pytest.mark.parametrize("moment", ["before", "sent", "answered"])
@pytest.mark.parametrize("what", CALLS)
def test_a_call_whose_connection_is_cut_is_done_once(
    open_store: Open, proxy: FaultyProxy, what: str, moment: str
) -> None:
    needle, call, answer = CALLS[what]
    store = open_store(proxied=True)
    fill(store, 5)
    store.save_record(S, "there", b"1", version=0)
    store.save_record(S, "nee" + "dle", b"1", version=0)
    fault = proxy.fault(needle, moment)  # type: ignore[arg-type]
    assert call(store) == answer
    fault.wait()

    other = open_store()
    info = other.info(S)
    assert info.first_available == {"truncate": 4, "delete": 6}.get(what, 1)
    assert (info.sealed, info.deleted) == (what == "seal", what == "delete")
    assert other.verify(S) == []
    if what != "delete":
        versions = {name: record.version for name, record in other.records(S).items()}
        wanted = {"there": 1, "needle": 1}
        if "record" in what:
            wanted |= {"new record": {"ui": 1}, "record": {"there": 2}}.get(what, {})
            wanted = {name: version for name, version in wanted.items() if (what, name) != ("removed record", "needle")}
        assert versions == wanted
        assert other.halted(S) is None


@pytest.mark.parametrize("what", CALLS)
def test_a_server_that_falls_silent_leaves_a_doubt_that_the_next_call_settles(
    open_store: Open, proxy: FaultyProxy, what: str
) -> None:
    needle, call, answer = CALLS[what]
    other = open_store()
    fill(other, 5)
    other.save_record(S, "there", b"1", version=0)
    other.save_record(S, "needle", b"1", version=0)
    store = open_store(HASTY, proxied=True)
    proxy.fault(needle, "silent")
    error = raised_by(StorageUnavailable, call, store)
    assert "unknown" in str(error)
    if "record" not in what:
        assert call(other) == answer
    else:  # it was saved: whoever saves it again is told so, and with which version
        name = {"new record": "ui", "record": "there"}.get(what, "needle")
        assert raised_by(RecordChanged, call, other).version == answer
        assert (other.load_record(S, name) is None) == (what == "removed record")
    assert other.halted(S) is None


@pytest.mark.parametrize("end", ["pruned", "deleted"])
def test_an_append_in_doubt_is_not_made_again_when_what_it_wrote_may_be_gone(
    open_store: Open, proxy: FaultyProxy, end: str
) -> None:
    """Its id is not there, and that says nothing: written again, the event would be there under two numbers."""
    store, other = open_store(proxied=True), open_store()
    fill(store, 3)
    fault = proxy.fault(b"needle", "answered", refuse=True)
    answers: list[Appended | AppendError] = []
    request = AppendRequest(make_events("needle"))
    thread = threading.Thread(target=lambda: answers.extend(append_batch(store, S, request).answers))
    thread.start()
    fault.wait()
    assert other.last_seq(S) == 4
    if end == "pruned":
        other.truncate_before(S, 5)
    else:
        other.delete(S)
    proxy.heal()
    thread.join(SOON)

    (answer,) = answers
    assert isinstance(answer, AppendUncertain)
    assert not answer.halted
    assert other.info(S).next_seq == 5
    if end == "pruned":
        assert append_events(store, S, make_event("next")) == Appended(5, 5)


def test_a_truncation_that_stops_in_the_middle_says_how_far_it_came_and_is_finished_by_the_next(
    open_store: Open, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_lifetimes, "_STEP_ROWS", 10)
    store, other = open_store(HASTY, proxied=True), open_store()
    fill(other, 50)
    done = _postgres_lifetimes.Lifetimes._truncate_step
    count = iter(range(100))

    def step(self: _postgres_lifetimes.Lifetimes, *arguments: Any) -> tuple[int, bool]:
        if next(count) == 2:
            proxy.refuse()
        return done(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_postgres_lifetimes.Lifetimes, "_truncate_step", step)
        error = raised_by(StorageUnavailable, store.truncate_before, S, 45)
    assert "begins with event 21 now and not yet with 45" in str(error)
    assert seqs_of(other.read(S, from_seq=21)) == list(range(21, 51))
    assert other.verify(S) == []
    assert other.truncate_before(S, 45) == 45
    assert seqs_of(other.read(S, from_seq=45)) == list(range(45, 51))


def test_a_deletion_that_stops_in_the_middle_ends_the_session_and_is_finished_by_the_next(
    store: PostgresEventStore, sql: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 50)
    monkeypatch.setattr(_postgres_lifetimes, "_STEP_ROWS", 10)

    def refuse(*_arguments: object) -> None:
        raise StorageUnavailable(store=store.url, reason="for a test")

    with monkeypatch.context() as patch:
        patch.setattr(_postgres_lifetimes.Lifetimes, "remove_events", refuse)
        raised_by(StorageUnavailable, store.delete, S)
    raised_by(SessionDeleted, store.read, S)
    (finding,) = store.verify(S)
    assert finding.harmless
    assert "50 events are left" in finding.detail
    assert len(store.repair(S, dry_run=True)) == 1
    assert sql.execute("SELECT count(*) FROM logmark_events").fetchone() == (50,)
    assert len(store.repair(S)) == 1
    assert sql.execute("SELECT count(*) FROM logmark_events").fetchone() == (0,)
    assert store.verify(S) == []
    assert store.repair(S) == []
    store.delete(S)


# -- locks -----------------------------------------------------------------------------------------------------------


def test_records_and_appends_do_not_wait_for_each_other_and_a_deletion_waits_for_both(
    open_store: Open, sql: Any
) -> None:
    store = open_store(HASTY)
    fill(store, 3)
    with sql.transaction():  # as an append that has its row, and waits for the disk
        sql.execute("UPDATE logmark_sessions SET prior_seq = last_seq")
        assert store.save_record(S, "ui", b"1", version=0) == 1
        assert store.save_record(S, "ui", b"2", version=1) == 2
        raised_by(LockTimeout, store.delete, S)
        raised_by(LockTimeout, store.seal, S)
        raised_by(LockTimeout, store.truncate_before, S, 2)
    with sql.transaction():  # as a record that is being saved
        sql.execute("SELECT FROM logmark_sessions FOR KEY SHARE")
        assert append_events(store, S, make_event()) == Appended(4, 4)
        assert append_events(store, S, make_event(id="x")) == Appended(5, 5)
        assert append_events(store, S, make_event(id="x")) == Appended(5, 5, written=False)
        raised_by(LockTimeout, store.delete, S)
    info = store.info(S)
    assert (info.first_available, info.sealed, info.deleted) == (1, False, False)
    store.delete(S)
    assert sql.execute("SELECT count(*) FROM logmark_records").fetchone() == (0,)


def test_an_append_is_one_statement_as_before_there_were_seals(
    store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends a session is asked in the statement that raises its counter."""
    fill(store, 3)
    asked: list[str] = []
    execute: Any = Connection.execute

    def counting(self: Connection, query: Any, *arguments: Any, **named: Any) -> Any:
        text = query if isinstance(query, str) else bytes(query).decode()
        asked.extend([text] if "logmark_" in text else [])
        return execute(self, query, *arguments, **named)

    monkeypatch.setattr(Connection, "execute", counting)
    assert append_events(store, S, make_event()) == Appended(4, 4)
    assert len(asked) == 1


@pytest.mark.parametrize("what", ["truncate", "seal", "delete"])
def test_others_are_told_of_the_end(open_store: Open, what: str) -> None:
    """By the same hint as of an append."""
    store, other = open_store(), open_store()
    fill(store, 5)
    heard = threading.Event()
    listens = threading.Event()

    def changed(session_id: str | None) -> None:
        (listens if session_id is None else heard).set()

    other.watch(changed)
    assert listens.wait(SOON)
    heard.clear()
    CALLS[what][1](store)
    assert heard.wait(SOON)


# -- readers on the way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [1, 20, 21])
@pytest.mark.parametrize("first", [2, 20, 33, 41])
def test_a_reader_gets_every_event_or_is_told_where_to_go_on(
    store: PostgresEventStore, open_store: Open, first: int, taken: int
) -> None:
    """In pages of one row; numbers 21 to 30 are a gap, which is no loss and hides none."""
    fill(store, 20)
    store.reserve(S, 30)
    append_events(store, S, *make_events(" ".join(str(number) for number in range(31, 41))))
    numbers = [*range(1, 21), *range(31, 41)]
    reader = open_store(SMALL_PAGES)
    upwards, downwards = reader.read(S), reader.read_backwards(S)
    seen = [next(upwards).event_seq or 0 for _ in range(taken)]
    below = [next(downwards).event_seq or 0]
    store.truncate_before(S, first)
    told: list[SeqPruned] = []
    try:
        seen.extend(event.event_seq or 0 for event in upwards)
    except SeqPruned as error:
        told.append(error)
    assert seen == numbers[: len(seen)]
    assert bool(told) == (seen != numbers)
    for each in told:
        assert (each.seq, each.first_available) == (seen[-1] + 1, first)
    below.extend(event.event_seq or 0 for event in downwards)
    assert below == numbers[::-1][: len(below)]
    assert set(below) >= {number for number in numbers if number >= first}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_processes_append_prune_and_read_one_session(
    postgres_server: PostgresServer, schema: str, store: PostgresEventStore, sql: Any
) -> None:
    """Two append, one prunes, and a reader gets every number once and in order, or is told where to go on."""
    url, count, shared = postgres_server.url(schema=schema), 300, "shared"
    words = ["append", "append", "prune", "read"]
    commands = [[sys.executable, str(WORKER), word, url, str(count)] for word in words]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate(timeout=2 * SOON)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(words)
    left, right, first, runs = (json.loads(output) for output in outputs)

    last_seq = store.last_seq(shared)
    assert sorted(left + right) == list(range(1, last_seq + 1))
    assert store.info(shared).first_available == first > 1
    assert seqs_of(store.read(shared, from_seq=first)) == list(range(first, last_seq + 1))
    assert sql.execute("SELECT count(*) FROM logmark_events").fetchone() == (last_seq - first + 1,)
    assert store.verify(shared) == []
    for run in runs:
        assert not run or run == list(range(run[0], run[-1] + 1))
    read = [number for run in runs for number in run]
    assert read == sorted(set(read))
    assert read[-1] >= count


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "data = 'x' || substr(data, 2)",
        "version = version + 1",
        "checksum = checksum # 1",
        "name = 'other'",
        "session_key = 2",
    ],
)
def test_a_record_that_was_changed_is_found_and_put_aside(store: PostgresEventStore, sql: Any, change: str) -> None:
    append_events(store, S, make_event("a"))
    append_events(store, "other", make_event("b"))
    store.save_record(S, "ui", b"12345", version=0)
    sql.execute(f"UPDATE logmark_records SET {change}")
    session, name = ("other" if "session" in change else S), ("other" if "name" in change else "ui")

    raised_by(LogCorrupt, store.load_record, session, name)
    raised_by(LogCorrupt, store.records, session)
    (finding,) = store.verify(session)
    assert (finding.kind, finding.harmless) == ("damage", False)
    assert append_events(store, session, make_event()) == Appended(2, 2)

    assert len(store.repair(session, dry_run=True)) == 1
    (step,) = store.repair(session)
    assert "quarantine" in step
    assert store.load_record(session, name) is None
    assert sql.execute("SELECT event_id FROM logmark_quarantine").fetchall() == [(name.encode(),)]
    assert store.verify(session) == []
    assert store.repair(session) == []
    assert store.save_record(session, name, b"1", version=0) == 1


def test_what_is_lost_above_the_mark_is_lost_and_below_it_is_not(store: PostgresEventStore, sql: Any) -> None:
    fill(store, 10)
    store.truncate_before(S, 5)
    assert store.verify(S) == []
    assert store.repair(S) == []
    sql.execute("DELETE FROM logmark_events WHERE event_seq IN (5, 8)")
    assert [(finding.kind, finding.event_seq) for finding in store.verify(S)] == [("gap", 5), ("gap", 8)]
    assert raised_by(LogCorrupt, lambda: list(store.read(S, from_seq=5))).event_seq == 5
    assert raised_by(LogCorrupt, lambda: list(store.read_backwards(S))).event_seq == 8
    store.repair(S)
    assert seqs_of(store.read(S, from_seq=5)) == [6, 7, 9, 10]
    assert store.verify(S) == []


def test_a_mark_that_was_raised_by_hand_is_noticed(store: PostgresEventStore, sql: Any) -> None:
    fill(store, 5)
    sql.execute("UPDATE logmark_sessions SET pruned_through = 2")
    assert [(finding.kind, finding.event_seq) for finding in store.verify(S)] == [("damage", 1), ("damage", 2)]
    assert len(store.repair(S)) == 2
    assert sql.execute("SELECT event_seq FROM logmark_quarantine").fetchall() == [(1,), (2,)]
    assert store.verify(S) == []
    assert seqs_of(store.read(S, from_seq=3)) == [3, 4, 5]


@pytest.mark.parametrize("pruned", [3, 6])
def test_numbers_stay_used_when_all_that_was_kept_is_lost(store: PostgresEventStore, sql: Any, pruned: int) -> None:
    fill(store, 5)
    store.truncate_before(S, pruned)
    sql.execute("DELETE FROM logmark_events")
    if pruned == 3:
        assert [(finding.kind, finding.event_seq) for finding in store.verify(S)] == [("lost", 3)]
        store.repair(S)
    assert store.verify(S) == []
    assert store.info(S).last_seq == (2 if pruned == 3 else 5)
    assert append_events(store, S, make_event()) == Appended(6, 6)
