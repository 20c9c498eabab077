"""Fork again and again while threads append: ``fork_while_busy.py STORE FORKS``.

Each child finds the parent's runtime unusable, opens one of its own, and appends an event. Prints the numbers that the
parent and its children were told, a line each. All log to one file, STORE.log.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from collections.abc import Callable

import logmark
from logmark.errors import ForkedRuntime

# Newer Pythons warn of what this is about.
warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
SESSION = "s"
CHILD_S_MAX = 30


def say(seq: int) -> None:
    os.write(1, b"%d\n" % seq)


def refused(call: Callable[[], object]) -> None:
    try:
        call()
    except ForkedRuntime:
        return
    raise AssertionError(call)


def log_to(path: str) -> None:
    # A child needs a stream of its own: the parent's may have held a line of another thread when it was copied.
    logmark.logs.configure(json=True, stream=open(path, "a", encoding="utf-8"))  # noqa: SIM115 - to the very end


def child(store: str, runtime: logmark.Runtime, session: logmark.Session, subscription: logmark.Subscription) -> None:
    # A deadlock in a child is a failure of the test, not of its time limit.
    threading.Timer(CHILD_S_MAX, os._exit, (98,)).start()
    log_to(f"{store}.log")
    refused(lambda: session.append("x"))
    refused(lambda: session.last_seq)
    refused(lambda: list(session.read(1)))
    refused(session.subscribe)
    refused(lambda: runtime.session("another"))
    refused(lambda: subscription.get(1))
    subscription.close()
    runtime.close()
    with logmark.open(store) as own:
        say(own.session(SESSION).append("child", os.getpid()))
    os._exit(0)


def main() -> None:
    store, forks = sys.argv[1], int(sys.argv[2])
    log_to(f"{store}.log")
    enough = threading.Event()
    told: list[int] = []
    runtime = logmark.open(store)
    session = runtime.session(SESSION)
    subscription = session.subscribe(1)

    def append() -> None:
        while not enough.is_set():
            told.append(session.append("parent"))

    threads = [threading.Thread(target=append) for _ in range(2)]
    for thread in threads:
        thread.start()
    statuses: list[int] = []
    for _ in range(forks):
        pid = os.fork()
        if pid == 0:
            try:
                child(store, runtime, session, subscription)
            finally:
                os._exit(99)
        statuses.append(os.waitpid(pid, 0)[1])
    enough.set()
    for thread in threads:
        thread.join()
    last_seq = session.last_seq
    shown = [subscription.get(30).event_seq for _ in range(last_seq)]
    assert shown == list(range(1, last_seq + 1))
    runtime.close()
    for seq in told:
        say(seq)
    sys.exit(any(statuses))


if __name__ == "__main__":
    main()
