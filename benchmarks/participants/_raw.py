"""The limit: what the disk and the encoder allow, with nothing else in the way."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import orjson

from ._base import Caller, Events, Participant, Payload, Tally

__all__ = ["Raw"]


class _File:
    """One file of lines with its lock."""

    __slots__ = ("count", "fd", "lock", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.lock = threading.Lock()
        self.count = 0


class _RawCaller(Caller):
    def __init__(self, file: _File) -> None:
        self._file = file

    def append(self, payload: Payload) -> int:
        file = self._file
        with file.lock:
            os.write(file.fd, orjson.dumps(payload) + b"\n")
            os.fdatasync(file.fd)
            file.count += 1
            return file.count

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        file = self._file
        with file.lock:
            os.write(file.fd, b"".join([orjson.dumps(payload) + b"\n" for payload in payloads]))
            os.fdatasync(file.fd)
            file.count += len(payloads)
            return file.count


class Raw(Participant):
    """A lock, ``orjson.dumps``, ``write`` and ``fdatasync`` on one file for each session; no number, no checksum."""

    name = "raw"
    label = "raw: lock, dumps, write, fdatasync"

    def __init__(self) -> None:
        self._directory = ""
        self._files: dict[str, _File] = {}
        self._mutex = threading.Lock()

    def open(self, directory: str) -> None:
        """Use the directory."""
        self._directory = directory

    def caller(self, session_id: str) -> Caller:
        """Open the session's file once, for all callers."""
        with self._mutex:
            file = self._files.get(session_id)
            if file is None:
                file = self._files[session_id] = _File(self.path(session_id))
        return _RawCaller(file)

    def path(self, session_id: str) -> str:
        """Return the file of a session."""
        return os.path.join(self._directory, f"{session_id}.jsonl")

    def tally(self, session_id: str) -> Tally:
        """Count the lines that are whole."""
        with open(self.path(session_id), "rb") as lines:
            count = sum(line.endswith(b"}\n") for line in lines)
        return Tally(count, min(count, 1), count)

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Scan the file, as there is no index."""
        loads = orjson.loads
        with open(self.path(session_id), "rb") as lines:
            for seq, line in enumerate(lines, 1):
                if seq >= from_seq:
                    yield seq, loads(line)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()
