"""The story of a session, or of a job, as a timeline."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ._facts import Fact, Place, moment_of, process_of, text_of
from ._sentences import SENTENCES, filled

__all__ = ["Step", "Story", "job_story", "numbers_text", "session_story", "step_of"]

_ROUTINE = frozenset({"batch_persisted", "batch_broadcast", "marks_moved", "events_numbered"})
_TOGETHER_MIN = 6  # so many routine lines in a row become one
_JOBS_SHOWN = 3
_MOVES_SHOWN = 3
_OF_THE_LINE = frozenset({"event", "level", "timestamp", "runtime", "pid", "actor", "session", "exception"})


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One entry of a timeline.

    Attributes:
        moment_ns: when, in nanoseconds since 1970; None: the line does not say.
        event, level: of the log event.
        text: what happened, as a sentence.
        place: the line; of several, the first.
        count: how many lines it stands for.
        until_ns: of several, when the last was.
        keys: the keys of the event, for ``--json``; empty for several.
    """

    moment_ns: int | None
    event: str
    level: str
    text: str
    place: Place
    count: int = 1
    until_ns: int | None = None
    keys: Fact = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(slots=True)
class Story:
    """A timeline, and what it comes to.

    Attributes:
        title: whose it is.
        steps: what happened, in order.
        verdict: what follows, in sentences; may be empty.
        found: whether the logs have anything about it.
    """

    title: str
    steps: list[Step]
    verdict: list[str]
    found: bool = True


def numbers_text(first: int, last: int) -> str:
    """Return one number or a range of them, as a person would say it."""
    return f"number {first}" if first == last else f"numbers {first} to {last}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def step_of(fact: Fact, place: Place) -> Step:
    """Return an event as an entry of a timeline."""
    text = _TEXTS[fact["event"]](fact) if fact["event"] in _TEXTS else filled(SENTENCES.get(fact["event"]), fact)
    return Step(moment_of(fact), fact["event"], fact["level"], text or _plain(fact), place, keys=fact)


def _persisted(fact: Fact) -> str:
    numbers = numbers_text(fact["first_seq"], fact["last_seq"])
    of = "" if fact["appends"] == 1 else f" of {fact['appends']} appends"
    retries = f" ({fact['retries']} of them repetitions)" if fact["retries"] else ""
    gap = ""
    through, before = fact.get("through_before"), fact.get("before_seq")
    if through is not None and before is not None and through > before:
        gap = f" The numbers {before + 1} to {through} are reserved and have no events."
    return (
        f"{process_of(fact).capitalize()} had {numbers}{of}{retries} on disk: {fact['bytes']:,} bytes in"
        f" {fact['commit_ms']} ms, of which the sync took {fact['sync_ms']} ms.{gap}"
    )


def _shown(fact: Fact) -> str:
    to = _plural(fact["subscribers"], "subscriber")
    if fact["first_seq"] is None:
        return f"{_plural(fact['controls'], 'control envelope')} went to {to}."
    controls = f" and {_plural(fact['controls'], 'control envelope')}" if fact["controls"] else ""
    return f"{numbers_text(fact['first_seq'], fact['last_seq']).capitalize()}{controls} went to {to}."


def _marks(fact: Fact) -> str:
    marks = fact["marks"]
    shown = "; ".join(
        f"{mark['job']} is at {mark['last_seq']} ({_plural(mark['count'], 'event')}, {mark['status']})"
        for mark in marks[:_JOBS_SHOWN]
    )
    more = f"; and {len(marks) - _JOBS_SHOWN} more" if len(marks) > _JOBS_SHOWN else ""
    return f"The marks know everything up to {fact['through_seq']}: {shown}{more}."


def _opened(fact: Fact) -> str:
    job = "" if fact["job"] is None else f", job {fact['job']} only"
    return f"Subscriber {fact['subscriber']} of {process_of(fact)} follows from number {fact['next_seq']} on{job}."


def _left(fact: Fact) -> str:
    passed = "" if fact["passed"] is None else f", after {_plural(fact['passed'], 'event')}"
    lags = "" if not fact["lags"] else f"; it had lagged {_plural(fact['lags'], 'time')}"
    return f"Subscriber {fact['subscriber']} has left in front of number {fact['next_seq']}{passed}{lags}."


def _closed(fact: Fact) -> str:
    answered = (
        f"all of its {fact['answered']:,}" if fact["answered"] >= fact["accepted"] else f"{fact['answered']:,} of"
    )
    more = "" if fact["answered"] >= fact["accepted"] else f" {fact['accepted']:,}"
    return f"{process_of(fact).capitalize()} closed the session at number {fact['last_seq']}: {answered}{more} appends"


