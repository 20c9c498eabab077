"""The SQLite engine's commits: shared by those who wait, certain or said not to be, one process after another."""

from __future__ import annotations

import errno
import functools
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.errors import (
    AppendUncertain,
    ForkedRuntime,
    LockTimeout,
    SessionHalted,
    StorageRejected,
    StorageUnavailable,
)
from logmark.protocol import Limits
from logmark.storage import (
    Appended,
    AppendRequest,
    EventStore,
    SessionBatch,
    Snapshot,
    WouldWait,
    open_store,
    set_patience,
)
from logmark.storage._sqlite_db import Database
from logmark.testing import CapturedLogs, eventually
from logmark.testing.conformance import append_answers, append_batch, append_events, make_event, make_events, texts_of

S = "session"
WORKERS = Path(__file__).with_name("workers")
SOON_S = 60.0
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'events.db'}"


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    opened = open_store(url, limits=Limits(lock_wait_s=0.2))
    yield opened
    opened.close()


def path_of(store: EventStore) -> str:
    return store.url.partition(":")[2]


class Gate:
    """Holds the commits of a process until it is opened, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commits = 0
        self.reached = threading.Event()
        self.open = threading.Event()
        original = Database.commit

        def commit(database: Database, connection: sqlite3.Connection) -> float:
            self.commits += 1
            self.reached.set()
            assert self.open.wait(SOON_S)
            return original(database, connection)

        monkeypatch.setattr(Database, "commit", commit)


# -- group commit -------------------------------------------------------------------------------------------------


def test_calls_that_wait_share_the_next_commit(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    answers: dict[str, Any] = {}

    def append(name: str) -> None:
        answers[name] = append_events(store, name, *make_events("a b"))

    names = [f"s{n}" for n in range(8)]
    threads = [threading.Thread(target=append, args=(name,), daemon=True) for name in names]
    threads[0].start()
    assert gate.reached.wait(SOON_S)
    for thread in threads[1:]:
        thread.start()
    eventually(lambda: len(store._appender._waiting) == 7, SOON_S)  # type: ignore[attr-defined]
    gate.open.set()
    for thread in threads:
        thread.join(SOON_S)
    assert answers == {name: Appended(1, 2) for name in names}
    assert gate.commits == 2


def test_callers_of_a_runtime_share_commits(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with logmark.open(url) as runtime:
        sessions = [runtime.session(f"s{n}") for n in range(4)]
        futures = [sessions[0].submit("x")]
        assert gate.reached.wait(SOON_S)
        futures += [sessions[n % 4].submit("x", {"n": n}) for n in range(400)]
        gate.open.set()
        assert max(future.result(SOON_S) for future in futures) == 101
        assert gate.commits < 40


def test_one_session_that_fails_leaves_the_others_their_commit(store: EventStore) -> None:
    """An id that is there, and was said to be fresh, breaks the constraint; the others are written all the same."""
    event = make_event("first")
    append_events(store, "bad", event)
    results = store.append(
        [SessionBatch(name, (AppendRequest((event,)),)) for name in ("a", "bad", "b")],
    )
    assert [type(result.answers[0]).__name__ for result in results] == ["Appended", "EventIdConflict", "Appended"]
    assert [texts_of(store.read(name)) for name in ("a", "bad", "b")] == [["first"]] * 3


def test_a_thread_that_must_not_wait_does_not(store: EventStore, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It neither waits for another thread's commit nor for another process's lock, and has done nothing."""
    other = sqlite3.connect(path_of(store), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    set_patience(may_wait=False)
    try:
        with pytest.raises(WouldWait):
            append_events(store, S, make_event("refused"))
        other.execute("ROLLBACK")
        assert append_events(store, S, make_event("a")) == Appended(1, 1)
    finally:
        set_patience(may_wait=True)
        other.close()
    gate = Gate(monkeypatch)
    thread = threading.Thread(target=append_events, args=(store, S, make_event("b")), daemon=True)
    thread.start()
    assert gate.reached.wait(SOON_S)
    set_patience(may_wait=False)
    try:
        with pytest.raises(WouldWait):
            append_events(store, S, make_event("refused"))
    finally:
        set_patience(may_wait=True)
        gate.open.set()
    thread.join(SOON_S)
    assert texts_of(store.read(S)) == ["a", "b"]


def test_an_interrupt_while_waiting_leaves_neither_call_nor_lead_behind(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    first = threading.Thread(target=append_events, args=(store, "a", make_event("a")), daemon=True)
    first.start()
    assert gate.reached.wait(SOON_S)

    main_thread = threading.get_ident()

    def interrupt() -> None:
        eventually(lambda: len(store._appender._waiting) == 1, SOON_S)  # type: ignore[attr-defined]
        signal.pthread_kill(main_thread, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        append_events(store, S, make_event("interrupted"))
    gate.open.set()
    first.join(SOON_S)
    assert append_events(store, S, make_event("b")) == Appended(1, 1)
    assert (texts_of(store.read("a")), texts_of(store.read(S))) == (["a"], ["b"])


def test_two_processes_append_while_a_third_follows(url: str) -> None:
    """From the log and live, once and in order, through the whole runtime."""
    program = (
        "import sys, threading, logmark\n"
        "with logmark.open(sys.argv[1]) as runtime:\n"
        "    session = runtime.session('s')\n"
        "    def run():\n"
        "        for _ in range(60): session.append('x', sys.argv[2])\n"
        "    threads = [threading.Thread(target=run) for _ in range(4)]\n"
        "    for thread in threads: thread.start()\n"
        "    for thread in threads: thread.join()\n"
    )
    with logmark.open(url) as runtime, runtime.session("s").subscribe(1) as subscription:
        processes = [subprocess.Popen([sys.executable, "-c", program, url, name]) for name in ("one", "two")]
        seen = [subscription.get(SOON_S) for _ in range(480)]
        assert [process.wait(SOON_S) for process in processes] == [0, 0]
    assert [event.event_seq for event in seen] == list(range(1, 481))
    assert sorted(event.payload for event in seen) == ["one"] * 240 + ["two"] * 240


def test_the_log_is_copied_into_the_database_under_the_write_lock(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, logs: CapturedLogs
) -> None:
    """Never by SQLite on its own, whose checkpoints may meet the commit of another connection."""
    database = store._database  # type: ignore[attr-defined]
    writer = database._writer
    with database.reader() as reader:
        for connection in (writer, reader):
            assert connection.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    path = Path(path_of(store))
    holder = sqlite3.connect(path, isolation_level=None)
    for turn in range(24):
        append_events(store, S, make_event("x" * 500_000))
        assert Path(f"{path}-wal").stat().st_size < 10_000_000
        if turn == 12:
            assert path.stat().st_size > 3_000_000
    size = path.stat().st_size
    append_events(store, S, make_event("x" * 500_000))
    holder.execute("BEGIN IMMEDIATE")
    database._checkpoint(writer)
    assert path.stat().st_size == size
    holder.execute("ROLLBACK")
    holder.close()
    database._checkpoint(writer)
    assert path.stat().st_size > size

    def refuse(_database: Database, _writer: sqlite3.Connection) -> None:
        message = "disk I/O error"
        raise sqlite3.OperationalError(message)

    monkeypatch.setattr(Database, "_checkpoint", refuse)
    for seq in range(26, 36):
        assert append_events(store, S, make_event("x" * 500_000)) == Appended(seq, seq)
    assert {event["event"] for event in logs.events} == {"checkpoint_failed"}
    assert store.verify(S) == []


# -- locks --------------------------------------------------------------------------------------------------------


def test_a_lock_that_does_not_come_free_is_named_and_reading_goes_on(store: EventStore) -> None:
    append_events(store, S, make_event("a"))
    script = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN IMMEDIATE')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, path_of(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        result = append_batch(store, S, AppendRequest(make_events("x")), AppendRequest(make_events("y z")))
        for answer in result.answers:
            assert isinstance(answer, LockTimeout)
            assert answer.session_id == S
            assert answer.holder_pid == (holder.pid if sys.platform == "linux" else None)
        assert (result.last_seq_before, result.last_seq) == (1, 1)
        with pytest.raises(LockTimeout):
            store.reserve(S, 9)
        assert texts_of(store.read(S)) == ["a"]
        holder.kill()
    assert append_events(store, S, make_event("b")) == Appended(2, 2)


def test_processes_that_open_a_new_store_at_once_make_one(url: str) -> None:
    program = (
        "import sys\nfrom logmark.storage import open_store\n"
        "from logmark.testing.conformance import append_events, make_event\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "store = open_store(sys.argv[1])\n"
        "for _ in range(5): append_events(store, 's', make_event())\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, url]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.communicate(b"\n", SOON_S)
    assert [process.returncode for process in processes] == [0] * 4
    store = open_store(url)
    assert store.last_seq("s") == 20
    store.close()


# -- what fails ---------------------------------------------------------------------------------------------------


def test_a_full_database_rejects_and_goes_on(store: EventStore) -> None:
    """SQLITE_FULL, as on a full disk: certain, nothing halted, and the numbers go on without a gap."""
    append_events(store, S, make_event("a"))
    writer = store._database._writer  # type: ignore[attr-defined]
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}")
    (answer,) = append_answers(store, S, AppendRequest((make_event("x" * 100_000),)))
    assert isinstance(answer, StorageRejected)
    assert answer.errno == errno.ENOSPC
    assert store.halted(S) is None
    writer.execute("PRAGMA max_page_count = 1000000")
    assert append_events(store, S, make_event("b")) == Appended(2, 2)


@pytest.mark.parametrize("happened", [True, False])
def test_a_commit_of_unknown_outcome_halts_and_is_settled_by_its_id(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, logs: CapturedLogs, happened: bool
) -> None:
    append_events(store, S, make_event("a"))
    failing = _Failing(store, "COMMIT" if happened else "ROLLBACK")
    with monkeypatch.context() as patch:
        patch.setattr(store._database, "_writer", failing)  # type: ignore[attr-defined]
        (answer,) = append_answers(store, S, AppendRequest((make_event("b", id="b"),)))
    assert isinstance(answer, AppendUncertain)
    assert answer.first_event_id == "b"
    assert [event["event"] for event in logs.events] == ["session_halted"]
    with pytest.raises(SessionHalted):
        list(store.read(S))
    assert store.repair(S)
    settled = append_events(store, S, make_event("b", id="b"))
    assert settled == Appended(2, 2, written=not happened)
    assert texts_of(store.read(S)) == ["a", "b"]


class _Failing:
    """A connection whose next COMMIT fails as a failed sync does."""

    def __init__(self, store: EventStore, instead: str) -> None:
        self._connection = sqlite3.connect(path_of(store), isolation_level=None, check_same_thread=False)
        self._instead = instead

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement == "COMMIT":
            self._connection.execute(self._instead)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise error
        return self._connection.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_a_halt_that_the_disk_refuses_holds_here_and_is_written_later(
    store: EventStore, url: str, monkeypatch: pytest.MonkeyPatch, logs: CapturedLogs
) -> None:
    append_events(store, S, make_event("a"))

    def refuse(_database: Database, _connection: sqlite3.Connection) -> float:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Database, "commit", refuse)
        store.halt(S, "in doubt", first_event_id="x")
        assert [event["event"] for event in logs.events] == ["halt_marker_unwritten", "session_halted"]
        with pytest.raises(SessionHalted, match="in doubt"):
            append_events(store, S, make_event())
        with pytest.raises(SessionHalted):
            list(store.read(S))
        assert [finding.kind for finding in store.verify(S)] == ["halt"]
    store.close()
    again = open_store(url)
    record = again.halted(S)
    again.close()
    assert record is not None
    assert (record.reason, record.first_event_id) == ("in doubt", "x")


@pytest.mark.parametrize("at", ["before the commit", "after the commit"])
def test_an_interrupt_leaves_no_transaction_behind(store: EventStore, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    append_events(store, S, make_event("a"))
    original = Database.commit

    def interrupted(database: Database, connection: sqlite3.Connection) -> float:
        if at == "after the commit":
            original(database, connection)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Database, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            append_events(store, S, make_event("b", id="b"))
    written = at == "before the commit"
    assert append_events(store, S, make_event("b", id="b")) == Appended(2, 2, written=written)
    assert texts_of(store.read(S)) == ["a", "b"]


# -- forks --------------------------------------------------------------------------------------------------------


def run_worker(mode: str, url: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(WORKERS / "forked.py"), mode, url]
    run = subprocess.run(command, capture_output=True, check=False, timeout=SOON_S, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    return [json.loads(line) for line in run.stdout.splitlines()]


@needs_fork
def test_a_child_may_open_the_store_itself(url: str) -> None:
    child, parent = run_worker("own", url)
    assert child == {"child": True, "count": 11}
    assert parent == {"child_exit": 5, "numbers": list(range(12, 22)), "seen": True, "count": 21}


@needs_fork
def test_forks_at_any_moment_hang_nobody_and_tear_nothing(url: str) -> None:
    (said,) = run_worker("often", url)
    assert said["exits"] == [0] * 20
    store = open_store(url)
    assert (store.verify("s"), store.verify_store()) == ([], [])
    store.close()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_store_is_of_the_process_that_opened_it(store: EventStore, url: str) -> None:
    append_events(store, S, make_event("parent"))
    rows = store.read(S)

    def child() -> None:
        for use in (lambda: store.last_seq(S), lambda: append_events(store, S, make_event()), lambda: list(rows)):
            with pytest.raises(ForkedRuntime):
                use()
        store.close()
        own = open_store(url)
        append_events(own, S, make_event("child"))
        own.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(SOON_S)
    assert process.exitcode == 0
    assert texts_of(store.read(S)) == ["parent", "child"]
    assert append_events(store, S, make_event("parent")) == Appended(3, 3)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_has_locks_of_its_own(store: EventStore, url: str) -> None:
    """A parent that closes the store last, as far as it can see, takes the log away from a child without locks."""
    append_events(store, S, make_event("parent"))
    context = multiprocessing.get_context("fork")
    appended, closed = context.Event(), context.Event()

    def child() -> None:
        own = open_store(url)
        append_events(own, S, make_event("before"))
        appended.set()
        assert closed.wait(SOON_S)
        append_events(own, S, make_event("after"))
        os._exit(0)  # as a killed process would, without closing

    process = context.Process(target=child)
    process.start()
    assert appended.wait(SOON_S)
    store.close()
    closed.set()
    process.join(SOON_S)
    assert process.exitcode == 0
    again = open_store(url)
    assert texts_of(again.read(S)) == ["parent", "before", "after"]
    again.close()


# -- snapshots ----------------------------------------------------------------------------------------------------


def test_what_is_followed_is_asked_for_at_once(store: EventStore) -> None:
    append_events(store, "a", *make_events("x y"))
    assert store.last_seqs(["a", "nobody"]) == {"a": 2, "nobody": 0}
    store.close()
    answers = store.last_seqs(["a", "nobody"])
    assert {type(answer) for answer in answers.values()} == {StorageUnavailable}


def test_a_snapshot_is_of_this_very_log(store: EventStore, url: str) -> None:
    append_events(store, S, *make_events("a b c"))
    assert store.load_snapshot(S, "marks") is None
    store.save_snapshot(S, "marks", Snapshot(2, b"two"))
    store.save_snapshot(S, "other", Snapshot(99, b"of no event"))
    other = open_store(url)
    assert other.load_snapshot(S, "marks") == Snapshot(2, b"two")
    assert (other.load_snapshot(S, "other"), other.load_snapshot("nobody", "marks")) == (None, None)
    store.save_snapshot(S, "marks", Snapshot(3, b"three"))
    assert other.load_snapshot(S, "marks") == Snapshot(3, b"three")
    connection = sqlite3.connect(path_of(store))
    for change in ("event_crc = event_crc + 1", "event_crc = event_crc - 1", "data = x'00'"):
        connection.execute(f"UPDATE snapshot SET {change}")
        connection.commit()
        assert (other.load_snapshot(S, "marks") is None) == (change != "event_crc = event_crc - 1")
    connection.close()
    other.close()
    holder = sqlite3.connect(path_of(store), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable):
        store.save_snapshot(S, "marks", Snapshot(3, b"refused"))
    holder.close()
    assert append_events(store, S, make_event("synced again")) == Appended(4, 4)
    assert store._database._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # type: ignore[attr-defined]


# -- real disks ---------------------------------------------------------------------------------------------------


@functools.cache
def namespace() -> tuple[str, ...]:
    """Return the command that gives a process mounts of its own; empty where nobody may do that."""
    if shutil.which("unshare") is not None:
        for options in ("-Urm", "-m"):
            probe = ["unshare", options, "mount", "-t", "tmpfs", "none", "/mnt"]
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return ("unshare", options)
    return ()


@pytest.mark.parametrize("scenario", ["full", "read_only"])
def test_on_a_small_disk(tmp_path: Path, scenario: str) -> None:
    if not namespace():
        pytest.skip("no mounts: neither root nor unprivileged user namespaces")
    script = 'mount -t tmpfs -o size=512k none "$1" && exec "$2" -W error "$3" "$4" "$1"'
    worker = str(WORKERS / "sqlite_disk.py")
    command = [*namespace(), "sh", "-c", script, "sh", str(tmp_path), sys.executable, worker, scenario]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SOON_S)
    assert run.returncode == 0, run.stderr


# Which call of an append to a store that is there already: each page of the log is written by two, and then synced.
INJECT = {
    "pwrite64:error=EIO": (1, 10, 17, 24),
    "pwrite64:error=ENOSPC": (1, 11, 17, 26),
    "fdatasync:error=EIO": (1, 3, 4),
    "pwrite64:signal=KILL": (2, 17, 24, 29),
    "fdatasync:signal=KILL": (1, 3, 4, 5),
}


def test_any_write_or_sync_of_an_append_may_fail_or_be_the_last(tmp_path: Path) -> None:
    """Under strace: what was told is there, what was refused is not, and a retry settles what is in doubt."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")

    def append(what: str, number: int) -> tuple[str, str, list[dict[str, Any]]]:
        path = tmp_path / what / f"{number}"
        path.mkdir(parents=True)
        url = f"sqlite:{path / 'events.db'}"
        open_store(url).close()
        command = [strace, "-f", "-qq", "-o", os.devnull, "-e", f"inject={what}:when={number}"]
        worker = [sys.executable, str(WORKERS / "sqlite_disk.py"), "append", str(path)]
        run = subprocess.run([*command, *worker], capture_output=True, check=False, timeout=SOON_S)
        return what, url, [json.loads(line) for line in run.stdout.splitlines()]

    ended: dict[str, set[str]] = {what: set() for what in INJECT}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in [pool.submit(append, what, number) for what, numbers in INJECT.items() for number in numbers]:
            what, url, told = future.result(SOON_S)
            ended[what].update(str(each.get("error", "told")) for each in told)
            _compare(url, told)
    assert ended == {
        "pwrite64:error=EIO": {"told", "AppendUncertain", "SessionHalted"},
        "pwrite64:error=ENOSPC": {"told", "StorageRejected"},
        "fdatasync:error=EIO": {"told", "AppendUncertain", "SessionHalted"},
        "pwrite64:signal=KILL": {"told"},
        "fdatasync:signal=KILL": {"told"},
    }


def _compare(url: str, told: list[dict[str, Any]]) -> None:
    """Hold what a process was told against what is there, and try everything again."""
    store = open_store(url)
    halted = store.halted(S) is not None
    if halted:
        store.repair(S)
    ids = [event.id for event in store.read(S)]
    for turn, each in enumerate(told):
        mine = [f"{turn}-{index}" for index in range(turn + 1)]
        if "first_seq" in each:
            assert ids[each["first_seq"] - 1 :][: len(mine)] == mine
        elif each["error"] in {"StorageRejected", "StorageUnavailable"}:
            assert not set(mine) & set(ids)
        elif each["error"] == "AppendUncertain":
            assert set(mine) <= set(ids) or not set(mine) & set(ids)
    for turn in range(4):
        append_events(store, S, *(make_event(f"{turn}-{index}", id=f"{turn}-{index}") for index in range(turn + 1)))
    found = [event.id for event in store.read(S)]
    assert sorted(filter(None, found)) == sorted(f"{turn}-{index}" for turn in range(4) for index in range(turn + 1))
    assert (store.verify(S), store.verify_store()) == ([], [])
    store.close()
