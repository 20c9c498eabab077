"""The public surface, line by line as docs/design.md promises it, on every engine that needs no server."""

from __future__ import annotations

import datetime as dt
import enum
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Envelope, SessionInfo
from logmark.errors import (
    AppendRejected,
    EventIdConflict,
    InvalidArgument,
    InvalidEvent,
    NotCountable,
    StorageUnavailable,
    WrongExpectedSeq,
)

SOON = 5.0


def seqs(events: Any) -> list[int | None]:
    return [event.event_seq for event in events]


# -- open ------------------------------------------------------------------------------------------------------------


def test_a_store_is_a_path_or_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, url in enumerate(
        ("data", "file:data", f"file:{tmp_path}/data", f"file://{tmp_path}/data", "./data"), 1
    ):
        with logmark.open(url) as runtime:
            assert runtime.session("s").append("x") == number
            assert repr(runtime) == f"<Runtime 'file:{tmp_path}/data'>"
    with logmark.open(tmp_path / "data") as runtime:  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert runtime.session("s").last_seq == 5
    with logmark.open("deep/er/data") as runtime:
        assert runtime.session("s").last_seq == 0
    assert (tmp_path / "deep" / "er" / "data").is_dir()


def test_every_memory_store_is_a_new_one() -> None:
    with logmark.open("memory:") as one, logmark.open("memory:") as other:
        one.session("s").append("x")
        assert other.session("s").last_seq == 0


def test_what_is_in_the_page_cache_survives_the_runtime(tmp_path: Path) -> None:
    with logmark.open(str(tmp_path), durability="os") as runtime:
        assert runtime.session("s").append("x") == 1
    with logmark.open(str(tmp_path), durability="fsync") as runtime:
        assert runtime.session("s").append("x") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": ""},
        {"url": "memory:x"},
        {"url": "memory://"},
        {"url": "file:"},
        {"url": "file://"},
        {"url": "file://host/data"},
        {"url": "a\0b"},
        {"url": "nosuchengine:x"},
        {"url": "http://localhost"},
        {"url": "memory:", "durability": "none"},
        {"url": "data", "durability": ""},
        {"url": "data", "durability": "FSYNC"},
    ],
    ids=repr,
)
def test_a_store_that_is_none_is_refused(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument):
        logmark.open(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for url in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageUnavailable):
            logmark.open(str(url))
    for create in (False, True):
        if not create:
            with pytest.raises(StorageUnavailable) as caught:
                logmark.open(str(tmp_path / "new"), create=False)
            assert isinstance(caught.value, OSError)
            assert not (tmp_path / "new").exists()
        else:
            logmark.open(str(tmp_path / "new"), create=True).close()
            logmark.open(str(tmp_path / "new"), create=False).close()


# -- sessions --------------------------------------------------------------------------------------------------------

ODD_IDS = (
    "chat-42",
    "Chat-42",
    ".",
    "..",
    "../x",
    "/",
    "a/b",
    "a\\b",
    "con",
    "CON",
    "nul.txt",
    " ",
    "a ",
    "a.",
    "%41",
    "%%",
    "\0",
    "\n",
    "\u2028",
    "é",
    "e\u0301",
    "\U0001f600",
    "-rf",
    "*",
    "head",
    "lock",
    "quarantine",
    "store.json",
    "x" * 200,
    "y" * 199,
    "é" * 100,
    "\U0001f600" * 50,
    "A" * 200,
    "a" * 200,
)


def test_any_text_of_1_to_200_bytes_is_a_session_of_its_own_row_4(store_url: str) -> None:
    """Row 4: whatever the names look like on disk, each session has its own numbers and its own events."""
    with logmark.open(store_url) as runtime:
        for round_ in range(1, 3):
            for session_id in ODD_IDS:
                assert runtime.session(session_id).append("x", {"of": session_id}) == round_
        for session_id in ODD_IDS:
            events = list(runtime.session(session_id).read())
            assert [event.payload["of"] for event in events] == [session_id] * 2
            assert {event.session_id for event in events} == {session_id}
        assert [info.session_id for info in runtime.sessions()] == sorted(ODD_IDS)
    if store_url != "memory:":
        with logmark.open(store_url) as runtime:
            assert [(info.session_id, info.last_seq) for info in runtime.sessions()] == [
                (session_id, 2) for session_id in sorted(ODD_IDS)
            ]


