"""A lone caller commits his own append: nobody is passed over, interrupted half-way, or kept waiting by it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import logmark
from logmark import Limits, _session
from logmark.actors import SessionActor, _caller
from logmark.errors import StorageRejected, WouldDeadlock
from logmark.protocol import AppendError, EventTypes
from logmark.storage import BatchResult, FileEventStore, OsFiles, SessionBatch
from logmark.testing import eventually

SOON = 20.0


class SeenStore(FileEventStore):
    """The file engine; remembers which thread committed what, and can do something in the middle of a commit."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.threads: list[str] = []
        self.batches: list[int] = []
        self.in_commit: Callable[[], None] = lambda: None

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.threads.append(threading.current_thread().name)
        self.batches.append(len(batches[0].requests))
        in_commit, self.in_commit = self.in_commit, lambda: None
        results = super().append(batches)
        in_commit()
        return results


@pytest.fixture
def store(tmp_path: Path) -> SeenStore:
    return SeenStore(tmp_path)


@pytest.fixture(autouse=True)
def _every_commit_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long one takes says how busy the machine is."""
    monkeypatch.setattr(_session, "_CALM_S_MAX", SOON)


def warmed_up(runtime: logmark.Runtime) -> logmark.Session:
    """Return a session whose last batch was one quick append, so that the next lone caller commits for himself."""
    session = runtime.session("s")
    session.append("x", "first")
    eventually(lambda: session._gate is not None and session._gate.is_calm(SOON))
    return session


def test_a_lone_caller_commits_in_his_own_thread(store: SeenStore) -> None:
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        assert [session.append("x", n) for n in range(3)] == [2, 3, 4]
        with ThreadPoolExecutor(1, thread_name_prefix="caller") as pool:
            assert pool.submit(session.append, "x").result(SOON) == 5
            assert pool.submit(session.append_many, [("x", 1), ("x", 2)]).result(SOON) == (6, 7)
        assert store.threads[0].startswith("logmark-persist")
        assert store.threads[1:] == ["MainThread"] * 3 + ["caller_0"] * 2


def test_after_a_slow_commit_a_writers_thread_does_the_next(store: SeenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is slow is not one to hold a Ctrl-C for."""
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        monkeypatch.setattr(_session, "_CALM_S_MAX", 0.0)
        assert session.append("x") == 2
        assert store.threads[1].startswith("logmark-persist")


def test_what_comes_meanwhile_is_the_next_batch_and_not_the_callers_work(store: SeenStore) -> None:
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        futures: list[Future[int]] = []
        store.in_commit = lambda: futures.extend(session.submit("x", n) for n in range(20))

        assert session.append("x", "mine") == 2
        assert [future.result(SOON) for future in futures] == list(range(3, 23))
        assert store.threads[1] == "MainThread"
        assert store.threads[2].startswith("logmark-persist")
        assert store.batches == [1, 1, 20]


def test_a_lone_caller_tells_the_readers_too(store: SeenStore) -> None:
    """To wake another thread for that would take longer."""
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        tellers: list[str] = []
        with session.subscribe(2) as subscription:
            subscription.tell(lambda: tellers.append(threading.current_thread().name))

            def is_told_here() -> bool:  # unless the BroadcastActor is in the middle of a turn that the pool gives it
                tellers.clear()
                last = session.append("x", job_id="job")
                eventually(lambda: bool(tellers), SOON)
                assert subscription.get(SOON).event_seq == last
                assert session.job("job").mark.last_seq == last
                return tellers[0] == "MainThread"

            eventually(is_told_here, SOON)


def test_a_status_rule_of_the_programs_own_runs_in_the_pool(store: SeenStore) -> None:
    """One that hangs keeps no caller, and no writer."""
    ruled: list[str] = []

    def rule(payload: object) -> str:
        ruled.append(threading.current_thread().name)
        return str(payload)

    with logmark.Runtime(store, types=EventTypes(job_status={"done": rule})) as runtime:
        session = warmed_up(runtime)
        for n in range(3):
            session.append("done", "success", job_id=f"lone-{n}")
        assert [mark.status for mark in session.jobs()] == ["success"] * 3
        futures = [session.submit("done", "success", job_id=f"one-of-many-{n}") for n in range(20)]
        for future in futures:
            future.result(SOON)
        assert len(session.jobs()) == 23
    assert len(ruled) == 23
    assert all(name.startswith("logmark-pool") for name in ruled)


