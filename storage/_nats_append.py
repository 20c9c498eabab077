"""Writing to a NATS store: compare-and-append, one message for each commit.

A message is published behind a certain other one of its session. The server stores it when that is still the last, and
refuses it otherwise, for ever: as numbers in a stream only grow, a message that was overtaken can never get in later.
So when an answer is lost, the same message is published again: it is stored once, or it is there, or another one is in
its place and it never will be. What stands behind the message that it was to follow says which.
"""

from __future__ import annotations

import dataclasses
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ..protocol import (
    AppendError,
    AppendUncertain,
    EventTooLarge,
    Limits,
    LockTimeout,
    LogCorrupt,
    SchemaMismatch,
    SeqPruned,
    SessionDeleted,
    StorageRejected,
    StorageUnavailable,
)
from ._nats_link import Link, NotSent, Unanswered
from ._nats_message import EMPTY, EXPECTED, REPAIR, Commit, State, encode_commit, session_subject
from ._nats_reader import Known, KnownSessions, Reader, deleted
from ._nats_stream import Refused, Stream
from ._plan import BatchPlan, SessionPlan, ids_in_doubt
from ._store import Appended, AppendRequest, BatchResult, SessionBatch

__all__ = ["MESSAGE_ID", "Appender", "Change", "Overtaken", "Publisher", "Undone", "Unsure"]

_WRONG_LAST = frozenset({10071, 10164})
_STORE_FAILED = 10077
_SAME_IN_HAND = 10158
_FOR_NOW = frozenset({10008, 10009, 10163})
_PAUSE_S = 0.01
_PAUSE_S_MAX = 0.25
_ROW_BYTES = 136  # of a row, beside its event
_HEAD_BYTES = 4096  # of a message, beside its rows
MESSAGE_ID = "Nats-Msg-Id"
_FAILURES = (AppendUncertain, StorageRejected, LockTimeout)


class Overtaken(Exception):
    """Another message has the place: it is certain that this one is not stored and never will be."""


class Undone(Exception):
    """It is certain that the message is not stored."""


class Unsure(Exception):
    """Nobody could say until the deadline whether the message is stored."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What is to be said of a session beside events.

    Attributes:
        kind: a word for who looks at the stream.
        state: what is true after it.
        lost: numbers whose events are given up.
    """

    kind: str
    state: State
    lost: tuple[tuple[int, int], ...] = ()


class Publisher:
    """Stores messages, each behind a certain other one. Safe from any thread.

    Args:
        link: to the servers.
        stream: of the store.
    """

    def __init__(self, link: Link, stream: Stream) -> None:
        self._link = link
        self._stream = stream
        self.writer = secrets.token_hex(8)
        """Begins the id of every message of this store, so that it knows its own when it hears of them."""
        self._mutex = threading.Lock()
        self._count = 0

    def new_id(self) -> str:
        """Return an id that no other message has."""
        with self._mutex:
            self._count += 1
            return f"{self.writer}-{self._count}"

    def publish(
        self,
        subject: str,
        body: bytes,
        message_id: str,
        *,
        after: int,
        deadline: float,
        rollup: bool = False,
    ) -> int:
        """Store a message behind the one with the number ``after``, the last of its subject; return its number.

        Args:
            subject: of the message.
            body: of the message.
            message_id: of the message, by which the server knows one that is published again.
            after: 0 for the first message of its subject.
            deadline: until when to try.
            rollup: remove those before it.

        Raises:
            Overtaken, Undone, Unsure: as they say.
        """
        headers = {EXPECTED: str(after), MESSAGE_ID: message_id}
        if rollup:
            headers["Nats-Rollup"] = "sub"
        in_doubt = False
        pause_s = _PAUSE_S
        while True:
            try:
                return self._stream.publish(subject, body, headers, deadline=self._link.attempt_by(deadline))
            except NotSent as error:
                reason = str(error)
            except Unanswered as error:
                in_doubt, reason = True, str(error)
            except Refused as error:
                reason = str(error)
                if error.code in _WRONG_LAST:
                    found = self._settled(subject, after, body, deadline) if in_doubt else 0
                    if found == 0:
                        raise Overtaken(reason) from error
                    if found is not None:
                        return found
                elif error.code == _SAME_IN_HAND or (error.code == _STORE_FAILED and "maximum" not in str(error)):
                    in_doubt = True
                elif error.code not in _FOR_NOW and not in_doubt:
                    raise Undone(reason) from error
            if time.monotonic() + pause_s >= deadline:
                raise (Unsure if in_doubt else Undone)(reason)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    def _settled(self, subject: str, after: int, body: bytes, deadline: float) -> int | None:
        """Return the number of the message when it is the one behind ``after``, 0 when another is, None: not known."""
        try:
            stored = self._stream.next(subject, after + 1, deadline=deadline)
        except (NotSent, Unanswered, Refused):
            return None
        if stored is None:
            return None
        if stored.body == body:  # its id is in it
            return stored.seq
        # When the direct successor has been removed meanwhile, nobody can say whose it was.
        return 0 if stored.expected in (after, None) else None


