"""Old payloads are shown in today's form, when they are looked at; what was written is never written again."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.errors import InvalidArgument, UpcastFailed

SOON = 30.0


def to_2(payload: Any) -> Any:
    return {"text": payload}


def to_3(payload: Any) -> Any:
    payload["words"] = payload.pop("text").split()
    return payload


def test_events_are_shown_in_the_newest_version_wherever_they_are_read(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        s.append("message", "a b")
        s.append("message", {"text": "c d"}, type_version=2)
        s.append("message", {"words": ["e"]}, type_version=3)
        s.append("message", {"later": 1}, type_version=4)
        s.append("note", "f g")
        s.submit("message", {"text": "h"}, type_version=2).result(SOON)
        s.append_many([logmark.Envelope(type="message", payload={"text": "i"}, extensions={"type_version": 2})])
        s.upsert("m1", "message", {"text": "j"}, type_version=2)
        stored = [event.payload_json for event in s.read_raw()]

        rt.upcaster("message", from_version=2)(to_3)
        rt.upcaster("message")(to_2)
        expected = [
            {"words": ["a", "b"]},
            {"words": ["c", "d"]},
            {"words": ["e"]},
            {"later": 1},  # of a newer program: as it is
            "f g",
            {"words": ["h"]},
            {"words": ["i"]},
            {"words": ["j"]},
        ]
        assert [event.payload for event in s.read()] == expected
        assert [event.payload for event in s.page().events] == expected
        assert [event.payload for event in s.page(after=0).events] == expected
        with s.subscribe(1) as sub:
            assert [sub.get(SOON).payload for _ in expected] == expected
            s.append("message", "live one")
            assert sub.get(SOON).payload == {"words": ["live", "one"]}
        assert [row.payload for row in s.rows().rows] == [{"words": ["j"]}]
        row = s.row("m1")
        assert row is not None
        assert row.payload == {"words": ["j"]}
        # The log has what was written.
        assert [event.payload_json for event in s.read_raw(limit=8)] == stored
        with s.subscribe(1) as sub:
            assert sub.get_raw(SOON).payload_json == b'"a b"'


def test_nothing_is_decoded_before_it_is_looked_at() -> None:
    calls: list[Any] = []

    def counting(payload: Any) -> Any:
        calls.append(payload)
        return payload

    with logmark.open("memory:", upcasters={("message", 1): counting}) as rt:
        s = rt.session("chat")
        s.append("message", 1)
        s.append("message", 2)
        first, second = s.read()
        assert (first.type, first.event_seq, second.id) == ("message", 1, second.id)
        assert calls == []
        assert (second.payload, second.payload) == (2, 2)
        assert calls == [2]


def test_a_failing_upcaster_is_an_error_at_its_event_and_at_no_other(every_store_url: str) -> None:
    with logmark.open(every_store_url) as rt:
        s = rt.session("chat")
        s.append("message", "good")
        s.append("message", 7)
        s.append("message", "good too")

        @rt.upcaster("message")
        def words(payload: Any) -> Any:
            return payload.split()

        first, bad, last = s.read()
        assert (first.payload, last.payload) == (["good"], ["good", "too"])
        for _ in range(2):
            with pytest.raises(UpcastFailed, match="event 2") as raised:
                _ = bad.payload
            error = raised.value
            assert (error.session_id, error.seq, error.type, error.version) == ("chat", 2, "message", 1)
            assert isinstance(error.__cause__, AttributeError)
        assert words("as it was") == ["as", "it", "was"]


def test_a_step_that_fails_half_way_is_given_the_same_again() -> None:
    fails = [True]

    def fragile(payload: Any) -> Any:
        payload["n"] += 1
        if fails:
            raise RuntimeError(fails.pop())
        return payload

    with logmark.open("memory:", upcasters={("message", 1): fragile}) as rt:
        rt.session("chat").append("message", {"n": 1})
        (event,) = rt.session("chat").read()
        with pytest.raises(UpcastFailed):
            _ = event.payload
        assert event.payload == {"n": 2}


def test_what_is_shown_is_one_piece() -> None:
    """Its version is that of its payload, so that it can be sent, kept or appended elsewhere."""
    with logmark.open("memory:", upcasters={("message", 1): to_2, ("message", 2): to_3}) as rt:
        s = rt.session("chat")
        s.append("message", "a b", extensions={"other": 1}, job_id="j")
        (event,) = s.read()
        assert event.extensions == {"other": 1, "type_version": 3}
        again = logmark.Envelope.from_wire(event.to_wire())
        assert (again.payload, again.extensions) == ({"words": ["a", "b"]}, {"other": 1, "type_version": 3})
        for same in (pickle.loads(pickle.dumps(event)), copy.deepcopy(event), copy.copy(event)):
            assert same == event
            assert hash(same) == hash(event)
            assert same.payload == {"words": ["a", "b"]}
        rt.session("copy").append_many([event])
        (copied,) = rt.session("copy").read()
        assert (copied.payload, copied.extensions) == (event.payload, event.extensions)
        assert [each.extensions.get("type_version") for each in s.read_raw()] == [None]
        with s.subscribe(1) as sub:
            mine = sub.get(SOON)
            mine.payload["words"].append("changed")
        assert event.payload == {"words": ["a", "b"]}


def test_versions_that_some_other_program_means_are_left_alone() -> None:
    with logmark.open("memory:", upcasters={("message", 1): to_2}) as rt:
        s = rt.session("chat")
        for version in ("1", None, True, 0, -1, 1.0, {"v": 1}):
            s.append("message", "as it is", extensions={"type_version": version})
        assert [event.payload for event in s.read()] == ["as it is"] * 7
        assert [event.extensions["type_version"] for event in s.read()] == ["1", None, True, 0, -1, 1.0, {"v": 1}]


def test_a_chain_with_a_gap_goes_as_far_as_it_goes() -> None:
    with logmark.open("memory:", upcasters={("message", 1): to_2, ("message", 3): to_3}) as rt:
        s = rt.session("chat")
        s.append("message", "a")
        (event,) = s.read()
        assert (event.payload, event.extensions) == ({"text": "a"}, {"type_version": 2})


def test_controls_are_as_they_were_sent() -> None:
    with logmark.open("memory:", control_types=["typing"], upcasters={("typing", 1): to_2}) as rt:
        s = rt.session("chat")
        with s.subscribe(control=True) as sub:
            s.send("typing", "a")
            assert sub.get(SOON).payload == "a"


def test_what_is_no_upcaster_is_refused(tmp_path: Path) -> None:
    with logmark.open("memory:") as rt:
        rt.upcaster("message")(to_2)
        with pytest.raises(InvalidArgument, match="already"):
            rt.upcaster("message")(to_2)
        for version in (0, -1, True, "1", 2**40):
            with pytest.raises(InvalidArgument):
                rt.upcaster("message", from_version=version)(to_2)  # type: ignore[arg-type]
        for version in (0, -1, "1", 2**40):
            with pytest.raises(InvalidArgument):
                rt.session("chat").append("message", 1, type_version=version)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument):
            rt.upcaster("")(to_2)
        with pytest.raises(InvalidArgument):
            rt.upcaster("message", from_version=2)("no function")  # type: ignore[type-var]
        with pytest.raises(InvalidArgument, match="say"):
            rt.session("chat").append("message", 1, type_version=2, extensions={"type_version": 3})
        assert rt.session("chat").last_seq == 0
    for upcasters in ({"message": to_2}, {("message",): to_2}, {("message", 1): None}):
        with pytest.raises(InvalidArgument):
            logmark.open(f"file:{tmp_path / 'none'}", upcasters=upcasters)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
