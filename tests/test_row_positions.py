"""Rows that change keep their place: whatever is appended, pruned, restarted or killed in between, on every engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import logmark
from logmark.actors import RowActor
from logmark.errors import (
    CursorAhead,
    InvalidArgument,
    InvalidEvent,
    SessionDeleted,
    SessionHalted,
    StorageUnavailable,
    WouldDeadlock,
)
from logmark.protocol import Limits, RawEnvelope
from logmark.storage import EventStore
from logmark.testing import CapturedLogs, eventually

SOON = 30.0
DURABLE = pytest.mark.parametrize("every_store_url", ["file", "sqlite", "postgresql"], indirect=True)


def positions(page: logmark.RowPage) -> list[tuple[str, int, int]]:
    return [(row.row_id, row.position, row.last_seq) for row in page.rows]


def test_an_upsert_keeps_the_position_and_replaces_the_content(every_store_url: str) -> None:
    """Row 42: the number of an existing row stays and its content is another; a new row gets the next number."""
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        assert s.upsert("m1", "message", {"text": "a"}) == 1
        assert s.append("note", "between") == 2
        assert s.upsert("m2", "message", {"text": "x"}, job_id="j") == 3
        assert s.upsert("m1", "message.done", {"text": "ab"}, final=True) == 4
        assert s.upsert("m3", "message", None) == 5

        page = s.rows()
        assert positions(page) == [("m1", 1, 4), ("m2", 3, 3), ("m3", 5, 5)]
        assert [(row.type, row.payload, row.job_id, row.final) for row in page.rows] == [
            ("message.done", {"text": "ab"}, None, True),
            ("message", {"text": "x"}, "j", False),
            ("message", None, None, False),
        ]
        assert (page.has_more, page.first_position, page.last_position, page.last_seq) == (False, 1, 5, 5)
        row = s.row("m1")
        assert row is not None
        assert (row.position, row.last_seq, row.id, row.timestamp) == (1, 4, row.event.id, row.event.timestamp)
        assert s.row("m4") is None
        # Every change is an event of its own, for whoever follows.
        assert [(event.event_seq, event.extensions.get("row_id")) for event in s.read()] == [
            (1, "m1"),
            (2, None),
            (3, "m2"),
            (4, "m1"),
            (5, "m3"),
        ]


def test_a_row_is_there_when_its_upsert_has_returned(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        for n in range(60):
            s.upsert(f"m{n % 7}", "message", n)
            assert max(s.rows().rows, key=lambda row: row.last_seq).payload == n


def test_a_retry_by_id_changes_nothing(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        assert s.upsert("m1", "message", "a", id="one") == 1
        assert s.upsert("m1", "message", "ab", id="two") == 2
        assert s.upsert("m1", "message", "again", id="one") == 1
        assert [(row.last_seq, row.payload) for row in s.rows().rows] == [(2, "ab")]


def test_pages_have_the_right_bounds_also_across_gaps(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        for n in range(5):
            s.upsert(f"m{n}", "message", n)
        rt.store.reserve("chat", 20)
        for n in range(5, 8):
            s.upsert(f"m{n}", "message", n)
        s.upsert("m0", "message", "last")  # event 24

        newest = s.rows(limit=3)
        assert ([row.position for row in newest.rows], newest.has_more) == ([21, 22, 23], True)
        older = s.rows(before=newest.first_position, limit=3)
        assert ([row.position for row in older.rows], older.has_more) == ([3, 4, 5], True)
        oldest = s.rows(before=older.rows[0], limit=3)
        assert ([row.position for row in oldest.rows], oldest.has_more) == ([1, 2], False)
        assert [row.position for row in s.rows(before=15, limit=2).rows] == [4, 5]

        upwards = s.rows(after=0, limit=4)
        assert ([row.position for row in upwards.rows], upwards.has_more) == ([1, 2, 3, 4], True)
        upwards = s.rows(after=upwards.rows[-1], limit=4)
        assert ([row.position for row in upwards.rows], upwards.has_more) == ([5, 21, 22, 23], False)
        assert s.rows(after=23) == logmark.RowPage(rows=(), has_more=False, last_seq=24)
        assert s.rows(limit=0) == logmark.RowPage(rows=(), has_more=False, last_seq=24)
        nothing = s.rows(before=1)
        assert (nothing.rows, nothing.has_more, nothing.first_position, nothing.last_position) == ((), False, 0, 0)


def test_a_session_without_rows_has_none(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        assert rt.session("empty").rows() == logmark.RowPage(rows=(), has_more=False, last_seq=0)
        rt.session("plain").append("note", 1)
        assert rt.session("plain").rows() == logmark.RowPage(rows=(), has_more=False, last_seq=1)


def test_rows_whose_content_was_pruned_are_gone_and_the_others_stand_where_they_stood(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        for n in range(4):
            s.upsert(f"m{n}", "message", n)
        s.upsert("m1", "message", "kept")  # event 5
        s.upsert("m4", "message", 4)  # event 6
        assert len(s.rows().rows) == 5
        rt.store.truncate_before("chat", 5)

        expected = [("m1", 2, 5), ("m4", 6, 6)]
        assert positions(s.rows()) == expected
        assert positions(s.rows(before=6, limit=1)) == expected[:1]
        assert s.rows(before=6, limit=1).has_more is False
        assert s.row("m0") is None
        with logmark.open(every_store_url) if rt.store.is_shared else logmark.open("memory:") as other:
            if rt.store.is_shared:  # what was never seen before it was pruned
                assert positions(other.session("chat").rows()) == expected

        assert s.upsert("m0", "message", "again") == 7  # a new row of an old name
        assert positions(s.rows()) == [*expected, ("m0", 7, 7)]
        rt.store.reserve("chat", 10)
        rt.store.truncate_before("chat", 11)  # with the numbers that no event has
        assert s.rows().rows == ()
        assert s.row("m0") is None
        assert s.upsert("m0", "message", "once more") == 11
        assert positions(s.rows()) == [("m0", 11, 11)]


@DURABLE
def test_positions_outlive_the_process_and_the_pruning(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        for n in range(6):
            s.upsert(f"m{n % 3}", "message", n)
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        assert s.upsert("m1", "message", "later") == 7  # asked for nothing before
        rt.store.truncate_before("chat", 6)
    with logmark.open(every_store_url) as rt:
        assert positions(rt.session("chat").rows()) == [("m1", 2, 7), ("m2", 3, 6)]


@DURABLE
def test_who_came_second_in_making_a_row_does_not_move_it_when_the_first_is_pruned(every_store_url: str) -> None:
    """The one event that does not say where its row stands: its writer had not seen the other's."""
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        assert s.upsert("m0", "message", 0) == 1
        assert s.upsert("m1", "message", "first") == 2
        fields = {"row_id": "m1", "row_absent_at": 1}
        assert s.append("message", "second", extensions=fields) == 3
        assert s.upsert("m2", "message", "later") == 4
        expected = [("m1", 2, 3), ("m2", 4, 4)]
        assert positions(s.rows(after=1)) == expected
        assert s.truncate_before(3) == 3
        assert positions(s.rows()) == expected
        assert s.upsert("m0", "message", "a new one") == 5  # heard of at once, without a look at the rows
        assert positions(s.rows()) == [*expected, ("m0", 5, 5)]
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        assert positions(s.rows()) == [*expected, ("m0", 5, 5)]
        assert s.truncate_before(4) == 4
        assert positions(s.rows()) == [("m2", 4, 4), ("m0", 5, 5)]


