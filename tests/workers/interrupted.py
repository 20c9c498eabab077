"""Get a SIGINT in the main thread while it is blocked in one call, and say what came of it as one JSON object.

    interrupted.py CALL STORE

CALL is a key of ``CALLS``. The signal is sent once the main thread stands still in that call.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import logmark
from logmark import Limits
from logmark.storage import BatchResult, FileEventStore, SessionBatch

STILL_S = 0.05
NEVER_S = 60.0
AGAIN_S = 5.0

caught = threading.Event()


class StalledStore(FileEventStore):
    """The file engine on a disk that can be held up."""

    through = threading.Event()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.through.wait()
        return super().append(batches)


def follow(session: logmark.Session) -> None:
    for _ in session.subscribe(1):
        pass


def fill(session: logmark.Session) -> None:
    while True:
        session.submit("x", "filler")


def submit_and_close(runtime: logmark.Runtime, session: logmark.Session) -> None:
    session.submit("x")
    runtime.close()


CALLS: dict[str, Callable[[logmark.Runtime, logmark.Session], object]] = {
    "append": lambda runtime, session: session.append("x"),
    "append_many": lambda runtime, session: session.append_many([("x", 1)]),
    "submit to a full inbox": lambda runtime, session: fill(session),
    "get": lambda runtime, session: session.subscribe().get(),
    "get with a timeout": lambda runtime, session: session.subscribe().get(timeout=NEVER_S),
    "iteration": lambda runtime, session: follow(session),
    "wait_for": lambda runtime, session: session.wait_for(99),
    "result": lambda runtime, session: session.submit("x").result(),
    "close": submit_and_close,
}


def interrupt_when_it_stands_still(main_thread: int) -> None:
    """Send the signal when the main thread has not moved for a while.

    On a busy machine it may not have come to the system call yet that it is about to sleep in. A signal that comes
    before that wakes nobody, as Python looks at signals when the call returns: so it is sent again until it is caught.
    """
    pause = threading.Event()
    place: tuple[object, int] | None = None
    since = time.monotonic()
    while time.monotonic() - since < STILL_S:
        frame = sys._current_frames()[main_thread]
        if (frame.f_code, frame.f_lasti) != place:
            place, since = (frame.f_code, frame.f_lasti), time.monotonic()
        pause.wait(0.002)
    while not caught.is_set():
        os.kill(os.getpid(), signal.SIGINT)
        caught.wait(AGAIN_S)


def main() -> None:
    call, path = sys.argv[1:]
    store = StalledStore(path)
    runtime = logmark.Runtime(store, limits=Limits(inbox_events_max=5))
    session = runtime.session("s")
    threading.Thread(target=interrupt_when_it_stands_still, args=(threading.get_ident(),), daemon=True).start()
    said: dict[str, object] = {}
    try:
        CALLS[call](runtime, session)
    except KeyboardInterrupt:
        caught.set()
        said["interrupted"] = True
    began = time.monotonic()
    store.through.set()
    if call != "close":
        said["appended"] = session.append("y")
        with session.subscribe(1) as subscription:
            said["seen"] = [subscription.get(NEVER_S).event_seq for _ in range(session.last_seq)]
    runtime.close()
    said["end_s"] = time.monotonic() - began
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