def _ids(fact: Fact) -> str:
    ids = fact["ids"]
    of = "" if not ids else f"Number {fact['first_seq']} is {ids[0]}" if len(ids) == 1 else ""
    if len(ids) > 1:
        of = f"{numbers_text(fact['first_seq'], fact['first_seq'] + len(ids) - 1).capitalize()} are {', '.join(ids)}"
    again = "; ".join(f"number {seq} was submitted again as {event_id}" for event_id, seq in fact["repeated"])
    text = "; ".join(filter(None, (of, again)))
    return f"{text[:1].upper()}{text[1:]}."


_TEXTS: Mapping[str, Callable[[Fact], str]] = {
    "events_numbered": _ids,
    "batch_persisted": _persisted,
    "batch_broadcast": _shown,
    "marks_moved": _marks,
    "subscriber_opened": _opened,
    "subscriber_closed": _left,
    "cursor_moved": lambda fact: f"The cursor {fact['cursor']} was moved to number {fact['acked_seq']}.",
    "session_closed": lambda fact: _closed(fact) + " were answered.",
    "subscriber_caught_up": lambda fact: (
        f"Subscriber {fact.get('subscriber', '?')} has caught up, and waits for number {fact['next_seq']}."
    ),
    "marks_taken_over": lambda fact: f"The marks up to number {fact['seq']} were taken over from an earlier run.",
    "segment_started": lambda fact: f"The segment {fact['segment']} was begun.",
    "runtime_opened": lambda fact: f"{process_of(fact).capitalize()} opened {fact['store']}.",
    "runtime_closed": lambda fact: f"{process_of(fact).capitalize()} closed the store.",
}


def _plain(fact: Fact) -> str:
    keys = ", ".join(f"{name} {text_of(value)}" for name, value in fact.items() if name not in _OF_THE_LINE)
    return f"{fact['event'].replace('_', ' ').capitalize()}{': ' + keys if keys else ''}."


def session_story(session: str, facts: Iterable[tuple[Fact, Place]], *, full: bool = False) -> Story:
    """Return the timeline of a session.

    Args:
        session: its id.
        facts: the events of the logs.
        full: a step for each line, instead of one for many that are routine.
    """
    ends = _Ends(session)
    mine = ends.watched(facts)
    steps = [step_of(fact, place) for fact, place in mine] if full else list(_together(mine))
    steps += ends.steps()
    steps.sort(key=lambda step: step.moment_ns or 0)
    return Story(f"Session {session}", steps, [], found=bool(steps))


