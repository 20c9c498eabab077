"""What can be read of a session's directory without a lock: its segments, its head, its rows."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator

from ..protocol import Clock, Limits, LogCorrupt, RawEnvelope, row_seed
from ._files import Files
from ._head import HEAD_BYTES, Head
from ._layout import HEAD, segment_first_seq, segment_name
from ._logging import Logger
from ._segment import Segment

__all__ = ["FileEnv", "LogReader"]


@dataclasses.dataclass(frozen=True, slots=True)
class FileEnv:
    """What every session log of a store shares."""

    files: Files
    clock: Clock
    limits: Limits
    sync: bool
    log: Logger


class LogReader:
    """Reads one session's directory. Holds no descriptor between calls; safe from any thread."""

    def __init__(self, env: FileEnv, session_id: str, path: str) -> None:
        self._files = env.files
        self._chunk_bytes = env.limits.read_chunk_bytes
        self.session_id = session_id
        self.path = path
        self.seed = row_seed(session_id)

    def segments(self, *, clean: bool = False) -> list[int]:
        """Return the first numbers of the segments, ascending; ``clean`` removes what a crash left half-made."""
        try:
            names = self._files.listdir(self.path)
        except FileNotFoundError:
            return []
        if clean:
            for name in names:
                if name.endswith(".new"):
                    # Snapshots and tables of ids are made without the lock: one may have got its name just now. One
                    # that is taken from under its maker is made again later.
                    with contextlib.suppress(FileNotFoundError):
                        self._files.unlink(os.path.join(self.path, name))
        return sorted(first for first in map(segment_first_seq, names) if first is not None)

    def segment(self, fd: int, first: int) -> Segment:
        """Return the reader of an open segment."""
        return Segment(
            self._files,
            fd,
            session_id=self.session_id,
            first_seq=first,
            chunk_bytes=self._chunk_bytes,
        )

    @contextlib.contextmanager
    def opened(self, first: int) -> Generator[tuple[Segment, int], None, None]:
        """Open a segment for a while; give its reader and its descriptor."""
        fd = self._files.open(os.path.join(self.path, segment_name(first)), write=False)
        try:
            yield self.segment(fd, first), fd
        finally:
            self._files.close(fd)

    def read_head(self, open_fd: int | None = None) -> Head | None:
        """Return the head, or None when it is missing or damaged; through ``open_fd`` if that is still the head."""
        if open_fd is not None:
            try:
                if self._files.fstat(open_fd).st_nlink == 1:
                    return Head.decode(self._files.read(open_fd, HEAD_BYTES, 0), self.seed)
            except OSError:
                pass  # another thread closed it just now
        try:
            fd = self._files.open(os.path.join(self.path, HEAD), write=False)
        except FileNotFoundError:
            return None
        try:
            return Head.decode(self._files.read(fd, HEAD_BYTES, 0), self.seed)
        finally:
            self._files.close(fd)

    def rows(self, from_seq: int, through: int, position: Head) -> Generator[RawEnvelope, None, None]:
        """Yield the events of a range of numbers, verified; ``position`` says where the log ended when it was taken."""
        return RawEnvelope.from_runs(self.session_id, self.runs(from_seq, through, position))

    def runs(self, from_seq: int, through: int, position: Head) -> Generator[tuple[int, list[bytes]], None, None]:
        """Yield as ``rows`` does, lines with consecutive numbers at a time, and the number of the first."""
        if from_seq > through:
            return
        segments = self._segments_through(position)
        start = max((index for index, first in enumerate(segments) if first <= from_seq), default=0)
        expected = segments[start] if segments else 0
        for index in range(start, len(segments)):
            first = segments[index]
            if first > through:
                return
            following = segments[index + 1] if index + 1 < len(segments) else position.through + 1
            name = segment_name(first)
            fd = self._files.open(os.path.join(self.path, name), write=False)
            try:
                size = position.size if first == position.segment else self._files.fstat(fd).st_size
                last = min(through, following - 1)
                seen = yield from self.segment(fd, first).runs_from(max(from_seq, first), last, expected, size)
            finally:
                self._files.close(fd)
            if seen < last:
                raise self.lost(last, seen, name, size)
            expected = following

    def backwards(self, before: int, position: Head) -> Generator[RawEnvelope, None, None]:
        """Yield the events below a number downwards, verified."""
        following = before
        for first in reversed(self._segments_through(position)):
            if first >= before:
                continue
            fd = self._files.open(os.path.join(self.path, segment_name(first)), write=False)
            try:
                size = position.size if first == position.segment else self._files.fstat(fd).st_size
                yield from self.segment(fd, first).rows_backwards(following, size)
            finally:
                self._files.close(fd)
            following = first

    def first_seq(self, position: Head) -> int:
        """Return the number of the first event that can be read, 0 when there is none."""
        return _first_seq_of(self.rows(1, position.through, position))

    def last_event_below(self, first: int) -> int:
        """Return the number of the last event in the segments before one; reservations may stand between."""
        position = Head(0, first - 1, first, 0)
        return _first_seq_of(self.backwards(first, position))

    def _segments_through(self, position: Head) -> list[int]:
        return [first for first in self.segments() if first <= position.segment]

    def scan_position(self, *, damaged_ok: bool = False) -> Head:
        """Return where the log ends, from its rows alone: for a store that cannot be written, where nothing is mended.

        Args:
            damaged_ok: take damage for the end.

        Raises:
            LogCorrupt, SchemaMismatch: the last segment cannot be trusted.
        """
        segments = self.segments()
        if not segments:
            return Head(0, 0, 0, 0)
        first = segments[-1]
        fd = self._files.open(os.path.join(self.path, segment_name(first)), write=False)
        try:
            segment = self.segment(fd, first)
            before = self.last_event_below(first) if len(segments) > 1 else 0
            scan = segment.scan(segment.header_end(), before, first - 1)
        finally:
            self._files.close(fd)
        if scan.problem is not None and not damaged_ok:
            raise scan.problem
        return Head(scan.seq, scan.through, first, scan.end)

    def lost(self, last: int, through: int, name: str | None, offset: int) -> LogCorrupt:
        """Return the error for rows up to ``last`` that were durable and are not there after ``through``."""
        return LogCorrupt(
            session_id=self.session_id,
            reason=f"rows {through + 1} to {last} were durable and are missing",
            event_seq=through + 1,
            segment=name,
            offset=offset,
        )


def _first_seq_of(events: Generator[RawEnvelope, None, None]) -> int:
    """Return the number of the first event, 0 when there is none, and let go of the descriptor at once."""
    with contextlib.closing(events):
        return next((event.event_seq or 0 for event in events), 0)
