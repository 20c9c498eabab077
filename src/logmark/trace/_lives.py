"""The life of one event: from its submission to those who have seen it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._facts import Fact, Place, moment_of, process_of, runtime_of, time_ns_of
from ._stories import Step, Story, numbers_text, step_of
from ._times import clock_of, span_of

__all__ = ["IdHit", "event_life", "find_id"]

_AFTERWARDS = frozenset({"session_halted", "halt_cleared", "session_repaired", "torn_tail_cut", "session_deleted"})


@dataclasses.dataclass(frozen=True, slots=True)
class IdHit:
    """Where an id was found: the session, and the number if the log has it."""

    session: str
    seq: int | None
    place: Place


def find_id(event_id: str, facts: Iterable[tuple[Fact, Place]]) -> IdHit | None:
    """Look for an event's id; logs have it at level debug, and the first of a batch whose outcome is unknown always."""
    doubtful: IdHit | None = None
    for fact, place in facts:
        if fact["event"] == "events_numbered":
            if event_id in fact["ids"]:
                return IdHit(fact["session"], fact["first_seq"] + fact["ids"].index(event_id), place)
            for found, seq in fact["repeated"]:
                if found == event_id:
                    return IdHit(fact["session"], seq, place)
        elif fact.get("first_event_id") == event_id and doubtful is None:
            doubtful = IdHit(str(fact["session"]), None, place)
    return doubtful


