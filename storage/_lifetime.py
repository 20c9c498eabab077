"""The lifetime file: which events of a session are kept, whether it takes more, and whether it is there at all.

One sealed line in a file that is replaced whole. Without the file everything is available, and nothing has ended. It is
durable before anything is removed on its account, and what it says to be gone is hidden from then on, wherever it still
lies: so a crash leaves one state or the other, and what was not removed yet is removed later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
from collections.abc import Callable

import orjson

from ..protocol import LogCorrupt, SchemaMismatch, SessionDeleted, decode_row, row_seed
from ._files import Files, replace_file
from ._layout import LIFETIME, is_derived
from ._sealed import SEALED_BYTES_MAX, sealed, unsealed

__all__ = ["Lifetime", "LifetimeFile", "session_id_in", "with_room"]

_VERSION = 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_LAST_USED = re.compile(rb'"last_used":([0-9]{1,19})[,}]')
_DELETED_AT = re.compile(rb'"deleted_at":"([^"]*)"')


@dataclasses.dataclass(frozen=True, slots=True)
class Lifetime:
    """How much of a session there is.

    Attributes:
        first_available: the smallest number that can be asked for.
        last_below: number of the last event before that, when it was pruned; it tells the session's last event when
            none is left.
        sealed: it takes no more events.
        deleted_at: RFC 3339 time at which it was deleted, or None.
        last_used: the last number that was used when it was deleted.
    """

    first_available: int = 1
    last_below: int = 0
    sealed: bool = False
    deleted_at: str | None = None
    last_used: int = 0


class LifetimeFile:
    """The lifetime file of one session. Safe from any thread; written under the session's lock."""

    __slots__ = ("_directory", "_files", "_path", "_session_id")

    def __init__(self, files: Files, session_id: str, directory: str) -> None:
        self._files = files
        self._session_id = session_id
        self._directory = directory
        self._path = os.path.join(directory, LIFETIME)

    def read(self) -> Lifetime:
        """Return what the file says.

        Raises:
            LogCorrupt: it is damaged.
            SchemaMismatch: it is of another version.
        """
        data = self._content()
        if data is None:
            return Lifetime()
        line, newline, _ = data.partition(b"\n")
        members = unsealed(line, row_seed(self._session_id)) if newline else None
        if members is None or members.get("logmark") != "lifetime":
            raise LogCorrupt(
                session_id=self._session_id,
                reason="the file that says what is kept of the session is damaged",
                event_seq=None,
                segment=LIFETIME,
                offset=0,
            )
        if members.get("v") != _VERSION:
            raise SchemaMismatch(
                session_id=self._session_id, expected=_VERSION, found=members.get("v"), segment=LIFETIME, offset=0
            )
        return Lifetime(*(members[field.name] for field in dataclasses.fields(Lifetime)))

    def read_or_default(self) -> Lifetime:
        """Return what the file says; what is said without it when it is damaged, for who reads a damaged session."""
        try:
            return self.read()
        except (LogCorrupt, SchemaMismatch):
            return Lifetime()

    def _content(self) -> bytes | None:
        try:
            fd = self._files.open(self._path, write=False)
        except FileNotFoundError:
            return None
        try:
            return self._files.read(fd, SEALED_BYTES_MAX, 0)
        finally:
            self._files.close(fd)

    def write(self, lifetime: Lifetime, *, sync: bool) -> None:
        """Put another state in place of the one there is, durably if ``sync``, with the names in the directory.

        Raises:
            OSError: the disk refused; which of the two is there after a power cut is open when this came last.
        """
        members = {"session": self._session_id} | dataclasses.asdict(lifetime)
        text = b'{"logmark":"lifetime","v":%d,' % _VERSION + orjson.dumps(members)[1:-1]
        line = sealed(text, row_seed(self._session_id))
        replace_file(self._files, self._path, line, fresh=self._path + ".new", sync=self._files.sync if sync else None)
        if sync:
            self._files.sync_dir(self._directory)

    def mended(self, segments: list[int], through: int) -> tuple[Lifetime, str] | None:
        """Return what a repair makes of a damaged file, and a sentence that says so; None when it is sound.

        What it says of an end is believed, as that was meant to be for good. What was pruned and still lies in the
        directory comes back, as that loses nothing.

        Args:
            segments: the first numbers of all segments.
            through: the last number that the head says is used.

        Raises:
            SchemaMismatch: it is of another version, which understands it.
        """
        try:
            self.read()
        except LogCorrupt:
            data = self._content() or b""
        else:
            return None
        first = segments[0] if segments else through + 1
        deleted, used = _DELETED_AT.search(data), _LAST_USED.search(data)
        mended = Lifetime(
            first_available=first,
            last_below=first - 1,
            sealed=b'"sealed":true' in data,
            deleted_at=deleted[1].decode(errors="replace") if deleted else None,
            last_used=max(int(used[1]) if used else 0, through),
        )
        end = "deleted" if mended.deleted_at else "sealed" if mended.sealed else "going on"
        return mended, f"{LIFETIME}: was damaged; events from {first} on are available, the session is {end}"

    def deleted(self, lifetime: Lifetime) -> SessionDeleted:
        """Return the error for a session that was deleted."""
        return SessionDeleted(
            session_id=self._session_id, last_seq=lifetime.last_used, deleted_at=lifetime.deleted_at or ""
        )


def with_room(files: Files, directory: str, write: Callable[[], None]) -> None:
    """Write something small; on a full disk, once more after all that is derived in a session's directory is removed.

    So that there is a way out of a full disk: what is written here is what lets rows go.
    """
    try:
        write()
    except OSError as error:
        derived = [name for name in files.listdir(directory) if is_derived(name)] if error.errno in _FULL else []
        if not derived:
            raise
        for name in derived:
            with contextlib.suppress(FileNotFoundError):
                files.unlink(os.path.join(directory, name))
        write()


def session_id_in(files: Files, directory: str) -> str | None:
    """Return the session that the lifetime file in a directory is of, or None when it does not say so."""
    try:
        fd = files.open(os.path.join(directory, LIFETIME), write=False)
    except FileNotFoundError:
        return None
    try:
        members = decode_row(files.read(fd, SEALED_BYTES_MAX, 0).partition(b"\n")[0]) or {}
    finally:
        files.close(fd)
    found = members.get("session")
    return found if isinstance(found, str) else None
