"""A SQLite store that is not what it was: found, typed, never continued on top of, and repaired as far as it goes."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sqlite3
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from logmark.errors import LogCorrupt, LogmarkError, StorageRejected, StorageUnavailable
from logmark.storage import Appended, AppendRequest, EventStore, open_store
from logmark.storage import _sqlite_schema as schema
from logmark.testing.conformance import append_answers, append_events, make_event, make_events, seqs_of, texts_of

S = "session"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@contextlib.contextmanager
def opened(path: Path, *, create: bool = True) -> Generator[EventStore]:
    store = open_store(f"sqlite:{path}", create=create)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def filled(path: Path) -> Path:
    """A closed store with events 1 to 5 of ids a to e, a reservation of 6 and 7, and event 8 of id h."""
    with opened(path) as store:
        append_events(store, S, *make_events("a b c d e", ids="abcde"))
        store.reserve(S, 7)
        append_events(store, S, make_event("h", id="h"))
        append_events(store, "other", make_event("x"))
    return path


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


# -- rows ---------------------------------------------------------------------------------------------------------

DAMAGE = {
    "another payload": ("UPDATE event SET payload = x'7b7d' WHERE seq = 3", 3, "damage"),
    "another head": ("UPDATE event SET head = x'2274797065223a2278222c226964223a226322' WHERE seq = 3", 3, "damage"),
    "another id": ("UPDATE event SET id = 'z' WHERE seq = 3", 3, "damage"),
    "another type of value": ("UPDATE event SET payload = 'text' WHERE seq = 3", 3, "damage"),
    "a checksum that is none": ("UPDATE event SET crc = 0 WHERE seq = 3", 3, "damage"),
    "a row is gone": ("DELETE FROM event WHERE seq = 3", 3, "gap"),
    "rows at the start are gone": ("DELETE FROM event WHERE seq < 3", 1, "gap"),
    "the last row is gone": ("DELETE FROM event WHERE seq = 8", 8, "lost"),
    "all rows are gone": ("DELETE FROM event", 1, "gap"),
    "a reservation is gone": ("DELETE FROM reservation", 6, "gap"),
    "the last row is damaged": ("UPDATE event SET payload = x'7b7d' WHERE seq = 8", 8, "damage"),
    "two rows changed places": ("UPDATE event SET seq = 9 WHERE seq = 2", 2, "gap"),
    "a number too low is noted": ("UPDATE session SET last_seq = 5", 6, "damage"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_repaired_and_no_number_is_given_again(filled: Path, what: str) -> None:
    statement, seq, kind = DAMAGE[what]
    scope = "" if " session " in statement else " WHERE " if " WHERE " not in statement else " AND "
    tamper(filled, statement + (f"{scope}session = 1" if scope else " WHERE key = 1"))
    with opened(filled) as store:
        findings = [finding for finding in store.verify(S) if not finding.harmless]
        assert findings
        assert (findings[0].kind, findings[0].event_seq) == (kind, seq)
        assert store.verify("other") == []
        assert texts_of(store.read("other")) == ["x"]
        with pytest.raises(LogCorrupt):
            store.clear_halt(S)
        if what == "another id":
            assert texts_of(store.read(S)) == list("abcdeh")  # what is read is what was written
        else:
            with pytest.raises(LogCorrupt) as raised:
                list(store.read(S))
            assert raised.value.session_id == S

        planned = store.repair(S, dry_run=True)
        assert planned
        assert [finding.kind for finding in store.verify(S)] == [finding.kind for finding in findings]
        assert store.repair(S) == planned
        assert store.repair(S) == []
        assert store.verify(S) == []
        kept = dict(zip(seqs_of(store.read(S)), texts_of(store.read(S)), strict=True))
        assert kept.items() <= {1: "a", 2: "b", 3: "c", 4: "d", 5: "e", 8: "h", 9: "b"}.items()
        assert seqs_of(store.read_backwards(S)) == list(kept)[::-1]
        next_seq = store.info(S).next_seq
        assert next_seq >= 9
        assert append_events(store, S, make_event()) == Appended(next_seq, next_seq)


@pytest.mark.parametrize("seq", [3, 8])
@pytest.mark.parametrize("damage", ["UPDATE event SET payload = x'7b7d'", "DELETE FROM event"])
def test_the_good_prefix_stays_readable(filled: Path, seq: int, damage: str) -> None:
    tamper(filled, f"{damage} WHERE session = 1 AND seq = {seq}")
    with opened(filled) as store:
        rows = store.read(S, halted_ok=True)
        good = [number for number in (1, 2, 3, 4, 5, 8) if number < seq]
        assert [next(rows).event_seq for _ in good] == good
        with pytest.raises(LogCorrupt) as raised:
            next(rows)
        assert raised.value.event_seq == seq


def test_nothing_is_appended_behind_a_damaged_end(filled: Path) -> None:
    tamper(filled, "UPDATE event SET payload = x'7b7d' WHERE session = 1 AND seq = 8")
    with opened(filled) as store:
        for _ in range(2):
            (answer,) = append_answers(store, S, AppendRequest(make_events("lost")))
            assert isinstance(answer, LogCorrupt)
            assert answer.event_seq == 8
        with pytest.raises(LogCorrupt):
            store.last_seq(S)
        assert append_events(store, "other", make_event()) == Appended(2, 2)


def test_a_repair_keeps_what_it_takes_out(filled: Path) -> None:
    tamper(filled, "UPDATE event SET payload = x'7b7d' WHERE session = 1 AND seq = 3")
    with opened(filled) as store:
        store.repair(S)
    rows = sqlite3.connect(filled).execute("SELECT seq, id, payload, reason FROM quarantine").fetchall()
    assert rows == [(3, "c", b"{}", "the checksum does not match")]


def test_an_event_beyond_the_high_water_is_not_overwritten(filled: Path) -> None:
    tamper(
        filled,
        "INSERT INTO event SELECT session, 9, 'nine', head, payload, crc FROM event WHERE session = 1 AND seq = 8",
    )
    with opened(filled) as store:
        (answer,) = append_answers(store, S, AppendRequest(make_events("x")))
        assert isinstance(answer, LogCorrupt)
        assert any(not finding.harmless for finding in store.verify(S))
        store.repair(S)
        assert store.verify(S) == []
        assert append_events(store, S, make_event()) == Appended(10, 10)


def test_an_index_that_lacks_an_id_is_found_and_rebuilt(filled: Path) -> None:
    """A retry that does not find the first write would write twice."""
    whole = "CREATE UNIQUE INDEX event_id ON event (session, id)"
    for definition, then in ((f"{whole} WHERE seq <> 3", "REINDEX"), (whole, "SELECT 1")):
        rewrite = f"UPDATE sqlite_master SET sql = '{definition}' WHERE name = 'event_id'"
        tamper(filled, "PRAGMA writable_schema = ON", rewrite)
        tamper(filled, then)
    with opened(filled) as store:
        assert store.verify_store()
        assert any("index" in finding.detail for finding in store.verify(S))
        assert any("index" in step for step in store.repair(S))
        assert (store.verify_store(), store.verify(S)) == ([], [])
        assert append_events(store, S, make_event("again", id="c")) == Appended(3, 3, written=False)


def test_rows_that_belong_to_nobody_are_found(filled: Path) -> None:
    tamper(filled, "DELETE FROM session WHERE key = 1")
    with opened(filled) as store:
        (finding,) = store.verify_store()
        assert "7 events, reservations and records" in finding.detail


# -- the file -----------------------------------------------------------------------------------------------------


def test_no_flip_of_a_byte_shows_what_was_never_written(filled: Path, tmp_path: Path) -> None:
    """Whatever is overwritten, a reader gets the right events, or fewer of them and a typed error."""
    good = filled.read_bytes()
    with opened(filled) as store:
        truth = {name: [(e.event_seq, e.head_json, e.payload_json) for e in store.read(name)] for name in (S, "other")}
    chance = random.Random(6)
    noticed = 0
    for turn in range(80):
        data = bytearray(good)
        at = chance.randrange(len(data))
        data[at] ^= 1 << chance.randrange(8)
        copy = tmp_path / f"copy-{turn}.db"
        copy.write_bytes(data)
        try:
            with opened(copy, create=False) as store:
                for name, events in truth.items():
                    found: list[tuple[int | None, bytes | None, bytes]] = []
                    try:
                        found.extend((e.event_seq, e.head_json, e.payload_json) for e in store.read(name))
                    except LogmarkError:
                        noticed += 1
                    assert found == events[: len(found)]
                    (answer,) = append_answers(store, name, AppendRequest((make_event(),)))
                    if isinstance(answer, Appended):
                        assert answer.first_seq == events[-1][0] + 1  # type: ignore[operator]
        except StorageUnavailable:
            noticed += 1
        for leftover in tmp_path.glob(f"copy-{turn}.db*"):
            leftover.unlink()
    assert noticed > 2


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _text(path: Path) -> None:
    path.write_text("no database at all, but long enough to be taken for one\n" * 100)


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("break_it", [_cut, _text, _zeros])
def test_a_file_that_is_no_database_any_more_is_refused(filled: Path, break_it: Callable[[Path], None]) -> None:
    def use() -> None:
        with opened(filled) as store:
            list(store.read(S))
            append_events(store, S, make_event())

    break_it(filled)
    before = filled.read_bytes()
    with pytest.raises((StorageUnavailable, LogCorrupt)):
        use()
    if break_it is not _cut:
        assert filled.read_bytes() == before


def test_another_programs_database_is_not_touched(path: Path) -> None:
    tamper(path, "CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(StorageUnavailable, match="another program"), opened(path):
        pass
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(filled: Path) -> None:
    tamper(filled, f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    before = filled.read_bytes()
    for create in (True, False):
        with (
            pytest.raises(StorageUnavailable, match=f"version {schema.SCHEMA_VERSION + 1}"),
            opened(filled, create=create),
        ):
            pass
    assert filled.read_bytes() == before


def test_an_older_schema_is_migrated_once_and_wholly(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = ("ALTER TABLE session ADD COLUMN colour TEXT", "UPDATE session SET colour = 'blue'")
    monkeypatch.setattr(schema, "_STEPS", (*schema._STEPS, step))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    with opened(filled) as one, opened(filled) as two:
        assert append_events(one, S, make_event()) == Appended(9, 9)
        assert texts_of(two.read("other")) == ["x"]
    assert sqlite3.connect(filled).execute("SELECT DISTINCT colour FROM session").fetchall() == [("blue",)]


def test_a_migration_that_fails_leaves_the_old_tables(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = ("ALTER TABLE session ADD COLUMN colour TEXT", "SELECT no_such_function()")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "_STEPS", (*schema._STEPS, step))
        patch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
        with pytest.raises(StorageUnavailable), opened(filled):
            pass
    with opened(filled) as store:
        assert append_events(store, S, make_event()) == Appended(9, 9)


@pytest.mark.parametrize("kind", ["directory", "fifo", "missing", "empty"])
def test_what_is_no_store_is_not_opened_for_looking(path: Path, kind: str) -> None:
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case _:
            pass
    with pytest.raises(StorageUnavailable), opened(path, create=False):
        pass
    if kind in {"directory", "fifo"}:
        with pytest.raises(StorageUnavailable), opened(path):
            pass


# -- the file is changed under the store --------------------------------------------------------------------------


def test_an_older_copy_in_place_of_an_open_store_is_refused(filled: Path, tmp_path: Path) -> None:
    old = filled.read_bytes()
    with opened(filled) as store:
        append_events(store, S, *make_events("i j"))
        fresh = tmp_path / "fresh"
        fresh.write_bytes(old)
        for suffix in ("-wal", "-shm"):
            Path(f"{filled}{suffix}").unlink(missing_ok=True)
        fresh.replace(filled)
        (answer,) = append_answers(store, S, AppendRequest(make_events("x")))
        assert isinstance(answer, LogCorrupt)
        assert answer.event_seq == 9
        with pytest.raises(LogCorrupt):
            store.last_seq(S)
        store.repair(S)
        assert append_events(store, S, make_event()) == Appended(11, 11)
        assert seqs_of(store.read(S))[-2:] == [8, 11]


def test_what_is_taken_away_under_the_writer_is_not_begun_anew(filled: Path, tmp_path: Path) -> None:
    with opened(filled) as store:
        append_events(store, S, make_event("i"))
        aside = tmp_path / "aside"
        aside.mkdir()
        for file in tmp_path.glob("events.db*"):
            file.rename(aside / file.name)
        (answer,) = append_answers(store, S, AppendRequest(make_events("x")))
        assert isinstance(answer, StorageRejected)
        assert answer.errno == errno.ENOENT
        with pytest.raises(StorageUnavailable):
            store.last_seq(S)
        assert not filled.exists()
        for file in aside.iterdir():
            file.rename(tmp_path / file.name)
        assert append_events(store, S, make_event("j")) == Appended(10, 10)
        assert texts_of(store.read(S))[-2:] == ["i", "j"]


def test_what_the_store_makes_is_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opened(tmp_path / "deep" / "down" / "events.db") as store:
            append_events(store, S, make_event())
            modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "deep" / "down").iterdir()}
    finally:
        os.umask(before)
    assert modes == {"events.db": 0o600, "events.db-wal": 0o600, "events.db-shm": 0o600}
    assert (tmp_path / "deep" / "down").stat().st_mode & 0o777 == 0o700


def test_odd_file_names_are_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b.db", "a?mode=ro.db", "a#b.db", "%41.db", "ä.db", "-x.db"):
        with opened(Path(name)) as store:
            append_events(store, S, make_event(name))
        assert Path(name).is_file()
        with opened(Path(name)) as store:
            assert texts_of(store.read(S)) == [name]
    for url in ("sqlite:", "sqlite://host/x.db", "sqlite::memory:", "sqlite:a\0b"):
        with pytest.raises(LogmarkError):
            open_store(url)
    open_store(f"sqlite://{tmp_path / 'absolute.db'}").close()
    assert (tmp_path / "absolute.db").is_file()
