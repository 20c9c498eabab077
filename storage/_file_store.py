"""The file engine: a directory of session logs, each readable with ``jq`` and ``tail -f``."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import orjson

from ..protocol import (
    Clock,
    Envelope,
    InvalidArgument,
    Limits,
    LogmarkError,
    RawEnvelope,
    StorageUnavailable,
    decode_row,
    row_seed,
)
from ._clock import SystemClock
from ._files import Files, OsFiles, replace_file
from ._layout import HALT, HEAD, segment_first_seq, session_dir, session_id_of
from ._log_reader import FileEnv
from ._logging import get_logger
from ._session_log import SessionLog
from ._store import BatchResult, EventStore, Finding, HaltRecord, SessionBatch, SessionInfo, Snapshot
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
        self._logs: dict[str, SessionLog] = {}
        self._open: OrderedDict[str, SessionLog] = OrderedDict()
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

    def _session_log(self, session_id: str) -> SessionLog:
        with self._mutex:
            if self._closed:
                raise StorageUnavailable(store=self.url, reason="the store is closed")
            log = self._logs.get(session_id)
            if log is None:
                path = os.path.join(self._sessions_path, session_dir(session_id))
                log = self._logs[session_id] = SessionLog(self._env, session_id, path)
            return log

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        """See ``EventStore.append``."""
        results: list[BatchResult] = []
        for batch in batches:
            log = self._session_log(batch.session_id)
            self._keep_open(log)
            results.append(log.append(batch.requests))
        return results

    def _keep_open(self, log: SessionLog) -> None:
        """Count a log as the one used last, and close the one that was used longest ago when there are too many."""
        with self._mutex:
            self._open[log.session_id] = log
            self._open.move_to_end(log.session_id)
            surplus = len(self._open) > self._env.limits.open_sessions_max
            oldest = self._open.popitem(last=False)[1] if surplus else None
        if oldest is not None and not oldest.close(wait=False):
            with self._mutex:  # it is being written to: it is not the one to close
                self._open[oldest.session_id] = oldest

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
            return self._session_log(session_id).position(halted_ok=True).seq

    def info(self, session_id: str) -> SessionInfo:
        """See ``EventStore.info``."""
        log = self._session_log(session_id)
        with self._typed():
            halt = log.halted()
            position = log.position(halted_ok=True)
            return SessionInfo(
                session_id=session_id,
                last_seq=position.seq,
                next_seq=position.through + 1,
                first_seq=log.first_seq(position) if halt is None else min(1, position.seq),
                halted=None if halt is None else halt.reason,
            )

    def load_snapshot(self, session_id: str, name: str) -> Snapshot | None:
        """See ``EventStore.load_snapshot``."""
        log = self._session_log(session_id)
        with self._typed():
            return log.snapshots().load(name, log.position())

    def save_snapshot(self, session_id: str, name: str, snapshot: Snapshot) -> None:
        """See ``EventStore.save_snapshot``."""
        log = self._session_log(session_id)
        with self._typed():
            log.snapshots().save(name, snapshot, log.position())

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
        if not segments and HEAD not in entries and HALT not in entries:
            return None  # all that was ever tried here was rejected
        return session_id_of(name) or self._session_id_inside(name, segments)

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
        return None

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
                if self._session_in(name) is None and self._has_segments(name)
            ]

    def _directories(self) -> list[str]:
        try:
            return self._env.files.listdir(self._sessions_path)
        except FileNotFoundError:
            return []

    def _has_segments(self, name: str) -> bool:
        try:
            entries = self._env.files.listdir(os.path.join(self._sessions_path, name))
        except NotADirectoryError:
            return False
        return any(segment_first_seq(entry) is not None for entry in entries)

    def reserve(self, session_id: str, through_seq: int) -> None:
        """See ``EventStore.reserve``."""
        with self._typed():
            log = self._session_log(session_id)
            self._keep_open(log)
            log.reserve(through_seq)

    def halt(self, session_id: str, reason: str, *, first_event_id: str | None = None) -> None:
        """See ``EventStore.halt``."""
        with self._typed():
            log = self._session_log(session_id)
            self._keep_open(log)
            log.halt(reason, first_event_id)

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
            return verify_session(self._env.files, session_id, log.path, row_seed(session_id), self._env.limits)[0]

    def repair(self, session_id: str, *, dry_run: bool = False) -> list[str]:
        """See ``EventStore.repair``."""
        with self._typed():
            log = self._session_log(session_id)
            try:
                self._env.files.stat(log.path)
            except FileNotFoundError:
                return []
            self._keep_open(log)
            return log.repair(dry_run=dry_run)

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
