"""Several processes on one store: one numbering, one writer at a time, and readers that see whole events only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logmark.protocol import Limits, LockTimeout
from logmark.storage import Appended, AppendRequest, FileEventStore, OsFiles, _lock
from logmark.testing import CapturedLogs, eventually
from logmark.testing._faulty_files import FaultyFiles
from logmark.testing.conformance import (
    append_answers,
    append_batch,
    append_events,
    make_event,
    make_events,
    raised_by,
    seqs_of,
    texts_of,
)

S = "s"
DEADLINE_S = 60
WRITERS = 4
APPENDS = 500

PRELUDE = """
import os, signal, sys
from logmark.protocol import Limits
from logmark.storage import FileEventStore, OsFiles
from logmark.testing.conformance import append_events, make_event, seqs_of, texts_of
path, argument = sys.argv[1], sys.argv[2]

def stop_here():
    '''Stand still, with whatever is held, until the parent says to go on.'''
    print("ready", flush=True)
    sys.stdin.readline()
"""

WRITE = """
store = FileEventStore(path)
stop_here()
for index in range(int(argument)):
    answer = append_events(store, "s", make_event(f"{os.getpid()} {index}"))
    print(answer.first_seq)
"""

READ = """
store, known = FileEventStore(path), 0
stop_here()
while known < int(argument):
    texts = []
    for seq, event in enumerate(store.read("s"), 1):
        assert event.event_seq == seq, (event, seq)
        texts += texts_of([event])
    assert len(texts) >= known
    known = len(texts)
    last = next(store.read_backwards("s"), None)
    assert last is None or last.event_seq >= known
    middle = known // 2 + 1
    assert seqs_of(store.read("s", from_seq=middle, through_seq=known)) == list(range(middle, known + 1))
