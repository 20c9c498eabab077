"""Connections to a PostgreSQL server: shared, with a deadline for every wait, and told apart by how they fail.

psycopg_pool keeps them. What is added here: no call waits longer than its deadline, also when the server has fallen
silent on an open connection; a server that is back is found at once, not when a back-off has run its course; and a
failure says whether anything can have reached the server.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Self, cast

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from ..protocol import Limits
from ._logging import Logger
from ._postgres_url import PostgresUrl

__all__ = ["Connection", "ConnectionLost", "Connections", "ServerTooWeak", "Unreachable", "hang_up", "is_lost"]

_SLICE_S = 0.25  # a pool that has no connection makes its next attempt when somebody asks again
_VERSION_MIN = 130_000
_CHECK_INTERVAL_VERSION = 140_000
_RETRYABLE = (
    psycopg.errors.ReadOnlySqlTransaction,  # the server has become a standby: connect anew to find the other
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)
_GOING = ("08", "57P", "40003")
"""SQLSTATEs of a server that ends the connection, or does not know itself what has become of the transaction."""


class Unreachable(Exception):
    """No connection could be had until the deadline; nothing was sent."""


class ConnectionLost(Exception):
    """The connection went while the server was asked: what it has done with the request is not known.

    Attributes:
        nothing_done: the server itself has said that it has done nothing.
    """

    def __init__(self, reason: str, *, nothing_done: bool = False) -> None:
        self.nothing_done = nothing_done
        super().__init__(reason)


class ServerTooWeak(Exception):
    """The server promises less than was asked of the store."""


class _Silent(psycopg.OperationalError):
    """The server did not answer until the deadline."""


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which no answer is waited for beyond a deadline."""

    deadline: float = math.inf
    was_silent: bool = False
    """The deadline has passed without an answer: whatever is raised, the connection is of no more use."""

    @classmethod
    def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, on_failure: Callable[[Exception], None], **kwargs: Any
    ) -> Self:
        """Connect; what goes wrong is said to ``on_failure`` too, as the pool would keep it to itself."""
        try:
            return super().connect(conninfo, **kwargs)
        except Exception as error:
            on_failure(error)
            raise

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Wait as psycopg does, until the deadline."""
        return super().wait(self._until_deadline(gen), *args, **kwargs)

    def _until_deadline(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > self.deadline:
                    self.was_silent = True
                    raise _Silent("the server has not answered")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


def is_lost(connection: Connection, error: psycopg.Error) -> bool:
    """Say whether to go on with another connection: this one is gone, or leads to a server that cannot do it now.

    An error of the server itself, about the statement, is no such thing: it says that nothing of it was done.
    """
    if connection.closed or connection.broken or connection.was_silent or isinstance(error, _RETRYABLE):
        return True
    if isinstance(error, psycopg.errors.PipelineAborted):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)  # of libpq: it could not send or receive
    return error.sqlstate.startswith(_GOING)


class _QuietPools(logging.Filter):
    """Drops what psycopg_pool logs of logmark's own pools: logmark logs it itself, once and not at each attempt."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args if isinstance(record.args, tuple) else ()
        return not any(isinstance(each, Connection) or str(each).startswith("logmark-") for each in args)


logging.getLogger("psycopg.pool").addFilter(_QuietPools())


