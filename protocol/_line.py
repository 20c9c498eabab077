"""The line of a row: where its parts stand, so that they can be cut out without decoding the line.

    {"v":1,"seq":12,"batch":[11,13],"size":13,"ts":"…","id":"…","type":"…",…,"payload":{"text":"hi"},"crc":"0f3c…"}

Everything here is for lines without their newline whose checksum was found right: they are as they were written.
``docs/format.md`` describes rows for readers in other languages.
"""

from __future__ import annotations

__all__ = [
    "ROW_PREFIX",
    "ROW_TAIL_BYTES",
    "SCHEMA_VERSION",
    "cut_line",
    "head_in",
    "payload_in",
    "payloads_in",
    "row_seq",
    "type_in",
]

SCHEMA_VERSION = 1
ROW_PREFIX = b'{"v":%d,"seq":' % SCHEMA_VERSION
ROW_TAIL_BYTES = len(b',"crc":"') + 8 + len(b'"}')
"""Bytes from ``,"crc"`` to the closing brace, the newline not counted."""

# No string holds these bytes, as a quote in a string has a backslash before it. So if no brace but the line's own
# stands before them, they are not in an object inside of the row, and what follows is the payload.
_PAYLOAD = b',"payload":'
_PAYLOAD_BYTES = len(_PAYLOAD)
_SIZE = b'"size":'
_TYPE = b',"type":"'
_NAMES_MAX = 4096
_names: dict[bytes, str] = {}  # types repeat; only ever gains whole entries, or loses all


def row_seq(line: bytes) -> int:
    """Return the number of a line that starts with ``ROW_PREFIX``; raises ValueError when there is none."""
    start = len(ROW_PREFIX)
    return int(line[start : line.index(b",", start)])


def cut_line(line: bytes) -> tuple[bytes, bytes]:
    """Return the members between the numbers and the payload, and the payload; ValueError when there is none."""
    mark = line.index(_SIZE) + len(_SIZE)
    comma = line.index(b",", mark)
    end = len(line) - ROW_TAIL_BYTES
    start = end - int(line[mark:comma])
    return line[comma + 1 : start - _PAYLOAD_BYTES], line[start:end]


def payload_in(line: bytes) -> bytes:
    """Return the payload."""
    at = line.find(b"{", 1)
    if line.startswith(_PAYLOAD, at - _PAYLOAD_BYTES):
        return line[at:-ROW_TAIL_BYTES]
    return cut_line(line)[1]


def payloads_in(lines: list[bytes]) -> bytes:
    """Return the payloads of lines as one array."""
    parts = [line.partition(_PAYLOAD) for line in lines]
    if b"".join([before for before, _, _ in parts]).count(b"{") == len(lines):
        texts = [behind[:-ROW_TAIL_BYTES] for _, _, behind in parts]
    else:
        texts = [payload_in(line) for line in lines]
    return b"[%b]" % b",".join(texts)


def head_in(line: bytes) -> bytes:
    """Return the members between the braces, up to the payload; may begin with the numbers."""
    at = line.find(b"{", 1)
    if line.startswith(_PAYLOAD, at - _PAYLOAD_BYTES):
        return line[1 : at - _PAYLOAD_BYTES]
    return cut_line(line)[0]


def type_in(line: bytes) -> str | None:
    """Return the event type, or None when it has to be decoded: only numbers and text stand before it.

    The members between the numbers and the payload will do for a line.
    """
    start = line.find(_TYPE) + len(_TYPE)
    text = line[start : line.index(b'"', start)]
    name = _names.get(text)
    if name is None and b"\\" not in text:
        if len(_names) >= _NAMES_MAX:
            _names.clear()
        name = _names[text] = text.decode()
    return name
