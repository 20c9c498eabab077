"""Run a projection of one kind until somebody kills this process: KIND STORE VIEW."""

from __future__ import annotations

import sys
from typing import Any

import logmark
from logmark import Envelope, FileProjection, ObjectProjection, SqliteProjection


class Lines(FileProjection):
    commit_events_max = 7

    def apply(self, event: Envelope) -> None:
        self.write(f"{event.event_seq} {event.payload}\n")


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


kind, store, path = sys.argv[1:]
with logmark.open(store) as runtime:
    session = runtime.session("s")
    projection = (
        Lines(session, path)
        if kind == "file"
        else Table(session, path, "view")
        if kind == "sqlite"
        else Value(session, path)
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    projection.run()
