"""What must hold in every log, checked from the log alone.

The rules, each with what it rests on:

* nothing is shown before it is on disk: a ``batch_broadcast`` lies within what the same runtime has said to have
  persisted before;
* no number is given twice: the ranges of all ``batch_persisted`` of a store's session are disjoint, whoever wrote them;
* none is skipped: a batch begins right behind ``through_before``, the last number that the writer found used, and what
  it found is not less than what the logs say was there. Numbers between, which the writer found and no log tells of,
  were appended by a process whose log is not here, or whose last line was lost with it: no violation;
* none is shown twice or left out: broadcasts of a runtime rise, and what has passed by a subscriber fits its numbers;
* every mark moves forward, and counts each number that has moved it;
* every append that was accepted was answered: each batch that a SessionActor has handed over is told of, in order, and
  a session that is closed has answered as many as it has accepted.

A log that begins in the middle, ends anywhere, or holds only warnings is checked as far as it goes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ._facts import Fact, Place, runtime_of
from ._ranges import Run, SessionRuns

__all__ = ["Checker", "Violation"]

_VIOLATIONS_MAX = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Violation:
    """A rule that the log shows to have been broken.

    Attributes:
        rule: which one, in a word or two: ``shown early``, ``told twice``, ``skipped``, ``mark``, ``unanswered``.
        session: the session.
        text: what is wrong, as a sentence.
        places: the lines that show it, the offending one first.
    """

    rule: str
    session: str
    text: str
    places: tuple[Place, ...]

    def __str__(self) -> str:
        return f"{self.places[0]}: {self.text}"


@dataclasses.dataclass(slots=True)
class _Mark:
    first_seq: int
    last_seq: int
    count: int


class _Session:
    """What one runtime has said of one session so far."""

    __slots__ = ("batch", "live", "marks", "runs", "shown", "shown_place", "through", "through_place")

    def __init__(self) -> None:
        self.batch = 0
        self.runs: list[Run] = []
        self.shown = 0
        self.shown_place: Place | None = None
        self.forget_marks()

    def forget_marks(self) -> None:
        """The JobActor has started anew: it derives its marks from the log again."""
        self.through = 0
        self.through_place: Place | None = None
        self.marks: dict[str, _Mark] = {}
        self.live = False


class _Runtime:
    """What one runtime has said so far."""

    __slots__ = ("id", "is_whole", "scope", "sessions", "subscribers", "timed_out")

    def __init__(self, runtime: str) -> None:
        self.id = runtime
        self.is_whole = False  # its beginning is in the log
        self.timed_out = False
        self.scope: str | None = None
        self.sessions: dict[str, _Session] = {}
        self.subscribers: dict[int, tuple[int, Place]] = {}


class _Ended(NamedTuple):
    """A subscriber that was closed: what it had passed of the numbers from ``first`` up to ``end``."""

    runtime: _Runtime
    session: str
    subscriber: int
    first: int
    end: int
    passed: int
    place: Place


class Checker:
    """Takes log events in the order of their lines, any number of runtimes among each other. Not thread-safe.

    Memory grows with sessions and jobs and with how often writers have taken turns, not with the lines.
    """

    def __init__(self) -> None:
        self._runtimes: dict[str, _Runtime] = {}
        self._ended: list[_Ended] = []
        self._found: list[Violation] = []
        self.found_count = 0
        """Violations so far; beyond a thousand they are counted and not kept."""
        self.unseen: dict[str, int] = {}
        """For each session, how many numbers writers found in the log that no log here tells of; after ``finish``."""
        self._handlers: Mapping[str, Callable[[_Runtime, Fact, Place], None]] = {
            "runtime_opened": self._on_opened,
            "batch_persisted": self._on_persisted,
            "batch_broadcast": self._on_broadcast,
            "marks_moved": self._on_marks,
            "retry_answered": self._on_answered,
            "append_declined": self._on_answered,
            "append_failed": self._on_answered,
            "append_uncertain": self._on_answered,
            "actor_failed": self._on_actor_trouble,
            "actor_gave_up": self._on_actor_trouble,
            "marks_taken_over": self._on_actor_trouble,
            "session_closed": self._on_session_closed,
            "close_timed_out": self._on_timed_out,
            "subscriber_opened": self._on_subscriber_opened,
            "subscriber_closed": self._on_subscriber_closed,
        }

    def feed(self, fact: Fact, place: Place) -> None:
        """Take the next event. One whose keys are not what they should be is a violation itself."""
        handler = self._handlers.get(fact["event"])
        if handler is None:
            return
        runtime_id = runtime_of(fact, place)
        runtime = self._runtimes.get(runtime_id)
        if runtime is None:
            runtime = self._runtimes[runtime_id] = _Runtime(runtime_id)
        try:
            handler(runtime, fact, place)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            self._report("keys", fact, f"{fact['event']} has not the keys that it should have: {error!r}", place)

    def finish(self) -> list[Violation]:
        """Compare the runtimes with each other and return all violations, in the order in which they were found."""
        stores: dict[tuple[str, str], SessionRuns] = {}
        for runtime in self._runtimes.values():
            for session_id, session in runtime.sessions.items():
                key = (runtime.scope or f"? {runtime.id}", session_id)
                stores.setdefault(key, SessionRuns()).add(session.runs)
        for (_, session_id), runs in stores.items():
            for rule, text, places in runs.compare():
                self._add(Violation(rule, session_id, f"session {session_id}: {text}", places))
            if runs.unseen:
                self.unseen[session_id] = self.unseen.get(session_id, 0) + runs.unseen
        for each in self._ended:
            known = stores.get((each.runtime.scope or f"? {each.runtime.id}", each.session))
            missed = 0 if known is None else known.covered(each.first, each.end) - each.passed
            if missed > 0:
                text = f"subscriber {each.subscriber} left out {missed} of the events {each.first} to {each.end - 1}"
                self._add(Violation("skipped", each.session, f"session {each.session}: {text}", (each.place,)))
        self._ended.clear()
        return self._found

    # -- persisted ----------------------------------------------------------------------------------------------

    def _on_opened(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        store = str(fact["store"])
        runtime.is_whole = True
        runtime.scope = f"memory: {runtime.id}" if store.startswith("memory:") else store

    @staticmethod
    def _session(runtime: _Runtime, fact: Fact) -> _Session:
        session_id = fact["session"]
        session = runtime.sessions.get(session_id)
        if session is None:
            session = runtime.sessions[session_id] = _Session()
        return session

    def _on_persisted(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        session = self._session(runtime, fact)
        first, last = fact["first_seq"], fact["last_seq"]
        before = fact.get("before_seq")
        if self._next_batch(runtime, session, fact, place, written=True):
            return
        if not first <= last or fact["events"] != last - first + 1 or first != fact["append_seqs"][0]:
            self._report("told twice", fact, f"the numbers of a batch do not fit: {first} to {last}", place)
            return
        if session.shown >= first and session.shown_place is not None:
            text = f"numbers up to {session.shown} were shown before number {first} was on disk"
            self._report("shown early", fact, text, place, session.shown_place)
        through = fact.get("through_before")
        if through is not None and first > through + 1:
            text = f"numbers {through + 1} to {first - 1} were skipped: the last one in use was {through}"
            self._report("skipped", fact, text, place)
        runs = session.runs
        if runs:
            run = runs[-1]
            if first == run.last + 1 and before in (None, run.last):
                run.last, run.last_place = last, place
                return
            if first > run.last and before is not None and before < run.last:
                text = f"the writer found number {before} to be the last, but {run.last} had been acknowledged"
                self._report("skipped", fact, text, place, run.last_place)
        runs.append(Run(first, last, before, through, place, place))

    def _next_batch(
        self, runtime: _Runtime, session: _Session, fact: Fact, place: Place, *, written: bool = False
    ) -> bool:
        """Note that a batch was answered; True when the line is a repetition and says nothing more."""
        batch = fact.get("batch")
        if batch is None:
            return False
        known = session.batch
        if batch == known and written:
            self._report("told twice", fact, f"batch {batch} was told of twice", place)
            return True
        if batch > known + 1 and (known or runtime.is_whole):
            which = f"batch {known + 1}" if batch == known + 2 else f"batches {known + 1} to {batch - 1}"
            text = f"{which} went to a writer and the log has no answer, though batch {batch} has one"
            self._report("unanswered", fact, text, place)
        if batch > known or batch == 1:  # from 1 again: the session was opened anew
            session.batch = batch
        return False

    def _on_answered(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        session = self._session(runtime, fact)
        if (
            session.batch or runtime.is_whole or fact["level"] == "info"
        ):  # a log of warnings alone leaves out most batches
            self._next_batch(runtime, session, fact, place)

    # -- shown and marked ---------------------------------------------------------------------------------------

    def _on_broadcast(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        first, last = fact["first_seq"], fact["last_seq"]
        if first is None:
            return  # control envelopes alone
        session = self._session(runtime, fact)
        if session.shown >= first and session.shown_place is not None:
            text = f"number {first} was shown after {session.shown} had been"
            self._report("told twice", fact, text, place, session.shown_place)
        runs = session.runs
        covered = bool(runs) and runs[-1].first <= first and last <= runs[-1].last
        covered = covered or any(run.first <= first and last <= run.last for run in runs)
        if not covered and (runtime.is_whole or (runs and first >= runs[0].first)):
            numbers = f"number {first} was" if first == last else f"numbers {first} to {last} were"
            text = (
                f"{numbers} shown to {fact['subscribers']} subscribers, and the log does not have them on disk before"
            )
            self._report("shown early", fact, text, place)
        if last > session.shown:
            session.shown, session.shown_place = last, place

    def _on_marks(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        session = self._session(runtime, fact)
        through = fact["through_seq"]
        if through < session.through and session.through_place is not None:
            text = f"the marks went back from {session.through} to {through}"
            self._report("mark", fact, text, place, session.through_place)
        session.through, session.through_place = through, place
        live = session.live
        for found in fact["marks"]:
            live = live or bool(found["seqs"])
            problem = self._problem_of_mark(session, found, through)
            if problem is not None:
                self._report("mark", fact, f"the mark of job {found['job']} {problem}", place)
        session.live = live  # from the next line on: this one may have begun with events of earlier runs

    def _problem_of_mark(self, session: _Session, found: Mapping[str, Any], through: int) -> str | None:
        first, last, count, seqs = found["first_seq"], found["last_seq"], found["count"], found["seqs"]
        known = session.marks.get(found["job"])
        session.marks[found["job"]] = _Mark(first, last, count)
        if not 1 <= first <= last <= through or not 1 <= count <= last - first + 1:
            return f"cannot be: {count} events from {first} to {last}, with the log read up to {through}"
        if seqs and (seqs[-1] != last or any(one >= two for one, two in itertools.pairwise(seqs))):
            return f"was moved by {seqs}, which do not lead to {last}"
        if known is None:
            return None
        if known.first_seq != first:
            return f"began at {known.first_seq} and now at {first}"
        if last <= known.last_seq or count <= known.count or (seqs and seqs[0] <= known.last_seq):
            return f"did not move forward: from {known.last_seq} ({known.count} events) to {last} ({count} events)"
        if session.live and count - known.count != len(seqs):
            return f"counts {count - known.count} events more, and was moved by {len(seqs)}"
        return None

    def _on_actor_trouble(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        if fact.get("actor") == "job":
            self._session(runtime, fact).forget_marks()

    # -- the end of it ------------------------------------------------------------------------------------------

    def _on_session_closed(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        accepted, answered = fact["accepted"], fact["answered"]
        if answered < accepted and not runtime.timed_out:
            text = f"{accepted} appends were accepted and {answered} answered"
            self._report("unanswered", fact, text, place)
        session = self._session(runtime, fact)
        session.batch = 0
        session.forget_marks()

    def _on_timed_out(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        runtime.timed_out = True

    def _on_subscriber_opened(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        runtime.subscribers[fact["subscriber"]] = (fact["next_seq"], place)

    def _on_subscriber_closed(self, runtime: _Runtime, fact: Fact, place: Place) -> None:
        opened = runtime.subscribers.pop(fact["subscriber"], None)
        passed = fact["passed"]
        if opened is None or passed is None:
            return
        first, opened_at = opened
        span = fact["next_seq"] - first
        if passed > span:
            text = f"subscriber {fact['subscriber']} got {passed} events with the {span} numbers from {first} on"
            self._report("told twice", fact, text, place, opened_at)
        elif passed < span:  # reserved numbers have no events; whether it was that can be told when all is known
            ended = _Ended(runtime, fact["session"], fact["subscriber"], first, fact["next_seq"], passed, place)
            self._ended.append(ended)

    def _report(self, rule: str, fact: Fact, text: str, *places: Place) -> None:
        session = str(fact.get("session", "-"))
        self._add(Violation(rule, session, f"session {session}: {text}", places))

    def _add(self, violation: Violation) -> None:
        self.found_count += 1
        if len(self._found) < _VIOLATIONS_MAX:
            self._found.append(violation)
