"""Records in the file engine: one sealed file each, replaced whole, in a directory with a lock of its own.

So no append waits for one, and the session's directory, by which a writer tells that nothing has happened to its log,
does not change.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading

import orjson

from ..protocol import LockTimeout, LogCorrupt, RecordChanged, crc32, row_seed
from ._files import replace_file
from ._layout import LOCK, QUARANTINE, RECORD, RECORDS, session_dir
from ._lifetime import LifetimeFile, with_room
from ._lock import FileLockGuard
from ._log_reader import FileEnv
from ._logging import Logger
from ._sealed import SEALED_BYTES_MAX, sealed, unsealed
from ._store import Finding, Record

__all__ = ["RecordFiles"]

_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    name: str
    record: Record


class RecordFiles:
    """The records of one session. Safe from any thread."""

    def __init__(self, env: FileEnv, session_id: str, session_path: str, log: Logger) -> None:
        self._env = env
        self._files = env.files
        self._session_id = session_id
        self._session_path = session_path
        self._path = os.path.join(session_path, RECORDS)
        self._seed = row_seed(session_id)
        self._lifetime = LifetimeFile(env.files, session_id, session_path)
        self._log = log
        self._mutex = threading.Lock()
        self._is_placed = False

    def load(self, name: str) -> Record | None:
        """Return a record, or None; see ``EventStore.load_record``."""
        found = self._read(self._file_name(name))
        self._refuse_deleted()
        return None if found is None else found.record

    def load_all(self) -> dict[str, Record]:
        """Return all records; see ``EventStore.records``."""
        found = [self._read(file_name) for file_name in self._file_names()]
        self._refuse_deleted()
        return {each.name: each.record for each in sorted(filter(None, found), key=lambda each: each.name)}

    def save(self, name: str, data: bytes | None, version: int) -> int:
        """Replace a record or remove it; see ``EventStore.save_record``."""
        file_name = self._file_name(name)
        self._refuse_deleted()
        with self._mutex:
            self._place()
            lock = self._locked()
            try:
                self._refuse_deleted()  # who deletes the session takes this lock after saying so
                found = self._read(file_name)
                known = 0 if found is None else found.record.version
                if known != version:
                    raise RecordChanged(session_id=self._session_id, name=name, version=known)
                if data is not None:
                    put = functools.partial(self._put, file_name, name, data, version + 1)
                    with_room(self._files, self._session_path, put)
                elif found is not None:
                    self._files.unlink(os.path.join(self._path, file_name))
                    self._sync_dir(self._path)
            finally:
                lock.close()
        return 0 if data is None else version + 1

    def remove_all(self) -> None:
        """Remove every record of a session that was deleted.

        Raises:
            LockTimeout: somebody holds the lock of the records.
        """
        try:
            self._files.stat(self._path)
        except FileNotFoundError:
            return
        with self._mutex:
            lock = self._locked()
            try:
                for name in self._files.listdir(self._path):
                    if name != LOCK:
                        self._files.unlink(os.path.join(self._path, name))
                self._sync_dir(self._path)
            finally:
                lock.close()

    def verify(self) -> list[Finding]:
        """Return what is wrong with the records."""
        findings: list[Finding] = []
        for file_name in self._file_names():
            try:
                self._read(file_name)
            except LogCorrupt as error:
                findings.append(
                    Finding(
                        session_id=self._session_id,
                        kind="damage",
                        detail=str(error),
                        harmless=False,
                        place=f"{RECORDS}/{file_name}:0",
                    )
                )
        return findings

    def repair(self, *, dry_run: bool) -> list[str]:
        """Put damaged records aside, and return a sentence for each."""
        damaged = [finding.place or "" for finding in self.verify()]
        if damaged and not dry_run:
            quarantine = os.path.join(self._session_path, QUARANTINE)
            with self._mutex:
                lock = self._locked()
                try:
                    self._files.mkdir(quarantine)
                    for place in damaged:
                        file_name = place.rpartition(":")[0].rpartition("/")[2]
                        kept = os.path.join(quarantine, f"{file_name}.{self._env.clock.time_ns()}")
                        self._files.rename(os.path.join(self._path, file_name), kept)
                        self._log.warning("record_put_aside", record=file_name, kept=os.path.basename(kept))
                    for directory in (quarantine, self._session_path, self._path):
                        self._sync_dir(directory)
                finally:
                    lock.close()
        return [f"{place}: put the damaged record aside" for place in damaged]

    # -- one file -----------------------------------------------------------------------------------------------

    @staticmethod
    def _file_name(name: str) -> str:
        return session_dir(name) + RECORD

    def _file_names(self) -> list[str]:
        try:
            return sorted(name for name in self._files.listdir(self._path) if name.endswith(RECORD))
        except FileNotFoundError:
            return []

    def _read(self, file_name: str) -> _Found | None:
        try:
            fd = self._files.open(os.path.join(self._path, file_name), write=False)
        except FileNotFoundError:
            return None
        try:
            line, newline, _ = self._files.read(fd, SEALED_BYTES_MAX, 0).partition(b"\n")
            members = unsealed(line, self._seed) if newline else None
            if members is None or (members.get("logmark"), members.get("v")) != ("record", _VERSION):
                raise self._damaged(file_name, "its first line is damaged, or another session's")
            data = self._files.read(fd, int(members["bytes"]) + 1, len(line) + 1)
        finally:
            self._files.close(fd)
        if len(data) != members["bytes"] or f"{crc32(data):08x}" != members["data_crc"]:
            raise self._damaged(file_name, "its data are damaged")
        if self._file_name(members["name"]) != file_name:
            raise self._damaged(file_name, f"it is the record {members['name']!r}")
        return _Found(members["name"], Record(data, members["version"]))

    def _damaged(self, file_name: str, reason: str) -> LogCorrupt:
        return LogCorrupt(
            session_id=self._session_id,
            reason=f"the record in {file_name} cannot be trusted: {reason}",
            event_seq=None,
            segment=f"{RECORDS}/{file_name}",
            offset=0,
        )

    def _put(self, file_name: str, name: str, data: bytes, version: int) -> None:
        members = {
            "session": self._session_id,
            "name": name,
            "version": version,
            "bytes": len(data),
            "data_crc": f"{crc32(data):08x}",
        }
        line = sealed(b'{"logmark":"record","v":%d,' % _VERSION + orjson.dumps(members)[1:-1], self._seed)
        path = os.path.join(self._path, file_name)
        sync = self._files.sync if self._env.sync else None
        replace_file(self._files, path, line + data, fresh=path + ".new", sync=sync)
        self._sync_dir(self._path)

    # -- the directory ------------------------------------------------------------------------------------------

    def _place(self) -> None:
        """Make the directories, and their names durable, also when whoever made them died before that."""
        if self._is_placed:
            return
        self._files.mkdir(self._session_path)
        self._files.mkdir(self._path)
        self._sync_dir(os.path.dirname(self._session_path))
        self._sync_dir(self._session_path)
        self._is_placed = True

    def _sync_dir(self, path: str) -> None:
        if self._env.sync:
            self._files.sync_dir(path)

    def _locked(self) -> FileLockGuard:
        lock = FileLockGuard(self._files, os.path.join(self._path, LOCK))
        wait_s = self._env.limits.lock_wait_s
        try:
            if lock.acquire(self._env.clock, wait_s):
                return lock
            raise LockTimeout(session_id=self._session_id, waited_s=wait_s, holder_pid=lock.holder_pid())
        except BaseException:
            lock.close()
            raise

    def _refuse_deleted(self) -> None:
        lifetime = self._lifetime.read_or_default()
        if lifetime.deleted_at is not None:
            raise self._lifetime.deleted(lifetime)
