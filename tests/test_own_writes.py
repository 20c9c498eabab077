"""Everyone reads their own writes: when an append has returned, every question includes it, in whatever thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import logmark
from logmark import Envelope, Limits

SOON = 30.0


def check(session: logmark.Session, seq: int, job_id: str, count: int) -> None:
    assert session.last_seq >= seq
    assert next(session.read(seq)).event_seq == seq
    assert session.page(limit=1).last_seq >= seq
    assert [event.event_seq for event in session.page(before=seq + 1, limit=1).events] == [seq]
    assert [event.event_seq for event in session.page(after=seq - 1, limit=1).events] == [seq]
    mark = session.job(job_id).mark
    assert (mark.last_seq, mark.count) == (seq, count)
    assert next(each for each in session.jobs() if each.job_id == job_id) == mark
    session.wait_for(seq, timeout=0)


def run_threads(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("how", ["append", "submit", "append_many"])
def test_many_threads_each_with_a_job_of_their_own(runtime: logmark.Runtime, how: str) -> None:
    session = runtime.session("s")

    def work(index: int) -> None:
        job_id = f"job-{index}"
        for count in range(1, 31):
            if how == "append":
                seq = session.append("job.event", count, job_id=job_id)
            elif how == "submit":
                seq = session.submit("job.event", count, job_id=job_id).result(SOON)
            else:
                seq = session.append_many([Envelope(type="job.event", job_id=job_id)])[1]
            check(session, seq, job_id, count)

    run_threads(8, work)
    assert [event.event_seq for event in session.read()] == list(range(1, 241))
    assert {(mark.job_id, mark.count) for mark in session.jobs()} == {(f"job-{index}", 30) for index in range(8)}


def test_a_terminal_is_seen_at_once(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")

    def work(index: int) -> None:
        for round_ in range(20):
            job = session.job(f"job-{index}-{round_}")
            assert job.mark.status == "pending"
            job.append("job.event")
            assert job.mark.status == "running"
            job.append("job.result", {"final_status": "cancelled"})
            assert job.mark.status == "cancelled"

    run_threads(4, work)


def test_the_first_question_for_marks_of_a_long_log_includes_the_last_append(store_url: str) -> None:
    """The marks are derived from the log when they are first asked for, while others go on appending."""
    with logmark.open(store_url) as runtime:
        for _ in range(5):
            runtime.session("s").append_many([("x", n) for n in range(2000)])
        with logmark.Runtime(runtime.store) as fresh:
            session = fresh.session("s")

            def work(index: int) -> None:
                for count in range(1, 11):
                    seq = session.append("job.event", job_id=f"job-{index}")
                    mark = session.job(f"job-{index}").mark
                    assert (mark.last_seq, mark.count) == (seq, count)

            run_threads(4, work)


def test_several_runtimes_on_one_directory(tmp_path: Path) -> None:
    """What one runtime has appended, the others answer with as well, at once: they ask the store."""
    limits = Limits(watch_interval_s=0.005)
    runtimes = [logmark.open(str(tmp_path), limits=limits) for _ in range(3)]
    sessions = [runtime.session("s") for runtime in runtimes]
    counts: dict[str, int] = {}
    for round_ in range(30):
        writer = sessions[round_ % 3]
        job_id = f"job-{round_ % 2}"
        counts[job_id] = counts.get(job_id, 0) + 1
        seq = writer.append("job.event", round_, job_id=job_id)
        assert seq == round_ + 1
        for session in sessions:
            check(session, seq, job_id, counts[job_id])
    for runtime in runtimes:
        runtime.close()


def test_an_append_in_one_session_does_not_wait_for_another(runtime: logmark.Runtime) -> None:
    """Row 4: sessions are independent, also in what they answer."""

    def work(index: int) -> None:
        session = runtime.session(f"s{index}")
        for seq in range(1, 21):
            assert session.append("job.event", job_id="j") == seq
            check(session, seq, "j", seq)

    run_threads(6, work)
