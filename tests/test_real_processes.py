"""Programs that fork, or that may have no more descriptors or threads."""

from __future__ import annotations

import functools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import logmark
from logmark.actors import ThreadBlockingReads
from logmark.errors import AppendRejected, LogmarkError
from logmark.protocol import Limits
from logmark.testing import check_log_files

WORKERS = Path(__file__).with_name("workers")
SESSION = "s"
RUN_S_MAX = 90.0


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *command], capture_output=True, text=True, check=False, timeout=RUN_S_MAX
    )


def check_dense(store: Path, told: list[int]) -> None:
    """Every number was told once, and nothing else is there."""
    with logmark.open(str(store)) as runtime:
        session = runtime.session(SESSION)
        assert [event.event_seq for event in session.read(1)] == sorted(told) == list(range(1, len(told) + 1))
        assert runtime.store.verify(SESSION) == []
    assert check_log_files([f"{store}.log"]).events > len(told), "and so say the processes' own logs"


# -- fork -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_is_told_so_and_may_open_the_store_itself(tmp_path: Path) -> None:
    """Row 37: forks in the middle of appends; no child hangs, none does anything with what is the parent's."""
    done = run(str(WORKERS / "fork_while_busy.py"), str(tmp_path / "store"), "12")

    assert done.returncode == 0, done.stderr
    check_dense(tmp_path / "store", [int(line) for line in done.stdout.split()])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_of_a_pool_append_to_one_session(tmp_path: Path, method: str) -> None:
    """Row 37: all numbers are unique and contiguous, however the processes came into being."""
    done = run(str(WORKERS / "pool_of_processes.py"), str(tmp_path / "store"), method, "3", "60")

    assert done.returncode == 0, done.stderr
    check_dense(tmp_path / "store", [int(line) for line in done.stdout.split()])


# -- descriptors ------------------------------------------------------------------------------------------------

MANY_SESSIONS = """
import errno, resource, sys
import logmark
from logmark.errors import StorageRejected, StorageUnavailable
from logmark.protocol import Limits
SESSIONS = 120

runtime = logmark.open(sys.argv[1], limits=Limits(open_sessions_max=int(sys.argv[2])))
session = runtime.session("first")
assert session.append("x") == 1
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (48, hard))
told = {{}}
refused = 0
for turn in range(2):
    for number in range(SESSIONS):
        name = f"s{{number}}"
        try:
            told[name] = runtime.session(name).append("x")
        except StorageRejected as error:
            assert error.errno == errno.EMFILE, error
            refused += 1
{then}
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
for number in range(SESSIONS):
    name = f"s{{number}}"
    assert runtime.session(name).append("x") == told.get(name, 0) + 1
    assert [event.event_seq for event in runtime.session(name).read(1)] == list(range(1, told.get(name, 0) + 2))
    assert runtime.store.halted(name) is None
runtime.close()
"""


@pytest.mark.parametrize(
    ("open_sessions_max", "then"),
    [
        ("10", "assert refused == 0 and set(told.values()) == {2}"),
        ("256", "assert refused > SESSIONS and session.append('x') == 2"),
    ],
)
def test_descriptors_may_run_out(tmp_path: Path, open_sessions_max: str, then: str) -> None:
    """Within ``open_sessions_max`` all sessions work; beyond the system's limit the error is typed and passes."""
    program = MANY_SESSIONS.format(then=then)
    done = run("-c", program, str(tmp_path / "store"), open_sessions_max)

    assert done.returncode == 0, done.stderr


# -- threads ----------------------------------------------------------------------------------------------------


