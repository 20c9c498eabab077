"""What the PostgreSQL engine asks of a server and a URL: settings, schemas, versions, passwords, order of locks."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import logmark
from logmark.errors import InvalidArgument, StorageUnavailable
from logmark.protocol import Limits
from logmark.storage import Appended, AppendRequest, SessionBatch
from logmark.testing import CapturedLogs, PostgresServer
from logmark.testing.conformance import append_events, make_event, make_events, run_together, seqs_of, texts_of

pytest.importorskip("psycopg_pool", reason="logmark[postgres] is not installed")

import psycopg

from logmark.storage import _postgres_schema
from logmark.storage._postgres import PostgresEventStore
from logmark.storage._postgres_url import PostgresUrl

S = "session"
SOON = 30.0
_numbers = itertools.count(1)


@pytest.fixture
def schema() -> str:
    return f"server_{next(_numbers)}"


@pytest.fixture
def url(postgres_server: PostgresServer, schema: str) -> str:
    return postgres_server.url(schema=schema)


@pytest.fixture
def sql(postgres_server: PostgresServer) -> Iterator[Any]:
    with psycopg.connect(postgres_server.url().partition("?")[0], autocommit=True) as connection:
        yield connection


# -- the URL ---------------------------------------------------------------------------------------------------------


def test_a_password_is_shown_nowhere() -> None:
    for text in (
        "postgresql://ada:s3cret@db/log",
        "postgres://ada:s3cret@[::1]:5433,db2/log?sslmode=require&logmark_schema=x",
        "postgresql://ada@db/log?password=s3cret&sslpassword=s3cret",
        "postgresql:///log?host=db&user=ada&password=s3cret",
    ):
        parsed = PostgresUrl.parse(text)
        assert parsed.parameters["password"] == "s3cret"
        assert "s3cret" not in parsed.shown + repr(parsed)
        assert PostgresUrl.parse(parsed.shown).parameters == {
            name: value for name, value in parsed.parameters.items() if "password" not in name
        }
    with pytest.raises(InvalidArgument) as caught:
        PostgresUrl.parse("postgresql://ada:s3%ZZcret@db/log")
    assert "s3" not in str(caught.value)


@pytest.mark.parametrize(
    "query", ["logmark_schema=", "logmark_schema=%22", "logmark_schema=" + "x" * 64, "logmark_schema=%00", "nonsense=1"]
)
def test_a_url_that_cannot_be_meant_is_refused(query: str) -> None:
    with pytest.raises(InvalidArgument):
        logmark.open(f"postgresql://127.0.0.1/postgres?{query}")


def test_no_server_is_an_error_in_time_that_pickles_and_has_no_password() -> None:
    began = time.monotonic()
    with pytest.raises(StorageUnavailable) as caught:
        logmark.open("postgresql://ada:s3cret@127.0.0.1:1/log", limits=Limits(server_wait_s=1.0))
    assert time.monotonic() - began < SOON
    assert "127.0.0.1" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_logs_of_a_runtime_show_no_password(url: str, logs: CapturedLogs) -> None:
    with logmark.open(url.replace("postgres@", "postgres:s3cret@")) as runtime:
        runtime.session(S).append("note", 1)
        assert runtime.store.url == url
    assert "s3cret" not in repr(logs.events)


# -- settings --------------------------------------------------------------------------------------------------------


def test_a_server_that_does_not_sync_is_refused_with_an_explanation(url: str, sql: Any) -> None:
    sql.execute("ALTER SYSTEM SET fsync = off")
    try:
        sql.execute("SELECT pg_reload_conf()")
        sql.execute("SELECT pg_sleep(0.2)")
        with pytest.raises(StorageUnavailable, match=r"fsync = off.*durability="):
            PostgresEventStore(url, limits=Limits(server_wait_s=2.0))
        PostgresEventStore(url, durability="os").close()
    finally:
        sql.execute("ALTER SYSTEM RESET fsync")
        sql.execute("ALTER SYSTEM SET fsync = on")
        sql.execute("SELECT pg_reload_conf()")
        sql.execute("SELECT pg_sleep(0.2)")
    PostgresEventStore(url).close()


def test_commits_that_are_answered_before_they_are_on_disk_are_refused(url: str) -> None:
    weak = f"{url}&options=-csynchronous_commit%3Doff"
    with pytest.raises(StorageUnavailable, match="synchronous_commit = off"):
        PostgresEventStore(weak, limits=Limits(server_wait_s=2.0))
    for value in ("on", "local", "remote_write", "remote_apply"):
        PostgresEventStore(f"{url}&options=-csynchronous_commit%3D{value}").close()


@pytest.mark.parametrize(("durability", "wanted"), [("fsync", "on"), ("os", "off")])
def test_the_sessions_settings_are_the_engines_own(url: str, durability: str, wanted: str) -> None:
    """Whatever the database's defaults: isolation, read-only, and the durability that was asked for."""
    odd = f"{url}&options=-cdefault_transaction_isolation%3Dserializable%20-cdefault_transaction_read_only%3Don"
    store = PostgresEventStore(url)
    store.close()
    store = PostgresEventStore(odd + "&target_session_attrs=any", durability=durability)
    assert append_events(store, S, make_event("a", id="x")) == Appended(1, 1)
    with store._connections.use(time.monotonic() + SOON) as connection:
        found = connection.execute(
            "SELECT current_setting('transaction_isolation'), current_setting('synchronous_commit')"
        ).fetchone()
    assert found == ("read committed", wanted)
    store.close()


