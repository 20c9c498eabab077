"""Records and snapshots of a NATS store: the last message of a subject of their own."""

from __future__ import annotations

import dataclasses
import time
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from ..protocol import Limits, LockTimeout, LogCorrupt, RecordChanged, StorageUnavailable, crc32
from ._nats_append import Overtaken, Publisher, Undone, Unsure
from ._nats_message import FORMAT_VERSION, Commit, State, Stored, record_subject, subject_token
from ._nats_reader import Reader, deleted
from ._nats_stream import Stream
from ._sealed import sealed, unsealed
from ._store import Record, Snapshot

__all__ = ["Records"]


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """The last message of a record's subject; ``at`` is 0 when there is none."""

    at: int
    record: Record | None


class Records:
    """What is kept beside the logs. Safe from any thread.

    Args:
        publisher: stores messages.
        stream: of the store.
        reader: of the store.
        limits: lock_wait_s and server_wait_s count.
        store: the store's URL, for errors.
    """

    def __init__(self, publisher: Publisher, stream: Stream, reader: Reader, *, limits: Limits, store: str) -> None:
        self._publisher = publisher
        self._stream = stream
        self._reader = reader
        self._limits = limits
        self._store = store

    def _check(self, session_id: str) -> State:
        state = self._reader.state(session_id)
        if state.deleted_at is not None:
            raise deleted(session_id, state)
        return state

    # -- records ----------------------------------------------------------------------------------------------------

    def load(self, session_id: str, name: str) -> Record | None:
        """See ``EventStore.load_record``."""
        self._check(session_id)
        return self._kept(session_id, name).record

    def all(self, session_id: str) -> dict[str, Record]:
        """See ``EventStore.records``."""
        self._check(session_id)
        prefix = f"logmark.{self._stream.name}.r.{subject_token(session_id)}."
        subjects = self._reader.asked(lambda _: list(self._stream.subjects(f"{prefix}*")))
        names = sorted(unquote_to_bytes(subject.removeprefix(prefix)).decode() for subject in subjects)
        kept = {name: self._kept(session_id, name).record for name in names}
        return {name: record for name, record in kept.items() if record is not None}

    def save(self, session_id: str, name: str, data: bytes | None, *, version: int) -> int:
        """See ``EventStore.save_record``."""
        deadline = time.monotonic() + self._limits.lock_wait_s + self._limits.server_wait_s
        self._check(session_id)
        subject = record_subject(self._stream.name, "r", session_id, name)
        while True:
            kept = self._kept(session_id, name)
            found = 0 if kept.record is None else kept.record.version
            if found != version:
                raise RecordChanged(session_id=session_id, name=name, version=found)
            if data is None and kept.record is None:
                return 0
            message_id = self._publisher.new_id()
            new = 0 if data is None else version + 1
            body = _encode(subject, {"id": message_id, "version": new}, data or b"")
            self._check_size(body)
            try:
                self._publisher.publish(
                    subject,
                    body,
                    message_id,
                    after=kept.at,
                    deadline=deadline,
                    rollup=True,
                )
            except Overtaken:
                if time.monotonic() >= deadline:
                    waited_s = self._limits.lock_wait_s + self._limits.server_wait_s
                    raise LockTimeout(session_id=session_id, waited_s=waited_s, holder_pid=None) from None
            except (Undone, Unsure) as error:
                raise StorageUnavailable(store=self._store, reason=str(error)) from error
            else:
                return new

    def _check_size(self, body: bytes) -> None:
        room = self._stream.message_bytes_max - 1024  # for headers
        if len(body) > room:
            reason = f"it has {len(body)} bytes, and a message may have {room} (max_payload of the server)"
            raise StorageUnavailable(store=self._store, reason=reason)

    def _kept(self, session_id: str, name: str) -> _Kept:
        subject = record_subject(self._stream.name, "r", session_id, name)
        stored = self._reader.asked(lambda deadline: self._stream.last(subject, deadline=deadline))
        if stored is None:
            return _Kept(0, None)
        found = _decode(stored)
        if found is None:
            reason = f"record {name!r} (message {stored.seq} of the stream) is damaged"
            raise LogCorrupt(session_id=session_id, reason=reason, event_seq=None, segment=None, offset=None)
        members, data = found
        return _Kept(stored.seq, Record(data, members["version"]) if members["version"] else None)

    # -- snapshots --------------------------------------------------------------------------------------------------

    def load_snapshot(self, session_id: str, name: str, state: State) -> Snapshot | None:
        """See ``EventStore.load_snapshot``; the session may be read."""
        subject = record_subject(self._stream.name, "s", session_id, name)
        stored = self._reader.asked(lambda deadline: self._stream.last(subject, deadline=deadline))
        found = None if stored is None else _decode(stored)
        if found is None:
            return None
        members, data = found
        seq = members["seq"]
        if seq > state.seq or members["commit"] != self._commit_of(session_id, seq, state):
            return None
        return Snapshot(seq, data)

    def save_snapshot(self, session_id: str, name: str, snapshot: Snapshot, state: State) -> str | None:
        """Keep a snapshot, or return why it is not kept.

        Raises:
            StorageUnavailable: the server did not take it.
        """
        if not 1 <= snapshot.seq <= state.seq or state.deleted_at is not None:
            return f"event {snapshot.seq} is not in the log"
        commit_id = self._commit_of(session_id, snapshot.seq, state)
        if commit_id is None:
            return f"event {snapshot.seq} is not in the log"
        subject = record_subject(self._stream.name, "s", session_id, name)
        body = _encode(subject, {"seq": snapshot.seq, "commit": commit_id}, snapshot.data)
        self._check_size(body)
        self._reader.asked(lambda deadline: self._stream.put(subject, body, deadline=deadline))
        return None

    def _commit_of(self, session_id: str, seq: int, state: State) -> str | None:
        """Return the id of the message that has an event, by which a log is told from another one."""
        if seq < state.first_available:
            return None
        at = self._reader.locate(session_id, seq, state)
        stored = None if at is None else self._reader.asked(lambda deadline: self._stream.at(at, deadline=deadline))
        commit = None if stored is None else Commit.decode(stored, session_id)
        return None if commit is None or not commit.has_events or commit.before >= seq else commit.id


def _encode(subject: str, members: dict[str, Any], data: bytes) -> bytes:
    seed = crc32(subject.encode())
    head = {"logmark": FORMAT_VERSION, **members, "data": f"{crc32(data, seed):08x}"}
    return sealed(orjson.dumps(head)[:-1], seed) + data


def _decode(stored: Stored) -> tuple[dict[str, Any], bytes] | None:
    """Return the members and the data of a message, or None when it is damaged or of another version."""
    line, newline, data = stored.body.partition(b"\n")
    seed = crc32(stored.subject.encode())
    members = unsealed(line, seed) if newline else None
    if members is None or members.get("logmark") != FORMAT_VERSION or members["data"] != f"{crc32(data, seed):08x}":
        return None
    return members, data
