"""The file seam: every operation that the file engine makes on the file system, and nothing else.

Tests and the simulator put a faulty implementation in this place. Methods raise ``OSError`` as the system does.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from typing import Protocol

from filelock import lock_descriptor, unlock_descriptor

__all__ = ["FileStat", "Files", "OsFiles", "make_file", "replace_file", "write_all"]


class FileStat(Protocol):
    """What the engine asks of ``os.stat_result``."""

    @property
    def st_size(self) -> int:
        """Bytes."""
        ...

    @property
    def st_ino(self) -> int:
        """The inode."""
        ...

    @property
    def st_dev(self) -> int:
        """The device that the inode is on."""
        ...

    @property
    def st_nlink(self) -> int:
        """Names that the file has; 0 once it is removed."""
        ...

    @property
    def st_mtime_ns(self) -> int:
        """When a file's data, or a directory's names, were last changed, in nanoseconds since 1970."""
        ...


class Files(Protocol):
    """The operations, one method each. Paths are absolute or relative to the process, descriptors are integers."""

    def open(self, path: str, *, write: bool, create: bool = False, exclusive: bool = False) -> int:
        """Open a regular file, never through a symbolic link, and return its descriptor."""
        ...

    def close(self, fd: int, /) -> None:
        """Close a descriptor."""
        ...

    def read(self, fd: int, size: int, offset: int, /) -> bytes:
        """Return up to ``size`` bytes from ``offset``; fewer only at the end of the file."""
        ...

    def write(self, fd: int, data: bytes, offset: int, /) -> int:
        """Write at ``offset`` and return how many bytes were taken, which may be fewer than given."""
        ...

    def sync(self, fd: int, /) -> None:
        """Make the file's data and size durable."""
        ...

    def truncate(self, fd: int, size: int, /) -> None:
        """Cut the file."""
        ...

    def stat(self, path: str, /) -> FileStat:
        """Look at a path without following a symbolic link."""
        ...

    def fstat(self, fd: int, /) -> FileStat:
        """Look at an open file."""
        ...

    def rename(self, source: str, target: str, /) -> None:
        """Move a file over another, atomically."""
        ...

    def unlink(self, path: str, /) -> None:
        """Remove a file."""
        ...

    def mkdir(self, path: str, /) -> bool:
        """Make a directory that only its owner may enter; False when it is there already."""
        ...

    def listdir(self, path: str, /) -> list[str]:
        """Return the names in a directory."""
        ...

    def sync_dir(self, path: str, /) -> None:
        """Make the names in a directory durable."""
        ...

    def lock(self, fd: int, /) -> bool:
        """Try once to lock the whole file against other descriptors; False when another holds it."""
        ...

    def unlock(self, fd: int, /) -> None:
        """Let go of the lock."""
        ...


def write_all(files: Files, fd: int, data: bytes, offset: int) -> None:
    """Write everything, or raise."""
    written = files.write(fd, data, offset)
    while written < len(data):  # a short write is legal; the error, if there is one, comes with the next call
        more = files.write(fd, data[written:], offset + written)
        if more <= 0:
            raise OSError(errno.ENOSPC, "the file takes no more bytes")
        written += more


def make_file(files: Files, path: str, data: bytes, sync: Callable[[int], None] | None) -> int:
    """Make a file that holds nothing but ``data``, and return its descriptor; what was there is gone.

    Args:
        files: the seam.
        path: where.
        data: its content.
        sync: makes it durable; None leaves that to the caller, or to chance.
    """
    fd = files.open(path, write=True, create=True)
    try:
        files.truncate(fd, 0)
        write_all(files, fd, data, 0)
        if sync is not None:
            sync(fd)
    except BaseException:
        files.close(fd)
        raise
    return fd


def replace_file(
    files: Files, path: str, data: bytes, *, fresh: str | None = None, sync: Callable[[int], None] | None
) -> None:
    """Put a file in place of another: whole, or not at all.

    Args:
        files: the seam.
        path: where.
        data: its content.
        fresh: what it is called until it is whole; by default a name of this thread's own, for files that are made
            without a lock.
        sync: as for ``make_file``. The new name is durable once its directory is synced.
    """
    fresh = fresh or f"{path}.{os.getpid()}.{threading.get_ident()}.new"
    files.close(make_file(files, fresh, data, sync))
    files.rename(fresh, path)


_datasync = getattr(os, "fdatasync", os.fsync)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NON_BLOCK = getattr(os, "O_NONBLOCK", 0)  # so that a FIFO in place of a log fails instead of waiting for a peer


class OsFiles:
    """The operating system's files."""

    __slots__ = ()

    def open(self, path: str, *, write: bool, create: bool = False, exclusive: bool = False) -> int:
        """Open a regular file; a link, FIFO, device or directory in its place is refused."""
        flags = os.O_CLOEXEC | _NO_FOLLOW | _NON_BLOCK | (os.O_RDWR if write else os.O_RDONLY)
        if create:
            flags |= os.O_CREAT
        if exclusive:
            flags |= os.O_EXCL
        fd = os.open(path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return fd

    def close(self, fd: int) -> None:
        """Close a descriptor, which is gone whatever the system says: what an answer rests on was synced before."""
        try:
            os.close(fd)
        except OSError as error:
            if error.errno == errno.EBADF:  # closed twice; anything else is a late word about writes, as on NFS
                raise

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Read fully, as a short read in the middle of a file is legal but useless here."""
        data = os.pread(fd, size, offset)
        while data and len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def stat(self, path: str) -> FileStat:
        """Look at a path without following a symbolic link."""
        return os.lstat(path)

    def mkdir(self, path: str) -> bool:
        """Make a directory with mode 0700."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return False
        return True

    def sync_dir(self, path: str) -> None:
        """Sync a directory's entries."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(fd)
        finally:
            self.close(fd)

    def lock(self, fd: int) -> bool:
        """Try the native lock once; there is no soft fallback, which would not die with its process."""
        return lock_descriptor(fd, blocking=False)

    write = staticmethod(os.pwrite)
    sync = staticmethod(_datasync)
    truncate = staticmethod(os.ftruncate)
    fstat = staticmethod(os.fstat)
    rename = staticmethod(os.replace)
    unlink = staticmethod(os.unlink)
    listdir = staticmethod(os.listdir)
    unlock = staticmethod(unlock_descriptor)
