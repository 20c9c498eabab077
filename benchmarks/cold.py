"""What a process that has just started finds: run as ``python -m benchmarks.cold``, prints one JSON object.

``first STORE SESSION SEQ``: open, then the first event from a number on. ``marks STORE SESSION``: open, then the marks
of all jobs. ``idle STORE SESSIONS``: memory, threads and descriptors of sessions that are open and idle.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import orjson

import logmark

from .events import payload
from .participants import EVENT_TYPE

__all__ = ["ask", "main"]

_CALLERS = 16
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# Loaded when first asked for, which is the interpreter's work and not the store's: before any clock starts.
_LOADED = (logmark.Runtime, logmark.Session, logmark.actors, logmark.storage)


def ask(what: str, *arguments: object) -> dict[str, float]:
    """Start a process that answers one question."""
    command = [sys.executable, "-m", "benchmarks.cold", what, *map(str, arguments)]
    found: dict[str, float] = orjson.loads(subprocess.check_output(command, cwd=_ROOT))
    return found


def _first(store: str, session_id: str, seq: int) -> dict[str, float]:
    began = time.perf_counter()
    with logmark.open(store) as runtime:
        opened = time.perf_counter()
        event = next(runtime.session(session_id).read(from_seq=seq))
        found = time.perf_counter()
        if event.event_seq != seq:
            raise SystemExit(f"asked for {seq}, got {event.event_seq}")
    return {"open_ms": (opened - began) * 1000, "first_ms": (found - opened) * 1000}


def _marks(store: str, session_id: str) -> dict[str, float]:
    began = time.perf_counter()
    with logmark.open(store) as runtime:
        session = runtime.session(session_id)
        last = session.last_seq
        opened = time.perf_counter()
        jobs = session.jobs()
        found = time.perf_counter()
        counted = sum(mark.count for mark in jobs)
        if counted != last:
            raise SystemExit(f"the marks count {counted} events of {last}")
    return {"open_ms": (opened - began) * 1000, "marks_ms": (found - opened) * 1000}


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _usage() -> tuple[int, int, int]:
    return _resident_bytes(), threading.active_count(), len(os.listdir("/proc/self/fd"))


def _idle(store: str, sessions: int, *, used: bool) -> dict[str, float]:
    """Open sessions, and append one event to each when they are to have been used."""
    with logmark.open(store, durability="os") as runtime:
        runtime.session("warm").append(EVENT_TYPE, payload(0))
        before = _usage()
        # Ids made beforehand would be counted as well; they are part of a session, so they are.
        opened = [runtime.session(f"session-{number}") for number in range(sessions)]
        if used:
            threads = [
                threading.Thread(target=_append_to, args=(opened[number::_CALLERS],)) for number in range(_CALLERS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        after = _usage()
        bytes_each, threads_more, fds_more = (now - then for now, then in zip(after, before, strict=True))
    return {"bytes_each": bytes_each / sessions, "threads": threads_more, "fds": fds_more}


def _append_to(sessions: list[logmark.Session]) -> None:
    for session in sessions:
        session.append(EVENT_TYPE, payload(1))


def main(arguments: list[str]) -> None:
    """Answer on standard output."""
    found: dict[str, Any]
    match arguments:
        case ["first", store, session_id, seq]:
            found = _first(store, session_id, int(seq))
        case ["marks", store, session_id]:
            found = _marks(store, session_id)
        case ["idle", store, sessions]:
            found = _idle(store, int(sessions), used=False)
        case ["used", store, sessions]:
            found = _idle(store, int(sessions), used=True)
        case _:
            raise SystemExit(__doc__)
    sys.stdout.buffer.write(orjson.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
