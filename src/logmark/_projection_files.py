"""Projections whose view is a file: appended to, or replaced as a whole."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import orjson

from ._projection import Checkpoint, Projection
from .protocol import ForkedRuntime, InvalidArgument, ProjectionBusy, StorageUnavailable, crc32
from .storage import Files, OsFiles, replace_file, write_all

if TYPE_CHECKING:
    from ._session import Session

__all__ = ["FileProjection", "ObjectProjection"]

_CHUNK_BYTES = 1024 * 1024
_CHECKPOINT_BYTES_MAX = 64 * 1024
_PENDING_BYTES_MAX = 8 * 1024 * 1024


class _OnFiles(Projection):
    """What both kinds share: a path, a lock beside it, and files that are replaced whole."""

    def __init__(
        self,
        session: Session,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        from_seq: int = 1,
        files: Files | None = None,
    ) -> None:
        self.path: str = os.path.abspath(os.fspath(path))
        super().__init__(session, os.path.basename(self.path) if name is None else name, from_seq=from_seq)
        self._files = files or OsFiles()
        self._lock_fd: int | None = None

    def _lock(self) -> None:
        """Keep other processes, and other projections of this one, from the view."""
        if self._lock_fd is not None:
            return
        files = self._files
        fd = files.open(f"{self.path}.lock", write=True, create=True)
        try:
            if not files.lock(fd):
                raise ProjectionBusy(session_id=self.session.session_id, name=self.name, path=self.path)
        except BaseException:
            files.close(fd)
            raise
        self._lock_fd = fd

    def _read(self, path: str, bytes_max: int) -> bytes | None:
        try:
            fd = self._files.open(path, write=False)
        except FileNotFoundError:
            return None
        try:
            return self._files.read(fd, bytes_max, 0)
        finally:
            self._files.close(fd)

    def _replace(self, path: str, members: Mapping[str, Any]) -> None:
        """Put a JSON object with its checksum in place of a file, durably."""
        body = orjson.dumps(members, option=orjson.OPT_SORT_KEYS)
        line = b'{"crc":"%08x","body":%b}\n' % (crc32(body), body)
        replace_file(self._files, path, line, fresh=f"{path}.new", sync=self._files.sync)
        self._files.sync_dir(os.path.dirname(path))

    def _checked(self, data: bytes) -> dict[str, Any]:
        """Return the object in what ``_replace`` has written.

        Raises:
            ValueError: it is not whole.
        """
        members = orjson.loads(data)
        if not isinstance(members, dict) or not isinstance(members.get("body"), dict):  # pyright: ignore[reportUnknownMemberType]
            raise ValueError("the checkpoint is damaged")  # noqa: TRY004 - it is what was read, not what was passed
        body = cast("dict[str, Any]", members["body"])
        if b'"crc":"%08x"' % crc32(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)) not in data[:20]:
            raise ValueError("the checkpoint is damaged: its checksum does not agree")
        return body

    def _failed(self, error: OSError) -> StorageUnavailable:
        reason = f"the view of projection {self.name!r}: {error.strerror or error}"
        return StorageUnavailable(store=self.path, reason=reason, errno=error.errno)

    def release(self) -> None:
        """Let go of the lock."""
        fd, self._lock_fd = self._lock_fd, None
        if fd is None:
            return
        try:
            self._runtime.check_process()
            self._files.unlock(fd)
        except ForkedRuntime:  # it is the parent's lock
            pass
        finally:
            self._files.close(fd)


class FileProjection(_OnFiles):
    """A view that is a file which only grows: a transcript, a CSV, an index. ``apply`` calls ``write``.

    Beside the file stand ``….checkpoint``, which says how many of its bytes are covered and their checksum, and
    ``….lock``. New bytes are written and synced before the checkpoint is replaced. Whoever opens the projection reads
    the covered bytes once and compares the checksum; what stands behind them is cut off.

    Args:
        session: whose events.
        path: the file.
        name: of the projection; by default the file's.
        from_seq: as for ``Projection``.
        files: the file seam, for tests.
    """

    def __init__(
        self,
        session: Session,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        from_seq: int = 1,
        files: Files | None = None,
    ) -> None:
        super().__init__(session, path, name, from_seq=from_seq, files=files)
        self._checkpoint_path = f"{self.path}.checkpoint"
        self._fd: int | None = None
        self._covered = 0
        self._crc = 0
        self._new = bytearray()
        self._event_start = 0

    def write(self, data: bytes | str) -> None:
        """Add to the file; for ``apply``. It is on the disk when the events so far are saved."""
        if not isinstance(cast("object", data), bytes | str):
            message = f"a view is written as text or bytes, not {data!r}"
            raise InvalidArgument(message)
        self._new += data.encode() if isinstance(data, str) else data

    def start_event(self) -> None:
        """See ``Projection.start_event``."""
        self._event_start = len(self._new)

    def discard(self) -> bool:
        """See ``Projection.discard``."""
        del self._new[self._event_start :]
        return True

    def is_full(self) -> bool:
        """See ``Projection.is_full``."""
        return len(self._new) >= _PENDING_BYTES_MAX

    def load(self) -> Checkpoint | None:
        """See ``Projection.load``."""
        self._new.clear()
        self._event_start = 0
        try:
            self._lock()
            if self._fd is None:
                self._fd = self._files.open(self.path, write=True, create=True)
            data = self._read(self._checkpoint_path, _CHECKPOINT_BYTES_MAX)
            if data is None:
                return None
            checkpoint = Checkpoint.decode(orjson.dumps(self._checked(data)))
            self._restore(self._fd, checkpoint)
        except OSError as error:
            raise self._failed(error) from error
        return checkpoint

    def _restore(self, fd: int, checkpoint: Checkpoint) -> None:
        """Cut the file to what the checkpoint covers, if that is there."""
        covered, crc = checkpoint.output.get("bytes"), checkpoint.output.get("crc")
        if type(covered) is not int or type(crc) is not int or covered < 0:
            raise ValueError("the checkpoint does not say what it covers")
        size = self._files.fstat(fd).st_size
        if size < covered:
            raise ValueError(f"the view has {size} bytes, the checkpoint covers {covered}")
        found, offset = 0, 0
        while offset < covered:
            data = self._files.read(fd, min(_CHUNK_BYTES, covered - offset), offset)
            if not data:
                raise ValueError("the view is shorter than it was a moment ago")
            found = crc32(data, found)
            offset += len(data)
        if found != crc:
            raise ValueError("the view is not what it was: its checksum does not agree")
        if size > covered:
            self._log.info("projection_cut", projection=self.name, bytes=size - covered)
            self._files.truncate(fd, covered)
        self._covered, self._crc = covered, crc

    def begin(self) -> None:
        """See ``Projection.begin``. First the checkpoint goes, durably, so that it never stands beside another view."""
        self._new.clear()
        self._event_start, self._covered, self._crc = 0, 0, 0
        try:
            try:
                self._files.unlink(self._checkpoint_path)
            except FileNotFoundError:
                pass
            else:
                self._files.sync_dir(os.path.dirname(self.path))
            self._files.truncate(self._opened(), 0)
        except OSError as error:
            raise self._failed(error) from error

    def save(self, checkpoint: Checkpoint) -> None:
        """See ``Projection.save``."""
        new = bytes(self._new)
        try:
            fd = self._opened()
            write_all(self._files, fd, new, self._covered)
            self._files.sync(fd)
            covered, crc = self._covered + len(new), crc32(new, self._crc)
            saved = dataclasses.replace(checkpoint, output={"bytes": covered, "crc": crc})
            self._replace(self._checkpoint_path, orjson.loads(saved.encode()))
        except OSError as error:
            raise self._failed(error) from error
        self._covered, self._crc = covered, crc
        self._new.clear()
        self._event_start = 0

    def _opened(self) -> int:
        if self._fd is None:
            raise OSError(errno.EBADF, "the view is not open")
        return self._fd

    def release(self) -> None:
        """Close the file and let go of the lock."""
        fd, self._fd = self._fd, None
        try:
            if fd is not None:
                self._files.close(fd)
        finally:
            super().release()


class ObjectProjection(_OnFiles):
    """A view that is one JSON value, ``state``, kept in a file together with its checkpoint and replaced as a whole.

    For counters, tables of a moderate size, the state of a conversation: whatever is read as one. Saving it costs as
    much as it is large; ``commit_events_max`` says how often.

    Args:
        session: whose events.
        path: the file.
        name: of the projection; by default the file's.
        from_seq: as for ``Projection``.
        files: the file seam, for tests.
    """

    state_bytes_max: ClassVar[int] = 256 * 1024 * 1024
    """The largest file that is read."""

    state: Any = None
    """The view; of no use before ``catch_up``."""

    def initial(self) -> Any:
        """Return the state before the first event; here an empty dict."""
        return {}

    def begin(self) -> None:
        """See ``Projection.begin``."""
        self.state = self.initial()

    def load(self) -> Checkpoint | None:
        """See ``Projection.load``."""
        try:
            self._lock()
            data = self._read(self.path, self.state_bytes_max)
        except OSError as error:
            raise self._failed(error) from error
        if data is None:
            return None
        members = self._checked(data)
        checkpoint = Checkpoint.decode(orjson.dumps(members.get("checkpoint")))
        self.state = members.get("state")
        return checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """See ``Projection.save``."""
        try:
            self._replace(self.path, {"checkpoint": orjson.loads(checkpoint.encode()), "state": self.state})
        except TypeError as error:  # orjson's word for a value that has no JSON form
            raise InvalidArgument(f"the state of projection {self.name!r} has no JSON form: {error}") from error
        except OSError as error:
            raise self._failed(error) from error