def test_the_driver_is_not_imported_before_it_is_needed() -> None:
    program = "import logmark, sys; print(sorted(name for name in sys.modules if 'psycopg' in name))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- schemas and versions --------------------------------------------------------------------------------------------


def test_each_schema_is_a_store_of_its_own(postgres_server: PostgresServer, sql: Any) -> None:
    sql.execute('CREATE SCHEMA "Odd name"')
    base = postgres_server.url().partition("?")[0]
    urls = [
        postgres_server.url(schema="one"),
        f"{base}?logmark_schema=Odd%20name",
        f"{base}?options=-csearch_path%3Done_more",
    ]
    sql.execute("CREATE SCHEMA one_more")
    for number, url in enumerate(urls):
        store = PostgresEventStore(url)
        assert append_events(store, S, make_event(f"of {number}")) == Appended(1, 1)
        store.close()
    for number, url in enumerate(urls):
        store = PostgresEventStore(url)
        assert texts_of(store.read(S)) == [f"of {number}"]
        store.close()
    with pytest.raises(StorageUnavailable, match="search path"):
        PostgresEventStore(f"{base}?options=-csearch_path%3Dnowhere")


def test_a_store_that_only_looks_makes_nothing(url: str, sql: Any, schema: str) -> None:
    with pytest.raises(StorageUnavailable, match="no store"):
        PostgresEventStore(url, create=False)
    assert sql.execute("SELECT count(*) FROM pg_namespace WHERE nspname = %s", (schema,)).fetchone() == (0,)
    PostgresEventStore(url).close()
    PostgresEventStore(url, create=False).close()


def test_many_may_make_the_same_store_at_once(url: str) -> None:
    stores: list[PostgresEventStore] = []
    run_together(*[lambda: stores.append(PostgresEventStore(url))] * 6)
    for number, store in enumerate(stores, 1):
        assert append_events(store, S, make_event()) == Appended(number, number)
    for store in stores:
        store.close()


def test_a_newer_store_is_refused_and_left_alone(url: str, sql: Any, schema: str) -> None:
    PostgresEventStore(url).close()
    sql.execute(f"UPDATE {schema}.logmark_store SET version = 99")
    with pytest.raises(StorageUnavailable, match="expected store version 2, found 99"):
        PostgresEventStore(url)
    assert sql.execute(f"SELECT version FROM {schema}.logmark_store").fetchone() == (99,)


