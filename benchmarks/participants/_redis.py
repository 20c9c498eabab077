"""Redis Streams, with every answer after a sync of the append-only file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import orjson

from ._base import Caller, Events, Participant, Payload, Tally
from ._group import GroupCaller, GroupWriter
from ._packages import need, need_command
from ._server import Server

__all__ = ["RedisStreams"]


def _number(entry_id: bytes) -> int:
    """Return the part of an entry id that counts, as ids are 0-1, 0-2, 0-3."""
    return int(entry_id.partition(b"-")[2])


class _StreamCaller(GroupCaller):
    def __init__(self, client: Any, writer: GroupWriter, session_id: str) -> None:
        super().__init__(writer, session_id)
        self._client = client
        self._key = session_id

    def append(self, payload: Payload) -> int:
        return _number(self._client.xadd(self._key, {"e": orjson.dumps(payload)}, id="0-*"))

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        pipe = self._client.pipeline(transaction=True)
        for payload in payloads:
            pipe.xadd(self._key, {"e": orjson.dumps(payload)}, id="0-*")
        return _number(pipe.execute()[-1])

    def close(self) -> None:
        self._client.close()


class RedisStreams(Participant):
    """A stream for each session; the server gives dense numbers when an id is asked for as ``0-*``."""

    name = "redis"
    label = "Redis Streams, appendfsync always"
    has_submit = True

    def __init__(self) -> None:
        self._module = need("redis", "redis")
        self._program = need_command("redis-server", "apt-get install redis-server brings it", "/usr/sbin", "/usr/bin")
        self._socket = ""
        self._server: Server | None = None
        self._reading: Any = None
        self._writer: GroupWriter | None = None
        self._writing: Any = None

    def open(self, directory: str) -> None:
        """Start a server on a socket in the directory."""
        self._socket = os.path.join(directory, "redis.sock")
        options = {
            "port": "0",
            "unixsocket": self._socket,
            "unixsocketperm": "700",
            "dir": directory,
            "appendonly": "yes",
            "appendfsync": "always",
            "auto-aof-rewrite-percentage": "0",
            "save": "",
            "daemonize": "no",
        }
        command = [self._program, *(word for name, value in options.items() for word in (f"--{name}", value))]
        self._server = Server(command, directory, self._is_up)
        self._reading, self._writing = self._connect(), self._connect()
        self._writer = GroupWriter(self._commit)

    def _connect(self) -> Any:
        return self._module.Redis(unix_socket_path=self._socket)

    def _is_up(self) -> bool:
        client = self._connect()
        try:
            return bool(client.ping())
        except self._module.RedisError:
            return False
        finally:
            client.close()

    def _commit(self, groups: dict[str, list[bytes]]) -> dict[str, int]:
        pipe = self._writing.pipeline(transaction=False)
        for session_id, payloads in groups.items():
            for payload in payloads:
                pipe.xadd(session_id, {"e": payload}, id="0-*")
        ids = iter(pipe.execute())
        return {
            session_id: [_number(next(ids)) for _ in payloads][0] - 1  # noqa: RUF015 - all are to be taken
            for session_id, payloads in groups.items()
        }

    def caller(self, session_id: str) -> Caller:
        """Give each thread a connection."""
        if self._writer is None:
            raise RuntimeError("not open")
        return _StreamCaller(self._connect(), self._writer, session_id)

    def tally(self, session_id: str) -> Tally:
        """Ask for the length and both ends."""
        count = self._reading.xlen(session_id)
        first = self._reading.xrange(session_id, count=1)
        last = self._reading.xrevrange(session_id, count=1)
        return Tally(count, _number(first[0][0]) if first else 0, _number(last[0][0]) if last else 0)

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Read in pages."""
        loads = orjson.loads
        while entries := self._reading.xrange(session_id, min=f"0-{from_seq}", count=ahead):
            for entry_id, fields in entries:
                from_seq = _number(entry_id)
                yield from_seq, loads(fields[b"e"])
            from_seq += 1

    def close(self) -> None:
        """Stop the server."""
        if self._writer is not None:
            self._writer.stop()
            self._writer = None
        for client in (self._reading, self._writing):
            if client is not None:
                client.close()
        if self._server is not None:
            self._server.stop()
            self._server = None
