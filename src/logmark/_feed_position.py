"""The position of a feed: how far it has come in each session, as one opaque word.

There is no number across sessions, and none is made up: the only authority there is are the numbers of each session. A
position is all of them, compressed, with a version and a checksum. Per session it holds the id, the number, and 16 bits
of a checksum of the event's id, by which a log that was restored from an older copy is told.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping

from .protocol import InvalidPosition, crc32

__all__ = ["Epoch", "Place", "check_of", "decode_position", "encode_position"]

_MARK = "lmf1."
_CHECK_BITS = 16
_LOG_ENTRIES = 1024
_DECODED_BYTES_MAX = 1 << 30


def check_of(event_id: str | None) -> int:
    """Return 16 bits of an event's id, never 0, which stands for an event that nobody has looked at."""
    return (crc32((event_id or "").encode(errors="replace")) & 0xFFFF) or 1


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def encode_position(vector: Mapping[str, int]) -> str:
    """Return the position of a vector: for each session its number, shifted left by 16 bits, and a check."""
    body = bytearray()
    last = b""
    for session_id in sorted(vector):
        place = vector[session_id]
        name = session_id.encode()
        shared = 0
        while shared < min(len(last), len(name), 0xFF) and last[shared] == name[shared]:
            shared += 1
        body += bytes((shared,)) + _varint(len(name) - shared) + name[shared:]
        body += _varint(place >> _CHECK_BITS) + (place & 0xFFFF).to_bytes(2, "little")
        last = name
    packed = zlib.compress(bytes(body), 6)
    return _MARK + base64.urlsafe_b64encode(crc32(packed).to_bytes(4, "little") + packed).decode().rstrip("=")


def decode_position(position: object) -> dict[str, int]:
    """Return the vector of a position.

    Raises:
        InvalidPosition: it is none, or not whole.
    """
    if not isinstance(position, str) or not position.startswith(_MARK):
        raise InvalidPosition(reason=f"it begins with {_MARK!r}, this is {str(position)[:40]!r}")
    text = position.removeprefix(_MARK)
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidPosition(reason="it is damaged") from error
    packed = data[4:]
    if int.from_bytes(data[:4], "little") != crc32(packed):
        raise InvalidPosition(reason="it is damaged: its checksum does not agree")
    try:
        inflating = zlib.decompressobj()
        body = inflating.decompress(packed, _DECODED_BYTES_MAX)
        if not inflating.eof or inflating.unused_data:
            raise IndexError
        return _vector(body)
    except (zlib.error, IndexError, UnicodeDecodeError) as error:
        raise InvalidPosition(reason="it is damaged") from error


def _vector(body: bytes) -> dict[str, int]:
    vector: dict[str, int] = {}
    at, last = 0, b""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = body[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - the last of the number
                return value
            shift += 7

    while at < len(body):
        shared = body[at]
        at += 1
        size = varint()
        last = last[:shared] + body[at : at + size]
        at += size
        seq = varint()
        vector[last.decode()] = seq << _CHECK_BITS | int.from_bytes(body[at : at + 2], "little")
        if len(body) < at + 2:
            raise IndexError
        at += 2
    return vector


class Epoch:
    """A vector, and what was handed out since: each event then needs no vector of its own, only its place in this."""

    __slots__ = ("base", "log")

    def __init__(self, base: Mapping[str, int]) -> None:
        self.base = base
        self.log: list[tuple[str, int | None]] = []

    @property
    def is_full(self) -> bool:
        """Whether it is time for another: its log is as long as a vector is."""
        return len(self.log) >= max(_LOG_ENTRIES, len(self.base))


class Place:
    """The position of one event, encoded when it is asked for."""

    __slots__ = ("_epoch", "_length")

    def __init__(self, epoch: Epoch, length: int) -> None:
        self._epoch = epoch
        self._length = length

    def encode(self) -> str:
        """Return the position behind the event."""
        vector = dict(self._epoch.base)
        for session_id, place in self._epoch.log[: self._length]:
            if place is None:
                vector.pop(session_id, None)
            else:
                vector[session_id] = place
        return encode_position(vector)
