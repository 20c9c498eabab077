"""A bad night, made on purpose: a stalled subscriber, a killed process, a failed fsync, and the log that they leave.

    python -m logmark.testing.incident [DIRECTORY]

Three processes work on one real store, ``DIRECTORY/store``, and write one log, ``DIRECTORY/run.log``:

1. the first appends orders to the session ``orders`` while a subscriber does not read; then it is killed (SIGKILL) in
   the middle of a write;
2. the second goes on, until an fsync fails (EIO): the session halts, and what comes next is refused;
3. the third repairs the session, repeats what had no answer, with the same ids, and closes in good order.

``logmark trace DIRECTORY/run.log`` then explains all of it; ``docs/trace.md`` goes through it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TextIO, cast

from .. import AppendUncertain, Limits, SessionHalted, logs
from .._runtime import Runtime
from ..storage import FileEventStore, OsFiles

__all__ = ["ACTS", "main", "play", "play_act"]

SESSION = "orders"
_JOB = "night-shift"
_LIMITS = Limits(subscriber_events_max=4)
_WAIT_S = 60.0


class _Files(OsFiles):
    """Real files, and what may happen to them."""

    def __init__(self) -> None:
        self.is_dying = False
        self.sync_fails = False

    def write(self, fd: int, data: Any, offset: int, /) -> int:
        """Write; of the last write of its life, a half."""
        if not self.is_dying:
            return super().write(fd, data, offset)
        super().write(fd, data[: len(data) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def sync(self, fd: Any, /) -> None:
        """Sync, or fail once."""
        if self.sync_fails:
            self.sync_fails = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(fd)


class _Log:
    """The log's stream; says when a line is there, so that the log is in the same order each time."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - to the end of the process
        self._changed = threading.Condition()
        self._lines: list[str] = []

    def write(self, text: str) -> int:
        """Write a line."""
        with self._changed:
            self._file.write(text)
            self._file.flush()
            self._lines.append(text)
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: each line is written at once."""

    def wait_for(self, *words: str) -> None:
        """Wait until a line with these words was written."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: any(all(word in line for word in words) for line in self._lines), _WAIT_S
            ):
                message = f"no line with {words} in {_WAIT_S} s"
                raise TimeoutError(message)


def _open(directory: str) -> tuple[Runtime, _Files]:
    files = _Files()
    store = FileEventStore(os.path.join(directory, "store"), limits=_LIMITS, files=files)
    return Runtime(store, limits=_LIMITS), files


def _first(directory: str, log: _Log) -> None:
    runtime, files = _open(directory)
    session = runtime.session(SESSION)
    subscription = session.subscribe()
    for number in range(1, 9):
        session.append("order.placed", {"order": number}, id=f"order-{number}", job_id=_JOB)
    log.wait_for("marks_moved", '"through_seq":8')
    log.wait_for("batch_broadcast", '"last_seq":8')
    for _ in range(8):
        subscription.get(_WAIT_S)
    with contextlib.suppress(TimeoutError):
        subscription.get(timeout=0)  # it has caught up
    files.is_dying = True
    session.append_many([("order.placed", {"order": number}) for number in (9, 10)])


def _second(directory: str, log: _Log) -> None:
    runtime, files = _open(directory)
    with runtime:
        session = runtime.session(SESSION)
        session.append("order.placed", {"order": 9}, id="order-9", job_id=_JOB)
        log.wait_for("marks_moved", '"through_seq":9')
        files.sync_fails = True
        with contextlib.suppress(AppendUncertain):
            session.append("order.placed", {"order": 10}, id="order-10", job_id=_JOB)
        with contextlib.suppress(SessionHalted):
            session.append("order.placed", {"order": 11}, id="order-11", job_id=_JOB)


def _third(directory: str, log: _Log) -> None:
    runtime, _ = _open(directory)
    with runtime:
        runtime.store.repair(SESSION)
        session = runtime.session(SESSION)
        for number in (10, 11):
            session.append("order.placed", {"order": number}, id=f"order-{number}", job_id=_JOB)
        log.wait_for("marks_moved", '"through_seq":11')


_ACTS: dict[str, Callable[[str, _Log], None]] = {"first": _first, "second": _second, "third": _third}
ACTS = tuple(_ACTS)
"""What the processes are called, in order."""


def play(directory: str) -> str:
    """Let it happen in an empty directory, and return the path of the log.

    Raises:
        RuntimeError: a process did not end as it should.
    """
    for act in ACTS:
        play_act(directory, act)
    return os.path.join(directory, "run.log")


def play_act(directory: str, act: str) -> None:
    """Let one of the ``ACTS`` happen, after those before it.

    Raises:
        RuntimeError: the process did not end as it should.
    """
    os.makedirs(directory, exist_ok=True)
    command = [sys.executable, "-m", "logmark.testing.incident", directory, "--act", act]
    done = subprocess.run(command, check=False, timeout=_WAIT_S, capture_output=True, text=True)  # noqa: S603
    due = -signal.SIGKILL if act == "first" else 0
    if done.returncode != due:
        message = f"the {act} process ended with {done.returncode} instead of {due}: {done.stderr}"
        raise RuntimeError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description="Make a bad night, and leave its log for logmark trace.")
    parser.add_argument(
        "directory", nargs="?", default="incident", help="an empty or new directory (default: incident)"
    )
    parser.add_argument("--act", choices=_ACTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    log = os.path.join(arguments.directory, "run.log")
    if arguments.act is None:
        if os.path.isdir(arguments.directory) and os.listdir(arguments.directory):
            sys.stderr.write(f"{arguments.directory} is not empty\n")
            return 2
        sys.stdout.write(f"logmark trace {play(arguments.directory)}\n")
        return 0
    stream = _Log(log)
    logs.configure(json=True, level="debug", stream=cast("TextIO", stream))
    _ACTS[arguments.act](arguments.directory, stream)
    return 0


if __name__ == "__main__":
    sys.exit(main())
