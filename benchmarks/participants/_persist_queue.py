"""persist-queue's SQLite queue."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from typing import Any

from ._base import Caller, Events, Missing, Participant, Payload, Tally
from ._packages import need

__all__ = ["PersistQueue"]

_FULL = 2


class _QueueCaller(Caller):
    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def append(self, payload: Payload) -> int:
        number: int = self._queue.put(payload)
        return number

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        number = 0
        for payload in payloads:  # it has no call for several
            number = self._queue.put(payload)
        return number


class PersistQueue(Participant):
    """A queue in a database of its own for each session, with the library's JSON serializer."""

    name = "persist-queue"
    label = "persist-queue (SQLite)"
    reads_ahead = True

    def __init__(self) -> None:
        self._module = need("persistqueue", "persist-queue")
        self._json = need("persistqueue.serializers.json", "persist-queue")
        self._directory = ""
        self._queues: dict[str, Any] = {}
        self._mutex = threading.Lock()

    def open(self, directory: str) -> None:
        """Use the directory, if SQLite's default there is to sync each commit."""
        self._directory = directory
        connection = sqlite3.connect(os.path.join(directory, "probe.db"))
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            if connection.execute("PRAGMA synchronous").fetchone()[0] != _FULL:
                raise Missing("SQLite is built not to sync each commit in WAL mode, and the library sets nothing")
        finally:
            connection.close()

    def _queue(self, session_id: str) -> Any:
        with self._mutex:
            queue = self._queues.get(session_id)
            if queue is None:
                path = os.path.join(self._directory, session_id)
                queue = self._module.SQLiteQueue(
                    path, multithreading=True, auto_commit=True, serializer=self._json, timeout=60
                )
                self._queues[session_id] = queue
            return queue

    def caller(self, session_id: str) -> Caller:
        """Share the session's queue, which locks for itself."""
        return _QueueCaller(self._queue(session_id))

    def tally(self, session_id: str) -> Tally:
        """Count what waits in the queue."""
        numbers = [seq for seq, _ in self.replay(session_id)]
        return Tally(len(set(numbers)), min(numbers, default=0), max(numbers, default=0))

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """List the queue, which the library decodes whole."""
        for row in self._queue(session_id).queue():
            if row["id"] >= from_seq:
                yield row["id"], row["data"]

    def close(self) -> None:
        """Close the queues."""
        for queue in self._queues.values():
            queue.close()
        self._queues.clear()