class Connections:
    """The connections of one store. Safe from any thread.

    Args:
        url: the server.
        limits: server_wait_s, server_connections_max and lock_wait_s count.
        must_sync: refuse a server whose commits are not on disk when it answers.
        log: gets ``server_lost`` and ``server_reached``.
    """

    def __init__(self, url: PostgresUrl, *, limits: Limits, must_sync: bool, log: Logger) -> None:
        self._url = url
        self._limits = limits
        self._must_sync = must_sync
        self._log = log
        self._mutex = threading.Lock()
        self._failure: Exception | None = None
        self._failed_at = -math.inf
        self._closed = False
        self._was_reached = False
        self._all: list[Connection] = []
        self._pool = ConnectionPool(
            url.conninfo,
            connection_class=Connection,
            kwargs=self._arguments(),
            min_size=0,
            max_size=limits.server_connections_max,
            name=f"logmark-{id(self):x}",
            configure=self._configure,
            open=False,
            timeout=limits.server_wait_s,
            reconnect_timeout=0.0,
            num_workers=2,
        )

    def _arguments(self) -> dict[str, Any]:
        """Return what every connection is made with, as far as the URL does not say otherwise."""
        wait_s = self._limits.server_wait_s
        arguments: dict[str, Any] = {
            "fallback_application_name": "logmark",
            "connect_timeout": max(2, math.ceil(wait_s)),
            "keepalives_idle": max(1, math.ceil(wait_s / 2)),
            "keepalives_interval": max(1, math.ceil(wait_s / 10)),
            "keepalives_count": 3,
            "tcp_user_timeout": max(1000, round(wait_s * 1000)),
        }
        if "PGTARGETSESSIONATTRS" not in os.environ:
            # Of several hosts, the one that takes writes: after a failover it is another one.
            arguments["target_session_attrs"] = "read-write"
        arguments = {name: value for name, value in arguments.items() if name not in self._url.parameters}
        return {**arguments, "autocommit": True, "on_failure": self._note_failure}

    def open(self) -> None:
        """Begin to keep connections; each is made when it is first needed."""
        self._pool.open(wait=False)

    def connect(self, deadline: float) -> Connection:
        """Return a connection that is not of the pool.

        Raises:
            Unreachable: there is no server, or it takes no connection.
            ServerTooWeak: it promises too little.
        """
        arguments = self._arguments()
        if "connect_timeout" in arguments:
            left = math.ceil(max(2.0, deadline - time.monotonic()))
            arguments["connect_timeout"] = min(arguments["connect_timeout"], left)
        try:
            connection = Connection.connect(self._url.conninfo, **arguments)
        except psycopg.Error as error:
            raise Unreachable(_reason(error)) from error
        try:
            self._configure(connection)
        except psycopg.Error as error:
            connection.close()
            raise Unreachable(_reason(error)) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _configure(self, connection: Connection) -> None:
        """Make a new connection ready: with the waits, the isolation and the durability that the engine rests on."""
        limits = self._limits
        version = connection.info.server_version
        if version < _VERSION_MIN:
            message = f"the server is of version {version // 10_000}, and {_VERSION_MIN // 10_000} or later is needed"
            raise self._refused(ServerTooWeak(message))
        settings: dict[str, str] = {
            # The row lock makes the order of numbers that of the commits. It does so under this isolation only: what
            # comes after the wait for the lock has to see what was committed before it.
            "default_transaction_isolation": "read committed",
            "default_transaction_read_only": "off",
            # Every statement goes along an index. A table whose statistics are old must not lead to another plan: one
            # that sorts the rest of a log for each page that is read, for instance.
            "enable_seqscan": "off",
            "enable_bitmapscan": "off",
            "enable_sort": "off",
            "lock_timeout": _milliseconds(limits.lock_wait_s),
            "statement_timeout": _milliseconds(limits.lock_wait_s + limits.server_wait_s),
            # A client that has gone silent in the middle of an append may not keep the others waiting.
            "idle_in_transaction_session_timeout": _milliseconds(limits.server_wait_s),
            "tcp_user_timeout": _milliseconds(limits.server_wait_s),
            "tcp_keepalives_idle": str(max(1, math.ceil(limits.server_wait_s / 2))),
        }
        if not self._must_sync:
            settings["synchronous_commit"] = "off"
        connection.deadline = time.monotonic() + limits.server_wait_s
        if self._must_sync:
            fsync, commit = cast(
                "tuple[str, str]",
                connection.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')").fetchone(),
            )
            self._check_durability(fsync, commit)
            settings["synchronous_commit"] = commit  # of this session: later changes elsewhere do not weaken it
        connection.execute(
            "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS each (name, value)",
            (list(settings), list(settings.values())),
        )
        if version >= _CHECK_INTERVAL_VERSION:
            # A backend that waits for a lock notices that its client is gone; not on every system.
            with contextlib.suppress(psycopg.errors.InvalidParameterValue):
                interval = _milliseconds(max(1.0, limits.server_wait_s / 4))
                connection.execute("SELECT set_config('client_connection_check_interval', %s, false)", (interval,))
        with self._mutex:
            self._all = [each for each in self._all if not each.closed]
            self._all.append(connection)
            is_news = self._failure is not None and self._was_reached
            self._failure, self._was_reached = None, True
        if is_news:
            self._log.info("server_reached", store=self._url.shown)

    def _check_durability(self, fsync: str, synchronous_commit: str) -> None:
        if fsync != "on":
            raise self._refused(
                ServerTooWeak(
                    "the server has fsync = off, so what it acknowledges need not survive a crash of its machine; set"
                    ' fsync = on in postgresql.conf, or open the store with durability="os"'
                )
            )
        if synchronous_commit == "off":
            raise self._refused(
                ServerTooWeak(
                    "the server has synchronous_commit = off, so it acknowledges what is not on its disk yet; set"
                    " synchronous_commit = on (ALTER ROLE or ALTER DATABASE … SET, or options=-csynchronous_commit%3Don"
                    ' in the URL), or open the store with durability="os"'
                )
            )

    def _refused(self, error: Exception) -> Exception:
        self._note_failure(error)
        return error

    def _note_failure(self, error: Exception) -> None:
        """Remember why there is no connection, and log it when there was one before."""
        with self._mutex:
            is_news = self._failure is None and self._was_reached and not self._closed
            self._failure, self._failed_at = error, time.monotonic()
        if is_news:
            self._log.warning("server_lost", store=self._url.shown, reason=_reason(error))

    @contextlib.contextmanager
    def use(self, deadline: float) -> Generator[Connection]:
        """Lend a connection until the end of the block; it is given back without a transaction.

        Raises:
            Unreachable: none could be had until the deadline.
            ConnectionLost: it went in the middle of the block, or the server was silent until the deadline.
            psycopg.Error: the server said no; nothing of the transaction remains.
        """
        connection = self._get(deadline)
        connection.deadline = deadline
        try:
            yield connection
        except psycopg.Error as error:
            if not is_lost(connection, error):
                raise
            connection.close()
            nothing_done = isinstance(error, _RETRYABLE)
            if not nothing_done:
                self._note_failure(error)
            raise ConnectionLost(_reason(error), nothing_done=nothing_done) from error
        finally:
            self._put(connection)

    def _get(self, deadline: float) -> Connection:
        began = time.monotonic()
        while True:
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise PoolTimeout
                return self._pool.getconn(timeout=min(left, _SLICE_S))
            except PoolClosed:
                raise Unreachable("the store is closed") from None
            except PoolTimeout:
                if time.monotonic() < deadline:
                    continue
                with self._mutex:
                    failure = self._failure if self._failed_at >= began else None
                waited = time.monotonic() - began
                if failure is None:
                    size = self._limits.server_connections_max
                    raise Unreachable(
                        f"none of the {size} connections (Limits.server_connections_max) came free in {waited:.3g} s"
                    ) from None
                raise Unreachable(f"the server could not be reached in {waited:.3g} s: {_reason(failure)}") from failure

    def _put(self, connection: Connection) -> None:
        if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE and not connection.closed:
            # An error or an interrupt has left it in a transaction, which ends here without a word to the server that
            # could be waited for: closing it rolls back.
            connection.close()
        self._pool.putconn(connection)

    def close(self) -> None:
        """Close what is idle; what is lent is closed as it comes back."""
        with self._mutex:
            self._closed = True
        self._pool.close(timeout=self._limits.server_wait_s)

    def after_fork_in_child(self) -> None:
        """Let go of the parent's sockets without a word to the server, who would take it for the parent's."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for connection in self._all:
            with contextlib.suppress(psycopg.Error, OSError):
                os.dup2(nothing, connection.pgconn.socket)
        os.close(nothing)
        # The pool's threads do not exist here, and its locks may be held by them for ever: it must not try to end them.
        self._pool._closed = True  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def hang_up(connection: Connection) -> None:
    """End a connection that another thread may be waiting on, which then finds it lost."""
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as side:
        side.shutdown(socket.SHUT_RDWR)


def _milliseconds(seconds: float) -> str:
    return str(min(2**31 - 1, max(1, round(seconds * 1000))))


def _reason(error: Exception) -> str:
    """Return the first lines of what libpq or the server says, as one sentence."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return text or type(error).__name__
