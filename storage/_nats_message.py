"""The messages of a NATS store: one for each commit of a session, with the session's whole state after it.

A message's body is text: a first line with a checksum, then the rows of its events as the file engine writes them
(``docs/format.md``). The first line says in ``after`` behind which message of the session it was written, and the
server has compared that (``Nats-Expected-Last-Subject-Sequence``) in one step with storing it. So whatever lacks that
header, or has another number there than in its body, was put there by somebody else: a stray, which counts for nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import orjson

from ..protocol import EncodedEvent, LogCorrupt, RawEnvelope, SchemaMismatch, crc32, encode_rows, row_seed
from ._id_table import id_of_row
from ._sealed import sealed, unsealed
from ._store import HaltRecord, SessionInfo

__all__ = [
    "EMPTY",
    "EXPECTED",
    "FORMAT_VERSION",
    "REPAIR",
    "Commit",
    "State",
    "Stored",
    "encode_commit",
    "record_subject",
    "session_of",
    "session_subject",
    "subject_token",
]

FORMAT_VERSION = 1
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_EVENTS = "events"
_RUN_ROWS = 64
REPAIR = "repair"


def subject_token(text: str) -> str:
    """Return a text as one token of a subject: letters, digits, ``_-~`` as they are, all else as ``%XX``."""
    return quote(text.encode(), safe="").replace(".", "%2E")


@functools.lru_cache(maxsize=4096)
def session_subject(name: str, session_id: str) -> str:
    """Return where the commits of a session are."""
    return f"logmark.{name}.e.{subject_token(session_id)}"


def session_of(subject: str) -> str:
    """Return the session in a subject."""
    return unquote_to_bytes(subject.split(".")[3]).decode()


def record_subject(name: str, kind: str, session_id: str, record: str) -> str:
    """Return where a record (``r``) or a snapshot (``s``) of a session is."""
    return f"logmark.{name}.{kind}.{subject_token(session_id)}.{subject_token(record)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A message as the server has it.

    Attributes:
        seq: its number in the stream, which has nothing to do with those of events.
        expected: which number the server found to be the last of its subject when it stored it; None: it was not asked.
    """

    seq: int
    subject: str
    expected: int | None
    body: bytes


class State(NamedTuple):
    """What is true of a session after one of its messages.

    Attributes:
        at: number in the stream of the session's last message, a stray or not; 0 when it has none.
        said_at: number of the message that says all this.
        seq: number of the last event.
        through: the last number that is used.
        first_seq: number of the first event that can be read, 0 when there is none.
        first_available: the smallest number that may be asked for.
        repair: number in the stream of the last repair's message, 0 when there was none.
    """

    at: int = 0
    said_at: int = 0
    seq: int = 0
    through: int = 0
    first_seq: int = 0
    first_available: int = 1
    halt: tuple[str, str, str | None] | None = None
    sealed: bool = False
    deleted_at: str | None = None
    repair: int = 0

    def members(self) -> dict[str, Any]:
        """Return what the message says of it, without what is as in a new session."""
        said = zip(self._fields[_PLACES:], self[_PLACES:], EMPTY[_PLACES:], strict=True)
        return {name: value for name, value, unsaid in said if value != unsaid or name == "seq"}

    def halt_record(self, session_id: str) -> HaltRecord | None:
        """Return why the session is halted, or None."""
        if self.halt is None:
            return None
        at, reason, event_id = self.halt
        return HaltRecord(session_id=session_id, reason=reason, at=at, first_event_id=event_id)

    def info(self, session_id: str) -> SessionInfo:
        """Return it in the words of the contract."""
        return SessionInfo(
            session_id=session_id,
            last_seq=self.seq,
            next_seq=self.through + 1,
            first_seq=self.first_seq,
            first_available=self.first_available,
            sealed=self.sealed,
            deleted=self.deleted_at is not None,
            halted=None if self.halt is None else self.halt[1],
        )


EMPTY = State()
_PLACES = 2  # what a state begins with: where it was said


