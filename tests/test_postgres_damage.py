"""Rows that were changed, removed or moved behind the engine's back are noticed, and repaired without losing a byte."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from logmark.errors import LogCorrupt, SessionHalted
from logmark.storage import Appended
from logmark.testing import PostgresServer
from logmark.testing.conformance import append_events, make_event, make_events, raised_by, seqs_of, texts_of

pytest.importorskip("psycopg_pool", reason="logmark[postgres] is not installed")

import psycopg

from logmark.storage._postgres import PostgresEventStore

S = "session"
_numbers = itertools.count(1)


class Place:
    """A store of five events, and a way past it."""

    def __init__(self, server: PostgresServer) -> None:
        self.schema = f"damage_{next(_numbers)}"
        self.url = server.url(schema=self.schema)
        self.store = PostgresEventStore(self.url)
        append_events(self.store, S, *make_events("a b c d e"))
        append_events(self.store, "other", *make_events("o p q"))
        self._sql = psycopg.connect(server.url().partition("?")[0], autocommit=True)

    def do(self, statement: str) -> list[tuple[Any, ...]]:
        cursor = self._sql.execute(f"SET search_path = {self.schema}; {statement}".encode())
        cursor.nextset()
        return cursor.fetchall() if cursor.description is not None else []

    def reopened(self) -> PostgresEventStore:
        self.store.close()
        self.store = PostgresEventStore(self.url)
        return self.store

    def close(self) -> None:
        self.store.close()
        self._sql.close()


@pytest.fixture
def place(postgres_server: PostgresServer) -> Iterator[Place]:
    made = Place(postgres_server)
    yield made
    made.close()


ROW = "session_key = 1 AND event_seq"
CHANGES = {
    "payload": f"UPDATE logmark_events SET payload = 'x' || payload WHERE {ROW} = 3",
    "head": f"UPDATE logmark_events SET head = head || 'x' WHERE {ROW} = 3",
    "border": f"""
        UPDATE logmark_events SET head = head || substr(payload, 1, 1), payload = substr(payload, 2) WHERE {ROW} = 3
    """,
    "checksum": f"UPDATE logmark_events SET checksum = checksum # 1 WHERE {ROW} = 3",
    "exchanged with the next": f"""
        UPDATE logmark_events SET event_seq = 99 WHERE {ROW} = 3;
        UPDATE logmark_events SET event_seq = 3 WHERE {ROW} = 4;
        UPDATE logmark_events SET event_seq = 4 WHERE {ROW} = 99
    """,
    "another session's": f"""
        DELETE FROM logmark_events WHERE {ROW} = 3;
        UPDATE logmark_events SET session_key = 1 WHERE session_key = 2 AND event_seq = 3
    """,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_row_is_damage_at_its_number(place: Place, change: str) -> None:
    place.do(CHANGES[change])
    store = place.reopened()
    found: list[str] = []

    def read() -> None:
        found.extend(event.decode().payload["text"] for event in store.read(S, halted_ok=True))

    error = raised_by(LogCorrupt, read)
    assert error.event_seq == 3
    backwards = store.read_backwards(S)
    texts: list[int | None] = []
    error = raised_by(LogCorrupt, lambda: texts.extend(event.event_seq for event in backwards))
    assert error.event_seq in (3, 4)
    findings = store.verify(S)
    assert (findings[0].kind, findings[0].event_seq, findings[0].harmless) == ("damage", 3, False)
    assert [finding for finding in store.verify("other") if change != "another session's"] == []


def test_a_missing_row_is_lost_and_a_reserved_number_is_not(place: Place) -> None:
    place.store.reserve(S, 8)
    append_events(place.store, S, make_event("i"))
    place.do(f"DELETE FROM logmark_events WHERE {ROW} IN (2, 3)")
    store = place.reopened()

    error = raised_by(LogCorrupt, lambda: list(store.read(S)))
    assert error.event_seq == 2
    assert "2 to 3" in str(error)
    raised_by(LogCorrupt, lambda: list(store.read_backwards(S)))
    assert seqs_of(store.read(S, from_seq=4)) == [4, 5, 9]
    assert [(finding.kind, finding.event_seq) for finding in store.verify(S)] == [("gap", 2)]


def test_a_missing_end_is_lost(place: Place) -> None:
    place.do(f"DELETE FROM logmark_events WHERE {ROW} = 5")
    store = place.reopened()
    error = raised_by(LogCorrupt, lambda: list(store.read(S)))
    assert error.event_seq == 5
    raised_by(LogCorrupt, lambda: list(store.read_backwards(S)))
    assert [(finding.kind, finding.event_seq) for finding in store.verify(S)] == [("lost", 5)]


def test_repair_keeps_what_it_takes_out_and_gives_no_number_twice(place: Place) -> None:
    place.do(CHANGES["payload"] + f"; DELETE FROM logmark_events WHERE {ROW} = 5")
    store = place.reopened()
    store.halt(S, "why")
    raised_by(LogCorrupt, store.clear_halt, S)

    planned = store.repair(S, dry_run=True)
    assert store.halted(S) is not None
    assert store.repair(S) == planned
    assert store.repair(S) == []
    assert store.verify(S) == []
    assert texts_of(store.read(S)) == ["a", "b", "d"]
    assert seqs_of(store.read_backwards(S)) == [4, 2, 1]
    assert append_events(store, S, make_event("f")) == Appended(6, 6)
    ((seq, payload, reason),) = place.do("SELECT event_seq, payload, reason FROM logmark_quarantine")
    assert (seq, payload, reason) == (3, b'x{"text":"c"}', b"the checksum does not match")
    assert store.verify(S) == []


def test_a_counter_behind_its_events_is_refused_and_repaired(place: Place) -> None:
    """As after a table was restored and the other was not; the constraint keeps the number from being given twice."""
    place.do("UPDATE logmark_sessions SET last_seq = 3, through_seq = 3 WHERE session_key = 1")
    store = place.reopened()

    error = raised_by(LogCorrupt, append_events, store, S, make_event("again 4"))
    assert "counter" in str(error)
    assert [finding.kind for finding in store.verify(S)] == ["damage"]
    assert store.repair(S)
    assert store.verify(S) == []
    assert append_events(store, S, make_event("f")) == Appended(6, 6)
    assert texts_of(store.read(S)) == ["a", "b", "c", "d", "e", "f"]


def test_a_damaged_session_concerns_no_other(place: Place) -> None:
    place.do(CHANGES["payload"])
    store = place.reopened()
    assert append_events(store, "other", make_event("r")) == Appended(4, 4)
    assert texts_of(store.read("other")) == ["o", "p", "q", "r"]
    store.halt(S, "why")
    raised_by(SessionHalted, lambda: list(store.read(S)))
    assert store.verify("other") == []


def test_constraints_and_rows_without_an_owner_are_looked_for(place: Place) -> None:
    assert place.store.verify_store() == []
    place.do("ALTER TABLE logmark_events DROP CONSTRAINT logmark_events_by_id")
    place.do("DELETE FROM logmark_sessions WHERE session_key = 2")
    first, second = place.store.verify_store()
    assert "constraint" in first.detail
    assert "3 rows" in second.detail
