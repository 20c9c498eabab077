"""The SQLite engine's connections: one that writes, some that read, none that is carried across a fork.

A process must not use, nor even close, a connection that was opened before it was forked (SQLite documentation, *How To
Corrupt An SQLite Database File*, 2.6), and the locks that SQLite believes to hold would be inherited too. So a fork
waits until no thread is inside SQLite, the connections are closed before it, and opened again when they are needed.

A checkpoint runs while the write lock is held, and never otherwise: before version 3.51.3 of SQLite, one that meets the
commit of another connection may make it believe that frames of the new log were copied (SQLite documentation,
*Write-Ahead Logging*, "The WAL-Reset Bug"), and the transactions in them would be lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import threading
import urllib.parse
import weakref
from collections.abc import Callable, Generator
from typing import TypeVar

from ..protocol import Clock, ForkedRuntime, StorageUnavailable
from ._logging import get_logger
from ._patience import WouldWait, may_wait
from ._sqlite_schema import SchemaRefused, holds_store, is_current, migrate

__all__ = ["BUSY", "CommitUncertain", "Database", "DatabaseBusy", "errno_of", "primary_code"]

T = TypeVar("T")

_log = get_logger(actor="store")

_POLL_S_MIN = 0.0002
_POLL_S_MAX = 0.005
_FORK_WAIT_S = 5.0
_IDLE_READERS_MAX = 4
_CACHE_KIB = 8192
_WAL_BYTES_KEPT = 64 * 1024 * 1024
_CHECKPOINT_BYTES = 4 * 1024 * 1024
_COMMIT_BYTES = 3 * 4096  # the least that a commit writes: a page of events, one of ids, one of sessions
_WRITE_LOCK_BYTE = "120"  # of the -shm file: UNIX_SHM_BASE, the first of the WAL locks
BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
"""Result codes that say that somebody else has a lock."""
_CERTAIN = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY})  # of a COMMIT: its last frame was not written
_ERRNO = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_AUTH: errno.EACCES,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}


class DatabaseBusy(Exception):
    """The write lock did not come free; who holds it, as far as it can be told."""

    def __init__(self, waited_s: float, holder_pid: int | None) -> None:
        self.waited_s = waited_s
        self.holder_pid = holder_pid
        super().__init__(waited_s, holder_pid)


class CommitUncertain(Exception):
    """COMMIT failed in a way that leaves open whether the transaction is there."""


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, 0 when the error is not SQLite's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def errno_of(error: sqlite3.Error) -> int | None:
    """Return the ``errno`` that says most nearly the same."""
    return _ERRNO.get(primary_code(error))


class _Forks:
    """Lets a fork wait for the threads that are inside SQLite, and those outside wait for the fork."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forking = False
        self.creating = threading.Lock()
        """Held while a file or connection is made: closing any descriptor of a file drops the process's locks on it."""
        self.databases: weakref.WeakSet[Database] = weakref.WeakSet()

    def __enter__(self) -> None:
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *_exc: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._forking:
                self._changed.notify_all()

    def before(self) -> None:
        """Close every connection; one that is busy for too long is left, and the child never touches it."""
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._forking = True
            quiet = self._changed.wait_for(lambda: self._inside == 0, _FORK_WAIT_S)
        if quiet:
            for database in list(self.databases):
                database.drop_connections()

    def after_in_parent(self) -> None:
        """Go on."""
        with self._changed:
            self._forking = False
            self._changed.notify_all()

    def after_in_child(self) -> None:
        """Start anew: whoever was inside, or waited, is a thread of the parent."""
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._forking = False
        self.creating = threading.Lock()
        for database in list(self.databases):
            database.abandon()
        self.databases = weakref.WeakSet()


_forks = _Forks()
_abandoned: list[sqlite3.Connection] = []  # of the parent, which a child must not even close
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_forks.before, after_in_parent=_forks.after_in_parent, after_in_child=_forks.after_in_child
    )


