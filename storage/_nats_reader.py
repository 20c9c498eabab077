"""Reading a NATS store: where a session stands, by the word of the stream's leader, and its messages in order."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from ..protocol import Limits, LogCorrupt, RawEnvelope, SeqPruned, SessionDeleted, StorageUnavailable
from ._nats_ids import SessionIds
from ._nats_link import NotSent, Unanswered
from ._nats_message import EMPTY, Commit, State, Stored, session_subject
from ._nats_stream import Refused, Stream

__all__ = ["Known", "KnownSessions", "Reader", "deleted", "log_lost"]

T = TypeVar("T")
_KNOWN_MAX = 10_000
_PLACES_MAX = 512
_PAGE_MESSAGES = 256
_ASKED_AT_ONCE = 64
_PAUSE_S = 0.1
_BACKWARDS_EVENTS = 16
_BACKWARDS_EVENTS_MAX = 4096


class Known:
    """What this process knows of a session; the server decides what is true.

    Attributes:
        mutex: held while the session is written to.
        state: the latest that was seen.
        ids: of its events, or None when no id had to be looked for yet.
        last: the last message that was seen, as ``place`` has it.
    """

    __slots__ = ("_places", "ids", "last", "mutex", "state")

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.state: State = EMPTY
        self.ids: SessionIds | None = None
        self.last: tuple[int, int, int] | None = None
        self._places: list[tuple[int, int, int]] = []

    def note(self, state: State) -> None:
        """Learn where the session stands."""
        if state.at > self.state.at:
            self.state = state

    def place(self, before: int, through: int, message_seq: int) -> None:
        """Learn that a message is the one that used the numbers behind ``before`` up to ``through``."""
        if before == through:  # it used none
            return
        places = self._places
        place = (through, before, message_seq)
        index = bisect.bisect_left(places, place)
        if index == len(places) or places[index] != place:
            # Replaced as a whole, as readers look at it without a lock.
            kept = places if len(places) < _PLACES_MAX else places[::2]
            self._places = sorted([*kept, place])

    def around(self, number: int) -> tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]:
        """Return the nearest known message before a number, and the nearest that used it or one above."""
        last = self.last
        if last is not None and last[1] < number <= last[0]:
            return None, last
        places = self._places
        index = bisect.bisect_left(places, (number, 0, 0))
        return (places[index - 1] if index else None), (places[index] if index < len(places) else None)

    def forget(self) -> None:
        """Take what the server says from now on."""
        self.state, self.ids, self._places, self.last = EMPTY, None, [], None


class KnownSessions:
    """What this process knows of the sessions used last. Safe from any thread.

    Args:
        ids_max: of how many sessions the ids are kept.
    """

    def __init__(self, ids_max: int) -> None:
        self._mutex = threading.Lock()
        self._ids_max = ids_max
        self._sessions: OrderedDict[str, Known] = OrderedDict()
        self._with_ids: OrderedDict[str, Known] = OrderedDict()

    def of(self, session_id: str) -> Known:
        """Return what is known of a session."""
        with self._mutex:
            known = self._sessions.get(session_id)
            if known is None:
                known = self._sessions[session_id] = Known()
                if len(self._sessions) > _KNOWN_MAX:
                    self._sessions.popitem(last=False)
            else:
                self._sessions.move_to_end(session_id)
            return known

    def ids_of(self, session_id: str, known: Known) -> SessionIds:
        """Return the ids of a session, to be brought up to date; those of the session used longest ago may go."""
        with self._mutex:
            self._with_ids[session_id] = known
            self._with_ids.move_to_end(session_id)
            if len(self._with_ids) > self._ids_max:
                self._with_ids.popitem(last=False)[1].ids = None
        ids = known.ids
        if ids is None:
            ids = known.ids = SessionIds()
        return ids


def log_lost(session_id: str, through: int, known: int) -> LogCorrupt:
    """Return the error for a log that has become shorter."""
    return LogCorrupt(
        session_id=session_id,
        reason=(
            f"numbers up to {known} were given, and the server knows of {through}: the stream was restored from an"
            " older copy, or servers that had not synced have lost their last messages"
        ),
        event_seq=through + 1,
        segment=None,
        offset=None,
    )


def deleted(session_id: str, state: State) -> SessionDeleted:
    """Return the error for a session that was deleted."""
    return SessionDeleted(session_id=session_id, last_seq=state.through, deleted_at=state.deleted_at or "")


class Reader:
    """Reads sessions. Safe from any thread.

    Args:
        stream: of the store.
        store: the store's URL, for errors.
        limits: server_wait_s and read_chunk_bytes count.
        sessions: what is known of them; kept up to date.
    """

    def __init__(self, stream: Stream, *, store: str, limits: Limits, sessions: KnownSessions) -> None:
        self._stream = stream
        self._store = store
        self._limits = limits
        self._sessions = sessions

    def asked(self, question: Callable[[float], T]) -> T:
        """Return the answer to a question, which gets its deadline.

        Raises:
            StorageUnavailable: there was none in time.
        """
        try:
            return question(self._stream.deadline())
        except (NotSent, Unanswered, Refused) as error:
            raise StorageUnavailable(store=self._store, reason=str(error)) from error

    # -- where a session stands -------------------------------------------------------------------------------------

    def state(self, session_id: str) -> State:
        """Return where a session stands.

        Raises:
            StorageUnavailable: the server did not answer in time.
            LogCorrupt: its last message is damaged, or events are gone that this process knows of.
            SchemaMismatch: its last message is of another version.
        """
        return self.asked(lambda deadline: self.tail(session_id, deadline))

    def tail(self, session_id: str, deadline: float) -> State:
        """Return where a session stands; raises as ``state`` does, and what the stream raises."""
        known = self._sessions.of(session_id)
        while True:
            before = known.state
            state = self.tail_as_told(session_id, deadline)
            if state.at >= before.at and state.through >= before.through:
                known.note(state)
                return state
            # A leader that was just elected, or one that does not know yet that it is none any more, may be behind.
            if time.monotonic() + _PAUSE_S >= deadline:
                raise log_lost(session_id, state.through, before.through)
            time.sleep(_PAUSE_S)

    def tail_as_told(self, session_id: str, deadline: float) -> State:
        """Return where a session stands by what the server has now, whatever is known of it."""
        stored = self._stream.last(session_subject(self._stream.name, session_id), deadline=deadline)
        return self._state_after(session_id, stored, deadline)

    def _state_after(self, session_id: str, stored: Stored | None, deadline: float) -> State:
        if stored is None:
            return EMPTY
        commit = Commit.decode(stored, session_id)
        if commit is not None:
            if commit.has_events:
                self._sessions.of(session_id).last = (commit.state.through, commit.before, commit.seq)
            return commit.state
        return self._before_stray(session_id, stored, deadline)._replace(at=stored.seq)

    def states(self, session_ids: Sequence[str]) -> Iterator[tuple[str, State | Exception]]:
        """Yield for each session where it stands, or what asking for it raised; many are asked about at once."""
        name = self._stream.name
        away: StorageUnavailable | None = None
        for start in range(0, len(session_ids), _ASKED_AT_ONCE):
            some = session_ids[start : start + _ASKED_AT_ONCE]
            before = [self._sessions.of(session_id).state for session_id in some]
            subjects = [session_subject(name, session_id) for session_id in some]
            deadline = self._stream.deadline()
            found = [] if away else self._stream.last_of_each(subjects, deadline=deadline)
            for session_id, known, stored in itertools.zip_longest(some, before, found):
                if away is not None:
                    yield session_id, away
                    continue
                try:
                    if stored is None or not isinstance(stored, Exception):
                        state = self._state_after(session_id, stored, deadline)
                        if state.at >= known.at and state.through >= known.through:
                            self._sessions.of(session_id).note(state)
                            yield session_id, state
                            continue
                    yield session_id, self.state(session_id)  # once more, by itself and with patience
                except StorageUnavailable as error:
                    away = error
                    yield session_id, error
                except Exception as error:
                    yield session_id, error

    def _before_stray(self, session_id: str, stray: Stored, deadline: float) -> State:
        """Return the state that the strays at the end have not changed."""
        subject = session_subject(self._stream.name, session_id)
        state, at = EMPTY, stray.seq
        while (stored := self._stream.last_below(subject, at, deadline=deadline)) is not None:
            at = stored.seq
            commit = Commit.decode(stored, session_id)
            if commit is not None:
                state = commit.state
                break
        else:
            at = 0
        # Who has answered may have been behind: what it did not know yet comes now.
        while at < stray.seq and (stored := self._stream.next(subject, at + 1, deadline=deadline)) is not None:
            at = stored.seq
            commit = Commit.decode(stored, session_id)
            state = state if commit is None else commit.state
        return state

    # -- its messages -----------------------------------------------------------------------------------------------

    def walk(self, session_id: str, start: int, end: int) -> Iterator[Commit]:
        """Yield the messages that count, from one number in the stream to another, both included.

        Every message says which number was the last before it, so that none is missed.

        Args:
            session_id: the session.
            start: where to begin; there need not be a message with this number.
            end: that of a message of the session.

        Raises:
            LogCorrupt: one is damaged, or missing and not taken away by ``truncate_before`` or ``delete``.
            SeqPruned, SessionDeleted: they were taken away while this went on.
        """
        subject = session_subject(self._stream.name, session_id)
        known = self._sessions.of(session_id)
        through: int | None = None
        damage: LogCorrupt | None = None
        while start <= end:
            page = self.asked(functools.partial(self._page, subject, start))
            if not page or page[0].seq > end:
                self._explain(session_id, through, damage=damage)
                return
            for stored in page:
                if stored.seq > end:
                    return
                try:
                    commit = Commit.decode(stored, session_id)
                except LogCorrupt as error:
                    commit, damage = None, damage or error
                if commit is not None:
                    if damage is not None or through not in (None, commit.before):
                        self._explain(session_id, through, commit, damage=damage)
                    damage, through = None, commit.state.through
                    if stored is page[0]:  # one for each page is enough to find the others by
                        known.place(commit.before, through, stored.seq)
                    yield commit
            start = page[-1].seq + 1
        if damage is not None:
            self._explain(session_id, through, damage=damage)

    def _next(self, subject: str, seq: int, deadline: float) -> Stored | None:
        return self._stream.next(subject, seq, deadline=deadline)

    def _page(self, subject: str, start: int, deadline: float) -> list[Stored]:
        return self._stream.page(
            subject, start, bytes_max=self._limits.read_chunk_bytes, count_max=_PAGE_MESSAGES, deadline=deadline
        )

    def _explain(
        self,
        session_id: str,
        through: int | None,
        found: Commit | None = None,
        *,
        damage: LogCorrupt | None = None,
    ) -> None:
        """Return when no number is missing, or a repair has given up those that are; else raise why they are.

        Args:
            session_id: the session.
            through: the last number before the hole; None: it is not known.
            found: the message behind it; None: there is none.
            damage: what is wrong with a message in it.
        """
        state = self.state(session_id)
        if state.deleted_at is not None:
            raise deleted(session_id, state)
        wanted = (through or 0) + 1
        if state.first_available > wanted:
            raise SeqPruned(session_id=session_id, seq=wanted, first_available=state.first_available)
        last = found.before if found is not None else state.through
        if wanted <= last and not self.given_up(session_id, state, wanted, last):
            raise damage or self._missing(session_id, wanted, last)

    @staticmethod
    def _missing(session_id: str, low: int, high: int) -> LogCorrupt:
        reason = f"events {low} to {high} were durable and are missing"
        return LogCorrupt(session_id=session_id, reason=reason, event_seq=low, segment=None, offset=None)

    def given_up(self, session_id: str, state: State, low: int, high: int) -> bool:
        """Say whether a repair has given up all numbers from ``low`` to ``high``, of which there may be none."""
        if not state.repair:
            return False
        stored = self.asked(lambda deadline: self._stream.at(state.repair, deadline=deadline))
        commit = None if stored is None else Commit.decode(stored, session_id)
        if commit is None:
            return False
        for first, last in commit.lost:
            if first <= low <= last:
                low = last + 1
        return low > high

    def locate(self, session_id: str, number: int, state: State) -> int | None:
        """Return where in the stream the message is that used a number; what lies before it is not read.

        Its place is guessed from the nearest known messages, and every other guess halves the rest.
        """
        known = self._sessions.of(session_id)
        subject = session_subject(self._stream.name, session_id)
        below, above = known.around(number)
        low, low_through = (0, state.first_available - 1) if below is None else (below[2], below[0])
        right, right_through = state.at + 1, state.through  # there is none from ``right`` on, but for what was found
        found: int | None = None
        if above is not None and above[2] <= state.at:
            right_through, before, right = above
            found = right
            if before < number:
                return found
        is_guess = True
        while low + 1 < right:
            span = right - low - 1
            share = span * (number - low_through - 1) // max(1, right_through - low_through) if is_guess else span // 2
            at = low + 1 + max(0, min(share, span - 1))
            is_guess = not is_guess
            commit = self._first_from(session_id, subject, at, right)
            if commit is None:
                right = at
                continue
            known.place(commit.before, commit.state.through, commit.seq)
            if commit.state.through < number:
                low, low_through = commit.seq, commit.state.through
            else:
                found, right, right_through = commit.seq, at, commit.state.through
                if commit.before < number:
                    return found
        return found

    def _first_from(self, session_id: str, subject: str, at: int, end: int) -> Commit | None:
        """Return the first message that counts, from one number in the stream on and before another."""
        while at < end:
            stored = self.asked(functools.partial(self._next, subject, at))
            if stored is None or stored.seq >= end:
                return None
            with contextlib.suppress(LogCorrupt):  # whoever reads it is told
                commit = Commit.decode(stored, session_id)
                if commit is not None:
                    return commit
            at = stored.seq + 1
        return None

    # -- its events -------------------------------------------------------------------------------------------------

    def upwards(self, session_id: str, state: State, low: int, high: int) -> Iterator[RawEnvelope]:
        """Yield the events from a number to another, both included, as of ``state``."""
        for commit in self.commits(session_id, state, low, high):
            yield from commit.events(session_id, low, high)

    def commits(self, session_id: str, state: State, low: int, high: int) -> Iterator[Commit]:
        """Yield the messages that have the numbers from ``low`` to ``high``, which are used as of ``state``."""
        if low > high:
            return
        at = self.locate(session_id, low, state)
        if at is None:
            self._explain(session_id, low - 1)
            return
        is_first = True
        for commit in self.walk(session_id, at, state.at):
            if is_first and commit.before >= low:
                self._explain(session_id, low - 1, commit)
            is_first = False
            yield commit
            if commit.state.through >= high:
                return

    def downwards(self, session_id: str, state: State, high: int) -> Iterator[RawEnvelope]:
        """Yield the events up to a number, the last one first, as of ``state``."""
        count = _BACKWARDS_EVENTS
        lowest = max(state.first_available, state.first_seq)
        while high >= lowest and state.first_seq:
            low = max(lowest, high - count + 1)
            try:
                events = list(self.upwards(session_id, state, low, high))
            except SeqPruned as error:
                if error.first_available > high:
                    return
                lowest = error.first_available
                continue
            yield from reversed(events)
            size = sum(len(event.payload_json) for event in events)
            if size < self._limits.read_chunk_bytes // 4:
                count = min(2 * count, _BACKWARDS_EVENTS_MAX)
            elif size > self._limits.read_chunk_bytes:
                count = max(1, count // 2)
            high = low - 1
