"""A disk in memory that keeps what is durable apart from what is only cached.

The model is the one of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI'14), with nothing promised
that POSIX does not promise: a sync makes one file's data and size durable and says nothing of its name; names become
durable with a sync of their directory; until then each write, truncation, creation, rename and removal may reach the
disk or not, in any order, and a rename wholly or not at all. ``_power_cut.py`` lists the states that this allows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import threading
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

__all__ = [
    "PAGE_BYTES",
    "Change",
    "DirectoryImage",
    "DirectoryNode",
    "Disk",
    "DiskImage",
    "DiskState",
    "EntryChange",
    "FileImage",
    "FileNode",
    "Truncation",
    "Write",
    "applied",
    "parts_of",
]

PAGE_BYTES = 4096
"""What the page cache writes back at once."""
ROOT_INO = 1

DiskState: TypeAlias = Mapping[str, bytes | None]
"""What a disk holds after a power cut: absolute paths, with the content of files and None for directories."""


class Write(NamedTuple):
    """Bytes that were written at an offset."""

    offset: int
    data: bytes


class Truncation(NamedTuple):
    """A file was cut, or extended with NULs."""

    size: int


Change: TypeAlias = Write | Truncation


class EntryChange(NamedTuple):
    """One atomic change of a directory: a name that goes, a name that comes, or both at once in a rename."""

    removed: str | None
    added: str | None
    ino: int


class FileImage(NamedTuple):
    """A file at one moment.

    Attributes:
        durable: what a power cut certainly leaves.
        cached: what a read returns.
        forgotten: changes whose sync failed. The system holds their pages for clean and will never write them again,
            unless something else is written to the same page; whether they are on the disk, nobody knows.
        pending: changes since the last sync.
        locked: a descriptor holds the file's lock.
    """

    durable: bytes
    cached: bytes
    forgotten: tuple[Change, ...] = ()
    pending: tuple[Change, ...] = ()
    locked: bool = False


class DirectoryImage(NamedTuple):
    """A directory at one moment; ``durable`` and ``cached`` are its names with their inodes."""

    durable: tuple[tuple[str, int], ...]
    cached: tuple[tuple[str, int], ...]
    pending: tuple[EntryChange, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class DiskImage:
    """A disk at one moment, by inode; nothing in it changes any more."""

    files: Mapping[int, FileImage]
    directories: Mapping[int, DirectoryImage]

    def __hash__(self) -> int:
        """Hash by content."""
        return hash((frozenset(self.files.items()), frozenset(self.directories.items())))

    @property
    def locked(self) -> bool:
        """Some lock is held."""
        return any(file.locked for file in self.files.values())

    def unlocked(self) -> DiskImage:
        """Return the disk as it is when whoever held a lock has died."""
        if not self.locked:
            return self
        files = {ino: file._replace(locked=False) if file.locked else file for ino, file in self.files.items()}
        return DiskImage(files, self.directories)


def applied(content: bytes, change: Change) -> bytes:
    """Return a file's content after a change."""
    if isinstance(change, Truncation):
        return content[: change.size].ljust(change.size, b"\0")
    offset, data = change
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


@functools.lru_cache(maxsize=4096)
def parts_of(path: str) -> tuple[str, ...]:
    """Return the names that a path consists of; a relative one counts from the root."""
    return tuple(part for part in path.split("/") if part)


