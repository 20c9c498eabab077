"""The halt marker: a small file that makes a session refuse, in every process, until it is cleared."""

from __future__ import annotations

import os

import orjson

from ._clock import rfc3339
from ._files import Files, replace_file
from ._logging import Logger
from ._store import HaltRecord

__all__ = ["HaltMarker"]


class HaltMarker:
    """The marker of one session."""

    def __init__(self, files: Files, session_id: str, path: str) -> None:
        self._files = files
        self._session_id = session_id
        self._path = path
        self.unwritten: HaltRecord | None = None
        """A halt that the disk refused to take; it holds in this process all the same."""

    def read(self) -> HaltRecord | None:
        """Return the halt, or None; a marker that cannot be read is a halt too."""
        try:
            fd = self._files.open(self._path, write=False)
        except FileNotFoundError:
            return self._write_late()
        try:
            data = self._files.read(fd, 65_536, 0)
        finally:
            self._files.close(fd)
        try:
            members = orjson.loads(data)
            return HaltRecord(
                session_id=self._session_id,
                reason=str(members["reason"]),
                at=str(members["at"]),
                first_event_id=members.get("first_event_id"),
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            return HaltRecord(
                session_id=self._session_id,
                reason=f"the halt marker is damaged ({type(error).__name__}), which counts as a halt",
                at="unknown",
            )

    def stands(self) -> bool:
        """Say whether there is a marker, without reading it."""
        try:
            self._files.stat(self._path)
        except FileNotFoundError:
            return self.unwritten is not None
        return True

    def write(self, reason: str, time_ns: int, first_event_id: str | None, log: Logger) -> HaltRecord:
        """Write the marker unless there is one; the first reason stays."""
        try:
            standing = self.read()
        except OSError:  # what cannot be read must not keep the caller from halting
            standing = self.unwritten
        if standing is not None:
            return standing
        record = HaltRecord(
            session_id=self._session_id, reason=reason, at=rfc3339(time_ns), first_event_id=first_event_id
        )
        try:
            self._put(record)
        except OSError as error:
            # The disk is failing, which is why there is a halt. It holds here, and is written as soon as the disk takes
            # it; if the process ends before that, the log itself decides.
            self.unwritten = record
            log.error("halt_marker_unwritten", error=str(error))
            return record
        try:
            self._files.sync_dir(os.path.dirname(self._path))
        except OSError as error:
            log.error("halt_marker_unwritten", error=str(error))
        return record

    def _put(self, record: HaltRecord) -> None:
        members = {
            "reason": record.reason,
            "at": record.at,
            "first_event_id": record.first_event_id,
            "pid": os.getpid(),
        }
        data = orjson.dumps(members) + b"\n"
        replace_file(self._files, self._path, data, fresh=self._path + ".new", sync=self._files.sync)

    def _write_late(self) -> HaltRecord | None:
        """Return the halt that the disk refused to take, and offer it once more: only a marker can be repaired away."""
        record = self.unwritten
        if record is not None:
            try:
                self._put(record)
                self._files.sync_dir(os.path.dirname(self._path))
            except OSError:
                return record  # said when it was refused the first time
            self.unwritten = None
        return record

    def remove(self) -> None:
        """Remove the marker, durably."""
        self.unwritten = None
        try:
            self._files.unlink(self._path)
        except FileNotFoundError:
            return
        self._files.sync_dir(os.path.dirname(self._path))
