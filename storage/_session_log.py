"""One session's log on disk: the lock, the numbers, the write, and what a crash leaves behind.

Order of an append: lock → look whether the tail is still ours → number → write → sync → head → unlock. Whatever fails
before the write is certain (``AppendRejected``); a failed write is rolled back and then certain too; a failed sync or
roll-back leaves the outcome unknown (``AppendUncertain``) and halts the session, because after a failed fsync the page
cache no longer says what the disk holds (Rebello et al., "Can Applications Recover from fsync Failures?", ATC'20).
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from ..protocol import (
    SEQ_MAX,
    AppendError,
    AppendUncertain,
    EncodedEvent,
    LockTimeout,
    RawEnvelope,
    SequenceExhausted,
    SessionHalted,
    StorageRejected,
    WrongExpectedSeq,
    encode_row,
    row_seed,
)
from ._files import write_all
from ._halt import HaltMarker
from ._head import HEAD_BYTES, Head
from ._ids_index import IdIndex, settle, stands_without
from ._layout import HALT, HEAD, LOCK, segment_name
from ._lock import FileLockGuard
from ._log_reader import FileEnv, LogReader
from ._recovery import Recovery, Tail
from ._repair import repair_session
from ._segment import encode_header, encode_reservation
from ._store import Appended, AppendRequest, BatchResult, HaltRecord

__all__ = ["SessionLog"]

_NOT_WRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNMENDABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT})  # but readable


class SessionLog:
    """The log of one session. Safe from any thread; appends of one process take turns on ``_mutex``."""

    def __init__(self, env: FileEnv, session_id: str, path: str) -> None:
        self._env = env
        self._files = env.files
        self.session_id = session_id
        self.path = path
        self._seed = row_seed(session_id)
        self._mutex = threading.Lock()
        self._lock: FileLockGuard | None = None
        self._head_fd: int | None = None
        self._head_line = b""
        self._unwritten_head: Head | None = None
        self._segment_fd: int | None = None
        self._tail: Tail | None = None
        self._ids: IdIndex | None = None
        self._halt_marker = HaltMarker(env.files, session_id, os.path.join(path, HALT))
        self._halt: HaltRecord | None = None
        self._checked = False
        self._through_seen = 0
        self._log = env.log.bind(session=session_id)
        self._reader = LogReader(env, session_id, path)
        self._recovery = Recovery(env, self._reader, sync=self._sync, sync_dir=self._sync_dir, log=self._log)

    # -- appending ----------------------------------------------------------------------------------------------

    def append(self, requests: Sequence[AppendRequest]) -> BatchResult:
        """Write the requests; every failure is in the answers."""
        with self._mutex:
            if not requests:
                return self._nothing_written(())
            try:
                with self._locked():
                    return self._commit(requests)
            except AppendError as error:
                failure = error
            except OSError as error:
                # Every write is guarded on its own, so this came before the first byte or after the roll-back.
                failure = StorageRejected(
                    session_id=self.session_id, reason=f"{type(error).__name__}: {error}", errno=error.errno
                )
                failure.__cause__ = error
            return self._nothing_written((failure,) * len(requests))

    def _nothing_written(self, answers: tuple[AppendError, ...]) -> BatchResult:
        """Return the result of a batch that did not come to the log, with what the head says of the session."""
        try:
            seq = (self._reader.read_head() or self._reader.scan_position(damaged_ok=True)).seq
        except (AppendError, OSError):
            seq = 0 if self._tail is None else self._tail.seq
        return BatchResult(session_id=self.session_id, answers=answers, last_seq_before=seq, last_seq=seq)

    def reserve(self, through_seq: int) -> None:
        """Use up the numbers to ``through_seq`` with a row that says so."""
        with self._mutex, self._locked():
            tail = self._tail_or_new()
            if through_seq > SEQ_MAX:
                raise SequenceExhausted(session_id=self.session_id, last_seq=tail.through)
            if through_seq > tail.through:
                self._write(
                    encode_reservation(self.session_id, tail.through + 1, through_seq), tail.seq, through_seq, None
                )

    def _commit(self, requests: Sequence[AppendRequest]) -> BatchResult:
        tail = self._tail_or_new()
        before, seq, through = tail.seq, tail.seq, tail.through
        known = self._ids_for(requests)
        pending: dict[str, int] = {}
        answers: list[Appended | AppendError] = []
        events: list[EncodedEvent] = []
        for request in requests:
            answer: Appended | AppendError | None = None
            if known is not None or len(request.events) > 1 or pending:
                # The ids come first: a retry whose first write succeeded must not fail on its expected_seq.
                answer = settle(self.session_id, request, known, pending)
            if answer is None and request.expected_seq is not None and request.expected_seq != seq:
                answer = WrongExpectedSeq(session_id=self.session_id, expected_seq=request.expected_seq, last_seq=seq)
            if answer is None and through + len(request.events) > SEQ_MAX:
                answer = SequenceExhausted(session_id=self.session_id, last_seq=through)
            if answer is None:
                answer = Appended(through + 1, through + len(request.events))
                for event in request.events:
                    through += 1
                    if not event.id_is_fresh:
                        pending[event.id] = through
                events.extend(request.events)
                seq = through
            answers.append(answer)
        size, sync_s = 0, 0.0
        if events:
            first = tail.through + 1
            batch = b"[%d,%d]" % (first, through)
            rows = b"".join(
                [encode_row(event, number, batch, self._seed) for number, event in enumerate(events, first)]
            )
            try:
                sync_s = self._write(rows, seq, through, events[0].id)
            except AppendError as error:
                # Requests that the log itself has answered do not share the fate of the write.
                return BatchResult(
                    session_id=self.session_id,
                    answers=tuple(answer if stands_without(first, answer) else error for answer in answers),
                    last_seq_before=before,
                    last_seq=before,
                )
            size = len(rows)
            if self._ids is not None and self._ids.through >= before:  # else it lacks what others have appended
                for number, event in enumerate(events, first):
                    self._ids.add(event.id, number)
        return BatchResult(
            session_id=self.session_id,
            answers=tuple(answers),
            last_seq_before=before,
            last_seq=seq,
            bytes_written=size,
            sync_s=sync_s,
        )

    def _write(self, rows: bytes, seq: int, through: int, first_event_id: str | None) -> float:
        """Make rows durable and advance the tail; return the seconds that the sync took."""
        tail = self._tail_or_new()
        if self._segment_fd is None or (
            tail.size + len(rows) > self._env.limits.segment_bytes_max and tail.through >= tail.segment
        ):
            tail = self._start_segment(tail)
        fd, start = cast("int", self._segment_fd), tail.size
        done = False
        try:
            write_all(self._files, fd, rows, start)
            began = self._env.clock.monotonic()
            self._sync(fd, first_event_id)
            sync_s = self._env.clock.monotonic() - began
            done = True
        except AppendUncertain:
            raise
        except BaseException as error:
            if isinstance(error, OSError) and error.errno not in _NOT_WRITTEN:
                raise self._uncertain(f"write failed: {error}", first_event_id) from error
            self._roll_back(fd, start, first_event_id)
            if isinstance(error, OSError | MemoryError):
                raise StorageRejected(
                    session_id=self.session_id,
                    reason=f"{type(error).__name__}: {error}",
                    errno=getattr(error, "errno", None),
                ) from error
            raise
        finally:
            if not done:
                self._tail = None  # whatever happened, the next append looks at the file again
        tail.seq, tail.through, tail.size = seq, through, start + len(rows)
        self._through_seen = through
        self._write_head(tail)
        return sync_s

    def _sync(self, fd: int, first_event_id: str | None = None) -> None:
        if self._env.sync:
            try:
                self._files.sync(fd)
            except BaseException as error:
                raise self._uncertain(f"sync failed: {error}", first_event_id) from error

    def _sync_dir(self, path: str) -> None:
        if self._env.sync:
            try:
                self._files.sync_dir(path)
            except BaseException as error:
                raise self._uncertain(f"sync of the directory failed: {error}", None) from error

    def _roll_back(self, fd: int, size: int, first_event_id: str | None) -> None:
        try:
            self._files.truncate(fd, size)
            if self._env.sync:
                self._files.sync(fd)
        except BaseException as error:
            raise self._uncertain(f"roll-back failed: {error}", first_event_id) from error
        self._log.warning("append_rolled_back", size=size)

    def _uncertain(self, reason: str, first_event_id: str | None) -> AppendUncertain:
        self._set_halt(reason, first_event_id)
        return AppendUncertain(session_id=self.session_id, reason=reason, first_event_id=first_event_id)

    def _write_head(self, tail: Tail) -> None:
        head = tail.head(halted=self._halt is not None)
        line = head.encode(self._seed)
        for attempt in (1, 2):
            try:
                if self._head_fd is None:
                    self._head_fd = self._files.open(os.path.join(self.path, HEAD), write=True, create=True)
                write_all(self._files, self._head_fd, line, 0)
            except OSError as error:
                # The events are durable, and this process goes on by what it knows; others learn of them with the next
                # append. So it is worth a second attempt, on a descriptor of its own.
                self._unwritten_head = head
                if attempt > 1:
                    self._log.warning("head_write_failed", error=str(error), seq=tail.seq)
                elif self._head_fd is not None:
                    head_fd, self._head_fd = self._head_fd, None
                    self._files.close(head_fd)
            else:
                self._head_line = line
                self._unwritten_head = None
                return

    def _start_segment(self, tail: Tail) -> Tail:
        """Create the next segment: complete, or not there at all.

        The head names it before it is there. So a process that believes to know the tail looks again, and appends
        nothing to the old segment once there is a new one, also when whoever made it died at once.
        """
        files = self._files
        first = tail.through + 1
        path = os.path.join(self.path, segment_name(first))
        header = encode_header(self.session_id, first)
        fresh = path + ".new"
        fd = files.open(fresh, write=True, create=True)
        try:
            files.truncate(fd, 0)
            write_all(files, fd, header, 0)
            self._sync(fd)
            if tail.segment:
                self._write_head(Tail(tail.seq, tail.through, first, 0, 0))
            files.rename(fresh, path)
            self._sync_dir(self.path)
            if tail.segment == 0:
                # Also when this process did not make the directory: who made it may have died before syncing its name.
                self._sync_dir(os.path.dirname(self.path))
            inode = files.fstat(fd).st_ino
        except BaseException:
            files.close(fd)
            raise
        if self._segment_fd is not None:
            files.close(self._segment_fd)
        self._segment_fd = fd
        self._tail = Tail(tail.seq, tail.through, first, len(header), inode)
        self._write_head(self._tail)
        self._log.info("segment_started", segment=segment_name(first))
        return self._tail

    # -- the lock and the tail ----------------------------------------------------------------------------------

    def _locked(self) -> _Held:
        return _Held(self)

    def _enter(self) -> None:
        """Take the lock and make sure that the tail is what the file says."""
        if self._halt is not None:
            record = self._halt_marker.read()
            if record is not None:
                raise self._halted_error(record)
        if self._lock is None:
            self._create_directory()
            self._lock = FileLockGuard(self._env.files, os.path.join(self.path, LOCK))
        limits = self._env.limits
        if not self._lock.acquire(self._env.clock, limits.lock_wait_s):
            raise LockTimeout(
                session_id=self.session_id, waited_s=limits.lock_wait_s, holder_pid=self._lock.holder_pid()
            )
        try:
            if not self._tail_is_current():
                self._recover()
        except BaseException:
            self._lock.release()
            raise

    def _leave(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _create_directory(self) -> None:
        self._files.mkdir(self.path)  # its name is synced when the first segment is made

    def _tail_or_new(self) -> Tail:
        if self._tail is None:
            self._tail = Tail(0, 0, 0, 0, 0)
        return self._tail

    def _tail_is_current(self) -> bool:
        """Say whether nobody else has touched the log since this process last did. Must hold the lock."""
        tail, head_fd = self._tail, self._head_fd
        if tail is None or head_fd is None or self._segment_fd is None or self._halt is not None:
            return False
        files = self._files
        if files.read(head_fd, HEAD_BYTES, 0) != self._head_line or files.fstat(head_fd).st_nlink != 1:
            return False
        try:
            found = files.stat(os.path.join(self.path, segment_name(tail.segment)))
        except OSError:
            return False
        if found.st_size != tail.size or found.st_ino != tail.inode or found.st_nlink != 1:
            return False
        # A halt marks the head too, but one that could not wait for the lock may have lost that mark to its holder.
        return not self._halt_marker.stands()

    def _recover(self) -> None:
        """Bring tail, head and file into agreement. Must hold the lock.

        The rows decide. What the head covers was synced and must be there; what follows it is kept as far as whole
        commits go, and the rest is put aside.
        """
        self._close_data()
        self._halt = self._halt_marker.read()
        if self._halt is not None:
            raise self._halted_error(self._halt)
        segments = self._reader.segments(clean=True)
        head = self._reader.read_head()
        if not segments:
            through = max(self._through_seen, 0 if head is None else head.through)
            if through > 0:
                raise self._reader.lost(through, 0, None, 0)
            self._checked = True
            return
        first = segments[-1]
        path = os.path.join(self.path, segment_name(first))
        fd = self._files.open(path, write=True)
        try:
            tail = self._recovery.recover(fd, first, head, has_older=len(segments) > 1)
            if tail.through < self._through_seen:  # an older copy was put in place of the log
                raise self._reader.lost(self._through_seen, tail.through, segment_name(first), tail.size)
        except BaseException:
            self._files.close(fd)
            raise
        self._segment_fd = fd
        self._tail = tail
        self._checked = True
        if head is None or head != tail.head(halted=head.halted):
            if head is None:
                self._log.warning("head_rebuilt", seq=tail.seq)
            self._write_head(tail)
        else:
            self._head_fd = self._files.open(os.path.join(self.path, HEAD), write=True)
            self._head_line = head.encode(self._seed)
        if tail.through > self._through_seen > 0:
            self._log.debug("foreign_events_found", through=tail.through, through_known=self._through_seen)
        self._through_seen = tail.through

    # -- ids ----------------------------------------------------------------------------------------------------

    def _ids_for(self, requests: Sequence[AppendRequest]) -> IdIndex | None:
        """Return the ids in the log when one of the requests may be a retry. Must hold the lock."""
        if all(event.id_is_fresh for request in requests for event in request.events):
            return None
        if self._ids is None:
            self._ids = IdIndex()
        tail = self._tail_or_new()
        if self._ids.through < tail.seq:
            self._ids.extend(self._reader.rows(self._ids.through + 1, tail.through, tail.head()))
        return self._ids

    # -- halting ------------------------------------------------------------------------------------------------

    def halt(self, reason: str, first_event_id: str | None) -> None:
        """Refuse appends and replays from now on, durably."""
        with self._mutex:
            self._create_directory()
            self._sync_dir(os.path.dirname(self.path))
            # Under the lock, so that no append of another process puts its own head over the one that says "halted".
            # A holder that hangs must not prevent the halt.
            lock = self._lock = self._lock or FileLockGuard(self._env.files, os.path.join(self.path, LOCK))
            held = lock.acquire(self._env.clock, self._env.limits.lock_wait_s)
            try:
                self._close_data()
                self._tail = None  # others may have appended since: what the head on disk says is what counts
                self._set_halt(reason, first_event_id)
            finally:
                if held:
                    lock.release()

    def halted(self) -> HaltRecord | None:
        """Return the marker on disk, or the halt that could not be written there."""
        return self._halt_marker.read()

    def clear_halt(self, verify: Callable[[], None]) -> None:
        """Let the session go on after ``verify`` has not raised."""
        with self._mutex:
            verify()
            self._halt_marker.remove()
            self._halt = None
            self._tail = None
            self._checked = False
            self._log.warning("halt_cleared")

    def repair(self, *, dry_run: bool) -> list[str]:
        """Make the log sound again; see ``_repair.py``.

        Raises:
            LockTimeout: somebody is writing.
        """
        with self._mutex:
            self._close_data()
            self._tail, self._ids, self._checked, self._unwritten_head = None, None, False, None
            lock = self._lock = self._lock or FileLockGuard(self._env.files, os.path.join(self.path, LOCK))
            wait_s = self._env.limits.lock_wait_s
            if not lock.acquire(self._env.clock, wait_s):
                raise LockTimeout(session_id=self.session_id, waited_s=wait_s, holder_pid=lock.holder_pid())
            try:
                return repair_session(
                    self._env.files,
                    self.session_id,
                    self.path,
                    self._env.limits,
                    marker=self._halt_marker,
                    time_ns=self._env.clock.time_ns(),
                    log=self._log,
                    dry_run=dry_run,
                )
            finally:
                self._halt = self._halt_marker.read()
                lock.release()

    def _set_halt(self, reason: str, first_event_id: str | None) -> None:
        at = self._env.clock.time_ns()
        record = self._halt_marker.write(reason, at, first_event_id, self._log)
        self._halt = record
        self._log.error("session_halted", reason=record.reason, first_event_id=first_event_id)
        tail = self._tail
        try:
            if tail is None or self._head_fd is None:
                head = self._reader.read_head()
                tail = None if head is None else Tail(head.seq, head.through, head.segment, head.size, 0)
        except OSError as problem:
            self._log.warning("head_write_failed", error=str(problem))
            return
        if tail is not None:
            self._write_head(tail)  # so that a process whose tail looks current sees that it is not

    def _halted_error(self, record: HaltRecord) -> SessionHalted:
        return SessionHalted(session_id=self.session_id, reason=record.reason, halted_at=record.at)

    # -- reading ------------------------------------------------------------------------------------------------

    def position(self, *, halted_ok: bool = False, check: bool = True) -> Head:
        """Return how far the log is durable; the first call of a process checks the end of the log.

        Args:
            halted_ok: answer for a halted session too.
            check: False to take what the head says, when the end of the log is known to be damaged.
        """
        head = self._known_head()
        if head is not None and not head.halted and self._checked and self._halt is None:
            return head
        record = self._halt_marker.read()
        if record is not None and not halted_ok:
            raise self._halted_error(record)
        if record is None and not self._checked and check:
            self._check()
        return self._known_head() or self._position_by_rows(mend=record is None and check, damaged_ok=not check)

    def _known_head(self) -> Head | None:
        head, unwritten = self._reader.read_head(self._head_fd), self._unwritten_head
        return unwritten if unwritten is not None and (head is None or head.through < unwritten.through) else head

    def _position_by_rows(self, *, mend: bool, damaged_ok: bool) -> Head:
        if not self._reader.segments():
            return Head(0, 0, 0, 0)
        if not mend:
            return self._reader.scan_position(damaged_ok=damaged_ok)
        try:
            return self._look()  # damaged or missing: rebuild it from the log
        except OSError as error:
            if error.errno not in _UNMENDABLE:
                raise
            return self._reader.scan_position()

    def _look(self) -> Head:
        """Recover the log as before an append, and return where it ends; whoever only looks keeps no descriptors."""
        with self._mutex:
            idle = self._segment_fd is None
            try:
                with self._locked():
                    self._checked = True
                    return self._tail_or_new().head()
            finally:
                if idle:
                    self._give_back()

    def _check(self) -> None:
        """Look once at the end of the log, so that damage there is not first met by an append or a reader."""
        if not self._reader.segments() and self._reader.read_head() is None:
            return
        try:
            self._look()
        except LockTimeout:
            # Somebody is writing right now, and looks after the log; what the head covers can be read.
            if self._reader.read_head() is None:
                raise
        except OSError as error:
            if error.errno not in _UNMENDABLE:
                raise
            self._checked = True

    def read(self, from_seq: int, through_seq: int | None, *, halted_ok: bool) -> Iterator[RawEnvelope]:
        """Yield durable events upwards as of this call."""
        position = self.position(halted_ok=halted_ok, check=not halted_ok)
        through = position.through if through_seq is None else min(through_seq, position.through)
        return self._reader.rows(max(1, from_seq), through, position)

    def read_backwards(self, before_seq: int | None) -> Iterator[RawEnvelope]:
        """Yield durable events downwards as of this call."""
        position = self.position()
        before = position.through + 1 if before_seq is None else min(before_seq, position.through + 1)
        return self._reader.backwards(before, position)

    def first_seq(self, position: Head) -> int:
        """Return the number of the first event that can be read, 0 when there is none."""
        return self._reader.first_seq(position)

    # -- descriptors --------------------------------------------------------------------------------------------

    def _close_data(self) -> None:
        segment_fd, self._segment_fd = self._segment_fd, None
        head_fd, self._head_fd = self._head_fd, None
        for fd in (segment_fd, head_fd):
            if fd is not None:
                self._files.close(fd)

    def close(self, *, wait: bool = True) -> bool:
        """Give back the descriptors; the log can be used again. False when it is busy and ``wait`` is False."""
        if not self._mutex.acquire(blocking=wait):
            return False
        try:
            self._give_back()
        finally:
            self._mutex.release()
        return True

    def _give_back(self) -> None:
        self._close_data()
        self._tail = None
        self.drop_lock()

    def drop_lock(self) -> None:
        """Close the lock's descriptor; in a forked child it would keep the parent's lock alive after the parent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()


class _Held:
    """The lock as a context manager: a class, because a generator costs a microsecond on each append."""

    __slots__ = ("_session_log",)

    def __init__(self, session_log: SessionLog) -> None:
        self._session_log = session_log

    def __enter__(self) -> None:
        self._session_log._enter()  # noqa: SLF001 - one pair of classes  # pyright: ignore[reportPrivateUsage]

    def __exit__(self, *_exc: object) -> None:
        self._session_log._leave()  # noqa: SLF001 - one pair of classes  # pyright: ignore[reportPrivateUsage]
