"""Views on disks that fail, and in processes that are killed: no row is lost, doubled or skipped."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Envelope, FileProjection, ObjectProjection, Session, SqliteProjection
from logmark.errors import (
    StorageUnavailable,
)
from logmark.testing import FaultyFiles

SOON = 20.0
WORKER = Path(__file__).parent / "workers" / "project_until_killed.py"


class Lines(FileProjection):
    commit_events_max = 7

    def apply(self, event: Envelope) -> None:
        self.write(f"{event.event_seq} ")
        self.write(f"{event.payload}\n".encode())


class Table(SqliteProjection):
    commit_events_max = 7
    tables = {"line": "CREATE TABLE line (seq INTEGER, text TEXT); CREATE INDEX line_text ON line (text)"}  # noqa: RUF012

    def apply(self, event: Envelope) -> None:
        self.db.execute("INSERT INTO line VALUES (?, ?)", (event.event_seq, f"{event.event_seq} {event.payload}\n"))


class Value(ObjectProjection):
    commit_events_max = 7

    def initial(self) -> Any:
        return {"lines": [], "sum": 0}

    def apply(self, event: Envelope) -> None:
        self.state["lines"].append(f"{event.event_seq} {event.payload}\n")


def view(kind: str, path: Path) -> str:
    """Return what is in a view, read past the projection."""
    if kind == "file":
        return path.read_text()
    if kind == "sqlite":
        with contextlib.closing(sqlite3.connect(path)) as db:
            return "".join(row[0] for row in db.execute("SELECT text FROM line ORDER BY rowid"))
    return "".join(json.loads(path.read_bytes())["body"]["state"]["lines"])


def make(kind: str, session: Session, path: Path) -> Lines | Table | Value:
    if kind == "sqlite":
        return Table(session, path, "view")
    return Lines(session, path) if kind == "file" else Value(session, path)


def fold(session: Session) -> str:
    return "".join(f"{event.event_seq} {event.payload}\n" for event in session.read())


# -- disks and deaths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Lines, Value])
def test_any_operation_may_fail_or_be_the_last(kind: type[Lines | Value]) -> None:
    """Each operation on the view's files in turn: it fails once; or power is lost right before it."""
    with logmark.open("memory:") as runtime:
        session = runtime.session("s")
        session.append_many([("x", n) for n in range(9)])
        wanted = fold(session)

        def attempt(files: FaultyFiles) -> None:
            with kind(session, "/view", files=files) as projection:
                projection.catch_up()

        def found(files: FaultyFiles) -> str:
            data = files.read(fd := files.open("/view", write=False), 10**6, 0)
            files.close(fd)
            return data.decode() if kind is Lines else "".join(json.loads(data)["body"]["state"]["lines"])

        probe = FaultyFiles()
        attempt(probe)
        written = [(each.name, each.path) for each in probe.operations if each.name in {"write", "sync", "rename"}]
        if kind is Lines:  # the view is on the disk before a checkpoint says so
            for at, (name, _) in enumerate(written):
                if name == "rename":
                    of_view = [each for each, path in written[:at] if path == "/view"]
                    assert of_view[-1] == "sync"
        kinds = {operation.name for operation in probe.operations}
        assert kinds >= {"open", "write", "sync", "rename", "sync_dir", "lock"}
        for name in sorted(kinds):
            count = sum(operation.name == name for operation in probe.operations)
            for n in range(1, count + 1):
                files = FaultyFiles()
                files.fail(name, n=n)
                with contextlib.suppress(StorageUnavailable, OSError):
                    attempt(files)
                attempt(files)
                assert found(files) == wanted, (name, n, "fails")

                files = FaultyFiles()
                files.crash(name, n=n)
                with contextlib.suppress(BaseException):
                    attempt(files)
                files.power_cut()
                attempt(files)
                assert found(files) == wanted, (name, n, "power")


ROUNDS = int(os.environ.get("LOGMARK_PROJECTION_ROUNDS", "3"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "sqlite", "object"])
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_at_random_no_row_is_lost_doubled_or_skipped(kind: str, tmp_path: Path) -> None:
    """Row 25 with real deaths; ``LOGMARK_PROJECTION_ROUNDS=200`` for the long version."""
    choice = random.Random(7)
    store = str(tmp_path / "store")
    with logmark.open(store) as runtime:
        session = runtime.session("s")
        for _ in range(ROUNDS):
            session.append_many([("x", n) for n in range(choice.randrange(5, 60))])
            worker = subprocess.Popen(
                [sys.executable, str(WORKER), kind, store, str(tmp_path / "view")],
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
            )
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
            for _ in range(choice.randrange(12)):
                session.append("x", choice.random())
            worker.kill()
            worker.stdout.close()
            worker.wait(SOON)
        with make(kind, session, tmp_path / "view") as projection:
            assert projection.catch_up() == session.last_seq
        assert view(kind, tmp_path / "view") == fold(session)
