"""Append to one session, saying on standard output what came of each append as soon as it is known.

    append.py STORE SIZES [--segment-bytes N] [--first-attempt N] [--subscribe]

SIZES is a list such as ``1,3,2``: so many events in each ``append_many``. One JSON object per append is printed, with
its numbers or with the name of its error; an error that is not logmark's ends the process. With ``--subscribe`` the
last object holds the numbers that a subscriber was shown.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import logmark
from logmark.protocol import Limits

SESSION = "s"
NEVER_S = 1000.0


def say(**members: Any) -> None:
    """Print an object with one system call, so that what was printed survives whatever comes next."""
    os.write(1, json.dumps(members).encode() + b"\n")


def append_all(session: logmark.Session, sizes: list[int], first_attempt: int) -> None:
    for attempt, size in enumerate(sizes, first_attempt):
        events = [("step", {"attempt": attempt, "part": part}) for part in range(size)]
        try:
            # All by the writer's thread: strace counts the system calls of each thread for itself.
            first, last = session.submit_many(events).result()
        except logmark.LogmarkError as error:
            certain = isinstance(error, logmark.errors.AppendRejected)
            say(attempt=attempt, error=type(error).__name__, certain=certain, text=str(error))
        else:
            say(attempt=attempt, first=first, last=last)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("sizes", type=lambda text: [int(size) for size in text.split(",") if size])
    parser.add_argument("--segment-bytes", type=int, default=64 * 1024)
    parser.add_argument("--first-attempt", type=int, default=0)
    parser.add_argument("--subscribe", action="store_true")
    options = parser.parse_args(arguments)
    # Nobody else writes here, and a watcher's reads would be counted among the system calls.
    limits = Limits(segment_bytes_max=options.segment_bytes, watch_interval_s=NEVER_S, lock_wait_s=5.0)
    try:
        runtime = logmark.open(options.store, limits=limits)
    except logmark.LogmarkError as error:
        say(opened=False, error=type(error).__name__, text=str(error))
        return
    session = runtime.session(SESSION)
    subscription: logmark.Subscription | None = None
    if options.subscribe:
        try:
            subscription = session.subscribe()
        except logmark.LogmarkError as error:
            say(subscribed=False, error=type(error).__name__)
    append_all(session, options.sizes, options.first_attempt)
    runtime.close()
    if subscription is not None:
        say(shown=[[event.event_seq, event.payload["attempt"]] for event in subscription])


if __name__ == "__main__":
    main()