print(known)
"""

# Stops, or is killed, at some operation on the log or the head of its second append.
STEP = """
class Stepping(OsFiles):
    paths = {}
    armed = False

    def open(self, path, **how):
        fd = super().open(path, **how)
        self.paths[fd] = os.path.basename(path)
        return fd

    def reach(self, step):
        if self.armed and step == argument:
            print("ready", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)

    def write(self, fd, data, offset):
        name = self.paths[fd].removesuffix(".new").replace(f"{1:020d}.jsonl", "log")
        self.reach(f"before the write of the {name}")
        if argument == f"half the write of the {name}" and self.armed:
            os.pwrite(fd, data[: len(data) // 2], offset)
            self.reach(argument)
        written = os.pwrite(fd, data, offset)
        self.reach(f"after the write of the {name}")
        return written

    def sync(self, fd):
        os.fdatasync(fd)
        self.reach("after the sync")

files = Stepping()
store = FileEventStore(path, files=files)
append_events(store, "s", make_event("a"))
print(1, flush=True)
files.armed = True
append_events(store, "s", make_event("b"), make_event("c"))
print(3, flush=True)
"""

# The step, and whether the unacknowledged events of the second append are there afterwards.
STEPS = {
    "before the write of the log": False,
    "half the write of the log": False,
    "after the write of the log": True,
    "after the sync": True,
    "before the write of the head": True,
    "after the write of the head": True,
}

FORK = """
class Forking(OsFiles):
    armed = False

    def sync(self, fd):
        if self.armed:
            parent = os.getpid()
            if os.fork():
                signal.pause()
            else:
                store.after_fork_in_child()
                os.kill(parent, signal.SIGKILL)
                stop_here()
                os._exit(0)

files = Forking()
store = FileEventStore(path, files=files)
append_events(store, "s", make_event("a"))
files.armed = True
append_events(store, "s", make_event("b"))
"""


@contextlib.contextmanager
def processes() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start programs, and let none of them outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, path: Path, argument: object = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PRELUDE + program, str(path), str(argument)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.communicate(timeout=DEADLINE_S)


def until_ready(process: subprocess.Popen[str]) -> list[str]:
    """Return the lines that a program prints before it stands still."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        if line == "ready\n":
            return lines
        lines.append(line.strip())
    raise AssertionError(process.communicate(timeout=DEADLINE_S)[1])


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def result(process: subprocess.Popen[str]) -> list[str]:
    """Return what a program prints until its end."""
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return out.split()


def until_stopped(process: subprocess.Popen[str]) -> None:
    state = Path(f"/proc/{process.pid}/stat")
    eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", timeout=DEADLINE_S)


def open_store(path: Path, *, lock_wait_s: float = 30.0) -> FileEventStore:
    return FileEventStore(path, limits=Limits(lock_wait_s=lock_wait_s))


@pytest.mark.slow
def test_writers_and_a_reader_share_one_session(tmp_path: Path) -> None:
    """Rows 36 and 37: all numbers unique and contiguous; the reader meets no partial row and no hole."""
    total = WRITERS * APPENDS
    with processes() as start:
        writers = [start(WRITE, tmp_path / "store", APPENDS) for _ in range(WRITERS)]
        reader = start(READ, tmp_path / "store", total)
        everyone = [*writers, reader]
        for process in everyone:
            until_ready(process)
        for process in everyone:
            go_on(process)
        told = [[int(number) for number in result(writer)] for writer in writers]
        assert result(reader) == [str(total)]

    assert sorted(number for numbers in told for number in numbers) == list(range(1, total + 1))
    assert all(numbers == sorted(numbers) for numbers in told)
    store = open_store(tmp_path / "store")
    texts = texts_of(store.read(S))
    for writer, numbers in zip(writers, told, strict=True):
        assert [texts[number - 1] for number in numbers] == [f"{writer.pid} {index}" for index in range(APPENDS)]
    assert store.verify(S) == []


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_writer_leaves_the_session_to_the_next(tmp_path: Path, step: str, logs: CapturedLogs) -> None:
    """Rows 12, 28, 31 and 38: at every step of an append; what was told is there, and what was not is whole or gone."""
    with processes() as start:
        writer = start(STEP, tmp_path / "store", step)
        assert until_ready(writer) == ["1"]
        until_stopped(writer)
        store = open_store(tmp_path / "store", lock_wait_s=0.05)
        raised_by(LockTimeout, append_events, store, S, make_event("d"))
        writer.kill()
        writer.wait(DEADLINE_S)

    store = open_store(tmp_path / "store")
    kept = ["a", "b", "c"] if STEPS[step] else ["a"]
    assert append_events(store, S, make_event("d")).first_seq == len(kept) + 1
    assert texts_of(store.read(S)) == [*kept, "d"]
    assert store.verify(S) == []
    assert len(logs.named("torn_tail_cut")) == (step == "half the write of the log")


@pytest.mark.parametrize("step", ["half the write of the log", "after the sync"])
def test_a_writer_that_stands_still_keeps_its_lock(tmp_path: Path, step: str) -> None:
    """Row 38: nobody steals it, the waiter's error names the holder, readers go on, and so does the holder later."""
    with processes() as start:
        writer = start(STEP, tmp_path / "store", step)
        until_ready(writer)
        until_stopped(writer)
        store = open_store(tmp_path / "store", lock_wait_s=0.2)

        began = time.monotonic()
        error = raised_by(LockTimeout, append_events, store, S, make_event("d"))
        assert 0.2 <= time.monotonic() - began < DEADLINE_S
        assert (error.session_id, error.waited_s, error.holder_pid) == (S, 0.2, writer.pid)
        assert str(writer.pid) in str(error)
        assert texts_of(store.read(S)) == ["a"]
        assert texts_of(store.read_backwards(S)) == ["a"]
        assert append_events(store, "another", make_event()) == Appended(1, 1)

        writer.send_signal(signal.SIGCONT)
        assert result(writer) == ["3"]
        assert append_events(store, S, make_event("d")) == Appended(4, 4)
    assert texts_of(store.read(S)) == ["a", "b", "c", "d"]


def test_a_waiter_proceeds_when_the_holder_is_killed(tmp_path: Path) -> None:
    """Row 38: the lock dies with its process, also under somebody who is waiting for it."""
    with processes() as start:
        writer = start(STEP, tmp_path / "store", "after the sync")
        until_ready(writer)
        until_stopped(writer)
        refused = threading.Event()

        class WatchedFiles(OsFiles):
            def lock(self, fd: int) -> bool:
                got = super().lock(fd)
                if not got:
                    refused.set()
                return got

        store = FileEventStore(tmp_path / "store", files=WatchedFiles())
        found: list[Appended] = []
        waiter = threading.Thread(target=lambda: found.append(append_events(store, S, make_event("d"))), daemon=True)
        waiter.start()
        assert refused.wait(DEADLINE_S)
        writer.kill()
        waiter.join(DEADLINE_S)

    assert found == [Appended(4, 4)]


def test_a_forked_child_does_not_keep_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    """Row 38: a fork in the middle of an append inherits the descriptor, and with it the lock."""
    with processes() as start:
        parent = start(FORK, tmp_path / "store")
        until_ready(parent)  # said by the child, which lives on; the parent is dead
        store = open_store(tmp_path / "store", lock_wait_s=5.0)

        assert append_events(store, S, make_event("c")).first_seq in {2, 3}
        go_on(parent)


@contextlib.contextmanager
def lock_held(path: Path) -> Iterator[None]:
    """Hold the session's lock on a descriptor of one's own."""
    fd = os.open(path / "sessions" / S / "lock", os.O_RDWR)
    files = FileEventStore(path)._env.files
    try:
        assert files.lock(fd)
        yield
    finally:
        os.close(fd)


def test_an_append_of_nothing_does_not_wait_for_the_lock(tmp_path: Path) -> None:
    """Row 3: it returns at once, and no byte changes."""
    store = open_store(tmp_path)
    append_events(store, S, *make_events("a b"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]

    with lock_held(tmp_path):
        for each in (store, open_store(tmp_path)):
            result = append_batch(each, S)
            assert (result.answers, result.last_seq_before, result.last_seq) == ((), 2, 2)
            assert each.append([]) == []
    assert [path.read_bytes() for path in files] == before


def test_every_request_of_a_batch_is_told_that_the_lock_was_kept(tmp_path: Path) -> None:
    """Row 38: and the batch says where the session stands as far as is known."""
    store = open_store(tmp_path, lock_wait_s=0.02)
    append_events(store, S, *make_events("a b"))
    with lock_held(tmp_path):
        for each in (store, open_store(tmp_path, lock_wait_s=0.02)):
            result = append_batch(each, S, *(AppendRequest(make_events("c")) for _ in range(2)))
            assert [type(answer) for answer in result.answers] == [LockTimeout, LockTimeout]
            assert (result.last_seq_before, result.last_seq) == (2, 2)
            raised_by(LockTimeout, each.reserve, S, 9)
            assert texts_of(each.read(S)) == ["a", "b"]
            assert each.last_seq(S) == 2

    assert append_events(store, S, make_event("c")) == Appended(3, 3)


def test_the_holder_is_named_where_there_is_no_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 38: then the lock file says who wrote into it last."""

    def no_proc(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(_lock, "open", no_proc, raising=False)
    append_events(open_store(tmp_path), S, make_event())
    with lock_held(tmp_path):
        store = open_store(tmp_path, lock_wait_s=0.01)
        error = raised_by(LockTimeout, append_events, store, S, make_event())
        assert error.holder_pid == os.getpid()
        (tmp_path / "sessions" / S / "lock").write_bytes(b"nobody\n")
        error = raised_by(LockTimeout, append_events, store, S, make_event())
        assert error.holder_pid is None


def test_a_removed_lock_file_excludes_nobody_by_mistake(tmp_path: Path) -> None:
    """Row 38: a process that still has the old file open locks the new one before it writes."""
    one, two = open_store(tmp_path, lock_wait_s=0.02), open_store(tmp_path, lock_wait_s=0.02)
    append_events(one, S, make_event())
    append_events(two, S, make_event())
    (tmp_path / "sessions" / S / "lock").unlink()
    assert append_events(two, S, make_event()) == Appended(3, 3)

    with lock_held(tmp_path):
        for store in (one, two):
            raised_by(LockTimeout, append_events, store, S, make_event())
    assert append_events(one, S, make_event()) == Appended(4, 4)
    assert append_events(two, S, make_event()) == Appended(5, 5)


def test_a_stalled_session_does_not_hold_up_another() -> None:
    """Row 39: one store, two threads; the sync of one session stands still, the other appends and reads."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files)
    append_events(store, S, make_event())
    stalled, gate = threading.Event(), threading.Event()

    def stall(_: object) -> None:
        stalled.set()
        assert gate.wait(DEADLINE_S)

    files.call("sync", stall, path="*.jsonl")
    thread = threading.Thread(target=append_events, args=(store, S, make_event()), daemon=True)
    thread.start()
    assert stalled.wait(DEADLINE_S)

    for seq in range(1, 4):
        assert append_events(store, "another", make_event()) == Appended(seq, seq)
    assert seqs_of(store.read("another")) == [1, 2, 3]
    # Row 43: what is not yet durable is not yet there.
    assert seqs_of(store.read(S)) == [1]
    assert store.last_seq(S) == 1
    assert list(store.sessions()) == ["another", S]
    gate.set()
    thread.join(DEADLINE_S)
    assert store.last_seq(S) == 2


def test_answers_are_in_order_when_two_stores_meet_in_one_process(tmp_path: Path) -> None:
    """Row 37: the lock keeps apart two stores of one process as it does two processes."""
    one, two = open_store(tmp_path), open_store(tmp_path)
    answers = [append_answers(store, S, AppendRequest(make_events("a b"))) for store in (one, two) * 5]

    assert answers == [(Appended(2 * turn + 1, 2 * turn + 2),) for turn in range(10)]


@pytest.mark.timeout(30)
def test_a_snapshot_by_hard_links_hangs_nobody(tmp_path: Path) -> None:
    """Row 38: a lock file with a second name is still the lock file."""
    store = open_store(tmp_path, lock_wait_s=1.0)
    append_events(store, S, make_event())
    for path in list((tmp_path / "sessions" / S).iterdir()):
        os.link(path, tmp_path / f"snapshot-{path.name}")

    for each in (store, open_store(tmp_path)):
        append_events(each, S, make_event())
    assert seqs_of(store.read(S)) == [1, 2, 3]
    with lock_held(tmp_path):
        raised_by(LockTimeout, append_events, store, S, make_event())
