"""Reading through the front door: from a number, lazily, by job; waiting for a number; the mark of a job."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import JobMark, Limits
from logmark.errors import InvalidArgument, SessionHalted, WaitTimeout
from logmark.storage import FileEventStore, OsFiles

SOON = 5.0


def seqs(events: Any) -> list[int | None]:
    return [event.event_seq for event in events]


class CountingFiles(OsFiles):
    """The real files, and how many bytes were read from them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_read = 0

    def read(self, fd: int, size: int, offset: int) -> bytes:
        data = super().read(fd, size, offset)
        self.bytes_read += len(data)
        return data


def test_reading_is_inclusive_and_0_is_1_row_16(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    for n in range(1, 11):
        session.append("x", {"n": n}, job_id=f"j{n % 3}")
    assert seqs(session.read(0)) == seqs(session.read(1)) == seqs(session.read()) == list(range(1, 11))
    assert seqs(session.read(from_seq=9)) == [9, 10]
    assert seqs(session.read(10)) == [10]
    assert seqs(session.read(11)) == []
    assert seqs(session.read(limit=0)) == []
    assert seqs(session.read(limit=3)) == [1, 2, 3]
    assert seqs(session.read(9, limit=2**40)) == [9, 10]
    assert seqs(session.read(job_id="j1")) == [1, 4, 7, 10]
    assert seqs(session.read(2, 2, "j1")) == [4, 7]
    assert seqs(session.read(job_id="none")) == []
    assert seqs(session.job("j2").read(3)) == [5, 8]
    event = next(session.read(7))
    assert seqs(session.read(event)) == [7, 8, 9, 10]
    assert [raw.payload_json for raw in session.read_raw(9)] == [b'{"n":9}', b'{"n":10}']


def test_reading_is_as_of_the_call_and_lazy(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(5)])
    events = session.read()
    assert next(events).event_seq == 1
    session.append("x")
    assert seqs(events) == [2, 3, 4, 5]
    assert seqs(events) == []
    unread = session.read()
    session.append("x")
    assert len(list(unread)) == 6


def test_what_is_not_read_costs_nothing(tmp_path: Path) -> None:
    """Reading near either end, or in the middle, of a log of 4 MB brings in a few chunks and not the log."""
    limits = Limits(read_chunk_bytes=32 * 1024)
    files = CountingFiles()
    with logmark.Runtime(FileEventStore(tmp_path, limits=limits, files=files), limits=limits) as runtime:
        session = runtime.session("s")
        session.append_many([("x", "y" * 1000)] * 4000)
        for take in (
            lambda: itertools.islice(session.read(), 3),
            lambda: session.read(limit=3),
            lambda: session.read(3998),
            lambda: session.page(limit=3).events,
            lambda: session.page(before=2000, limit=3).events,
            lambda: session.page(after=2000, limit=3).events,
            lambda: itertools.islice(session.subscribe(2000), 3),
        ):
            files.bytes_read = 0
            assert len(list(take())) == 3
            assert 0 < files.bytes_read <= 6 * 32 * 1024
        files.bytes_read = 0
        assert session.last_seq == 4000
        assert files.bytes_read < 1000


def test_wrong_arguments_of_reading_are_named(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append("x")
    numbers: list[Any] = [-1, "1", 1.0, True, 2**63]
    calls: dict[str, Callable[[Any], object]] = {
        "from_seq": session.read,
        "from_seq ": session.subscribe,
        "limit": lambda number: session.read(1, number),
        "limit ": lambda number: session.page(limit=number),
        "before": lambda number: session.page(before=number),
        "after": lambda number: session.page(after=number),
        "seq": lambda number: session.wait_for(number, timeout=0),
    }
    for name, call in calls.items():
        for number in numbers:
            with pytest.raises(InvalidArgument, match=name.strip()):
                call(number)
    for call in (calls["from_seq"], calls["limit "], calls["seq"]):
        with pytest.raises(InvalidArgument):
            call(None)
    names: list[Any] = ["", 5, b"j", ["j"]]
    for name in names:
        for call in (session.job, lambda name: session.read(job_id=name), lambda name: session.subscribe(1, name)):
            with pytest.raises(InvalidArgument, match="job_id"):
                call(name)


# -- wait_for --------------------------------------------------------------------------------------------------------


def test_wait_for_returns_when_the_number_is_durable_row_68(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.wait_for(0, timeout=0)
    with pytest.raises(WaitTimeout, match="event 1") as caught:
        session.wait_for(1, timeout=0.01)
    assert isinstance(caught.value, TimeoutError)
    futures = [session.submit("x") for _ in range(20)]
    session.wait_for(20, timeout=SOON)
    assert session.last_seq >= 20
    assert futures[-1].result(SOON) == 20
    session.wait_for(7)
    session.wait_for(20, timeout=0)
    session.wait_for(20, timeout=-1)
    session.wait_for(20, timeout=float("inf"))
    timeouts: list[Any] = ["1", float("nan"), True, [1]]
    for timeout in timeouts:
        with pytest.raises(InvalidArgument, match="timeout"):
            session.wait_for(20, timeout=timeout)


def test_waiting_for_a_number_above_a_reservation(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append("x")
    runtime.store.reserve("s", 41)
    with pytest.raises(WaitTimeout):
        session.wait_for(2, timeout=0.01)
    assert session.append("x") == 42
    for seq in (2, 41, 42):
        session.wait_for(seq, timeout=SOON)


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_has_a_mark(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    job = session.job("build-7")
    assert job.mark == JobMark(job_id="build-7", first_seq=0, last_seq=0, count=0, status="pending")
    session.append("x")
    assert job.append("job.event", {"n": 1}, id="01J", stream_seq=5) == 2
    session.append("x", job_id="other")
    session.append("job.result", {"final_status": "cancelled"}, job_id="build-7")
    mark = job.mark
    assert (mark.job_id, mark.first_seq, mark.last_seq, mark.count, mark.status) == ("build-7", 2, 4, 2, "cancelled")
    assert session.jobs() == [mark, JobMark(job_id="other", first_seq=3, last_seq=3, count=1, status="running")]
    assert seqs(job.read()) == [2, 4]
    assert job.session is session
    assert repr(job) == "<Job 'build-7' of 's'>"
    with job.subscribe(1) as subscription:
        assert [subscription.get(SOON).event_seq for _ in range(2)] == [2, 4]


# -- halted ----------------------------------------------------------------------------------------------------------


def test_a_halted_session_refuses_and_the_others_go_on(runtime: logmark.Runtime) -> None:
    session, other = runtime.session("s"), runtime.session("other")
    session.append("x", {"n": 1}, job_id="j")
    runtime.store.halt("s", "on request")
    for call in (
        lambda: session.append("x"),
        lambda: session.submit("x").result(SOON),
        lambda: list(session.read()),
        session.page,
    ):
        with pytest.raises(SessionHalted, match="on request"):
            call()
    assert seqs(session.read(halted_ok=True)) == [1]
    assert session.last_seq == 1
    assert other.append("x") == 1
    runtime.store.clear_halt("s")
    assert session.append("x") == 2
