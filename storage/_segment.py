"""Reading segments: verified rows from a number upwards or downwards, and the scan that recovery does.

A segment is a file of lines. Its first line names the session; every other line is a row (``protocol/_row.py``) or is
empty. Nothing here writes.
"""

from __future__ import annotations

import dataclasses
import struct
from binascii import hexlify
from collections.abc import Generator, Iterator
from itertools import repeat
from operator import itemgetter
from typing import Any

import orjson

from ..protocol import (
    ROW_PREFIX,
    ROW_TAIL_BYTES,
    SCHEMA_VERSION,
    LogCorrupt,
    RawEnvelope,
    SchemaMismatch,
    crc32,
    decode_row,
    row_seed,
    row_seq,
    split_row,
)
from ._files import Files
from ._layout import segment_name
from ._sealed import SEALED_BYTES_MAX, sealed

__all__ = ["RowCheck", "Scan", "Segment", "blocks_of", "encode_header", "encode_reservation"]

_HEADER_PREFIX = b'{"logmark":"segment","v":%d,' % SCHEMA_VERSION
_BISECT_BYTES = 8192
_RESERVATION_BYTES_MAX = 256
_FIRST_BLOCK_BYTES = 8192  # who wants one event waits for no more than these
_BLOCK_BYTES = 32_768  # larger ones fall out of the processor's caches, and rows cost twice as much
_BLOCK_ROWS_MIN = 16
_COVERED = itemgetter(slice(None, -ROW_TAIL_BYTES))
_TAIL = itemgetter(slice(-ROW_TAIL_BYTES, None))
_NUMBER = ROW_PREFIX + b"%d,"
_THOUSAND = 1000
_STARTS = b"".join(b"%b\0%03d," % (ROW_PREFIX, low) for low in range(_THOUSAND))
_START_BYTES = len(_STARTS) // _THOUSAND
_SIZE_MEMBER = b',"size":'
_SIZE_WITHIN = len(ROW_PREFIX) + len(b',"batch":[,]') + 3 * 19 + len(_SIZE_MEMBER)


def encode_header(session_id: str, first_seq: int) -> bytes:
    """Return a segment's first line."""
    members = orjson.dumps({"session": session_id, "first_seq": first_seq})
    return sealed(_HEADER_PREFIX + members[1:-1], row_seed(session_id))


def encode_reservation(session_id: str, first_seq: int, last_seq: int) -> bytes:
    """Return the row that says that numbers were reserved: it stands for them, and no event will have them."""
    text = b'{"v":%d,"seq":%d,"batch":[%d,%d],"reserved":%d' % (
        SCHEMA_VERSION,
        last_seq,
        first_seq,
        last_seq,
        first_seq,
    )
    return sealed(text, row_seed(session_id))


@dataclasses.dataclass(slots=True)
class Scan:
    """What recovery found from some offset to the end of a segment.

    Attributes:
        seq, through: as in the head, after the last complete commit.
        end: offset after the last complete commit; everything before it is sound.
        size: size of the file.
        newline_missing: the last complete commit lacks only its newline.
        problem: what stands after ``end`` when it is not the remains of a torn write.
    """

    seq: int
    through: int
    end: int
    size: int
    newline_missing: bool = False
    problem: LogCorrupt | SchemaMismatch | None = None


def blocks_of(files: Files, fd: int, chunk_bytes: int, offset: int) -> Iterator[tuple[int, list[bytes], bool]]:
    """Yield runs of lines with the offset of their first, and at last a line without a newline (False)."""
    base, carry = offset, b""
    while True:
        data = files.read(fd, chunk_bytes, offset)
        if not data:
            break
        offset += len(data)
        lines = (carry + data).split(b"\n")
        carry = lines.pop()
        if lines:
            yield base, lines, True
            base = offset - len(carry)
    if carry:
        yield base, [carry], False


