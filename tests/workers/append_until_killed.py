"""Append to several sessions from several threads until killed.

    append_until_killed.py STORE KEY SESSIONS THREADS SEED LOG

Prints a line for each acknowledged append, with one system call and right after its return: session, key, thread, place
among the appends of the thread, first and last number. Each event says to which append it belongs, and how many events
that has. The processes write their log events to one file, LOG.
"""

from __future__ import annotations

import os
import random
import sys
import threading

import logmark
from logmark.protocol import Limits

LIMITS = Limits(segment_bytes_max=6000, open_sessions_max=3, lock_wait_s=60.0)


def append(runtime: logmark.Runtime, key: str, thread: int, sessions: int, seed: str) -> None:
    chance = random.Random(f"{seed} {thread}")
    place = 0
    while True:
        name = f"s{chance.randrange(sessions)}"
        size = chance.choice((1, 1, 1, 2, 5, 20))
        padding = "x" * chance.choice((0, 10, 500))
        part = {"by": [key, thread, place], "of": size, "padding": padding}
        first, last = runtime.session(name).append_many([("x", {**part, "part": number}) for number in range(size)])
        os.write(1, f"{name} {key} {thread} {place} {first} {last}\n".encode())
        place += 1


def main() -> None:
    store, key, sessions, threads, seed, log = sys.argv[1:]
    logmark.logs.configure(json=True, stream=open(log, "a", encoding="utf-8"))  # noqa: SIM115 - until it is killed
    runtime = logmark.open(store, limits=LIMITS)
    for thread in range(int(threads)):
        threading.Thread(target=append, args=(runtime, key, thread, int(sessions), seed)).start()


if __name__ == "__main__":
    main()