@dataclasses.dataclass(frozen=True, slots=True)
class Commit:
    """A message of a session that counts.

    Attributes:
        seq: its number in the stream.
        after: that of the message before it in its session.
        id: of the commit, made by who wrote it.
        kind: ``events``, or what was done to the session.
        before: the last number that was used before it; its events have the numbers behind that.
        state: what is true after it.
        lost: numbers whose events a repair has given up, as ranges.
        body: of the message.
        rows_at: where in it the rows of its events begin.
    """

    seq: int
    after: int
    id: str
    kind: str
    before: int
    state: State
    lost: tuple[tuple[int, int], ...]
    body: bytes
    rows_at: int

    @classmethod
    def decode(cls, stored: Stored, session_id: str) -> Commit | None:
        """Return what a message says, or None for a stray.

        Raises:
            LogCorrupt: it was written as one of this session's, and is damaged.
            SchemaMismatch: it is of another version.
        """
        if stored.expected is None or not stored.body.startswith(b'{"logmark":'):
            return None
        rows_at = stored.body.find(b"\n") + 1
        seed = row_seed(session_id)
        members = unsealed(stored.body[: rows_at - 1], seed) if rows_at else None
        if members is None:
            raise _damaged(session_id, stored, "the checksum of its first line does not match")
        if members["logmark"] != FORMAT_VERSION:
            raise SchemaMismatch(session_id=session_id, expected=FORMAT_VERSION, found=members["logmark"])
        if members["after"] != stored.expected:
            return None
        if f"{crc32(memoryview(stored.body)[rows_at:], seed):08x}" != members["rows"]:
            raise _damaged(session_id, stored, "the checksum of its rows does not match", members.get("from", 0) + 1)
        state = dict(members["state"])
        if "halt" in state:
            state["halt"] = tuple(state["halt"])
        if members["kind"] == REPAIR:
            state["repair"] = stored.seq
        return cls(
            seq=stored.seq,
            after=stored.expected,
            id=members["id"],
            kind=members["kind"],
            before=members["from"],
            state=State(at=stored.seq, said_at=stored.seq, **state),
            lost=tuple((low, high) for low, high in members.get("lost", ())),
            body=stored.body,
            rows_at=rows_at,
        )

    @property
    def has_events(self) -> bool:
        """Whether it is about events at all."""
        return self.rows_at < len(self.body)

    def ids(self) -> list[bytes]:
        """Return the ids of its events."""
        return [id_of_row(line) or b"" for line in self.body[self.rows_at :].split(b"\n")[:-1]]

    def events(self, session_id: str, low: int, high: int) -> Iterator[RawEnvelope]:
        """Yield its events with numbers from ``low`` to ``high``, a few at a time."""
        return RawEnvelope.from_runs(session_id, self._runs(low, high))

    def _runs(self, low: int, high: int) -> Iterator[tuple[int, list[bytes]]]:
        seq, at, end = self.before + 1, self.rows_at, len(self.body)
        lines: list[bytes] = []
        while at < end and seq <= high:
            newline = self.body.index(b"\n", at)
            if seq >= low:
                lines.append(self.body[at:newline])
            seq, at = seq + 1, newline + 1
            if len(lines) == _RUN_ROWS:
                yield seq - len(lines), lines
                lines = []
        if lines:
            yield seq - len(lines), lines


def _damaged(session_id: str, stored: Stored, reason: str, event_seq: int | None = None) -> LogCorrupt:
    text = f"message {stored.seq} of the stream: {reason}"
    return LogCorrupt(session_id=session_id, reason=text, event_seq=event_seq, segment=None, offset=None)


def encode_commit(
    session_id: str,
    commit_id: str,
    *,
    after: int,
    before: int,
    state: State,
    kind: str = _EVENTS,
    events: Sequence[EncodedEvent] = (),
    lost: Sequence[tuple[int, int]] = (),
) -> bytes:
    """Return the body of a message."""
    seed = row_seed(session_id)
    rows = encode_rows(events, before + 1, before + len(events), seed) if events else b""
    members: dict[str, Any] = {
        "logmark": FORMAT_VERSION,
        "session": session_id,
        "id": commit_id,
        "kind": kind,
        "after": after,
        "from": before,
        "state": state.members(),
        "rows": f"{crc32(rows, seed):08x}",
    }
    if lost:
        members["lost"] = lost
    return sealed(orjson.dumps(members)[:-1], seed) + rows
