"""Fork while runtimes are open, and say on standard output what parent and child could do, as one JSON object each.

    forked.py MODE STORE

The child says its object first. Whoever hangs is ended by an alarm.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable

import logmark
from logmark import Limits, Subscription

PATIENCE_S = 40
WAIT_S = 20.0

Use = Callable[[logmark.Runtime, logmark.Session, Subscription], object]
USES: dict[str, Use] = {
    "append": lambda runtime, session, subscription: session.append("x"),
    "submit": lambda runtime, session, subscription: session.submit("x"),
    "append_many": lambda runtime, session, subscription: session.append_many([("x", 1)]),
    "append_many of nothing": lambda runtime, session, subscription: session.append_many([]),
    "send": lambda runtime, session, subscription: session.send("session.ping"),
    "last_seq": lambda runtime, session, subscription: session.last_seq,
    "read": lambda runtime, session, subscription: session.read(),
    "page": lambda runtime, session, subscription: session.page(),
    "subscribe": lambda runtime, session, subscription: session.subscribe(),
    "wait_for": lambda runtime, session, subscription: session.wait_for(1),
    "jobs": lambda runtime, session, subscription: session.jobs(),
    "mark": lambda runtime, session, subscription: session.job("j").mark,
    "job append": lambda runtime, session, subscription: session.job("j").append("x"),
    "session": lambda runtime, session, subscription: runtime.session("s"),
    "new session": lambda runtime, session, subscription: runtime.session("new"),
    "sessions": lambda runtime, session, subscription: runtime.sessions(),
    "get": lambda runtime, session, subscription: subscription.get(),
    "next": lambda runtime, session, subscription: next(subscription),
}


def say(**members: object) -> None:
    os.write(1, json.dumps(members).encode() + b"\n")


def outcome(use: Use, runtime: logmark.Runtime, session: logmark.Session, subscription: Subscription) -> str:
    try:
        use(runtime, session, subscription)
    except BaseException as error:  # whatever it is, it is what the test wants to know
        return type(error).__name__
    return "no error"


def child_uses(runtime: logmark.Runtime, session: logmark.Session, subscription: Subscription) -> None:
    outcomes = {how: outcome(use, runtime, session, subscription) for how, use in USES.items()}
    subscription.close()
    with subscription:
        pass
    runtime.close()
    with runtime:
        pass
    say(child=outcomes, closed=outcome(USES["append"], runtime, session, subscription))


def child_opens_its_own(path: str) -> None:
    with logmark.open(path) as runtime:
        session = runtime.session("s")
        with session.subscribe() as subscription:
            numbers = [session.append("child", job_id="j") for _ in range(10)]
            seen = [subscription.get(WAIT_S).event_seq for _ in range(10)]
        say(child=numbers == seen == sorted(numbers), count=session.job("j").mark.count)


def fork_once(mode: str, path: str) -> None:
    runtime = logmark.open(path, limits=Limits(watch_interval_s=0.01))
    session = runtime.session("s")
    session.append("x", job_id="j")
    subscription = session.subscribe(1)
    subscription.get(WAIT_S)
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE_S)
        if mode == "uses":
            child_uses(runtime, session, subscription)
        elif mode == "own":
            child_opens_its_own(path)
        elif mode == "with block":
            with runtime, subscription:
                say(child="leaves")
            os._exit(0)
        else:
            say(child="leaves")
        if mode == "hard":
            os._exit(0)
        sys.exit(5)
    _, status = os.waitpid(pid, 0)
    numbers = [session.append("parent", job_id="j") for _ in range(10)]
    expected = session.last_seq - 1
    seen = [subscription.get(WAIT_S).event_seq for _ in range(expected)]
    say(
        child_exit=os.waitstatus_to_exitcode(status),
        numbers=numbers,
        seen=seen == list(range(2, expected + 2)),
        count=session.job("j").mark.count,
    )
    runtime.close()


def fork_often(path: str) -> None:
    """Fork again and again while threads append and read, so that any lock may be held at that moment."""
    runtime = logmark.open(path)
    session = runtime.session("s")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            session.append("x", job_id="j")
            session.jobs()

    def follow() -> None:
        for _ in session.subscribe(1):
            pass

    threads = [threading.Thread(target=write) for _ in range(3)] + [threading.Thread(target=follow, daemon=True)]
    for thread in threads:
        thread.start()
    subscription = session.subscribe(1)
    exits: list[int] = []
    for _ in range(20):
        subscription.get(WAIT_S)
        pid = os.fork()
        if pid == 0:
            signal.alarm(PATIENCE_S)
            outcomes = {outcome(use, runtime, session, subscription) for use in USES.values()}
            subscription.close()
            with logmark.open(path) as own:
                own.session("s").append("child")
            os._exit(0 if outcomes == {"ForkedRuntime"} else 1)
        exits.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    stop.set()
    for thread in threads[:3]:
        thread.join(WAIT_S)
    runtime.close()
    say(exits=exits)


if __name__ == "__main__":
    signal.alarm(PATIENCE_S)
    if sys.argv[1] == "often":
        fork_often(sys.argv[2])
    else:
        fork_once(sys.argv[1], sys.argv[2])
