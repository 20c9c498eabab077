"""Sessions in SQLite that are pruned, sealed and deleted, and records: old tables, steps that fail, readers."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from logmark.errors import (
    AppendUncertain,
    LogCorrupt,
    RecordChanged,
    SeqPruned,
    SessionDeleted,
    SessionSealed,
    StorageUnavailable,
)
from logmark.protocol import Limits
from logmark.storage import Appended, AppendRequest, EventStore, Snapshot, _sqlite_lifetimes, open_store
from logmark.storage._sqlite_db import CommitUncertain, Database
from logmark.testing import capture_logs
from logmark.testing.conformance import (
    append_answers,
    append_events,
    make_event,
    make_events,
    raised_by,
    seqs_of,
    texts_of,
)

S = "session"
FIRST_VERSION = Path(__file__).parent / "data" / "sqlite-schema-1.sql"
SMALL_PAGES = Limits(read_chunk_bytes=97)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def open_another(path: Path) -> Iterator[Callable[..., EventStore]]:
    stores: list[EventStore] = []

    def begin(limits: Limits | None = None) -> EventStore:
        stores.append(open_store(f"sqlite:{path}", limits=limits))
        return stores[-1]

    yield begin
    for store in stores:
        store.close()


@pytest.fixture
def store(open_another: Callable[..., EventStore]) -> EventStore:
    return open_another()


def asked(path: Path, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def tamper(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def fill(store: EventStore, count: int, session_id: str = S) -> None:
    """Append the events 1, 2, …, each with its number as its text."""
    append_events(store, session_id, *make_events(" ".join(str(number) for number in range(1, count + 1))))


# -- stores of an earlier version ---------------------------------------------------------------------------------


@pytest.fixture
def old(path: Path, tmp_path: Path) -> Path:
    """A store as the first version made it: its tables, with events a, b, c, a reservation to 5, and event 6."""
    newer = tmp_path / "newer.db"
    made = open_store(f"sqlite:{newer}")
    append_events(made, S, *make_events("a b c", ids="abc"))
    made.reserve(S, 5)
    append_events(made, S, make_event("f", id="f"))
    made.save_snapshot(S, "marks", Snapshot(6, b"derived"))
    made.halt("halted", "why")
    made.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(FIRST_VERSION.read_text(encoding="utf-8"))
        connection.execute("ATTACH ? AS newer", (str(newer),))
        halt = "halt_reason, halt_at, halt_first_event_id"
        connection.execute(f"INSERT INTO session SELECT key, id, last_seq, through_seq, {halt} FROM newer.session")
        for table in ("event", "reservation", "snapshot"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM newer.{table}")
        connection.commit()
    return path


@pytest.mark.parametrize("create", [True, False])
def test_a_store_of_the_first_version_is_brought_up_to_date(old: Path, create: bool) -> None:
    store = open_store(f"sqlite:{old}", create=create)
    assert asked(old, "PRAGMA user_version") == [(2,)]
    assert texts_of(store.read(S)) == ["a", "b", "c", "f"]
    assert store.load_snapshot(S, "marks") == Snapshot(6, b"derived")
    assert append_events(store, S, make_event(id="b")) == Appended(2, 2, written=False)
    assert append_events(store, S, make_event("g")) == Appended(7, 7)
    assert store.verify(S) == store.verify_store() == []
    halt = store.halted("halted")
    assert halt is not None
    assert halt.reason == "why"
    info = store.info(S)
    assert (info.first_available, info.sealed, info.deleted) == (1, False, False)
    assert store.truncate_before(S, 3) == 3
    assert store.save_record(S, "ui", b"6", version=0) == 1
    assert store.seal(S) == 7
    store.close()
    again = open_store(f"sqlite:{old}", create=False)
    assert seqs_of(again.read(S, from_seq=3)) == [3, 6, 7]
    assert again.info(S).sealed
    again.close()


def test_an_old_store_that_cannot_be_written_is_refused_with_the_reason(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "_can_write", lambda _self: False)
    before = old.read_bytes()
    with pytest.raises(StorageUnavailable, match="older version"):
        open_store(f"sqlite:{old}", create=False)
    assert old.read_bytes() == before


@pytest.mark.parametrize("end", ["seal", "delete"])
def test_the_database_itself_refuses_what_an_earlier_version_would_append(
    store: EventStore, path: Path, end: str
) -> None:
    """A program that has the store open since before the migration knows of no seals."""
    fill(store, 3)
    getattr(store, end)(S)
    with pytest.raises(sqlite3.IntegrityError):
        tamper(path, "UPDATE session SET last_seq = 4, through_seq = 4 WHERE key = 1")
    assert store.last_seq(S) == 3


# -- steps --------------------------------------------------------------------------------------------------------


def test_a_truncation_that_stops_in_the_middle_says_how_far_it_came_and_is_finished_by_the_next(
    store: EventStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 50)
    store.reserve(S, 60)
    monkeypatch.setattr(_sqlite_lifetimes, "_STEP_ROWS", 10)
    commit, count = Database.commit, iter(range(100))

    def failing(self: Database, connection: sqlite3.Connection) -> float:
        if next(count) == 2:
            message = "database or disk is full"
            raise sqlite3.OperationalError(message)
        return commit(self, connection)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "commit", failing)
        error = raised_by(StorageUnavailable, store.truncate_before, S, 45)
    assert "begins with event 21 now and not yet with 45" in str(error)
    assert store.info(S).first_available == 21
    assert seqs_of(store.read(S, from_seq=21)) == list(range(21, 51))
    assert store.verify(S) == []

    assert store.truncate_before(S, 45) == 45
    assert asked(path, "SELECT min(seq), count(*) FROM event") == [(45, 6)]
    assert store.truncate_before(S, 61) == 61
    assert asked(path, "SELECT count(*) FROM event") == asked(path, "SELECT count(*) FROM reservation") == [(0,)]
    assert append_events(store, S, make_event()) == Appended(61, 61)


def test_a_deletion_that_stops_in_the_middle_ends_the_session_and_is_finished_by_the_next(
    store: EventStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 50)
    monkeypatch.setattr(_sqlite_lifetimes, "_STEP_ROWS", 10)
    commit, count = Database.commit, iter(range(100))

    def failing(self: Database, connection: sqlite3.Connection) -> float:
        if next(count) == 3:
            message = "database or disk is full"
            raise sqlite3.OperationalError(message)
        return commit(self, connection)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "commit", failing)
        raised_by(StorageUnavailable, store.delete, S)
    raised_by(SessionDeleted, store.read, S)
    (finding,) = store.verify(S)
    assert finding.harmless
    assert "30 events are left" in finding.detail
    assert len(store.repair(S, dry_run=True)) == 1
    assert asked(path, "SELECT count(*) FROM event") == [(30,)]

    store.delete(S)
    assert asked(path, "SELECT count(*) FROM event") == [(0,)]
    assert store.verify(S) == []
    assert store.repair(S) == []


def test_a_repair_finishes_a_deletion(store: EventStore, path: Path) -> None:
    fill(store, 5)
    store.delete(S)
    tamper(path, "INSERT INTO event VALUES (1, 2, 'x', x'', x'', 0)")
    assert store.repair(S) == ["remove 1 events that are left of the session, which was deleted"]
    assert store.verify(S) == []


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("what", ["truncate", "seal", "delete", "record"])
def test_a_commit_nobody_knows_of_halts_nothing_and_is_settled_by_the_next_call(
    store: EventStore,
    open_another: Callable[..., EventStore],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    is_there: bool,
) -> None:
    fill(store, 5)
    calls: dict[str, Callable[[], object]] = {
        "truncate": lambda: store.truncate_before(S, 4),
        "seal": lambda: store.seal(S),
        "delete": lambda: store.delete(S),
        "record": lambda: store.save_record(S, "ui", b"1", version=0),
    }

    def commit(_self: Database, connection: sqlite3.Connection) -> float:
        connection.execute("COMMIT" if is_there else "ROLLBACK")
        message = "commit failed: disk I/O error"
        raise CommitUncertain(message)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "commit", commit)
        error = raised_by(StorageUnavailable, calls[what])
    assert "unknown" in str(error)

    assert store.halted(S) is None
    if what == "record" and is_there:
        assert raised_by(RecordChanged, calls[what]).version == 1
    else:
        calls[what]()
    other = open_another()
    info = other.info(S)
    assert info.first_available == {"truncate": 4, "delete": 6}.get(what, 1)
    assert (info.sealed, info.deleted) == (what == "seal", what == "delete")
    if what != "delete":
        assert len(other.records(S)) == (what == "record")
        assert other.verify(S) == []


def test_an_append_in_doubt_whose_session_was_deleted_leaves_no_halt(
    store: EventStore, open_another: Callable[..., EventStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 3)
    other = open_another()

    def commit(_self: Database, connection: sqlite3.Connection) -> float:
        connection.execute("ROLLBACK")
        monkeypatch.undo()
        tamper(Path(other.url.removeprefix("sqlite:")), "UPDATE session SET deleted_at = 'now', final_seq = 3")
        message = "commit failed: disk I/O error"
        raise CommitUncertain(message)

    monkeypatch.setattr(Database, "commit", commit)
    (answer,) = append_answers(store, S, AppendRequest((make_event(),)))
    assert isinstance(answer, AppendUncertain)
    raised_by(SessionDeleted, store.read, S)
    assert store.halted(S) is None


# -- space --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["truncate", "delete"])
def test_the_file_becomes_smaller(store: EventStore, path: Path, how: str) -> None:
    append_events(store, "kept", make_event("kept"))
    append_events(store, S, *(make_event("x" * 1000) for _ in range(6000)))
    append_events(store, "kept", make_event("also"))
    before = path.stat().st_size
    assert before > 6_000_000
    if how == "truncate":
        assert store.truncate_before(S, 5991) == 5991
        assert seqs_of(store.read(S, from_seq=5991)) == list(range(5991, 6001))
    else:
        store.delete(S)
    assert path.stat().st_size < before // 4
    assert texts_of(store.read("kept")) == ["kept", "also"]
    assert store.verify_store() == store.verify("kept") == store.verify(S) == []


def test_space_that_cannot_be_given_back_is_said_and_spoils_nothing(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_events(store, S, *(make_event("x" * 1000) for _ in range(3000)))
    transact = Database.transact

    def failing(self: Database, work: Callable[[sqlite3.Connection], object], *, synced: bool = True) -> object:
        if not synced:
            message = "disk I/O error"
            raise sqlite3.OperationalError(message)
        return transact(self, work)

    monkeypatch.setattr(Database, "transact", failing)
    with capture_logs() as logs:
        assert store.truncate_before(S, 2991) == 2991
    assert [each["event"] for each in logs.events] == ["space_kept"]
    assert seqs_of(store.read(S, from_seq=2991)) == list(range(2991, 3001))


# -- readers on the way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [1, 8, 20, 21])
@pytest.mark.parametrize("first", [2, 9, 20, 33, 41])
def test_a_reader_gets_every_event_or_is_told_where_to_go_on(
    store: EventStore, open_another: Callable[..., EventStore], first: int, taken: int
) -> None:
    """In pages of one row; numbers 21 to 30 are a gap, which is no loss and hides none."""
    fill(store, 20)
    store.reserve(S, 30)
    append_events(store, S, *make_events(" ".join(str(number) for number in range(31, 41))))
    numbers = [*range(1, 21), *range(31, 41)]
    reader = open_another(SMALL_PAGES)
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


def test_a_reader_of_a_session_that_is_deleted_is_told(
    store: EventStore, open_another: Callable[..., EventStore]
) -> None:
    fill(store, 20)
    reader = open_another(SMALL_PAGES)
    upwards, downwards = reader.read(S), reader.read_backwards(S)
    assert (next(upwards).event_seq, next(downwards).event_seq) == (1, 20)
    store.delete(S)
    raised_by(SessionDeleted, lambda: list(upwards))
    raised_by(SessionDeleted, lambda: list(downwards))


def test_a_verification_during_which_events_are_pruned_finds_nothing(
    store: EventStore, open_another: Callable[..., EventStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    from logmark.storage._sqlite_rows import SqliteRows

    fill(store, 20)
    reader = open_another(SMALL_PAGES)
    chunk, count = SqliteRows.chunk, iter(range(100))

    def interrupted(self: SqliteRows, query: str, first: int, last: int) -> object:
        match next(count):
            case 5:
                store.truncate_before(S, 15)
            case 12:
                store.truncate_before(S, 21)
            case _:
                pass
        return chunk(self, query, first, last)

    monkeypatch.setattr(SqliteRows, "chunk", interrupted)
    assert reader.verify(S) == []
    assert store.info(S).first_available == 15
    assert next(count) > 6


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "data = x'78' || substr(data, 2)",
        "data = 'text'",
        "version = version + 1",
        "crc = crc + 1",
        "name = 'other'",
        "session = 2",
    ],
)
def test_a_record_that_was_changed_is_found_and_put_aside(store: EventStore, path: Path, change: str) -> None:
    append_events(store, S, make_event("a"))
    append_events(store, "other", make_event("b"))
    store.save_record(S, "ui", b"12345", version=0)
    tamper(path, f"UPDATE record SET {change}")
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
    assert asked(path, "SELECT id FROM quarantine") == [(name,)]
    assert store.verify(session) == []
    assert store.repair(session) == []
    assert store.save_record(session, name, b"1", version=0) == 1


def test_what_is_lost_above_the_mark_is_lost_and_below_it_is_not(store: EventStore, path: Path) -> None:
    fill(store, 10)
    store.truncate_before(S, 5)
    assert store.verify(S) == []
    assert store.repair(S) == []
    tamper(path, "DELETE FROM event WHERE seq IN (5, 8)")
    assert [(finding.kind, finding.event_seq) for finding in store.verify(S)] == [("gap", 5), ("gap", 8)]
    assert raised_by(LogCorrupt, lambda: list(store.read(S, from_seq=5))).event_seq == 5
    assert raised_by(LogCorrupt, lambda: list(store.read_backwards(S))).event_seq == 8
    store.repair(S)
    assert seqs_of(store.read(S, from_seq=5)) == [6, 7, 9, 10]


def test_a_mark_that_was_raised_by_hand_is_noticed(store: EventStore, path: Path) -> None:
    fill(store, 5)
    tamper(path, "UPDATE session SET pruned_through = 2")
    assert [(finding.kind, finding.event_seq) for finding in store.verify(S)] == [("damage", 1), ("damage", 2)]
    assert len(store.repair(S)) == 2
    assert asked(path, "SELECT seq FROM quarantine") == [(1,), (2,)]
    assert store.verify(S) == []
    assert seqs_of(store.read(S, from_seq=3)) == [3, 4, 5]


@pytest.mark.parametrize("pruned", [3, 6])
def test_numbers_stay_used_when_all_that_was_kept_is_lost(
    path: Path, open_another: Callable[..., EventStore], pruned: int
) -> None:
    with contextlib.closing(open_another()) as store:
        fill(store, 5)
        store.truncate_before(S, pruned)
    tamper(path, "DELETE FROM event")
    again = open_another()
    if pruned == 3:
        assert raised_by(LogCorrupt, again.info, S).event_seq == 3
        assert [(finding.kind, finding.event_seq) for finding in again.verify(S)] == [("lost", 3)]
        again.repair(S)
    assert again.verify(S) == []
    assert again.info(S).last_seq == (2 if pruned == 3 else 5)
    assert append_events(again, S, make_event()) == Appended(6, 6)


# -- commits that are shared --------------------------------------------------------------------------------------


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Generator[list[str]]:
    statements: list[str] = []
    connect = Database._connect

    def traced(self: Database) -> sqlite3.Connection:
        connection = connect(self)
        connection.set_trace_callback(statements.append)
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_connect", traced)
        yield statements


def test_an_append_asks_no_more_than_before_there_were_seals(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends a session is a condition of the statement that moves its numbers on."""
    with counted(monkeypatch) as statements:
        store = open_store(f"sqlite:{path}")
        fill(store, 3)
        statements.clear()
        append_events(store, S, make_event())
        assert [statement.split()[0] for statement in statements] == ["BEGIN", "UPDATE", "INSERT", "COMMIT"]
        store.seal(S)
        (answer,) = append_answers(store, S, AppendRequest((make_event(),)))
        assert isinstance(answer, SessionSealed)
        store.close()
