"""The ids of one session in the file engine: exact for the whole log, in little memory, without reading the log.

Only the last segment's ids are in memory, as entries of 8 bytes, and only in a session in which an id came that may be
a retry. The others are in tables beside their segments (``_id_table.py``), which are written when a segment is closed
and made again when they are missing. A filter over the tables answers for most new ids without opening one.
"""

from __future__ import annotations

import array
import contextlib
import os
from collections.abc import Iterator, Sequence

from ..protocol import EncodedEvent, row_seq
from ._id_table import OFFSET_MAX, HeldTable, IdBounds, IdTable, hash_of_id, id_of_row, matches, save_table
from ._layout import ids_name, segment_name
from ._log_reader import FileEnv, LogReader
from ._logging import Logger
from ._patience import WouldWait, may_wait
from ._recovery import Tail
from ._segment import encode_header

__all__ = ["IdsUnknown", "SessionIds"]

_RECENT_MAX = 4096
_MADE_MAX = 64  # the bounds of so many ids cost hardly more than those of one
_SLOT_BITS = 22
_TABLES_IN_FILTER = 64
_LOOKUPS_UNFILTERED = 4096  # as many cost what it costs to put a table into the filter
_MIX = 0x9E3779B97F4A7C15
_SLOT_MASK = 2**_SLOT_BITS - 1


class IdsUnknown(Exception):
    """Nothing was looked up: call ``prepare`` without the lock and try again. Never leaves the session's log."""


class _LiveIds:
    """The entries of the segment that is written to: the last ones by their hash, the others in sorted runs.

    Each run is at least twice as long as the next, so that they are few, and an entry is sorted few times.
    """

    __slots__ = ("bounds", "collided", "covered", "first", "inode", "recent", "runs")

    def __init__(self, first: int, inode: int) -> None:
        self.first = first
        self.inode = inode
        self.covered = 0
        self.bounds: IdBounds | None = None
        self.runs: list[array.array[int]] = []
        self.recent: dict[int, int] = {}
        self.collided: list[int] = []

    def add(self, ids: list[str], entries: list[tuple[int, int]], covered: int) -> None:
        """Learn the ids of rows up to an offset, and the hash and the offset of each."""
        if ids:
            self.bounds = IdBounds.of(ids) if self.bounds is None else self.bounds.and_of(ids)
        for hash_, offset in entries:
            if self.recent.setdefault(hash_, offset) != offset:
                self.collided.append(hash_ | offset)
        self.covered = covered

    def compact(self) -> array.array[int]:
        """Move the last entries, which take twenty times the room, into a run; return them."""
        moved = array.array("Q", sorted([hash_ | offset for hash_, offset in self.recent.items()] + self.collided))
        self.recent, self.collided = {}, []
        if moved:
            self.runs.append(moved)
        while len(self.runs) > 1 and len(self.runs[-2]) < 2 * len(self.runs[-1]):
            self._merge_last()
        return moved

    def _merge_last(self) -> None:
        last = self.runs.pop()
        self.runs[-1] = array.array("Q", sorted(self.runs[-1].tolist() + last.tolist()))

    def all(self) -> array.array[int]:
        """Return every entry, sorted."""
        self.compact()
        while len(self.runs) > 1:
            self._merge_last()
        return self.runs[0] if self.runs else array.array("Q")

    def offsets(self, hash_: int, *, runs: bool) -> list[int]:
        """Return the offsets of the rows that may have an id; ``runs``: look into them too."""
        recent = self.recent.get(hash_)
        if recent is None and not runs:
            return []
        found = [offset for run in self.runs for offset in matches(run, hash_)] if runs else []
        found += matches(sorted(self.collided), hash_)
        return sorted(found if recent is None else [*found, recent])


class _Filter:
    """Which tables may have an id: eight to a block of 4 MiB. There are 64 places at most, which more tables share."""

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, place: int, entries: Sequence[int]) -> None:
        """Put a table's entries into the filter."""
        block, bit = self._blocks.setdefault(place >> 3, bytearray()), 1 << (place & 7)
        if not block:
            block.extend(bytes(1 << _SLOT_BITS))
        for entry in entries:
            mixed = (entry >> 36) * _MIX
            block[mixed & _SLOT_MASK] |= bit
            block[(mixed >> _SLOT_BITS) & _SLOT_MASK] |= bit
            block[(mixed >> 2 * _SLOT_BITS) & _SLOT_MASK] |= bit
            block[(mixed >> 3 * _SLOT_BITS) & _SLOT_MASK] |= bit

    def places(self, hash_: int) -> int:
        """Return the places, as bits, of the tables that may have a hash."""
        mixed = (hash_ >> 36) * _MIX
        first, second = mixed & _SLOT_MASK, (mixed >> _SLOT_BITS) & _SLOT_MASK
        third, fourth = (mixed >> 2 * _SLOT_BITS) & _SLOT_MASK, (mixed >> 3 * _SLOT_BITS) & _SLOT_MASK
        found = 0
        for number, block in self._blocks.items():
            if bits := block[first] & block[second] & block[third] & block[fourth]:
                found |= bits << (number << 3)
        return found


