"""The file engine's files in memory, on a disk that fails, stalls, crashes and loses power when it is told to.

::

    files = FaultyFiles()
    store = FileEventStore("/store", files=files)
    files.fail("sync", error=errno.EIO)           # the next sync fails
    files.short("write", n=2, size=100)           # the second write from now on takes 100 bytes
    files.call("sync", lambda operation: gate.wait())   # the next sync waits
    files.crash("rename")                         # the process dies just before its next rename
    files.restart()                               # as a new process: the page cache survived
    files.power_cut()                             # only what was synced survived
"""

from __future__ import annotations

import dataclasses
import errno
import os
import random
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from ..storage import FileStat
from ._disk import DirectoryNode, Disk, DiskImage, DiskState, FileNode, parts_of
from ._faults import Crashed, Faults, Operation, Struck
from ._power_cut import random_power_cut, synced_state

__all__ = ["FaultyFiles"]

T = TypeVar("T")


class _Stat(NamedTuple):
    st_size: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_mtime_ns: int


@dataclasses.dataclass(slots=True)
class _OpenFile:
    node: FileNode
    write: bool


class FaultyFiles(Faults):
    """One process's view of a disk in memory; implements ``logmark.storage.Files``. Safe from any thread.

    Locks belong to descriptors, as flock's do, and exclude each other between processes and within one. Links do not
    exist here, and nothing is renamed into another directory (EXDEV). What goes wrong is planned with the methods of
    ``Faults``.

    Args:
        content: what the disk holds at the start, durable: paths with the bytes of files and None for directories.
        disk: a disk to work on in place of a new one.

    Attributes:
        disk: the disk.
        operations: every call of every process on this disk so far, in order.
        process: the number of this process in the record; a restart gives another.
    """

    def __init__(self, content: DiskState | None = None, *, disk: Disk | None = None) -> None:
        self.disk = Disk(content) if disk is None else disk
        self.operations: list[Operation] = []
        self._processes: list[FaultyFiles] = []
        self._join()

    def _join(self) -> None:
        """Begin as a new process of the disk."""
        super().__init__()
        self._mutex = self.disk.mutex
        self._open_files: dict[int, _OpenFile] = {}
        self._gone: set[int] = set()
        self._watchers: tuple[Callable[[Operation], object], ...] = ()
        self._crashed = False
        with self._mutex:
            self._processes.append(self)
            self.process = self.disk.new_process()

    def another_process(self) -> FaultyFiles:
        """Return the view of another process on the same disk; what it does stands in the same record."""
        other = FaultyFiles.__new__(FaultyFiles)
        other.disk, other.operations, other._processes = self.disk, self.operations, self._processes
        other._join()
        return other

    def watch(self, watcher: Callable[[Operation], object]) -> None:
        """Call ``watcher`` after each operation of this process, in its thread, with no lock held."""
        self._watchers = (*self._watchers, watcher)

    # -- crashes ------------------------------------------------------------------------------------------------

    @property
    def crashed(self) -> bool:
        """The process has died and was not restarted."""
        return self._crashed

    def restart(self) -> None:
        """End the process, if a crash did not, and begin another: no descriptors, no locks; the page cache survives.

        What was planned with ``fail``, ``call``, … and has not struck yet stays planned.
        """
        with self._mutex:
            self._die()
            self._revive()

    def power_cut(self, choice: DiskState | random.Random | None = None) -> None:
        """Crash the machine and start it again: every process on the disk is a new one.

        Args:
            choice: what the disk kept. None: what was synced and nothing else. A ``random.Random``: any of the states
                that are legal. A mapping: exactly that, such as one of ``power_cut_states``.
        """
        with self._mutex:
            image = self.disk.image()
            if choice is None:
                choice = synced_state(image)
            elif isinstance(choice, random.Random):
                choice = random_power_cut(image, choice)
            for process in self._processes:
                process._die()
                process._revive()
            self.disk.replace(choice)

    def _die(self) -> None:
        for fd, file in self._open_files.items():
            _release(file.node, fd)
        self._gone.update(self._open_files)
        self._open_files.clear()
        self._crashed = True

    def _revive(self) -> None:
        self._crashed = False
        self.process = self.disk.new_process()

    # -- one operation ------------------------------------------------------------------------------------------

    def _before(self, operation: Operation) -> Struck | None:
        """Let planned crashes and hooks happen, and return what else is to happen to the operation."""
        if self._crashed:
            raise Crashed(operation)
        if not self._scripts and self._chance is None:
            return None
        struck = self._strike(operation)
        for hook in struck.hooks:
            hook(operation)
        with self._mutex:
            if struck.crash:
                self._die()
            if self._crashed:  # perhaps while this thread waited in a hook
                raise Crashed(operation)
        return struck

    def _after(self, operation: Operation) -> None:
        self.operations.append(operation)
        for watcher in self._watchers:
            watcher(operation)

    def _run(self, operation: Operation, action: Callable[[], T]) -> T:
        """Carry out an operation that either happens or fails as a whole."""
        struck = self._before(operation)
        try:
            if struck is not None and struck.error is not None:
                raise _os_error(struck.error, operation.path)
            with self._mutex:
                result = action()
        except OSError as error:
            self._after(operation._replace(error=error.errno))
            raise
        self._after(operation)
        return result

    def _file(self, fd: int, *, write: bool = False) -> _OpenFile:
        if self._crashed:
            raise Crashed
        file = self._open_files.get(fd)
        if file is None or (write and not file.write):
            raise _os_error(errno.EBADF, f"descriptor {fd}")
        return file

    def _place(self, path: str) -> tuple[DirectoryNode, str]:
        """Return the directory of a path and the last part; it must exist, the last part need not."""
        parts = parts_of(path)
        if not parts:
            raise _os_error(errno.EISDIR, path)
        directory = self.disk.root
        for part in parts[:-1]:
            found = directory.cached.get(part)
            if found is None:
                raise _os_error(errno.ENOENT, path)
            if not isinstance(found, DirectoryNode):
                raise _os_error(errno.ENOTDIR, path)
            directory = found
        return directory, parts[-1]

    def _find(self, path: str) -> FileNode | DirectoryNode:
        if not parts_of(path):
            return self.disk.root
        directory, name = self._place(path)
        found = directory.cached.get(name)
        if found is None:
            raise _os_error(errno.ENOENT, path)
        return found

    def _find_directory(self, path: str) -> DirectoryNode:
        found = self._find(path)
        if not isinstance(found, DirectoryNode):
            raise _os_error(errno.ENOTDIR, path)
        return found

    # -- the operations of logmark.storage.Files ----------------------------------------------------------------

    def open(self, path: str, *, write: bool, create: bool = False, exclusive: bool = False) -> int:
        """See ``Files.open``."""
        return self._run(
            Operation(self.process, "open", path),
            lambda: self._open(path, write=write, create=create, exclusive=exclusive),
        )

    def _open(self, path: str, *, write: bool, create: bool, exclusive: bool) -> int:
        directory, name = self._place(path)
        node = directory.cached.get(name)
        if node is None:
            if not create:
                raise _os_error(errno.ENOENT, path)
            node = self.disk.new_file()
            directory.change(None, name, node)
        elif create and exclusive:
            raise _os_error(errno.EEXIST, path)
        if isinstance(node, DirectoryNode):
            raise _os_error(errno.EISDIR if write else errno.EINVAL, path)
        fd = self.disk.next_fd
        self.disk.next_fd += 1
        node.path = path
        self._open_files[fd] = _OpenFile(node, write)
        return fd

    def close(self, fd: int) -> None:
        """See ``Files.close``; the descriptor is gone even when this fails, and a lock that it holds with it.

        Never raises ``Crashed``: finalisers call this, where nobody could catch it. A process that dies here finds out
        at its next operation, and what it held is gone already.
        """
        if self._crashed or fd in self._gone:
            return
        file = self._file(fd)
        operation = Operation(self.process, "close", file.node.path)
        try:
            struck = self._before(operation)
        except Crashed:
            return
        error = None if struck is None else struck.error
        with self._mutex:
            _release(file.node, fd)
            self._open_files.pop(fd, None)
        self._after(operation if error is None else operation._replace(error=error))
        if error is not None:
            raise _os_error(error, file.node.path)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """See ``Files.read``."""
        file = self._file(fd)
        return self._run(
            Operation(self.process, "read", file.node.path, offset, size),
            lambda: bytes(file.node.cached[offset : offset + size]),
        )

    def write(self, fd: int, data: bytes, offset: int) -> int:
        """See ``Files.write``."""
        file = self._file(fd, write=True)
        operation = Operation(self.process, "write", file.node.path, offset, len(data))
        struck = self._before(operation)
        if struck is not None:
            if struck.error is not None:
                self._after(operation._replace(error=struck.error))
                raise _os_error(struck.error, file.node.path)
            data = data[: struck.size]
        with self._mutex:
            file.node.write(data, offset)
        self._after(operation._replace(size=len(data)))
        return len(data)

    def sync(self, fd: int) -> None:
        """See ``Files.sync``; after a failure the next sync succeeds, and does not write what this one did not."""
        file = self._file(fd)
        operation = Operation(self.process, "sync", file.node.path)
        struck = self._before(operation)
        error = None if struck is None else struck.error
        with self._mutex:
            if error is None:
                file.node.sync()
            else:
                file.node.fail_sync()
        self._after(operation if error is None else operation._replace(error=error))
        if error is not None:
            raise _os_error(error, file.node.path)

    def truncate(self, fd: int, size: int) -> None:
        """See ``Files.truncate``."""
        file = self._file(fd)
        if not file.write:
            raise _os_error(errno.EINVAL, file.node.path)  # what Linux says of a descriptor that only reads
        self._run(Operation(self.process, "truncate", file.node.path, size=size), lambda: file.node.truncate(size))

    def stat(self, path: str) -> FileStat:
        """See ``Files.stat``."""
        return self._run(Operation(self.process, "stat", path), lambda: _stat_of(self._find(path)))

    def fstat(self, fd: int) -> FileStat:
        """See ``Files.fstat``."""
        file = self._file(fd)
        return self._run(Operation(self.process, "fstat", file.node.path), lambda: _stat_of(file.node))

    def rename(self, source: str, target: str) -> None:
        """See ``Files.rename``."""
        self._run(Operation(self.process, "rename", target), lambda: self._rename(source, target))

    def _rename(self, source: str, target: str) -> None:
        directory, old = self._place(source)
        other, new = self._place(target)
        if directory is not other:
            raise _os_error(errno.EXDEV, target)
        node, replaced = directory.cached.get(old), directory.cached.get(new)
        if node is None:
            raise _os_error(errno.ENOENT, source)
        if isinstance(replaced, DirectoryNode) or (replaced is not None and isinstance(node, DirectoryNode)):
            raise _os_error(errno.EISDIR, target)
        if node is not replaced:
            if replaced is not None:
                replaced.nlink = 0
            directory.change(old, new, node)
            if isinstance(node, FileNode):
                node.path = target

    def unlink(self, path: str) -> None:
        """See ``Files.unlink``."""
        self._run(Operation(self.process, "unlink", path), lambda: self._unlink(path))

    def _unlink(self, path: str) -> None:
        directory, name = self._place(path)
        node = directory.cached.get(name)
        if node is None:
            raise _os_error(errno.ENOENT, path)
        if isinstance(node, DirectoryNode):
            raise _os_error(errno.EISDIR, path)
        node.nlink = 0
        directory.change(name, None, node)

    def mkdir(self, path: str) -> bool:
        """See ``Files.mkdir``."""
        return self._run(Operation(self.process, "mkdir", path), lambda: self._mkdir(path))

    def _mkdir(self, path: str) -> bool:
        if not parts_of(path):
            return False
        directory, name = self._place(path)
        if name in directory.cached:
            return False
        directory.change(None, name, self.disk.new_directory())
        return True

    def listdir(self, path: str) -> list[str]:
        """See ``Files.listdir``; in an order that is nobody's."""
        return self._run(
            Operation(self.process, "listdir", path),
            lambda: sorted(self._find_directory(path).cached, key=lambda name: name[::-1], reverse=True),
        )

    def sync_dir(self, path: str) -> None:
        """See ``Files.sync_dir``; after a failure its changes are still to be synced, as a journal has them."""
        self._run(Operation(self.process, "sync_dir", path), lambda: self._find_directory(path).sync())

    def lock(self, fd: int) -> bool:
        """See ``Files.lock``."""
        file = self._file(fd)
        return self._run(Operation(self.process, "lock", file.node.path), lambda: self._lock(file.node, fd))

    def _lock(self, node: FileNode, fd: int) -> bool:
        if node.lock_holder is None:
            node.lock_holder = fd
        return node.lock_holder == fd

    def unlock(self, fd: int) -> None:
        """See ``Files.unlock``."""
        file = self._file(fd)
        self._run(Operation(self.process, "unlock", file.node.path), lambda: _release(file.node, fd))

    # -- looking from outside -----------------------------------------------------------------------------------

    def image(self) -> DiskImage:
        """Return the disk as it is now: what is durable, what is cached, and what is pending."""
        with self._mutex:
            return self.disk.image()

    def content(self, path: str) -> bytes:
        """Return a file's cached content; no operation, and nothing is recorded."""
        with self._mutex:
            node = self._find(path)
            if isinstance(node, DirectoryNode):
                raise _os_error(errno.EISDIR, path)
            return bytes(node.cached)

    def overwrite(self, path: str, content: bytes) -> None:
        """Put other content in a file's place, cached and durable, as damage or another program would."""
        with self._mutex:
            node = self._find(path)
            if isinstance(node, DirectoryNode):
                raise _os_error(errno.EISDIR, path)
            node.truncate(0)
            node.write(content, 0)
            node.sync()


def _release(node: FileNode, fd: int) -> None:
    if node.lock_holder == fd:
        node.lock_holder = None


def _os_error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _stat_of(node: FileNode | DirectoryNode) -> _Stat:
    if isinstance(node, DirectoryNode):
        return _Stat(0, node.ino, 1, 2, node.version)
    return _Stat(len(node.cached), node.ino, 1, node.nlink, 0)
