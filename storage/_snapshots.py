"""Snapshots beside the log: what was derived from the events up to one of them, so that a cold open need not read them.

A snapshot decides nothing. It counts only when it is whole, and when the log still is the one that it was made of: the
row that it names stands where it stood, with its checksum, below the durable end, and neither was a repair since nor
was a segment moved away. Anything else is ignored, with a log event, and the log is read.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import orjson

from ..protocol import crc32, decode_row
from ._files import replace_file
from ._head import Head
from ._layout import QUARANTINE, REPAIR, SNAPSHOT
from ._log_reader import FileEnv, LogReader
from ._logging import Logger
from ._sealed import SEALED_BYTES_MAX, sealed, unsealed
from ._store import Snapshot

__all__ = ["SnapshotFiles"]

_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where the last row that went into a snapshot stands, and what else has to be as it was."""

    segment: int
    offset: int
    row: str
    lowest: int
    repair: str | None


class SnapshotFiles:
    """The snapshots of one session. Safe from any thread."""

    def __init__(self, env: FileEnv, reader: LogReader, log: Logger) -> None:
        self._files = env.files
        self._reader = reader
        self._log = log
        self._repair_known: str | None = None
        self._repair_is_known = False

    def load(self, name: str, position: Head) -> Snapshot | None:
        """Return a snapshot that can be relied on, or None; ``position`` is how far the log is durable."""
        repair = self._repair_now()
        try:
            fd = self._files.open(self._path(name), write=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._ignored(name, str(error))
            return None
        try:
            return self._read(fd, name, position, repair)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._ignored(name, str(error) or repr(error))
            return None
        finally:
            self._files.close(fd)

    def _read(self, fd: int, name: str, position: Head, repair: str | None) -> Snapshot:
        line, newline, _ = self._files.read(fd, SEALED_BYTES_MAX, 0).partition(b"\n")
        members = unsealed(line, self._reader.seed) if newline else None
        if members is None:
            raise ValueError("its first line is damaged, or another session's")
        if (members.get("logmark"), members.get("v"), members.get("name")) != ("snapshot", _VERSION, name):
            raise ValueError("it is of another version or name")
        seq, size = int(members["seq"]), int(members["bytes"])
        data = self._files.read(fd, size + 1, len(line) + 1)
        if len(data) != size or f"{crc32(data):08x}" != members["data_crc"]:
            raise ValueError("its data are damaged")
        place = _Place(*(members[field.name] for field in dataclasses.fields(_Place)))
        if seq > position.seq:
            message = f"it goes to {seq}, the log to {position.seq}"
            raise ValueError(message)
        if self._place(seq, position, repair, at=place) != place:
            raise ValueError("it is of another log")
        return Snapshot(seq, data)

    def save(self, name: str, snapshot: Snapshot, position: Head) -> None:
        """Write a snapshot and put it in place of the last one; nothing waits for the disk.

        Raises:
            OSError: it could not be written.
        """
        repair = self._repair_now()
        place = self._place(snapshot.seq, position, repair) if snapshot.seq <= position.seq else None
        if place is None:
            self._log.warning("snapshot_unsaved", name=name, reason=f"event {snapshot.seq} is not in the log")
            return
        if repair != self._repair_known:
            self._log.warning("snapshot_unsaved", name=name, reason="the log was repaired since it was derived")
            return
        members: dict[str, Any] = {"session": self._reader.session_id, "name": name, "seq": snapshot.seq}
        members |= dataclasses.asdict(place)
        members |= {"bytes": len(snapshot.data), "data_crc": f"{crc32(snapshot.data):08x}"}
        line = sealed(b'{"logmark":"snapshot","v":%d,' % _VERSION + orjson.dumps(members)[1:-1], self._reader.seed)
        replace_file(self._files, self._path(name), line + snapshot.data, sync=None)
        self._log.debug("snapshot_saved", name=name, seq=snapshot.seq, bytes=len(snapshot.data))

    def _place(self, seq: int, position: Head, repair: str | None, *, at: _Place | None = None) -> _Place | None:
        """Return the place of an event's row, or None; ``at``: where it is expected, instead of searching for it."""
        segments = [first for first in self._reader.segments() if first <= position.segment]
        first = max((first for first in segments if first <= seq), default=None) if at is None else at.segment
        if first not in segments:
            return None
        with self._reader.opened(first) as (segment, _):
            found = segment.row(seq, None if at is None else at.offset)
        if found is None:
            return None
        offset, line = found
        lowest = 1 if segments[0] <= self._reader.lifetime().first_available else segments[0]  # nothing is missing
        return _Place(first, offset, str((decode_row(line) or {}).get("crc")), lowest, repair)

    def _repair_now(self) -> str | None:
        """Return the name of the last repair of this log, so that what was derived before it is told apart."""
        try:
            names = self._files.listdir(os.path.join(self._reader.path, QUARANTINE))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        repair = max((name for name in names if name.startswith(REPAIR)), default=None)
        if not self._repair_is_known:  # what is derived from now on is derived from this log, and not from a later one
            self._repair_known, self._repair_is_known = repair, True
        return repair

    def _ignored(self, name: str, reason: str) -> None:
        self._log.warning("snapshot_ignored", name=name, reason=reason)

    def _path(self, name: str) -> str:
        return os.path.join(self._reader.path, name + SNAPSHOT)
