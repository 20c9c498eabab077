"""Pages: both ways, with gaps, and never an empty answer that could pass for "nothing new"."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import logmark
from logmark import Page
from logmark.errors import CursorAhead, ForeignCursor, InvalidArgument, SeqPruned, SessionHalted


def seqs(page: Page) -> list[int | None]:
    return [event.event_seq for event in page.events]


@pytest.fixture
def session(runtime: logmark.Runtime) -> logmark.Session:
    """A session of ten events."""
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(1, 11)])
    return session


def test_backwards_the_newest_below_a_number_ascending_row_55(session: logmark.Session) -> None:
    page = session.page(before=8, limit=3)
    assert seqs(page) == [5, 6, 7]
    assert page.has_more
    assert (page.first_seq, page.last_seq) == (5, 7)
    assert [event.payload for event in page.events] == [5, 6, 7]
    assert isinstance(page.events, tuple)
    assert seqs(session.page(limit=3)) == [8, 9, 10]
    assert seqs(session.page()) == list(range(1, 11))
    assert seqs(session.page(None, None, 4)) == [7, 8, 9, 10]
    assert seqs(session.page(11, limit=2)) == [9, 10]


def test_forwards_after_a_number_ascending_row_56(session: logmark.Session) -> None:
    page = session.page(after=4, limit=3)
    assert seqs(page) == [5, 6, 7]
    assert page.has_more
    assert seqs(session.page(after=0, limit=2)) == [1, 2]
    assert seqs(session.page(after=9)) == [10]
    assert seqs(session.page(after=10)) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"limit": 10}, False),
        ({"limit": 9}, True),
        ({"limit": 11}, False),
        ({"before": 1}, False),
        ({"before": 0}, False),
        ({"before": 2, "limit": 1}, False),
        ({"before": 3, "limit": 1}, True),
        ({"after": 10}, False),
        ({"after": 9, "limit": 1}, False),
        ({"after": 8, "limit": 1}, True),
        ({"after": 0, "limit": 10}, False),
        ({"after": 0, "limit": 9}, True),
    ],
    ids=repr,
)
def test_there_is_more_only_when_there_is_row_57(
    session: logmark.Session, arguments: dict[str, Any], expected: bool
) -> None:
    assert session.page(**arguments).has_more is expected


def test_a_page_of_nothing_says_so_row_57(runtime: logmark.Runtime, session: logmark.Session) -> None:
    """Row 57: an empty session, or a limit of 0: no rows, no more, no exception."""
    empty = runtime.session("empty")
    nothing = Page(events=(), has_more=False)
    for page in (
        empty.page(),
        empty.page(limit=0),
        empty.page(after=0),
        empty.page(before=0),
        empty.page(before=1),
        session.page(limit=0),
        session.page(before=5, limit=0),
        session.page(after=5, limit=0),
        session.page(after=10),
        session.page(before=1),
    ):
        assert page == nothing
        assert (page.first_seq, page.last_seq) == (0, 0)


def test_gaps_are_not_events_row_57(runtime: logmark.Runtime) -> None:
    """Row 8, row 57: after a reservation the log goes 1, 42; has_more counts events, not numbers."""
    session = runtime.session("s")
    session.append("x")
    runtime.store.reserve("s", 41)
    assert session.append("x") == 42
    assert (seqs(session.page()), session.page().has_more) == ([1, 42], False)
    assert (seqs(session.page(limit=1)), session.page(limit=1).has_more) == ([42], True)
    assert (seqs(session.page(before=42, limit=1)), session.page(before=42, limit=1).has_more) == ([1], False)
    assert (seqs(session.page(after=1, limit=1)), session.page(after=1, limit=1).has_more) == ([42], False)
    assert (seqs(session.page(after=0, limit=1)), session.page(after=0, limit=1).has_more) == ([1], True)
    for inside in (2, 20, 41):
        assert seqs(session.page(after=inside)) == [42]
        assert seqs(session.page(before=inside)) == [1]
        assert [event.event_seq for event in session.read(inside)] == [42]


def test_a_reservation_at_the_end_is_not_beyond_the_log(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append("x")
    runtime.store.reserve("s", 41)
    for inside in (1, 2, 41):
        assert session.page(after=inside) == Page(events=(), has_more=False)
        assert list(session.read(inside + 1)) == []
    with pytest.raises(CursorAhead):
        session.page(after=42)
    with session.subscribe(41) as subscription:
        assert session.append("x") == 42
        assert subscription.get(5).event_seq == 42


@given(
    st.lists(st.integers(1, 4), max_size=12),
    st.integers(0, 5),
    st.sampled_from(["before", "after"]),
    st.data(),
)
def test_pages_walk_through_everything_once(reserved: list[int], limit: int, way: str, data: st.DataObject) -> None:
    with logmark.open("memory:") as runtime:
        session = runtime.session("s")
        for gap in reserved:
            runtime.store.reserve("s", session.last_seq + gap - 1)
            session.append("x")
        everything = [event.event_seq or 0 for event in session.read()]
        cursor = data.draw(st.sampled_from([0, *everything, runtime.store.info("s").next_seq - 1]))
        found: list[int] = []
        if way == "after":
            page = session.page(after=cursor, limit=limit)
            while page.events:
                found += [event.event_seq or 0 for event in page.events]
                page = session.page(after=page.last_seq, limit=limit)
            expected = [seq for seq in everything if seq > cursor]
        else:
            page = session.page(before=cursor, limit=limit)
            while page.events:
                found = [event.event_seq or 0 for event in page.events] + found
                page = session.page(before=page.first_seq, limit=limit)
            expected = [seq for seq in everything if seq < cursor]
        assert not page.has_more
        assert found == (expected if limit else [])


def test_a_pruned_history_has_no_more_than_it_has_row_57(tmp_path: Path) -> None:
    """Row 57: what was removed at the front is not "more", from either side, also next to a reserved gap."""
    with logmark.open(str(tmp_path), limits=logmark.Limits(segment_bytes_max=1)) as runtime:
        session = runtime.session("s")
        session.append("x")
        runtime.store.reserve("s", 41)
        session.append_many([("x", 42), ("x", 43)])
        session.append("x")
        assert (seqs(session.page(before=42, limit=1)), session.page(before=42, limit=1).has_more) == ([1], False)
        assert session.page(before=44, limit=2).has_more
        assert session.truncate_before(42) == 42
    with logmark.open(str(tmp_path)) as runtime:
        session = runtime.session("s")
        assert (seqs(session.page()), session.page().has_more) == ([42, 43, 44], False)
        assert (seqs(session.page(before=44, limit=2)), session.page(before=44, limit=2).has_more) == ([42, 43], False)
        assert (seqs(session.page(before=44, limit=1)), session.page(before=44, limit=1).has_more) == ([43], True)
        assert session.page(before=42) == Page(events=(), has_more=False)
        assert session.page(before=2) == Page(events=(), has_more=False)
        assert (seqs(session.page(after=41, limit=3)), session.page(after=41, limit=3).has_more) == (
            [42, 43, 44],
            False,
        )
        assert (seqs(session.page(after=41, limit=2)), session.page(after=41, limit=2).has_more) == ([42, 43], True)
        for after in (0, 1, 40):
            with pytest.raises(SeqPruned) as caught:
                session.page(after=after, limit=0)
            assert (caught.value.seq, caught.value.first_available) == (after + 1, 42)


# -- positions that are not of this log ------------------------------------------------------------------------------


def test_a_position_beyond_the_log_is_an_error_row_58(session: logmark.Session) -> None:
    """Row 58: not clamped, and both numbers are told."""
    for call in (
        lambda: session.page(after=11),
        lambda: session.page(before=12),
        lambda: session.read(12),
        lambda: session.subscribe(12),
        lambda: session.page(after=2**63 - 1),
        lambda: session.read(2**63 - 1),
        lambda: session.subscribe(2**63 - 1),
    ):
        with pytest.raises(CursorAhead) as caught:
            call()
        assert caught.value.last_seq == 10
        assert caught.value.cursor > 10
        assert isinstance(caught.value, ValueError)
    with pytest.raises(CursorAhead) as exact:
        session.page(after=11)
    assert (exact.value.cursor, exact.value.last_seq) == (11, 10)
    assert list(session.read(11)) == []
    session.subscribe(11).close()


def test_a_position_in_an_empty_session(runtime: logmark.Runtime) -> None:
    session = runtime.session("empty")
    assert list(session.read(1)) == []
    session.subscribe(1).close()
    for call in (lambda: session.page(after=1), lambda: session.read(2), lambda: session.subscribe(2)):
        with pytest.raises(CursorAhead) as caught:
            call()
        assert caught.value.last_seq == 0


def test_a_position_of_another_session_is_an_error_row_58(runtime: logmark.Runtime, session: logmark.Session) -> None:
    """Row 58: an event stands for its number, in its own session only."""
    mine = next(session.read(5))
    other = runtime.session("other")
    other.append_many([("x", n) for n in range(10)])
    theirs = next(other.read(5))
    control = logmark.Envelope(type="session.ping", session_id="s")
    assert seqs(session.page(before=mine, limit=2)) == [3, 4]
    assert seqs(session.page(after=mine, limit=2)) == [6, 7]
    with session.subscribe(mine) as subscription:
        assert subscription.get(5).event_seq == 5
    for event in (theirs, control, logmark.Envelope(type="x", event_seq=5)):
        for call in (
            lambda event=event: session.page(before=event),
            lambda event=event: session.page(after=event),
            lambda event=event: session.read(event),
            lambda event=event: session.subscribe(event),
        ):
            with pytest.raises(ForeignCursor) as caught:
                call()
            assert caught.value.session_id == "s"
            assert caught.value.cursor_session_id == event.session_id


def test_a_restart_cannot_fake_nothing_new_row_61(tmp_path: Path) -> None:
    """Row 61: a position of a log that is gone, or has lost its end, is an error and not an empty success."""
    with logmark.open(str(tmp_path / "store")) as runtime:
        session = runtime.session("s")
        session.append_many([("x", n) for n in range(10)])
        cursor = session.last_seq
    shutil.rmtree(tmp_path / "store")
    with logmark.open(str(tmp_path / "store")) as runtime:
        session = runtime.session("s")
        for _ in range(2):  # empty at first, then with fewer events than the position says
            for call in (
                lambda: session.page(after=cursor),
                lambda: session.read(cursor + 1),
                lambda: session.subscribe(cursor + 1),
            ):
                with pytest.raises(CursorAhead):
                    call()
            session.append("x")


def test_arguments_that_contradict_each_other(session: logmark.Session) -> None:
    with pytest.raises(InvalidArgument, match="not both"):
        session.page(before=5, after=2)
    with pytest.raises(InvalidArgument, match="page_events_max"):
        session.page(limit=10_001)
    assert len(session.page(limit=10_000).events) == 10


# -- consistency -----------------------------------------------------------------------------------------------------


def test_a_page_taken_before_what_follows_leaves_no_gap_row_59(store_url: str) -> None:
    """Row 59: append between the page and the subscription from its end: everything is in one or the other."""
    with logmark.open(store_url) as runtime:
        session = runtime.session("s")
        session.append_many([("x", n) for n in range(5)])
        page = session.page(limit=3)
        session.append_many([("x", n) for n in range(5)])
        with session.subscribe(page.last_seq + 1) as subscription:
            session.append("x")
            seen = [*seqs(page), *(subscription.get(5).event_seq for _ in range(6))]
        assert seen == list(range(3, 12))


def test_a_page_is_a_frozen_value(session: logmark.Session) -> None:
    page = session.page(limit=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        page.has_more = False  # type: ignore[misc]
    assert page == session.page(limit=2)
    assert page != session.page(limit=1)


def test_pages_of_a_log_of_many_segments(tmp_path: Path) -> None:
    limits = logmark.Limits(segment_bytes_max=2000, read_chunk_bytes=300)
    with logmark.open(str(tmp_path), limits=limits) as runtime:
        session = runtime.session("s")
        sizes: Iterator[int] = iter([1, 7, 2, 30, 1, 1, 9, 40, 3, 6])
        for size in sizes:
            session.append_many([("x", "y" * (n * 37 % 400)) for n in range(size)])
        assert len(list(tmp_path.rglob("*.jsonl"))) > 5
        for seq in range(101):
            assert seqs(session.page(after=seq, limit=7)) == list(range(seq + 1, min(seq + 8, 101)))
            assert seqs(session.page(before=seq, limit=7)) == list(range(max(1, seq - 7), seq))


def test_a_halted_session_has_no_pages(runtime: logmark.Runtime, session: logmark.Session) -> None:
    runtime.store.halt("s", "on request")
    for arguments in ({}, {"after": 0}, {"before": 5}, {"limit": 0}):
        with pytest.raises(SessionHalted):
            session.page(**arguments)
