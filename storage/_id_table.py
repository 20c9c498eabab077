"""Which ids a closed segment has, in a file beside it, so that a retry is told from a new event without reading rows.

An entry is a number of 64 bits: the first 28 of the id's hash, then 36 for the offset of its row. A hit is only a hint:
the row says whether it has the id. The table of a segment in which every id was made for its event has bounds alone: an
id outside of them is not there, and for one inside the entries are made when it comes.

A table is derived. It counts when it is whole and its segment has the size and the last row that it was made of;
otherwise it is made again.
"""

from __future__ import annotations

import array
import bisect
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import orjson

from ..protocol import ROW_TAIL_BYTES, crc32, row_seed
from ._files import Files, replace_file
from ._sealed import SEALED_BYTES_MAX, sealed, unsealed

__all__ = ["OFFSET_MAX", "HeldTable", "IdBounds", "IdTable", "hash_of_id", "id_of_row", "matches", "save_table"]

_VERSION = 1
_OFFSET_BITS = 36
OFFSET_MAX = 2**_OFFSET_BITS - 1
_HASH_MASK: int = ~OFFSET_MAX & (2**64 - 1)
_ENTRY_BYTES = 8
_BOUND_CHARACTERS = 64
_WINDOW_ENTRIES = 1024  # hashes are spread evenly, so an entry is found close to where its hash says


def hash_of_id(event_id: bytes) -> int:
    """Return an id's hash, in the place that it has in an entry."""
    return int.from_bytes(blake2b(event_id, digest_size=8).digest(), "big") & _HASH_MASK


def id_of_row(line: bytes) -> bytes | None:
    """Return the id in a sound row, in UTF-8; None for a row that is no event."""
    size_at = line.find(b',"size":') + 8
    ts_at = line.find(b',"ts":"', size_at)
    id_at = line.find(b'","id":"', ts_at + 7) + 8
    end = line.find(b'"', id_at)
    event_id = line[id_at:end]
    if (
        line[size_at:ts_at].isdigit()  # so the time is the member after the size, and the id the one after the time
        and ts_at > 0
        and id_at > ts_at
        and b'"' not in line[ts_at + 7 : id_at - 8]
        and b"\\" not in event_id
    ):
        return event_id
    found = orjson.loads(line).get("id")  # a row that a repair has put together may have another order
    return None if found is None else str(found).encode()


def matches(entries: Sequence[int], hash_: int) -> Iterator[int]:
    """Yield the offsets that sorted entries have for a hash, ascending."""
    index = bisect.bisect_left(entries, hash_)
    while index < len(entries) and entries[index] & _HASH_MASK == hash_:
        yield entries[index] & OFFSET_MAX
        index += 1


@dataclasses.dataclass(frozen=True, slots=True)
class IdBounds:
    """The least and the greatest id of some events, as text is ordered; as far as their first characters tell."""

    least: str
    greatest: str

    @classmethod
    def of(cls, event_ids: Sequence[str]) -> IdBounds:
        """Return the bounds of some ids, at least one."""
        return cls(min(event_ids)[:_BOUND_CHARACTERS], max(event_ids)[:_BOUND_CHARACTERS])

    def and_of(self, event_ids: Sequence[str]) -> IdBounds:
        """Return the bounds of more ids."""
        more = IdBounds.of(event_ids)
        return IdBounds(min(self.least, more.least), max(self.greatest, more.greatest))

    def __contains__(self, event_id: str) -> bool:
        """Say whether an id may be one of theirs."""
        return self.least <= event_id[:_BOUND_CHARACTERS] <= self.greatest


class HeldTable:
    """One segment's table in memory, where the disk takes none."""

    __slots__ = ("_entries", "bounds")

    is_full = True

    def __init__(self, bounds: IdBounds | None, entries: array.array[int]) -> None:
        self.bounds = bounds
        self._entries = entries

    def offsets(self, hash_: int) -> list[int]:
        """Return the offsets of the rows that may have an id."""
        return list(matches(self._entries, hash_))

    def load(self) -> array.array[int]:
        """Return all entries."""
        return self._entries