class Appender:
    """Writes batches and changes of sessions. Safe from any thread.

    Args:
        publisher: stores messages.
        stream: of the store.
        reader: of the store.
        sessions: what is known of them; kept up to date.
        limits: lock_wait_s and server_wait_s count.
        store: the store's URL, for errors.
    """

    def __init__(
        self,
        publisher: Publisher,
        stream: Stream,
        reader: Reader,
        sessions: KnownSessions,
        *,
        limits: Limits,
        store: str,
    ) -> None:
        self._publisher = publisher
        self._stream = stream
        self._reader = reader
        self._sessions = sessions
        self._limits = limits
        self._store = store

    def _deadline(self) -> float:
        return time.monotonic() + self._limits.lock_wait_s + self._limits.server_wait_s

    # -- events -----------------------------------------------------------------------------------------------------

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """Write the batches, one after the other; every failure is in the answers."""
        deadline = self._deadline()
        return [self._append(batch, deadline) for batch in batches]

    def _append(self, batch: SessionBatch, deadline: float) -> BatchResult:
        known = self._sessions.of(batch.session_id)
        results: list[tuple[list[int], BatchResult]] = []
        answers: dict[int, Appended | AppendError] = {}
        failed: AppendError | None = None
        with known.mutex:
            for places, requests in self._pieces(batch.requests, answers):
                if failed is not None:
                    # What comes after an append that may still turn up must not stand before it.
                    reason = f"an append before it in the same batch has failed ({failed})"
                    answers |= {place: StorageRejected(session_id=batch.session_id, reason=reason) for place in places}
                    continue
                result = self._commit(batch.session_id, requests, known, deadline)
                results.append((places, result))
                answers |= zip(places, result.answers, strict=True)
                failed = next((each for each in result.answers if isinstance(each, _FAILURES)), None)
        last = [result for _, result in results if result.last_seq] or [result for _, result in results]
        return BatchResult(
            session_id=batch.session_id,
            answers=tuple(answers[place] for place in range(len(batch.requests))),
            last_seq_before=last[0].last_seq_before if last else known.state.seq,
            last_seq=last[-1].last_seq if last else known.state.seq,
            bytes_written=sum(result.bytes_written for _, result in results),
            sync_s=sum(result.sync_s for _, result in results),
            through_before=next((each.through_before for _, each in results if each.through_before is not None), None),
        )

    def _pieces(
        self, requests: Sequence[AppendRequest], answers: dict[int, Appended | AppendError]
    ) -> Iterator[tuple[list[int], list[AppendRequest]]]:
        """Yield the requests, with their places, in as many messages as they need; answer those that never fit."""
        bytes_max = self._stream.message_bytes_max - _HEAD_BYTES
        sizes = [
            sum([len(event.head) + len(event.payload_json) + _ROW_BYTES for event in request.events])
            for request in requests
        ]
        if sum(sizes) <= bytes_max:  # as nearly always
            yield list(range(len(requests))), list(requests)
            return
        places: list[int] = []
        size = 0
        for place, wanted in enumerate(sizes):
            if wanted > bytes_max:
                answers[place] = EventTooLarge(
                    size_bytes=wanted,
                    limit_bytes=bytes_max,
                    what="append, which is one message of at most the server's max_payload,",
                )
                continue
            if places and size + wanted > bytes_max:
                yield places, [requests[each] for each in places]
                places, size = [], 0
            places.append(place)
            size += wanted
        if places:
            yield places, [requests[each] for each in places]

    def _commit(self, session_id: str, requests: Sequence[AppendRequest], known: Known, deadline: float) -> BatchResult:
        """Write one message, planned anew whenever somebody else was quicker."""
        state, is_fresh = known.state, False
        pause_s = 0.0
        while True:
            try:
                planned = self._plan(session_id, requests, known, state, deadline, is_fresh=is_fresh)
            except (LogCorrupt, SchemaMismatch, SessionDeleted) as error:
                return _refused(session_id, requests, error, known.state)
            except SeqPruned:  # somebody has removed what this process knew to be the end
                state, is_fresh = EMPTY, False
                continue
            except (NotSent, Unanswered, Refused, StorageUnavailable) as error:
                return _refused(session_id, requests, _rejected(session_id, error), known.state)
            plan, state = planned
            if not plan.events:
                return plan.result()
            try:
                return self._publish_events(session_id, plan, known, state, deadline)
            except Overtaken:
                if time.monotonic() + pause_s >= deadline:
                    return plan.failed(self._lock_timeout(session_id))
                time.sleep(random.uniform(0.0, pause_s))  # noqa: S311 - so that two do not meet again and again
                pause_s = min(2 * pause_s + 0.001, _PAUSE_S_MAX)
                state, is_fresh = EMPTY, False
            except Undone as error:
                return plan.failed(_rejected(session_id, error))
            except Unsure as error:
                first_id = plan.first_event_id
                return plan.failed(
                    AppendUncertain(session_id=session_id, reason=str(error), first_event_id=first_id, halted=False)
                )

    def _plan(
        self,
        session_id: str,
        requests: Sequence[AppendRequest],
        known: Known,
        state: State,
        deadline: float,
        *,
        is_fresh: bool,
    ) -> tuple[BatchPlan, State]:
        """Settle the requests by where the session stands as far as it is known, and return by which state.

        The server has the last word on what is written, when it is. Where nothing is to be written, because of what
        was refused or found, it is asked where the session stands now.
        """
        while True:
            if state.at == 0 and not is_fresh:
                state, is_fresh = self._reader.tail(session_id, deadline), True
            plan = None
            if state.deleted_at is None:
                session = SessionPlan(
                    session_id,
                    seq=state.seq,
                    through=state.through,
                    halt=state.halt_record(session_id),
                    sealed=state.sealed,
                )
                plan = session.plan(requests, self._ids(session_id, known, state, requests))
                if plan.events:
                    return plan, state
            newer = state if is_fresh else self._reader.tail(session_id, deadline)
            if newer != state:
                state, is_fresh = newer, True
            elif plan is None:
                raise deleted(session_id, state)
            else:
                return plan, state

    def _publish_events(
        self, session_id: str, plan: BatchPlan, known: Known, state: State, deadline: float
    ) -> BatchResult:
        message_id = self._publisher.new_id()
        after = state._replace(
            seq=plan.session.seq, through=plan.session.through, first_seq=state.first_seq or plan.seqs[0]
        )
        body = encode_commit(
            session_id, message_id, after=state.at, before=state.through, state=after, events=plan.events
        )
        began = time.monotonic()
        at = self._publish(session_id, body, message_id, state.at, deadline)
        took_s = time.monotonic() - began
        known.note(after._replace(at=at, said_at=at))
        known.last = (after.through, state.through, at)
        if known.ids is not None and known.ids.covered == state.at:
            known.ids.add([event.id.encode() for event in plan.events], at)
        return plan.result(bytes_written=len(body), sync_s=took_s)

    def _publish(self, session_id: str, body: bytes, message_id: str, after: int, deadline: float) -> int:
        return self._publisher.publish(
            session_subject(self._stream.name, session_id),
            body,
            message_id,
            after=after,
            deadline=deadline,
        )

    def _ids(self, session_id: str, known: Known, state: State, requests: Sequence[AppendRequest]) -> dict[str, int]:
        """Return the numbers of those ids that may be in the log and are."""
        wanted = ids_in_doubt(requests)
        if not wanted or not state.seq:
            return {}
        ids = self._sessions.ids_of(session_id, known)
        if ids.covered < state.at:
            for commit in self._reader.walk(session_id, ids.covered + 1, state.at):
                ids.add(commit.ids(), commit.seq)
            ids.covered = state.at
        places: dict[int, set[bytes]] = {}
        for event_id in wanted:
            for place in ids.places(event_id):
                places.setdefault(place, set()).add(event_id.encode())
        found: dict[str, int] = {}
        for place in sorted(places):
            holder = self._commit_at(session_id, place)
            if holder is None:  # removed with the events before it
                continue
            for seq, each in enumerate(holder.ids(), holder.before + 1):
                if each in places[place] and seq >= state.first_available:
                    found.setdefault(each.decode(), seq)
        return found

    def _commit_at(self, session_id: str, place: int) -> Commit | None:
        stored = self._reader.asked(lambda deadline: self._stream.at(place, deadline=deadline))
        return None if stored is None else Commit.decode(stored, session_id)

    # -- everything else --------------------------------------------------------------------------------------------

    def change(
        self,
        session_id: str,
        wanted: Callable[[State], Change | None],
        *,
        tail: Callable[[str, float], State] | None = None,
    ) -> State:
        """Say something of a session that is not an event, and return where it stands then.

        Args:
            session_id: the session.
            wanted: what to say, by where the session stands, or None for nothing; it may raise, and be called again.
            tail: finds out where the session stands, in place of its last message and what is known of it.

        Raises:
            LockTimeout: others wrote all the time.
            StorageUnavailable: it is not said, or nobody knows; doing it again settles it.
            LogCorrupt, SchemaMismatch: the end of the session cannot be trusted.
        """
        deadline = self._deadline()
        known = self._sessions.of(session_id)
        ask = tail or self._reader.tail
        with known.mutex:
            while True:
                try:
                    state = ask(session_id, deadline)
                    change = wanted(state)
                    if change is None:
                        return state
                    message_id = self._publisher.new_id()
                    body = encode_commit(
                        session_id,
                        message_id,
                        after=state.at,
                        before=state.through,
                        state=change.state,
                        kind=change.kind,
                        lost=change.lost,
                    )
                    at = self._publish(session_id, body, message_id, state.at, deadline)
                except (Overtaken, SeqPruned):
                    if time.monotonic() >= deadline:
                        raise self._lock_timeout(session_id) from None
                    time.sleep(random.uniform(0.0, _PAUSE_S))  # noqa: S311 - as above
                except (NotSent, Unanswered, Refused, Undone, Unsure) as error:
                    raise StorageUnavailable(store=self._store, reason=str(error)) from error
                else:
                    after = change.state._replace(at=at, said_at=at)
                    if change.kind == REPAIR:
                        after = after._replace(repair=at)
                    if tail is not None:
                        known.forget()
                    known.note(after)
                    return after

    def _lock_timeout(self, session_id: str) -> LockTimeout:
        waited_s = self._limits.lock_wait_s + self._limits.server_wait_s
        return LockTimeout(session_id=session_id, waited_s=waited_s, holder_pid=None)


def _rejected(session_id: str, cause: Exception) -> StorageRejected:
    reason = cause.reason if isinstance(cause, StorageUnavailable) else str(cause)
    error = StorageRejected(session_id=session_id, reason=reason)
    error.__cause__ = cause
    return error


def _refused(session_id: str, requests: Sequence[AppendRequest], error: AppendError, state: State) -> BatchResult:
    return BatchResult(
        session_id=session_id,
        answers=(error,) * len(requests),
        last_seq_before=state.seq,
        last_seq=state.seq,
    )
