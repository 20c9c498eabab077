"""The plain model beside a simulation: what was submitted, what was answered, and what the log may therefore hold."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

from ..protocol import AppendUncertain, Envelope

__all__ = ["Attempt", "Model", "SimulationFailure", "Submitted"]


class SimulationFailure(AssertionError):
    """A promise was broken.

    Attributes:
        seed, step: where; ``Simulation(seed).run()`` comes to the same step again.
    """

    def __init__(self, seed: int, step: int, message: str) -> None:
        self.seed = seed
        self.step = step
        super().__init__(f"seed {seed}, step {step}: {message}")


@dataclasses.dataclass(frozen=True, slots=True)
class Submitted:
    """One event that somebody wanted in the log."""

    event_id: str
    job_id: str | None
    payload: Any


@dataclasses.dataclass(slots=True)
class Attempt:
    """One call to append: some events, written together or not at all."""

    session_id: str
    events: tuple[Submitted, ...]
    unit: _Unit
    single: bool = False
    expected_seq: int | None = None

    def envelopes(self) -> list[Envelope]:
        """Return the events as an append takes them."""
        return [
            Envelope(type="job.event", payload=each.payload, id=each.event_id, job_id=each.job_id)
            for each in self.events
        ]

    def answered(self, error: BaseException | None) -> None:
        """Note the answer; None: none came, or it was a success."""
        if error is None or isinstance(error, AppendUncertain):
            self.unit.may_be_written = True


@dataclasses.dataclass(slots=True)
class _Unit:
    """Events that belong together, over all attempts to append them."""

    events: tuple[Submitted, ...]
    may_be_written: bool = False
    seqs: tuple[int, int] | None = None


class Model:
    """What every session may hold."""

    def __init__(self) -> None:
        self._units: dict[str, list[_Unit]] = {}
        self._by_seq: dict[tuple[str, int], str] = {}
        self._payloads: dict[tuple[str, str], Any] = {}
        self.acknowledged = 0

    def next_attempt(self, session_id: str, rng: random.Random, ids: Iterator[int]) -> Attempt:
        """Choose what is appended next: new events, or an earlier append once more."""
        units = self._units.setdefault(session_id, [])
        if units and rng.random() < 0.2:
            unit = rng.choice(units)
        else:
            count = rng.choice((1, 1, 1, 1, 2, 3, 5))
            unit = _Unit(tuple(self._new_event(rng, next(ids)) for _ in range(count)))
            units.append(unit)
            for event in unit.events:
                self._payloads[session_id, event.event_id] = event.payload
        return Attempt(session_id, unit.events, unit)

    def _new_event(self, rng: random.Random, number: int) -> Submitted:
        filler = "x" * rng.choice((0, 0, 10, 200, 900))
        job_id = rng.choice((None, "job-1", "job-2"))
        return Submitted(f"e{number}", job_id, {"kind": "log", "n": number, "filler": filler})

    def was_submitted(self, session_id: str, event_id: str, payload: Any) -> bool:
        """Say whether an event with this id and content was ever submitted."""
        return bool(self._payloads.get((session_id, event_id)) == payload)

    def acknowledge(self, attempt: Attempt, first: int, last: int) -> str | None:
        """Note the numbers of an append; return what is wrong with them."""
        unit, session_id = attempt.unit, attempt.session_id
        self.acknowledged += 1
        if last - first + 1 != len(unit.events):
            return f"{session_id}: {len(unit.events)} events got the numbers {first} to {last}"
        if unit.seqs is not None and unit.seqs != (first, last):
            return f"{session_id}: a retry of {unit.seqs} was answered {(first, last)}"
        if unit.seqs is None and attempt.expected_seq is not None and not unit.may_be_written:
            return f"{session_id}: internal: an answer that was not noted"
        unit.seqs = (first, last)
        for seq, event in enumerate(unit.events, first):
            other = self._by_seq.setdefault((session_id, seq), event.event_id)
            if other != event.event_id:
                return f"{session_id}: number {seq} was told for {other} and for {event.event_id}"
        return None

    def compare(self, session_id: str, log: list[tuple[int, str, Any]]) -> str | None:
        """Compare a whole log with what it may and must hold; return the first difference."""
        seqs = [seq for seq, _, _ in log]
        if seqs != sorted(set(seqs)):
            return f"{session_id}: numbers out of order: {seqs}"
        if seqs and seqs != list(range(1, len(seqs) + 1)):
            return f"{session_id}: numbers with gaps: {seqs}"
        where = {event_id: seq for seq, event_id, _ in log}
        if len(where) != len(log):
            return f"{session_id}: an event is there twice"
        for seq, event_id, payload in log:
            if not self.was_submitted(session_id, event_id, payload):
                return f"{session_id}: event {seq} ({event_id}) is not what was submitted"
        for unit in self._units.get(session_id, []):
            problem = self._compare_unit(session_id, unit, where)
            if problem is not None:
                return problem
        return None

    def _compare_unit(self, session_id: str, unit: _Unit, where: dict[str, int]) -> str | None:
        ids = [event.event_id for event in unit.events]
        found = [where[event_id] for event_id in ids if event_id in where]
        if unit.seqs is not None and found != list(range(unit.seqs[0], unit.seqs[1] + 1)):
            return f"{session_id}: {ids} were acknowledged as {unit.seqs} and are at {found}"
        if found and len(found) != len(ids):
            return f"{session_id}: of {ids} only {found} are there"
        if found and not unit.may_be_written:
            return f"{session_id}: {ids} were rejected every time, and are at {found}"
        return None
