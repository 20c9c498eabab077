"""A session's events are pruned, it is sealed, it is deleted, here or by another runtime: who uses it is told so."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import logmark
from logmark.errors import CursorAhead, InvalidArgument, SeqPruned, SessionDeleted, SessionHalted, SessionSealed
from logmark.testing import eventually
from logmark.testing._command import CommandRun
from logmark.testing.conformance import run_together

S = "s"
WAIT_S = 60.0


@pytest.fixture(params=["memory", "files"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory:" if request.param == "memory" else str(tmp_path / "store")


@pytest.fixture
def runtime(url: str) -> Iterator[logmark.Runtime]:
    with logmark.open(url) as opened:
        yield opened


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[logmark.Runtime, logmark.Runtime]]:
    """Two runtimes on one store, as two processes would have them."""
    path = str(tmp_path / "store")
    limits = logmark.Limits(watch_interval_s=0.01)
    with logmark.open(path, limits=limits) as one, logmark.open(path, limits=limits) as two:
        yield one, two


def seqs(events: Iterator[logmark.Envelope]) -> list[int | None]:
    return [event.event_seq for event in events]


def drain(subscription: logmark.Subscription) -> None:
    while True:
        subscription.get(WAIT_S)


# -- pruning -----------------------------------------------------------------------------------------------------------


def test_what_was_pruned_is_told_from_what_was_never_there(runtime: logmark.Runtime) -> None:
    session = runtime.session(S)
    assert session.first_seq == 1
    session.append_many([("note", number) for number in range(10)])

    assert session.truncate_before(6) == 6
    assert (session.first_seq, session.last_seq) == (6, 10)
    assert seqs(session.read(6)) == [6, 7, 8, 9, 10]
    for read in (session.read, session.read_raw, session.subscribe):
        for start in (0, 1, 5):
            with pytest.raises(SeqPruned) as caught:
                read(start)
            assert (caught.value.seq, caught.value.first_available) == (max(1, start), 6)
        with pytest.raises(CursorAhead):
            read(12)
    assert session.append("note", 10) == 11
    with session.subscribe(6) as subscription:
        assert [subscription.get(WAIT_S).event_seq for _ in range(6)] == [6, 7, 8, 9, 10, 11]
    info = next(iter(runtime.sessions()))
    assert (info.first_available, info.first_seq, info.last_seq, info.sealed) == (6, 6, 11, False)


def test_what_cannot_be_pruned_is_refused(runtime: logmark.Runtime) -> None:
    session = runtime.session(S)
    session.append_many([("note", number) for number in range(3)])

    with pytest.raises(CursorAhead) as caught:
        session.truncate_before(5)
    assert (caught.value.cursor, caught.value.last_seq) == (5, 3)
    for wrong in (-1, True, "4", 2.0, None):
        with pytest.raises(InvalidArgument):
            session.truncate_before(wrong)  # type: ignore[arg-type]
    runtime.store.halt(S, "why")
    with pytest.raises(SessionHalted):
        session.truncate_before(2)
    runtime.store.clear_halt(S)
    assert session.first_seq == 1


def test_the_newest_may_be_removed_and_no_number_is_given_again_row_54(url: str) -> None:
    """Row 54: all events are removed, the store is opened anew, and the next number is above the last one."""
    runtime = logmark.open(url)
    session = runtime.session(S)
    session.append_many([("note", number) for number in range(3)])
    assert session.truncate_before(4) == 4
    assert (session.first_seq, session.last_seq, list(session.read(4))) == (4, 3, [])
    assert session.page() == session.page(after=3)
    if url != "memory:":
        runtime.close()
        runtime = logmark.open(url)
    with runtime:
        session = runtime.session(S)
        assert (session.first_seq, session.last_seq) == (4, 3)
        assert session.append("note", expected_seq=3) == 4
        runtime.delete_session(S)
        with pytest.raises(SessionDeleted) as caught:
            session.append("note")
        assert caught.value.last_seq == 4


def test_a_subscriber_that_is_behind_is_told_from_where_to_go_on(runtime: logmark.Runtime) -> None:
    session = runtime.session(S)
    session.append_many([("note", number) for number in range(10)])
    with session.subscribe(1) as behind, session.subscribe() as ahead:
        session.truncate_before(8)
        with pytest.raises(SeqPruned) as caught:
            behind.get(WAIT_S)
        assert (caught.value.seq, caught.value.first_available) == (1, 8)
        with pytest.raises(SeqPruned):
            behind.get(WAIT_S)
        session.append("note")
        assert ahead.get(WAIT_S).event_seq == 11
        first_available = caught.value.first_available
    with session.subscribe(first_available) as again:
        assert [again.get(WAIT_S).event_seq for _ in range(4)] == [8, 9, 10, 11]


def test_marks_count_what_was_pruned(url: str) -> None:
    """Also after a restart without a snapshot, for jobs of which no event is left, and again and again."""
    if url == "memory:":
        pytest.skip("nothing is left of it after a restart")
    limits = logmark.Limits(marks_unsaved_events_max=10**9)
    expected: list[logmark.JobMark] = []
    for turn in range(3):
        with logmark.open(url, limits=limits) as runtime:
            session = runtime.session(S)
            for number in range(4):
                session.append("job.event", number, job_id="long")
            session.append("job.result", job_id=f"short-{turn}")
            session.append("note")
            assert session.jobs()[: len(expected)][1:] == expected[1:]
            expected = session.jobs()
            if turn == 1:
                runtime.store.reserve(S, 20)
            assert session.truncate_before([5, 21, 24][turn]) == [5, 21, 24][turn]
            assert session.jobs() == expected
    with logmark.open(url, limits=limits) as runtime:
        assert runtime.session(S).jobs() == expected
    assert [(mark.job_id, mark.first_seq, mark.last_seq, mark.count, mark.status) for mark in expected] == [
        ("long", 1, 24, 12, "running"),
        ("short-0", 5, 5, 1, "success"),
        ("short-1", 11, 11, 1, "success"),
        ("short-2", 25, 25, 1, "success"),
    ]


def test_marks_by_functions_count_what_was_pruned(tmp_path: Path) -> None:
    """Nobody can say whether a function still decides as it did; what it decided of events that are gone stays."""
    rules = {"paused": lambda _payload: "paused", "resumed": lambda _payload: "running"}
    for status in ("paused", "running"):
        with logmark.open(str(tmp_path), job_status=rules) as runtime:
            session = runtime.session(S)
            if status == "running":
                assert session.job("j").mark.status == "paused"
            session.append(status if status == "paused" else "resumed", job_id="j")
            session.truncate_before(session.last_seq + 1)
    with logmark.open(str(tmp_path)) as runtime:
        mark = runtime.session(S).job("j").mark
        assert (mark.first_seq, mark.last_seq, mark.count, mark.status) == (1, 2, 2, "running")


def test_pruning_by_one_runtime_is_seen_by_another(pair: tuple[logmark.Runtime, logmark.Runtime]) -> None:
    """Its readers, its subscribers that are behind, and its marks, which it had not looked at by then."""
    one, two = pair
    mine, theirs = one.session(S), two.session(S)
    mine.append_many([("note", number) for number in range(5)])
    mine.append("job.event", job_id="j")
    with theirs.subscribe(1) as behind:
        assert behind.get(WAIT_S).event_seq == 1
        assert theirs.job("j").mark.count == 1
        mine.append_many([logmark.Envelope(type="job.event", payload=None, job_id="j") for _ in range(600)])
        mine.truncate_before(600)
        assert theirs.first_seq == 600
        with pytest.raises(SeqPruned) as caught:
            drain(behind)
        assert caught.value.first_available == 600
        assert theirs.job("j").mark == mine.job("j").mark
        assert theirs.job("j").mark.count == 601
        assert theirs.append("note") == 607
        assert seqs(mine.read(606)) == [606, 607]


def test_readers_writers_and_pruning_at_once(pair: tuple[logmark.Runtime, logmark.Runtime]) -> None:
    one, two = pair
    mine, theirs = one.session(S), two.session(S)
    done = threading.Event()

    def write() -> None:
        for turn in range(40):
            mine.append_many([("note", number) for number in range(5)])
            if turn % 5 == 4:
                mine.truncate_before(mine.last_seq - 3)
        done.set()

    def follow() -> None:
        at = 1
        while at <= 200:
            with contextlib.suppress(SeqPruned), theirs.subscribe(max(at, theirs.first_seq)) as subscription:
                at = subscription.next_seq
                while at <= 200:
                    assert subscription.get(WAIT_S).event_seq == at
                    at += 1

    mine.append("note")
    run_together(write, follow)
    assert done.is_set()
    assert two.store.verify(S) == []


# -- sealing -----------------------------------------------------------------------------------------------------------


def test_a_sealed_session_is_read_and_not_written(runtime: logmark.Runtime) -> None:
    session = runtime.session(S)
    session.append("note", 1, id="first")
    with session.subscribe(1) as subscription:
        assert session.seal() == 1
        assert session.seal() == 1
        with pytest.raises(SessionSealed) as caught:
            session.append("note", 2)
        assert (caught.value.session_id, caught.value.last_seq) == (S, 1)
        with pytest.raises(SessionSealed):
            session.submit("note", 2).result(WAIT_S)
        assert session.append("note", 1, id="first") == 1
        assert subscription.get(WAIT_S).payload == 1
        with pytest.raises(logmark.errors.WaitTimeout):
            subscription.get(0)
    assert [event.payload for event in session.read()] == [1]
    assert next(iter(runtime.sessions())).sealed


def test_a_seal_by_one_runtime_stops_another(pair: tuple[logmark.Runtime, logmark.Runtime]) -> None:
    one, two = pair
    for number in range(20):
        two.session(S).append("note", number)
    assert one.session(S).seal() == 20
    for _ in range(3):
        with pytest.raises(SessionSealed):
            two.session(S).append("note")
    assert two.session("other").append("note") == 1
    assert two.session(S).last_seq == 20


# -- deleting ----------------------------------------------------------------------------------------------------------


def test_a_deleted_session_is_gone_for_good(runtime: logmark.Runtime) -> None:
    session = runtime.session(S)
    session.append_many([("job.event", None), ("note", None)])
    session.append("job.event", job_id="j")
    session.jobs()
    for _ in range(2):
        runtime.delete_session(S)

    calls = (
        lambda: session.append("note"),
        lambda: session.submit("note").result(WAIT_S),
        lambda: session.append_many([("note", 1)]),
        session.read,
        session.page,
        lambda: session.page(after=3),
        session.subscribe,
        lambda: session.subscribe(1),
        session.jobs,
        lambda: session.job("j").mark,
        lambda: session.wait_for(4, WAIT_S),
        session.seal,
        lambda: session.truncate_before(1),
        lambda: session.first_seq,
        lambda: runtime.session(S).read(),
    )
    for call in calls:
        with pytest.raises(SessionDeleted) as caught:
            call()
        assert (caught.value.session_id, caught.value.last_seq) == (S, 3)
    assert list(runtime.sessions()) == []
    assert session.last_seq == 3
    for wrong in ("", 7, "x" * 201):
        with pytest.raises(InvalidArgument):
            runtime.delete_session(wrong)  # type: ignore[arg-type]


def test_who_waits_for_a_session_is_told_that_it_was_deleted(runtime: logmark.Runtime) -> None:
    session = runtime.session(S)
    session.append("note")
    subscription = session.subscribe(1)
    assert subscription.get(WAIT_S).event_seq == 1
    caught: list[SessionDeleted] = []

    def follow() -> None:
        with pytest.raises(SessionDeleted) as error:
            for _ in subscription:
                pass
        caught.append(error.value)

    def wait() -> None:
        with pytest.raises(SessionDeleted) as error:
            session.wait_for(2, WAIT_S)
        caught.append(error.value)

    run_together(follow, wait, lambda: runtime.delete_session(S))
    assert [error.last_seq for error in caught] == [1, 1]
    subscription.close()


def test_a_deletion_by_one_runtime_is_told_to_the_readers_of_another(
    pair: tuple[logmark.Runtime, logmark.Runtime],
) -> None:
    one, two = pair
    one.session(S).append("note")
    theirs = two.session(S)
    subscription = theirs.subscribe(1)
    assert subscription.get(WAIT_S).event_seq == 1
    assert theirs.append("job.event", job_id="j") == 2
    assert theirs.job("j").mark.count == 1
    one.delete_session(S)

    with pytest.raises(SessionDeleted):
        theirs.append("note")
    with pytest.raises(SessionDeleted):
        theirs.jobs()
    with pytest.raises(SessionDeleted):
        drain(subscription)
    eventually(lambda: theirs.deleted is not None, timeout=WAIT_S)
    assert two.session("other").append("note") == 1


# -- from the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def pruned(tmp_path: Path) -> str:
    """A store with a session that was pruned and sealed, one that was emptied, one that is whole and one deleted."""
    path = str(tmp_path / "store")
    with logmark.open(path) as runtime:
        for name in ("emptied", "pruned", "whole", "gone"):
            runtime.session(name).append_many(
                [logmark.Envelope(type="job.event", payload=number, job_id="j") for number in range(5)]
            )
        runtime.session("emptied").truncate_before(6)
        runtime.session("pruned").truncate_before(4)
        runtime.session("pruned").cursor("ui").ack(5)
        runtime.session("pruned").seal()
        runtime.delete_session("gone")
    return path


def test_the_commands_show_what_is_kept(pruned: str, run: Callable[..., CommandRun]) -> None:
    shown = {row["session_id"]: row for row in run("ls", "--json", "--store", pruned).objects}
    assert list(shown) == ["emptied", "pruned", "whole"]
    assert [(row["first_available"], row["sealed"], row["count"], row["last_seq"]) for row in shown.values()] == [
        (6, False, 0, 5),
        (4, True, 2, 5),
        (1, False, 5, 5),
    ]
    assert {row["jobs"][0]["count"] for row in shown.values()} == {5}
    table = run("ls", "--store", pruned).out
    assert "sealed, pruned below 4" in table
    assert "ok, pruned below 6" in table

    (info,) = run("info", "pruned", "--json", "--store", pruned).objects
    assert (info["first_available"], info["sealed"], info["count"], info["jobs"][0]["count"]) == (4, True, 2, 5)
    assert "below 4" in run("info", "pruned", "--store", pruned).out
    (info,) = run("info", "emptied", "--json", "--store", pruned).objects
    assert (info["first_available"], info["last_seq"], info["count"], info["jobs"][0]["last_seq"]) == (6, 5, 0, 5)

    viewed = run("view", "pruned", "--json", "--store", pruned)
    assert [json.loads(line)["event_seq"] for line in viewed.out.splitlines()] == [4, 5]
    assert "before 4 were pruned" in viewed.err
    refused = run("view", "pruned", "--from", "2", "--store", pruned)
    assert (refused.code, refused.out) == (2, "")
    assert "the first that is available is 4" in refused.err
    assert run("view", "gone", "--store", pruned).code == 2
    assert all(row["ok"] for row in run("verify", "--json", "--store", pruned).objects)


@pytest.mark.parametrize("engine", ["files", "sqlite"])
def test_a_copy_is_as_long_as_its_source(
    pruned: str, tmp_path: Path, engine: str, run: Callable[..., CommandRun]
) -> None:
    """What was pruned, sealed and kept beside the log is so in the copy, also when it was copied before that."""
    target = str(tmp_path / "copy") if engine == "files" else f"sqlite:{tmp_path / 'copy.db'}"
    for _ in range(2):
        copied = {row["session_id"]: row for row in run("copy", "--json", pruned, target).objects}
        assert all(row["ok"] for row in copied.values())
        assert (copied["pruned"]["first_available"], copied["pruned"]["sealed"]) == (4, True)
    with logmark.open(pruned) as mine, logmark.open(target) as theirs:
        assert list(theirs.store.sessions()) == ["emptied", "pruned", "whole"]
        for name in ("emptied", "pruned", "whole"):
            one, other = mine.store.info(name), theirs.store.info(name)
            assert (one.first_available, one.next_seq, one.sealed) == (
                other.first_available,
                other.next_seq,
                other.sealed,
            )
            assert mine.session(name).jobs() == theirs.session(name).jobs()
        assert theirs.session("pruned").cursor("ui").position == 5
        with pytest.raises(SessionSealed):
            theirs.session("pruned").append("note")
        assert theirs.session("emptied").append("note") == 6
        mine.session("emptied").append_many([("note", number) for number in range(3)])
        mine.session("whole").truncate_before(3)
    assert run("copy", pruned, target, "emptied").code == 1  # both have gone on
    assert run("copy", "--json", pruned, target, "whole").objects[0]["first_available"] == 3
    with logmark.open(target) as theirs:
        assert theirs.session("whole").first_seq == 3
