"""The head: a fixed-width line, overwritten in place after each commit, that says how far the log is durable.

The log decides and the head is a hint: it is written after the log is synced and is not synced itself, so after a power
cut it may be behind, and it is rebuilt from the log when it is missing or damaged. Readers in other processes read as
far as it says, because bytes beyond it may still be only in the page cache.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..protocol import crc32

__all__ = ["HEAD_BYTES", "Head"]

_LINE = re.compile(
    rb"logmark-head 1 seq=([0-9]{20}) through=([0-9]{20}) segment=([0-9]{20}) size=([0-9]{20}) halted=([01])"
    rb" crc=([0-9a-f]{8})\n\Z"
)
_FORMAT = b"logmark-head 1 seq=%020d through=%020d segment=%020d size=%020d halted=%d"


class Head(NamedTuple):
    """How far a session's log is durable.

    Attributes:
        seq: number of the last event.
        through: last number that is used, by an event or by a reservation; the next event gets the one after it.
        segment: first number of the segment that is written.
        size: bytes of that segment that are durable.
        halted: the session is halted; the reason is in the halt marker.
    """

    seq: int
    through: int
    segment: int
    size: int
    halted: bool = False

    def encode(self, seed: int) -> bytes:
        """Return the line; ``seed`` is the session's, so that no head passes for another session's."""
        line = _FORMAT % (self.seq, self.through, self.segment, self.size, self.halted)
        return b"%b crc=%08x\n" % (line, crc32(line, seed))

    @classmethod
    def decode(cls, data: bytes, seed: int) -> Head | None:
        """Return the head, or None when the line is damaged or another session's."""
        match = _LINE.match(data)
        if match is None or crc32(data[: match.start(6) - 5], seed) != int(match[6], 16):
            return None
        seq, through, segment, size = (int(match[group]) for group in range(1, 5))
        return cls(seq, through, segment, size, match[5] == b"1")


HEAD_BYTES = len(Head(0, 0, 0, 0).encode(0))
