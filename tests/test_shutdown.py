"""Closing: what was accepted is answered and durable, what comes later is refused, and nobody hangs."""

from __future__ import annotations

import errno
import functools
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

import logmark
from logmark import Limits
from logmark.errors import (
    AppendUncertain,
    LockTimeout,
    LogmarkError,
    RuntimeClosed,
    SessionHalted,
    SubscriptionClosed,
)
from logmark.storage import BatchResult, FileEventStore, MemoryEventStore, SessionBatch
from logmark.testing import CapturedLogs, eventually
from logmark.testing._faulty_files import FaultyFiles

SOON = 20.0


class StalledStore(MemoryEventStore):
    """A disk that answers nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()
        self.through = threading.Event()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.began.set()
        assert self.through.wait(SOON)
        return super().append(batches)


def start(*works: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    return threads


def join_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()


# -- after the end ---------------------------------------------------------------------------------------------------

USES: dict[str, Callable[[logmark.Runtime, logmark.Session], object]] = {
    "append": lambda runtime, session: session.append("x"),
    "submit": lambda runtime, session: session.submit("x"),
    "append_many": lambda runtime, session: session.append_many([("x", 1)]),
    "append_many of nothing": lambda runtime, session: session.append_many([]),
    "send": lambda runtime, session: session.send("session.ping"),
    "last_seq": lambda runtime, session: session.last_seq,
    "read": lambda runtime, session: session.read(),
    "page": lambda runtime, session: session.page(),
    "subscribe": lambda runtime, session: session.subscribe(),
    "wait_for": lambda runtime, session: session.wait_for(1, timeout=SOON),
    "wait_for what is there": lambda runtime, session: session.wait_for(0),
    "jobs": lambda runtime, session: session.jobs(),
    "mark": lambda runtime, session: session.job("j").mark,
    "job append": lambda runtime, session: session.job("j").append("x"),
    "session": lambda runtime, session: runtime.session("s"),
    "new session": lambda runtime, session: runtime.session("new"),
    "sessions": lambda runtime, session: runtime.sessions(),
    "stay": lambda runtime, session: runtime.check_usable(),
}


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("how", USES)
def test_after_the_end_every_use_is_refused(store_url: str, how: str, active: bool) -> None:
    runtime = logmark.open(store_url)
    session = runtime.session("s")
    if active:
        session.append("x", job_id="j")
        session.subscribe(1)
        session.jobs()
    runtime.close()
    for _ in range(2):
        with pytest.raises(RuntimeClosed):
            USES[how](runtime, session)
    assert repr(runtime).endswith("closed>")


def test_closing_twice_and_leaving_a_closed_runtime_do_nothing(store_url: str) -> None:
    with logmark.open(store_url) as runtime:
        runtime.session("s").append("x")
        runtime.close()
        runtime.close()
    runtime.close()
    with pytest.raises(RuntimeClosed), runtime:
        runtime.session("s")


def test_an_exception_leaves_the_block_and_closes(store_url: str) -> None:
    runtime = logmark.open(store_url)
    session = runtime.session("s")
    futures: list[Future[int]] = []

    def work() -> None:
        with runtime:
            futures.append(session.submit("x"))
            raise LookupError

    with pytest.raises(LookupError):
        work()
    assert futures[0].result(0) == 1


def test_a_runtime_that_did_nothing_closes(store_url: str, logs: CapturedLogs) -> None:
    logmark.open(store_url).close()
    assert logs.wait_for("runtime_closed")["drained"] is True


# -- what was accepted -----------------------------------------------------------------------------------------------


def test_what_was_submitted_is_stored_before_close_returns_row_52(tmp_path: Path) -> None:
    """Row 52: stop immediately after telling."""
    for round_ in range(20):
        runtime = logmark.open(str(tmp_path))
        futures = [runtime.session(f"s{n % 3}").submit("x", round_) for n in range(30)]
        runtime.close()
        assert [future.result(0) for future in futures] == [round_ * 10 + n // 3 + 1 for n in range(30)]
    with logmark.open(str(tmp_path)) as runtime:
        assert [info.last_seq for info in runtime.sessions()] == [200] * 3


@pytest.mark.parametrize("engine", ["file", "memory"])
@pytest.mark.parametrize("attempt", range(5))
def test_close_while_8_threads_append(tmp_path: Path, engine: str, attempt: int) -> None:
    """Every append is either accepted, answered and durable, or refused and not written; and nothing hangs."""
    store = FileEventStore(tmp_path) if engine == "file" else MemoryEventStore()
    runtime = logmark.Runtime(store)
    accepted: list[tuple[str, int, int]] = []
    refused: list[LogmarkError] = []
    pending: list[tuple[str, int, Future[int]]] = []
    enough = threading.Semaphore(0)

    def write(index: int) -> None:
        n = 0
        try:
            while True:
                n += 1
                session = runtime.session(f"s{(index + n) % 3 if n % 50 else n}")
                if index % 2:
                    accepted.append((session.session_id, session.append("x", index * 10**6 + n), index * 10**6 + n))
                else:
                    pending.append((session.session_id, index * 10**6 + n, session.submit("x", index * 10**6 + n)))
                enough.release()
        except LogmarkError as error:
            refused.append(error)

    threads = start(*(functools.partial(write, index) for index in range(8)))
    for _ in range(50 * attempt + 1):
        assert enough.acquire(timeout=SOON)
    runtime.close()
    join_all(threads)
    assert [type(error) for error in refused] == [RuntimeClosed] * 8
    accepted += [(session_id, future.result(0), n) for session_id, n, future in pending]
    reopened = FileEventStore(tmp_path) if engine == "file" else store
    found = [
        (session_id, event.event_seq, event.decode().payload)
        for session_id in reopened.sessions()
        for event in reopened.read(session_id)
    ]
    assert sorted(found) == sorted(accepted)
    reopened.close()


def test_close_while_others_do_anything_at_all(store_url: str) -> None:
    runtime = logmark.open(store_url)
    session = runtime.session("s")
    session.append("x", job_id="j")
    going = threading.Semaphore(0)

    def repeat(use: Callable[[logmark.Runtime, logmark.Session], object]) -> None:
        try:
            while True:
                use(runtime, session)
                going.release()
        except (RuntimeClosed, SubscriptionClosed):
            return

    uses = [use for how, use in USES.items() if how not in {"subscribe", "wait_for"}]
    uses.append(lambda runtime, session: session.subscribe(1).get(SOON))
    uses.append(lambda runtime, session: session.subscribe().close())
    threads = start(*(functools.partial(repeat, use) for use in uses))
    for _ in range(300):
        assert going.acquire(timeout=SOON)
    runtime.close()
    join_all(threads)


def test_close_from_several_threads_returns_when_it_is_done() -> None:
    store = StalledStore()
    runtime = logmark.Runtime(store)
    future = runtime.session("s").submit("x")
    done_at_return: list[bool] = []

    def close() -> None:
        runtime.close()
        done_at_return.append(future.done())

    threads = start(close, close, close)
    assert store.began.wait(SOON)
    assert not done_at_return
    store.through.set()
    join_all(threads)
    assert done_at_return == [True] * 3
    assert future.result(0) == 1


def test_who_waits_for_a_number_is_told_that_it_will_not_come(store_url: str) -> None:
    runtime = logmark.open(store_url)
    idle, active = runtime.session("idle"), runtime.session("active")
    active.append("x")
    outcome: list[type[BaseException]] = []

    def wait(session: logmark.Session, timeout: float | None) -> None:
        try:
            session.wait_for(99, timeout)
        except LogmarkError as error:
            outcome.append(type(error))

    threads = start(
        lambda: wait(idle, None), lambda: wait(active, None), lambda: wait(idle, 500), lambda: wait(active, 500)
    )
    eventually(lambda: idle._watermark._waiting == active._watermark._waiting == 2, SOON)
    runtime.close()
    join_all(threads)
    assert outcome == [RuntimeClosed] * 4


# -- a disk that does not answer -------------------------------------------------------------------------------------


def test_close_does_not_wait_for_ever(logs: CapturedLogs) -> None:
    store = StalledStore()
    runtime = logmark.Runtime(store, limits=Limits(close_wait_s=0.1))
    session, other = runtime.session("s"), runtime.session("other")
    in_flight = session.submit("x", "in flight")
    assert store.began.wait(SOON)
    waiting = [session.submit("x", n) for n in range(5)]
    elsewhere = other.submit("x")
    subscription = session.subscribe(1)
    began = time.monotonic()
    runtime.close()
    assert time.monotonic() - began < 5
    error = in_flight.exception(0)
    assert isinstance(error, AppendUncertain)
    assert error.session_id == "s"
    assert [type(future.exception(0)) for future in waiting] == [RuntimeClosed] * 5
    assert isinstance(elsewhere.exception(0), AppendUncertain | RuntimeClosed)
    assert list(subscription) == []
    assert logs.named("close_timed_out")[0]["sessions"] == 2
    assert logs.named("runtime_closed")[0]["drained"] is False
    store.through.set()  # the disk comes back: what it wrote is what had reached it, and the answers stay
    eventually(lambda: store.last_seq("s") == 1, SOON)
    assert isinstance(in_flight.exception(0), AppendUncertain)
    assert [event.decode().payload for event in store.read("s")] == ["in flight"]
    runtime.close()


@pytest.mark.parametrize("how", ["the disk answers", "the disk fails", "the process dies"])
def test_nothing_is_appended_across_a_write_that_outlives_its_runtime(how: str) -> None:
    """So a close that gives up needs no halt: the lock keeps others out until the disk, or a recovery, has decided."""
    files = FaultyFiles()
    stalled, go_on = threading.Event(), threading.Event()
    error = OSError(errno.EIO, "Input/output error")

    def stall(_: object) -> None:
        stalled.set()
        assert go_on.wait(SOON)
        if how != "the disk answers":
            raise error

    limits = Limits(close_wait_s=0.1, lock_wait_s=0.05)
    runtime = logmark.Runtime(FileEventStore("/store", files=files, limits=limits), limits=limits)
    session = runtime.session("s")
    assert session.append("x", 1) == 1
    files.call("sync", stall, path="*.jsonl")
    in_flight = session.submit("x", 2, id="in doubt")
    assert stalled.wait(SOON)
    runtime.close()
    doubt = in_flight.exception(0)
    assert isinstance(doubt, AppendUncertain)
    assert (doubt.first_event_id, doubt.halted) == ("in doubt", False)

    others = files.another_process()
    with logmark.Runtime(FileEventStore("/store", files=others, limits=Limits(lock_wait_s=0.05))) as impatient:
        with pytest.raises(LockTimeout):
            impatient.session("s").append("x", 3)
        assert [event.payload for event in impatient.session("s").read()] == [1]
    if how == "the process dies":
        files.restart()
    else:
        go_on.set()
    with logmark.Runtime(FileEventStore("/store", files=others, limits=Limits(lock_wait_s=SOON))) as patient:
        session = patient.session("s")
        if how == "the disk fails":
            with pytest.raises(SessionHalted):
                session.append("x", 2, id="in doubt")
            patient.store.repair("s")
        assert session.append("x", 2, id="in doubt") == 2
        assert session.append("x", 3) == 3
        assert [event.payload for event in session.read()] == [1, 2, 3]
    go_on.set()


# -- what is given back ----------------------------------------------------------------------------------------------


def test_threads_and_descriptors_are_given_back(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to count descriptors")
    before, threads_before = descriptors(), set(threading.enumerate())
    for _ in range(10):
        with logmark.open(str(tmp_path)) as runtime:
            for n in range(20):
                runtime.session(f"s{n}").submit("x", job_id="j")
                runtime.session(f"s{n}").subscribe(1)
            runtime.session("s0").jobs()
            assert any(thread.name.startswith("logmark-") for thread in set(threading.enumerate()) - threads_before)
        assert set(threading.enumerate()) <= threads_before
        assert descriptors() == before


def test_a_runtime_that_nobody_holds_any_more_still_answers(tmp_path: Path) -> None:
    futures = [logmark.open(str(tmp_path)).session("s").submit("x") for _ in range(5)]
    gc.collect()
    assert sorted(future.result(SOON) for future in futures) == [1, 2, 3, 4, 5]


def test_one_of_two_runtimes_on_a_directory_closes_without_the_other(tmp_path: Path) -> None:
    with logmark.open(str(tmp_path)) as staying:
        session = staying.session("s")
        with session.subscribe(1) as subscription:
            for n in range(10):
                with logmark.open(str(tmp_path)) as leaving:
                    assert leaving.session("s").append("x") == 2 * n + 1
                assert session.append("x") == 2 * n + 2
            assert [subscription.get(SOON).event_seq for _ in range(20)] == list(range(1, 21))


# -- the end of the interpreter --------------------------------------------------------------------------------------

LEAVE: dict[str, str] = {
    "falls off the end": "pass",
    "exits": "sys.exit(3)",
    "exits in a thread": "threading.Thread(target=sys.exit).start()",
    "with a subscriber": "threading.Thread(target=lambda: list(session.subscribe(1)), daemon=True).start()",
    "with a thread that appends on": "threading.Thread(target=lambda: [session.append('y') for n in range(9)]).start()",
    "with a daemon that appends on": """