class _Life:
    """Gathers what the logs say of one number."""

    def __init__(self, session: str, seq: int) -> None:
        self.session, self.seq = session, seq
        self.steps: list[Step] = []
        self.persisted: tuple[Fact, Place] | None = None
        self.shown = 0
        self.after: list[Step] = []
        self.low = self.high = 0
        self.found_by: tuple[Fact, Place] | None = None
        self.reserved: Place | None = None
        self.repeated: tuple[str, Fact] | None = None
        self._doubts: dict[str, list[Step]] = {}
        self._cursors: set[str] = set()
        self._following: dict[tuple[str, object], int] = {}
        self._handlers: Mapping[str, Callable[[Fact, Place], None]] = {
            "batch_persisted": self._on_persisted,
            "events_numbered": self._on_numbered,
            "batch_broadcast": self._on_broadcast,
            "marks_moved": self._on_marks,
            "subscriber_opened": self._on_subscriber_opened,
            "subscriber_closed": self._on_subscriber_closed,
            "subscriber_lagged": self._on_subscriber_lagged,
            "session_closed": self._on_session_closed,
            "cursor_moved": self._on_cursor,
            "arcp_session_attached": self._on_attached,
        }

    def feed(self, fact: Fact, place: Place) -> None:
        if fact.get("session") != self.session:
            return
        handler = self._handlers.get(fact["event"])
        if fact.get("first_event_id") is not None:
            self._doubts.setdefault(fact["first_event_id"], []).append(step_of(fact, place))
        if handler is not None:
            handler(fact, place)
        elif fact["event"] in _AFTERWARDS and self.persisted is not None:
            self.after.append(step_of(fact, place))

    def _on_persisted(self, fact: Fact, place: Place) -> None:
        first, last = fact["first_seq"], fact["last_seq"]
        self.low = min(self.low or first, first)
        self.high = max(self.high, last)
        if not first <= self.seq <= last:
            before, through = fact.get("before_seq"), fact.get("through_before")
            if before is not None and through is not None and before < self.seq <= through:
                self.reserved = place
            if before is not None and first > self.seq and self.found_by is None and before >= self.seq:
                self.found_by = (fact, place)
            return
        if self.persisted is None:
            self.persisted = (fact, place)
        self._submitted_and_persisted(fact, place)

    def _submitted_and_persisted(self, fact: Fact, place: Place) -> None:
        index = sum(seq <= self.seq for seq in fact["append_seqs"]) - 1
        firsts = [*fact["append_seqs"], fact["last_seq"] + 1]
        first, last = firsts[index], firsts[index + 1] - 1
        began, told = time_ns_of(fact["submitted_first"]), moment_of(fact)
        submitted = None if began is None else began + fact["append_offsets_us"][index] * 1000
        call = "by itself" if first == last else f"in one call with {numbers_text(first, last)}"
        who = process_of(fact)
        text = f"It was submitted in {who}, {call}."
        self.steps.append(Step(submitted, "submitted", "info", text, place))
        commit, sync = float(fact["commit_ms"]), float(fact["sync_ms"])
        writer = float(fact.get("writer_ms", commit))
        handed = None if told is None else told - int(writer * 1e6)
        waited = (
            "" if handed is None or submitted is None else f", after {span_of(max(0, handed - submitted))} in the inbox"
        )
        others = "one other event" if fact["events"] == 2 else f"{fact['events'] - 1:,} other events"  # noqa: PLR2004
        calls = "one call" if fact["appends"] == 1 else f"{fact['appends']:,} calls"
        batch = "alone" if fact["events"] == 1 else f"with {others}, of {calls}"
        text = f"It went to a writer{waited}: batch {fact.get('batch', '?')} of the session in this process, {batch}."
        self.steps.append(Step(handed, "handed_over", "info", text, place))
        text = (
            f"It was on disk as number {self.seq}, after {span_of(commit * 1e6)} in the writer, of which the sync took"
            f" {span_of(sync * 1e6)}; {fact['bytes']:,} bytes in all. From here on it is safe; its caller is answered."
        )
        self.steps.append(Step(told, "batch_persisted", fact["level"], text, place, keys=fact))

    def _on_numbered(self, fact: Fact, place: Place) -> None:
        index = self.seq - fact["first_seq"]
        if fact["first_seq"] and 0 <= index < len(fact["ids"]):
            text = f"Its id is {fact['ids'][index]}."
            self.steps.append(Step(moment_of(fact), "events_numbered", fact["level"], text, place, keys=fact))
        for event_id, seq in fact["repeated"]:
            if seq == self.seq:
                self.repeated = (event_id, fact)
                text = f"It was submitted once more, with its id {event_id}, and answered with the same number."
                self.steps.append(Step(moment_of(fact), "events_numbered", fact["level"], text, place, keys=fact))

    def _on_broadcast(self, fact: Fact, place: Place) -> None:
        first, last = fact["first_seq"], fact["last_seq"]
        if first is None or not first <= self.seq <= last:
            return
        self.shown += fact["subscribers"]
        runtime = runtime_of(fact, place)
        who = sorted(str(number) for of, number in self._following if of == runtime)
        names = f" ({', '.join(who)})" if who and len(who) == fact["subscribers"] else ""
        count = fact["subscribers"]
        text = f"It was offered to {count} subscriber{'' if count == 1 else 's'}{names} of {process_of(fact)}."
        self.steps.append(Step(moment_of(fact), "batch_broadcast", fact["level"], text, place, keys=fact))

    def _on_marks(self, fact: Fact, place: Place) -> None:
        for mark in fact["marks"]:
            if self.seq in mark["seqs"]:
                nth = mark["count"] - len(mark["seqs"]) + mark["seqs"].index(self.seq) + 1
                text = (
                    f"It moved the mark of job {mark['job']} in {process_of(fact)}, as event {nth:,} of the job; the"
                    f" mark stands at number {mark['last_seq']} then, {mark['status']}."
                )
                self.steps.append(Step(moment_of(fact), "marks_moved", fact["level"], text, place, keys=fact))

    def _on_subscriber_opened(self, fact: Fact, place: Place) -> None:
        self._following[runtime_of(fact, place), fact["subscriber"]] = fact["next_seq"]

    def _on_subscriber_closed(self, fact: Fact, place: Place) -> None:
        began = self._following.pop((runtime_of(fact, place), fact["subscriber"]), None)
        if began is None or began > self.seq:
            return
        number = fact["subscriber"]
        if fact["next_seq"] > self.seq:
            text = f"Subscriber {number} had read it when it left, in front of number {fact['next_seq']}."
        else:
            text = f"Subscriber {number} left without having read it, in front of number {fact['next_seq']}."
        self.steps.append(Step(moment_of(fact), "subscriber_closed", fact["level"], text, place, keys=fact))

    def _on_subscriber_lagged(self, fact: Fact, place: Place) -> None:
        if fact["next_seq"] <= self.seq <= fact["last_seq"]:
            text = (
                f"Subscriber {fact.get('subscriber', '?')} had not read it when its queue was full, {fact['lag']}"
                " numbers behind the end; it reads from the log from there on."
            )
            self.steps.append(Step(moment_of(fact), "subscriber_lagged", fact["level"], text, place, keys=fact))

    def _on_cursor(self, fact: Fact, place: Place) -> None:
        name = fact["cursor"]
        if self.persisted is not None and fact["acked_seq"] >= self.seq and name not in self._cursors:
            self._cursors.add(name)
            text = f"It was acknowledged under the cursor {name}, which was moved to number {fact['acked_seq']}."
            self.steps.append(Step(moment_of(fact), "cursor_moved", fact["level"], text, place, keys=fact))

    def _on_attached(self, fact: Fact, place: Place) -> None:
        if self.persisted is None:
            return
        had = "has it" if fact["after_seq"] >= self.seq else "is sent it"
        text = f"A client, {fact['principal']}, came to go on behind number {fact['after_seq']}: it {had}."
        self.steps.append(Step(moment_of(fact), "arcp_session_attached", fact["level"], text, place, keys=fact))

    def _on_session_closed(self, fact: Fact, place: Place) -> None:
        self._following = {key: value for key, value in self._following.items() if key[0] != runtime_of(fact, place)}

    def doubt(self) -> None:
        """Nobody has told of its write: what is left is what was said of its id."""
        repeated = [step for step in self.steps if step.event == "events_numbered"]
        self.steps = [] if self.repeated is None else self._doubts.get(self.repeated[0], []) + repeated


