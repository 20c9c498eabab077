"""A session's lock: an exclusive native lock on a descriptor that stays open, which dies with its process."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..protocol import Clock
from ._files import Files
from ._patience import WouldWait, catch_up

__all__ = ["FileLockGuard", "Held"]

_POLL_S_MIN = 0.0002
_POLL_S_MAX = 0.005


class FileLockGuard:
    """The lock file of one session. The file is never removed: a second one under its name would be a second lock."""

    def __init__(self, files: Files, path: str) -> None:
        self._files = files
        self._path = path
        self._fd: int | None = None
        self._named_pid = 0

    def acquire(
        self, clock: Clock, wait_s: float, is_in_place: Callable[[], bool] | None = None, *, patient: bool = True
    ) -> bool:
        """Take the lock; False when another descriptor kept it for ``wait_s`` seconds.

        Args:
            clock: what ``wait_s`` is measured by.
            wait_s: the longest wait.
            is_in_place: asked once the lock is taken; True when it is known that its file is still under its name.
            patient: False to raise ``WouldWait`` instead of waiting.

        Raises:
            WouldWait: it is not to be had at once.
        """
        files = self._files
        deadline: float | None = None
        poll_s = _POLL_S_MIN
        while True:
            if self._fd is None:
                self._fd = files.open(self._path, write=True, create=True)
            if files.lock(self._fd):
                try:
                    in_place = (is_in_place is not None and is_in_place()) or self._is_in_place(self._fd)
                except BaseException:
                    self.close()  # a lock that is kept after a failure would keep everybody out
                    raise
                if in_place:
                    try:
                        self._name_holder()
                    except BaseException:
                        self.close()
                        raise
                    return True
                # The file was taken away: this lock excludes nobody who comes after. Lock the one that is there now.
                self.close()
                self._named_pid = 0
                continue
            if not patient:
                raise WouldWait
            catch_up()
            now = clock.monotonic()
            if deadline is None:
                deadline = now + wait_s
            elif now >= deadline:
                return False
            clock.sleep(min(poll_s, max(deadline - now, _POLL_S_MIN)))
            poll_s = min(poll_s * 2, _POLL_S_MAX)

    def release(self) -> None:
        """Let the next one in."""
        if self._fd is not None:
            try:
                self._files.unlock(self._fd)
            except OSError:
                self.close()  # which lets go of it too: what was done under the lock is done, and not to fail for this
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the descriptor, and with it the lock if it is held."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._files.close(fd)

    def holder_pid(self) -> int | None:
        """Return the process that holds the lock, as far as it can be told; for a message, never for a decision."""
        if self._fd is None:
            return None
        try:
            inode = self._files.fstat(self._fd).st_ino
            with open("/proc/locks", encoding="ascii") as locks:
                for line in locks:
                    # Number, kind, mode, access, process, device and inode, range; of a FLOCK the process that took it.
                    words = line.split()
                    if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode) and int(words[4]) > 0:
                        return int(words[4])
        except OSError:
            pass  # no /proc here: the name in the file is the next best
        try:
            return int(self._files.read(self._fd, 32, 0))
        except (OSError, ValueError):
            return None

    def _is_in_place(self, fd: int) -> bool:
        """Say whether the path still leads to the locked file; how many further links it has does not matter."""
        try:
            mine, there = self._files.fstat(fd), self._files.stat(self._path)
        except FileNotFoundError:
            return False
        return (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev)

    def _name_holder(self) -> None:
        """Write who holds the lock, once: only a person reads it, where the system has no better word."""
        pid = os.getpid()
        if self._fd is not None and self._named_pid != pid:
            try:
                self._files.write(self._fd, b"%-12d\n" % pid, 0)
            except OSError:
                return  # a full disk, say: raising here would leave the lock held by nobody's append
            self._named_pid = pid


class Held:
    """Something that is entered and left, as a context manager: a generator would cost each append a microsecond."""

    __slots__ = ("_enter", "_leave", "_patient")

    def __init__(self, enter: Callable[..., None], leave: Callable[[], None], *, patient: bool) -> None:
        self._enter = enter
        self._leave = leave
        self._patient = patient

    def __enter__(self) -> None:
        self._enter(patient=self._patient)

    def __exit__(self, *_exc: object) -> None:
        self._leave()
