"""Copying sessions from one store to another: compared first, then appended under their own numbers, then read back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, cast

from ..protocol import (
    AppendError,
    EncodedEvent,
    EventEncoder,
    EventTypes,
    Limits,
    LogCorrupt,
    LogmarkError,
    RawEnvelope,
    SessionHalted,
)

if TYPE_CHECKING:
    from ..storage import AppendRequest, EventStore

__all__ = ["Copied", "Copier", "CopyDiffers"]

_EVENTS_MAX = 4096
_BYTES_MAX = 4 * 1024 * 1024


class CopyDiffers(Exception):
    """A session of the destination is not, or cannot become, what the source has."""

    def __init__(self, *, session_id: str, event_seq: int, reason: str) -> None:
        self.session_id = session_id
        self.event_seq = event_seq
        self.reason = reason
        super().__init__(f"session {session_id!r}, number {event_seq}: {reason}")


@dataclasses.dataclass(slots=True)
class Copied:
    """What became of one session.

    Attributes:
        last_seq: number of the source's last event when the copy began.
        next_seq: the number that the source would have given next then.
        present: events that the destination had already.
        copied: events that were appended to it.
        verified: events that were compared, after they were written or because they were there.
        checksum: CRC-32 of numbers and contents, equal on both sides.
        first_available: the smallest number that could be asked for in the source then.
        sealed: whether the source was sealed then.
        records: what else was kept of the session then, by name.
        is_complete: both sides are known to agree.
        damage: what is wrong with the source's log behind ``last_seq``, which is how far it was sound; or None.
        error: why it is not complete, or None.
    """

    session_id: str
    last_seq: int
    next_seq: int
    present: int = 0
    copied: int = 0
    verified: int = 0
    checksum: int = 0
    first_available: int = 1
    sealed: bool = False
    records: dict[str, bytes] = dataclasses.field(default_factory=dict[str, bytes])
    is_complete: bool = False
    damage: LogCorrupt | None = None
    error: LogmarkError | OSError | CopyDiffers | None = None


class Copier:
    """Copies sessions between two stores; each step may be interrupted, and the next run goes on where it stopped.

    Args:
        source, target: the stores; the source may be in use, what is appended to it meanwhile is left for another run.
        stopped: asked between commits whether to stop.
        halted_ok: copy what can be read of a halted session, and of a damaged one up to the damage.
    """

    def __init__(
        self, source: EventStore, target: EventStore, stopped: Callable[[], bool], *, halted_ok: bool = False
    ) -> None:
        self._source = source
        self._target = target
        self._stopped = stopped
        self._halted_ok = halted_ok
        self._waiting: list[tuple[Copied, int, AppendRequest]] = []
        self._waiting_events = 0
        self._waiting_bytes = 0
        self._last_seqs: dict[str, int] = {}

    def begin(self, session: Copied) -> None:
        """Note how far the source goes; that is what is copied.

        Raises:
            SessionHalted: it is halted.
            LogmarkError: it cannot be read.
        """
        # Before the numbers: no cursor among them is then ahead of what is copied.
        records = self._source.records(session.session_id)
        session.records = {name: record.data for name, record in records.items()}
        try:
            info = self._source.info(session.session_id)
        except LogCorrupt as error:
            if not self._halted_ok or error.event_seq is None:
                raise
            session.damage, session.last_seq, session.next_seq = error, error.event_seq - 1, error.event_seq
            return
        if info.halted is not None and not self._halted_ok:
            raise SessionHalted(session_id=session.session_id, reason=info.halted)
        session.last_seq, session.next_seq = info.last_seq, info.next_seq
        session.first_available, session.sealed = info.first_available, info.sealed

    def compare(self, session: Copied) -> Iterator[int]:
        """Compare what the target has of a session with the source; yields a 1 for each event.

        Raises:
            CopyDiffers: it has something else.
        """
        session_id = session.session_id
        theirs = self._target.info(session_id)
        if theirs.halted is not None:
            raise SessionHalted(session_id=session_id, reason=theirs.halted)
        if theirs.next_seq > session.next_seq:
            raise CopyDiffers(
                session_id=session_id,
                event_seq=session.next_seq,
                reason=f"the destination goes on to {theirs.next_seq - 1}, where the source ends",
            )
        if theirs.deleted:
            self._target.read(session_id)  # raises what says so
        if theirs.first_available > session.first_available:
            raise CopyDiffers(
                session_id=session_id,
                event_seq=session.first_available,
                reason=f"the destination has nothing before {theirs.first_available}, the source has",
            )
        self._last_seqs[session_id] = theirs.last_seq
        yield from self._compare(session, session.first_available, theirs.last_seq)
        session.present = session.verified
        start = max(theirs.last_seq + 1, session.first_available)
        following = next(self._read(session_id, from_seq=start), None)
        if following is not None and _seq(following) < theirs.next_seq:
            raise CopyDiffers(
                session_id=session_id,
                event_seq=_seq(following),
                reason="the number is used up in the destination, and has an event in the source",
            )

    def copy(self, session: Copied) -> Iterator[int]:
        """Append what the target lacks of a session; yields the count of each run that was handed on.

        What is handed on is written, together with other sessions, by ``flush`` at the latest.
        """
        session_id = session.session_id
        last_seq = self._last_seqs[session_id]
        if last_seq < session.last_seq:
            start = max(last_seq + 1, session.first_available)
            rows = self._read(session_id, from_seq=start, through_seq=session.last_seq)
            for run in _runs(rows):
                first = _seq(run[0])
                if first > last_seq + 1:
                    self.flush()
                if self._stopped() or session.error is not None:
                    return
                if first > last_seq + 1:
                    self._target.reserve(session_id, first - 1)
                self._hand_on(session, run, last_seq)
                last_seq = _seq(run[-1])
                yield len(run)
            if last_seq < session.last_seq < session.first_available:
                self._stand_in(session)
                last_seq = session.last_seq
        if session.next_seq > last_seq + 1:
            self.flush()
            if session.error is None:
                self._target.reserve(session_id, session.next_seq - 1)

    def _stand_in(self, session: Copied) -> None:
        """Append something in place of the last event of a source that was emptied, as ``last_seq`` outlives it.

        It is removed with what the source has pruned, when the rest is complete.
        """
        from ..storage import AppendRequest, SystemClock, rfc3339

        encoder = EventEncoder(EventTypes(), Limits())
        now = rfc3339(SystemClock().time_ns())
        event = encoder.encode("pruned", None, None, f"pruned-{session.last_seq}", now)
        self.flush()
        if session.error is None:
            self._target.reserve(session.session_id, session.last_seq - 1)
            self._append([(session, session.last_seq, AppendRequest((event,)))])
            session.copied = 0

    def _hand_on(self, session: Copied, run: list[RawEnvelope], last_seq: int) -> None:
        from ..storage import AppendRequest

        self._waiting.append((session, _seq(run[0]), AppendRequest(tuple(map(_encoded, run)), last_seq)))
        self._waiting_events += len(run)
        self._waiting_bytes += sum(map(_size, run))
        if self._waiting_events >= _EVENTS_MAX or self._waiting_bytes >= _BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Write what was handed on; what goes wrong with a session is its ``error``."""
        waiting, self._waiting = self._waiting, []
        self._waiting_events = self._waiting_bytes = 0
        self._append(waiting)

    def _append(self, waiting: list[tuple[Copied, int, AppendRequest]]) -> None:
        from ..storage import SessionBatch

        batches = [SessionBatch(session.session_id, (request,)) for session, _, request in waiting]
        for (session, first, request), result in zip(waiting, self._target.append(batches), strict=True):
            (answer,) = result.answers
            if isinstance(answer, AppendError):
                session.error = session.error or answer
            elif (answer.first_seq, answer.written) != (first, True):
                session.error = session.error or CopyDiffers(
                    session_id=session.session_id,
                    event_seq=first,
                    reason=f"the destination has put the events at number {answer.first_seq}",
                )
            else:
                session.copied += len(request.events)

    def _read(self, session_id: str, *, from_seq: int, through_seq: int | None = None) -> Iterator[RawEnvelope]:
        return self._source.read(session_id, from_seq=from_seq, through_seq=through_seq, halted_ok=self._halted_ok)

    def verify(self, session: Copied) -> Iterator[int]:
        """Read back what was written, compare it with the source, and make the rest alike; yields a 1 for each event.

        Raises:
            CopyDiffers: the target does not have what the source has.
        """
        start = max(self._last_seqs[session.session_id] + 1, session.first_available)
        yield from self._compare(session, start, session.last_seq)
        info = self._target.info(session.session_id)
        if (info.last_seq, info.next_seq) != (session.last_seq, session.next_seq):
            raise CopyDiffers(
                session_id=session.session_id,
                event_seq=info.last_seq,
                reason=f"the destination ends with {info.last_seq} and goes on with {info.next_seq}, the source ended"
                f" with {session.last_seq} and went on with {session.next_seq}",
            )
        self._carry_over(session)
        session.is_complete = True
        yield 0

    def _carry_over(self, session: Copied) -> None:
        """Give the target what is kept beside the events, and the end that the source has."""
        session_id = session.session_id
        if session.first_available > 1:
            self._target.truncate_before(session_id, session.first_available)
        for name, data in session.records.items():
            known = self._target.load_record(session_id, name)
            if known is None or known.data != data:
                self._target.save_record(session_id, name, data, version=0 if known is None else known.version)
        if session.sealed:
            self._target.seal(session_id)

    def _compare(self, session: Copied, first: int, last: int) -> Iterator[int]:
        if first > last:
            return
        from ..storage import event_checksum

        session_id = session.session_id
        ours = self._read(session_id, from_seq=first, through_seq=last)
        theirs = self._target.read(session_id, from_seq=first, through_seq=last)
        for mine, other in itertools.zip_longest(ours, theirs):
            reason = _difference(mine, other)
            if reason is not None:
                seq = min(_seq(event) for event in (mine, other) if event is not None)
                raise CopyDiffers(session_id=session_id, event_seq=seq, reason=reason)
            session.checksum = event_checksum(session.checksum, _seq(mine), mine.head_json or b"", mine.payload_json)
            session.verified += 1
            yield 1


