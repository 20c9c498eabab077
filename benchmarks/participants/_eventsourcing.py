"""The eventsourcing library's SQLite recorder for applications."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from ._base import Caller, Events, Missing, Participant, Payload, Tally
from ._packages import need

__all__ = ["EventSourcing"]

_FULL = 2
_TOPIC = "message.created"


class _Stream:
    """The version of one aggregate, kept by the program as the library's repositories do."""

    def __init__(self, originator_id: uuid.UUID) -> None:
        self.originator_id = originator_id
        self.lock = threading.Lock()
        self.version = 0


class _RecorderCaller(Caller):
    def __init__(self, recorder: Any, stored_event: Any, stream: _Stream) -> None:
        self._recorder = recorder
        self._stored_event = stored_event
        self._stream = stream

    def append(self, payload: Payload) -> int:
        return self.append_batch((payload,))

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        states, stream = [orjson.dumps(payload) for payload in payloads], self._stream
        with stream.lock:
            events = [
                self._stored_event(
                    originator_id=stream.originator_id, originator_version=version, topic=_TOPIC, state=state
                )
                for version, state in enumerate(states, stream.version + 1)
            ]
            self._recorder.insert_events(events)
            stream.version += len(events)
            return stream.version


class EventSourcing(Participant):
    """An aggregate for each session. A lock for each spares the callers conflicts of versions."""

    name = "eventsourcing"
    label = "eventsourcing, SQLite recorder"

    def __init__(self) -> None:
        self._module = need("eventsourcing.sqlite", "eventsourcing")
        self._stored_event = need("eventsourcing.persistence", "eventsourcing").StoredEvent
        self._datastore: Any = None
        self._recorder: Any = None
        self._streams: dict[str, _Stream] = {}
        self._mutex = threading.Lock()

    def open(self, directory: str) -> None:
        """Make the table, and see that the library's connections sync each commit."""
        # One connection for each of the callers; a smaller pool makes them time out.
        path = os.path.join(directory, "events.db")
        self._datastore = self._module.SQLiteDatastore(path, lock_timeout=60, pool_size=128, pool_timeout=60)
        self._recorder = self._module.SQLiteApplicationRecorder(self._datastore)
        self._recorder.create_table()
        with self._datastore.transaction(commit=False) as cursor:
            cursor.execute("PRAGMA synchronous")
            if cursor.fetchone()[0] != _FULL:
                raise Missing("SQLite is built not to sync each commit in WAL mode, and the library sets nothing")

    def caller(self, session_id: str) -> Caller:
        """Share the recorder."""
        return _RecorderCaller(self._recorder, self._stored_event, self._stream(session_id))

    def _stream(self, session_id: str) -> _Stream:
        with self._mutex:
            stream = self._streams.get(session_id)
            if stream is None:
                stream = self._streams[session_id] = _Stream(uuid.uuid5(uuid.NAMESPACE_OID, session_id))
            return stream

    def tally(self, session_id: str) -> Tally:
        """Read every version."""
        versions = [seq for seq, _ in self._events(session_id, 1, 1000)]
        return Tally(len(set(versions)), min(versions, default=0), max(versions, default=0))

    def _events(self, session_id: str, from_seq: int, ahead: int) -> Iterator[tuple[int, bytes]]:
        originator_id, after = self._stream(session_id).originator_id, from_seq - 1
        while events := self._recorder.select_events(originator_id, gt=after, limit=ahead):
            for event in events:
                yield event.originator_version, event.state
            after = events[-1].originator_version

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Select the events in portions, as the library returns lists."""
        for version, state in self._events(session_id, from_seq, ahead):
            yield version, orjson.loads(state)

    def close(self) -> None:
        """Close the connections."""
        if self._datastore is not None:
            self._datastore.close()
            self._datastore = None
