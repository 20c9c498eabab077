"""What engines with transactions share: settling the requests of a batch, and the checksum of a stored event.

An engine loads what its transaction says of a session (the last event, the high-water, the halt, and the numbers of
those ids that may be retries), lets a ``SessionPlan`` settle the requests, writes the rows that the plan names together
with the new high-water, commits, and turns the plan into answers. So retries, conflicts and expectations are decided
alike by every engine, and no engine numbers an event but in its own transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ..protocol import (
    SEQ_MAX,
    AppendError,
    EncodedEvent,
    LogmarkError,
    SequenceExhausted,
    SessionHalted,
    SessionSealed,
    StorageUnavailable,
    WrongExpectedSeq,
    crc32,
    new_tuple,
)
from ._ids_index import IdIndex, settle, stands_without
from ._store import Appended, AppendRequest, BatchResult, HaltRecord

__all__ = [
    "BatchPlan",
    "SessionPlan",
    "event_checksum",
    "ids_in_doubt",
    "number_plainly",
    "record_checksum",
    "truncated_partly",
]


def event_checksum(seed: int, event_seq: int, head: bytes, payload_json: bytes) -> int:
    """Return the CRC-32 that engines with tables keep beside an event.

    It covers the session (``seed`` is ``row_seed`` of its id), the number, and both parts with the border between
    them, so that no row passes for another session's or another number's.
    """
    # One call over a copy costs half of three calls.
    return crc32(b"%d,%d,%b%b" % (event_seq, len(head), head, payload_json), seed)


def record_checksum(seed: int, name: str, version: int, data: bytes) -> int:
    """Return the CRC-32 that engines with tables keep beside a record: of its session, its name, version and content.

    Args:
        seed: ``row_seed`` of the session's id.
        name: the record's name.
        version: its version.
        data: its content.
    """
    encoded = name.encode()
    return crc32(data, crc32(b"%d,%d," % (version, len(encoded)) + encoded, seed))


def truncated_partly(store: str, session_id: str, first: int, seq: int, error: LogmarkError) -> StorageUnavailable:
    """Return the error for a truncation that has stopped in the middle, and so is none of which nothing was done.

    Args:
        store: its URL.
        session_id: the session.
        first: the first number that is available now.
        seq: the one that should have been.
        error: what has stopped it.
    """
    reason = f"session {session_id!r} begins with event {first} now and not yet with {seq}; do it again: {error}"
    return StorageUnavailable(store=store, reason=reason)


def ids_in_doubt(requests: Sequence[AppendRequest]) -> list[str]:
    """Return the ids, each once, that may be in the log already: those that logmark did not make for their event."""
    return list(dict.fromkeys(event.id for request in requests for event in request.events if not event.id_is_fresh))


def number_plainly(requests: Sequence[AppendRequest], through: int) -> tuple[list[Appended], list[EncodedEvent]] | None:
    """Number requests about which there is nothing to decide, as nearly all are; None when there is."""
    answers: list[Appended] = []
    events: list[EncodedEvent] = []
    for request in requests:
        if request.expected_seq is not None:
            return None
        for event in request.events:
            if not event.id_is_fresh:
                return None
        first = through + 1
        through += len(request.events)
        answers.append(new_tuple(Appended, (first, through, True)))
        events += request.events
    return (answers, events) if through <= SEQ_MAX else None


class SessionPlan:
    """One session in one transaction: settles and numbers its requests, batch after batch.

    Args:
        session_id: the session.
        seq: number of its last event, as the transaction found it under its lock; 0: none.
        through: the high-water: last number that is used, by an event or by a reservation.
        halt: why it is halted, or None.
        sealed: whether it takes no more events.
    """

    __slots__ = ("_halt", "_known", "_pending", "_sealed", "first", "seq", "seq_found", "session_id", "through")

    def __init__(
        self, session_id: str, *, seq: int, through: int, halt: HaltRecord | None = None, sealed: bool = False
    ) -> None:
        self.session_id = session_id
        self.seq_found = seq
        """Number of the last event before this transaction."""
        self.first = through + 1
        """The first number that this transaction may give."""
        self.seq = seq
        """Number of the last event after it: the value to store."""
        self.through = through
        """The high-water after it: the value to store."""
        self._halt = halt
        self._sealed = sealed
        self._known = IdIndex()
        self._pending: dict[str, int] = {}

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to write."""
        return self.through >= self.first

    def plan(self, requests: Sequence[AppendRequest], known: Mapping[str, int]) -> BatchPlan:
        """Settle the requests of one batch and number what is new.

        Args:
            requests: in order.
            known: the numbers of those of ``ids_in_doubt(requests)`` that are in the log.
        """
        for event_id, seq in known.items():
            self._known.add(event_id, seq)
        before, through_before = self.seq, self.through
        plain = self.plan_plainly(requests)
        if plain is not None:
            return plain
        answers: list[Appended | AppendError] = []
        events: list[EncodedEvent] = []
        seqs: list[int] = []
        for request in requests:
            answer = self._answer(request)
            answers.append(answer)
            if isinstance(answer, Appended) and answer.written:
                for seq, event in enumerate(request.events, answer.first_seq):
                    if not event.id_is_fresh:
                        self._pending[event.id] = seq
                    seqs.append(seq)
                events.extend(request.events)
                self.seq = self.through = answer.last_seq
        return BatchPlan(self, tuple(answers), events, seqs, before, self.seq, through_before)

    def plan_plainly(self, requests: Sequence[AppendRequest]) -> BatchPlan | None:
        """Number the requests of a batch about which there is nothing to decide; None when there is."""
        plain = None if self._halt is not None or self._sealed else number_plainly(requests, self.through)
        if plain is None or not plain[1]:
            return None
        before, through_before = self.seq, self.through
        numbers = list(range(through_before + 1, through_before + len(plain[1]) + 1))
        self.seq = self.through = numbers[-1]
        return BatchPlan(self, tuple(plain[0]), plain[1], numbers, before, self.seq, through_before)

    def _answer(self, request: AppendRequest) -> Appended | AppendError:
        if self._halt is not None:
            return SessionHalted(session_id=self.session_id, reason=self._halt.reason, halted_at=self._halt.at)
        # The ids come first: a retry whose first write succeeded must not fail on its expected_seq.
        settled = settle(self.session_id, request, self._known, self._pending)
        if settled is not None:
            return settled
        if self._sealed:
            return SessionSealed(session_id=self.session_id, last_seq=self.seq)
        if request.expected_seq is not None and request.expected_seq != self.seq:
            return WrongExpectedSeq(session_id=self.session_id, expected_seq=request.expected_seq, last_seq=self.seq)
        if self.through + len(request.events) > SEQ_MAX:
            return SequenceExhausted(session_id=self.session_id, last_seq=self.through)
        return Appended(self.through + 1, self.through + len(request.events))