class FileNode:
    """A regular file."""

    def __init__(self, ino: int, image: FileImage = FileImage(b"", b"")) -> None:  # noqa: B008 - immutable
        self.ino = ino
        self.cached = bytearray(image.cached)
        self.path = ""
        """The name that it was last opened under or renamed to."""
        self.nlink = 1
        self.lock_holder: int | None = -1 if image.locked else None
        """The descriptor that holds the lock; -1: one that nobody here has."""
        self._durable = image.durable
        self._forgotten = list(image.forgotten)
        self._pending = list(image.pending)
        self._diverged = bool(image.forgotten)
        self._image: FileImage | None = None

    def write(self, data: bytes, offset: int) -> None:
        """Write to the cache."""
        if not data:
            return
        if len(self.cached) < offset:
            self.cached.extend(bytes(offset - len(self.cached)))
        self.cached[offset : offset + len(data)] = data
        self._pending.append(Write(offset, bytes(data)))
        self._image = None

    def truncate(self, size: int) -> None:
        """Cut or extend the cached content."""
        if size < len(self.cached):
            del self.cached[size:]
        else:
            self.cached.extend(bytes(size - len(self.cached)))
        self._pending.append(Truncation(size))
        self._image = None

    def sync(self) -> None:
        """Make what was changed since the last sync durable; what an earlier sync failed to write stays lost."""
        if not self._pending:
            return
        self._durable = self._written_back() if self._diverged else bytes(self.cached)
        self._diverged = self._durable != bytes(self.cached)
        self._pending.clear()
        self._forgotten.clear()
        self._image = None

    def _written_back(self) -> bytes:
        """Return the durable content with the dirty pages and the size written over it."""
        content = self._durable
        dirty: set[int] = set()
        for change in self._pending:
            if isinstance(change, Truncation):
                content = applied(content, change)
            else:
                dirty.update(
                    range(change.offset // PAGE_BYTES, (change.offset + len(change.data) - 1) // PAGE_BYTES + 1)
                )
        content = applied(content, Truncation(len(self.cached)))
        for page in dirty:
            start = page * PAGE_BYTES
            content = applied(content, Write(start, bytes(self.cached[start : start + PAGE_BYTES])))
        return content

    def fail_sync(self) -> None:
        """Do what Linux does when writing back fails: tell it once, and hold the pages for clean from then on."""
        self._forgotten += self._pending
        self._pending.clear()
        self._diverged = True
        self._image = None

    def image(self) -> FileImage:
        """Return the file as it is now."""
        image, locked = self._image, self.lock_holder is not None
        if image is None:
            image = self._image = FileImage(
                self._durable, bytes(self.cached), tuple(self._forgotten), tuple(self._pending), locked
            )
        elif image.locked != locked:
            image = self._image = image._replace(locked=locked)
        return image


_versions = itertools.count(1)


class DirectoryNode:
    """A directory."""

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.cached: dict[str, FileNode | DirectoryNode] = {}
        self._durable: dict[str, FileNode | DirectoryNode] = {}
        self._pending: list[EntryChange] = []
        self._image: DirectoryImage | None = None
        self.version = next(_versions)
        """Another after each change, in place of a time of modification."""

    def restore(self, image: DirectoryImage, nodes: Mapping[int, FileNode | DirectoryNode]) -> None:
        """Fill in the entries of an image; an inode that the image no longer has is one that nothing leads to."""
        self.cached = {name: nodes[ino] for name, ino in image.cached}
        self._durable = {name: nodes[ino] for name, ino in image.durable}
        self._pending = list(image.pending)

    def change(self, removed: str | None, added: str | None, node: FileNode | DirectoryNode) -> None:
        """Change the cached entries."""
        if removed is not None:
            del self.cached[removed]
        if added is not None:
            self.cached[added] = node
        self._pending.append(EntryChange(removed, added, node.ino))
        self._image = None
        self.version = next(_versions)

    def sync(self) -> None:
        """Make the names durable."""
        if self._pending:
            self._durable = dict(self.cached)
            self._pending.clear()
            self._image = None

    def image(self) -> DirectoryImage:
        """Return the directory as it is now."""
        image = self._image
        if image is None:
            image = self._image = DirectoryImage(
                tuple((name, node.ino) for name, node in self._durable.items()),
                tuple((name, node.ino) for name, node in self.cached.items()),
                tuple(self._pending),
            )
        return image


class Disk:
    """Files and directories by inode, shared by every process that works on them. Whoever touches it holds ``mutex``.

    Args:
        content: what is on the disk, durable; directories that a path needs come into being with it.
    """

    def __init__(self, content: DiskState | None = None) -> None:
        self.mutex = threading.Lock()
        self.root = DirectoryNode(ROOT_INO)
        self.nodes: dict[int, FileNode | DirectoryNode] = {ROOT_INO: self.root}
        self.next_fd = 3
        self._processes = 0
        self._next_ino = ROOT_INO + 1
        self._fill(content or {})

    def _fill(self, content: DiskState) -> None:
        for path, data in content.items():
            directory = self.root
            *parents, name = parts_of(path)
            for parent in parents if data is not None else (*parents, name):
                found = directory.cached.get(parent)
                if not isinstance(found, DirectoryNode):
                    found = self.new_directory()
                    directory.change(None, parent, found)
                    directory.sync()
                directory = found
            if data is not None:
                directory.change(None, name, self._add(FileNode(self._next_ino, FileImage(data, data))))
                directory.sync()

    def new_process(self) -> int:
        """Return the number of a new process."""
        self._processes += 1
        return self._processes

    def _add(self, node: FileNode) -> FileNode:
        self.nodes[node.ino] = node
        self._next_ino = node.ino + 1
        return node

    def new_file(self) -> FileNode:
        """Return a new empty file that has no name yet."""
        return self._add(FileNode(self._next_ino))

    def new_directory(self) -> DirectoryNode:
        """Return a new empty directory that has no name yet."""
        node = DirectoryNode(self._next_ino)
        self.nodes[node.ino] = node
        self._next_ino += 1
        return node

    def replace(self, content: DiskState) -> None:
        """Hold this content from now on, all of it durable, as after a power cut."""
        self.root = DirectoryNode(ROOT_INO)
        self.nodes = {ROOT_INO: self.root}
        self._fill(content)

    def image(self) -> DiskImage:
        """Return the disk as it is now."""
        files: dict[int, FileImage] = {}
        directories: dict[int, DirectoryImage] = {}
        for ino, node in self.nodes.items():
            if isinstance(node, FileNode):
                files[ino] = node.image()
            else:
                directories[ino] = node.image()
        return DiskImage(files, directories)

    @classmethod
    def of_image(cls, image: DiskImage) -> Disk:
        """Return a disk that is as another was: the same durable, the same cached, the same locks held."""
        disk = cls()
        for ino, file in image.files.items():
            disk.nodes[ino] = FileNode(ino, file)
        for ino in image.directories:
            disk.nodes.setdefault(ino, DirectoryNode(ino))
        linked: set[int] = set()
        for ino, directory in image.directories.items():
            node = disk.nodes[ino]
            if isinstance(node, DirectoryNode):
                node.restore(directory, disk.nodes)
                linked.update(ino for _, ino in directory.cached)
        for node in disk.nodes.values():
            if isinstance(node, FileNode) and node.ino not in linked:
                node.nlink = 0
        disk._next_ino = max(disk.nodes) + 1
        return disk
