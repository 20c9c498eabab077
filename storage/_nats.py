"""The NATS engine: every session on a subject of one JetStream stream, for programs on many hosts.

The stream is the one authority: it stores a commit of a session only behind the one that its writer knows to be the
last, in one step, so numbers are dense whoever writes. What it says after a lost connection is the truth; nothing here
halts a session for want of an answer.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence

from nats.aio.msg import Msg

from ..protocol import (
    SEQ_MAX,
    Clock,
    CursorAhead,
    InvalidArgument,
    Limits,
    LogCorrupt,
    RawEnvelope,
    SeqPruned,
    SequenceExhausted,
    SessionHalted,
    SessionSealed,
    StorageRejected,
    StorageUnavailable,
)
from ._clock import SystemClock, rfc3339
from ._logging import get_logger
from ._nats_append import MESSAGE_ID, Appender, Change, Publisher
from ._nats_link import Link, NotSent, Unanswered
from ._nats_message import State, session_of, session_subject, subject_token
from ._nats_reader import KnownSessions, Reader, deleted
from ._nats_records import Records
from ._nats_stream import NoStream, Refused, Stream, StreamUnusable
from ._nats_url import NatsUrl
from ._nats_verify import Scan, repaired, scan_session, verify_session
from ._store import BatchResult, EventStore, Finding, HaltRecord, Record, SessionBatch, SessionInfo, Snapshot

__all__ = ["NatsEventStore"]

_DURABILITIES = ("fsync", "os")
_LOOK_S = 1.0


class NatsEventStore(EventStore):
    """Sessions in a stream of NATS JetStream servers; ``docs/engines.md`` has its promises, settings and costs.

    Args:
        url: ``nats://HOST:PORT,…/NAME?replicas=N``: the servers, and the stream, which is made when it is missing.
        limits: the bounds; this engine uses lock_wait_s, server_wait_s, open_sessions_max and read_chunk_bytes.
        durability: ``"fsync"``: an append returns when the stream's servers have it on their disks, which they do only
            with ``sync_interval: always``; where that can be looked at, less is refused. ``"os"``: an append returns
            when a majority of the stream's servers has it.
        create: make the stream when there is none; False for tools that only look.
        clock: the time.

    Raises:
        InvalidArgument: the URL is wrong.
        StorageUnavailable: the servers cannot be reached, promise too little, or have a store of a newer version.
    """

    def __init__(
        self,
        url: str,
        *,
        limits: Limits | None = None,
        durability: str = "fsync",
        create: bool = True,
        clock: Clock | None = None,
    ) -> None:
        if durability not in _DURABILITIES:
            message = f"durability is one of {', '.join(_DURABILITIES)}, not {durability!r}"
            raise InvalidArgument(message)
        parsed = NatsUrl.parse(url)
        self.url = parsed.shown
        self._limits = limits or Limits()
        self._clock = clock or SystemClock()
        self.log = self._log = get_logger(actor="store")
        self._link = Link(parsed, limits=self._limits, log=self._log)
        self._stream = Stream(self._link, parsed, wait_s=self._limits.server_wait_s)
        try:
            self._link.start()
            self._stream.open(create=create, must_sync=durability == "fsync", log=self._log)
        except (StreamUnusable, NotSent, Unanswered, Refused) as error:
            self._link.close()
            missing = errno.ENOENT if isinstance(error, NoStream) else None
            raise StorageUnavailable(store=self.url, reason=str(error), errno=missing) from error
        except BaseException:
            self._link.close()
            raise
        self._sessions = KnownSessions(self._limits.open_sessions_max)
        self._reader = Reader(self._stream, store=self.url, limits=self._limits, sessions=self._sessions)
        self._publisher = Publisher(self._link, self._stream)
        self._appender = Appender(
            self._publisher,
            self._stream,
            self._reader,
            self._sessions,
            limits=self._limits,
            store=self.url,
        )
        self._records = Records(self._publisher, self._stream, self._reader, limits=self._limits, store=self.url)

    # -- appending ----------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """See ``EventStore.append``; a request is one message, and many are one as far as they fit."""
        return self._appender.append(batches)

    def reserve(self, session_id: str, through_seq: int) -> None:
        """See ``EventStore.reserve``."""

        def wanted(state: State) -> Change | None:
            self._check_writable(session_id, state)
            if state.sealed:
                raise SessionSealed(session_id=session_id, last_seq=state.seq)
            if through_seq > SEQ_MAX:
                raise SequenceExhausted(session_id=session_id, last_seq=state.through)
            if through_seq <= state.through:
                return None
            return Change("reserve", state._replace(through=through_seq))

        try:
            self._appender.change(session_id, wanted)
        except StorageUnavailable as error:
            raise StorageRejected(session_id=session_id, reason=error.reason) from error

    def _check_writable(self, session_id: str, state: State) -> None:
        if state.deleted_at is not None:
            raise deleted(session_id, state)
        halt = state.halt_record(session_id)
        if halt is not None:
            raise SessionHalted(session_id=session_id, reason=halt.reason, halted_at=halt.at)

    # -- reading ------------------------------------------------------------------------------------------------

    def _readable(self, session_id: str, *, halted_ok: bool) -> State:
        try:
            state = self._reader.state(session_id)
        except LogCorrupt:
            if not halted_ok:
                raise
            state = self._scan(session_id).state
        if state.deleted_at is not None:
            raise deleted(session_id, state)
        if not halted_ok:
            self._check_writable(session_id, state)
        return state

    def read(
        self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
    ) -> Iterator[RawEnvelope]:
        """See ``EventStore.read``.

        Raises:
            StorageUnavailable: the server did not answer in time.
        """
        state = self._readable(session_id, halted_ok=halted_ok)
        first = max(1, from_seq)
        if first < state.first_available:
            raise SeqPruned(session_id=session_id, seq=first, first_available=state.first_available)
        last = state.seq if through_seq is None else min(through_seq, state.seq)
        return self._reader.upwards(session_id, state, first, last)

    def read_backwards(self, session_id: str, *, before_seq: int | None = None) -> Iterator[RawEnvelope]:
        """See ``EventStore.read_backwards``; raises as ``read`` does."""
        state = self._readable(session_id, halted_ok=False)
        last = state.seq if before_seq is None else min(before_seq - 1, state.seq)
        return self._reader.downwards(session_id, state, last)

    def info(self, session_id: str) -> SessionInfo:
        """See ``EventStore.info``; raises as ``read`` does too."""
        return self._reader.state(session_id).info(session_id)

    def last_seqs(self, session_ids: Iterable[str]) -> dict[str, int | Exception]:
        """See ``EventStore.last_seqs``; many are asked about at once."""
        found: dict[str, int | Exception] = {}
        for session_id, state in self._reader.states(list(session_ids)):
            if isinstance(state, Exception):
                found[session_id] = state
            else:
                found[session_id] = state.seq if state.deleted_at is None else deleted(session_id, state)
        return found

    def sessions(self) -> Iterator[str]:
        """See ``EventStore.sessions``; raises as ``read`` does."""
        name = self._stream.name
        gone = set(
            self._reader.asked(lambda _: [session_of(each) for each in self._stream.subjects(f"logmark.{name}.d.*")])
        )
        found = self._reader.asked(
            lambda _: [session_of(each) for each in self._stream.subjects(f"logmark.{name}.e.*")]
        )
        return iter(sorted(session_id for session_id in found if session_id not in gone))

    def watch(self, changed: Callable[[str | None], None]) -> float | None:
        """See ``EventStore.watch``: the stream's leader tells of each message once it is stored."""

        def heard(message: Msg | None) -> None:
            if message is None:
                changed(None)
            elif not (message.headers or {}).get(MESSAGE_ID, "").startswith(self._publisher.writer):
                changed(session_of(message.subject.replace("-hint", "", 1)))

        self._link.listen(f"logmark-hint.{self._stream.name}.e.*", heard)
        return _LOOK_S

    # -- what is kept beside the log ----------------------------------------------------------------------------

    def load_snapshot(self, session_id: str, name: str) -> Snapshot | None:
        """See ``EventStore.load_snapshot``; raises as ``read`` does too."""
        state = self._reader.state(session_id)
        if state.deleted_at is not None:
            return None
        self._check_writable(session_id, state)
        return self._records.load_snapshot(session_id, name, state)

    def save_snapshot(self, session_id: str, name: str, snapshot: Snapshot) -> None:
        """See ``EventStore.save_snapshot``."""
        reason = self._records.save_snapshot(session_id, name, snapshot, self._reader.state(session_id))
        if reason is not None:
            self._log.warning("snapshot_unsaved", session=session_id, name=name, reason=reason)

    def load_record(self, session_id: str, name: str) -> Record | None:
        """See ``EventStore.load_record``; raises as ``read`` does too."""
        return self._records.load(session_id, name)

    def save_record(self, session_id: str, name: str, data: bytes | None, *, version: int) -> int:
        """See ``EventStore.save_record``."""
        return self._records.save(session_id, name, data, version=version)

    def records(self, session_id: str) -> dict[str, Record]:
        """See ``EventStore.records``; raises as ``read`` does too."""
        return self._records.all(session_id)

    # -- the life of a session ----------------------------------------------------------------------------------

    def truncate_before(self, session_id: str, seq: int) -> int:
        """See ``EventStore.truncate_before``; a message goes when all its events are below the number."""

        def wanted(state: State) -> Change | None:
            self._check_writable(session_id, state)
            if seq > state.through + 1:
                raise CursorAhead(session_id=session_id, cursor=seq, last_seq=state.seq)
            if seq <= state.first_available:
                return None
            first = next(self._reader.upwards(session_id, state, seq, state.seq), None)
            first_seq = 0 if first is None else first.event_seq or 0
            return Change("truncate", state._replace(first_available=seq, first_seq=first_seq))

        state = self._appender.change(session_id, wanted)
        if state.first_available > 1:  # also when it was done before, as that may have been interrupted
            first = self._reader.locate(session_id, state.first_available, state)
            self._purge(session_subject(self._stream.name, session_id), before=first or state.said_at)
        return state.first_available

    def _purge(self, subject: str, *, before: int | None = None) -> None:
        self._reader.asked(lambda deadline: self._stream.purge(subject, before=before, deadline=deadline))

    def seal(self, session_id: str) -> int:
        """See ``EventStore.seal``."""

        def wanted(state: State) -> Change | None:
            self._check_writable(session_id, state)
            return None if state.sealed else Change("seal", state._replace(sealed=True))

        return self._appender.change(session_id, wanted).seq

    def delete(self, session_id: str) -> None:
        """See ``EventStore.delete``."""

        def wanted(state: State) -> Change | None:
            if state.deleted_at is not None:
                return None
            grave = State(
                at=state.at,
                seq=state.through,
                through=state.through,
                first_available=state.through + 1,
                sealed=state.sealed,
                deleted_at=rfc3339(self._clock.time_ns()),
            )
            return Change("delete", grave)

        try:
            state = self._appender.change(session_id, wanted)
        except LogCorrupt:
            state = self._appender.change(session_id, wanted, tail=self._scanned)
        token, name = subject_token(session_id), self._stream.name
        mark = f"logmark.{name}.d.{token}"
        self._reader.asked(lambda deadline: self._stream.put(mark, b"", deadline=deadline))
        self._purge(session_subject(name, session_id), before=state.said_at)
        for kind in ("r", "s"):
            self._purge(f"logmark.{name}.{kind}.{token}.*")

    # -- halting, verifying, repairing --------------------------------------------------------------------------

    def halt(self, session_id: str, reason: str, *, first_event_id: str | None = None) -> None:
        """See ``EventStore.halt``: for every process, at once.

        Raises:
            StorageUnavailable: the server did not answer in time; the session need not be halted.
        """
        reason = reason.encode(errors="backslashreplace").decode()
        at = rfc3339(self._clock.time_ns())

        def wanted(state: State) -> Change | None:
            if state.deleted_at is not None:
                raise deleted(session_id, state)
            if state.halt is not None:
                return None
            return Change("halt", state._replace(halt=(at, reason, first_event_id)))

        self._appender.change(session_id, wanted)
        self._log.error("session_halted", session=session_id, reason=reason, first_event_id=first_event_id)

    def halted(self, session_id: str) -> HaltRecord | None:
        """See ``EventStore.halted``; raises as ``read`` does."""
        return self._reader.state(session_id).halt_record(session_id)

    def clear_halt(self, session_id: str) -> None:
        """See ``EventStore.clear_halt``; raises as ``read`` does too."""
        state = self._reader.state(session_id)
        if state.deleted_at is not None:
            raise deleted(session_id, state)
        if state.at == 0:
            return
        _, error = verify_session(session_id, self._scan(session_id))
        if error is not None:
            raise error

        def wanted(now: State) -> Change | None:
            return None if now.halt is None else Change("clear_halt", now._replace(halt=None))

        self._appender.change(session_id, wanted)
        if state.halt is not None:
            self._log.warning("halt_cleared", session=session_id)

    def _scan(self, session_id: str) -> Scan:
        known = self._sessions.of(session_id).state.through
        return scan_session(
            self._reader, self._stream, session_id, known=known, chunk_bytes=self._limits.read_chunk_bytes
        )

    def _scanned(self, session_id: str, _: float) -> State:
        return self._scan(session_id).state

    def verify(self, session_id: str) -> list[Finding]:
        """See ``EventStore.verify``; raises as ``read`` does."""
        return verify_session(session_id, self._scan(session_id))[0]

    def verify_store(self) -> list[Finding]:
        """See ``EventStore.verify_store``: settings of the stream that were changed to promise less."""
        found = self._reader.asked(lambda deadline: self._stream.weaknesses(deadline=deadline))
        place = f"stream {self._stream.name}"
        return [Finding(session_id="", kind="damage", detail=each, harmless=False, place=place) for each in found]

    def repair(self, session_id: str, *, dry_run: bool = False) -> list[str]:
        """See ``EventStore.repair``; nothing is taken out of the stream, a new message says what is left out."""
        scan = self._scan(session_id)
        steps: list[str] = []

        def look(wanted_id: str, _: float) -> State:
            nonlocal scan
            scan = self._scan(wanted_id)
            return scan.state

        def wanted(_: State) -> Change | None:
            change, steps[:] = repaired(scan)
            return None if dry_run else change

        if repaired(scan)[0] is None:
            return []
        self._appender.change(session_id, wanted, tail=look)
        if not dry_run and steps:
            self._log.warning(
                "session_repaired", session=session_id, steps=len(steps), originals=f"stream {self._stream.name}"
            )
        return steps

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See ``EventStore.close``."""
        self._link.close()

    def after_fork_in_child(self) -> None:
        """Let go of the connection without a word to the server: it is the parent's."""
        self._link.after_fork_in_child()