class BatchPlan:
    """What is to be written for one batch, and what is answered when it was, or was not.

    Attributes:
        session: the plan of its session in this transaction.
        answers: one for each request, as they are when the commit succeeds.
        events: what is to be written, in order.
        seqs: their numbers.
    """

    __slots__ = ("_last_seq", "_last_seq_before", "_through_before", "answers", "events", "seqs", "session")

    def __init__(
        self,
        session: SessionPlan,
        answers: tuple[Appended | AppendError, ...],
        events: list[EncodedEvent],
        seqs: list[int],
        last_seq_before: int,
        last_seq: int,
        through_before: int,
    ) -> None:
        self.session = session
        self.answers = answers
        self.events = events
        self.seqs = seqs
        self._last_seq_before = last_seq_before
        self._last_seq = last_seq
        self._through_before = through_before

    @property
    def first_event_id(self) -> str | None:
        """Id of the first event that is to be written, for ``AppendUncertain`` and the halt."""
        return self.events[0].id if self.events else None

    def rows(self) -> Iterator[tuple[int, EncodedEvent]]:
        """Yield what is to be written, each event with its number."""
        return zip(self.seqs, self.events, strict=True)

    def result(self, *, bytes_written: int = 0, sync_s: float = 0.0) -> BatchResult:
        """Return the answers after the commit."""
        return BatchResult(
            session_id=self.session.session_id,
            answers=self.answers,
            last_seq_before=self._last_seq_before,
            last_seq=self._last_seq,
            bytes_written=bytes_written if self.events else 0,
            sync_s=sync_s if self.events else 0.0,
            through_before=self._through_before if self.events else None,
        )

    def failed(self, error: AppendError) -> BatchResult:
        """Return the answers after a commit that failed: requests that the log itself has answered do not share it."""
        first = self.session.first
        return BatchResult(
            session_id=self.session.session_id,
            answers=tuple(answer if stands_without(first, answer) else error for answer in self.answers),
            last_seq_before=self.session.seq_found,
            last_seq=self.session.seq_found,
        )
