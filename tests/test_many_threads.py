"""Many threads at once: every number once, every subscriber everything, and few commits for many appends."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

import pytest

import logmark
from logmark import Envelope
from logmark.protocol import AppendUncertain, StorageRejected
from logmark.storage import BatchResult, FileEventStore, MemoryEventStore, SessionBatch
from logmark.testing import eventually

SOON = 60.0


class HeldStore(MemoryEventStore):
    """A store whose commits wait until they are let through, and that counts them."""

    def __init__(self, *, held: bool = True) -> None:
        super().__init__()
        self.commits = 0
        self.began = threading.Event()
        self.through = threading.Event()
        self.fail_next: StorageRejected | None = None
        if not held:
            self.through.set()

    def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
        self.began.set()
        assert self.through.wait(SOON)
        self.commits += 1
        error, self.fail_next = self.fail_next, None
        if error is None:
            return super().append(batches)
        return [
            BatchResult(
                session_id=batch.session_id,
                answers=(error,) * len(batch.requests),
                last_seq_before=self.last_seq(batch.session_id),
                last_seq=self.last_seq(batch.session_id),
            )
            for batch in batches
        ]


def start_threads(count: int, work: Callable[[int], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    return threads


def join_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "events_each"), [("file", 2000), ("memory", 300)])
def test_16_threads_append_to_4_sessions(tmp_path: Path, engine: str, events_each: int) -> None:
    """Every append gets a number of its own; per thread the numbers rise; live and late subscribers see all of it."""
    threads_count, session_ids = 16, [f"s{n}" for n in range(4)]
    store_url = str(tmp_path) if engine == "file" else "memory:"
    per_session = threads_count * events_each // len(session_ids)
    with logmark.open(store_url) as runtime:
        sessions = [runtime.session(session_id) for session_id in session_ids]
        numbers: list[list[tuple[int, int]]] = [[] for _ in range(threads_count)]

        def write(index: int) -> None:
            for n in range(events_each):
                chosen = (index + n) % len(sessions)
                seq = sessions[chosen].append("job.event", {"from": index, "n": n}, job_id=f"job-{index % 3}")
                numbers[index].append((chosen, seq))

        live: list[list[logmark.Envelope]] = [[] for _ in sessions]

        def follow(chosen: int) -> None:
            with sessions[chosen].subscribe(1) as subscription:
                live[chosen] += [subscription.get(SOON) for _ in range(per_session)]

        followers = start_threads(len(sessions), follow)
        writers = start_threads(threads_count, write)
        late: list[list[logmark.Envelope]] = [[] for _ in sessions]

        def follow_late(chosen: int) -> None:
            sessions[chosen].wait_for(per_session // 2, SOON)
            with sessions[chosen].subscribe(1) as subscription:
                late[chosen] += [subscription.get(SOON) for _ in range(per_session)]

        late_followers = start_threads(len(sessions), follow_late)
        join_all(writers)
        join_all(followers + late_followers)
        for chosen, session in enumerate(sessions):
            given = [seq for mine in numbers for where, seq in mine if where == chosen]
            assert sorted(given) == list(range(1, per_session + 1))
            for mine in numbers:
                own = [seq for where, seq in mine if where == chosen]
                assert own == sorted(own)
            stored = list(session.read())
            assert [event.event_seq for event in stored] == list(range(1, per_session + 1))
            assert live[chosen] == late[chosen] == stored
            for event in stored:
                assert numbers[event.payload["from"]][event.payload["n"]] == (chosen, event.event_seq)
            counts = collections.Counter(event.job_id for event in stored)
            assert {mark.job_id: mark.count for mark in session.jobs()} == counts
    if store_url != "memory:":
        with logmark.open(store_url) as runtime:
            assert [info.last_seq for info in runtime.sessions()] == [per_session] * len(session_ids)


def test_what_one_thread_submits_is_stored_in_that_order_row_50(runtime: logmark.Runtime) -> None:
    """Row 50: also a submission before an append that waits."""
    session = runtime.session("s")

    def write(index: int) -> None:
        for n in range(100):
            if n % 10 == 9:
                session.append("x", (index, n))
            elif n % 10 == 5:
                session.append_many([("x", (index, n))])
            else:
                session.submit("x", (index, n))

    join_all(start_threads(8, write))
    stored = [tuple(event.payload) for event in session.read()]
    for index in range(8):
        assert [n for owner, n in stored if owner == index] == list(range(100))


def test_a_batch_is_contiguous_and_whole_among_many_row_2(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    ranges: list[tuple[int, int, int]] = []

    def write(index: int) -> None:
        for n in range(20):
            size = (index + n) % 7 + 1
            first, last = session.append_many([("x", index)] * size)
            assert last - first + 1 == size
            ranges.append((first, last, index))
            session.submit("x", "between")

    with session.subscribe(1) as subscription:
        join_all(start_threads(8, write))
        session.append("x", "end")
        total = session.last_seq
        payloads = [subscription.get(SOON).payload for _ in range(total)]
    assert payloads == [event.payload for event in session.read()]
    for first, last, index in ranges:
        assert payloads[first - 1 : last] == [index] * (last - first + 1)


def test_64_appends_at_once_share_their_commits_row_51() -> None:
    """Row 51: what comes while a commit is on its way becomes the next commit, whole."""
    store = HeldStore()
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        numbers: list[int] = []
        first = session.submit("x")
        assert store.began.wait(SOON)
        futures = [session.submit("x") for _ in range(31)]
        writers = start_threads(32, lambda _: numbers.append(session.append("x")))
        gate = session._gate
        assert gate is not None
        eventually(lambda: gate.events == 64, SOON, what="all of them are accepted")
        store.through.set()
        join_all(writers)
        numbers += [future.result(SOON) for future in (first, *futures)]
        assert sorted(numbers) == list(range(1, 65))
        assert store.commits <= 3


def test_a_lone_append_is_written_at_once_row_50() -> None:
    """Row 50: nothing waits for company: as many commits as appends, and no timer is involved."""
    store = HeldStore(held=False)
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        for seq in range(1, 21):
            assert session.append("x") == seq
            assert store.commits == seq


def test_nothing_is_seen_before_it_is_durable_row_43() -> None:
    """Row 43, row 44: while the disk is busy the future is open and nobody can find the event."""
    store = HeldStore()
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        with session.subscribe(1) as subscription:
            future = session.submit("job.event", job_id="j")
            assert store.began.wait(SOON)
            with pytest.raises(TimeoutError):
                subscription.get(timeout=0.02)
            assert not future.done()
            assert session.last_seq == 0
            assert list(session.read()) == []
            assert session.page().events == ()
            assert session.job("j").mark.count == 0
            with pytest.raises(TimeoutError):
                session.wait_for(1, timeout=0.01)
            store.through.set()
            assert subscription.get(SOON).event_seq == 1
            assert future.result(SOON) == 1


def test_a_failed_append_is_seen_by_nobody_and_its_number_goes_to_one_event_row_45() -> None:
    """Row 45, row 47: the caller gets the error, nothing is shown, and the number is announced for one event only."""
    store = HeldStore(held=False)
    with logmark.Runtime(store) as runtime:
        session = runtime.session("s")
        with session.subscribe(1) as subscription:
            assert session.append("x", "first", job_id="j") == 1
            for n in range(5):
                store.fail_next = StorageRejected(session_id="s", reason="no space left", errno=28)
                with pytest.raises(StorageRejected, match="no space left"):
                    session.append("x", f"failed {n}", job_id="j")
                assert session.last_seq == 1 + n
                assert session.job("j").mark.count == 1 + n
                assert session.append("x", f"good {n}", job_id="j") == 2 + n
            assert [subscription.get(SOON).payload for _ in range(6)] == ["first", *(f"good {n}" for n in range(5))]
            assert [event.payload for event in session.read()] == ["first", *(f"good {n}" for n in range(5))]


def test_a_store_that_raises_answers_everybody_and_halts_the_session_only() -> None:
    """A store may not raise; one that does leaves the outcome unknown, and nobody hanging."""

    class Raising(MemoryEventStore):
        def append(self, batches: Sequence[SessionBatch]) -> list[BatchResult]:
            if batches[0].session_id == "bad":
                raise RuntimeError("out of order")
            return super().append(batches)

    with logmark.Runtime(Raising()) as runtime:
        bad, good = runtime.session("bad"), runtime.session("good")
        futures: list[Future[int]] = [bad.submit("x") for _ in range(20)]
        assert wait(futures, SOON).not_done == set()
        errors = [future.exception() for future in futures]
        assert isinstance(errors[0], AppendUncertain)
        assert all(isinstance(error, logmark.errors.AppendError) for error in errors)
        assert good.append("x") == 1
        assert runtime.store.halted("bad") is not None


def test_writers_on_several_runtimes_share_the_numbers(tmp_path: Path) -> None:
    """Row 37 in one process: four runtimes hold the directory, all numbers are unique and contiguous."""
    runtimes = [logmark.Runtime(FileEventStore(tmp_path)) for _ in range(4)]
    numbers: list[int] = []

    def write(index: int) -> None:
        session = runtimes[index].session("s")
        numbers.extend(session.append("x", index) for _ in range(100))

    with runtimes[0].session("s").subscribe(1) as subscription:
        join_all(start_threads(4, write))
        assert sorted(numbers) == list(range(1, 401))
        assert [subscription.get(SOON).event_seq for _ in range(400)] == list(range(1, 401))
    for runtime in runtimes:
        assert len(list(runtime.session("s").read())) == 400
        runtime.close()


def test_a_batch_larger_than_a_commit_is_still_whole(store_url: str) -> None:
    limits = logmark.Limits(batch_events_max=10, batch_bytes_max=2000)
    with logmark.open(store_url, limits=limits) as runtime:
        session = runtime.session("s")
        futures = [session.submit("x", n) for n in range(50)]
        first, last = session.append_many([Envelope(type="y", payload="z" * 100)] * 100)
        assert last - first == 99
        assert [future.result(SOON) for future in futures] == list(range(1, 51))
        assert {event.type for event in session.read(first)} == {"y"}
