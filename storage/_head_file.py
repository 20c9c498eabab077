"""The head of one session as its writer has it: open, with what was last written and what the disk refused."""

from __future__ import annotations

import os
from collections.abc import Callable

from ._files import Files, replace_file, write_all
from ._head import HEAD_BYTES, Head
from ._layout import HEAD
from ._logging import Logger

__all__ = ["HeadFile"]


class HeadFile:
    """The head file. Not thread-safe: used under the session's lock, but for ``newest`` and ``is_open``."""

    __slots__ = ("_fd", "_files", "_line", "_log", "_path", "_seed", "unwritten")

    def __init__(self, files: Files, directory: str, seed: int, log: Logger) -> None:
        self._files = files
        self._path = os.path.join(directory, HEAD)
        self._seed = seed
        self._log = log
        self._fd: int | None = None
        self._line = b""
        self.unwritten: Head | None = None
        """A head that the disk refused to take; it holds in this process all the same."""

    @property
    def fd(self) -> int | None:
        """The descriptor, or None while there is none."""
        return self._fd

    def open(self) -> None:
        """Open the head that is there; what was last written is what it is compared with."""
        self._fd = self._files.open(self._path, write=True)

    def adopt(self, head: Head) -> None:
        """Open the head that is there, and take it for one's own."""
        self.open()
        self._line = head.encode(self._seed)

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._files.close(fd)

    def renew(self, sync: Callable[[int], None] | None) -> None:
        """Put a copy in place of it, so that every process that knows the old one looks at the log again.

        Raises:
            OSError: it is as it was.
        """
        try:
            fd = self._files.open(self._path, write=False)
        except FileNotFoundError:
            return
        try:
            data = self._files.read(fd, HEAD_BYTES, 0)
        finally:
            self._files.close(fd)
        replace_file(self._files, self._path, data, fresh=self._path + ".new", sync=sync)
        self.close()

    def is_as_written(self) -> bool:
        """Say whether it still says what this process last wrote."""
        return self._fd is not None and self._files.read(self._fd, HEAD_BYTES, 0) == self._line

    def is_in_place(self) -> bool:
        """Say whether the open file still has its one name."""
        return self._fd is not None and self._files.fstat(self._fd).st_nlink == 1

    def newest(self, on_disk: Head | None) -> Head | None:
        """Return the head on disk, or the one that the disk has refused if that goes further."""
        unwritten = self.unwritten
        return unwritten if unwritten and (on_disk is None or on_disk.through < unwritten.through) else on_disk

    def write(self, head: Head) -> None:
        """Overwrite it in place; a disk that refuses is logged, and ``unwritten`` keeps the head."""
        line = head.encode(self._seed)
        known = self.unwritten == head
        for attempt in (1, 2):
            try:
                if self._fd is None:
                    self._fd = self._files.open(self._path, write=True, create=True)
                write_all(self._files, self._fd, line, 0)
            except OSError as error:
                # The events are durable, and this process goes on by what it knows; others learn of them with the next
                # append. So it is worth a second attempt, on a descriptor of its own.
                self.unwritten = head
                if attempt > 1 and not known:
                    self._log.warning("head_write_failed", error=str(error), seq=head.seq)
                elif attempt == 1:
                    self.close()
            else:
                self._line = line
                self.unwritten = None
                return