class Threads:
    """Lets only so many more threads start, as a system does that has no more to give."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1000
        self._start = threading._start_new_thread  # type: ignore[attr-defined]
        monkeypatch.setattr(threading, "_start_new_thread", self._start_one)

    def _start_one(self, *arguments: object) -> object:
        if self.left <= 0:
            message = "can't start new thread"
            raise RuntimeError(message)
        self.left -= 1
        return self._start(*arguments)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    limited = Threads(monkeypatch)
    yield limited
    limited.left = 1000


def use(runtime: logmark.Runtime) -> None:
    """Do a little of everything that starts threads."""
    session = runtime.session(SESSION)
    session.append("x", job_id="j")
    with session.subscribe(1) as subscription:
        subscription.get(30)
    session.wait_for(1, 30)
    assert session.job("j").mark.count == session.last_seq
    runtime.session("another").append("x")


def ending(call: Callable[[], object]) -> BaseException | None:
    """Call in a thread, and return how it ended; that it ends at all is half of what is tested."""
    ended: list[BaseException | None] = []

    def go() -> None:
        try:
            call()
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(30)
    assert ended, "it hangs"
    return ended[0]


@pytest.mark.parametrize("left", range(7))
def test_threads_may_run_out_at_any_point(tmp_path: Path, threads: Threads, left: int) -> None:
    """What cannot be done is refused typed; nobody waits for ever; and with threads to be had again, all works."""
    runtime = logmark.open(str(tmp_path / "store"), limits=Limits(io_threads_max=1))
    threads.left = left + 1  # one is the test's own
    refused = ending(lambda: use(runtime))
    assert refused is None or isinstance(refused, LogmarkError), repr(refused)
    threads.left = 1000
    assert ending(lambda: use(runtime)) is None
    assert ending(runtime.close) is None
    with logmark.open(str(tmp_path / "store")) as runtime:
        count = runtime.session(SESSION).last_seq
        assert [event.event_seq for event in runtime.session(SESSION).read(1)] == list(range(1, count + 1))


def test_an_append_that_no_thread_can_write_is_rejected_and_stays_unwritten(tmp_path: Path, threads: Threads) -> None:
    """Row 47: what was refused for want of a thread does not turn up when there is one."""
    with logmark.open(str(tmp_path / "store")) as runtime:
        session = runtime.session(SESSION)
        for left in range(3):
            threads.left = left
            try:
                session.append("x", left)
            except AppendRejected:
                continue
            break
        threads.left = 1000
        assert session.append("y") == session.last_seq
        payloads = [event.payload for event in session.read(1)]
        assert len(payloads) <= 2
        assert payloads[-1] is None


def test_one_thread_does_the_work_of_two_when_a_second_is_not_to_be_had(threads: Threads) -> None:
    """Blocking reads on behalf of actors: the thread that runs serves everybody."""
    reads = ThreadBlockingReads(2)
    threads.left = 1
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(3):
        reads.submit(functools.partial(done.put, number))
    assert [done.get(timeout=30) for _ in range(3)] == [0, 1, 2]
    reads.stop()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs an account of its own")
def test_a_real_limit_on_processes(tmp_path: Path) -> None:
    """The system's own refusal: RLIMIT_NPROC counts the threads of an account, so the program becomes a fresh one."""
    (tmp_path / "store").mkdir()
    program = """
import os, resource, sys, threading
import logmark
with logmark.open(sys.argv[1]) as runtime:  # whoever it becomes need not be allowed to import anything
    session = runtime.session("s")
    session.append("x", job_id="j")
    session.jobs(), session.subscribe().close()
for folder, _, files in os.walk(sys.argv[1]):
    for path in (folder, *(os.path.join(folder, name) for name in files)):
        os.chown(path, 54321, 54321)
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
gate = threading.Event()
resource.setrlimit(resource.RLIMIT_NPROC, (4, 4))
hogs, misses = [], 0
while misses < 20:  # a thread that has ended is counted for a moment more
    hog = threading.Thread(target=gate.wait, daemon=True)
    try:
        hog.start()
    except RuntimeError:
        misses += 1
        gate.wait(0.01)
    else:
        hogs.append(hog)
        assert len(hogs) < 10
assert hogs
runtime = logmark.open(sys.argv[1])
session = runtime.session("s")
assert session.last_seq == 1
try:
    session.append("x")
except logmark.errors.AppendRejected as error:
    print(type(error).__name__)
else:
    raise AssertionError
gate.set()
for hog in hogs:
    hog.join()
assert session.append("x") == 2
runtime.close()
"""
    entered = [tmp_path, *(path for path in tmp_path.parents if path.stat().st_uid == 0 and path != Path("/"))]
    modes = {path: path.stat().st_mode for path in entered}
    for path, mode in modes.items():
        path.chmod(mode | 0o111)
    try:
        done = run("-c", program, str(tmp_path / "store"))
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert done.returncode == 0, done.stderr