@DURABLE
def test_a_row_that_another_process_pruned_and_made_again_is_a_new_one(every_store_url: str) -> None:
    """Who still remembers the old one finds it where everybody else does."""
    with logmark.open(every_store_url) as mine, logmark.open(every_store_url) as others:
        here, there = mine.session("chat"), others.session("chat")
        assert here.upsert("m0", "message", 0) == 1
        assert here.upsert("m1", "message", 1) == 2
        assert positions(here.rows()) == [("m0", 1, 1), ("m1", 2, 2)]
        assert there.truncate_before(2) == 2
        assert there.upsert("m0", "message", "again") == 3
        assert positions(there.rows()) == positions(here.rows()) == [("m1", 2, 2), ("m0", 3, 3)]


@DURABLE
def test_a_pruning_that_fails_half_way_moves_no_row(every_store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for after it is there already, and what it should have removed is too."""
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        for n in range(4):
            s.upsert(f"m{n}", "message", n)
        s.append("message", "second", extensions={"row_id": "m1", "row_absent_at": 1})
        s.append("message", "second", extensions={"row_id": "m3", "row_absent_at": 1})
        assert s.truncate_before(3) == 3
        expected = [("m1", 2, 5), ("m2", 3, 3), ("m3", 4, 6)]

        def fails(session_id: str, seq: int) -> int:
            raise StorageUnavailable(store=rt.store.url, reason=f"for the test: {session_id} {seq}")

        monkeypatch.setattr(rt.store, "truncate_before", fails)
        with pytest.raises(StorageUnavailable):
            s.truncate_before(6)
        assert positions(s.rows()) == expected
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        assert positions(s.rows()) == expected
        assert s.truncate_before(6) == 6
        assert positions(s.rows()) == expected[2:]


def test_a_session_without_rows_is_pruned_without_an_index_of_them(
    every_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded: list[int] = []
    original = RowActor._fold

    def fold(self: RowActor, envelopes: tuple[RawEnvelope, ...]) -> None:
        folded.extend(event.event_seq or 0 for event in envelopes)
        original(self, envelopes)

    monkeypatch.setattr(RowActor, "_fold", fold)
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        s.append("note", 1)
        s.append("note", 2)
        s.truncate_before(2)
        assert folded == [1, 2]  # asked once
        s.append("note", 3)
        s.upsert("m1", "message", 1)  # and from here on
        s.append("note", 4)
        assert positions(s.rows()) == [("m1", 4, 4)]
        assert folded == [1, 2, 3, 4, 5]


def test_pages_are_whole_while_rows_are_written_and_pruned(every_store_url: str) -> None:
    with logmark.open(every_store_url, durability="os") as rt:
        s = rt.session("chat")
        done = threading.Event()

        def write() -> None:
            try:
                for n in range(120):
                    s.upsert(f"m{n % 50}", "message", n)
            finally:
                done.set()

        def prune() -> None:
            while not done.is_set():
                s.truncate_before(max(1, s.last_seq - 25))

        def look() -> None:
            while not done.is_set():
                page = s.rows(limit=40)
                places = [row.position for row in page.rows]
                assert places == sorted(set(places))
                assert len({row.row_id for row in page.rows}) == len(places)
                assert all(row.event.extensions["row_id"] == row.row_id for row in page.rows)
                assert all(row.position <= row.last_seq <= page.last_seq for row in page.rows)

        with ThreadPoolExecutor(4) as pool:
            works = [pool.submit(work) for work in (write, prune, look, look)]
            assert all(work.exception(4 * SOON) is None for work in works)
        assert positions(s.rows()) == recount(rt)
        if rt.store.is_shared:  # who folds it anew finds the same
            with logmark.open(every_store_url) as other:
                assert positions(other.session("chat").rows()) == positions(s.rows())


def test_one_row_made_by_several_at_once_has_one_position(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        others = [logmark.open(every_store_url) for _ in range(2)] if rt.store.is_shared else []
        try:
            runtimes = [rt, *others]
            start = threading.Barrier(len(runtimes) * 2)

            def work(which: int) -> None:
                s = runtimes[which % len(runtimes)].session("chat")
                start.wait(SOON)
                for n in range(10):
                    s.upsert(f"m{n}", "message", [which, n])

            with ThreadPoolExecutor(len(runtimes) * 2) as pool:
                list(pool.map(work, range(len(runtimes) * 2)))
            pages = [positions(each.session("chat").rows()) for each in runtimes]
            assert pages == [recount(rt)] * len(runtimes)
            assert len(pages[0]) == 10
        finally:
            for each in others:
                each.close()


def recount(rt: logmark.Runtime, session_id: str = "chat") -> list[tuple[str, int, int]]:
    """Return what the rows are by the log alone: a row is where its first event is, unless that was pruned."""
    rows: dict[str, tuple[int, int]] = {}
    first_available = rt.store.info(session_id).first_available
    for event in rt.store.read(session_id, from_seq=first_available):
        row_id = event.extensions.get("row_id")
        seq = event.event_seq or 0
        if row_id is not None:
            known = event.extensions.get("row_position", seq)
            rows[row_id] = (rows[row_id][0] if row_id in rows else known, seq)
    return sorted(((row_id, *row) for row_id, row in rows.items()), key=lambda row: row[1])


ROW_IDS = st.sampled_from([f"m{n}" for n in range(6)])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), ROW_IDS),
        st.tuples(st.just("append"), st.just("")),
        st.tuples(st.just("prune"), st.integers(0, 12)),
        st.tuples(st.just("restart"), st.just("")),
        st.tuples(st.just("look"), st.integers(1, 4)),
        st.tuples(st.just("reserve"), st.integers(1, 3)),
    ),
    max_size=40,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS)
def test_rows_are_what_a_recount_of_the_log_finds(
    every_store_url: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    """A model beside the log: what every row was created by, and what it holds."""
    is_memory = every_store_url == "memory:"
    session_id = f"chat-{next(NUMBERS)}"
    rows: dict[str, tuple[int, int, Any]] = {}
    rt = logmark.open(every_store_url, limits=Limits(marks_unsaved_events_max=7), durability="os")
    try:
        for step, argument in steps:
            s = rt.session(session_id)
            if step == "upsert":
                payload = {"text": argument, "at": s.last_seq}
                seq = s.upsert(argument, "message", payload)
                rows[argument] = (rows[argument][0] if argument in rows else seq, seq, payload)
            elif step == "append":
                s.append("note", 1)
            elif step == "reserve":
                rt.store.reserve(session_id, s.last_seq + argument)
            elif step == "restart" and not is_memory:
                rt.close()
                rt = logmark.open(every_store_url, limits=Limits(marks_unsaved_events_max=7), durability="os")
            elif step == "prune":
                first = s.truncate_before(max(1, s.last_seq - argument))
                rows = {row_id: row for row_id, row in rows.items() if row[1] >= first}
            elif step == "look":
                ordered = sorted(rows.items(), key=lambda row: row[1][0])
                page = s.rows(limit=argument)
                found = [(row.row_id, (row.position, row.last_seq, row.payload)) for row in page.rows]
                assert found == ordered[-argument:]
                assert page.has_more == (len(ordered) > argument)
        expected = sorted(((row_id, *row[:2]) for row_id, row in rows.items()), key=lambda row: row[1])
        assert positions(rt.session(session_id).rows()) == expected
        assert recount(rt, session_id) == expected
    finally:
        rt.close()


NUMBERS = iter(range(1, 1_000_000))


class Counted:
    """Counts what is read of a store."""

    def __init__(self, store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        self.events = 0
        original = store.read

        def read(*args: Any, **kwargs: Any) -> Iterator[RawEnvelope]:
            self.reads += 1
            for event in original(*args, **kwargs):
                self.events += 1
                yield event

        monkeypatch.setattr(store, "read", read)

    def take(self) -> tuple[int, int]:
        taken = self.reads, self.events
        self.reads = self.events = 0
        return taken


def chat(s: logmark.Session, *, rows: int, every: int, updates: int) -> list[tuple[str, int, int]]:
    """Write so many rows, some of them streamed; return where they stand."""
    events: list[logmark.Envelope] = []
    expected: list[tuple[str, int, int]] = []
    for n in range(rows):
        row_id, position = f"m{n}", len(events) + 1
        events.append(logmark.Envelope(type="message", payload={"n": n}, extensions={"row_id": row_id}))
        for update in range(updates if n % every == 0 else 0):
            fields = {"row_id": row_id, "row_position": position}
            events.append(logmark.Envelope(type="message", payload={"n": n, "u": update}, extensions=fields))
        expected.append((row_id, position, len(events)))
    for start in range(0, len(events), 4096):
        s.append_many(events[start : start + 4096])
    return expected


def test_a_page_of_a_long_chat_costs_what_one_of_a_short_chat_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: CapturedLogs
) -> None:
    """In reads, not in seconds, which say how busy the machine is."""
    costs: dict[str, list[tuple[int, int]]] = {}
    shapes = {"short": 100, "long": 10_000}
    with logmark.open(f"file:{tmp_path}", durability="os") as rt:
        for name, count in shapes.items():
            s = rt.session(name)
            expected = chat(s, rows=count, every=10, updates=50)
            assert positions(s.rows()) == expected[-50:]
            s.append("note", "so that the index is a little behind")
        eventually(lambda: logs.named("snapshot_saved", session="long", name="rows"), SOON)
    with logmark.open(f"file:{tmp_path}", durability="os") as rt:
        counted = Counted(rt.store, monkeypatch)
        for name, count in shapes.items():
            s = rt.session(name)
            s.row("none")
            opened = counted.take()
            newest = s.rows()
            costs[name] = [counted.take()]
            assert (newest.rows[-1].row_id, newest.has_more) == (f"m{count - 1}", True)
            s.rows(before=newest.first_position)
            costs[name].append(counted.take())
            assert positions(s.rows()) == positions(newest)
            assert counted.take() == (0, 0)  # what everybody looks at is read once
            if name == "long":
                assert opened[1] <= 3 * rt.limits.marks_unsaved_events_max  # of 60,000: what was saved was not read
    assert costs["long"][0] == costs["short"][0]
    assert all(reads <= 7 and events == 50 for reads, events in (*costs["long"], *costs["short"]))


@DURABLE
def test_a_cold_open_reads_what_came_after_the_snapshot_and_nothing_else(
    every_store_url: str, monkeypatch: pytest.MonkeyPatch, logs: CapturedLogs
) -> None:
    limits = Limits(marks_unsaved_events_max=100)
    with logmark.open(every_store_url, limits=limits) as rt:
        s = rt.session("chat")
        expected = chat(s, rows=20, every=1, updates=20)
        s.rows()
        eventually(lambda: rt.store.load_snapshot("chat", "rows") is not None, SOON)
        s.append("note", 1)
    with logmark.open(every_store_url, limits=limits) as rt:
        counted = Counted(rt.store, monkeypatch)
        assert rt.session("chat").row("none") is None
        assert counted.take()[1] <= 1
        assert logs.named("rows_taken_over")[-1]["rows"] == 20
        assert positions(rt.session("chat").rows()) == expected


def test_a_snapshot_of_another_form_is_not_taken_over(tmp_path: Path, logs: CapturedLogs) -> None:
    with logmark.open(f"file:{tmp_path}") as rt:
        rt.session("chat").upsert("m1", "message", 1)
        rt.store.save_snapshot("chat", "rows", logmark.storage.Snapshot(1, b'{"v":0}'))
    with logmark.open(f"file:{tmp_path}") as rt:
        assert positions(rt.session("chat").rows()) == [("m1", 1, 1)]
    assert logs.named("rows_not_taken_over", session="chat")


@pytest.mark.parametrize("name", ["on_receive", "on_drained", "_fold", "_on_loaded"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_row_actor_that_raises_has_the_right_rows_again(
    raise_once: Callable[..., list[Any]], name: str, after: bool
) -> None:
    for call in range(1, 6):
        raised = raise_once(RowActor, name, call=call, after=after)
        with logmark.open("memory:") as rt:
            s = rt.session("chat")
            for n in range(8):
                s.upsert(f"m{n % 3}", "message", n)
                assert s.rows().last_seq == n + 1
            assert positions(s.rows()) == recount(rt)
        if not raised:
            break


def test_an_index_that_a_failure_has_left_half_done_is_not_used_any_more(raise_once: Callable[..., list[Any]]) -> None:
    with logmark.open("memory:") as rt:
        s = rt.session("chat")
        s.upsert("m1", "message", 1)
        left = s._row_index
        assert left is not None
        assert left.includes(0)
        raise_once(RowActor, "_fold")
        s.upsert("m1", "message", 2)
        assert positions(s.rows()) == [("m1", 1, 2)]
        assert not left.includes(0)


def test_rows_of_a_session_that_cannot_be_read_are_refused(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        for session_id in ("halted", "deleted"):
            s = rt.session(session_id)
            s.upsert("m1", "message", 1)
            assert len(s.rows().rows) == 1
        rt.store.halt("halted", "for the test")
        rt.store.delete("deleted")
        for session_id, error in (("halted", SessionHalted), ("deleted", SessionDeleted)):
            s = rt.session(session_id)
            with pytest.raises(error):
                s.rows()
            with pytest.raises(error):
                s.row("m1")
            with pytest.raises(error):
                s.upsert("m1", "message", 2)


def test_what_no_row_can_be_is_refused(runtime: logmark.Runtime) -> None:
    s = runtime.session("chat")
    s.upsert("m1", "message", 1)
    for row_id in ("", None, 7, "x" * 201, "é" * 101, "\ud800"):
        with pytest.raises(InvalidEvent):
            s.upsert(row_id, "message", 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidEvent, match="row_final"):
        s.upsert("m1", "message", 1, extensions={"row_final": True})
    with pytest.raises(InvalidArgument):
        s.rows(before=1, after=1)
    for limit in (-1, 10_001, True):
        with pytest.raises(InvalidArgument):
            s.rows(limit=limit)
    with pytest.raises(CursorAhead):
        s.rows(after=2)
    with pytest.raises(CursorAhead):
        s.rows(before=3)
    with pytest.raises(InvalidArgument):
        s.row("")
    assert s.last_seq == 1


def test_rows_are_not_asked_for_in_an_actors_own_thread(runtime: logmark.Runtime) -> None:
    s = runtime.session("chat")
    s.upsert("m1", "message", 1)
    raised: list[BaseException] = []
    done = threading.Event()

    def ask(_: object) -> None:
        for call in (s.rows, lambda: s.row("m1"), lambda: s.upsert("m1", "message", 2)):
            try:
                call()
            except WouldDeadlock as error:
                raised.append(error)
        done.set()

    for _ in range(20):  # a future that is settled already calls back in this thread
        s.submit("note", 1).add_done_callback(ask)
        if done.wait(0.2) and raised:
            break
        done.clear()
    assert len(raised) >= 3


def test_fields_that_only_look_like_a_rows_are_left_alone(runtime: logmark.Runtime) -> None:
    s = runtime.session("chat")
    s.append("note", {"row_id": "in the payload"})
    for fields in ({"row_id": 7}, {"row_id": ""}, {"row_id": None}, {"row_position": 1}):
        s.append("note", 1, extensions=fields)
    assert s.rows().rows == ()
    s.append("note", 1, extensions={"row_id": "a", "row_position": 99})  # beyond itself
    s.append("note", 1, extensions={"row_id": "b", "row_position": 6, "row_final": "yes"})  # taken
    s.append("note", 1, extensions={"row_id": "c", "row_position": True, "row_absent_at": "x"})
    assert positions(s.rows()) == [("a", 6, 6), ("b", 7, 7), ("c", 8, 8)]
    assert [row.final for row in s.rows().rows] == [False, False, False]


def test_a_page_and_what_follows_it_leave_no_gap(every_store_url: str) -> None:
    """Row 59: a page says which event it includes last; a subscription from the next one has all that changes it."""
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        for n in range(5):
            s.upsert(f"m{n}", "message", n)
        page = s.rows()
        s.upsert("m2", "message", "in between")
        with s.subscribe(page.last_seq + 1) as sub:
            state = {row.row_id: row.payload for row in page.rows}
            s.upsert("m5", "message", "after")
            for _ in range(2):
                event = sub.get(SOON)
                state[event.extensions["row_id"]] = event.payload
        assert state == {row.row_id: row.payload for row in s.rows().rows}
