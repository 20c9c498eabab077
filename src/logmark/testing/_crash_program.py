"""The programs whose crashes are explored: processes with a store each, and a record of the moments they go through."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable, Iterable

from ..protocol import AppendUncertain, LogmarkError, SessionDeleted, StorageUnavailable
from ..storage import Appended, AppendRequest, FileEventStore, Files, SessionBatch, SessionInfo, Snapshot
from ._clock import ManualClock
from ._disk import DiskImage
from ._faults import Crashed, Operation
from ._faulty_files import FaultyFiles
from ._promises import Answer, BrokenPromise, Expectation, History, Promises, StoredEvent, stored_events

__all__ = ["SESSION", "Moment", "Program", "Recorder", "Witness", "check_snapshot", "read_history"]

SESSION = "s"
_SNAPSHOT = "derived"
_CHANGING = frozenset({"open", "write", "sync", "truncate", "rename", "unlink", "mkdir", "sync_dir"})

Witness = Callable[[DiskImage, Expectation, str], Expectation]


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """A point at which the power may be cut; no lock is held in its image."""

    image: DiskImage
    expectation: Expectation
    what: str


class Recorder:
    """What the processes of one run share: the disk, the clock, what callers were told, and the moments.

    Args:
        files: a view of the disk.
        promises: what callers have been told so far.
        clock: the clock of every process.
        opener: opens a store.
        witness: asked at a moment when a lock is held: what is expected now that another process has read.
        recording: note the moments.
    """

    def __init__(
        self,
        files: FaultyFiles,
        promises: Promises,
        clock: ManualClock,
        opener: Callable[[Files, ManualClock], FileEventStore],
        witness: Witness,
        *,
        recording: bool = True,
    ) -> None:
        self.promises = promises
        self.moments: list[Moment] = []
        self._files = files
        self._clock = clock
        self._opener = opener
        self._witness = witness
        self._recording = recording

    def open(self, files: Files) -> FileEventStore:
        """Open a store, some time after the last one."""
        self._clock.advance(1)
        return self._opener(files, self._clock)

    def after_operation(self, operation: Operation) -> None:
        """Note a moment if the operation has changed the disk."""
        self._clock.advance(0.001)
        if operation.name in _CHANGING:
            self.moment(f"{operation.name} {posixpath.basename(operation.path)}")

    def moment(self, what: str) -> None:
        """Note that the power may be cut now, unless nothing has changed since it last could."""
        if not self._recording:
            return
        image = self._files.image()
        expectation = self.promises.expectation()
        if image.locked:
            expectation = self._witness(image, expectation, what)
            image = image.unlocked()
        last = self.moments[-1] if self.moments else None
        if last is None or (last.image, last.expectation) != (image, expectation):
            self.moments.append(Moment(image, expectation, what))


class Program:
    """A process: a store, and the bookkeeping of what it tells its callers. Not thread-safe.

    Every method raises ``Crashed`` when the process dies in it, and ``BrokenPromise`` when the store says what cannot
    be.

    Attributes:
        files: its files, to script faults with.
        promises: what callers of every process of the run have been told.
    """

    def __init__(self, recorder: Recorder, files: FaultyFiles) -> None:
        self.files = files
        self.promises = recorder.promises
        self._recorder = recorder
        self._store: FileEventStore | None = None
        self._told = 0
        files.watch(recorder.after_operation)

    @property
    def store(self) -> FileEventStore:
        """The store, opened if it is not."""
        if self._store is None:
            self._store = self._recorder.open(self.files)
        return self._store

    def append(self, *requests: AppendRequest) -> tuple[Answer, ...]:
        """Append requests as one commit and return the answers."""
        store = self.store
        self.promises.begin(requests)
        try:
            answers = store.append([SessionBatch(SESSION, requests)])[0].answers
        except Crashed:
            self.promises.abandoned()
            raise
        self.promises.answered(answers)
        self._told = max(self._told, *(answer.last_seq for answer in answers if isinstance(answer, Appended)), 0)
        self._recorder.moment("append answered")
        return answers

    def reserve(self, through_seq: int) -> LogmarkError | None:
        """Reserve numbers, and return the error if that failed."""
        store = self.store
        self.promises.begin_reserve(through_seq)
        try:
            store.reserve(SESSION, through_seq)
        except Crashed:
            self.promises.abandoned()
            raise
        except LogmarkError as error:
            self.promises.not_reserved(certain=not isinstance(error, AppendUncertain))
            return error
        self.promises.reserved()
        self._recorder.moment("reserve returned")
        return None

    def read(self) -> History:
        """Read everything; from now on it counts as told."""
        has_recovered = self._store is None
        history = read_history(self.store)
        if has_recovered:
            self.promises.told(history)
        else:
            self.promises.seen(history.events, at_least=self._told)
        self._told = history.events[-1].seq if history.events else 0
        self._recorder.moment("read")
        return history

    def halt(self) -> None:
        """Halt the session."""
        self.promises.begin_halt()
        self.store.halt(SESSION, "told to")
        self.promises.halt(halted=True)
        self._recorder.moment("halted")

    def clear_halt(self) -> None:
        """Clear the halt."""
        self.promises.begin_halt()
        self.store.clear_halt(SESSION)
        self.promises.halt(halted=False)
        self._recorder.moment("halt cleared")

    def repair(self) -> None:
        """Repair the session."""
        self.promises.begin_halt()
        self.store.repair(SESSION)
        self.promises.halt(halted=False)
        self._recorder.moment("repaired")

    def truncate_before(self, seq: int) -> LogmarkError | None:
        """Remove the events below a number, and return the error if that failed."""
        return self._change(
            "truncated", lambda history: history.truncated(seq), lambda: self.store.truncate_before(SESSION, seq)
        )

    def seal(self) -> LogmarkError | None:
        """Seal the session, and return the error if that failed."""
        return self._change("sealed", History.sealed, lambda: self.store.seal(SESSION))

    def delete(self) -> LogmarkError | None:
        """Delete the session, and return the error if that failed."""
        return self._change("deleted", History.deleted, lambda: self.store.delete(SESSION))

    def save_record(self, name: str, data: bytes) -> LogmarkError | None:
        """Put a record in place of the one there is, and return the error if that failed."""

        def save() -> None:
            known = self.store.load_record(SESSION, name)
            self.store.save_record(SESSION, name, data, version=0 if known is None else known.version)

        return self._change("record saved", lambda history: history.with_record(name, data), save)

    def _change(
        self, what: str, change: Callable[[History], History], call: Callable[[], object]
    ) -> LogmarkError | None:
        self._told = 0  # what was told may be gone when this is over
        self.promises.begin_change(change)
        try:
            call()
        except Crashed:
            self.promises.abandoned()
            raise
        except (StorageUnavailable, AppendUncertain) as error:
            self.promises.maybe_changed()
            return error
        except LogmarkError as error:
            self.promises.not_reserved(certain=True)
            return error
        self.promises.reserved()
        self._recorder.moment(what)
        return None

    def save_snapshot(self) -> None:
        """Keep a snapshot of what was read."""
        events = stored_events(self.store.read(SESSION))
        if events:
            self.store.save_snapshot(SESSION, _SNAPSHOT, Snapshot(events[-1].seq, _derived_of(events)))
        self._recorder.moment("snapshot saved")

    def reopen(self) -> None:
        """Close the store in good order; the next call opens it again."""
        self.store.close()
        self._store = None

    def restart(self) -> None:
        """Die, and begin as another process."""
        self.files.restart()
        self._store = None
        self._told = 0
        self._recorder.moment("process restarted")


def read_history(store: FileEventStore, *, backwards: bool = True) -> History:
    """Read a session, also downwards if asked to.

    Raises:
        BrokenPromise: the ways to read it disagree.
    """
    info = store.info(SESSION)
    if info.deleted:
        _refuses_all(store, info)
        return History((), info.next_seq, info.first_available, "deleted")
    events = stored_events(store.read(SESSION, from_seq=info.first_available))
    last_seq = events[-1].seq if events else min(info.last_seq, info.first_available - 1)
    if (info.first_seq, info.last_seq) != (events[0].seq if events else 0, last_seq):
        message = f"{info} does not fit the events {[event.seq for event in events]}"
        raise BrokenPromise(message)
    if backwards and stored_events(store.read_backwards(SESSION)) != events[::-1]:
        message = f"backwards is not forwards reversed: {[event.seq for event in events]}"
        raise BrokenPromise(message)
    records = tuple((name, record.data, record.version) for name, record in store.records(SESSION).items())
    return History(events, info.next_seq, info.first_available, "sealed" if info.sealed else "", records)


def _refuses_all(store: FileEventStore, info: SessionInfo) -> None:
    """Look whether a session that is said to be deleted is.

    Raises:
        BrokenPromise: something of it is there.
    """
    for look in (store.read, store.read_backwards, store.records):
        found: object
        try:
            found = look(SESSION)
        except SessionDeleted as error:
            if error.last_seq == info.last_seq == info.next_seq - 1:
                continue
            found = error
        message = f"a deleted session answers {look.__name__} with {found!r}, and {info}"
        raise BrokenPromise(message)
    if list(store.sessions()):
        raise BrokenPromise("a deleted session is listed")


def _derived_of(events: Iterable[StoredEvent]) -> bytes:
    """Return what is kept in a snapshot of events: every one of them can be told from it."""
    return b"\n".join(b"%d %b %b" % (event.seq, event.id.encode(), event.payload_json) for event in events)


def check_snapshot(store: FileEventStore, history: History) -> None:
    """Load the snapshot, if there is one that the store relies on.

    Raises:
        BrokenPromise: it is not what is derived from this history.
    """
    kept = store.load_snapshot(SESSION, _SNAPSHOT)
    if history.first_available > 1:
        return  # it is of events that are gone too
    if kept is not None and kept.data != _derived_of(event for event in history.events if event.seq <= kept.seq):
        message = f"the snapshot of the events up to {kept.seq} is of others: {kept.data!r}"
        raise BrokenPromise(message)
