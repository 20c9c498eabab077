"""Projections whose view is tables of an SQLite database, saved in one transaction with their checkpoint."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ._projection import Checkpoint, Projection, Superseded
from .protocol import InvalidArgument, ProjectionBusy, StorageUnavailable

if TYPE_CHECKING:
    from ._session import Session

__all__ = ["SqliteProjection"]

_CHECKPOINTS = "logmark_projection"
_OWN_STATEMENTS = (sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)


class SqliteProjection(Projection):
    """A view that is tables of an SQLite database. ``apply`` executes statements on ``db``.

    Tables and checkpoint are changed in one transaction, so that a crash leaves both as they were. Several processes
    may run the same projection: they take turns. Whoever opens it compares the number of rows of each table with what
    the fold has made; a row that somebody else has changed in place is not noticed, and mended by ``replay``.

    Args:
        session: whose events.
        path: the database, which may hold other tables too; it is made when it is missing.
        name: of the projection; several may share a database under different names.
        from_seq: as for ``Projection``.
        busy_wait_s: how long to wait while another process writes to the database; then ``ProjectionBusy``.
    """

    tables: ClassVar[Mapping[str, str]] = {}
    """The tables of the view: for each its ``CREATE TABLE`` statement, and whatever statements belong to it."""

    def __init__(
        self,
        session: Session,
        path: str | os.PathLike[str],
        name: str,
        *,
        from_seq: int = 1,
        busy_wait_s: float = 10.0,
    ) -> None:
        super().__init__(session, name, from_seq=from_seq)
        if not self.tables:
            raise InvalidArgument(f"{type(self).__name__}.tables names no table")
        self.path: str = os.path.abspath(os.fspath(path))
        self._busy_wait_s = busy_wait_s
        self._db: sqlite3.Connection | None = None
        self._applying = False
        self._saved = ""

    @property
    def db(self) -> sqlite3.Connection:
        """The database; in ``apply``, within the transaction that saves the view, which is not for ``apply`` to end."""
        if self._db is None:
            raise StorageUnavailable(store=self.path, reason=f"projection {self.name!r} is not open; call catch_up")
        return self._db

    def _open(self) -> sqlite3.Connection:
        db = self._db
        if db is None:
            db = sqlite3.connect(
                self.path,
                timeout=self._busy_wait_s,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            db.set_authorizer(self._authorize)
            db.execute("PRAGMA recursive_triggers = ON")  # so that rows taken out by REPLACE are counted too
            db.execute("CREATE TEMP TABLE logmark_count (name TEXT PRIMARY KEY, rows INTEGER NOT NULL)")
            self._db = db
        return db

    def _authorize(self, action: int, *_details: object) -> int:
        """Leave the transaction to the projection."""
        return sqlite3.SQLITE_DENY if self._applying and action in _OWN_STATEMENTS else sqlite3.SQLITE_OK

    # -- the sink -----------------------------------------------------------------------------------------------

    def load(self) -> Checkpoint | None:
        """See ``Projection.load``."""
        try:
            db = self._open()
            self._applying = False
            if db.in_transaction:
                db.execute("ROLLBACK TRANSACTION")
            row: tuple[str] | None = None
            if self._has(db, _CHECKPOINTS):
                row = db.execute(f"SELECT checkpoint FROM {_CHECKPOINTS} WHERE name = ?", (self.name,)).fetchone()  # noqa: S608
            self._saved = "" if row is None else row[0]
            if row is None:
                return None
            checkpoint = Checkpoint.decode(row[0])
            for table in self.tables:
                expected = checkpoint.output.get(table)
                if not self._has(db, table):
                    raise ValueError(f"table {table} is not there")
                (found,) = db.execute(f"SELECT COUNT(*) FROM {_quoted(table)}").fetchone()  # noqa: S608
                if found != expected:
                    raise ValueError(f"table {table} has {found} rows, the checkpoint covers {expected}")
            self._count(db, {table: checkpoint.output[table] for table in self.tables})
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return checkpoint

    def _has(self, db: sqlite3.Connection, table: str) -> bool:
        found = db.execute("SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone()
        return found is not None

    def _count(self, db: sqlite3.Connection, rows: Mapping[str, int]) -> None:
        """Have the rows counted that come and go from here on, by this connection only."""
        for number, (table, count) in enumerate(rows.items()):
            for event, change in (("INSERT", "+ 1"), ("DELETE", "- 1")):
                trigger = f"temp.logmark_{event}_{number}"
                db.execute(f"DROP TRIGGER IF EXISTS {trigger}")
                db.execute(
                    f"CREATE TEMP TRIGGER {trigger.removeprefix('temp.')} AFTER {event} ON main.{_quoted(table)}"  # noqa: S608
                    f" BEGIN UPDATE logmark_count SET rows = rows {change} WHERE name = {_text(table)}; END"
                )
            db.execute("INSERT OR REPLACE INTO temp.logmark_count VALUES (?, ?)", (table, count))

    def begin(self) -> None:
        """See ``Projection.begin``; others see the old view until the new one is saved."""
        try:
            db = self._open()
            if not db.in_transaction:
                db.execute("BEGIN IMMEDIATE TRANSACTION")
            for table, statements in self.tables.items():
                db.execute(f"DROP TABLE IF EXISTS main.{_quoted(table)}")
                for statement in _split(statements):
                    db.execute(statement)
            self._count(db, dict.fromkeys(self.tables, 0))
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def start_commit(self, checkpoint: Checkpoint) -> None:
        """See ``Projection.start_commit``."""
        try:
            db = self._open()
            if db.in_transaction:
                return  # the one in which the view was emptied
            db.execute("BEGIN IMMEDIATE TRANSACTION")
            row = db.execute(f"SELECT checkpoint FROM {_CHECKPOINTS} WHERE name = ?", (self.name,)).fetchone()  # noqa: S608
            if row is None or row[0] != self._saved:
                db.execute("ROLLBACK TRANSACTION")
                raise Superseded
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def start_event(self) -> None:
        """See ``Projection.start_event``."""
        self.db.execute("SAVEPOINT logmark_event")
        self._applying = True

    def end_event(self) -> None:
        """See ``Projection.end_event``."""
        self._applying = False
        self.db.execute("RELEASE SAVEPOINT logmark_event")

    def discard(self) -> bool:
        """See ``Projection.discard``."""
        self._applying = False
        if not self.db.in_transaction:  # SQLite has taken back everything by itself, as when the disk is full
            return False
        self.db.execute("ROLLBACK TRANSACTION TO SAVEPOINT logmark_event")
        self.db.execute("RELEASE SAVEPOINT logmark_event")
        return True

    def save(self, checkpoint: Checkpoint) -> None:
        """See ``Projection.save``."""
        try:
            db = self.db
            if not db.in_transaction:
                db.execute("BEGIN IMMEDIATE TRANSACTION")
            db.execute(
                f"CREATE TABLE IF NOT EXISTS main.{_CHECKPOINTS} (name TEXT PRIMARY KEY, checkpoint TEXT NOT NULL)"
            )
            output: dict[str, Any] = dict(db.execute("SELECT name, rows FROM temp.logmark_count").fetchall())
            text = dataclasses.replace(checkpoint, output=output).encode().decode()
            db.execute(f"INSERT OR REPLACE INTO main.{_CHECKPOINTS} VALUES (?, ?)", (self.name, text))  # noqa: S608
            db.execute("COMMIT TRANSACTION")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._saved = text

    def _failed(self, error: sqlite3.Error) -> StorageUnavailable | ProjectionBusy:
        if getattr(error, "sqlite_errorcode", None) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return ProjectionBusy(session_id=self.session.session_id, name=self.name, path=self.path)
        return StorageUnavailable(store=self.path, reason=f"the view of projection {self.name!r}: {error}")

    def release(self) -> None:
        """Close the database; what was not saved is taken back."""
        db, self._db = self._db, None
        self._applying = False
        if db is not None:
            db.close()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _split(statements: str) -> list[str]:
    """Split SQL into its statements."""
    found: list[str] = []
    rest = ""
    for piece in statements.split(";"):
        rest += piece
        if sqlite3.complete_statement(rest + ";"):
            if rest.strip():
                found.append(rest)
            rest = ""
        else:
            rest += ";"
    if rest.strip(" ;\n"):
        found.append(rest)
    return found
