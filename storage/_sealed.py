"""Sealed lines: JSON objects with a checksum of the session and themselves, as the first line of every file has one."""

from __future__ import annotations

from typing import Any

from ..protocol import ROW_TAIL_BYTES, crc32, decode_row

__all__ = ["SEALED_BYTES_MAX", "sealed", "unsealed"]

SEALED_BYTES_MAX = 4096
"""No first line is longer."""


def sealed(text: bytes, seed: int) -> bytes:
    """Return an object, given without its closing brace, as a line with its checksum."""
    return b'%b,"crc":"%08x"}\n' % (text, crc32(text, seed))


def unsealed(line: bytes, seed: int) -> dict[str, Any] | None:
    """Return the members of a line, its newline removed; None when it is damaged or another session's."""
    if not line.endswith(b',"crc":"%08x"}' % crc32(line[:-ROW_TAIL_BYTES], seed)):
        return None
    return decode_row(line)
