"""Crash-state exploration: run a workload, cut the power at every step, and look at what is left with the real store.

A workload is a function that works with one or more ``Program``s, each a process with a ``FileEventStore`` on a shared
disk in memory. After every operation that changes the disk, and after every answer, the legal states of the disk are
listed (``_power_cut.py``). Each one is given to a fresh store, and what that store reads, counts and appends is
compared with what callers had been told by then (``_promises.py``). Then the same once more on top: the process dies,
the next one recovers, reads and appends, and the power is cut at each step of that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import TypeAlias

from ..protocol import (
    EncodedEvent,
    Limits,
    LockTimeout,
    LogmarkError,
    SessionDeleted,
    SessionHalted,
    SessionSealed,
)
from ..storage import Appended, AppendRequest, FileEventStore, Files, SessionBatch
from ._clock import ManualClock
from ._crash_program import SESSION, Moment, Program, Recorder, check_snapshot, read_history
from ._disk import Disk, DiskImage, DiskState
from ._events import encoded_event
from ._faulty_files import FaultyFiles
from ._power_cut import cached_state, power_cut_states, random_power_cut, synced_state
from ._promises import Answer, BrokenPromise, Expectation, History, Promises, StoredEvent, stored_events

__all__ = ["CrashExplorer", "Observation", "Workload"]

Workload: TypeAlias = Callable[[Callable[[], Program]], None]
"""Gets a function that starts a process; two that it starts share the disk."""

_STORE = "/store"
_THOROUGHLY_EVERY = 4
_OTHERS_MAX = 8  # contents of a head or a marker: a few versions and a few torn ones
_RECOVERY_S = 1000.0  # on the clock, so that what a recovery puts aside is named apart from what came before
_LOOKING_S = 2000.0
# Their ids count as fresh, so that appending them does not read the whole log.
_LATER, *_PROBES = (
    encoded_event("probe", None, id=f"probe-{number}")._replace(id_is_fresh=True) for number in range(3)
)


_EMPTY = History()


@dataclasses.dataclass(frozen=True, slots=True)
class Observation:
    """What a fresh store made of a state.

    Attributes:
        history: what it read.
        halted: it found the session halted, and was told to clear it.
        defect: what is wrong whatever callers had been told, or None.
    """

    history: History = _EMPTY
    halted: bool = False
    defect: str | None = None


class CrashExplorer:
    """Runs workloads and tries the power cuts in them.

    Args:
        limits: those of every store.
        budget: about how many states to look at for one moment of a workload.
        budget_again: the same for a moment of the recovery after a crash.
        again_every: of how many moments one is the start of such a second crash.

    Attributes:
        violations: what was wrong, in words; empty is what a test wants.
        moments: how many there were.
    """

    def __init__(
        self, *, limits: Limits | None = None, budget: int = 100, budget_again: int = 10, again_every: int = 10
    ) -> None:
        self.violations: list[str] = []
        self.moments = 0
        self._limits = limits or Limits(segment_bytes_max=1200, lock_wait_s=0.001)
        self._budget = budget
        self._budget_again = budget_again
        self._again_every = again_every
        self._observations: dict[bytes, Observation] = {}
        self._explored: set[Moment] = set()

    @property
    def states(self) -> int:
        """How many different states were looked at."""
        return len(self._observations)

    def explore(self, workload: Workload, name: str, *, budget: int | None = None) -> None:
        """Run a workload, cutting the power at every step, and once more in the recovery from that.

        Args:
            workload: what is run.
            name: what the violations call it.
            budget: in place of the explorer's own.
        """
        recorder = self._run(workload, name, FaultyFiles(), recording=True)
        self.moments += len(recorder.moments)
        for index, moment in enumerate(recorder.moments):
            if moment in self._explored:
                continue
            self._explored.add(moment)
            where = f"{name}, step {index}: {moment.what}"
            states = self.states
            for state in self._states(moment, budget or self._budget):
                self._look(state, moment.expectation, where)
            if self.states > states and index % self._again_every == 0:
                self._explore_recovery(moment, where)

    def explore_end(self, workload: Workload, name: str, rng: random.Random, *, cuts: int = 3) -> None:
        """Run a workload and cut the power only at its end, in a few ways; for many workloads made by chance."""
        files = FaultyFiles()
        recorder = self._run(workload, name, files, recording=False)
        image = files.image()
        for state in (synced_state(image), cached_state(image), *(random_power_cut(image, rng) for _ in range(cuts))):
            self._look(state, recorder.promises.expectation(), f"{name}, at its end")

    def _run(self, workload: Workload, name: str, files: FaultyFiles, *, recording: bool) -> Recorder:
        recorder = Recorder(files, Promises(), ManualClock(), self.open, self._witness, recording=recording)
        try:
            workload(lambda: Program(recorder, files.another_process()))
        except BrokenPromise as error:
            self._object(name, str(error), None)
        return recorder

    def _explore_recovery(self, moment: Moment, where: str) -> None:
        """Let the process die at a moment, or the machine, and cut the power while and after the next one recovers."""
        some = list(self._states(moment, self._budget_again))[2::3][:3]
        for disk, how in (
            (Disk.of_image(moment.image), "the process died"),
            *((Disk(state), "the power was cut") for state in (cached_state(moment.image), *some)),
        ):
            files = FaultyFiles(disk=disk)
            clock = ManualClock()
            clock.advance(_RECOVERY_S)
            recorder = Recorder(files, Promises.of(moment.expectation), clock, self.open, self._witness)
            program = Program(recorder, files)
            try:
                if program.store.halted(SESSION) is not None:
                    program.clear_halt()
                recorder.promises.told(read_history(program.store))
                program.append(AppendRequest((_LATER,)))
            except (BrokenPromise, LogmarkError) as error:
                self._object(f"{where}, {how}", repr(error), None)
            for index, then in enumerate(recorder.moments):
                for state in self._states(then, self._budget_again):
                    self._look(state, then.expectation, f"{where}, {how}, step {index} of recovery: {then.what}")

    def _states(self, moment: Moment, budget: int) -> Iterator[DiskState]:
        return power_cut_states(moment.image, budget=budget, contents_max=_contents_max)

    def _look(self, state: DiskState, expectation: Expectation, where: str) -> None:
        key = _digest(state)
        observation = self._observations.get(key)
        if observation is None:
            observation = self.observe(state, thoroughly=self.states % _THOROUGHLY_EVERY == 0)
            self._observations[key] = observation
            if observation.defect is not None:
                self._object(f"{where}, then a power cut", observation.defect, state)
        if observation.defect is None:
            objection = expectation.objection(observation.history, halted=observation.halted)
            if objection is not None:
                self._object(f"{where}, then a power cut", objection, state)

    def _object(self, where: str, objection: str, state: DiskState | None) -> None:
        shown = [f"\n    {path}: {_shortened(content)}" for path, content in sorted((state or {}).items())]
        self.violations.append(f"{where}:\n  {objection}{''.join(shown)}")

    def _witness(self, image: DiskImage, expectation: Expectation, what: str) -> Expectation:
        """Let another process read while the lock is held, and return what is expected now that it has seen that."""
        store = self.open(FaultyFiles(disk=Disk.of_image(image)), ManualClock())
        try:
            seen = read_history(store, backwards=False)
        except (SessionHalted, LockTimeout):
            return expectation
        histories = tuple(history for history in expectation.histories if _may_be_seen_as(history, seen))
        if not histories:
            self._object(what, f"another process saw {seen}", None)
            return expectation
        if any(_is_pruned_or_ended(history, histories[0]) for history in expectation.histories):
            return expectation  # this may be seen before it is durable, as nobody was told of it yet
        return expectation._replace(histories=histories)

    # -- looking at one state -----------------------------------------------------------------------------------

    def open(self, files: Files, clock: ManualClock) -> FileEventStore:
        """Open the store on a disk."""
        return FileEventStore(_STORE, files=files, clock=clock, limits=self._limits)

    def observe(self, state: DiskState, *, thoroughly: bool = True) -> Observation:
        """Open a store on a state, use it, and say what it showed.

        Args:
            state: what a power cut has left.
            thoroughly: look also at what hardly depends on the state: verification, reading downwards, retries, and
                two processes taking turns.
        """
        files = FaultyFiles(state)
        clock = ManualClock()
        clock.advance(_LOOKING_S)
        try:
            store = self.open(files, clock)
            halted = store.halted(SESSION) is not None
            if halted:
                _refuses(store)
                store.clear_halt(SESSION)
            damage = [finding for finding in store.verify(SESSION) if not finding.harmless] if thoroughly else []
            history = read_history(store, backwards=thoroughly)
            check_snapshot(store, history)
            other = self.open(files.another_process(), clock)
            defect = f"verify found {damage}" if damage else _use(store, other, history, thoroughly=thoroughly)
        except (BrokenPromise, LogmarkError) as error:
            return Observation(defect=repr(error))
        except Exception as error:  # whatever it is, it is not typed
            return Observation(defect=f"not a LogmarkError: {error!r}")
        return Observation(history, halted, defect)


def _may_be_seen_as(history: History, seen: History) -> bool:
    """Say whether somebody may see this of a history while the lock is held: what is appended is behind the head."""
    events = history.events[: len(seen.events)]
    return (events, history.first_available, history.end) == (seen.events, seen.first_available, seen.end)


def _is_pruned_or_ended(history: History, other: History) -> bool:
    return (history.first_available, history.end) != (other.first_available, other.end)


def _contents_max(path: str) -> int | None:
    """Say how many contents of a file are worth looking at: rows are, who holds the lock is not."""
    if ".jsonl" in path:
        return None
    return 2 if path.endswith(("/lock", ".ids", ".new")) else _OTHERS_MAX


def _refuses(store: FileEventStore) -> None:
    answer = _append(store, _PROBES[0])
    if not isinstance(answer, SessionHalted):
        message = f"a halted session answered an append with {answer!r}"
        raise BrokenPromise(message)
    try:
        store.read(SESSION)
    except SessionHalted:
        return
    message = "a halted session was read"
    raise BrokenPromise(message)


def _use(store: FileEventStore, other: FileEventStore, history: History, *, thoroughly: bool) -> str | None:
    """Append to what was found, let another process read it, and say what is wrong, if anything is."""
    if history.end:
        return _use_ended(store, other, history)
    expected = list(history.events)
    next_seq = history.next_seq
    for turn, event in list(zip((store, other), _PROBES, strict=True))[: 2 if thoroughly else 1]:
        answer = _append(turn, event)
        if answer != Appended(next_seq, next_seq):
            return f"the append after {next_seq - 1} was answered {answer!r}"
        expected.append(StoredEvent(next_seq, event.id, event.type, event.payload_json))
        next_seq += 1
    if (found := stored_events(other.read(SESSION, from_seq=history.first_available))) != tuple(expected):
        return f"after the append: {found}"
    if not thoroughly:
        return None
    if list(store.sessions()) != [SESSION]:
        return f"the sessions are {list(store.sessions())}"
    for told in (*history.events[:1], *history.events[-1:]):
        answer = _append(store, encoded_event(told.type, None, id=told.id))
        if answer != Appended(told.seq, told.seq, written=False):
            return f"the retry of event {told.seq} was answered {answer!r}"
    findings = other.verify(SESSION)
    return f"verify after the appends found {findings}" if findings else None


def _use_ended(store: FileEventStore, other: FileEventStore, history: History) -> str | None:
    """Append to what takes nothing any more, and say what is wrong, if anything is."""
    refusal = SessionSealed if history.end == "sealed" else SessionDeleted
    for turn, event in zip((store, other), _PROBES, strict=True):
        if not isinstance(answer := _append(turn, event), refusal):
            return f"an append to the {history.end} session was answered {answer!r}"
    for told in (*history.events[:1], *history.events[-1:]):
        answer = _append(store, encoded_event(told.type, None, id=told.id))
        if answer != Appended(told.seq, told.seq, written=False):
            return f"the retry of event {told.seq} was answered {answer!r}"
    after = read_history(other)._replace(records=history.records)
    return None if after == history else f"after the appends: {after}"


def _append(store: FileEventStore, event: EncodedEvent) -> Answer:
    return store.append([SessionBatch(SESSION, (AppendRequest((event,)),))])[0].answers[0]


def _digest(state: DiskState) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(state):
        content = state[path]
        digest.update(b"%b\0%d\0" % (path.encode(), -1 if content is None else len(content)))
        digest.update(content or b"")
    return digest.digest()


_SHOWN_BYTES = 160


def _shortened(content: bytes | None) -> str:
    if content is None:
        return "a directory"
    if len(content) <= 2 * _SHOWN_BYTES:
        return repr(content)
    return f"{content[:_SHOWN_BYTES]!r} … {len(content)} bytes … {content[-_SHOWN_BYTES:]!r}"
