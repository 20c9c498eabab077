"""Derived views: whatever state view and checkpoint are found in, the view becomes exactly the fold of the log."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Envelope, FileProjection, ObjectProjection, Projection, Session, SqliteProjection
from logmark.errors import (
    CursorAhead,
    ForkedRuntime,
    InvalidArgument,
    ProjectionBusy,
    ProjectionHalted,
    SeqPruned,
    StorageUnavailable,
)
from logmark.testing import CapturedLogs, eventually

SOON = 20.0


class Poison(Exception):
    """What the views below raise at an event that says so."""


def text_of(event: Envelope) -> str:
    if event.payload == "poison" and Poison.armed:  # type: ignore[attr-defined]
        raise Poison(event.event_seq)
    return f"{event.event_seq} {event.payload}\n"


class Lines(FileProjection):
    commit_events_max = 7

    def apply(self, event: Envelope) -> None:
        self.write(f"{event.event_seq} ")
        self.write(text_of(event).split(" ", 1)[1].encode())


class Table(SqliteProjection):
    commit_events_max = 7
    tables = {"line": "CREATE TABLE line (seq INTEGER, text TEXT); CREATE INDEX line_text ON line (text)"}  # noqa: RUF012

    def apply(self, event: Envelope) -> None:
        self.db.execute("INSERT INTO line VALUES (?, '')", (event.event_seq,))
        self.db.execute("UPDATE line SET text = ? WHERE seq = ?", (text_of(event), event.event_seq))


class Value(ObjectProjection):
    commit_events_max = 7

    def initial(self) -> Any:
        return {"lines": [], "sum": 0}

    def apply(self, event: Envelope) -> None:
        self.state["sum"] += event.event_seq
        self.state["lines"].append(text_of(event))


class InMemory(Projection):
    def __init__(self, session: Session, name: str = "memory", *, from_seq: int = 1) -> None:
        super().__init__(session, name, from_seq=from_seq)
        self.lines: list[str] = []
        self.begun = 0

    def begin(self) -> None:
        self.lines = []
        self.begun += 1

    def apply(self, event: Envelope) -> None:
        self.lines.append("half")
        self.lines[-1] = text_of(event)


class Kind:
    """One kind of view: how it is made, and what is in it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.path = folder / "view"

    def make(self, session: Session, *, from_seq: int = 1) -> Projection:
        if self.name == "file":
            return Lines(session, self.path, from_seq=from_seq)
        if self.name == "sqlite":
            return Table(session, self.path, "view", from_seq=from_seq)
        return Value(session, self.path, from_seq=from_seq)

    def view(self) -> str:
        """Return what is in the view, read past the projection."""
        if self.name == "file":
            return self.path.read_text() if self.path.exists() else ""
        if self.name == "sqlite":
            with contextlib.closing(sqlite3.connect(self.path)) as db:
                return "".join(row[0] for row in db.execute("SELECT text FROM line ORDER BY rowid"))
        return "".join(json.loads(self.path.read_bytes())["body"]["state"]["lines"])

    def checkpoint_changed(self, **members: Any) -> None:
        """Change the checkpoint as somebody would who knows how; the view stays as it is."""
        if self.name == "sqlite":
            with contextlib.closing(sqlite3.connect(self.path)) as db, db:
                (text,) = db.execute("SELECT checkpoint FROM logmark_projection").fetchone()
                db.execute(
                    "UPDATE logmark_projection SET checkpoint = ?", (json.dumps({**json.loads(text), **members}),)
                )
            return
        import orjson

        path = self.path.with_name("view.checkpoint") if self.name == "file" else self.path
        body = json.loads(path.read_bytes())["body"]
        (body if self.name == "file" else body["checkpoint"]).update(members)
        text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        path.write_bytes(b'{"crc":"%08x","body":%b}\n' % (logmark.protocol.crc32(text), text))

    def checkpoint_removed(self) -> None:
        if self.name == "sqlite":
            self._sql("DELETE FROM logmark_projection")
        else:
            self.path.with_name("view.checkpoint" if self.name == "file" else "view").unlink()

    def checkpoint_damaged(self) -> None:
        if self.name == "sqlite":
            self._sql("UPDATE logmark_projection SET checkpoint = substr(checkpoint, 5)")
        else:
            path = self.path.with_name("view.checkpoint" if self.name == "file" else "view")
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(bytes(data))

    def view_longer(self) -> None:
        if self.name == "sqlite":
            self._sql("INSERT INTO line VALUES (999, 'surplus')")
        elif self.name == "file":
            with self.path.open("ab") as file:
                file.write(b"999 surplus\n")

    def view_shorter(self) -> None:
        if self.name == "sqlite":
            self._sql("DELETE FROM line WHERE seq = 2")
        elif self.name == "file":
            os.truncate(self.path, self.path.stat().st_size - 3)

    def view_gone(self) -> None:
        if self.name == "sqlite":
            self._sql("DROP TABLE line")
        elif self.name == "file":
            self.path.unlink()

    def view_damaged(self) -> None:
        if self.name == "file":
            data = bytearray(self.path.read_bytes())
            data[3] ^= 1
            self.path.write_bytes(bytes(data))

    def _sql(self, statement: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as db, db:
            db.execute(statement)


@pytest.fixture(autouse=True)
def _armed() -> Iterator[None]:
    Poison.armed = True  # type: ignore[attr-defined]
    yield
    Poison.armed = True  # type: ignore[attr-defined]


@pytest.fixture(params=["file", "sqlite", "object"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return Kind(request.param, tmp_path)


@pytest.fixture
def memory() -> Iterator[logmark.Runtime]:
    """A runtime of one engine, for what does not depend on it."""
    with logmark.open("memory:") as opened:
        yield opened


def fold(session: Session, from_seq: int = 1) -> str:
    return "".join(f"{event.event_seq} {event.payload}\n" for event in session.read(from_seq))


def project(kind: Kind, session: Session) -> int:
    with kind.make(session) as projection:
        return projection.catch_up()


# -- whatever state it is found in -----------------------------------------------------------------------------------


DAMAGE: dict[str, Callable[[Kind], None]] = {
    "missing": Kind.checkpoint_removed,
    "bad": Kind.checkpoint_damaged,
    "ahead": lambda kind: kind.checkpoint_changed(seq=500),
    "equal": lambda _: None,
    "behind": lambda _: None,
    "another event": lambda kind: kind.checkpoint_changed(event_id="another"),
    "another session": lambda kind: kind.checkpoint_changed(session_id="another"),
    "another version": lambda kind: kind.checkpoint_changed(version=2),
    "another format": lambda kind: kind.checkpoint_changed(v=99),
    "nonsense": lambda kind: kind.checkpoint_changed(surplus=1),
    "no output": lambda kind: kind.checkpoint_changed(output={}),
    "view longer": Kind.view_longer,
    "view shorter": Kind.view_shorter,
    "view gone": Kind.view_gone,
    "view damaged": Kind.view_damaged,
}


ON_EVERY_ENGINE = ("missing", "bad", "ahead", "equal", "behind", "view longer", "view shorter")


@pytest.mark.parametrize("state", ON_EVERY_ENGINE)
def test_it_heals_from_every_state_row_24_row_25(state: str, kind: Kind, every_runtime: logmark.Runtime) -> None:
    """Rows 24 and 25: no row of the view twice or missing, whatever checkpoint and view were."""
    heals(state, kind, every_runtime.session("s"))


@pytest.mark.parametrize("state", [state for state in DAMAGE if state not in ON_EVERY_ENGINE])
def test_it_heals_from_every_other_state(state: str, kind: Kind) -> None:
    with logmark.open("memory:") as runtime:
        heals(state, kind, runtime.session("s"))


def heals(state: str, kind: Kind, session: Session) -> None:
    session.append_many([("x", n) for n in range(20)])
    assert project(kind, session) == 20
    assert kind.view() == fold(session)
    if state not in {"equal", "view longer"}:
        session.append_many([("x", n) for n in range(20, 33)])
    DAMAGE[state](kind)
    for _ in range(2):
        assert project(kind, session) == session.last_seq
        assert kind.view() == fold(session)


def test_a_checkpoint_mints_no_numbers_row_15(kind: Kind, every_runtime: logmark.Runtime) -> None:
    """Row 15: the checkpoint says 500; the next event is the third all the same."""
    session = every_runtime.session("s")
    session.append_many([("x", n) for n in range(2)])
    project(kind, session)
    kind.checkpoint_changed(seq=500)
    with kind.make(session) as projection:
        assert session.append("x", 2) == 3
        assert projection.catch_up() == 3
        assert session.append("x", 3) == 4
    assert project(kind, session) == 4
    assert kind.view() == fold(session)


def test_a_replay_gives_the_same_bytes_twice_row_23(kind: Kind, every_runtime: logmark.Runtime) -> None:
    """Row 23: replayed twice, the view is the same, byte for byte."""
    session = every_runtime.session("s")
    session.append_many([("x", n) for n in range(30)])
    with kind.make(session) as projection:
        projection.catch_up()
        first = kind.path.read_bytes() if kind.name == "file" else kind.view()
        for _ in range(2):
            assert projection.replay() == 30
            assert (kind.path.read_bytes() if kind.name == "file" else kind.view()) == first
        kind.view_damaged()
        projection.replay()
    assert kind.view() == fold(session)


def test_a_log_restored_from_an_older_copy_is_noticed(kind: Kind, tmp_path: Path, logs: CapturedLogs) -> None:
    with logmark.open("memory:") as runtime:
        session = runtime.session("s")
        session.append_many([("x", n) for n in range(10)])
        assert project(kind, session) == 10
    with logmark.open("memory:") as runtime:  # another history under the same id, longer by now
        session = runtime.session("s")
        session.append_many([("x", f"other {n}") for n in range(15)])
        assert project(kind, session) == 15
        assert kind.view() == fold(session)
    (restarted,) = logs.named("projection_restarted")
    assert "event 10 of the log is not the one" in restarted["reason"]


def test_an_empty_session_and_gaps_in_the_numbers(kind: Kind, memory: logmark.Runtime) -> None:
    session = memory.session("s")
    assert project(kind, session) == 0
    assert kind.view() == ""
    session.append("x", 0)
    memory.store.reserve("s", 10)
    session.append("x", 1)
    assert project(kind, session) == 11
    assert kind.view() == "1 0\n11 1\n"
    assert project(kind, session) == 11


def test_in_memory_it_is_the_object_itself(memory: logmark.Runtime) -> None:
    session = memory.session("s")
    session.append_many([("x", n) for n in range(5)])
    with InMemory(session) as projection:
        assert projection.lag == 5
        assert projection.catch_up() == 5
        session.append("x", 5)
        assert (projection.seq, projection.lag) == (5, 1)
        assert projection.catch_up() == 6
        assert "".join(projection.lines) == fold(session)
        assert projection.begun == 1
        projection.replay()
        assert "".join(projection.lines) == fold(session)


# -- a step that fails -----------------------------------------------------------------------------------------------


def test_a_failed_step_is_not_skipped_later_row_26(
    kind: Kind, every_runtime: logmark.Runtime, logs: CapturedLogs
) -> None:
    """Row 26: event 4 fails and halts the projection; nothing goes in before it does, and then everything does."""
    session = every_runtime.session("s")
    session.append_many([("x", "a"), ("x", "b"), ("x", "c"), ("x", "poison"), ("x", "d")])
    with kind.make(session) as projection:
        with pytest.raises(ProjectionHalted) as caught:
            projection.catch_up()
        assert (caught.value.name, caught.value.seq) == ("view", 4)
        assert isinstance(caught.value.__cause__, Poison)
        assert kind.view() == "1 a\n2 b\n3 c\n"
        Poison.armed = False  # type: ignore[attr-defined]
        session.append("x", "e")
        for call in (projection.catch_up, projection.replay, projection.run):
            with pytest.raises(ProjectionHalted) as caught:
                call()
            assert caught.value.halted_at is not None
        assert kind.view() == "1 a\n2 b\n3 c\n"
    with kind.make(session) as again:  # as a new process
        halt = again.halt
        assert halt is not None
        assert (halt.seq, halt.name, halt.session_id) == (4, "view", "s")
        assert "Poison(4)" in halt.reason
        with pytest.raises(ProjectionHalted):
            again.catch_up()
        assert again.clear_halt() is True
        assert again.clear_halt() is False
        assert again.halt is None
        assert again.catch_up() == 6
        assert kind.view() == fold(session)
    assert session.append("x") == 7  # log and session are not concerned
    assert every_runtime.store.halted("s") is None
    assert [event["seq"] for event in logs.named("projection_halted")] == [4]


def test_it_halts_again_while_the_step_fails(kind: Kind, memory: logmark.Runtime) -> None:
    session = memory.session("s")
    session.append_many([("x", n) for n in range(8)] + [("x", "poison"), ("x", 9)])
    with kind.make(session) as projection:
        for _ in range(3):
            with pytest.raises(ProjectionHalted):
                projection.catch_up()
            assert kind.view() == "".join(f"{n + 1} {n}\n" for n in range(8))
            assert projection.seq == 8
            projection.clear_halt()


def test_in_memory_a_failed_step_leaves_what_came_before_it(memory: logmark.Runtime) -> None:
    session = memory.session("s")
    session.append_many([("x", "a"), ("x", "poison"), ("x", "b")])
    with InMemory(session) as projection:
        with pytest.raises(ProjectionHalted):
            projection.catch_up()
        assert projection.lines == ["1 a\n"]
        Poison.armed = False  # type: ignore[attr-defined]
        projection.clear_halt()
        assert projection.catch_up() == 3
        assert "".join(projection.lines) == fold(session)


def test_halts_are_listed_for_reports(runtime: logmark.Runtime) -> None:
    from logmark._projection import projection_halts

    session = runtime.session("s")
    session.append("x", "poison")
    for name in ("b", "a"):
        with InMemory(session, name) as projection, pytest.raises(ProjectionHalted):
            projection.catch_up()
    assert [(halt.name, halt.seq) for halt in projection_halts(runtime.store, "s")] == [("a", 1), ("b", 1)]


def test_an_interrupt_is_no_failure(kind: Kind, memory: logmark.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    session = memory.session("s")
    session.append_many([("x", n) for n in range(12)])
    with kind.make(session) as projection:
        original = projection.apply

        def interrupted(event: Envelope) -> None:
            original(event)
            if event.event_seq == 10:
                raise KeyboardInterrupt

        monkeypatch.setattr(projection, "apply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            projection.catch_up()
        assert projection.halt is None
        monkeypatch.undo()
        assert projection.catch_up() == 12
    assert kind.view() == fold(session)


def test_a_view_may_not_end_the_transaction_it_is_saved_in(tmp_path: Path, memory: logmark.Runtime) -> None:
    class Meddling(Table):
        def apply(self, event: Envelope) -> None:
            super().apply(event)
            if event.payload == "commit":
                self.db.commit()
            elif event.payload == "script":
                self.db.executescript("INSERT INTO line VALUES (0, 'x')")
            elif event.payload == "text":
                self.db.execute("COMMIT")

    for word in ("commit", "script", "text"):
        session = memory.session(word)
        session.append_many([("x", "a"), ("x", word)])
        with Meddling(session, tmp_path / word, word) as projection:
            with pytest.raises(ProjectionHalted, match="not authorized"):
                projection.catch_up()
            assert projection.seq == 1


# -- what else is in the way -----------------------------------------------------------------------------------------


def test_what_was_pruned_is_needed_or_not(kind: Kind) -> None:
    with logmark.open("memory:") as runtime:
        session = runtime.session("s")
        session.append_many([("x", n) for n in range(10)])
        project(kind, session)
        session.append_many([("x", n) for n in range(10, 20)])
        whole = fold(session)
        runtime.store.truncate_before("s", 11)
        assert project(kind, session) == 20  # its checkpoint covers what was pruned
        assert kind.view() == whole
        runtime.store.truncate_before("s", 16)
        assert project(kind, session) == 20
        with kind.make(session) as projection, pytest.raises(SeqPruned) as caught:
            projection.replay()
        assert (caught.value.seq, caught.value.first_available) == (1, 16)
        assert kind.view() == whole  # and what cannot be made anew is left as it is
        session.append_many([("x", n) for n in range(20, 30)])
        runtime.store.truncate_before("s", 25)
        with kind.make(session) as projection, pytest.raises(SeqPruned) as caught:
            projection.catch_up()
        assert (caught.value.seq, caught.value.first_available) == (21, 25)
        kind.checkpoint_removed()
        before = kind.view() if kind.name != "object" else ""
        with kind.make(session) as projection, pytest.raises(SeqPruned):
            projection.catch_up()
        if kind.name != "object":
            assert kind.view() == before
        with kind.make(session, from_seq=25) as projection:
            assert projection.catch_up() == 30
        assert kind.view() == fold(session, 25)


def test_two_at_one_view_exclude_each_other_or_take_turns(kind: Kind, memory: logmark.Runtime) -> None:
    session = memory.session("s")
    session.append_many([("x", n) for n in range(10)])
    with kind.make(session) as one, kind.make(session) as other:
        one.catch_up()
        if kind.name == "sqlite":
            session.append("x", 10)
            assert other.catch_up() == 11
            session.append("x", 11)
            assert one.catch_up() == 12
            assert other.catch_up() == 12
        else:
            with pytest.raises(ProjectionBusy):
                other.catch_up()
            one.close()
            assert other.catch_up() == 10
    assert kind.view() == fold(session)


def test_wrong_arguments_are_refused(tmp_path: Path, memory: logmark.Runtime) -> None:
    session = memory.session("s")
    for make in (
        lambda: InMemory(session, ""),
        lambda: InMemory(session, "x" * 190),
        lambda: InMemory(session, from_seq=0),
        lambda: SqliteProjectionWithoutTables(session, tmp_path / "x", "x"),
    ):
        with pytest.raises(InvalidArgument):
            make()
    with InMemory(session, from_seq=7) as projection, pytest.raises(CursorAhead):
        projection.catch_up()
    with Lines(session, tmp_path / "none" / "view") as nowhere, pytest.raises(StorageUnavailable):
        nowhere.catch_up()
    with Table(session, tmp_path / "none" / "view", "view") as nowhere, pytest.raises(StorageUnavailable):
        nowhere.catch_up()


class SqliteProjectionWithoutTables(SqliteProjection):
    def apply(self, event: Envelope) -> None:
        """Do nothing."""


def test_it_follows_live_until_it_is_stopped(kind: Kind, runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(5)])
    projection = kind.make(session)
    thread = threading.Thread(target=projection.run, daemon=True)
    thread.start()
    for n in range(5, 60):
        session.append("x", n)
    eventually(lambda: projection.seq == 60, SOON)
    with pytest.raises(InvalidArgument, match="runs already"):
        projection.run()
    assert kind.view() == fold(session)
    projection.stop()
    thread.join(SOON)
    assert not thread.is_alive()
    session.append("x", 60)
    assert projection.catch_up() == 61
    projection.close()
    assert kind.view() == fold(session)


def test_run_ends_with_the_runtime_and_with_a_failed_step(memory: logmark.Runtime) -> None:
    session = memory.session("s")
    projection = InMemory(session)
    thread = threading.Thread(target=projection.run, daemon=True)
    thread.start()
    session.append("x", 1)
    eventually(lambda: projection.seq == 1, SOON)
    memory.close()
    thread.join(SOON)
    assert not thread.is_alive()

    with logmark.open("memory:") as other:
        session = other.session("s")
        failing, raised = InMemory(session), threading.Event()

        def run() -> None:
            with contextlib.suppress(ProjectionHalted):
                failing.run()
                return
            raised.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        session.append("x", "poison")
        assert raised.wait(SOON)
        thread.join(SOON)


def test_what_another_process_appends_is_projected(tmp_path: Path) -> None:
    with logmark.open(str(tmp_path / "store")) as runtime, logmark.open(str(tmp_path / "store")) as other:
        projection = Lines(runtime.session("s"), tmp_path / "view")
        thread = threading.Thread(target=projection.run, daemon=True)
        thread.start()
        for n in range(20):
            other.session("s").append("x", n)
        eventually(lambda: projection.seq == 20, SOON)
        projection.close()
        thread.join(SOON)
        assert (tmp_path / "view").read_text() == fold(other.session("s"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_so_and_keeps_the_parents_lock(kind: Kind, tmp_path: Path) -> None:
    with logmark.open(str(tmp_path / "store")) as runtime:
        session = runtime.session("s")
        session.append("x", 1)
        with kind.make(session) as projection:
            projection.catch_up()
            child = os.fork()
            if child == 0:
                try:
                    projection.catch_up()
                except ForkedRuntime:
                    if kind.name != "sqlite":  # whose connections belong to the process that opened them
                        projection.close()
                    os._exit(0)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            if kind.name != "sqlite":
                with kind.make(session) as other, pytest.raises(ProjectionBusy):
                    other.catch_up()
            session.append("x", 2)
            assert projection.catch_up() == 2