class _Closed:
    """A closed segment: its table, and its place in the filter once it is in."""

    __slots__ = ("first", "is_filtered", "lookups", "place", "table")

    def __init__(self, first: int, table: IdTable | HeldTable, place: int, *, is_filtered: bool) -> None:
        self.first = first
        self.is_filtered = is_filtered
        self.table = table
        self.place = place % _TABLES_IN_FILTER
        self.lookups = 0


class SessionIds:
    """The ids of one session. Not thread-safe: the session log's mutex is held.

    A session whose ids were all made for their events has nothing here but the bounds of the last segment's ids.
    """

    __slots__ = (
        "_closed",
        "_env",
        "_filter",
        "_filtered",
        "_hashes",
        "_live",
        "_log",
        "_made",
        "_made_end",
        "_made_ids",
        "_made_segment",
        "_reader",
        "_unfiltered",
        "_unfiltered_bounds",
        "first_available",
    )

    def __init__(self, env: FileEnv, reader: LogReader, log: Logger) -> None:
        self._env = env
        self._reader = reader
        self._log = log
        self._made_segment = self._made_end = -1
        self._made: IdBounds | None = None
        self._made_ids: list[str] = []  # those that the bounds do not cover yet
        self.first_available = 1
        """The first number that is kept; the ids of others are free again. Call ``forget`` when it changes."""
        self.forget()

    def forget(self) -> None:
        """Start anew: the log is no longer the one that was."""
        self._live: _LiveIds | None = None
        self._closed: set[int] = set()
        self._unfiltered: list[_Closed] = []
        self._unfiltered_bounds: IdBounds | None = None
        self._filtered: list[_Closed] = []
        self._filter: _Filter | None = None
        self._hashes: dict[str, int] = {}  # of the ids that were looked up since the last catch_up

    # -- what the log tells -------------------------------------------------------------------------------------

    def written(self, events: Sequence[EncodedEvent], rows: bytes, segment: int, start: int) -> None:
        """Learn that the rows of these events were written, from an offset of a segment on."""
        end = start + len(rows)
        live = self._live
        if live is not None:
            if (live.first, live.covered) == (segment, start):  # else they are read from there when somebody asks
                self._learn(live, events, rows, end)
            return
        if segment != self._made_segment:
            self._made_segment, self._made, self._made_ids = segment, None, []
            is_first = start == len(encode_header(self._reader.session_id, segment))
            self._made_end = start if is_first else -1
        if start == self._made_end:  # else others have been here, and this process does not know all ids
            self._made_ids += [event.id for event in events]
            self._made_end = end
            if len(self._made_ids) >= _MADE_MAX:
                self._bounds_made()

    def _bounds_made(self) -> IdBounds | None:
        """Return the bounds of the ids that this process has given to the segment's rows."""
        ids, self._made_ids = self._made_ids, []
        if ids:
            self._made = IdBounds.of(ids) if self._made is None else self._made.and_of(ids)
        return self._made

    def _learn(self, live: _LiveIds, events: Sequence[EncodedEvent], rows: bytes, end: int) -> None:
        entries: list[tuple[int, int]] = []
        known, at = self._hashes, 0
        for event in events:
            hash_ = known.get(event.id)
            entries.append((hash_of_id(event.id.encode()) if hash_ is None else hash_, end - len(rows) + at))
            at = rows.index(b"\n", at) + 1
        live.add([event.id for event in events], entries, end)
        if len(live.recent) >= _RECENT_MAX:
            self._compact(live)

    def _compact(self, live: _LiveIds) -> None:
        """Move the last entries into a run, and into the filter, so that few lookups have to go through the runs."""
        slots = self._filter_with(live)
        slots.add(self._place_of_live(), live.compact())

    def _filter_with(self, live: _LiveIds | None) -> _Filter:
        """Return the filter, made if there is none; it has every run of the last segment."""
        if self._filter is None:
            self._filter = _Filter()
            for run in () if live is None else live.runs:
                self._filter.add(self._place_of_live(), run)
        return self._filter

    def _place_of_live(self) -> int:
        return len(self._closed) % _TABLES_IN_FILTER

    def closing(self, tail: Tail, fresh: Tail) -> None:
        """Learn that the last segment is complete, and keep its table; ``fresh`` has been started after it."""
        try:
            if self._live is not None:
                self.catch_up(tail)
                if self._filter is not None:
                    self._compact(self._live)
                self._save(tail.segment, self._live.bounds, self._live.all())
                self._learn_closed([tail.segment], are_filtered=self._filter is not None)
                self._live = _LiveIds(fresh.segment, fresh.inode)
            elif (self._made_segment, self._made_end) == (tail.segment, tail.size):
                self._save(tail.segment, self._bounds_made(), None)
        except IdsUnknown:  # others have closed segments meanwhile
            self.forget()
        except Exception as error:  # it is derived: who looks for an id makes it
            self.forget()
            self._log.warning("id_table_unsaved", segment=segment_name(tail.segment), error=repr(error))

    def prepare(self) -> None:
        """Learn the closed segments, and make the tables that are missing; they do not change, so without the lock.

        Raises:
            LogCorrupt, SchemaMismatch: the rows of such a segment cannot be read.
            WouldWait: there is one to make, and this thread must not take that long.
        """
        with contextlib.suppress(FileNotFoundError):  # one was pruned meanwhile: whoever asks again finds fewer
            self._learn_closed(self._reader.segments()[:-1])

    def numbers_of(self, ids: Sequence[str], tail: Tail) -> dict[str, int]:
        """Return the numbers of those ids that are in the log, which ends at ``tail``; raises as ``catch_up`` does."""
        if not ids:
            return {}
        self.catch_up(tail)
        return {event_id: seq for event_id in ids if (seq := self.find(event_id)) is not None}

    def catch_up(self, tail: Tail) -> None:
        """Learn every id of the log. The caller holds the lock.

        Raises:
            IdsUnknown: there are closed segments to learn of first, which may take long.
            LogCorrupt, SchemaMismatch, WouldWait: as ``prepare`` does.
        """
        self._hashes.clear()
        live = self._live
        if live is not None and not self._is_the_same(live, tail):
            self.forget()
            live = None
        if live is None or live.first != tail.segment:
            closed = [first for first in self._reader.segments() if first < tail.segment]
            if not self._closed.issuperset(closed):
                raise IdsUnknown
            live = self._live = _LiveIds(tail.segment, tail.inode)
        if live.covered < tail.size:
            if tail.size - live.covered > self._env.limits.batch_bytes_max and not may_wait():
                raise WouldWait
            for ids, entries, covered in self._scan(tail.segment, live.covered):
                live.add(ids, entries, covered)
                if len(live.recent) >= _RECENT_MAX:
                    self._compact(live)

    def _is_the_same(self, live: _LiveIds, tail: Tail) -> bool:
        """Say whether the log is the one that the ids are of; a repair in another process makes every segment anew."""
        if live.first == tail.segment:
            return live.inode == tail.inode and live.covered <= tail.size
        if live.first == 0:
            return True
        try:
            path = os.path.join(self._reader.path, segment_name(live.first))
            return self._env.files.stat(path).st_ino == live.inode
        except FileNotFoundError:
            return False

    def compact(self) -> None:
        """Take as little memory as possible: the session is idle."""
        self._bounds_made()
        if self._live is not None and self._live.recent:
            moved = self._live.compact()
            if self._filter is not None:
                self._filter.add(self._place_of_live(), moved)

    # -- looking up ---------------------------------------------------------------------------------------------

    def find(self, event_id: str) -> int | None:
        """Return the number of the first event with an id, or None; as of the last ``catch_up``."""
        encoded = event_id.encode()
        hash_ = self._hashes[event_id] = hash_of_id(encoded)
        places = -1 if self._filter is None else self._filter.places(hash_)
        for closed in self._candidates(event_id, places):
            seq = self._look(closed.first, self._offsets(closed, hash_), encoded)
            if seq is not None:
                return seq
        live = self._live
        if live is None:
            return None
        offsets = live.offsets(hash_, runs=bool(places >> self._place_of_live() & 1))
        return self._look(live.first, offsets, encoded)

    def _candidates(self, event_id: str, places: int) -> list[_Closed]:
        """Return the closed segments that may have an id, in their order; ``places``: where the filter has it."""
        found: list[_Closed] = []
        if self._unfiltered_bounds is not None and event_id in self._unfiltered_bounds:
            found += (each for each in self._unfiltered if each.table.bounds and event_id in each.table.bounds)
        if places and self._filtered:
            found += (each for each in self._filtered if places >> each.place & 1)
            found.sort(key=lambda each: each.first)
        return found

    def _offsets(self, closed: _Closed, hash_: int) -> list[int]:
        if not closed.table.is_full:
            closed.table = self._table(closed.first, full=True)
        try:
            found = closed.table.offsets(hash_)
        except (OSError, ValueError) as error:
            self._log.warning("id_table_ignored", segment=segment_name(closed.first), reason=str(error))
            closed.table = self._table(closed.first, full=True, anew=True)
            found = closed.table.offsets(hash_)
        if not closed.is_filtered:
            closed.lookups += 1
            if closed.lookups >= _LOOKUPS_UNFILTERED:
                self._put_into_filter(closed)
        return found

    def _put_into_filter(self, closed: _Closed) -> None:
        self._filter_with(self._live).add(closed.place, closed.table.load())
        closed.is_filtered = True
        self._filtered.append(closed)
        self._unfiltered.remove(closed)
        self._unfiltered_bounds = None
        for each in self._unfiltered:
            self._widen_unfiltered(each)

    def _widen_unfiltered(self, closed: _Closed) -> None:
        more, known = closed.table.bounds, self._unfiltered_bounds
        if more is not None:
            self._unfiltered_bounds = more if known is None else known.and_of((more.least, more.greatest))

    def _look(self, first: int, offsets: Sequence[int], encoded: bytes) -> int | None:
        """Return the number of the row with an id among those at some offsets of a segment."""
        if not offsets:
            return None
        with self._reader.opened(first) as (segment, _):
            for offset in offsets:
                line = segment.line_at(offset)
                if id_of_row(line) == encoded and (seq := row_seq(line)) >= self.first_available:
                    return seq
        return None

    # -- tables -------------------------------------------------------------------------------------------------

    def _learn_closed(self, segments: Sequence[int], *, are_filtered: bool = False) -> None:
        """Learn of closed segments; each gets the next place of the filter, which was that of the live one."""
        for first in segments:
            if first not in self._closed:
                closed = _Closed(first, self._table(first), len(self._closed), is_filtered=are_filtered)
                self._closed.add(first)
                if are_filtered:
                    self._filtered.append(closed)
                else:
                    self._unfiltered.append(closed)
                    self._widen_unfiltered(closed)

    def _table(self, first: int, *, full: bool = False, anew: bool = False) -> IdTable | HeldTable:
        """Return the table of a closed segment, made of its rows if there is none that holds, or ``anew``."""
        path = self._path(first)
        with self._reader.opened(first) as (_, fd):
            try:
                table = IdTable(self._env.files, path, self._reader.session_id, first, fd)
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                self._log.warning("id_table_ignored", segment=segment_name(first), reason=str(error))
            else:
                if not anew and (table.is_full or not full):
                    return table
            if not may_wait():
                raise WouldWait
            made = _LiveIds(first, 0)
            for ids, entries, covered in self._scan(first, 0):
                made.add(ids, entries, covered)
                if len(made.recent) >= _RECENT_MAX:
                    made.compact()
            self._log.info("id_table_made", segment=segment_name(first), ids=len(made.all()))
            try:
                self._save(first, made.bounds, made.all())
                return IdTable(self._env.files, path, self._reader.session_id, first, fd)
            except OSError as error:
                self._log.warning("id_table_unsaved", segment=segment_name(first), error=repr(error))
                return HeldTable(made.bounds, made.all())

    def _save(self, first: int, bounds: IdBounds | None, entries: array.array[int] | None) -> None:
        with self._reader.opened(first) as (_, fd):
            save_table(self._env.files, self._path(first), self._reader.session_id, first, fd, bounds, entries)

    def _scan(self, first: int, start: int) -> Iterator[tuple[list[str], list[tuple[int, int]], int]]:
        """Yield the ids of a segment's rows from an offset, verified, with hash and offset of each, and the end."""
        with self._reader.opened(first) as (segment, _):
            for offset, lines in segment.sound_lines(start):
                ids: list[str] = []
                entries: list[tuple[int, int]] = []
                at = offset
                for line in lines:
                    event_id = id_of_row(line) if line else None
                    if event_id is not None:
                        if at > OFFSET_MAX:
                            raise OverflowError("the segment is too large for a table of its ids")
                        ids.append(event_id.decode())
                        entries.append((hash_of_id(event_id), at))
                    at += len(line) + 1
                yield ids, entries, at

    def _path(self, first: int) -> str:
        return os.path.join(self._reader.path, ids_name(first))
