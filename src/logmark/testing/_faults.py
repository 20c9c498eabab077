"""What goes wrong and when: scripts that strike the n-th operation of a kind, and chance from a seed."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import os
import random
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

__all__ = ["OPERATIONS", "Crashed", "Faults", "Operation", "Struck"]

OPERATIONS = (
    "open",
    "close",
    "read",
    "write",
    "sync",
    "truncate",
    "stat",
    "fstat",
    "rename",
    "unlink",
    "mkdir",
    "listdir",
    "sync_dir",
    "lock",
    "unlock",
)
"""The operations of ``logmark.storage.Files`` by name."""

_ERRORS_AT_RANDOM: Mapping[str, tuple[int, ...]] = {
    "open": (errno.EMFILE, errno.EIO, errno.ENOSPC),
    "read": (errno.EIO,),
    "write": (errno.ENOSPC, errno.ENOSPC, errno.EIO, errno.EDQUOT),
    "sync": (errno.EIO, errno.ENOSPC),
    "truncate": (errno.EIO,),
    "rename": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO,),
    "mkdir": (errno.ENOSPC, errno.EIO),
    "listdir": (errno.EIO,),
    "sync_dir": (errno.EIO,),
}


class Crashed(BaseException):
    """The process has died here. Not an ``Exception``: no handler of the program under test outlives its process."""


class Operation(NamedTuple):
    """One call, as it is recorded.

    Attributes:
        process: number of the process that made it, from 1.
        name: one of ``OPERATIONS``.
        path: the path, also for a call that was given a descriptor; of a rename the target.
        offset: of a read or write, else None.
        size: bytes asked for or, of a write that was made, taken; a truncation's size; else None.
        error: errno when it failed, else None.
    """

    process: int
    name: str
    path: str
    offset: int | None = None
    size: int | None = None
    error: int | None = None


_Hook: TypeAlias = Callable[[Operation], object]


@dataclasses.dataclass(slots=True)
class Struck:
    """What is to happen to one operation.

    Attributes:
        crash: the process dies before it.
        hooks: to be called before it.
        error: errno that it fails with, or None.
        size: bytes that a write takes, or None for all.
    """

    crash: bool = False
    hooks: list[_Hook] = dataclasses.field(default_factory=list[_Hook])
    error: int | None = None
    size: int | None = None


@dataclasses.dataclass(slots=True)
class _Script:
    name: str | None
    countdown: int
    path: str | None
    times: int | None
    error: int | None = None
    size: int | None = None
    hook: _Hook | None = None
    crash: bool = False

    def strikes(self, operation: Operation) -> bool:
        if self.name not in {None, operation.name}:
            return False
        if self.path is not None and not fnmatch.fnmatchcase(os.path.basename(operation.path), self.path):
            return False
        self.countdown -= 1
        if self.countdown > 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class _Chance:
    rng: random.Random
    failure_rate: float
    short_rate: float
    crash_rate: float

    def strike(self, operation: Operation, struck: Struck) -> None:
        draw = self.rng.random()
        errors = _ERRORS_AT_RANDOM.get(operation.name)
        if draw < self.crash_rate:
            struck.crash = True
        elif errors is not None and draw < self.crash_rate + self.failure_rate:
            struck.error = self.rng.choice(errors)
        elif operation.name == "write" and operation.size and 1.0 - draw < self.short_rate:
            struck.size = self.rng.randrange(operation.size)


class Faults:
    """The plan of one process's faults. Safe from any thread.

    The plan is made of scripts, each counting the operations that match it from the moment it is given, and of chance.
    """

    def __init__(self) -> None:
        self._plan_mutex = threading.Lock()
        self._scripts: list[_Script] = []
        self._chance: _Chance | None = None

    def fail(
        self, name: str, n: int = 1, *, error: int = errno.EIO, path: str | None = None, times: int | None = 1
    ) -> None:
        """Make an operation raise ``OSError``. Nothing is done then; for a sync see ``FileNode.fail_sync``.

        Args:
            name: the operation.
            n: which one from now on, counted from 1 over those that match.
            error: the errno.
            path: a pattern, as in a shell, for the last part of the path; None for any.
            times: how many in a row; None until ``heal``.

        Raises:
            ValueError: there is no such operation.
        """
        self._plan(_Script(_known(name), n, path, times, error=error))

    def short(self, name: str, n: int = 1, *, size: int, path: str | None = None, times: int | None = 1) -> None:
        """Make the n-th ``write`` from now on take only ``size`` bytes; the arguments are those of ``fail``."""
        if name != "write":  # the seam's read is full by contract, and nothing else takes a part
            message = f"only a write can be short, not {name!r}"
            raise ValueError(message)
        self._plan(_Script(name, n, path, times, size=size))

    def call(
        self, name: str | None, hook: Callable[[Operation], object], n: int = 1, *, path: str | None = None
    ) -> None:
        """Call ``hook`` just before an operation, in the thread that makes it; it may wait, or raise in its place.

        No lock is held meanwhile. ``name`` None means any operation; the other arguments are those of ``fail``.
        """
        self._plan(_Script(None if name is None else _known(name), n, path, 1, hook=hook))

    def crash(self, name: str | None = None, n: int = 1, *, path: str | None = None) -> None:
        """Let the process die just before an operation (``name`` None: any): that one and all after it raise Crashed.

        As after a SIGKILL, its locks are gone and what it wrote is in the page cache.
        """
        self._plan(_Script(None if name is None else _known(name), n, path, 1, crash=True))

    def fail_at_random(
        self, rng: random.Random, *, failure_rate: float = 0.0, short_rate: float = 0.0, crash_rate: float = 0.0
    ) -> None:
        """Let chance decide on each operation from now on; one seed gives one course of events.

        Args:
            rng: the chance; asked once or twice for each operation, so one thread should make them all.
            failure_rate: how likely an operation is to fail with an error that a disk may give.
            short_rate: how likely a write is to take only a part.
            crash_rate: how likely the process is to die before an operation.
        """
        self._chance = _Chance(rng, failure_rate, short_rate, crash_rate)

    def heal(self) -> None:
        """Forget every script and all chance; a process that is dead stays dead."""
        with self._plan_mutex:
            self._scripts.clear()
            self._chance = None

    def _plan(self, script: _Script) -> None:
        with self._plan_mutex:
            self._scripts.append(script)

    def _strike(self, operation: Operation) -> Struck:
        """Count an operation, and return what is to happen to it."""
        struck = Struck()
        with self._plan_mutex:
            for script in self._scripts:
                if script.strikes(operation):
                    struck.crash |= script.crash
                    if script.hook is not None:
                        struck.hooks.append(script.hook)
                    struck.error = script.error if struck.error is None else struck.error
                    struck.size = script.size if struck.size is None else struck.size
            self._scripts = [script for script in self._scripts if script.times != 0]
            if self._chance is not None:
                self._chance.strike(operation, struck)
        return struck


def _known(name: str) -> str:
    if name not in OPERATIONS:
        message = f"no operation {name!r}: {', '.join(OPERATIONS)}"
        raise ValueError(message)
    return name