def event_life(session: str, seq: int, facts: Iterable[tuple[Fact, Place]]) -> Story:
    """Return what became of one number of a session, as far as the logs say."""
    life = _Life(session, seq)
    for fact, place in facts:
        life.feed(fact, place)
    if life.persisted is None:
        life.doubt()
    found = life.persisted is not None or life.repeated is not None
    story = Story(f"Event {seq} of session {session}", life.steps, [], found=found)
    story.steps.sort(key=lambda step: step.moment_ns or 0)
    story.steps += life.after
    story.verdict = _verdict(life)
    return story


def _verdict(life: _Life) -> list[str]:
    if life.persisted is None and life.repeated is not None:
        event_id, fact = life.repeated
        sentence = (
            f"No log tells of the write of number {life.seq}, and it is in the log all the same: {process_of(fact)} was"
            f" answered with it when it submitted {event_id} again. It is safe, and there once."
        )
        return [sentence]
    if life.persisted is None:
        return [_why_not_there(life)]
    fact, _ = life.persisted
    lines = [f"Number {life.seq} is safe: it is on disk since {clock_of(moment_of(fact))} UTC."]
    if not life.shown:
        lines.append("Nobody followed the session then: whoever reads it later gets it from the log.")
    halts = [step for step in life.after if step.event in {"session_halted", "halt_cleared", "session_repaired"}]
    if halts:
        state: Any = "is halted since" if halts[-1].event == "session_halted" else "goes on since"
        lines.append(f"The session was halted later, and {state} {clock_of(halts[-1].moment_ns)} UTC.")
    return lines


def _why_not_there(life: _Life) -> str:
    if not life.high:
        return f"These logs say nothing of session {life.session} being written to."
    if life.reserved is not None:
        return f"Number {life.seq} was reserved: no event has it, and none will have it ({life.reserved})."
    if life.found_by is not None:
        fact, place = life.found_by
        return (
            f"These logs do not say who has written number {life.seq}. It was in use when {process_of(fact)} wrote"
            f" number {fact['first_seq']} ({place}): by a process whose log is not here, or whose last lines were lost"
            " with it, or by a reservation."
        )
    if life.seq > life.high:
        return f"These logs end before number {life.seq}: the highest number of the session in them is {life.high}."
    return f"These logs begin after number {life.seq}: the lowest number of the session in them is {life.low}."
