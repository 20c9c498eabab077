"""How one session's log on disk is pruned, sealed and deleted; the file that says so is in ``_lifetime.py``.

Each of them is one replacement of the lifetime file, under the session's lock, between two steps that may be repeated:
before it the head is replaced by a copy of itself, so that a writer in another process, which knows the head by its
inode, looks at the log again before its next append; after it is removed what is not available any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os

from ..protocol import AppendError, CursorAhead, LockTimeout
from ._clock import rfc3339
from ._layout import LIFETIME, LOCK, QUARANTINE, RECORDS
from ._lifetime import Lifetime, with_room
from ._lock import FileLockGuard
from ._log_reader import FileEnv
from ._records import RecordFiles
from ._recovery import Tail
from ._session_view import SessionView

__all__ = ["SessionFiles"]

_HIDDEN_BYTES_MAX = 65_536


class SessionFiles(SessionView):
    """All that is kept of one session. Safe from any thread."""

    def __init__(self, env: FileEnv, session_id: str, path: str) -> None:
        super().__init__(env, session_id, path)
        self.records = RecordFiles(env, session_id, path, self._log)
        self._is_in_doubt = False

    def truncate_before(self, seq: int) -> int:
        """Hide the events below a number, remove the segments that hold no others, and return the first number kept.

        A segment that holds others too stays whole. When the one that is written to would keep much of what is hidden,
        the next append begins another, so that it can be removed the next time.
        """
        with self._mutex, self._locked():
            tail, lifetime = self._tail_or_new(), self._lifetime
            if seq > tail.through + 1:
                raise CursorAhead(session_id=self.session_id, cursor=seq, last_seq=tail.seq)
            moved = seq > lifetime.first_available
            if moved:
                self._put(dataclasses.replace(lifetime, first_available=seq, last_below=min(tail.seq, seq - 1)))
            elif self._is_in_doubt:
                self._put(lifetime)
            lifetime = self._lifetime
            removed = self._reader.remove_pruned(lifetime.first_available, tail.through)
            if tail.segment in removed:
                self._close_data()
                self._tail = Tail(tail.seq, tail.through, 0, 0, 0)
                self._write_head(self._tail)
            elif not lifetime.sealed and self._hidden_bytes(tail) > _HIDDEN_BYTES_MAX:
                self._start_segment(tail)
            if removed:
                self._sync_names()
                self._ids.forget()
            if moved:
                self._log.info("session_truncated", first_available=seq, segments_removed=len(removed))
            return lifetime.first_available

    def _hidden_bytes(self, tail: Tail) -> int:
        """Return how much of the segment that is written to is not available any more."""
        if not tail.segment or self._lifetime.first_available <= tail.segment:
            return 0
        with self._reader.opened(tail.segment) as (segment, _):
            return segment.offset_of(self._lifetime.first_available, tail.size)

    def seal(self) -> int:
        """Refuse further events for good, and return the number of the last one."""
        with self._mutex, self._locked():
            tail = self._tail_or_new()
            if self._is_in_doubt or not self._lifetime.sealed:
                self._put(dataclasses.replace(self._lifetime, sealed=True))
                self._log.info("session_sealed", last_seq=tail.seq)
            return tail.seq

    def delete(self) -> None:
        """Remove everything but the tombstone and the lock."""
        with self._mutex:
            self._close_data()
            self._tail, self._checked, self._head.unwritten = None, False, None
            self._ids.forget()
            self._files.mkdir(self.path)
            lock = self._lock = self._lock or FileLockGuard(self._files, os.path.join(self.path, LOCK))
            wait_s = self._env.limits.lock_wait_s
            if not lock.acquire(self._env.clock, wait_s):
                raise LockTimeout(session_id=self.session_id, waited_s=wait_s, holder_pid=lock.holder_pid())
            try:
                lifetime = self._reader.lifetime()
                if self._is_in_doubt or lifetime.deleted_at is None:
                    when = lifetime.deleted_at or rfc3339(self._env.clock.time_ns())
                    used = max(lifetime.last_used, self._last_used(lifetime))
                    self._put(Lifetime(first_available=used + 1, last_below=used, deleted_at=when, last_used=used))
                    self._log.info("session_deleted", last_seq=used)
                else:
                    self._sync_names()  # whoever has written the tombstone may have died before its name was durable
                self._remove_all()
            finally:
                lock.release()

    def _last_used(self, lifetime: Lifetime) -> int:
        """Return the last number that was used, as far as it can be told from a log that may be damaged."""
        head = self._reader.read_head()
        found = [lifetime.first_available - 1, self._through_seen, 0 if head is None else head.through]
        segments = self._reader.segments()
        found += [first - 1 for first in segments[-1:]]
        with contextlib.suppress(AppendError):  # not even its first line can be read
            found.append(self._reader.scan_position(damaged_ok=True).through)
        return max(found)

    def _remove_all(self) -> None:
        """Remove the files of a session that has a tombstone; directories, empty from then on, stay."""
        self._halt = None
        self._through_seen = 0
        self._halt_marker.remove()
        self.records.remove_all()
        self._remove_files(os.path.join(self.path, QUARANTINE))
        for name in self._files.listdir(self.path):
            if name not in {LIFETIME, LOCK, QUARANTINE, RECORDS}:
                self._files.unlink(os.path.join(self.path, name))
        self._sync_names()

    def _remove_files(self, directory: str) -> None:
        try:
            names = self._files.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            path = os.path.join(directory, name)
            self._remove_files(path)
            if not self._is_directory(path):
                self._files.unlink(path)
        if self._env.sync:
            self._files.sync_dir(directory)

    def _is_directory(self, path: str) -> bool:
        try:
            self._files.listdir(path)
        except NotADirectoryError:
            return False
        return True

    def _put(self, lifetime: Lifetime) -> None:
        """Make the session's state another one, durably, and have every writer look at it before its next append."""
        self._is_in_doubt = True
        with_room(self._files, self.path, lambda: self._write_state(lifetime))
        if self._env.sync:
            self._files.sync_dir(os.path.dirname(self.path))  # it may be the first that is kept of the session
        self._is_in_doubt = False
        self._lifetime = lifetime
        self._ids.forget()
        self._ids.first_available = lifetime.first_available
        if self._tail is not None and self._tail.segment:
            self._write_head(self._tail)

    def _write_state(self, lifetime: Lifetime) -> None:
        self._head.renew(self._files.sync if self._env.sync else None)
        self._reader.lifetime_file.write(lifetime, sync=self._env.sync)

    def _sync_names(self) -> None:
        if self._env.sync:
            self._files.sync_dir(self.path)