def _row_starts(first_seq: int, count: int) -> bytes:
    """Return what rows with these numbers start with, one after the other."""
    high, low = divmod(first_seq, _THOUSAND)
    if not high or low + count > _THOUSAND:
        return (_NUMBER * count) % tuple(range(first_seq, first_seq + count))
    # The same, without formatting a number for each row.
    return _STARTS[low * _START_BYTES : (low + count) * _START_BYTES].replace(b"\0", b"%d" % high)


class RowCheck:
    """Tells the sound rows of one session."""

    __slots__ = ("_seed",)

    def __init__(self, session_id: str) -> None:
        self._seed = row_seed(session_id)

    def is_sound(self, line: bytes) -> bool:
        """Say whether a line, its newline removed, is a row of this version with its checksum right."""
        tail = b',"crc":"%08x"}' % crc32(line[:-ROW_TAIL_BYTES], self._seed)
        return line.endswith(tail) and line.startswith(ROW_PREFIX)


class Segment:
    """One segment, opened for reading."""

    def __init__(self, files: Files, fd: int, *, session_id: str, first_seq: int, chunk_bytes: int) -> None:
        self._files = files
        self._fd = fd
        self._session_id = session_id
        self._seed = row_seed(session_id)
        self._is_sound = RowCheck(session_id).is_sound
        self._chunk_bytes = chunk_bytes
        self.name = segment_name(first_seq)
        self.first_seq = first_seq

    def header_end(self) -> int:
        """Check the first line and return the offset after it.

        Raises:
            SchemaMismatch: a segment of another version.
            LogCorrupt: damaged, or the segment of another session.
        """
        line, newline, _ = self._files.read(self._fd, SEALED_BYTES_MAX, 0).partition(b"\n")
        if line + b"\n" == encode_header(self._session_id, self.first_seq) and newline:
            return len(line) + 1
        members = decode_row(line) or {}
        if members.get("logmark") == "segment" and members.get("v") != SCHEMA_VERSION:
            raise SchemaMismatch(
                session_id=self._session_id,
                expected=SCHEMA_VERSION,
                found=members.get("v"),
                segment=self.name,
                offset=0,
            )
        owner = members.get("session")
        if isinstance(owner, str) and owner != self._session_id:
            raise self._corrupt(f"the segment belongs to session {owner!r}", self.first_seq, 0)
        raise self._corrupt("the segment's first line is damaged", self.first_seq, 0)

    def runs_from(
        self, from_seq: int, through: int, expected: int, size: int
    ) -> Generator[tuple[int, list[bytes]], None, int]:
        """Yield the events of ``from_seq`` to ``through`` that lie in this segment, verified.

        Args:
            from_seq: the first number wanted.
            through: the last number wanted.
            expected: the number that the first row of the segment must have.
            size: an offset at or after the last row wanted; only a bound for the search.

        Yields:
            lines of events with consecutive numbers, newlines removed, and the number of the first.

        Returns:
            the last number that was seen; less than ``through`` when rows are missing at the end.
        """
        start = self.header_end()
        if from_seq > self.first_seq:
            start = self._find(from_seq, start, size)
            expected = from_seq  # the search goes by numbers that nobody has verified: it may have been led astray
        for base, lines, complete in self._blocks_from(start):
            wanted = lines if len(lines) <= through - expected else lines[: through - expected + 1]
            if complete and self._are_ordinary(wanted, expected):
                yield expected, wanted
                expected += len(wanted)
            else:
                for seq, line in self._checked(base, lines, from_seq, expected, complete=complete):
                    if line is not None and from_seq <= seq <= through:
                        yield seq, [line]
                    expected = seq + 1
                    if seq >= through:
                        break
            if expected > through:
                break
        return expected - 1

    def _blocks_from(self, offset: int) -> Iterator[tuple[int, list[bytes], bool]]:
        """Yield runs of lines as ``blocks_of`` does, a small one first, the others small enough to stay in a cache."""
        size = min(_FIRST_BLOCK_BYTES, self._chunk_bytes)
        while True:
            data = self._files.read(self._fd, size, offset)
            ended = len(data) < size
            lines = data.split(b"\n")
            rest = lines.pop()
            if lines:
                yield offset, lines, True
                offset += len(data) - len(rest)
            if ended:
                if rest:
                    yield offset, [rest], False
                return
            if not lines:
                size *= 4  # one row is longer than that
            elif len(lines) < _BLOCK_ROWS_MIN:
                size = max(size, min(size * 2, self._chunk_bytes))
            else:
                size = min(_BLOCK_BYTES, self._chunk_bytes)

    def _are_ordinary(self, lines: list[bytes], first_seq: int) -> bool:
        """Say whether all lines are sound rows of events with consecutive numbers.

        False also when some are none and the rest has to be told from them: this looks at all of them at once, in a
        few calls that leave nothing to do for each row, which is what makes a replay fast.
        """
        count = len(lines)
        digits = len(b"%d" % first_seq)
        if not count or len(b"%d" % (first_seq + count - 1)) != digits:
            return False
        crcs = map(crc32, map(_COVERED, lines), repeat(self._seed))
        sums = hexlify(struct.pack(f">{count}I", *crcs), b"\n", 4).replace(b"\n", b'"},"crc":"')
        # Pieces of at most so many bytes add up to so many times the number of lines only if each has all of them.
        if b"".join(map(_TAIL, lines)) != b',"crc":"%b"}' % sums:
            return False
        start = itemgetter(slice(len(ROW_PREFIX) + digits + 1))
        if b"".join(map(start, lines)) != _row_starts(first_seq, count):
            return False
        # A reservation has no size.
        if min(map(len, lines)) > _RESERVATION_BYTES_MAX:
            return True
        return min(map(bytes.find, lines, repeat(_SIZE_MEMBER), repeat(0), repeat(_SIZE_WITHIN))) >= 0

    def _checked(
        self, base: int, lines: list[bytes], from_seq: int, expected: int, *, complete: bool
    ) -> Iterator[tuple[int, bytes | None]]:
        """Verify line by line, and yield the last number of each row with the row's line, None for a reservation."""
        for index, line in enumerate(lines):
            if not line:
                continue
            if not self._is_sound(line):
                at = base + sum(len(before) + 1 for before in lines[:index])
                if not complete:
                    raise self._corrupt("the row ends in the middle", expected, at)
                raise self._diagnose(line, at, expected)
            seq = row_seq(line)
            reserved = None if _SIZE_MEMBER in line[:_SIZE_WITHIN] else orjson.loads(line).get("reserved")
            # The first row may be a reservation that began before the number wanted.
            if expected not in (seq, reserved) and not (reserved and reserved < expected == from_seq < seq):
                at = base + sum(len(before) + 1 for before in lines[:index])
                raise self._corrupt(f"row {seq} stands where row {expected} belongs", expected, at)
            expected = seq + 1
            yield seq, None if reserved else line

    def rows_backwards(self, before_seq: int, size: int) -> Iterator[RawEnvelope]:
        """Yield the events below a number that lie in this segment, downwards, verified."""
        start = self.header_end()
        end = self._find(before_seq, start, size)
        expected = min(before_seq, self._reserved_at(end) or before_seq) - 1
        while end > start:
            base = max(start, end - self._chunk_bytes)
            data = self._files.read(self._fd, end - base, base)
            while base > start and b"\n" not in data[:-1]:  # a row longer than the chunk
                base = max(start, base - self._chunk_bytes)
                data = self._files.read(self._fd, end - base, base)
            if base > start:
                skip = data.index(b"\n") + 1
                data, base = data[skip:], base + skip
            end = base
            lines = data.split(b"\n")
            at = base + len(data)
            for line in reversed(lines):
                at -= len(line)
                if line:
                    seq = self._verified_seq(line, at, expected)
                    if seq != expected:
                        raise self._corrupt(f"row {seq} stands where row {expected} belongs", expected, at)
                    try:
                        envelope = split_row(line, self._session_id, seq)
                    except ValueError:  # no payload: a reservation
                        expected = int(orjson.loads(line)["reserved"]) - 1
                        at -= 1
                        continue
                    expected = seq - 1
                    yield envelope
                at -= 1
        if expected >= self.first_seq:
            raise self._corrupt(f"rows up to {expected} are missing", expected, start)

    def _reserved_at(self, offset: int) -> int | None:
        """Return the first number of the reservation whose row starts at an offset; None when none starts there."""
        line = self._files.read(self._fd, _RESERVATION_BYTES_MAX, offset).partition(b"\n")[0]
        return orjson.loads(line).get("reserved") if self._is_sound(line) else None

    def last_row_ends_at(self, end: int, through: int) -> bool:
        """Say whether a sound row with that number ends exactly at an offset; lets a cold open skip the log."""
        window = _BISECT_BYTES
        while True:
            start = max(0, end - window)
            data = self._files.read(self._fd, end - start, start)
            if len(data) < end - start or not data.endswith(b"\n"):
                return False
            cut = data.rfind(b"\n", 0, len(data) - 1)
            if cut >= 0 or start == 0:
                break
            window *= 8
        line = data[cut + 1 : -1]
        if start == 0 and cut < 0:  # only the first line: an empty segment
            return line + b"\n" == encode_header(self._session_id, self.first_seq) and through < self.first_seq
        return self._is_sound(line) and row_seq(line) == through

    def row(self, seq: int, offset: int | None = None) -> tuple[int, bytes] | None:
        """Return offset and line of the sound row with a number, None when it is not there; at ``offset``, if given."""
        if offset is None:
            offset = self._find(seq, self.header_end(), self._files.fstat(self._fd).st_size)
        line = next((lines[0] for _, lines, _ in blocks_of(self._files, self._fd, _BISECT_BYTES, offset)), b"")
        return (offset, line) if self._is_sound(line) and row_seq(line) == seq else None

    def offset_of(self, seq: int, size: int) -> int:
        """Return the offset of the first row numbered ``seq`` or more; ``size``: where the durable rows end."""
        return self._find(seq, self.header_end(), size)

    def line_at(self, offset: int) -> bytes:
        """Return the line that starts at an offset, its newline removed; LogCorrupt when it is no sound row."""
        line = next((lines[0] for _, lines, _ in blocks_of(self._files, self._fd, _BISECT_BYTES, offset)), b"")
        if not self._is_sound(line):
            raise self._diagnose(line, offset, None)
        return line

    def sound_lines(self, start: int) -> Iterator[tuple[int, list[bytes]]]:
        """Yield runs of lines from an offset (0: the first row) to the end, each with the offset of its first.

        Raises:
            LogCorrupt, SchemaMismatch: a line is neither a sound row nor empty.
        """
        for base, lines, _ in blocks_of(self._files, self._fd, self._chunk_bytes, start or self.header_end()):
            at = base
            for line in lines:
                if line and not self._is_sound(line):
                    raise self._diagnose(line, at, None)
                at += len(line) + 1
            yield base, lines

    def scan(self, start: int, seq: int, through: int) -> Scan:
        """Walk from an offset to the end and tell complete commits from what a crash may have left.

        Only the last commit can be torn, because each one is synced before the next is written. So what cannot be read
        is the remains of a crash when every sound row after it is of the commit that comes next; else it is damage.
        """
        found = Scan(seq=seq, through=through, end=start, size=self._files.fstat(self._fd).st_size)
        pending: list[int] | None = None  # the [first, last] of a commit whose last row is still to come
        torn_at: int | None = None
        at_seq, at_through = seq, through
        for base, lines, complete in blocks_of(self._files, self._fd, self._chunk_bytes, start):
            after = base
            for line in lines:
                at, after = after, after + len(line) + (1 if complete else 0)
                if not line:
                    if pending is None and torn_at is None:
                        found.end = after
                    continue
                if not self._is_sound(line):
                    foreign = decode_row(line) is not None and complete
                    if foreign and torn_at is None:
                        found.problem = self._diagnose(line, at, at_through + 1)
                        return found
                    torn_at = at if torn_at is None else torn_at
                    continue
                row = orjson.loads(line)
                batch: list[int] = row["batch"]
                if torn_at is not None:
                    if batch[0] != found.through + 1:
                        found.problem = self._corrupt("the row cannot be read", at_through + 1, torn_at)
                        return found
                    continue
                reserved: int | None = row.get("reserved")
                first = row["seq"] if reserved is None else reserved
                if first != at_through + 1 or batch != (pending or [first, batch[1]]):
                    found.problem = self._corrupt(
                        f"row {row['seq']} stands where row {at_through + 1} belongs", at_through + 1, at
                    )
                    return found
                at_seq, at_through = at_seq if reserved is not None else row["seq"], row["seq"]
                if at_through == batch[1]:
                    found.seq, found.through, found.end = at_seq, at_through, after
                    found.newline_missing = not complete
                    pending = None
                else:
                    pending = batch
        return found

    def _verified_seq(self, line: bytes, at: int, expected: int) -> int:
        if not self._is_sound(line):
            raise self._diagnose(line, at, expected)
        return row_seq(line)

    def _diagnose(self, line: bytes, at: int, expected: int | None) -> LogCorrupt | SchemaMismatch:
        row = decode_row(line)
        if row is None:
            return self._corrupt("the row is not JSON", expected, at)
        version: Any = row.get("v")
        if version != SCHEMA_VERSION:
            return SchemaMismatch(
                session_id=self._session_id, expected=SCHEMA_VERSION, found=version, segment=self.name, offset=at
            )
        seq = row.get("seq")
        return self._corrupt("the checksum does not match the row", expected if expected is not None else seq, at)

    def _corrupt(self, reason: str, seq: int | None, at: int) -> LogCorrupt:
        return LogCorrupt(session_id=self._session_id, reason=reason, event_seq=seq, segment=self.name, offset=at)

    def _find(self, seq: int, low: int, high: int) -> int:
        """Return the offset of the first row numbered ``seq`` or more; ``low`` starts a row or the end.

        What is no row and lies at ``high`` or after it is a write in progress, and ends the search too.
        """
        durable = high
        while high - low > _BISECT_BYTES:
            middle = (low + high) // 2
            found = self._row_after(middle, high)
            if found is None:
                high = middle
            elif found[1] < seq:
                low = found[0]
            else:
                high = middle  # the row wanted starts at or below found: the walk from low comes upon it
        for base, lines, _ in blocks_of(self._files, self._fd, min(2 * _BISECT_BYTES, self._chunk_bytes), low):
            at = base
            for line in lines:
                if line.startswith(ROW_PREFIX):
                    try:
                        if row_seq(line) >= seq:
                            return at
                    except ValueError:
                        return at  # the reader will say what is wrong with it
                elif line and at >= durable:
                    return at
                at += len(line) + 1
            low = at
        return low

    def _row_after(self, offset: int, high: int) -> tuple[int, int] | None:
        """Return offset and number of the first row that starts after ``offset`` and before ``high``."""
        window = 1024
        while True:
            data = self._files.read(self._fd, min(window, high - offset + 64), offset)
            at = data.find(b"\n" + ROW_PREFIX)
            if at >= 0:
                number, comma, _ = data[at + 1 + len(ROW_PREFIX) : at + 64].partition(b",")
                if offset + at + 1 >= high:
                    return None
                if comma and number.isdigit():
                    return offset + at + 1, int(number)
            if len(data) < window or offset + len(data) >= high:
                return None
            window *= 4
