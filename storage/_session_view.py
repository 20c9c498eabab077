"""Reading one session's log on disk: how far it is durable, and its events as of a call."""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterator

from ..protocol import LockTimeout, RawEnvelope, SeqPruned
from ._head import Head
from ._log_reader import FileEnv
from ._session_log import SessionLog
from ._snapshots import SnapshotFiles
from ._store import SessionInfo

__all__ = ["SessionView"]

_UNMENDABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT})  # but readable


class SessionView(SessionLog):
    """Reading and writing the log of one session. Safe from any thread."""

    def __init__(self, env: FileEnv, session_id: str, path: str) -> None:
        super().__init__(env, session_id, path)
        self._snapshots: SnapshotFiles | None = None

    def position(self, *, halted_ok: bool = False, check: bool = True) -> Head:
        """Return how far the log is durable; the first call of a process checks the end of the log.

        Args:
            halted_ok: answer for a halted session too.
            check: False to take what the head says, when the end of the log is known to be damaged.
        """
        if self._head.unwritten is not None and self._mutex.acquire(blocking=False):
            try:
                self._write_late()
            finally:
                self._mutex.release()
        head = self._known_head()
        if head is not None and not head.halted and self._checked and self._halt is None:
            return head
        record = self._halt_marker.read()
        if record is not None and not halted_ok:
            self._refuse_deleted()
            raise self._halted_error(record)
        if record is None and not self._checked and check:
            self._check()
        return self._known_head() or self._position_by_rows(mend=record is None and check, damaged_ok=not check)

    def _known_head(self) -> Head | None:
        return self._head.newest(self._reader.read_head(self._head.fd))

    def _position_by_rows(self, *, mend: bool, damaged_ok: bool) -> Head:
        if not self._reader.segments():
            return self._reader.position_without_segments()
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

    def read(
        self, from_seq: int, through_seq: int | None, *, halted_ok: bool
    ) -> Generator[tuple[int, list[bytes]], None, None]:
        """Yield durable events upwards as of this call, as ``LogReader.runs`` does."""
        position = self.position(halted_ok=halted_ok, check=not halted_ok)
        from_seq = max(1, from_seq)
        if from_seq > position.through:
            return self._reader.runs(from_seq, position.through, position, [])
        segments, lifetime = self._reader.look(damaged_ok=halted_ok)
        if from_seq < lifetime.first_available:
            raise SeqPruned(session_id=self.session_id, seq=from_seq, first_available=lifetime.first_available)
        through = position.through if through_seq is None else min(through_seq, position.through)
        return self._reader.runs(from_seq, through, position, segments)

    def read_backwards(self, before_seq: int | None) -> Iterator[RawEnvelope]:
        """Yield durable events downwards as of this call."""
        position = self.position()
        before = position.through + 1 if before_seq is None else min(before_seq, position.through + 1)
        listing = self._reader.look()
        if before <= listing.lifetime.first_available:
            return iter(())
        return self._reader.backwards(before, position, listing)

    def snapshots(self) -> SnapshotFiles:
        """Return what keeps this log's snapshots."""
        if self._snapshots is None:
            self._snapshots = SnapshotFiles(self._env, self._reader, self._log)
        return self._snapshots

    def describe(self) -> SessionInfo:
        """Return what is known of the session; raises as ``position`` and ``read`` do, also when it was deleted."""
        halt = self.halted()
        position = self.position(halted_ok=True)
        listing = self._reader.look()
        lifetime = listing.lifetime
        # Of a halted session the rows are not to be relied on.
        first_seq = lifetime.first_available if lifetime.first_available <= position.seq else 0
        return SessionInfo(
            session_id=self.session_id,
            last_seq=position.seq,
            next_seq=position.through + 1,
            first_seq=first_seq if halt is not None else self._reader.first_seq(position, listing),
            first_available=lifetime.first_available,
            sealed=lifetime.sealed,
            halted=None if halt is None else halt.reason,
        )