def test_a_session_is_one_object_and_comes_into_being_with_its_first_event(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    assert runtime.session("s") is session
    assert session.session_id == "s"
    assert repr(session) == "<Session 's'>"
    assert session.last_seq == 0
    assert list(session.read()) == []
    assert session.jobs() == []
    assert session.page().events == ()
    with session.subscribe(1), session.subscribe():
        session.send("session.ping")
    assert session.append_many([]) == (1, 0)
    assert list(runtime.sessions()) == []
    session.append("x")
    assert list(runtime.sessions()) == [SessionInfo(session_id="s", last_seq=1, next_seq=2, first_seq=1, halted=None)]


def test_sessions_lists_everybodys(store_url: str) -> None:
    with logmark.open(store_url) as runtime:
        for name, events in (("b", 2), ("a", 3), ("c", 1)):
            for _ in range(events):
                runtime.session(name).append("x")
        found = runtime.sessions()
        assert [(each.session_id, each.last_seq) for each in found] == [("a", 3), ("b", 2), ("c", 1)]
        runtime.store.halt("b", "on request")
        halted = [each.halted for each in runtime.sessions()]
        assert halted[0] is halted[2] is None
        assert halted[1] is not None


# -- append ----------------------------------------------------------------------------------------------------------


def test_numbers_start_at_1_and_0_is_nothing_yet_row_1(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    assert session.last_seq == 0
    assert list(session.read()) == []
    for expected in (1, 2, 3):
        seq = session.append("x")
        assert seq == expected
        assert type(seq) is int
        assert session.last_seq == expected


def test_a_restart_goes_on_where_the_log_ends_row_6(tmp_path: Path) -> None:
    for expected in range(1, 8, 2):
        with logmark.open(str(tmp_path)) as runtime:
            session = runtime.session("s")
            assert session.last_seq == expected - 1
            assert session.append("x") == expected
            assert session.submit("x").result(SOON) == expected + 1
    with logmark.open(str(tmp_path)) as runtime:
        assert seqs(runtime.session("s").read()) == list(range(1, 9))


def test_an_event_is_read_as_it_was_appended_row_19(runtime: logmark.Runtime) -> None:
    """Row 19: producer identity, producer number, id and producer timestamp survive."""
    session = runtime.session("s")
    before = dt.datetime.now(dt.UTC)
    session.append(
        "message.created",
        {"text": "hi"},
        job_id="build-7",
        id="01J",
        expected_seq=0,
        source={"host": "a", "pid": 7},
        stream_seq=7,
        trace_id="trace",
        extensions={"vendor": [1]},
    )
    moment = dt.datetime(2020, 1, 1, 1, 2, 3, 456789, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    session.append("message.created", timestamp=moment)
    first, second = session.read(from_seq=1, limit=None, job_id=None)
    assert (first.event_seq, first.type, first.payload, first.job_id, first.id) == (
        1,
        "message.created",
        {"text": "hi"},
        "build-7",
        "01J",
    )
    assert (first.source, first.stream_seq, first.trace_id) == ({"host": "a", "pid": 7}, 7, "trace")
    assert (first.session_id, first.arcp, first.extensions) == ("s", "1.1", {"vendor": [1]})
    assert first.timestamp is not None
    assert before - dt.timedelta(seconds=1) <= first.timestamp <= dt.datetime.now(dt.UTC)
    assert first.timestamp.tzinfo is dt.UTC
    assert second.timestamp == moment
    assert (second.payload, second.job_id, second.source, second.stream_seq, second.trace_id) == (None,) * 5
    assert second.id
    assert second.extensions == {}


def test_a_number_in_the_callers_envelope_has_no_meaning_row_5(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append("x")
    foreign = Envelope(type="x", event_seq=999, session_id="another", payload=1)
    assert session.append_many([foreign, foreign]) == (2, 3)
    assert [(event.event_seq, event.session_id) for event in session.read(2)] == [(2, "s"), (3, "s")]


def test_text_of_an_enum_is_text(store_url: str) -> None:
    class Word(enum.StrEnum):
        HI = "hi"

    with logmark.open(store_url, control_types=[Word.HI]) as runtime:
        session = runtime.session(Word.HI)
        assert runtime.session("hi") is session
        with pytest.raises(NotCountable):
            session.append("hi")
        session.append("x", Word.HI, id=Word.HI, job_id=Word.HI, trace_id=Word.HI, source=Word.HI)
        (event,) = session.read(job_id=Word.HI)
        assert {type(each) for each in (event.id, event.job_id, event.trace_id, event.source, event.payload)} == {str}
        assert session.job("hi").mark.count == 1
        assert [info.session_id for info in runtime.sessions()] == ["hi"]


def test_a_batch_is_contiguous_row_2(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append("x")
    session.append("x")
    events: list[Any] = [("a", {"n": 1}), ["b", {"n": 2}], Envelope(type="c", payload={"n": 3}, job_id="build-7")]
    first, last = session.append_many(events)
    assert (first, last) == (3, 5)
    assert session.append_many(iter(events)) == (6, 8)
    assert session.append_many(event for event in events[:1]) == (9, 9)
    assert [(event.type, event.payload, event.job_id) for event in session.read(3, 3)] == [
        ("a", {"n": 1}, None),
        ("b", {"n": 2}, None),
        ("c", {"n": 3}, "build-7"),
    ]


@pytest.mark.parametrize(
    "bad",
    ["x", ("x",), ("x", 1, 2), {"type": "x"}, {"x": 1, "y": 2}, 5, None, b"xy", ("", 1), (5, 1), Ellipsis, ("x", {1})],
    ids=repr,
)
@pytest.mark.parametrize("place", range(3))
def test_one_bad_event_and_none_is_written(runtime: logmark.Runtime, bad: Any, place: int) -> None:
    session = runtime.session("s")
    events: list[Any] = [("x", 1), ("x", 2)]
    events.insert(place, bad)
    with pytest.raises(InvalidEvent):
        session.append_many(events)
    assert session.last_seq == 0


def test_events_that_stop_half_way_are_not_written(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")

    def events() -> Any:
        yield ("x", 1)
        yield ("x", 2)
        raise LookupError

    with pytest.raises(LookupError):
        session.append_many(events())
    assert session.last_seq == 0
    assert session.append("x") == 1


def test_expected_seq_is_checked_when_the_event_is_numbered(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    assert session.append("x", expected_seq=0) == 1
    assert session.append_many([("x", 1), ("x", 2)], expected_seq=1) == (2, 3)
    for call in (
        lambda: session.append("x", expected_seq=2),
        lambda: session.append("x", expected_seq=4),
        lambda: session.append("x", expected_seq=0),
        lambda: session.append_many([("x", 1)], expected_seq=2),
        lambda: session.submit("x", expected_seq=2).result(SOON),
    ):
        with pytest.raises(WrongExpectedSeq) as caught:
            call()
        assert caught.value.last_seq == 3
        assert isinstance(caught.value, AppendRejected)
    for wrong in (-1, True, "3", 3.0, 2**63):
        wrong_kind: Any = wrong
        with pytest.raises(InvalidArgument):
            session.append("x", expected_seq=wrong_kind)
    assert session.last_seq == 3
    assert session.append("x", expected_seq=3) == 4


def test_one_winner_when_many_expect_the_same_number(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    futures = [session.submit("x", n, expected_seq=0) for n in range(50)]
    won = [future.result(SOON) for future in futures if future.exception(SOON) is None]
    assert won == [1]
    assert all(isinstance(future.exception(), WrongExpectedSeq | None) for future in futures)
    assert [event.payload for event in session.read()] == [0]


def test_a_repeated_id_is_a_retry_row_40(store_url: str) -> None:
    """Row 40, row 41: the number and the content are those of the first write, in its own session only."""
    with logmark.open(store_url) as runtime:
        session, other = runtime.session("s"), runtime.session("other")
        assert session.append("x", {"try": 1}, id="01J") == 1
        assert session.append("x", {}) == 2
        assert session.append("y", {"try": 2}, id="01J") == 1
        assert session.append("x", {"try": 3}, id="01J", expected_seq=0) == 1  # the first write has settled it
        assert session.submit("x", {"try": 4}, id="01J").result(SOON) == 1
        assert other.append("x", {"try": 1}, id="01J") == 1
        batch = [Envelope(type="x", id="a"), Envelope(type="x", id="b")]
        assert session.append_many(batch) == session.append_many(batch) == (3, 4)
        conflicts: list[list[Any]] = [
            [Envelope(type="x", id="c"), Envelope(type="x", id="c")],
            [Envelope(type="x", id="b"), Envelope(type="x", id="a")],
            [Envelope(type="x", id="b"), Envelope(type="x", id="d")],
            [("x", 1), Envelope(type="x", id="a")],
        ]
        for conflict in conflicts:
            with pytest.raises(EventIdConflict):
                session.append_many(conflict)
        generated = next(session.read(2, 1)).id
        assert session.append("x", id=generated) == 2
        assert session.last_seq == 4
        assert [event.payload for event in session.read(1, 1)] == [{"try": 1}]
    if store_url != "memory:":
        with logmark.open(store_url) as runtime:
            assert runtime.session("s").append("x", {"try": 5}, id="01J") == 1
            assert runtime.session("s").append("x", id=generated) == 2
            assert runtime.session("s").last_seq == 4


def test_many_retries_at_once_write_once(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    with session.subscribe(1) as subscription:
        futures = [session.submit("x", {"try": n}, id="01J") for n in range(50)]
        assert {future.result(SOON) for future in futures} == {1}
        session.append("end")
        assert [subscription.get(SOON).type for _ in range(2)] == ["x", "end"]


def test_submit_returns_a_standard_future(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    futures = [session.submit("x", n) for n in range(100)]
    assert all(type(future) is Future or isinstance(future, Future) for future in futures)
    assert [future.result(SOON) for future in futures] == list(range(1, 101))
    assert [event.payload for event in session.read()] == list(range(100))
