"""The contract of an event store, and the values it trades in.

A store is the one authority that assigns numbers. Everything above it caches its answers.

The values that each append makes are named tuples: a frozen dataclass takes three times as long to be made.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ..protocol import AppendError, EncodedEvent, Envelope, RawEnvelope
from ._logging import Logger

__all__ = [
    "AppendRequest",
    "Appended",
    "BatchResult",
    "EventStore",
    "Finding",
    "HaltRecord",
    "Record",
    "SessionBatch",
    "SessionInfo",
    "Snapshot",
]


class AppendRequest(NamedTuple):
    """The events of one ``append`` or ``append_many``: written together or not at all.

    Attributes:
        events: at least one.
        expected_seq: what the session's last_seq must be, or None for any.
    """

    events: tuple[EncodedEvent, ...]
    expected_seq: int | None = None


class SessionBatch(NamedTuple):
    """What one session wants written in one commit, in order."""

    session_id: str
    requests: tuple[AppendRequest, ...]


class Appended(NamedTuple):
    """The numbers of one request, contiguous from first to last.

    Attributes:
        written: False when the request was a retry: its ids were there, and these are the numbers of the first write.
    """

    first_seq: int
    last_seq: int
    written: bool = True


class BatchResult(NamedTuple):
    """The answer to a ``SessionBatch``.

    Attributes:
        answers: one for each request, in order: its numbers, or why it failed.
        last_seq_before: number of the session's last event as found under the lock, before this batch; what another
            process appended is below it.
        last_seq: number of the session's last event after this batch.
        through_before: last number that was used before this batch, by an event or by a reservation; None when nothing
            was written or the engine does not say.
        bytes_written: what the commit added to the log.
        sync_s: seconds that making it durable took; 0 when nothing was written.
    """

    session_id: str
    answers: tuple[Appended | AppendError, ...]
    last_seq_before: int
    last_seq: int
    bytes_written: int = 0
    sync_s: float = 0.0
    through_before: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """What a store knows of a session without reading its events.

    Attributes:
        last_seq: number of the last durable event, 0 when there is none.
        next_seq: number that the next event will get: ``last_seq + 1``, or more after a reservation.
        first_seq: number of the first event that can be read, 0 when there is none.
        first_available: the smallest number that a reader may ask for: 1, or more when events were pruned.
        sealed: whether it takes no more events, for good.
        deleted: whether it was deleted; then it has no events, and ``last_seq`` is the last number that it had used, by
            an event or by a reservation.
        halted: why the session is halted, or None.
        damage: what is wrong with its log, or None; only ``Runtime.sessions`` sets it, where ``info`` would raise.
    """

    session_id: str
    last_seq: int
    next_seq: int
    first_seq: int = 0
    first_available: int = 1
    sealed: bool = False
    deleted: bool = False
    halted: str | None = None
    damage: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HaltRecord:
    """Why a session refuses appends and replays.

    Attributes:
        at: RFC 3339 time of the halt, in UTC.
        first_event_id: id of the first event in doubt, or None.
    """

    session_id: str
    reason: str
    at: str
    first_event_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a verification found.

    Attributes:
        kind: ``damage``, ``lost``, ``gap``, ``schema``, ``halt``, ``torn_tail`` or ``head``.
        harmless: True when the next append mends it and no acknowledged event is concerned.
        event_seq: the first number concerned, or None.
        place: file and byte offset, or the engine's own word; None when it has none.
    """

    session_id: str
    kind: str
    detail: str
    harmless: bool
    event_seq: int | None = None
    place: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """Something derived from a session's events from the first to one of them, kept so as not to derive it again.

    Attributes:
        seq: number of the last event that went into it.
        data: what was derived, in its owner's encoding.
    """

    seq: int
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """Something small that is kept beside a session's log, as a cursor is.

    Attributes:
        data: its content, in its owner's encoding.
        version: counts how often it was replaced, from 1.
    """

    data: bytes
    version: int