class Database:
    """A database file. Safe from any thread; what may block waits at most ``lock_wait_s``.

    Raises:
        StorageUnavailable: it cannot be opened, is none, is another program's, or is of a newer version.
    """

    def __init__(self, path: str, *, url: str, clock: Clock, lock_wait_s: float, durability: str, create: bool) -> None:
        self.path = path
        self.url = url
        self._clock = clock
        self._lock_wait_s = lock_wait_s
        self._synchronous = "FULL" if durability == "fsync" else "NORMAL"
        self._pid = os.getpid()
        self._closed = False
        self._immutable = False
        self._identity: tuple[int, int] | None = None
        self._write_mutex = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._level = self._synchronous
        self._grown_bytes = 0
        self._idle: list[sqlite3.Connection] = []
        self._mutex = threading.Lock()
        self.generation = 0
        """Counts how often another file was found in the place of the one that was open."""
        with self._typed_opening():
            self._open(create=create)
        _forks.databases.add(self)

    # -- opening ------------------------------------------------------------------------------------------------

    def _open(self, *, create: bool) -> None:
        if create:
            self._create_file()
        self._identity = self._look()
        with _forks:
            writable = self._can_write()
            if not writable:
                # Without a write-ahead log there is nothing to be missed, and on a medium that takes no writes SQLite
                # could not even make the index of one.
                self._immutable = not os.path.exists(self.path + "-wal")
            connection = self._connect()
            try:
                if not is_current(connection):
                    is_older = holds_store(connection)
                    if not create and not is_older:
                        message = "there is no store in it"
                        raise SchemaRefused(message)
                    if is_older and not writable:
                        message = (
                            "its tables are of an older version, and it cannot be written to bring them up to date"
                        )
                        raise SchemaRefused(message)
                    self._make_tables(connection)
                self._use_wal(connection)
                self._for_writing(connection)
                if writable:
                    # What was found in the log of a process that died may be in the page cache only, after a sync
                    # that failed: copying it makes it durable before anybody is told of it. Whoever has the lock now
                    # has found nothing of the kind.
                    self._checkpoint(connection)
            except BaseException:
                connection.close()
                raise
            self._writer = connection

    def _create_file(self) -> None:
        """Make an empty file for its owner only; SQLite gives its companions the same mode."""
        folder = os.path.dirname(self.path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with _forks.creating:
            try:
                fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                return
            os.close(fd)
        with contextlib.suppress(OSError):  # where directories cannot be synced, SQLite does not either
            fd = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _look(self) -> tuple[int, int]:
        found = os.stat(self.path)
        if not stat.S_ISREG(found.st_mode):
            raise StorageUnavailable(store=self.url, reason="it is no regular file", errno=errno.EINVAL)
        return found.st_dev, found.st_ino

    def _can_write(self) -> bool:
        return os.access(self.path, os.W_OK) and os.access(os.path.dirname(self.path), os.W_OK)

    def _connect(self) -> sqlite3.Connection:
        with _forks.creating:
            connection = sqlite3.connect(
                f"file:{urllib.parse.quote(self.path)}?{'immutable=1' if self._immutable else 'mode=rw'}",
                uri=True,
                timeout=self._lock_wait_s,
                isolation_level=None,
                check_same_thread=False,
            )
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA fullfsync = 1")  # elsewhere than on macOS it is what fsync does anyway
        connection.execute("PRAGMA checkpoint_fullfsync = 1")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_KEPT}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def _for_writing(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Have the connection not wait inside SQLite: whoever waits for the write lock does so outside."""
        connection.execute("PRAGMA busy_timeout = 0")
        self._level = self._synchronous
        return connection

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of no effect where there are tables already
        self._use_wal(connection)
        connection.execute("BEGIN IMMEDIATE")
        try:
            migrate(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        if self._immutable:
            return
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            message = f"SQLite keeps no write-ahead log there (journal mode {mode}); use a local disk"
            raise SchemaRefused(message)

    @contextlib.contextmanager
    def _typed_opening(self) -> Generator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StorageUnavailable(store=self.url, reason="there is no store here", errno=errno.ENOENT) from error
        except SchemaRefused as error:
            raise StorageUnavailable(store=self.url, reason=str(error)) from error
        except StorageUnavailable:
            raise
        except OSError as error:
            reason = f"cannot be opened: {error.strerror or error}"
            raise StorageUnavailable(store=self.url, reason=reason, errno=error.errno) from error
        except sqlite3.Error as error:
            reason = f"cannot be opened: {error}"
            raise StorageUnavailable(store=self.url, reason=reason, errno=errno_of(error)) from error

    # -- writing ------------------------------------------------------------------------------------------------

    def transact(self, work: Callable[[sqlite3.Connection], T], *, synced: bool = True) -> T:
        """Call ``work`` inside a write transaction, which is rolled back unless it has called ``commit``.

        Args:
            work: writes, and commits.
            synced: False for what may be lost with the machine; its commit does not wait for the disk.

        Raises:
            WouldWait: somebody else writes, and this thread must not wait.
            DatabaseBusy: another connection kept the lock.
            sqlite3.Error, CommitUncertain: what SQLite, or ``commit``, raised.
            OSError: there is no file any more.
        """
        if not self._write_mutex.acquire(blocking=may_wait()):
            raise WouldWait
        try:
            deadline: float | None = None
            began = 0.0
            poll_s = _POLL_S_MIN
            while True:
                with _forks:
                    connection = self._usable_writer()
                    self._set_level(connection, self._synchronous if synced else "NORMAL")
                    if self._begin(connection):
                        try:
                            return work(connection)
                        finally:
                            self._end(connection)
                            self._checkpoint_when_due()
                if not may_wait():
                    raise WouldWait
                now = self._clock.monotonic()
                if deadline is None:
                    began, deadline = now, now + self._lock_wait_s
                elif now >= deadline:
                    raise DatabaseBusy(now - began, self._holder_pid())
                self._clock.sleep(min(poll_s, max(deadline - now, _POLL_S_MIN)))
                poll_s = min(poll_s * 2, _POLL_S_MAX)
        finally:
            self._write_mutex.release()

    def _set_level(self, connection: sqlite3.Connection, level: str) -> None:
        """Say how the next transaction of the writer is synced, which SQLite takes outside of transactions only."""
        if self._level != level:
            connection.execute(f"PRAGMA synchronous = {level}")
            self._level = level

    def _begin(self, connection: sqlite3.Connection) -> bool:
        """Take the write lock; False when somebody has it."""
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if primary_code(error) in BUSY:
                return False
            self._drop_writer()
            raise
        return True

    def _end(self, connection: sqlite3.Connection) -> None:
        """Leave no transaction open; a connection that cannot even roll back is dropped."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._drop_writer()

    def grow(self, rows_bytes: int) -> None:
        """Note that a transaction writes rows of so many bytes; how many pages that takes is a guess."""
        self._grown_bytes += rows_bytes + rows_bytes // 4

    def _checkpoint_when_due(self) -> None:
        """Copy the log into the database once this process has added enough to it.

        The file's size says nothing, as it is written again from its start. What could not be done now is tried after
        the next commit, and what other processes add is their business, at the latest when they open the store again.
        """
        try:
            if self._writer is not None and self._grown_bytes >= _CHECKPOINT_BYTES:
                self._checkpoint(self._writer)
        except (OSError, sqlite3.Error) as error:  # the commit before it is in the log, and in no doubt
            _log.warning("checkpoint_failed", store=self.url, error=f"{type(error).__name__}: {error}")
            self._drop_writer()

    def _checkpoint(self, writer: sqlite3.Connection) -> None:
        """Copy the log into the database and sync it, unless somebody is writing."""
        try:
            writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if primary_code(error) in BUSY:
                return
            raise
        try:
            other = self._connect()  # none that is inside a transaction can do it
            try:
                self._for_writing(other)
                other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            finally:
                other.close()
            self._grown_bytes = 0
        finally:
            writer.execute("ROLLBACK")

    def commit(self, connection: sqlite3.Connection) -> float:
        """Commit, and return the seconds that it took.

        Raises:
            sqlite3.Error: it did not happen.
            CommitUncertain: nobody knows.
        """
        began = self._clock.monotonic()
        self._grown_bytes += _COMMIT_BYTES
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if primary_code(error) in _CERTAIN:
                raise
            # The frame that commits may be written and not synced. This connection does not count it, but the
            # recovery by another process would.
            self._drop_writer()
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            message = f"commit failed: {error} ({name})"
            raise CommitUncertain(message) from error
        return self._clock.monotonic() - began

    def _usable_writer(self) -> sqlite3.Connection:
        self.check_usable()
        if self._immutable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self._follow_file()
        connection = self._writer
        if connection is None:
            connection = self._writer = self._for_writing(self._connect())
        elif connection.in_transaction:  # an interrupt came between two lines
            connection.execute("ROLLBACK")
        return connection

    def _follow_file(self) -> None:
        """Notice that the file was replaced or taken away: appends to an inode without a name would be lost."""
        identity = self._look()
        if identity != self._identity:
            with self._mutex:
                self.generation += 1
                self._identity = identity
                idle, self._idle = self._idle, []
            for connection in idle:
                connection.close()
            self._drop_writer()

    def _holder_pid(self) -> int | None:
        """Return the process that holds the write lock; for a message, never for a decision."""
        try:
            inode = os.stat(self.path + "-shm").st_ino
            with open("/proc/locks", encoding="ascii") as locks:
                for line in locks:
                    # Number, kind, mode, access, process, device and inode, first and last byte.
                    _, _, _, access, pid, place, first, _ = line.split()[-8:]
                    if (access, place.rpartition(":")[2], first) == ("WRITE", str(inode), _WRITE_LOCK_BYTE):
                        return int(pid) if int(pid) > 0 else None
        except (OSError, ValueError):
            return None
        return None

    # -- reading ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reader(self) -> Generator[sqlite3.Connection]:
        """Lend a connection for statements that are finished when it is given back.

        Raises:
            sqlite3.Error, OSError: it cannot be opened.
        """
        with _forks:
            self.check_usable()
            self._follow_file()
            with self._mutex:
                generation = self.generation
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = self._connect()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            with self._mutex:
                keep = not self._closed and generation == self.generation and len(self._idle) < _IDLE_READERS_MAX
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def check_usable(self) -> None:
        """Raise unless the database is open and was opened by this process."""
        if self._pid != os.getpid():
            raise ForkedRuntime(owner_pid=self._pid, pid=os.getpid())
        if self._closed:
            raise StorageUnavailable(store=self.url, reason="the store is closed")

    # -- the end ------------------------------------------------------------------------------------------------

    def _drop_writer(self) -> None:
        connection, self._writer = self._writer, None
        if connection is not None:
            connection.close()

    def drop_connections(self) -> None:
        """Close the connections, which are opened again when they are needed; nobody may be inside SQLite."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._drop_writer()

    def abandon(self) -> None:
        """Keep, in a forked child, what could not be closed before the fork from ever being touched."""
        _abandoned.extend(self._idle)
        self._idle = []
        if self._writer is not None:
            _abandoned.append(self._writer)
            self._writer = None

    def close(self) -> None:
        """Close the connections, after a transaction that is under way; a second call does nothing."""
        if self._pid != os.getpid():
            return
        self._closed = True
        with self._write_mutex, _forks:
            self.drop_connections()
