"""What is done to a segment before the first append of a process, and after another process has been there.

The rows decide. What the head covers was synced and must be there; what follows it is kept as far as whole commits go,
and the rest is put aside.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

from ._files import write_all
from ._head import Head
from ._layout import QUARANTINE
from ._log_reader import FileEnv, LogReader
from ._logging import Logger

__all__ = ["Recovery", "Tail"]


@dataclasses.dataclass(slots=True)
class Tail:
    """Where the next row goes, as this process last knew it."""

    seq: int
    through: int
    segment: int
    size: int
    inode: int

    def head(self, *, halted: bool = False) -> Head:
        """Return the head that says so."""
        return Head(self.seq, self.through, self.segment, self.size, halted)


class Recovery:
    """Brings one segment into agreement with the head. The caller holds the session's lock.

    Args:
        sync, sync_dir: make a file or a directory durable, and halt the session if that fails.
    """

    def __init__(
        self,
        env: FileEnv,
        reader: LogReader,
        *,
        sync: Callable[[int], None],
        sync_dir: Callable[[str], None],
        log: Logger,
    ) -> None:
        self._env = env
        self._files = env.files
        self._reader = reader
        self._sync = sync
        self._sync_dir = sync_dir
        self._log = log

    def recover(self, fd: int, first: int, head: Head | None, *, has_older: bool) -> Tail:
        """Return where the next row goes, after mending what an unacknowledged write has left.

        Raises:
            LogCorrupt, SchemaMismatch: the segment cannot be trusted; nothing was changed.
        """
        segment = self._reader.segment(fd, first)
        header_end = segment.header_end()
        inode, size = (found := self._files.fstat(fd)).st_ino, found.st_size
        trusted = head is not None and head.segment == first and head.size <= size
        resumed = head is not None and trusted and segment.last_row_ends_at(head.size, head.through)
        if head is not None and resumed:
            scan = segment.scan(head.size, head.seq, head.through)
        else:
            # The rows before this segment have lower numbers; its name tells the number it starts with. The number of
            # the last event only differs from that after a reservation, and then the rows say so.
            seq = first - 1 if has_older else min(self._reader.lifetime().last_below, first - 1)
            scan = segment.scan(header_end, seq, first - 1)
        if scan.problem is not None:
            raise scan.problem
        if head is not None and head.through > scan.through:
            raise self._reader.lost(head.through, scan.through, segment.name, scan.end)
        beyond_head = head is None or (scan.through, scan.end) != (head.through, head.size)
        if scan.newline_missing:
            write_all(self._files, fd, b"\n", scan.end)
            scan.end += 1
            scan.size = max(scan.size, scan.end)
            self._log.warning("newline_restored", seq=scan.seq)
        if scan.end < scan.size:
            self._cut(fd, segment.name, scan.end, scan.size)
        if beyond_head:
            # These rows may still be only in the page cache: a process died between its write and its sync. Or it died
            # after a sync that failed, and then the system takes their pages for clean and no sync would write them: so
            # they are written once more.
            self._rewrite(fd, head.size if head is not None and resumed else header_end, scan.end)
            self._sync(fd)
            self._sync_dir(self._reader.path)
            # Who made the session's directory may have failed before its name was durable.
            self._sync_dir(os.path.dirname(self._reader.path))
        if scan.seq < first and has_older and not resumed:
            scan.seq = self._reader.last_event_below(first)
        return Tail(scan.seq, scan.through, first, scan.end, inode)

    def _rewrite(self, fd: int, start: int, end: int) -> None:
        """Write bytes over themselves, so that the next sync has to write them to the disk."""
        for offset in range(start, end, self._env.limits.read_chunk_bytes):
            size = min(self._env.limits.read_chunk_bytes, end - offset)
            write_all(self._files, fd, self._files.read(fd, size, offset), offset)

    def _cut(self, fd: int, name: str, end: int, size: int) -> None:
        """Put the remains of an unacknowledged write aside, durably, then remove them from the log."""
        files = self._files
        directory = os.path.join(self._reader.path, QUARANTINE)
        files.mkdir(directory)
        kept = os.path.join(directory, f"{name}.{end}.{self._env.clock.time_ns()}")
        copy = files.open(kept, write=True, create=True, exclusive=True)
        try:
            offset = end
            while offset < size:
                data = files.read(fd, self._env.limits.read_chunk_bytes, offset)
                write_all(files, copy, data, offset - end)
                offset += len(data)
            self._sync(copy)
        except OSError:
            files.unlink(kept)  # on a full disk every attempt would leave another
            raise
        finally:
            files.close(copy)
        self._sync_dir(directory)
        self._sync_dir(self._reader.path)
        files.truncate(fd, end)
        self._sync(fd)
        self._log.warning(
            "torn_tail_cut", segment=name, offset=end, bytes=size - end, kept=os.path.relpath(kept, self._reader.path)
        )