class IdTable:
    """One segment's table on disk. Holds no descriptor.

    Attributes:
        bounds: of all ids of the segment; None when it has no event.
        is_full: whether there are entries; else there are only the bounds.
        entries: how many there are.
    """

    __slots__ = ("_data_crc", "_files", "_path", "_start", "bounds", "entries", "is_full")

    def __init__(self, files: Files, path: str, session_id: str, first_seq: int, segment_fd: int) -> None:
        """Look at a table; its entries are checked when the first of them is wanted.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged, or not the table of this segment as it is.
        """
        self._files = files
        self._path = path
        fd = files.open(path, write=False)
        try:
            line, newline, _ = files.read(fd, SEALED_BYTES_MAX, 0).partition(b"\n")
            members = unsealed(line, row_seed(session_id)) if newline else None
            if members is None:
                raise ValueError("its first line is damaged, or another session's")
            if (members.get("logmark"), members.get("v"), members.get("first_seq")) != ("ids", _VERSION, first_seq):
                raise ValueError("it is of another version or segment")
            if (members.get("segment_bytes"), members.get("last_crc")) != _end_of(files, segment_fd):
                raise ValueError("its segment has changed")
            bounds = members["bounds"]
            self.bounds = None if bounds is None else IdBounds(*map(str, bounds))
            self.is_full = members["entries"] is not None
            self.entries = int(members["entries"] or 0)
            self._start = len(line) + 1
            self._data_crc: str | None = str(members["data_crc"])
        except (KeyError, TypeError) as error:
            message = f"it is not of the form of a table: {error!r}"
            raise ValueError(message) from error
        finally:
            files.close(fd)

    def offsets(self, hash_: int) -> list[int]:
        """Return the offsets of the rows that may have an id.

        Raises:
            OSError, ValueError: the table is not there any more, or not what it was.
        """
        if self._data_crc is not None:
            self.load()
        guess = (self.entries * hash_) >> 64
        low = max(0, guess - _WINDOW_ENTRIES // 2)
        high = min(self.entries, low + _WINDOW_ENTRIES)
        fd = self._files.open(self._path, write=False)
        try:
            while True:
                entries = self._read(fd, low, high)
                # What is looked for lies inside, if the hashes on both sides are others.
                if low > 0 and entries[0] >= hash_:
                    low = max(0, low - _WINDOW_ENTRIES)
                elif high < self.entries and entries[-1] <= hash_ | OFFSET_MAX:
                    high = min(self.entries, high + _WINDOW_ENTRIES)
                else:
                    return list(matches(entries, hash_))
        finally:
            self._files.close(fd)

    def load(self) -> array.array[int]:
        """Return all entries; raises as ``offsets`` does."""
        fd = self._files.open(self._path, write=False)
        try:
            entries = self._read(fd, 0, self.entries)
            if self._data_crc not in (None, _crc_of(entries)):
                raise ValueError("its entries are damaged")
            self._data_crc = None
            return entries
        finally:
            self._files.close(fd)

    def _read(self, fd: int, low: int, high: int) -> array.array[int]:
        size = (high - low) * _ENTRY_BYTES
        data = self._files.read(fd, size, self._start + low * _ENTRY_BYTES)
        if len(data) != size:
            raise ValueError("it has become shorter")
        entries = array.array("Q", data)
        if sys.byteorder == "big":
            entries.byteswap()
        return entries


def _crc_of(entries: array.array[int]) -> str:
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    return f"{crc32(entries):08x}"


def _end_of(files: Files, segment_fd: int) -> tuple[int, str]:
    """Return the size of a segment and the checksum of its last row, as its text."""
    size = files.fstat(segment_fd).st_size
    tail = files.read(segment_fd, ROW_TAIL_BYTES + 1, max(0, size - ROW_TAIL_BYTES - 1))
    return size, tail[-11:-3].decode("latin-1")


def save_table(
    files: Files,
    path: str,
    session_id: str,
    first_seq: int,
    segment_fd: int,
    bounds: IdBounds | None,
    entries: array.array[int] | None,
) -> None:
    """Write the table of a closed segment, and put it in place; nothing waits for the disk.

    ``entries`` are sorted; None keeps the bounds alone.

    Raises:
        OSError: it could not be written.
    """
    stored = array.array("Q", entries or ())
    if sys.byteorder == "big":
        stored.byteswap()
    data = stored.tobytes()
    size, last_crc = _end_of(files, segment_fd)
    members: dict[str, Any] = {
        "session": session_id,
        "first_seq": first_seq,
        "segment_bytes": size,
        "last_crc": last_crc,
        "bounds": None if bounds is None else (bounds.least, bounds.greatest),
        "entries": None if entries is None else len(entries),
        "data_crc": f"{crc32(data):08x}",
    }
    line = sealed(b'{"logmark":"ids","v":%d,' % _VERSION + orjson.dumps(members)[1:-1], row_seed(session_id))
    replace_file(files, path, line + data, sync=None)
