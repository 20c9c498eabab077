"""Projections: views derived from a session's events, which heal to exactly the fold of its log."""

from __future__ import annotations

import abc
import dataclasses
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import orjson

from ._checks import check_name, check_seq
from .protocol import (
    Envelope,
    InvalidArgument,
    LogmarkError,
    ProjectionHalted,
    RecordChanged,
    RuntimeClosed,
    SchemaMismatch,
    SeqPruned,
)
from .storage import EventStore, Record, rfc3339

if TYPE_CHECKING:
    from ._session import Session

__all__ = ["Checkpoint", "Projection", "ProjectionHalt", "Superseded", "projection_halts"]

_PREFIX = "projection:"
_NAME_BYTES_MAX = 200 - len(_PREFIX)
_VERSION = 1
_REASON_CHARS_MAX = 1000
_COMMIT_EVENTS = 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a derived view covers.

    It says where the fold goes on, and nothing else ever: numbers come from the log alone.

    Attributes:
        session_id, name, version, from_seq: of which projection it is.
        seq: number of the last event that went in, ``from_seq - 1`` when none did.
        event_id: the id of that event, by which another log is told.
        output: how much derived output it covers, in the words of the sink.
    """

    session_id: str
    name: str
    version: int
    from_seq: int
    seq: int
    event_id: str | None = None
    output: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def encode(self) -> bytes:
        """Return it as JSON."""
        return orjson.dumps({"v": _VERSION, **dataclasses.asdict(self)}, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def decode(cls, data: bytes | str) -> Checkpoint:
        """Read what ``encode`` has written.

        Raises:
            ValueError: it is nothing of the kind.
        """
        found = orjson.loads(data)
        members = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        if members.pop("v", None) != _VERSION:
            raise ValueError("the checkpoint is of another version")
        try:
            checkpoint = cls(**members)
        except TypeError as error:
            raise ValueError(f"the checkpoint is damaged: {error}") from error
        if type(checkpoint.seq) is not int or type(checkpoint.from_seq) is not int or checkpoint.seq < 0:
            raise ValueError("the checkpoint has no number")
        return checkpoint


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionHalt:
    """Why a projection stands still.

    Attributes:
        seq, event_id: the event that it could not apply.
        at: RFC 3339 time, in UTC.
    """

    session_id: str
    name: str
    seq: int
    event_id: str | None
    reason: str
    at: str


class Superseded(Exception):
    """Raised by a sink: somebody else has gone on with the view meanwhile; it is to be loaded again."""


class Projection(abc.ABC):
    """A fold of a session's events into a derived view. Subclass it and write ``apply``; a context manager.

    As it stands, the view is whatever the object itself holds: it is empty in a new process and folded anew. Where it
    is to last, subclass ``FileProjection``, ``SqliteProjection`` or ``ObjectProjection``, or write a sink of your own:
    ``begin``, ``load``, ``save`` and ``discard``.

    Whatever state view and checkpoint are found in, the view comes to hold exactly the fold of the log: a checkpoint
    that is missing, damaged, of another log, ahead of the log, or whose output is not what it covers, starts the fold
    over; output beyond the checkpoint is cut off. Each event goes in once, in the order of numbers; one whose ``apply``
    raises is never passed over: the projection halts there, durably, until ``clear_halt``, and tries it again.

    ``apply`` has to depend on nothing but the events, as the fold may be started over at any time. Calls are safe from
    any thread and take turns.

    Args:
        session: whose events.
        name: of the projection in its session, for its halt; of at most 189 UTF-8 bytes.
        from_seq: the first number that goes in, for views of a session whose beginning was pruned before.

    Raises:
        InvalidArgument: no valid name or number.
    """

    version: ClassVar[int] = 1
    """Raise it when ``apply`` has changed: the fold is then started over."""
    commit_events_max: ClassVar[int] = _COMMIT_EVENTS
    """After so many events, view and checkpoint are saved; a crash costs the work on at most as many."""

    def __init__(self, session: Session, name: str, *, from_seq: int = 1) -> None:
        self.session = session
        self.name = check_name("name", name)
        if len(name.encode()) > _NAME_BYTES_MAX:
            message = f"a projection's name has at most {_NAME_BYTES_MAX} bytes, not {len(name.encode())}"
            raise InvalidArgument(message)
        self.from_seq = check_seq("from_seq", from_seq, 1)
        self._runtime = session.runtime
        self._log = self._runtime.log.bind(session=session.session_id)
        self._mutex = threading.RLock()
        self._at: Checkpoint | None = None
        self._pending: tuple[int, str | None] | None = None
        self._pending_events = 0
        self._unsaved = False
        self._running = threading.Lock()
        self._stopping = False
        self._wake = threading.Event()

    # -- what a subclass says -----------------------------------------------------------------------------------

    @abc.abstractmethod
    def apply(self, event: Envelope) -> None:
        """Fold one event into the view. What it raises halts the projection before this event."""

    def begin(self) -> None:  # noqa: B027 - a view may have nothing to empty
        """Empty the view: the fold starts over."""

    def load(self) -> Checkpoint | None:
        """Bring the view to where its checkpoint says that it is, and return that; None when there is none.

        Raises:
            ValueError: view or checkpoint cannot be trusted; the fold starts over.
        """
        return None

    def save(self, checkpoint: Checkpoint) -> None:  # noqa: B027 - nothing to save in memory
        """Make the view durable, and then the checkpoint that covers it; or both at once."""

    def start_commit(self, checkpoint: Checkpoint) -> None:  # noqa: B027 - most sinks need no such word
        """Learn that events will be applied behind a checkpoint, which ``save`` will replace.

        Raises:
            Superseded: the view is no longer at this checkpoint.
        """

    def start_event(self) -> None:  # noqa: B027 - see start_commit
        """Learn that an event is about to be applied: ``discard`` goes back to here."""

    def end_event(self) -> None:  # noqa: B027 - see start_commit
        """Learn that the event was applied."""

    def is_full(self) -> bool:
        """Say whether what was applied had better be saved now, whatever ``commit_events_max`` says."""
        return False

    def discard(self) -> bool:
        """Take back what was applied of the last event; False when the view has to be made anew for that."""
        return False

    def release(self) -> None:  # noqa: B027 - nothing to let go of in memory
        """Let go of files and locks."""

    # -- where it is --------------------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """Number of the last event in the saved view, 0 before ``catch_up`` has looked."""
        at = self._at
        return 0 if at is None else at.seq

    @property
    def lag(self) -> int:
        """How many numbers the log is ahead of the view."""
        return max(0, self.session.last_seq - max(self.seq, self.from_seq - 1))

    @property
    def halt(self) -> ProjectionHalt | None:
        """Why the projection stands still, or None; kept beside the session's log, so that every process sees it."""
        record = self._runtime.store.load_record(self.session.session_id, _PREFIX + self.name)
        return None if record is None else _decoded(self.session.session_id, self.name, record)

    def clear_halt(self) -> bool:
        """Let the projection go on, with the event that it halted at; False when it was not halted."""
        store, session_id = self._runtime.store, self.session.session_id
        while True:
            record = store.load_record(session_id, _PREFIX + self.name)
            if record is None:
                return False
            try:
                store.save_record(session_id, _PREFIX + self.name, None, version=record.version)
            except RecordChanged:  # cleared, or halted anew, by somebody else
                continue
            self._log.info("projection_cleared", projection=self.name)
            return True

    # -- going on -----------------------------------------------------------------------------------------------

    def catch_up(self) -> int:
        """Bring the view to the end of the log as it is now, durably, and return the number of its last event.

        Raises:
            ProjectionHalted: ``apply`` has raised, now or earlier; what came before the event is in the view.
            ProjectionBusy: another process is at the same view.
            SeqPruned: what the view lacks was pruned; the view is left as it is.
            SessionHalted, SessionDeleted, LogCorrupt, SchemaMismatch: the log cannot be read.
            StorageUnavailable: the view could not be saved; the next call goes on where it was saved last.
        """
        with self._mutex:
            while True:
                self._check_halt()
                try:
                    at = self._at or self._resume()
                    self._fold(self.session.read(max(at.seq + 1, self.from_seq)), at)
                except Superseded:
                    self._forget()
                    continue
                return self.seq

    def replay(self) -> int:
        """Empty the view and fold the whole log anew; otherwise as ``catch_up``."""
        with self._mutex:
            self._check_halt()
            self._forget()
            self._prepare_sink()
            at = self._start_over("replay")
            self._fold(self.session.read(max(at.seq + 1, self.from_seq)), at)
            return self.seq

    def run(self) -> None:
        """Catch up, and go on with every event as it comes, until ``stop`` or the end of the runtime.

        Raises:
            InvalidArgument: it runs already, in another thread.
            LogmarkError: as ``catch_up``.
        """
        if not self._running.acquire(blocking=False):
            message = f"projection {self.name!r} runs already"
            raise InvalidArgument(message)
        try:
            if not self._stopping:
                self._run()
        except RuntimeClosed:
            return
        finally:
            self._stopping = False
            self._running.release()

    def _run(self) -> None:
        seq = self.catch_up()
        # Only how far the log goes is wanted of it: what is there is read from the log, so that nothing else decides.
        limits = dataclasses.replace(self._runtime.limits, subscriber_events_max=1, subscriber_bytes_max=1)
        with self.session.follow(max(seq + 1, self.from_seq), limits=limits, on_change=self._wake.set):
            while True:
                self._wake.clear()  # before the looks: what comes during them is looked at once more
                if self._was_stopped():
                    return
                self.catch_up()
                self._wake.wait()

    def _was_stopped(self) -> bool:
        return self._stopping

    def stop(self) -> None:
        """End ``run``, from any thread; what was saved stays. Before ``run`` is called, it ends that at once."""
        self._stopping = True  # first this, as run() looks at it last
        self._wake.set()

    def close(self) -> None:
        """End ``run`` and let go of files and locks, so that another process may go on. Not from within ``apply``."""
        self.stop()
        with self._running, self._mutex:
            self._forget()
            self.release()
            self._stopping = False

    # -- the fold -----------------------------------------------------------------------------------------------

    def _prepare_sink(self) -> None:
        """Open the sink, whatever it holds."""
        try:
            self.load()
        except LogmarkError:
            raise
        except ValueError:
            self._log.debug("projection_untrusted", projection=self.name)

    def _resume(self) -> Checkpoint:
        """Find where the view stands, or start over."""
        try:
            checkpoint = self.load()
        except LogmarkError:  # some of which are ValueErrors
            raise
        except ValueError as error:
            return self._start_over(str(error))
        reason = None if checkpoint is None else self._objection(checkpoint)
        if checkpoint is None or reason is not None:
            return self._start_over(reason)
        self._at = checkpoint
        return checkpoint

    def _objection(self, checkpoint: Checkpoint) -> str | None:
        """Return why a checkpoint is not one of this projection and this log."""
        mine = (self.session.session_id, self.name, self.version, self.from_seq)
        its = (checkpoint.session_id, checkpoint.name, checkpoint.version, checkpoint.from_seq)
        if its != mine:
            return f"the checkpoint is of {its}, this is {mine}"
        if checkpoint.seq < self.from_seq:
            return None if checkpoint.event_id is None else "the checkpoint contradicts itself"
        store, session_id = self._runtime.store, self.session.session_id
        info = store.info(session_id)
        if checkpoint.seq > info.last_seq:
            return f"the checkpoint is at event {checkpoint.seq}, the log ends with {info.last_seq}"
        if checkpoint.seq < info.first_available:
            return None  # it cannot be looked at any more; what comes next is there, or SeqPruned says that it is not
        found = next(iter(store.read(session_id, from_seq=checkpoint.seq, through_seq=checkpoint.seq)), None)
        if found is None or found.id != checkpoint.event_id:
            return f"event {checkpoint.seq} of the log is not the one that the checkpoint was made at"
        return None

    def _start_over(self, reason: str | None) -> Checkpoint:
        """Empty the view, unless it could not be made anew."""
        info = self._runtime.store.info(self.session.session_id)
        if info.first_available > self.from_seq:
            raise SeqPruned(session_id=self.session.session_id, seq=self.from_seq, first_available=info.first_available)
        if reason is not None:
            self._log.warning("projection_restarted", projection=self.name, reason=reason)
        self.begin()
        at = self._at = Checkpoint(
            session_id=self.session.session_id,
            name=self.name,
            version=self.version,
            from_seq=self.from_seq,
            seq=self.from_seq - 1,
        )
        self._unsaved = True
        return at

    def _fold(self, events: Iterable[Envelope], at: Checkpoint) -> None:
        started = False
        try:
            for event in events:
                if not started:
                    self.start_commit(at)
                    started = True
                self._apply(event)
                if self._pending_events >= self.commit_events_max or self.is_full():
                    at = self._commit(at)
                    started = False
        except ProjectionHalted:
            raise  # which has saved what it could
        except LogmarkError:  # of the log: what was read before it counts
            if self._at is not None:
                self._commit(at)
            raise
        except BaseException:  # an interrupt, at any place
            self._forget()
            raise
        self._commit(at)

    def _apply(self, event: Envelope) -> None:
        try:
            self.start_event()
            self.apply(event)
            self.end_event()
        except Exception as error:
            self._fail(event, error)
        self._pending = (event.event_seq or 0, event.id)
        self._pending_events += 1

    def _commit(self, at: Checkpoint) -> Checkpoint:
        """Save the view with what was applied, if anything was."""
        if self._pending is None and not self._unsaved:
            return at
        seq, event_id = self._pending or (at.seq, at.event_id)
        checkpoint = dataclasses.replace(at, seq=seq, event_id=event_id)
        try:
            self.save(checkpoint)
        except BaseException:
            self._forget()
            raise
        self._at, self._pending, self._pending_events, self._unsaved = checkpoint, None, 0, False
        return checkpoint

    def _forget(self) -> None:
        """Know nothing any more: what is saved decides, when it is next looked at."""
        self._at, self._pending, self._pending_events, self._unsaved = None, None, 0, False

    def _fail(self, event: Envelope, error: Exception) -> None:
        """Halt before an event."""
        at, seq = self._at, event.event_seq or 0
        try:
            if self.discard() and at is not None:
                self._commit(at)
            else:
                self._try_to_remake(seq - 1)
        finally:
            self._record_halt(event, error)
        raise ProjectionHalted(
            session_id=self.session.session_id, name=self.name, seq=seq, reason=_reason(error)
        ) from error

    def _try_to_remake(self, through_seq: int) -> None:
        """Make the view anew up to an event, as it holds half of the next one; empty when that fails too."""
        try:
            self._remake(through_seq)
        except Exception as error:
            self._log.debug("projection_emptied", projection=self.name, reason=repr(error))
            self._forget()
            self.begin()

    def _remake(self, through_seq: int) -> None:
        self._forget()
        at = self._resume()
        start = max(at.seq + 1, self.from_seq)
        for event in self.session.read(start):
            if (event.event_seq or 0) > through_seq:
                break
            self.start_event()
            self.apply(event)
            self.end_event()
            self._pending = (event.event_seq or 0, event.id)
        self._commit(at)

    # -- the halt -----------------------------------------------------------------------------------------------

    def _check_halt(self) -> None:
        self._runtime.check_usable()
        halt = self.halt
        if halt is not None:
            raise ProjectionHalted(
                session_id=halt.session_id, name=halt.name, seq=halt.seq, reason=halt.reason, halted_at=halt.at
            )

    def _record_halt(self, event: Envelope, error: Exception) -> None:
        """Record it; one that cannot be is found again at the next try, as the checkpoint stands before the event."""
        members = {
            "v": _VERSION,
            "seq": event.event_seq,
            "id": event.id,
            "reason": _reason(error),
            "at": rfc3339(self._runtime.clock.time_ns()),
        }
        name, session_id = _PREFIX + self.name, self.session.session_id
        try:
            record = self._runtime.store.load_record(session_id, name)
            version = 0 if record is None else record.version
            self._runtime.store.save_record(session_id, name, orjson.dumps(members), version=version)
            recorded = True
        except LogmarkError as failure:
            recorded = isinstance(failure, RecordChanged)  # by somebody else, who has met the same event
        self._log.error(
            "projection_halted", projection=self.name, seq=event.event_seq, reason=_reason(error), recorded=recorded
        )

    def __enter__(self) -> Self:
        """Return the projection; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the projection."""
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.session.session_id!r} at {self.seq}>"


def projection_halts(store: EventStore, session_id: str) -> list[ProjectionHalt]:
    """Return the halts of a session's projections, in the order of their names; for reports."""
    return [
        _decoded(session_id, name.removeprefix(_PREFIX), record)
        for name, record in store.records(session_id).items()
        if name.startswith(_PREFIX)
    ]


def _decoded(session_id: str, name: str, record: Record) -> ProjectionHalt:
    members: dict[str, Any] = orjson.loads(record.data)
    if members.get("v") != _VERSION:
        raise SchemaMismatch(session_id=session_id, expected=_VERSION, found=members.get("v"))
    return ProjectionHalt(
        session_id=session_id,
        name=name,
        seq=members["seq"],
        event_id=members["id"],
        reason=members["reason"],
        at=members["at"],
    )


def _reason(error: BaseException) -> str:
    return repr(error)[:_REASON_CHARS_MAX]
