"""The file engine: a directory of session logs, each readable with ``jq`` and ``tail -f``."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import orjson

from ..protocol import (
    Clock,
    Envelope,
    InvalidArgument,
    Limits,
    LogmarkError,
    RawEnvelope,
    SeqPruned,
    SessionDeleted,
    StorageUnavailable,
    decode_row,
    row_seed,
)
from ._clock import SystemClock
from ._files import Files, OsFiles, replace_file
from ._layout import HALT, HEAD, LIFETIME, segment_first_seq, session_dir, session_id_of
from ._lifetime import LifetimeFile, session_id_in
from ._log_reader import FileEnv
from ._logging import get_logger
from ._session_lifetime import SessionFiles
from ._store import BatchResult, EventStore, Finding, HaltRecord, Record, SessionBatch, SessionInfo, Snapshot
from ._verify import verify_session

__all__ = ["FileEventStore"]

T = TypeVar("T")

_META = "store.json"
_SESSIONS = "sessions"
_STORE_VERSION = 1
_DURABILITIES = ("fsync", "os")


class FileEventStore(EventStore):
    """Sessions as directories of JSONL segments; the format is in ``docs/format.md``.

    Args:
        path: the store's directory.
        limits: the bounds; this engine uses segment_bytes_max, lock_wait_s, read_chunk_bytes and open_sessions_max.
        durability: ``"fsync"``: an append returns after its bytes are on the disk. ``"os"``: after they are in the page
            cache, which survives the process and not the machine.
        create: make the store when there is none; False for tools that only look.
        files, clock: the seams.

    Raises:
        StorageUnavailable: the directory cannot be made or entered, is not a store, or is of a newer version.
    """

    is_local = True
    catches_up = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limits: Limits | None = None,
        durability: str = "fsync",
        create: bool = True,
        files: Files | None = None,
        clock: Clock | None = None,
    ) -> None:
        if durability not in _DURABILITIES:
            message = f"durability is one of {', '.join(_DURABILITIES)}, not {durability!r}"
            raise InvalidArgument(message)
        self._path: str = os.path.abspath(os.fspath(path))
        self.url = f"file:{self._path}"
        self._sessions_path = os.path.join(self._path, _SESSIONS)
        self._env = FileEnv(
            files=files or OsFiles(),
            clock=clock or SystemClock(),
            limits=limits or Limits(),
            sync=durability == "fsync",
            log=get_logger(actor="store"),
        )
        self.log = self._env.log
        self._logs: dict[str, SessionFiles] = {}
        self._open: OrderedDict[str, SessionFiles] = OrderedDict()
        self._mutex = threading.Lock()
        self._closed = False
        self._open_store(create=create)

    def _open_store(self, *, create: bool) -> None:
        meta_path = os.path.join(self._path, _META)
        try:
            meta = self._read_meta(meta_path)
            if meta is None and create:
                self._create_store(meta_path)
                meta = self._read_meta(meta_path)
        except OSError as error:
            raise StorageUnavailable(
                store=self.url, reason=f"cannot be opened: {error.strerror or error}", errno=error.errno
            ) from error
        if meta is None:
            raise StorageUnavailable(store=self.url, reason="there is no store here", errno=errno.ENOENT)
        if meta.get("logmark") != "store" or meta.get("v") != _STORE_VERSION:
            raise StorageUnavailable(
                store=self.url,
                reason=f"expected store version {_STORE_VERSION}, found {meta.get('v')!r};"
                " open it with the version of logmark that made it",
            )

    def _read_meta(self, meta_path: str) -> dict[str, Any] | None:
        files = self._env.files
        try:
            fd = files.open(meta_path, write=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            meta = orjson.loads(files.read(fd, 65_536, 0))
        except orjson.JSONDecodeError as error:
            raise StorageUnavailable(store=self.url, reason=f"{_META} is damaged: {error}") from error
        finally:
            files.close(fd)
        return cast("dict[str, Any]", meta) if isinstance(meta, dict) else {}

    def _create_store(self, meta_path: str) -> None:
        files = self._env.files
        missing: list[str] = []
        parent = self._path
        while True:
            try:
                files.stat(parent)
                break
            except FileNotFoundError:
                missing.append(parent)
                parent = os.path.dirname(parent)
        # Also the one that was there: who made it may have died, or failed, before its name was durable.
        for directory in (parent, *reversed(missing), self._sessions_path):
            files.mkdir(directory)
            try:
                files.sync_dir(os.path.dirname(directory))
            except PermissionError:
                if directory != parent:
                    raise  # else it was made by somebody who may look where this process may not
        replace_file(files, meta_path, orjson.dumps({"logmark": "store", "v": _STORE_VERSION}) + b"\n", sync=files.sync)
        files.sync_dir(self._path)

    def _session_log(self, session_id: str) -> SessionFiles:
        with self._mutex:
            return self._log_of(session_id)

    def _log_of(self, session_id: str) -> SessionFiles:
        """Return a session's log, made if there is none; with the mutex."""
        if self._closed:
            raise StorageUnavailable(store=self.url, reason="the store is closed")
        log = self._logs.get(session_id)
        if log is None:
            path = os.path.join(self._sessions_path, session_dir(session_id))
            log = self._logs[session_id] = SessionFiles(self._env, session_id, path)
        return log

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """See ``EventStore.append``."""
        return [self._opened(batch.session_id).append(batch.requests) for batch in batches]

    def _opened(self, session_id: str) -> SessionFiles:
        """Return a log as the one used last, and close the one that was used longest ago when there are too many."""
        with self._mutex:
            log = self._log_of(session_id)
            self._open[session_id] = log
            self._open.move_to_end(session_id)
            surplus = len(self._open) > self._env.limits.open_sessions_max
            oldest = self._open.popitem(last=False)[1] if surplus else None
        if oldest is not None and not oldest.close(wait=False):
            with self._mutex:  # it is being written to: it is not the one to close
                self._open[oldest.session_id] = oldest
        return log

    def read(
        self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
    ) -> Iterator[RawEnvelope]:
        """See ``EventStore.read``."""
        return RawEnvelope.from_runs(session_id, self._runs(session_id, from_seq, through_seq, halted_ok=halted_ok))

    def read_envelopes(
        self, session_id: str, *, from_seq: int = 1, through_seq: int | None = None, halted_ok: bool = False
    ) -> Iterator[Envelope]:
        """See ``EventStore.read_envelopes``."""
        return Envelope.from_runs(session_id, self._runs(session_id, from_seq, through_seq, halted_ok=halted_ok))

    def _runs(
        self, session_id: str, from_seq: int, through_seq: int | None, *, halted_ok: bool
    ) -> Iterator[tuple[int, list[bytes]]]:
        with self._typed():
            runs = self._session_log(session_id).read(from_seq, through_seq, halted_ok=halted_ok)
        return self._typed_rows(runs)

    def read_backwards(self, session_id: str, *, before_seq: int | None = None) -> Iterator[RawEnvelope]:
        """See ``EventStore.read_backwards``."""
        with self._typed():
            rows = self._session_log(session_id).read_backwards(before_seq)
        return self._typed_rows(rows)

    def _typed(self) -> _Typed:
        return _Typed(self.url)

    def _typed_rows(self, rows: Iterator[T]) -> Iterator[T]:
        with self._typed():
            yield from rows

    def last_seq(self, session_id: str) -> int:
        """See ``EventStore.last_seq``."""
        with self._typed():
            try:
                return self._session_log(session_id).position(halted_ok=True).seq
            except SessionDeleted as error:
                return error.last_seq

    def last_seqs(self, session_ids: Iterable[str]) -> dict[str, int | Exception]:
        """See ``EventStore.last_seqs``."""
        found: dict[str, int | Exception] = {}
        for session_id in session_ids:
            try:
                with self._typed():
                    found[session_id] = self._session_log(session_id).position(halted_ok=True).seq
            except Exception as error:
                found[session_id] = error
        return found

    def ping(self) -> None:
        """See ``EventStore.ping``: reads what says that this directory is a store."""
        with self._typed():
            if self._closed or self._read_meta(os.path.join(self._path, _META)) is None:
                raise StorageUnavailable(store=self.url, reason="there is no store here any more", errno=errno.ENOENT)

    def info(self, session_id: str) -> SessionInfo:
        """See ``EventStore.info``."""
        log = self._session_log(session_id)
        with self._typed():
            while True:
                try:
                    return log.describe()
                except SeqPruned:
                    continue  # while it was looked at: there is a new beginning
                except SessionDeleted as error:
                    return SessionInfo(
                        session_id=session_id,
                        last_seq=error.last_seq,
                        next_seq=error.last_seq + 1,
                        first_available=error.last_seq + 1,
                        deleted=True,
                    )

    def load_snapshot(self, session_id: str, name: str) -> Snapshot | None:
        """See ``EventStore.load_snapshot``."""
        log = self._session_log(session_id)
        with self._typed():
            try:
                return log.snapshots().load(name, log.position())
            except SessionDeleted:
                return None

    def save_snapshot(self, session_id: str, name: str, snapshot: Snapshot) -> None:
        """See ``EventStore.save_snapshot``."""
        log = self._session_log(session_id)
        with self._typed():
            try:
                log.snapshots().save(name, snapshot, log.position())
            except SessionDeleted:
                return

    def load_record(self, session_id: str, name: str) -> Record | None:
        """See ``EventStore.load_record``."""
        with self._typed():
            return self._session_log(session_id).records.load(name)

    def save_record(self, session_id: str, name: str, data: bytes | None, *, version: int) -> int:
        """See ``EventStore.save_record``."""
        with self._typed():
            return self._session_log(session_id).records.save(name, data, version)

    def records(self, session_id: str) -> dict[str, Record]:
        """See ``EventStore.records``."""
        with self._typed():
            return self._session_log(session_id).records.load_all()

    def truncate_before(self, session_id: str, seq: int) -> int:
        """See ``EventStore.truncate_before``."""
        with self._typed():
            return self._opened(session_id).truncate_before(seq)

    def seal(self, session_id: str) -> int:
        """See ``EventStore.seal``."""
        with self._typed():
            return self._opened(session_id).seal()

    def delete(self, session_id: str) -> None:
        """See ``EventStore.delete``."""
        with self._typed():
            self._opened(session_id).delete()

    def sessions(self) -> Iterator[str]:
        """See ``EventStore.sessions``."""
        with self._typed():
            found = [self._session_in(name) for name in self._directories()]
        yield from sorted(session_id for session_id in found if session_id is not None)

    def _session_in(self, name: str) -> str | None:
        """Return the id of the session in a directory, or None when nothing was ever written there."""
        try:
            entries = self._env.files.listdir(os.path.join(self._sessions_path, name))
        except (FileNotFoundError, NotADirectoryError):  # whatever it is, this store has not made it
            return None
        segments = sorted(entry for entry in entries if segment_first_seq(entry) is not None)
        if not segments and not {HEAD, HALT, LIFETIME} & set(entries):
            return None  # all that was ever tried here was rejected
        session_id = session_id_of(name) or self._session_id_inside(name, segments)
        if session_id is not None and LIFETIME in entries and self._is_deleted(name, session_id):
            return None
        return session_id

    def _is_deleted(self, name: str, session_id: str) -> bool:
        directory = os.path.join(self._sessions_path, name)
        return LifetimeFile(self._env.files, session_id, directory).read_or_default().deleted_at is not None

    def _session_id_inside(self, name: str, segments: list[str]) -> str | None:
        """Read the session id from the first line of a segment, for names too long to be reversed."""
        files = self._env.files
        for segment in segments:
            fd = files.open(os.path.join(self._sessions_path, name, segment), write=False)
            try:
                members = decode_row(files.read(fd, 4096, 0).partition(b"\n")[0]) or {}
            finally:
                files.close(fd)
            session_id = members.get("session")
            if isinstance(session_id, str) and session_dir(session_id) == name:
                return session_id
        session_id = session_id_in(files, os.path.join(self._sessions_path, name))
        return session_id if session_id is not None and session_dir(session_id) == name else None

    def verify_store(self) -> list[Finding]:
        """See ``EventStore.verify_store``."""
        with self._typed():
            return [
                Finding(
                    session_id="",
                    kind="damage",
                    detail=f"nothing in the directory {name!r} tells any more which session it is of",
                    harmless=False,
                    place=name,
                )
                for name in sorted(self._directories())
                if self._session_in(name) is None and self._is_nobodys(name)
            ]

    def _directories(self) -> list[str]:
        try:
            return self._env.files.listdir(self._sessions_path)
        except FileNotFoundError:
            return []

    def _is_nobodys(self, name: str) -> bool:
        """Say whether a directory that is not listed has rows all the same, and no tombstone says why."""
        try:
            entries = self._env.files.listdir(os.path.join(self._sessions_path, name))
        except NotADirectoryError:
            return False
        return LIFETIME not in entries and any(segment_first_seq(entry) is not None for entry in entries)

    def reserve(self, session_id: str, through_seq: int) -> None:
        """See ``EventStore.reserve``."""
        with self._typed():
            self._opened(session_id).reserve(through_seq)

    def halt(self, session_id: str, reason: str, *, first_event_id: str | None = None) -> None:
        """See ``EventStore.halt``."""
        with self._typed():
            self._opened(session_id).halt(reason, first_event_id)

    def halted(self, session_id: str) -> HaltRecord | None:
        """See ``EventStore.halted``."""
        with self._typed():
            return self._session_log(session_id).halted()

    def clear_halt(self, session_id: str) -> None:
        """See ``EventStore.clear_halt``."""
        log = self._session_log(session_id)

        def refuse_damage() -> None:
            _, error = verify_session(self._env.files, session_id, log.path, row_seed(session_id), self._env.limits)
            if error is not None:
                raise error

        with self._typed():
            log.clear_halt(refuse_damage)

    def verify(self, session_id: str) -> list[Finding]:
        """See ``EventStore.verify``."""
        log = self._session_log(session_id)
        with self._typed():
            found = verify_session(self._env.files, session_id, log.path, row_seed(session_id), self._env.limits)[0]
            return found + log.records.verify()

    def repair(self, session_id: str, *, dry_run: bool = False) -> list[str]:
        """See ``EventStore.repair``."""
        with self._typed():
            log = self._session_log(session_id)
            try:
                self._env.files.stat(log.path)
            except FileNotFoundError:
                return []
            log = self._opened(session_id)
            return log.repair(dry_run=dry_run) + log.records.repair(dry_run=dry_run)

    def close(self) -> None:
        """See ``EventStore.close``."""
        with self._mutex:
            self._closed = True
            logs = list(self._logs.values())
            self._logs.clear()
            self._open.clear()
        for log in logs:
            log.close()

    def after_fork_in_child(self) -> None:
        """See ``EventStore.after_fork_in_child``."""
        for log in list(self._logs.values()):
            log.drop_lock()


class _Typed:
    """Turns what the operating system says into ``StorageUnavailable``; a class, as it is on the path of every read."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, LogmarkError):
            reason = f"{type(error).__name__}: {error}"
            raise StorageUnavailable(store=self._url, reason=reason, errno=error.errno) from error