def go():
    try:
        while True:
            session.append('y')
    except logmark.errors.RuntimeClosed:
        pass
threading.Thread(target=go, daemon=True).start()
""",
    "without a reference": "del session, runtime",
    "with several runtimes": "for _ in range(5): logmark.open(sys.argv[1]).session('s').submit('y')",
    "with a closed runtime": "runtime.close()",
    "with a callback": "session.submit('y').add_done_callback(lambda future: future.result())",
    "with a handler of its own": "import atexit; atexit.register(lambda: session.submit('y'))",
}
FURTHER_EVENTS = {
    "with a thread that appends on": 9,
    "with several runtimes": 5,
    "with a callback": 1,
    "with a handler of its own": 1,  # registered later, so run earlier
}


@pytest.mark.parametrize("how", LEAVE)
def test_what_was_submitted_just_before_the_interpreter_ends_is_stored(tmp_path: Path, how: str) -> None:
    program = (
        "import sys, threading, logmark\n"
        "runtime = logmark.open(sys.argv[1])\n"
        "session = runtime.session('s')\n"
        "for n in range(100):\n"
        "    session.submit('x', n)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program + LEAVE[how], str(tmp_path)],
        capture_output=True,
        check=False,
        timeout=60,
        text=True,
    )
    assert (run.returncode, run.stdout, run.stderr) == (3 if how == "exits" else 0, "", "")
    with logmark.open(str(tmp_path)) as runtime:
        events = list(runtime.session("s").read())
    assert [event.payload for event in events if event.type == "x"] == list(range(100))
    if how != "with a daemon that appends on":  # as many as it came to
        assert len(events) == 100 + FURTHER_EVENTS.get(how, 0)


def test_a_program_that_dies_of_an_exception_keeps_what_it_submitted(tmp_path: Path) -> None:
    program = "import sys, logmark\nlogmark.open(sys.argv[1]).session('s').submit('x', 1)\n1 / 0"
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=False, timeout=60, text=True
    )
    assert run.returncode == 1
    assert run.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "logmark" not in run.stderr
    with logmark.open(str(tmp_path)) as runtime:
        assert runtime.session("s").last_seq == 1
