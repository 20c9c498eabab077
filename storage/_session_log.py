"""One session's log on disk: the lock, the numbers, the write, and what a crash leaves behind.

Order of an append: lock → look whether the tail is still ours → number → write → sync → head → unlock. Whatever fails
before the write is certain (``AppendRejected``); a failed write is rolled back and then certain too; a failed sync or
roll-back leaves the outcome unknown (``AppendUncertain``) and halts the session, because after a failed fsync the page
cache no longer says what the disk holds (Rebello et al., "Can Applications Recover from fsync Failures?", ATC'20).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Sequence
from typing import cast

from ..protocol import (
    SEQ_MAX,
    AppendError,
    AppendUncertain,
    LockTimeout,
    SequenceExhausted,
    SessionDeleted,
    SessionHalted,
    SessionSealed,
    StorageRejected,
    encode_rows,
    row_seed,
)
from ._files import make_file, write_all
from ._halt import HaltMarker
from ._head_file import HeadFile
from ._layout import HALT, LOCK, segment_name
from ._lifetime import Lifetime
from ._lock import FileLockGuard, Held
from ._log_reader import FileEnv, LogReader
from ._patience import WouldWait, catch_up, may_wait
from ._plan import BatchPlan, SessionPlan, ids_in_doubt, number_plainly
from ._recovery import Recovery, Tail
from ._repair import repair_session
from ._segment import encode_header, encode_reservation
from ._session_ids import IdsUnknown, SessionIds
from ._store import Appended, AppendRequest, BatchResult, HaltRecord
from ._undisturbed import Undisturbed

__all__ = ["SessionLog"]

_NOT_WRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class SessionLog:
    """Writing the log of one session. Safe from any thread; appends of one process take turns on ``_mutex``."""

    def __init__(self, env: FileEnv, session_id: str, path: str) -> None:
        self._env = env
        self._files = env.files
        self.session_id = session_id
        self.path = path
        self._seed = row_seed(session_id)
        self._mutex = threading.Lock()
        self._lock: FileLockGuard | None = None
        self._segment_fd: int | None = None
        self._tail: Tail | None = None
        self._halt_marker = HaltMarker(env.files, session_id, os.path.join(path, HALT))
        self._halt: HaltRecord | None = None
        self._checked = False
        self._through_seen = 0
        self._undisturbed = Undisturbed(env.files, env.clock, path)
        self._named_segment = 0
        self._named_path = ""
        self._log = env.log.bind(session=session_id)
        self._head = HeadFile(env.files, path, self._seed, self._log)
        self._reader = LogReader(env, session_id, path)
        self._lifetime = Lifetime()  # as of the last recovery; who changes it makes every process recover
        self._ids = SessionIds(env, self._reader, self._log)
        self._recovery = Recovery(env, self._reader, sync=self._sync, sync_dir=self._sync_dir, log=self._log)

    # -- appending ----------------------------------------------------------------------------------------------

    def append(self, requests: Sequence[AppendRequest]) -> BatchResult:
        """Write the requests; every failure is in the answers.

        Raises:
            WouldWait: somebody else is at the log, and this thread must not wait.
        """
        patient = may_wait()
        if not self._mutex.acquire(blocking=patient):
            raise WouldWait
        try:
            if not requests:
                return self._nothing_written(())
            try:
                while True:
                    try:
                        with self._locked(patient=patient):
                            return self._commit(requests)
                    except IdsUnknown:  # it may take long to learn them: nobody else has to wait for that
                        self._ids.prepare()
            except AppendError as error:
                failure = error
            except OSError as error:
                # Every write is guarded on its own, so this came before the first byte or after the roll-back.
                failure = StorageRejected(
                    session_id=self.session_id, reason=f"{type(error).__name__}: {error}", errno=error.errno
                )
                failure.__cause__ = error
            return self._nothing_written((failure,) * len(requests))
        finally:
            self._mutex.release()

    def _nothing_written(self, answers: tuple[AppendError, ...]) -> BatchResult:
        """Return the result of a batch that did not come to the log, with what the head says of the session."""
        try:
            seq = (self._reader.read_head() or self._reader.scan_position(damaged_ok=True)).seq
        except SessionDeleted as error:
            seq = error.last_seq
        except (AppendError, OSError):
            seq = 0 if self._tail is None else self._tail.seq
        return BatchResult(session_id=self.session_id, answers=answers, last_seq_before=seq, last_seq=seq)

    def reserve(self, through_seq: int) -> None:
        """Use up the numbers to ``through_seq`` with a row that says so."""
        with self._mutex, self._locked():
            tail = self._tail_or_new()
            if self._lifetime.sealed:
                raise SessionSealed(session_id=self.session_id, last_seq=tail.seq)
            if through_seq > SEQ_MAX:
                raise SequenceExhausted(session_id=self.session_id, last_seq=tail.through)
            if through_seq > tail.through:
                self._write(
                    encode_reservation(self.session_id, tail.through + 1, through_seq), tail.seq, through_seq, None
                )

    def _commit(self, requests: Sequence[AppendRequest]) -> BatchResult:
        tail = self._tail or self._tail_or_new()
        plan: BatchPlan | None = None
        answers: Sequence[Appended | AppendError]
        plain = None if self._lifetime.sealed else number_plainly(requests, tail.through)
        if plain is not None:
            answers, events = plain
        else:
            session = SessionPlan(self.session_id, seq=tail.seq, through=tail.through, sealed=self._lifetime.sealed)
            plan = session.plan(requests, self._ids.numbers_of(ids_in_doubt(requests), tail))
            answers, events = plan.answers, plan.events
        if not events:
            return BatchResult(
                session_id=self.session_id, answers=tuple(answers), last_seq_before=tail.seq, last_seq=tail.seq
            )
        before, first = tail.seq, tail.through + 1
        last = tail.through + len(events)
        rows = encode_rows(events, first, last, self._seed)
        try:
            sync_s = self._write(rows, last, last, events[0].id)
        except AppendError as error:
            if plan is not None:  # requests that the log itself has answered do not share the fate of the write
                return plan.failed(error)
            return BatchResult(
                session_id=self.session_id, answers=(error,) * len(requests), last_seq_before=before, last_seq=before
            )
        if self._tail is not None:
            self._ids.written(events, rows, self._tail.segment, self._tail.size - len(rows))
        return BatchResult(
            session_id=self.session_id,
            answers=tuple(answers),
            last_seq_before=before,
            last_seq=last,
            bytes_written=len(rows),
            sync_s=sync_s,
            through_before=first - 1,
        )

    def _write(self, rows: bytes, seq: int, through: int, first_event_id: str | None) -> float:
        """Make rows durable and advance the tail; return the seconds that the sync took."""
        tail = self._tail or self._tail_or_new()
        if self._segment_fd is None or (
            tail.size + len(rows) > self._env.limits.segment_bytes_max and tail.through >= tail.segment
        ):
            tail = self._start_segment(tail)
        fd, start = cast("int", self._segment_fd), tail.size
        done = False
        try:
            write_all(self._files, fd, rows, start)
            catch_up()  # while the disk works
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
        self._head.write(tail.head(halted=self._halt is not None))

    def _write_late(self) -> None:
        """Offer the disk the head that it has refused once more: until then no other process sees the events."""
        try:
            with self._locked():
                if self._head.unwritten is not None and self._tail is not None:
                    self._write_head(self._tail)
        except (AppendError, OSError, WouldWait):
            return  # this was said when it was refused the first time

    def _start_segment(self, tail: Tail) -> Tail:
        """Create the next segment: complete, or not there at all.

        The head names it before it is there. So a process that believes to know the tail looks again, and appends
        nothing to the old segment once there is a new one, also when whoever made it died at once.
        """
        files = self._files
        first = tail.through + 1
        path = os.path.join(self.path, segment_name(first))
        header = encode_header(self.session_id, first)
        fd = make_file(files, path + ".new", header, self._sync)
        try:
            if tail.segment:
                self._write_head(Tail(tail.seq, tail.through, first, 0, 0))
            files.rename(path + ".new", path)
            self._sync_dir(self.path)
            if tail.segment == 0:
                # Also when this process did not make the directory: who made it may have died before syncing its name.
                self._sync_dir(os.path.dirname(self.path))
            inode = files.fstat(fd).st_ino
        except BaseException:
            files.close(fd)
            self._tail = None  # the new segment may have its name already, and then the old one is complete
            raise
        if self._segment_fd is not None:
            files.close(self._segment_fd)
        self._segment_fd = fd
        self._tail = Tail(tail.seq, tail.through, first, len(header), inode)
        self._write_head(self._tail)
        self._log.info("segment_started", segment=segment_name(first))
        if tail.segment:
            self._ids.closing(tail, self._tail)
        return self._tail

    # -- the lock and the tail ----------------------------------------------------------------------------------

    def _locked(self, *, patient: bool = True) -> Held:
        return Held(self._enter, self._leave, patient=patient)

    def _enter(self, *, patient: bool) -> None:
        """Take the lock and make sure that the tail is what the file says."""
        if self._halt is not None:
            record = self._halt_marker.read()
            if record is not None:
                self._refuse_deleted()
                raise self._halted_error(record)
        if self._lock is None:
            self._files.mkdir(self.path)  # its name is synced when the first segment is made
            self._lock = FileLockGuard(self._env.files, os.path.join(self.path, LOCK))
        limits = self._env.limits
        if not self._lock.acquire(self._env.clock, limits.lock_wait_s, self._undisturbed.holds, patient=patient):
            raise LockTimeout(
                session_id=self.session_id, waited_s=limits.lock_wait_s, holder_pid=self._lock.holder_pid()
            )
        try:
            if not self._tail_is_known():
                self._recover()
        except BaseException:
            self._lock.release()
            raise

    def _leave(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _tail_or_new(self) -> Tail:
        if self._tail is None:
            self._tail = Tail(self._lifetime.last_below, self._lifetime.first_available - 1, 0, 0, 0)
        return self._tail

    def _tail_is_known(self) -> bool:
        """Say whether nobody else has touched the log; looks at paths only when something happened to them."""
        tail, files = self._tail, self._files
        if tail is not None and tail.segment and self._head.fd is None and self._segment_fd is None:
            try:  # they were given back while others needed them; what they are now is compared as ever
                self._segment_fd = files.open(self._segment_path(tail.segment), write=True)
                self._head.open()
            except FileNotFoundError:
                return False
        segment_fd = self._segment_fd
        if tail is None or segment_fd is None or self._halt is not None:
            return False
        if self._undisturbed.held:  # it was asked when the lock was taken
            return (
                self._head.is_as_written()
                and files.fstat(segment_fd).st_size == tail.size
                and self._halt_marker.unwritten is None
            )
        looked_at = self._undisturbed.look()
        if not self._tail_is_current():
            return False
        self._undisturbed.remember(looked_at)
        return True

    def _tail_is_current(self) -> bool:
        """Say whether nobody else has touched the log since this process last did. Must hold the lock."""
        tail = self._tail
        if tail is None or self._segment_fd is None or self._halt is not None:
            return False
        if not (self._head.is_as_written() and self._head.is_in_place()):
            return False
        try:
            found = self._files.stat(self._segment_path(tail.segment))
        except OSError:
            return False
        if found.st_size != tail.size or found.st_ino != tail.inode or found.st_nlink != 1:
            return False
        # A halt marks the head too, but one that could not wait for the lock may have lost that mark to its holder.
        return not self._halt_marker.stands()

    def _segment_path(self, first_seq: int) -> str:
        if first_seq != self._named_segment:
            self._named_segment, self._named_path = first_seq, os.path.join(self.path, segment_name(first_seq))
        return self._named_path

    def _recover(self) -> None:
        """Bring tail, head and file into agreement. Must hold the lock.

        The rows decide. What the head covers was synced and must be there; what follows it is kept as far as whole
        commits go, and the rest is put aside.
        """
        self._close_data()
        self._refuse_deleted()
        self._halt = self._halt_marker.read()
        if self._halt is not None:
            raise self._halted_error(self._halt)
        self._learn_lifetime()
        segments = self._reader.segments(clean=True)
        head = self._reader.read_head()
        if not segments:
            pruned = self._lifetime.first_available - 1
            through = max(self._through_seen, 0 if head is None else head.through)
            if through > pruned:
                raise self._reader.lost(through, pruned, None, 0)
            self._tail = None
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
            self._head.adopt(head)
        if tail.through > self._through_seen > 0:
            self._log.debug("foreign_events_found", through=tail.through, through_known=self._through_seen)
        self._through_seen = tail.through

    def _refuse_deleted(self) -> None:
        lifetime = self._reader.lifetime()
        if lifetime.deleted_at is not None:
            raise self._reader.lifetime_file.deleted(lifetime)

    def _learn_lifetime(self) -> None:
        """Read what is kept of the session, and remove what a crash has left of the rest. Must hold the lock."""
        lifetime = self._reader.lifetime_file.read()
        if lifetime != self._lifetime:
            if self._env.sync:  # whoever has written it may have died before its name was durable
                self._files.sync_dir(self.path)
            self._lifetime = lifetime
            self._ids.forget()
            self._ids.first_available = lifetime.first_available
        if lifetime.first_available > 1:
            with contextlib.suppress(OSError):  # nobody reads it, and the next one tries again
                self._reader.remove_pruned(lifetime.first_available, through=lifetime.first_available)

    # -- halting ------------------------------------------------------------------------------------------------

    def halt(self, reason: str, first_event_id: str | None) -> None:
        """Refuse appends and replays from now on, durably."""
        with self._mutex:
            self._refuse_deleted()
            self._files.mkdir(self.path)
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
        """Return the marker on disk, or the halt that could not be written there; a deleted session has none."""
        record = self._halt_marker.read()
        return None if record is not None and self._reader.lifetime().deleted_at is not None else record

    def clear_halt(self, verify: Callable[[], None]) -> None:
        """Let the session go on after ``verify`` has not raised."""
        with self._mutex:
            self._refuse_deleted()
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
            self._tail, self._checked, self._head.unwritten = None, False, None
            self._ids.forget()
            lock = self._lock = self._lock or FileLockGuard(self._env.files, os.path.join(self.path, LOCK))
            wait_s = self._env.limits.lock_wait_s
            if not lock.acquire(self._env.clock, wait_s):
                raise LockTimeout(session_id=self.session_id, waited_s=wait_s, holder_pid=lock.holder_pid())
            try:
                if self._reader.lifetime().deleted_at is not None:
                    return []
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
            if tail is None or self._head.fd is None:
                head = self._reader.read_head()
                tail = None if head is None else Tail(head.seq, head.through, head.segment, head.size, 0)
        except OSError as problem:
            self._log.warning("head_write_failed", error=str(problem))
            return
        if tail is not None:
            self._write_head(tail)  # so that a process whose tail looks current sees that it is not

    def _halted_error(self, record: HaltRecord) -> SessionHalted:
        return SessionHalted(session_id=self.session_id, reason=record.reason, halted_at=record.at)

    # -- descriptors --------------------------------------------------------------------------------------------

    def _close_data(self) -> None:
        segment_fd, self._segment_fd = self._segment_fd, None
        if segment_fd is not None:
            self._files.close(segment_fd)
        self._head.close()

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
        if self._head.unwritten is not None and self._tail is not None:
            self._write_late()
        if self._head.unwritten is not None or self._head.fd is None or self._segment_fd is None:
            self._tail = None
        self._close_data()
        self._ids.compact()
        self.drop_lock()

    def drop_lock(self) -> None:
        """Close the lock's descriptor; in a forked child it would keep the parent's lock alive after the parent."""
        if self._lock is not None:
            self._lock.close()