class EventStore(abc.ABC):
    """An append-only log of events per session. Every method is safe from any thread.

    ``append`` must not be called for one session from two threads at once by the same runtime (a PersistActor never
    does); other runtimes and processes may hold the same store, and the store keeps them apart.
    """

    is_shared: bool = True
    """Whether other runtimes can hold the same store, so that a runtime has to look out for what they append."""
    is_local: bool = False
    """Whether an append waits for this machine's disk only; a program's main thread may then commit its own appends."""
    catches_up: bool = False
    """Whether ``append`` itself has the callers of the batch before answered, at the latest when it begins to wait for
    the disk; for other engines the writer does so before it calls."""
    url: str
    """What ``logmark.open`` would take to open this store again."""
    log: Logger | None = None
    """Where it tells of warnings and errors, for whoever counts them; None when it never does."""

    @abc.abstractmethod
    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """Number and write events; return when they are durable.

        Each request gets ``last_seq + 1 …`` of its session in the order given; a number in the caller's envelope has
        no meaning here. A request whose event ids are all present is a retry and is answered with the first numbers. A
        failure concerns the requests that it names and no others: it is in the answers, never raised.

        Raises:
            WouldWait: somebody else holds the session, and the thread must not wait (``set_patience``); nothing was
                done.

        Returns:
            one result for each batch, in order.
        """

    @abc.abstractmethod
    def read(
        self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
    ) -> Iterator[RawEnvelope]:
        """Yield the durable events from a number upwards, lazily, as of the call.

        What lies before ``from_seq`` is not read. Numbers that were reserved and never used are not there. Events that
        are pruned while they are being read may still come, or ``SeqPruned`` does; when the session is deleted
        meanwhile, so may ``SessionDeleted``.

        Args:
            session_id: a session; one without events yields nothing.
            from_seq: the first number wanted; 0 is the same as 1.
            through_seq: the last number wanted, or None for the last there is.
            halted_ok: read a halted session, and a damaged one up to the damage.

        Raises:
            SessionHalted: the session is halted.
            SeqPruned: at the call, ``from_seq`` (or 1, when it is less) is below ``SessionInfo.first_available``.
            SessionDeleted: at the call, the session was deleted.
            LogCorrupt: at the damaged row, after the good ones before it.
            SchemaMismatch: at a row of another schema version.
        """

    def read_envelopes(
        self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
    ) -> Iterator[Envelope]:
        """Yield as ``read`` does, typed envelopes; for engines that can make those at once, which is cheaper."""
        events = self.read(session_id, from_seq=from_seq, through_seq=through_seq, halted_ok=halted_ok)
        return map(RawEnvelope.decode, events)

    @abc.abstractmethod
    def read_backwards(self, session_id: str, *, before_seq: int | None = None) -> Iterator[RawEnvelope]:
        """Yield the durable events below a number (None: from the last) downwards, lazily; raises as ``read`` does.

        It ends with the first event that is available: whatever number it is asked for, there is no ``SeqPruned`` at
        the call.
        """

    @abc.abstractmethod
    def info(self, session_id: str) -> SessionInfo:
        """Return what is known of a session; one that was never written to has ``last_seq`` 0.

        Raises:
            SchemaMismatch, LogCorrupt: the end of the log cannot be trusted.
        """

    def last_seq(self, session_id: str) -> int:
        """Return the number of the last durable event, 0 when there is none; raises as ``info`` does."""
        return self.info(session_id).last_seq

    def last_seqs(self, session_ids: Iterable[str]) -> dict[str, int | Exception]:
        """Return for each session its ``last_seq``, or what asking for it raised; for a deleted one, that it was.

        It is asked for all sessions that somebody follows, again and again: this is how readers learn of a deletion.
        """
        found: dict[str, int | Exception] = {}
        for session_id in session_ids:
            try:
                info = self.info(session_id)
                if info.deleted:
                    self.read(session_id)  # raises what says so
                found[session_id] = info.last_seq
            except Exception as error:
                found[session_id] = error
        return found

    def watch(self, changed: Callable[[str | None], None]) -> float | None:
        """Have ``changed`` called, from any thread, soon after somebody else has appended.

        It gets the session, or None when it may have been any, as after a lost connection. This is a hint: it may come
        late, twice or never, and what is true stands in the log. It ends with ``close``.

        Returns:
            after how many seconds it is worth looking without a hint; None, as here, when there will be no hints.
        """
        return None

    def load_snapshot(self, session_id: str, name: str) -> Snapshot | None:
        """Return the snapshot that was saved under a name, or None: the log decides, so any doubt is None.

        It is of this very log: the event ``seq`` is durable, and is the one that the snapshot was saved with. A deleted
        session has none.

        Raises:
            SessionHalted, LogCorrupt, SchemaMismatch: as ``info`` does.
        """
        return None

    def save_snapshot(self, session_id: str, name: str, snapshot: Snapshot) -> None:  # noqa: B027 - optional
        """Keep a snapshot in place of the last one of that name. It may be lost at any time, and is never synced.

        Nothing is kept of a deleted session.

        Raises:
            StorageUnavailable: the disk refused; the last one may still be there.
        """

    @abc.abstractmethod
    def load_record(self, session_id: str, name: str) -> Record | None:
        """Return a record of a session, or None when there is none of that name.

        Raises:
            LogCorrupt: it is there and cannot be trusted.
            SessionDeleted: the session was deleted, and its records with it.
        """

    @abc.abstractmethod
    def save_record(self, session_id: str, name: str, data: bytes | None, *, version: int) -> int:
        """Replace a record, durably, unless somebody else has done so since it was loaded.

        Records do not touch the log: a halted or sealed session keeps its readers, and no append waits for one. The
        session need not have events, and is not listed for its records. One that was removed starts anew.

        Args:
            session_id: the session.
            name: non-empty text of at most 200 UTF-8 bytes.
            data: its new content; None removes it.
            version: the version that it has, 0 when it is not there yet.

        Returns:
            its new version, 0 when it was removed.

        Raises:
            RecordChanged: it has another version.
            SessionDeleted: the session was deleted.
            LockTimeout: it could not be saved; the last one is still there.
            StorageUnavailable: the disk or the server refused; saved or not, the next load tells.
        """

    @abc.abstractmethod
    def records(self, session_id: str) -> dict[str, Record]:
        """Return all records of a session by name, in the order of their names; raises as ``load_record`` does."""

    @abc.abstractmethod
    def truncate_before(self, session_id: str, seq: int) -> int:
        """Remove the events below a number, durably, and return the first number that is available from now on.

        Numbering goes on as if they were there, ``last_seq`` stays. A retry of an id that was removed is a new event,
        and of several ids of which some were removed it is an ``EventIdConflict``. A second call with the same or a
        lower number changes nothing.

        Args:
            session_id: the session; one that was never written to is left alone.
            seq: the first number to keep; that of the next event (``next_seq``) removes all there are, 1 and less none.

        Raises:
            CursorAhead: ``seq`` is beyond the number that comes next; nothing was removed.
            SessionHalted, SessionDeleted, LogCorrupt, SchemaMismatch, LockTimeout: nothing was removed.
            StorageUnavailable: the disk refused; done or not, the next call settles it.
        """

    @abc.abstractmethod
    def seal(self, session_id: str) -> int:
        """Refuse further events for good, durably, and return ``last_seq``; a second call changes nothing.

        A retry of an event that is there is still answered with its number; everything else, and a reservation, is
        answered with ``SessionSealed``. A session without events can be sealed, and is listed from then on. What was
        sealed can still be halted, repaired, pruned and deleted.

        Raises:
            SessionHalted, SessionDeleted, LogCorrupt, SchemaMismatch, LockTimeout: it is not sealed.
            StorageUnavailable: the disk refused; done or not, the next call settles it.
        """

    @abc.abstractmethod
    def delete(self, session_id: str) -> None:
        """Remove a session with all that is kept of it, halted or damaged or not; a second call changes nothing.

        What remains is a tombstone with the last number that was used. From then on appends are answered with
        ``SessionDeleted``, and whatever else concerns its events, its halt or its records raises it. ``sessions`` does
        not name it any more; ``info`` and ``last_seq`` do tell of it, and there is nothing to verify or to repair. One
        that was never written to gets a tombstone too.

        Raises:
            LockTimeout: somebody is writing; nothing was removed.
            StorageUnavailable: the disk refused; done or not, the next call settles it.
        """

    @abc.abstractmethod
    def sessions(self) -> Iterator[str]:
        """Yield the id of every session that was ever written to and was not deleted, in the order of their ids."""

    @abc.abstractmethod
    def reserve(self, session_id: str, through_seq: int) -> None:
        """Make every number up to ``through_seq`` used, durably; events get later ones. Never lowers anything.

        Raises:
            AppendRejected: as an append would be.
        """

    @abc.abstractmethod
    def halt(self, session_id: str, reason: str, *, first_event_id: str | None = None) -> None:
        """Refuse appends and replays of a session until ``clear_halt``, durably; a first reason stays."""

    @abc.abstractmethod
    def halted(self, session_id: str) -> HaltRecord | None:
        """Return why a session is halted, or None; a damaged record counts as a halt."""

    @abc.abstractmethod
    def clear_halt(self, session_id: str) -> None:
        """Verify the session and, when it is sound, let it go on.

        Raises:
            LogCorrupt, SchemaMismatch: it is not sound; it stays halted.
        """

    @abc.abstractmethod
    def verify(self, session_id: str) -> list[Finding]:
        """Read the whole session, disturbing nobody, and return what is wrong with it."""

    def verify_store(self) -> list[Finding]:
        """Return what is wrong with the store beyond the sessions that it names; their ``session_id`` is empty."""
        return []

    @abc.abstractmethod
    def repair(self, session_id: str, *, dry_run: bool = False) -> list[str]:
        """Make a session sound again, keeping every byte that is taken out, and clear its halt.

        Numbers that were told and whose events are lost stay used. Doing it twice changes nothing.

        Args:
            session_id: the session; a sound one is left alone.
            dry_run: only say what would be done.

        Returns:
            a sentence for each step, none for a sound session.

        Raises:
            LockTimeout: somebody is writing.
            SchemaMismatch: the session is of another schema version.
            LogCorrupt: it could not be made sound; it stays halted.
        """

    def ping(self) -> None:
        """See whether the store answers, as cheaply as that can be told; may block as long as a read may.

        Raises:
            StorageUnavailable: it does not.
        """
        self.last_seq("logmark/ping")

    @abc.abstractmethod
    def close(self) -> None:
        """Release what the store holds; a second call does nothing."""

    def after_fork_in_child(self) -> None:  # noqa: B027 - optional: most engines hold nothing that a child must drop
        """Drop, in a forked child, what would keep a lock of the parent alive."""
