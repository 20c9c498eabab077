"""Names on disk: which directory belongs to which session, which file to which segment."""

from __future__ import annotations

import hashlib
import re

__all__ = [
    "HALT",
    "HEAD",
    "IDS",
    "LIFETIME",
    "LOCK",
    "QUARANTINE",
    "RECORD",
    "RECORDS",
    "REPAIR",
    "SNAPSHOT",
    "available",
    "ids_name",
    "is_derived",
    "segment_first_seq",
    "segment_name",
    "session_dir",
    "session_id_of",
]

HEAD = "head"
LOCK = "lock"
HALT = "halt.json"
LIFETIME = "lifetime"
RECORDS = "records"  # a directory with a lock of its own
RECORD = ".record"  # after the name of the record
QUARANTINE = "quarantine"
REPAIR = "repair-"  # in the quarantine: the originals of a repair, and its time
SNAPSHOT = ".snapshot"  # after the name of what it is of
IDS = ".ids"  # after the digits of its segment

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")
_SEGMENT = re.compile(r"([0-9]{20})\.jsonl\Z")
_NAME_MAX = 200
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\Z)")  # device names on Windows, whatever the suffix
_ESCAPE = re.compile(r"%([0-9a-f]{2})")


def session_dir(session_id: str) -> str:
    """Return the directory name of a session.

    Lower-case letters, digits, ``-``, ``_`` and ``.`` stand for themselves; every other byte of the UTF-8 text is ``%``
    and two hexadecimal digits, so that no name escapes its directory, none collides with another on a file system that
    folds case, and most can be read. A dot in front, and the first letter of a device name, are escaped too. A name
    that would be longer than 200 characters keeps its first 120 and ends in ``%%`` and a SHA-256.
    """
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in session_id.encode())
    if name[0] == "." or _RESERVED.match(name):
        name = f"%{ord(name[0]):02x}{name[1:]}"
    if name[-1] == ".":
        name = f"{name[:-1]}%2e"
    if len(name) > _NAME_MAX:
        name = f"{name[:120]}%%{hashlib.sha256(session_id.encode()).hexdigest()}"
    return name


def session_id_of(name: str) -> str | None:
    """Return the session id of a directory name, or None when only the segment's first line can tell it."""
    if "%%" in name:
        return None
    data = bytearray()
    at = 0
    while at < len(name):
        escape = _ESCAPE.match(name, at)
        if escape:
            data.append(int(escape[1], 16))
            at += 3
        else:
            data += name[at].encode()
            at += 1
    try:
        session_id = data.decode()
    except UnicodeDecodeError:
        return None
    return session_id if session_id and session_dir(session_id) == name else None


def segment_name(first_seq: int) -> str:
    """Return the file name of the segment whose first number is ``first_seq``."""
    return f"{first_seq:020d}.jsonl"


def segment_first_seq(name: str) -> int | None:
    """Return the first number of a segment's file name, or None when it is no segment."""
    match = _SEGMENT.match(name)
    return int(match[1]) if match else None


def available(segments: list[int], first_available: int) -> list[int]:
    """Return those of the segments, ascending, in which a number from ``first_available`` on may be."""
    below = sum(first <= first_available for first in segments)
    return segments[max(0, below - 1) :]


def ids_name(first_seq: int) -> str:
    """Return the file name of the table of ids of the segment whose first number is ``first_seq``."""
    return f"{first_seq:020d}{IDS}"


def is_derived(name: str) -> bool:
    """Say whether a file is made of the rows alone, and may be removed at any time."""
    return name.endswith((SNAPSHOT, IDS))
