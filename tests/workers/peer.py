"""Another process that holds the same store, and does what it is told: one JSON list per line, one JSON answer each.

    peer.py STORE

``["append", session, count, job]``, ``["append_timed", session]``, ``["follow", session, from_seq, count]``,
``["last_seq", session]``, ``["marks", session]``, ``["wait_for", session, seq]``, ``["lock", session]``, ``["close"]``.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import logmark
from logmark import Limits

WAIT_S = 30.0


def answer(runtime: logmark.Runtime, store: Path, words: list[Any]) -> object:
    session = runtime.session(words[1])
    match words:
        case ["append", _, count, job_id]:
            return [session.append("x", {"pid": os.getpid(), "n": n}, job_id=job_id) for n in range(count)]
        case ["append_timed", _]:
            session.append("x")
            return time.clock_gettime(time.CLOCK_MONOTONIC)  # which all processes of a machine share
        case ["follow", _, from_seq, count]:
            with session.subscribe(from_seq) as subscription:
                return [subscription.get(WAIT_S).event_seq for _ in range(count)]
        case ["last_seq", _]:
            return session.last_seq
        case ["marks", _]:
            return [[mark.job_id, mark.first_seq, mark.last_seq, mark.count, mark.status] for mark in session.jobs()]
        case ["wait_for", _, seq]:
            session.wait_for(seq, WAIT_S)
            return session.last_seq
        case ["lock", session_id]:
            descriptor = os.open(store / "sessions" / session_id / "lock", os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # until this process ends
            return "locked"
    raise ValueError(words)


def main() -> None:
    store = Path(sys.argv[1])
    runtime = logmark.open(str(store), limits=Limits(watch_interval_s=0.01))
    for line in sys.stdin:
        words = json.loads(line)
        if words == ["close"]:
            runtime.close()
            sys.stdout.write('"closed"\n')
        else:
            sys.stdout.write(json.dumps(answer(runtime, store, words)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