def test_a_caller_who_has_his_answer_is_not_kept_by_others(store: SeenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much comes for the actors meanwhile: four turns, and the rest goes to their own threads."""
    turns: list[str] = []
    take_turn = SessionActor.take_turn

    def busy(self: SessionActor) -> bool:
        turns.append(threading.current_thread().name)
        take_turn(self)
        return len(turns) < 100

    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        monkeypatch.setattr(SessionActor, "take_turn", busy)
        assert session.append("x") == 2
        eventually(lambda: len(turns) >= 100, SOON)
        monkeypatch.undo()
        mine = turns.count("MainThread")
        assert mine <= 2 + _caller._SETTLED_TURNS_MAX
        assert session.append("x") == 3


def test_a_session_in_commit_answers_other_questions_meanwhile(store: SeenStore) -> None:
    """The SessionActor has ended its turn while its caller is at the disk: it must not wait for the caller."""
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        asked, answered = threading.Event(), threading.Event()

        def ask() -> None:
            assert asked.wait(SOON)
            with session.subscribe(1) as subscription:
                assert subscription.get(SOON).payload == "first"
            session.jobs()
            answered.set()

        def in_commit() -> None:
            asked.set()
            assert answered.wait(SOON)

        thread = threading.Thread(target=ask)
        thread.start()
        store.in_commit = in_commit
        assert session.append("x") == 2
        thread.join(SOON)
        assert answered.is_set()


def test_a_busy_session_leaves_the_writers_to_others(store: SeenStore) -> None:
    """A writer's thread that always has a next batch for one session still lets the other sessions' batches in."""
    with logmark.Runtime(store, limits=Limits(persist_threads_max=1)) as runtime:
        busy, other = warmed_up(runtime), runtime.session("other")
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.is_set():
                busy.submit("x").result(SOON)

        with ThreadPoolExecutor(8) as pool:
            callers = [pool.submit(keep_busy) for _ in range(8)]
            try:
                assert [other.submit("x").result(SOON) for _ in range(50)] == list(range(1, 51))
                assert [other.append("x") for _ in range(50)] == list(range(51, 101))
            finally:
                stop.set()
            for caller in callers:
                caller.result(SOON)


def test_callers_come_and_go_and_every_number_is_given_once(store: SeenStore) -> None:
    """From one caller to many and back, again and again: no wake-up is lost on the way."""
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        expected = 1
        with ThreadPoolExecutor(16) as pool:
            for crowd in (1, 2, 1, 16, 1, 1, 3, 16, 2, 1):
                barrier = threading.Barrier(crowd)

                def work(barrier: threading.Barrier = barrier) -> list[int]:
                    barrier.wait(SOON)
                    return [session.append("x") for _ in range(20)]

                runs = [task.result(SOON) for task in [pool.submit(work) for _ in range(crowd)]]
                assert all(run == sorted(run) for run in runs)
                expected += 20 * crowd
                assert session.last_seq == expected
        assert [event.event_seq for event in session.read()] == list(range(1, expected + 1))
        assert any(name.startswith("ThreadPool") for name in store.threads)
        assert max(store.batches) > 1


def test_a_failure_in_the_callers_thread_is_his_and_the_next_append_goes_on(
    store: SeenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        append = FileEventStore.append

        def full(self: FileEventStore, batches: Sequence[SessionBatch]) -> list[BatchResult]:
            (batch,) = batches
            error: AppendError = StorageRejected(session_id="s", reason="no space", errno=28)
            return [BatchResult(session_id="s", answers=(error,) * len(batch.requests), last_seq_before=1, last_seq=1)]

        monkeypatch.setattr(FileEventStore, "append", full)
        with pytest.raises(StorageRejected):
            session.append("x")
        monkeypatch.setattr(FileEventStore, "append", append)
        assert session.append("x") == 2
        assert not threading.current_thread().name.startswith("logmark")
        future = session.submit("x")  # this thread is not taken for one that gives turns any more
        assert future.result(SOON) == 3


def test_a_store_that_raises_in_the_callers_thread_halts_and_answers(store: SeenStore) -> None:
    def explode() -> None:
        raise RuntimeError("planned")

    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        store.in_commit = explode
        with pytest.raises(logmark.AppendUncertain):
            session.append("x")
        with pytest.raises(logmark.SessionHalted):
            session.append("x")
        assert runtime.session("other").append("x") == 1


def test_a_callback_in_the_callers_thread_may_not_wait_for_a_turn(store: SeenStore) -> None:
    """A future of the same batch is settled in the thread that commits it, whoever's that is."""
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        raised: list[BaseException] = []

        def append_again(_done: object) -> None:
            try:
                session.append("y")
            except WouldDeadlock as error:
                raised.append(error)

        def in_commit() -> None:
            session.submit("x").add_done_callback(append_again)

        store.in_commit = in_commit
        session.append("x")
        eventually(lambda: raised, timeout=SOON)
        assert session.append("x") == 4


# -- signals ---------------------------------------------------------------------------------------------------------


def test_an_interrupt_in_the_middle_of_a_commit_comes_right_after_it(store: SeenStore) -> None:
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        passed: list[bool] = []

        def interrupt() -> None:
            signal.raise_signal(signal.SIGINT)
            passed.append(True)

        store.in_commit = interrupt
        with pytest.raises(KeyboardInterrupt):
            session.append("x", "interrupted")
        assert passed  # the commit was not left half-way
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert session.append("x") == 3
        assert [event.payload for event in session.read()] == ["first", "interrupted", None]
        assert set(store.threads[1:]) == {"MainThread"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_any_handler_that_raises_does_so_right_after_the_commit(store: SeenStore, number: signal.Signals) -> None:
    """As every timeout made of SIGALRM does."""

    def handler(*_: object) -> None:
        raise TimeoutError("planned")

    before = signal.signal(number, handler)
    try:
        with logmark.Runtime(store) as runtime:
            session = warmed_up(runtime)
            passed: list[bool] = []

            def twice() -> None:
                signal.raise_signal(number)
                signal.raise_signal(number)
                passed.append(True)

            store.in_commit = twice
            with pytest.raises(TimeoutError, match="planned"):
                session.append("x")
            assert passed
            assert signal.getsignal(number) is handler
            assert session.append("x") == 3
            assert store.threads[1:] == ["MainThread"] * 2
    finally:
        signal.signal(number, before)


def test_several_signals_are_all_handled_though_the_first_handler_raises(store: SeenStore) -> None:
    heard: list[int] = []

    def handler(number: int, _frame: object) -> None:
        heard.append(number)
        raise TimeoutError(str(number))

    numbers = [signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR2]
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        with logmark.Runtime(store) as runtime:
            session = warmed_up(runtime)

            def raise_all() -> None:
                for number in numbers:
                    signal.raise_signal(number)

            store.in_commit = raise_all
            with pytest.raises(TimeoutError):
                session.append("x")
            assert sorted(heard) == sorted(numbers)
            assert [signal.getsignal(number) for number in numbers] == [handler] * 3
    finally:
        for number, original in before:
            signal.signal(number, original)


def test_sigint_that_the_program_ignores_or_handles_stays_as_it_was(store: SeenStore) -> None:
    heard: list[int] = []

    def handler(number: int, _frame: object) -> None:
        heard.append(number)

    before = signal.getsignal(signal.SIGINT)
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        try:
            signal.signal(signal.SIGINT, handler)
            store.in_commit = lambda: signal.raise_signal(signal.SIGINT)
            assert session.append("x") == 2
            assert (heard, signal.getsignal(signal.SIGINT)) == ([signal.SIGINT], handler)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            store.in_commit = lambda: signal.raise_signal(signal.SIGINT)
            assert session.append("x") == 3
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)
        assert store.threads[1:] == ["MainThread"] * 2


HOLD_THE_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_main_thread_does_not_wait_for_another_process_where_it_cannot_be_interrupted(
    store: SeenStore, tmp_path: Path
) -> None:
    """It would commit for itself, but the lock is held: then a writer's thread waits, and Ctrl-C comes through."""
    with logmark.Runtime(store) as runtime:
        session = warmed_up(runtime)
        lock = next(tmp_path.glob("sessions/*/lock"))
        with subprocess.Popen(
            [sys.executable, "-c", HOLD_THE_LOCK, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"

            def interrupt_once_it_waits() -> None:
                eventually(lambda: len(store.threads) == 3, timeout=SOON)  # the attempt here, then the writer's
                os.kill(os.getpid(), signal.SIGINT)

            thread = threading.Thread(target=interrupt_once_it_waits)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                session.append("x", "waited")
            assert store.threads[1] == "MainThread"
            assert store.threads[2].startswith("logmark-persist")
            holder.stdin.write(b"\n")
            holder.stdin.flush()
            thread.join(SOON)
        session.wait_for(2, SOON)
        assert session.append("x") == 3
        assert [event.payload for event in session.read()] == ["first", "waited", None]


# -- answers that are put off ----------------------------------------------------------------------------------------


class SlowSecondSync(OsFiles):
    """A disk that takes the second commit's sync only when it is let."""

    def __init__(self) -> None:
        self.syncs = 0
        self.began = threading.Event()
        self.through = threading.Event()

    def sync(self, fd: int, /) -> None:  # type: ignore[override]
        self.syncs += 1
        if self.syncs == 4:  # the store's own file, the segment, the first commit; then this
            self.began.set()
            assert self.through.wait(SOON)
        os.fdatasync(fd)


def test_the_callers_of_a_batch_do_not_wait_for_the_sync_of_the_next(tmp_path: Path) -> None:
    """Their answers are put off until the next batch is on its way to the disk, and no longer."""
    files = SlowSecondSync()
    store = FileEventStore(tmp_path, files=files)
    append, later = store.append, list[Future[int]]()

    def append_and_submit(batches: Sequence[SessionBatch]) -> list[BatchResult]:
        if not later:
            later.extend(session.submit("x", n) for n in range(5))
        return append(batches)

    store.append = append_and_submit  # type: ignore[method-assign]
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        first = session.submit("x", "first")
        assert files.began.wait(SOON)
        assert first.result(SOON) == 1
        assert not any(future.done() for future in later)
        files.through.set()
        assert [future.result(SOON) for future in later] == [2, 3, 4, 5, 6]


def test_the_callers_of_a_batch_do_not_wait_for_the_lock_of_the_next(store: SeenStore, tmp_path: Path) -> None:
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        futures: list[Future[int]] = []
        held: list[int] = []

        def take_the_lock() -> None:
            futures.extend(session.submit("x", n) for n in range(5))
            held.append(os.open(next(tmp_path.glob("sessions/*/lock")), os.O_RDWR))
            fcntl.flock(held[0], fcntl.LOCK_EX)

        store.in_commit = take_the_lock
        first = session.submit("x", "first")
        assert first.result(SOON) == 1
        assert not any(future.done() for future in futures)
        os.close(held[0])
        assert [future.result(SOON) for future in futures] == [2, 3, 4, 5, 6]


def test_an_engine_that_knows_nothing_of_it_has_its_callers_answered_all_the_same() -> None:
    with logmark.open("memory:") as runtime, ThreadPoolExecutor(8) as pool:
        session = runtime.session("s")
        runs = [pool.submit(lambda: [session.append("x") for _ in range(200)]) for _ in range(8)]
        assert sorted(seq for run in runs for seq in run.result(SOON)) == list(range(1, 1601))
