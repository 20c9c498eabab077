"""A reader's position outlives the process, never goes back, and is never taken for one of another log."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

import logmark
from logmark.errors import (
    CursorAhead,
    ForeignCursor,
    InvalidArgument,
    LogmarkError,
    RuntimeClosed,
    SchemaMismatch,
    SeqPruned,
    SessionDeleted,
    SessionHalted,
    StaleCursor,
)

SOON = 30.0
DURABLE = pytest.mark.parametrize("every_store_url", ["file", "sqlite", "postgresql"], indirect=True)
WORKER = Path(__file__).with_name("workers") / "rows_until_killed.py"
ROUNDS = int(os.environ.get("LOGMARK_KILL_ROUNDS", "2"))


def fill(s: logmark.Session, events: int) -> None:
    s.append_many([("note", n) for n in range(events)])


def test_an_acknowledgement_never_goes_back(every_store_url: str) -> None:
    """Row 66: 5, then 3, stays 5, and what is unread is counted from 5."""
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        fill(s, 8)
        cursor = s.cursor("ui")
        assert (cursor.name, cursor.position, cursor.lag, s.cursors()) == ("ui", 0, 8, [])
        assert cursor.ack(5) == 5
        assert cursor.ack(3) == 5
        assert cursor.ack(0) == 5
        assert cursor.ack(5) == 5
        assert (cursor.position, cursor.lag) == (5, 3)
        (mark,) = s.cursors()
        assert (mark.name, mark.position, mark.lag) == ("ui", 5, 3)
        assert abs(mark.updated_at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=5)
        # Another object of the same name, with nothing remembered, is the same cursor.
        other = s.cursor("ui")
        assert other.ack(7) == 7
        assert cursor.ack(6) == 7
        assert cursor.position == 7


def test_a_subscription_goes_on_behind_what_was_acknowledged(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        fill(s, 4)
        with s.subscribe(cursor="ui") as sub:
            seen = [sub.get(SOON) for _ in range(3)]
        assert [event.event_seq for event in seen] == [1, 2, 3]  # nothing was acknowledged before
        assert s.cursor("ui").ack(seen[1]) == 2
        with s.subscribe(cursor="ui") as sub:  # what was seen and not acknowledged comes again
            assert [sub.get(SOON).event_seq for _ in range(2)] == [3, 4]
            s.append("note", "live")
            assert sub.get(SOON).event_seq == 5
        assert s.cursor("ui").ack(5) == 5
        with s.subscribe(cursor=s.cursor("ui")) as sub:
            with pytest.raises(TimeoutError):
                sub.get(0)
            s.append("note", "live")
            assert sub.get(SOON).event_seq == 6


@DURABLE
def test_the_next_runtime_goes_on_where_the_last_one_stopped(every_store_url: str) -> None:
    """Row 61: after a restart, a cursor gets what is new, and not nothing."""
    with logmark.open(every_store_url) as rt:
        fill(rt.session("chat"), 4)
        rt.session("chat").cursor("ui").ack(3)
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        assert s.cursor("ui").position == 3
        with s.subscribe(cursor="ui") as sub:
            assert sub.get(SOON).event_seq == 4


def test_a_position_beyond_the_log_or_of_another_session_is_refused(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s, other = rt.session("chat"), rt.session("other")
        fill(s, 3)
        fill(other, 9)
        cursor = s.cursor("ui")
        with pytest.raises(CursorAhead):
            cursor.ack(4)
        with pytest.raises(ForeignCursor):
            cursor.ack(next(other.read()))
        with pytest.raises(ForeignCursor):
            cursor.ack(logmark.Envelope(type="note", session_id="chat"))
        with pytest.raises(StaleCursor) as raised:
            cursor.ack(logmark.Envelope(type="note", session_id="chat", event_seq=2, id="of another log"))
        assert (raised.value.seq, raised.value.event_id) == (2, "of another log")
        for wrong in (-1, True, "3", None):
            with pytest.raises(InvalidArgument):
                cursor.ack(wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="both"):
            s.subscribe(1, cursor="ui")
        with pytest.raises(ForeignCursor, match="other"):
            s.subscribe(cursor=other.cursor("ui"))
        assert (cursor.position, s.cursors()) == (0, [])
        rt.store.reserve("chat", 10)
        assert cursor.ack(7) == 7  # a number that was used, if not by an event
        assert s.cursor("ui").position == 7


def test_a_cursor_of_a_store_restored_from_an_older_copy_is_told_so(every_store_url: str) -> None:
    """Row 61: shorter than it was, or grown again with other events: an error either way, and never "nothing new"."""
    with logmark.open("memory:") as lost:
        fill(lost.session("chat"), 5)
        lost.session("chat").cursor("ui").ack(5)
        kept = lost.store.load_record("chat", "cursor:ui")
        assert kept is not None
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        fill(s, 3)
        rt.store.save_record("chat", "cursor:ui", kept.data, version=0)
        for use in (lambda: s.cursor("ui"), lambda: s.subscribe(cursor="ui")):
            with pytest.raises(CursorAhead):
                use()
        fill(s, 4)
        for use in (lambda: s.cursor("ui"), lambda: s.subscribe(cursor="ui")):
            with pytest.raises(StaleCursor, match="chat") as raised:
                use()
            assert (raised.value.name, raised.value.seq) == ("ui", 5)
        assert [(mark.name, mark.position, mark.lag) for mark in s.cursors()] == [("ui", 5, 2)]
        assert s.delete_cursor("ui") is True
        assert s.delete_cursor("ui") is False
        with s.subscribe(cursor="ui") as sub:
            assert sub.get(SOON).event_seq == 1


def test_a_cursor_below_what_is_kept_is_told_where_to_go_on(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        fill(s, 8)
        cursor = s.cursor("ui")
        cursor.ack(4)
        rt.store.truncate_before("chat", 5)
        assert s.cursor("ui").position == 4
        with s.subscribe(cursor="ui") as sub:
            assert sub.get(SOON).event_seq == 5
        rt.store.truncate_before("chat", 7)
        with pytest.raises(SeqPruned) as raised:
            s.subscribe(cursor="ui")
        assert (raised.value.seq, raised.value.first_available) == (5, 7)
        assert s.cursor("ui").ack(raised.value.first_available - 1) == 6
        with s.subscribe(cursor="ui") as sub:
            assert sub.get(SOON).event_seq == 7


def test_the_cursors_of_a_halted_session_are_there(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        fill(s, 3)
        for name in ("b", "a"):
            s.cursor(name).ack(2)
        rt.store.halt("chat", "for the test")
        assert [(mark.name, mark.position, mark.lag) for mark in s.cursors()] == [("a", 2, 1), ("b", 2, 1)]
        assert s.cursor("a").ack(3) == 3
        with s.subscribe(cursor="b") as sub, pytest.raises(SessionHalted):
            sub.get(SOON)


def test_a_deleted_cursor_begins_again_and_a_deleted_session_has_none(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        fill(s, 3)
        cursor = s.cursor("ui")
        cursor.delete()
        cursor.ack(2)
        cursor.delete()
        cursor.delete()
        assert (cursor.position, s.cursors()) == (0, [])
        assert cursor.ack(1) == 1
        rt.store.delete("chat")
        for use in (lambda: cursor.position, lambda: cursor.ack(2), lambda: s.cursor("ui"), s.cursors):
            with pytest.raises(SessionDeleted):
                use()


@pytest.mark.parametrize("name", ["", "x" * 194, "é" * 97, "\ud800", None, 7])
def test_what_no_cursor_can_be_called_is_refused(name: object) -> None:
    with logmark.open("memory:") as rt:
        for use in (rt.session("chat").cursor, rt.session("chat").delete_cursor):
            with pytest.raises(InvalidArgument):
                use(name)  # type: ignore[arg-type]


def test_any_other_name_will_do(every_store_url: str) -> None:
    names = ["x" * 193, "a/b", "..", "a b\n", "é" * 96, "CON", "a", "A", "cursor:x"]
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        fill(s, len(names))
        for seq, name in enumerate(names, 1):
            s.cursor(name).ack(seq)
        rt.store.save_record("chat", "of somebody else", b"x", version=0)
        assert {mark.name: mark.position for mark in s.cursors()} == {name: n for n, name in enumerate(names, 1)}


def test_a_cursor_of_another_version_is_not_guessed_at() -> None:
    with logmark.open("memory:") as rt:
        rt.store.save_record("chat", "cursor:ui", orjson.dumps({"v": 9}), version=0)
        with pytest.raises(SchemaMismatch):
            rt.session("chat").cursor("ui")


def test_a_closed_runtime_has_no_cursors() -> None:
    rt = logmark.open("memory:")
    s = rt.session("chat")
    cursor = s.cursor("ui")
    rt.close()
    for use in (lambda: cursor.position, lambda: cursor.ack(1), cursor.delete, s.cursors, lambda: s.cursor("ui")):
        with pytest.raises(RuntimeClosed):
            use()


def test_several_who_acknowledge_at_once_only_ever_move_forward(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        fill(rt.session("chat"), 60)
        others = [logmark.open(every_store_url)] if rt.store.is_shared else []
        try:
            runtimes = [rt, *others]
            start = threading.Barrier(4)

            def work(which: int) -> list[int]:
                cursor = runtimes[which % len(runtimes)].session("chat").cursor("ui")
                start.wait(SOON)
                return [cursor.ack(seq) for seq in range(which + 1, 61, 4)]

            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(work, range(4)))
            for which, told in enumerate(answers):
                assert told == sorted(told)
                assert all(position >= seq for position, seq in zip(told, range(which + 1, 61, 4), strict=True))
            assert rt.session("chat").cursor("ui").position == 60
        finally:
            for each in others:
                each.close()


@pytest.mark.parametrize(("overtaking", "position"), [(3, 5), (7, 7)])
def test_who_is_overtaken_while_it_acknowledges_looks_again(
    every_store_url: str, monkeypatch: pytest.MonkeyPatch, overtaking: int, position: int
) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        fill(s, 8)
        save = rt.store.save_record

        def first(meanwhile: Callable[[], object]) -> None:
            """Have something happen between the look at the record and its replacement."""

            def save_after(session_id: str, name: str, data: bytes | None, *, version: int) -> int:
                monkeypatch.setattr(rt.store, "save_record", save)
                meanwhile()
                return save(session_id, name, data, version=version)

            monkeypatch.setattr(rt.store, "save_record", save_after)

        cursor = s.cursor("ui")
        first(lambda: s.cursor("ui").ack(overtaking))
        assert cursor.ack(5) == position
        assert cursor.position == position
        first(cursor.delete)
        assert cursor.ack(8) == 8
        first(cursor.delete)
        assert s.delete_cursor("ui") is False  # somebody else has
        cursor.ack(1)
        first(lambda: s.cursor("ui").ack(2))
        assert s.delete_cursor("ui") is True
        assert s.cursors() == []


@pytest.mark.parametrize("engine", ["file", "sqlite", "postgresql"])
def test_killed_again_and_again_nothing_that_was_told_is_lost(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Kill processes that upsert rows and acknowledge what they see; ``LOGMARK_KILL_ROUNDS`` says how often."""
    url = f"{engine}:{tmp_path / 'store'}"
    if engine == "postgresql":
        url = request.getfixturevalue("postgres_server").url(schema="killed_rows")
    told: dict[str, tuple[int, str, int]] = {}
    acked = 0
    for number in range(ROUNDS):
        name = f"p{number}"
        with subprocess.Popen([sys.executable, str(WORKER), url, name], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = list(itertools.islice(process.stdout, 30 + 7 * number))
            process.kill()
            lines += process.stdout
        assert lines[0].startswith("ack "), lines
        began_at = int(lines[0].split()[1])
        assert began_at >= acked  # what was told to be durable is
        seen = [int(line.split()[1]) for line in lines if line.startswith("seen ") and line.endswith("\n")]
        # From behind the position on, and no number was missed or came twice.
        assert seen == list(range(began_at + 1, began_at + 1 + len(seen)))
        for line in lines:
            match line.split():
                case ["ack", position] if line.endswith("\n"):
                    acked = max(acked, int(position))
                case ["upsert", row_id, seq, n] if line.endswith("\n"):
                    told[row_id] = max(told.get(row_id, (0, "", 0)), (int(seq), name, int(n)))
                case _:
                    pass
    with logmark.open(url) as rt:
        s = rt.session("chat")
        assert s.cursor("ui").position >= acked
        first: dict[str, int] = {}
        last: dict[str, tuple[int, str, int]] = {}
        for event in s.read():
            changed, at = event.extensions["row_id"], event.event_seq or 0
            first.setdefault(changed, at)
            last[changed] = (at, event.payload["by"], event.payload["n"])
        found = {
            row.row_id: (row.position, (row.last_seq, row.payload["by"], row.payload["n"])) for row in s.rows().rows
        }
        assert found == {row_id: (first[row_id], last[row_id]) for row_id in first}
        assert all(last[row_id] >= row for row_id, row in told.items())


def test_errors_of_readers_say_what_to_do() -> None:
    stale = StaleCursor(session_id="chat", name="ui", seq=5, event_id="a", found_id="b")
    assert isinstance(stale, LogmarkError)
    assert "delete the cursor" in str(stale)