class _Ends:
    """Passes a session's events on, and notes which of its processes were not heard of again."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._last: dict[str, tuple[Fact, Place]] = {}
        self._here: set[str] = set()

    def watched(self, facts: Iterable[tuple[Fact, Place]]) -> Iterator[tuple[Fact, Place]]:
        for fact, place in facts:
            runtime = fact.get("runtime")
            if fact["event"] == "runtime_closed":
                self._here.discard(str(runtime))
            if fact.get("session") == self._session:
                if runtime is not None:
                    self._here.add(runtime)
                    self._last[runtime] = (fact, place)
                yield fact, place

    def steps(self) -> Iterator[Step]:
        for runtime in sorted(self._here):
            fact, place = self._last[runtime]
            text = (
                f"This is the last that was heard of the session from {process_of(fact)}, which has not closed the"
                " store: it was killed, it crashed, or it is still running."
            )
            yield Step(moment_of(fact), "process_ended", "warning", text, place)


def _together(facts: Iterable[tuple[Fact, Place]]) -> Iterator[Step]:
    """Yield steps, with long stretches of routine as one each."""
    waiting: list[tuple[Fact, Place]] = []
    stretch: _Stretch | None = None
    for fact, place in facts:
        if fact["event"] in _ROUTINE:
            if stretch is not None:
                stretch.add(fact)
                continue
            waiting.append((fact, place))
            if len(waiting) == _TOGETHER_MIN:
                stretch = _Stretch(waiting[0])
                for early, _ in waiting:
                    stretch.add(early)
                waiting.clear()
            continue
        yield from _end(waiting, stretch)
        waiting, stretch = [], None
        yield step_of(fact, place)
    yield from _end(waiting, stretch)


def _end(waiting: list[tuple[Fact, Place]], stretch: _Stretch | None) -> Iterator[Step]:
    if stretch is not None:
        yield stretch.step()
    for fact, place in waiting:
        yield step_of(fact, place)


class _Stretch:
    """Many routine events in a row; memory does not grow with them."""

    def __init__(self, begin: tuple[Fact, Place]) -> None:
        self._fact, self._place = begin
        self._last: Fact = begin[0]
        self._first_seq = self._last_seq = 0
        self._counts = dict.fromkeys(("lines", "events", "batches", "appends", "shown", "marks"), 0)
        self._sync_ms_max = self._commit_ms_max = 0.0

    def add(self, fact: Fact) -> None:
        counts, self._last = self._counts, fact
        counts["lines"] += 1
        match fact["event"]:
            case "batch_persisted":
                counts["batches"] += 1
                counts["events"] += fact["events"]
                counts["appends"] += fact["appends"]
                self._first_seq = self._first_seq or fact["first_seq"]
                self._last_seq = fact["last_seq"]
                self._sync_ms_max = max(self._sync_ms_max, fact["sync_ms"])
                self._commit_ms_max = max(self._commit_ms_max, fact["commit_ms"])
            case "batch_broadcast":
                counts["shown"] += fact["events"]
            case "marks_moved":
                counts["marks"] += 1
            case _:
                pass

    def step(self) -> Step:
        counts = self._counts
        parts: list[str] = []
        if counts["batches"]:
            parts.append(
                f"{_plural(counts['events'], 'event')} of {_plural(counts['appends'], 'append')} came on disk in"
                f" {_plural(counts['batches'], 'batch').replace('batchs', 'batches')}"
                f" ({numbers_text(self._first_seq, self._last_seq)}), the slowest in {self._commit_ms_max} ms,"
                f" of which its sync took at most {self._sync_ms_max} ms"
            )
        if counts["shown"]:
            parts.append(f"{_plural(counts['shown'], 'event')} went to subscribers")
        if counts["marks"]:
            parts.append(f"marks moved {_plural(counts['marks'], 'time')}")
        text = "; ".join(parts) + "."
        return Step(
            moment_of(self._fact),
            self._fact["event"],
            "info",
            text[0].upper() + text[1:],
            self._place,
            count=counts["lines"],
            until_ns=moment_of(self._last),
        )


def job_story(
    job: str, facts: Iterable[tuple[Fact, Place]], *, session: str | None = None, full: bool = False
) -> Story:
    """Return the timeline of a job: how its mark moved, and what else names it.

    Args:
        job: its id.
        facts: the events of the logs.
        session: the session it belongs to, where several have a job of that name.
        full: a step for each move, however many they are.
    """
    moves = _Moves(shown=None if full else _MOVES_SHOWN)
    sessions: set[str] = set()
    last: dict[str, Any] = {}
    for fact, place in facts:
        if session is not None and fact.get("session") not in (None, session):
            continue
        if fact["event"] == "marks_moved":
            for mark in fact["marks"]:
                if mark["job"] == job:
                    moves.add(fact, mark, place)
                    sessions.add(str(fact["session"]))
                    last = mark
        elif fact.get("job") == job:
            moves.end()
            moves.steps.append(step_of(fact, place))
            sessions.add(str(fact.get("session")))
    moves.end()
    steps = sorted(moves.steps, key=lambda step: step.moment_ns or 0)
    verdict: list[str] = []
    if last:
        events = _plural(last["count"], "event")
        verdict.append(
            f"At the end of these logs it is {last['status']}: {events}, the last one number {last['last_seq']}."
        )
    where = f" of session {min(sessions)}" if len(sessions) == 1 else ""
    return Story(f"Job {job}{where}", steps, verdict, found=bool(steps))


class _Moves:
    """Gathers the moves of a mark; of many in a row it keeps the first and the last few.

    Args:
        shown: how many at either end; None: all of them.
    """

    def __init__(self, shown: int | None) -> None:
        self.steps: list[Step] = []
        self._shown = shown
        self._in_a_row = 0
        self._left_out: Step | None = None
        self._tail: deque[tuple[Fact, Fact, Place]] = deque()

    def add(self, fact: Fact, mark: Fact, place: Place) -> None:
        self._in_a_row += 1
        if self._shown is None or self._in_a_row <= self._shown:
            self.steps.append(self._step(fact, mark, place))
            return
        self._tail.append((fact, mark, place))
        if len(self._tail) > self._shown:
            fact, _, place = self._tail.popleft()
            out = self._left_out or Step(moment_of(fact), "marks_moved", "info", "", place, count=0)
            self._left_out = dataclasses.replace(out, count=out.count + 1, until_ns=moment_of(fact))

    def end(self) -> None:
        """Something else happened, or nothing more."""
        if self._left_out is not None:
            text = f"It moved {_plural(self._left_out.count, 'time')} more."
            self.steps.append(dataclasses.replace(self._left_out, text=text))
        self.steps += [self._step(*each) for each in self._tail]
        self._tail.clear()
        self._in_a_row, self._left_out = 0, None

    @staticmethod
    def _step(fact: Fact, mark: Fact, place: Place) -> Step:
        return Step(moment_of(fact), "marks_moved", "info", _moved(fact, mark), place, keys=fact)


def _moved(fact: Fact, mark: Fact) -> str:
    seqs = mark["seqs"]
    if not seqs:
        by = "by events of earlier runs"
    elif len(seqs) <= 5:  # noqa: PLR2004 - as many as can be read at a glance
        by = f"by {', '.join(map(str, seqs))}"
    else:
        by = f"by {len(seqs)} events from {seqs[0]} on"
    where = f"session {fact['session']}, "
    return f"Moved to {mark['last_seq']} {by} ({where}{_plural(mark['count'], 'event')} so far): {mark['status']}."
