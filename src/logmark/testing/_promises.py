"""What callers of a store have been told, kept as the histories that are still possible.

A history is the events of a session and the number that comes next. An append that is under way makes two of each: the
one in which it never happened and the one in which all of it did. Its answer leaves those that agree with the answer;
a crash or an ``AppendUncertain`` leaves both, until a read tells which it was. What a crash leaves on a disk is right
when it reads as one of the histories, and wrong otherwise: that one comparison covers lost, repeated, invented, changed
and half-written events, gaps, and numbers that were given twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from ..protocol import AppendError, AppendRejected, RawEnvelope
from ..storage import Appended, AppendRequest

__all__ = ["BrokenPromise", "Expectation", "History", "Promises", "StoredEvent", "stored_events"]

Answer: TypeAlias = "Appended | AppendError"


class BrokenPromise(AssertionError):
    """A store has said or shown what no history allows."""


class StoredEvent(NamedTuple):
    """What must be read of an event."""

    seq: int
    id: str
    type: str
    payload_json: bytes


class History(NamedTuple):
    """The events of a session, the number that the next one gets, how much of it there is, and its records."""

    events: tuple[StoredEvent, ...] = ()
    next_seq: int = 1
    first_available: int = 1
    end: str = ""
    records: tuple[tuple[str, bytes, int], ...] = ()

    def truncated(self, seq: int) -> History:
        """Return what it is after ``truncate_before``."""
        if self.end == "deleted" or not self.first_available < seq <= self.next_seq:
            return self
        return self._replace(events=tuple(event for event in self.events if event.seq >= seq), first_available=seq)

    def sealed(self) -> History:
        """Return what it is after ``seal``."""
        return self if self.end else self._replace(end="sealed")

    def deleted(self) -> History:
        """Return what it is after ``delete``."""
        return History((), self.next_seq, self.next_seq, "deleted")

    def with_record(self, name: str, data: bytes) -> History:
        """Return what it is after a record was saved in place of the one there was."""
        if self.end == "deleted":
            return self
        version = next((version for known, _, version in self.records if known == name), 0)
        others = [record for record in self.records if record[0] != name]
        return self._replace(records=tuple(sorted([*others, (name, data, version + 1)])))


class Expectation(NamedTuple):
    """What may be found at one moment.

    Attributes:
        histories: what may be read.
        halted: whether the session may be, or must be, halted.
    """

    histories: tuple[History, ...]
    halted: frozenset[bool]

    def objection(self, history: History, *, halted: bool) -> str | None:
        """Say what is wrong with what was found, or None."""
        if halted not in self.halted:
            return f"halted is {halted}, allowed is {set(self.halted)}"
        return None if history in self.histories else _not_among(history, self.histories)


def _not_among(history: History, allowed: Iterable[History]) -> str:
    alternatives = "\n    or ".join(map(_summary, allowed))
    return f"found   {_summary(history)}\n  allowed {alternatives}"


def _summary(history: History) -> str:
    events = " ".join(f"{event.seq}:{event.id}" for event in history.events)
    kept = f" from {history.first_available}" if history.first_available > 1 else ""
    records = f" with {history.records}" if history.records else ""
    return f"[{events}] then {history.next_seq}{kept}{records} {history.end}".rstrip()


def stored_events(envelopes: Iterable[RawEnvelope]) -> tuple[StoredEvent, ...]:
    """Return what was read, in a form that can be compared."""
    return tuple(
        StoredEvent(envelope.event_seq or 0, envelope.id or "", envelope.type, envelope.payload_json)
        for envelope in envelopes
    )


@dataclasses.dataclass(slots=True)
class Promises:
    """The histories of one session that are possible, as its callers learn more.

    Attributes:
        settled: those that were possible when nothing was under way.
        under_way: those that are possible now.
        halted: whether the session may be, or must be, halted now.
    """

    settled: tuple[History, ...] = (History(),)
    under_way: tuple[History, ...] = (History(),)
    halted: frozenset[bool] = frozenset({False})
    _halted_before: frozenset[bool] = frozenset({False})
    _answers: dict[History, tuple[History, tuple[Appended | None, ...]]] = dataclasses.field(
        default_factory=dict["History", tuple["History", tuple[Appended | None, ...]]]
    )

    @classmethod
    def of(cls, expectation: Expectation) -> Promises:
        """Return what holds after a crash at a moment when this was expected."""
        return cls(expectation.histories, expectation.histories, expectation.halted, expectation.halted)

    def expectation(self) -> Expectation:
        """Return what may be found now."""
        return Expectation(self.under_way, self.halted)

    def begin(self, requests: Sequence[AppendRequest]) -> None:
        """Note that an append is about to be made; it may halt the session."""
        self._answers = {history: _extended(history, requests) for history in self.settled}
        self._begin(longer for longer, _ in self._answers.values())

    def begin_reserve(self, through_seq: int) -> None:
        """Note that numbers are about to be reserved."""
        self.begin_change(
            lambda history: (
                history if history.end else history._replace(next_seq=max(history.next_seq, through_seq + 1))
            )
        )

    def begin_change(self, change: Callable[[History], History]) -> None:
        """Note that something else is about to be done to the session: what a history is when that is done."""
        self._answers = {history: (change(history), ()) for history in self.settled}
        self._begin(longer for longer, _ in self._answers.values())

    def _begin(self, longer: Iterable[History]) -> None:
        self.under_way = tuple(dict.fromkeys((*self.settled, *longer)))
        self._halted_before = self.halted
        self.halted |= {True}

    def answered(self, answers: Sequence[Answer]) -> None:
        """Take an append's answers.

        Raises:
            BrokenPromise: no history allows them.
        """
        if any(isinstance(answer, AppendError) and not isinstance(answer, AppendRejected) for answer in answers):
            self._settle(self.under_way, frozenset({True}))
            return
        if answers and all(isinstance(answer, AppendError) for answer in answers):
            self._settle(self.settled, self._halted_before)  # refused as a whole, which tells nothing of the log
            return
        agreeing = [longer for longer, expected in self._answers.values() if _agree(answers, expected)]
        # Or what was new was refused, as when the disk is full, and retries of what was there answered all the same.
        agreeing += [
            history
            for history, (_, expected) in self._answers.items()
            if _agree(answers, [None if numbers and numbers.written else numbers for numbers in expected])
        ]
        if not agreeing:
            possible = "\n  or ".join(f"{_summary(longer)} {numbers}" for longer, numbers in self._answers.values())
            message = f"answered {answers!r}\n  possible {possible}"
            raise BrokenPromise(message)
        self._settle(agreeing, self._halted_before)

    def reserved(self) -> None:
        """Take the return of a reservation, or of another change."""
        self._settle([longer for longer, _ in self._answers.values()], self._halted_before)

    def not_reserved(self, *, certain: bool) -> None:
        """Take the failure of a reservation, with or without the certainty that nothing was written."""
        if certain:
            self._settle(self.settled, self._halted_before)
        else:
            self._settle(self.under_way, frozenset({True}))

    def maybe_changed(self) -> None:
        """Take a failure that leaves open whether the change was made."""
        self._settle(self.under_way, self._halted_before)

    def abandoned(self) -> None:
        """Take the death of the caller: what was under way happened or did not."""
        self.settled = self.under_way

    def told(self, history: History) -> None:
        """Take what was read by a process that has just recovered the log, and what is now settled.

        Raises:
            BrokenPromise: it is none of the histories.
        """
        if history not in self.under_way:
            raise BrokenPromise(_not_among(history, self.under_way))
        self._settle([history], self.halted)

    def seen(self, events: tuple[StoredEvent, ...], *, at_least: int) -> None:
        """Take what was read as far as the head covers: more may have happened.

        Args:
            events: what was read.
            at_least: the highest number that the reader itself had been told before.

        Raises:
            BrokenPromise: no history begins like that, or something is missing that the reader had been told of.
        """
        beginning = [history for history in self.under_way if history.events[: len(events)] == events]
        if not beginning or at_least > (events[-1].seq if events else 0):
            allowed = "\n    or ".join(map(_summary, self.under_way))
            message = f"saw {[event.seq for event in events]}, had been told {at_least}\n  possible {allowed}"
            raise BrokenPromise(message)
        self._settle(beginning, self.halted)

    def begin_halt(self) -> None:
        """Note that the session is about to be halted, or to be cleared of it."""
        self.halted = frozenset({False, True})

    def halt(self, *, halted: bool) -> None:
        """Take the return of halting or of clearing."""
        self.halted = frozenset({halted})

    def _settle(self, histories: Iterable[History], halted: frozenset[bool]) -> None:
        self.settled = self.under_way = tuple(dict.fromkeys(histories))
        self.halted = halted


def _agree(answers: Sequence[Answer], expected: Sequence[Appended | None]) -> bool:
    return all(
        answer == numbers if isinstance(answer, Appended) else numbers is None
        for answer, numbers in zip(answers, expected, strict=True)
    )


def _extended(history: History, requests: Sequence[AppendRequest]) -> tuple[History, tuple[Appended | None, ...]]:
    """Return the history after an append, and the numbers that each request is answered with, None for a refusal."""
    events, next_seq = list(history.events), history.next_seq
    seqs = {event.id: event.seq for event in events}
    answers: list[Appended | None] = []
    for request in requests:
        found = [seqs[event.id] for event in request.events if event.id in seqs]
        last_seq = events[-1].seq if events else 0
        if history.end == "deleted":
            answers.append(None)
            continue
        if len({event.id for event in request.events}) < len(request.events):
            answers.append(None)
        elif found:
            again = len(found) == len(request.events) and found == list(range(found[0], found[0] + len(found)))
            answers.append(Appended(found[0], found[-1], written=False) if again else None)
        elif history.end or request.expected_seq not in {None, last_seq}:
            answers.append(None)
        else:
            for seq, event in enumerate(request.events, next_seq):
                events.append(StoredEvent(seq, event.id, event.type, event.payload_json))
                seqs[event.id] = seq
            answers.append(Appended(next_seq, next_seq + len(request.events) - 1))
            next_seq += len(request.events)
    return history._replace(events=tuple(events), next_seq=next_seq), tuple(answers)
