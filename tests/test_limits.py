"""Limits: every bound is checked where it is set, and a runtime works with each of them at its smallest."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import pytest

import logmark
from logmark.errors import EventTooLarge, InvalidArgument, InvalidEvent
from logmark.protocol import Limits

FIELDS = {field.name: field.default for field in dataclasses.fields(Limits)}
SECONDS = [name for name in FIELDS if name.endswith("_s")]
COUNTS = [name for name in FIELDS if not name.endswith("_s")]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [0, -1, True, None, "1", math.nan, [1]], ids=repr)
def test_a_bound_that_is_no_positive_number_is_refused(name: str, value: Any) -> None:
    wrong: dict[str, Any] = {name: value}
    with pytest.raises(InvalidArgument, match=name):
        Limits(**wrong)


@pytest.mark.parametrize("name", COUNTS)
def test_a_bound_that_counts_is_whole(name: str) -> None:
    wrong: dict[str, Any] = {name: 1.5}
    with pytest.raises(InvalidArgument, match=name):
        Limits(**wrong)


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [math.inf, 1e12, 10**400])
def test_a_wait_that_the_system_cannot_measure_is_refused(name: str, value: Any) -> None:
    wrong: dict[str, Any] = {name: value}
    with pytest.raises(InvalidArgument, match=name):
        Limits(**wrong)


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_may_be_whole_or_not(name: str) -> None:
    for value in (0.001, 5, 10**9):
        right: dict[str, Any] = {name: value}
        assert getattr(Limits(**right), name) == value


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="depth_max"):
        Limits(depth_max=251)
    with pytest.raises(InvalidArgument, match="inbox_bytes_max"):
        Limits(inbox_bytes_max=1000, event_bytes_max=1001)
    assert Limits(inbox_bytes_max=1000, event_bytes_max=1000).inbox_bytes_max == 1000


def test_limits_are_a_frozen_value() -> None:
    limits = Limits(depth_max=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.depth_max = 6  # type: ignore[misc]
    for again in (copy.copy(limits), pickle.loads(pickle.dumps(limits)), Limits(depth_max=5)):
        assert again == limits
        assert hash(again) == hash(limits)
    assert dataclasses.replace(limits, depth_max=6).depth_max == 6
    with pytest.raises(InvalidArgument):
        dataclasses.replace(limits, depth_max=0)
    with pytest.raises(TypeError):
        Limits(5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# Smaller than these a bound forbids what the test does.
SMALLEST = dict.fromkeys(COUNTS, 1) | {
    "event_bytes_max": 400,
    "inbox_bytes_max": 400,
    "depth_max": 2,
    "session_id_bytes_max": 2,
    "name_bytes_max": 26,
    "page_events_max": 3,
}


@pytest.mark.parametrize(
    "names", [*((name,) for name in COUNTS if name != "inbox_bytes_max"), tuple(COUNTS)], ids=lambda names: names[-1]
)
def test_everything_works_with_a_bound_at_its_smallest(names: tuple[str, ...], store_url: str) -> None:
    values: dict[str, Any] = {name: SMALLEST[name] for name in names}
    limits = Limits(**values)
    with logmark.open(store_url, limits=limits) as runtime:
        sessions = [runtime.session(name) for name in ("a", "b", "é")]
        for session in sessions:
            with session.subscribe(1) as subscription, session.subscribe(1, "j", control=True) as filtered:
                futures = [session.submit("x", {"n": n}, job_id="j" if n % 2 else None) for n in range(12)]
                assert [future.result(10) for future in futures] == list(range(1, 13))
                session.send("session.ping")
                seqs = [subscription.get(10).event_seq for _ in range(12)]
                assert seqs == list(range(1, 13))
                assert [filtered.get(10).event_seq for _ in range(6)] == [2, 4, 6, 8, 10, 12]
            assert [event.payload["n"] for event in session.read(5)] == list(range(4, 12))
            assert [event.event_seq for event in session.page(limit=3).events] == [10, 11, 12]
            assert session.job("j").mark.count == 6
            assert session.append("x", id="x") == session.append("x", id="x") == 13
        assert [(info.session_id, info.last_seq) for info in runtime.sessions()] == [("a", 13), ("b", 13), ("é", 13)]
    if store_url != "memory:":
        with logmark.open(store_url, limits=limits) as runtime:
            assert [event.event_seq for event in runtime.session("b").read()] == list(range(1, 14))


def test_bounds_of_one_runtime_are_kept(store_url: str) -> None:
    limits = Limits(
        event_bytes_max=200, session_id_bytes_max=4, name_bytes_max=30, inbox_events_max=3, page_events_max=2
    )
    with logmark.open(store_url, limits=limits) as runtime:
        assert runtime.session("éé").append("x") == 1
        for bad in ("ééé", "aaaaa"):
            with pytest.raises(InvalidArgument):
                runtime.session(bad)
        session = runtime.session("a")
        with pytest.raises(EventTooLarge):
            session.append("x", "y" * 200)
        with pytest.raises(InvalidEvent, match="31 bytes"):
            session.append("x" * 31)
        with pytest.raises(InvalidEvent, match="inbox_events_max"):
            session.append_many([("x", n) for n in range(4)])
        assert session.last_seq == 0
        assert session.append_many([("x", n) for n in range(3)]) == (1, 3)
        assert len(session.page(limit=2).events) == 2
        with pytest.raises(InvalidArgument, match="page_events_max"):
            session.page(limit=3)