def test_an_older_store_is_brought_up_to_date_once_with_its_events(
    url: str, sql: Any, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PostgresEventStore(url)
    append_events(store, S, make_event("old"))
    store.close()
    step = "ALTER TABLE {schema}.logmark_sessions ADD COLUMN flavour text DEFAULT 'plain'"
    monkeypatch.setattr(_postgres_schema, "_MIGRATIONS", (*_postgres_schema._MIGRATIONS, step))
    monkeypatch.setattr(_postgres_schema, "STORE_VERSION", 3)
    stores: list[PostgresEventStore] = []
    run_together(*[lambda: stores.append(PostgresEventStore(url))] * 4)

    assert sql.execute(f"SELECT version FROM {schema}.logmark_store").fetchone() == (3,)
    assert sql.execute(f"SELECT flavour FROM {schema}.logmark_sessions").fetchone() == ("plain",)
    assert texts_of(stores[0].read(S)) == ["old"]
    for store in stores:
        store.close()


def test_a_migration_that_fails_leaves_the_store_as_it_was(
    url: str, sql: Any, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PostgresEventStore(url).close()
    steps = ("CREATE TABLE {schema}.half_done ()", "SELECT 1 / 0")
    monkeypatch.setattr(_postgres_schema, "_MIGRATIONS", (*_postgres_schema._MIGRATIONS, *steps))
    monkeypatch.setattr(_postgres_schema, "STORE_VERSION", 4)
    with pytest.raises(StorageUnavailable, match="division by zero"):
        PostgresEventStore(url)
    assert sql.execute(f"SELECT version FROM {schema}.logmark_store").fetchone() == (2,)
    assert sql.execute("SELECT to_regclass(%s)", (f"{schema}.half_done",)).fetchone() == (None,)


# -- locks and order -------------------------------------------------------------------------------------------------


def test_calls_with_many_sessions_never_wait_for_each_other_in_a_circle(url: str, sql: Any) -> None:
    """New and old sessions, named in every order, with and without ids to be looked up."""
    store = PostgresEventStore(url)
    names = [f"s{number}" for number in range(6)]
    turns = 12

    def write(shift: int) -> None:
        for turn in range(turns):
            order = names[shift:] + names[:shift]
            if turn % 2:
                order.reverse()
            own = f"{shift}-{turn}" if turn % 3 else None
            batches = [SessionBatch(name, (AppendRequest((make_event("x", id=own),)),)) for name in order]
            for result in store.append(batches):
                assert isinstance(result.answers[0], Appended)

    run_together(*[lambda shift=shift: write(shift) for shift in range(6)])
    for name in names:
        assert seqs_of(store.read(name)) == list(range(1, 6 * turns + 1))
    assert sql.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'").fetchone() == (0,)
    store.close()


def test_a_reader_never_finds_a_number_before_all_below_it(url: str) -> None:
    """Four stores append to one session as fast as they can; whatever a reader sees is a whole beginning of the log."""
    stores = [PostgresEventStore(url) for _ in range(4)]
    done = threading.Event()
    left = [4]

    def write(store: PostgresEventStore) -> None:
        for turn in range(60):
            append_events(store, S, *make_events("a b" if turn % 2 else "c"))
        left[0] -= 1
        if not left[0]:
            done.set()

    def look() -> None:
        reader = PostgresEventStore(url)
        while not done.is_set():
            with reader._connections.use(time.monotonic() + SOON) as connection:
                rows = connection.execute(
                    reader._sql.read.replace(b"%b", b"%s"), (1, 1, 10**9, 10**6, 10**9)
                ).fetchall()
            assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        reader.close()

    run_together(look, look, *[lambda store=store: write(store) for store in stores])
    assert seqs_of(stores[0].read(S)) == list(range(1, 361))
    for store in stores:
        store.close()


def test_two_retries_of_one_id_at_once_write_it_once(url: str) -> None:
    """The look for the id may be stale when the lock comes free; the constraint is what decides then."""
    stores = [PostgresEventStore(url) for _ in range(4)]
    found: list[list[int]] = [[] for _ in stores]

    def write(index: int) -> None:
        for turn in range(40):
            found[index].append(append_events(stores[index], S, make_event(id=f"id {turn}")).first_seq)

    run_together(*[lambda index=index: write(index) for index in range(4)])
    assert all(numbers == found[0] for numbers in found)
    assert seqs_of(stores[0].read(S)) == list(range(1, 41))
    for store in stores:
        store.close()


def test_pages_are_read_along_the_index_whatever_the_statistics(url: str) -> None:
    """A plan that sorts what is left of the log for each page would make reading it quadratic."""
    store = PostgresEventStore(url, limits=Limits(read_chunk_bytes=4096))
    append_events(store, S, *make_events(" ".join(["x"] * 3000)))
    with store._connections.use(time.monotonic() + SOON) as connection:
        for statement in (store._sql.read, store._sql.read_backwards):
            plan = connection.execute(
                b"EXPLAIN " + statement.replace(b"%b", b"%s"), (1, 100, 10**9, 8, 4096)
            ).fetchall()
            text = "\n".join(line for (line,) in plan)
            assert "logmark_events_by_seq" in text
            assert "Sort" not in text
    store.close()


def test_a_page_holds_no_more_bytes_than_it_may(url: str) -> None:
    """One event more at most, however large: what is too long for a page is a page of its own."""
    store = PostgresEventStore(url, limits=Limits(read_chunk_bytes=10_000))
    sizes = [10, 50_000, 10, 10, 9_000, 9_000, 200_000, 10]
    append_events(store, S, *(make_event("x" * size) for size in sizes))
    pages: list[int] = []
    ask = store._reader.ask

    def counting(statement: bytes, arguments: Any) -> list[tuple[Any, ...]]:
        rows = ask(statement, arguments)
        if statement in (store._sql.read, store._sql.read_backwards):
            pages.append(sum(len(row[3]) + len(row[4]) for row in rows[:-1]))
        return rows

    store._reader.ask = counting  # type: ignore[method-assign]
    assert [len(text) for text in texts_of(store.read(S))] == sizes
    assert [len(text) for text in texts_of(store.read_backwards(S))] == sizes[::-1]
    assert max(pages) < 10_000
    store.close()
