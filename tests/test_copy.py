"""``logmark copy``: every number, id and byte arrives, whatever interrupts it, and other content is refused."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.cli._copy_sessions import Copier
from logmark.errors import StorageUnavailable
from logmark.storage import EventStore, MemoryEventStore, open_store
from logmark.storage._sqlite import SqliteEventStore
from logmark.testing import CommandRun, eventually
from logmark.testing.conformance import ODD_SESSION_IDS, append_events, make_event, make_events

ENGINES = ("file", "sqlite")
SOON_S = 60.0

State = dict[str, tuple[tuple[int, int, int], list[tuple[int | None, bytes | None, bytes]]]]


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str, str], str]:
    return lambda engine, name: f"{engine}:{tmp_path / name}"


def fill(url: str) -> None:
    """Make a store with everything that a copy has to carry: odd ids, gaps, jobs, large events, long sessions."""
    store = open_store(url)
    for session_id in ODD_SESSION_IDS[:12]:
        append_events(store, session_id, make_event(f"in {session_id}", id="the same id in every session"))
    store.reserve("gaps", 3)
    append_events(store, "gaps", *make_events("a b"))
    store.reserve("gaps", 9)
    append_events(store, "gaps", make_event("c"))
    store.reserve("gaps", 20)
    store.reserve("only reserved", 7)
    append_events(store, "large", *(make_event("x" * 400_000) for _ in range(12)))
    for _ in range(2):
        append_events(store, "long", *(make_event(str(n)) for n in range(1000)))
    store.close()
    with logmark.open(url) as runtime:
        session = runtime.session("jobs")
        session.append("job.event", {"n": 1}, job_id="j", source={"agent": "x"}, stream_seq=9, trace_id="t")
        session.append("job.result", {"ok": True}, job_id="j")


def state_of(url: str) -> State:
    """Return all that a store holds."""
    store = open_store(url, create=False)
    found: State = {}
    for session_id in store.sessions():
        info = store.info(session_id)
        events = [(event.event_seq, event.head_json, event.payload_json) for event in store.read(session_id)]
        found[session_id] = ((info.first_seq, info.last_seq, info.next_seq), events)
        assert [finding for finding in store.verify(session_id) if not finding.harmless] == []
    store.close()
    return found


@pytest.mark.parametrize("source", ENGINES)
@pytest.mark.parametrize("target", ENGINES)
def test_everything_arrives_under_its_own_number(
    run: Callable[..., CommandRun], place: Callable[[str, str], str], source: str, target: str
) -> None:
    one, two = place(source, "one"), place(target, "two")
    fill(one)
    done = run("copy", one, two)
    assert (done.code, done.err) == (0, "")
    assert state_of(two) == state_of(one)
    with logmark.open(two) as runtime:
        assert runtime.session("jobs").job("j").mark.status == "success"
        assert runtime.session("gaps").append("x") == 21

    again = run("copy", one, two, "large", "long", "--json")
    assert again.code == 0
    assert [(each["session_id"], each["copied"], each["present"], each["ok"]) for each in again.objects] == [
        ("large", 0, 12, True),
        ("long", 0, 2000, True),
    ]


def test_a_copy_goes_on_where_it_was_interrupted(
    run: Callable[..., CommandRun], place: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every commit in turn: the store fails, and the next run completes what is there."""
    one = place("file", "one")
    fill(one)
    original = Copier.flush
    for stop_at in (1, 2, 4):
        two = place("sqlite", f"two-{stop_at}")
        flushes = 0

        def flush(self: Copier, stop_at: int = stop_at, two: str = two) -> None:
            nonlocal flushes
            flushes += 1
            if flushes == stop_at:
                raise StorageUnavailable(store=two, reason="gone")
            original(self)

        with monkeypatch.context() as patch:
            patch.setattr(Copier, "flush", flush)
            assert run("copy", one, two).code == 3
        done = run("copy", one, two)
        assert (done.code, done.err) == (0, "")
        assert state_of(two) == state_of(one)


