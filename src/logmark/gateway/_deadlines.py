"""What is due for jobs, and the threads that end them: apart from the agents, which may never return."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
from collections.abc import Callable

from ..protocol import Clock
from ..storage import get_logger

__all__ = ["Deadlines", "Endings"]

_log = get_logger()
_SPARE_MAX = 64  # what is over is not looked for among so few


class Deadlines:
    """Calls back when a job's time has come, in one thread of its own.

    Args:
        due: called with the job and the cause; must be quick.
        alive: says whether a job still runs; deadlines of others are forgotten.

    Raises:
        RuntimeError: there is no thread to be had for it.
    """

    def __init__(self, clock: Clock, *, due: Callable[[str, str], None], alive: Callable[[str], bool]) -> None:
        self._clock = clock
        self._call = due
        self._alive = alive
        self._heap: list[tuple[float, int, str, str]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._compact_at = _SPARE_MAX
        self._stopped = False
        # Started now rather than with the first deadline, which must not find that there is no thread for it.
        self._thread = threading.Thread(target=self._run, name="logmark-deadlines", daemon=True)
        self._thread.start()

    def after(self, delay_s: float, job_id: str, cause: str) -> None:
        """Call back in so many seconds, unless the job has ended by then."""
        with self._changed:
            if self._stopped:
                return
            if len(self._heap) >= self._compact_at:  # a job of a minute may have had a deadline of a day
                self._heap = [entry for entry in self._heap if self._alive(entry[2])]
                heapq.heapify(self._heap)
                self._compact_at = 2 * len(self._heap) + _SPARE_MAX
            heapq.heappush(self._heap, (self._clock.monotonic() + delay_s, next(self._order), job_id, cause))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped:
                    wait_s = self._heap[0][0] - self._clock.monotonic() if self._heap else None
                    if wait_s is not None and wait_s <= 0:
                        break
                    self._changed.wait(wait_s)
                if self._stopped:
                    return
                _, _, job_id, cause = heapq.heappop(self._heap)
            try:
                self._call(job_id, cause)
            except Exception as error:  # one job's deadline may not be the last one that is kept
                _log.error("deadline_failed", job=job_id, cause=cause, error=repr(error), exc_info=error)

    def stop(self) -> None:
        """Forget what is due and end the thread."""
        with self._changed:
            self._stopped = True
            self._heap.clear()
            self._changed.notify()
        self._thread.join()


class Endings:
    """A few threads that write the terminal events nobody else can: those of jobs whose agents run on, or never ran.

    Such a write may wait for a disk, so neither the deadlines of other jobs nor a connection wait for it.
    """

    def __init__(self, threads_max: int) -> None:
        self._threads_max = threads_max
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Do ``work`` soon; here and now when there is no thread to be had for it. It must not raise."""
        with self._mutex:
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._threads_max:
                name = f"logmark-endings-{len(self._threads) + 1}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    if not self._threads:
                        work()
                        return
                else:
                    self._threads.append(thread)
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            with self._mutex:
                self._idle += 1

    def stop(self, timeout_s: float) -> None:
        """End the threads, after what they have to do."""
        with self._mutex:
            threads = list(self._threads)
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            thread.join(timeout_s)