def _difference(mine: RawEnvelope | None, other: RawEnvelope | None) -> str | None:
    """Say how two events of the same place differ, or None."""
    if mine is None or other is None or mine.event_seq != other.event_seq:
        if other is None or (mine is not None and _seq(mine) < _seq(other)):
            return "the destination lacks the event"
        return "the destination has an event that the source has not"
    if mine.id != other.id:
        return f"the destination has the event {other.id!r}, the source {mine.id!r}"
    if (mine.head_json, mine.payload_json) != (other.head_json, other.payload_json):
        return "the destination has other content under the same id"
    return None


def _runs(events: Iterable[RawEnvelope]) -> Iterator[list[RawEnvelope]]:
    """Cut events into runs of consecutive numbers, none larger than a commit should be."""
    run: list[RawEnvelope] = []
    size = 0
    for event in events:
        if run and (_seq(event) != _seq(run[-1]) + 1 or len(run) >= _EVENTS_MAX or size >= _BYTES_MAX):
            yield run
            run, size = [], 0
        run.append(event)
        size += _size(event)
    if run:
        yield run


def _encoded(event: RawEnvelope) -> EncodedEvent:
    """Return an event as an append takes it. Its id need not be looked up: the comparison came before."""
    fields = event.fields
    return EncodedEvent(
        cast("str", fields.id), fields.type, fields.job_id, event.head_json or b"", event.payload_json, id_is_fresh=True
    )


def _size(event: RawEnvelope) -> int:
    return len(event.head_json or b"") + len(event.payload_json)


def _seq(event: RawEnvelope) -> int:
    return cast("int", event.event_seq)