def test_a_killed_copy_is_completed_by_the_next(
    run: Callable[..., CommandRun], place: Callable[[str, str], str]
) -> None:
    one, two = place("sqlite", "one"), place("file", "two")
    fill(one)
    copying = subprocess.Popen([sys.executable, "-m", "logmark", "copy", one, two], stderr=subprocess.PIPE)
    try:
        sessions = Path(two.partition(":")[2], "sessions")
        eventually(lambda: copying.poll() is not None or (sessions.is_dir() and any(sessions.iterdir())), SOON_S)
    finally:
        copying.kill()
        copying.communicate()
    done = run("copy", one, two)
    assert done.code == 0
    assert state_of(two) == state_of(one)


def test_ctrl_c_finishes_the_commit_and_says_how_to_go_on(
    run: Callable[..., CommandRun], place: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = place("file", "one"), place("sqlite", "two")
    fill(one)
    original = SqliteEventStore.append

    def append(self: SqliteEventStore, batches: Any) -> Any:
        if batches:
            signal.raise_signal(signal.SIGINT)
        return original(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(SqliteEventStore, "append", append)
        stopped = run("copy", one, two)
    assert stopped.code == 130
    assert "run it again" in stopped.err
    assert sum(len(events) for _, events in state_of(two).values()) > 0
    assert run("copy", one, two).code == 0
    assert state_of(two) == state_of(one)


def _another_text(store: EventStore) -> None:
    append_events(store, "s", make_event("a", id="1"), make_event("other", id="2"))


def _another_id(store: EventStore) -> None:
    append_events(store, "s", make_event("a", id="1"), make_event("b", id="9"))


def _another_number(store: EventStore) -> None:
    append_events(store, "s", make_event("a", id="1"))
    store.reserve("s", 2)
    append_events(store, "s", make_event("b", id="2"))


def _one_more(store: EventStore) -> None:
    append_events(store, "s", make_event("a", id="1"), make_event("b", id="2"), make_event("c", id="3"))
    append_events(store, "s", make_event("d", id="4"))


def _a_reservation(store: EventStore) -> None:
    append_events(store, "s", make_event("a", id="1"))
    store.reserve("s", 2)


@pytest.mark.parametrize("prepare", [_another_text, _another_id, _another_number, _one_more, _a_reservation])
def test_a_destination_with_other_content_is_refused_untouched(
    run: Callable[..., CommandRun], place: Callable[[str, str], str], prepare: Callable[[EventStore], None]
) -> None:
    one, two = place("sqlite", "one"), place("file", "two")
    source, target = open_store(one), open_store(two)
    append_events(source, "a", make_event("first in the order"))
    append_events(source, "s", make_event("a", id="1"), make_event("b", id="2"), make_event("c", id="3"))
    prepare(target)
    source.close()
    target.close()
    before = state_of(two)

    refused = run("copy", one, two)
    assert refused.code == 1
    assert "session 's', number" in refused.err
    assert state_of(two) == before


def test_sessions_that_the_source_does_not_have_are_left_alone(
    run: Callable[..., CommandRun], place: Callable[[str, str], str]
) -> None:
    one, two = place("file", "one"), place("sqlite", "two")
    for url, name in ((one, "mine"), (two, "theirs")):
        store = open_store(url)
        append_events(store, name, make_event(name))
        store.close()
    assert run("copy", one, two).code == 0
    assert list(state_of(two)) == ["mine", "theirs"]


def test_a_halted_session_is_not_copied_and_stops_no_other(
    run: Callable[..., CommandRun], place: Callable[[str, str], str]
) -> None:
    one, two = place("file", "one"), place("sqlite", "two")
    store = open_store(one)
    for name in ("a", "b", "c"):
        append_events(store, name, make_event(name))
    store.halt("b", "in doubt")
    store.close()
    done = run("copy", one, two)
    assert done.code == 1
    assert "in doubt" in done.err
    assert list(state_of(two)) == ["a", "c"]
    assert run("repair", "--store", one).code == 0
    assert run("copy", one, two).code == 0
    assert state_of(two) == state_of(one)


def test_what_is_appended_meanwhile_is_left_for_the_next_run(
    run: Callable[..., CommandRun], place: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = place("file", "one"), place("sqlite", "two")
    source = open_store(one)
    append_events(source, "s", *make_events("a b c"))
    original = Copier.flush

    def flush(self: Copier) -> None:
        append_events(source, "s", make_event("late"))
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Copier, "flush", flush)
        assert run("copy", one, two).code == 0
    assert state_of(two)["s"][0] == (1, 3, 4)
    assert run("copy", one, two).code == 0
    assert state_of(two) == state_of(one)
    source.close()


@pytest.mark.parametrize("lie", ["payload", "missing", "id"])
def test_a_destination_that_keeps_something_else_is_found_out(
    run: Callable[..., CommandRun], place: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """The copy is read back: what the destination answers is not taken for what it holds."""
    one, two = place("file", "one"), place("sqlite", "two")
    source = open_store(one)
    append_events(source, "s", *make_events("a b c"))
    source.close()
    original = SqliteEventStore.append

    def append(self: SqliteEventStore, batches: Any) -> Any:
        results = original(self, batches)
        with self._database.reader() as connection:
            if lie == "missing":
                connection.execute("DELETE FROM event WHERE seq = 2")
            else:
                row = (b'"ts":"2026-01-01T00:00:00Z","id":"x","type":"note"', b"{}")
                if lie == "payload":
                    (head,) = connection.execute("SELECT head FROM event WHERE seq = 2").fetchone()
                    row = (head, b"{}")
                connection.execute("UPDATE event SET head = ?, payload = ? WHERE seq = 2", row)
        return results

    monkeypatch.setattr(SqliteEventStore, "append", append)
    done = run("copy", one, two)
    assert done.code == 1
    assert "0 sessions of 1 complete" in done.out


def test_what_cannot_be_copied_is_a_usage_error(
    run: Callable[..., CommandRun], place: Callable[[str, str], str]
) -> None:
    one, two = place("file", "one"), place("sqlite", "two")
    assert run("copy", one, two).code == 3
    fill(one)
    for arguments in (("memory:", two), (one, "memory:"), (one, one), (one, two, "nobody")):
        assert run("copy", *arguments).code == 2
    assert not os.path.exists(two.partition(":")[2])


AT_EVERY_STEP = """
import sys
from logmark.cli import _progress, main
_progress._EVERY_S = 0.0  # however quick it is
sys.exit(main())
"""


def test_a_terminal_is_shown_how_far_it_is(place: Callable[[str, str], str]) -> None:
    one, two = place("file", "one"), place("sqlite", "two")
    fill(one)
    ours, theirs = pty.openpty()
    seen = bytearray()

    def listen() -> None:
        try:
            while data := os.read(ours, 4096):
                seen.extend(data)
        except OSError:
            return  # the other end was closed

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    copying = subprocess.run(
        [sys.executable, "-c", AT_EVERY_STEP, "copy", one, two], stderr=theirs, check=False, timeout=SOON_S
    )
    os.close(theirs)
    listener.join(SOON_S)
    os.close(ours)
    assert copying.returncode == 0
    assert b"events, " in seen


def test_memory_stores_are_copied_by_programs() -> None:
    """The work itself needs nothing but two stores."""
    source, target = MemoryEventStore(), MemoryEventStore()
    append_events(source, "s", *make_events("a b c"))
    copier = Copier(source, target, lambda: False)
    from logmark.cli._copy_sessions import Copied

    session = Copied("s", 0, 0)
    copier.begin(session)
    steps = [sum(copier.compare(session)), sum(copier.copy(session))]
    copier.flush()
    steps.append(sum(copier.verify(session)))
    assert (steps, session.is_complete) == ([0, 3, 3], True)
    assert list(target.read("s")) == list(source.read("s"))
