"""What can be read of a session's directory without a lock: its segments, its head, its rows."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator
from typing import NamedTuple

from ..protocol import Clock, Limits, LogCorrupt, RawEnvelope, SeqPruned, SessionDeleted, row_seed
from ._files import Files
from ._head import HEAD_BYTES, Head
from ._layout import HEAD, LIFETIME, available, ids_name, segment_first_seq, segment_name
from ._lifetime import Lifetime, LifetimeFile
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


class Listing(NamedTuple):
    """What a session's directory holds: the segments of which something is available, ascending, and its lifetime."""

    segments: list[int]
    lifetime: Lifetime


class LogReader:
    """Reads one session's directory. Holds no descriptor between calls; safe from any thread."""

    def __init__(self, env: FileEnv, session_id: str, path: str) -> None:
        self._files = env.files
        self._sync = env.sync
        self._chunk_bytes = env.limits.read_chunk_bytes
        self.session_id = session_id
        self.path = path
        self.seed = row_seed(session_id)
        self.lifetime_file = LifetimeFile(env.files, session_id, path)

    def lifetime(self) -> Lifetime:
        """Return what is kept of the session; what is said without the file when that is damaged.

        Whoever writes, or begins to read, has read the file himself and been told of the damage.
        """
        return self.lifetime_file.read_or_default()

    def segments(self, *, clean: bool = False) -> list[int]:
        """Return the first numbers of the segments of which something is available, ascending.

        Args:
            clean: remove what a crash left half-made. The caller holds the lock.
        """
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
        return self._listing(names, self.lifetime() if LIFETIME in names else Lifetime()).segments

    def look(self, *, damaged_ok: bool = False) -> Listing:
        """Return what there is to read, in one look at the directory when nothing was pruned or ended.

        Raises:
            SessionDeleted: the session was deleted.
            LogCorrupt, SchemaMismatch: the lifetime file cannot be trusted, and not ``damaged_ok``.
        """
        try:
            names = self._files.listdir(self.path)
        except FileNotFoundError:
            names = []
        lifetime = Lifetime()
        if LIFETIME in names:  # read after the names: what is not among them because it was pruned is known to be
            lifetime = self.lifetime() if damaged_ok else self.lifetime_file.read()
        if lifetime.deleted_at is not None:
            raise self.lifetime_file.deleted(lifetime)
        return self._listing(names, lifetime)

    @staticmethod
    def _listing(names: list[str], lifetime: Lifetime) -> Listing:
        found = sorted(first for first in map(segment_first_seq, names) if first is not None)
        return Listing(available(found, lifetime.first_available), lifetime)

    def remove_pruned(self, first_available: int, through: int) -> list[int]:
        """Remove the segments in which nothing is available any more, and return them; the caller holds the lock.

        The names are synced first: what says that they may go must not be lost when they are.

        Args:
            first_available: as in the lifetime file.
            through: the last number that is used; when that is not available either, no segment stays.
        """
        names = self._files.listdir(self.path)
        found = sorted(first for first in map(segment_first_seq, names) if first is not None)
        kept = available(found, first_available) if first_available <= through else []
        pruned = [first for first in found if first not in kept]
        for first in pruned:
            # Of all segments the last one goes last: an older one that outlives it would pass for the end of the log.
            if self._sync and (first == pruned[0] or (first == pruned[-1] and not kept)):
                self._files.sync_dir(self.path)
            for name in (ids_name(first), segment_name(first)):
                if name in names:
                    self._files.unlink(os.path.join(self.path, name))
        return pruned

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

    def runs(
        self, from_seq: int, through: int, position: Head, segments: list[int]
    ) -> Generator[tuple[int, list[bytes]], None, None]:
        """Yield the events of a range of numbers, verified: lines with consecutive numbers, and the first number.

        Args:
            from_seq: the first number wanted.
            through: the last number wanted.
            position: where the log ended when this was asked for.
            segments: those that were there after that.
        """
        if from_seq > through:
            return
        segments = [first for first in segments if first <= position.segment]
        start = max((index for index, first in enumerate(segments) if first <= from_seq), default=None)
        if start is None:
            raise self._gone(from_seq, segments[0] - 1 if segments else through)
        expected = segments[start]
        for index in range(start, len(segments)):
            first = segments[index]
            if first > through:
                return
            following = segments[index + 1] if index + 1 < len(segments) else position.through + 1
            name = segment_name(first)
            try:
                fd = self._files.open(os.path.join(self.path, name), write=False)
            except FileNotFoundError:
                raise self._gone(max(from_seq, first), following - 1) from None
            try:
                size = position.size if first == position.segment else self._files.fstat(fd).st_size
                last = min(through, following - 1)
                seen = yield from self.segment(fd, first).runs_from(max(from_seq, first), last, expected, size)
            finally:
                self._files.close(fd)
            if seen < last:
                raise self.lost(last, seen, name, size)
            expected = following

    def _gone(self, first: int, last: int) -> SessionDeleted | SeqPruned | LogCorrupt:
        """Return the error for numbers whose segment is not there: it was removed meanwhile, or is lost."""
        lifetime = self.lifetime()
        if lifetime.deleted_at is not None:
            return self.lifetime_file.deleted(lifetime)
        if first < lifetime.first_available:
            return SeqPruned(session_id=self.session_id, seq=first, first_available=lifetime.first_available)
        return self.lost(last, first - 1, segment_name(first), 0)

    def backwards(self, before: int, position: Head, listing: Listing) -> Generator[RawEnvelope, None, None]:
        """Yield the events below a number downwards, verified, to the first that is available."""
        first_available = listing.lifetime.first_available
        with contextlib.closing(self._rows_down(before, position, listing.segments)) as events:
            for event in events:
                if (event.event_seq or 0) < first_available:
                    return
                yield event
        lowest = min([before, *listing.segments])
        if lowest > first_available:
            gone = self._gone(first_available, lowest - 1)
            if not isinstance(gone, SeqPruned):
                raise gone

    def _rows_down(self, before: int, position: Head, segments: list[int]) -> Generator[RawEnvelope, None, None]:
        """Yield the events below a number downwards, whether they are available or not."""
        following = before
        for first in reversed(segments):
            if first >= before or first > position.segment:
                continue
            try:
                fd = self._files.open(os.path.join(self.path, segment_name(first)), write=False)
            except FileNotFoundError:
                gone = self._gone(first, following - 1)
                if isinstance(gone, SeqPruned):
                    return
                raise gone from None
            try:
                size = position.size if first == position.segment else self._files.fstat(fd).st_size
                yield from self.segment(fd, first).rows_backwards(following, size)
            finally:
                self._files.close(fd)
            following = first

    def first_seq(self, position: Head, listing: Listing) -> int:
        """Return the number of the first event that can be read, 0 when there is none; raises as ``runs`` does."""
        runs = self.runs(listing.lifetime.first_available, position.through, position, listing.segments)
        return _first_seq_of(RawEnvelope.from_runs(self.session_id, runs))

    def last_event_below(self, first: int) -> int:
        """Return the number of the last event in the segments before one; reservations may stand between."""
        position = Head(0, first - 1, first, 0)
        below = min(self.lifetime().last_below, first - 1)
        return max(_first_seq_of(self._rows_down(first, position, self.segments())), below)

    def scan_position(self, *, damaged_ok: bool = False) -> Head:
        """Return where the log ends, from its rows alone: for a store that cannot be written, where nothing is mended.

        Args:
            damaged_ok: take damage for the end.

        Raises:
            LogCorrupt, SchemaMismatch: the last segment cannot be trusted.
        """
        segments = self.segments()
        if not segments:
            return self.position_without_segments()
        first = segments[-1]
        fd = self._files.open(os.path.join(self.path, segment_name(first)), write=False)
        try:
            segment = self.segment(fd, first)
            before = self.last_event_below(first)
            scan = segment.scan(segment.header_end(), before, first - 1)
        finally:
            self._files.close(fd)
        if scan.problem is not None and not damaged_ok:
            raise scan.problem
        return Head(scan.seq, scan.through, first, scan.end)

    def position_without_segments(self) -> Head:
        """Return where the log ends when every event there was is pruned, or none was ever written."""
        lifetime = self.lifetime()
        if lifetime.deleted_at is not None:
            raise self.lifetime_file.deleted(lifetime)
        return Head(lifetime.last_below, lifetime.first_available - 1, 0, 0)

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
