"""The feed: every event of every session once, whoever writes it and wherever it is gone on from."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark import Feed, FeedEvent, Limits
from logmark._feed_position import decode_position, encode_position
from logmark.errors import (
    CursorAhead,
    ForkedRuntime,
    InvalidArgument,
    InvalidPosition,
    SeqPruned,
    SessionDeleted,
    SessionHalted,
    StaleCursor,
    SubscriptionClosed,
    UpcastFailed,
    WaitTimeout,
)
from logmark.storage import MemoryEventStore

SOON = 20.0
Seen = dict[str, list[int]]


def by_session(events: list[FeedEvent]) -> Seen:
    seen: Seen = defaultdict(list)
    for event in events:
        seen[event.session_id or ""].append(event.event_seq or 0)
    return dict(seen)


def whole(runtime: logmark.Runtime, prefix: str = "") -> Seen:
    return {
        info.session_id: [event.event_seq or 0 for event in runtime.session(info.session_id).read()]
        for info in runtime.sessions()
        if info.session_id.startswith(prefix) and info.last_seq
    }


def take(feed: Feed, count: int) -> list[FeedEvent]:
    return [feed.get(SOON) for _ in range(count)]


def filled(runtime: logmark.Runtime, sessions: int = 5, events: int = 7) -> None:
    for n in range(sessions):
        runtime.session(f"s{n}").append_many([("x", each) for each in range(events + n)])


# -- what comes ------------------------------------------------------------------------------------------------------


def test_everything_comes_once_and_in_order(every_runtime: logmark.Runtime) -> None:
    filled(every_runtime)
    every_runtime.store.reserve("s1", 50)
    every_runtime.session("s1").append("x")
    events = list(every_runtime.feed(timeout=0))
    assert by_session(events) == whole(every_runtime)
    assert events[0].payload == 0
    assert isinstance(events[0], logmark.Envelope)
    assert events[0] == next(every_runtime.session(events[0].session_id or "").read())


def test_it_goes_on_from_the_position_of_every_event(every_runtime: logmark.Runtime) -> None:
    filled(every_runtime, 4, 5)
    events = list(every_runtime.feed(timeout=0))
    wanted = whole(every_runtime)
    for n, event in enumerate(events):
        rest = list(every_runtime.feed(after=event.position, timeout=0))
        first, second = by_session(events[: n + 1]), by_session(rest)
        assert {name: first.get(name, []) + second.get(name, []) for name in wanted} == wanted
    every_runtime.session("s0").append("late")
    every_runtime.session("new").append("later")
    after = by_session(list(every_runtime.feed(after=events[-1].position, timeout=0)))
    assert after == {"s0": [6], "new": [1]}


def test_it_is_live_and_finds_new_sessions(every_runtime: logmark.Runtime) -> None:
    filled(every_runtime, 2, 3)
    with every_runtime.feed() as feed:
        take(feed, 7)
        every_runtime.session("s0").append("x", "live")
        assert feed.get(SOON).payload == "live"
        every_runtime.session("brand new").append("x", "first")
        event = feed.get(SOON)
        assert (event.session_id, event.event_seq, event.payload) == ("brand new", 1, "first")
        with pytest.raises(WaitTimeout):
            feed.get(timeout=0)
        with pytest.raises(TimeoutError):
            feed.get(timeout=0.01)
        assert feed.position == event.position


def test_only_the_sessions_with_a_prefix(runtime: logmark.Runtime) -> None:
    for name in ("a/1", "a/2", "b/1"):
        runtime.session(name).append_many([("x", 1)] * 3)
    with runtime.feed(prefix="a/") as feed:
        events = take(feed, 6)
        assert by_session(events) == {"a/1": [1, 2, 3], "a/2": [1, 2, 3]}
        runtime.session("b/2").append("x")
        runtime.session("a/3").append("x")
        assert feed.get(SOON).session_id == "a/3"
        position = feed.position
    assert by_session(list(runtime.feed(after=position, timeout=0))) == {"b/1": [1, 2, 3], "b/2": [1]}
    every = list(runtime.feed(timeout=0))[-1].position
    assert list(runtime.feed(after=every, prefix="a", timeout=0)) == []


def test_from_now_on(runtime: logmark.Runtime) -> None:
    filled(runtime)
    with runtime.feed(after="now") as feed:
        position = feed.position
        runtime.session("s1").append("x", "live")
        assert feed.get(SOON).payload == "live"
    assert [event.payload for event in runtime.feed(after=position, timeout=0)] == ["live"]


def test_long_histories_take_turns(runtime: logmark.Runtime) -> None:
    runtime.session("a").append_many([("x", n) for n in range(2000)])
    runtime.session("b").append_many([("x", n) for n in range(10)])
    runtime.session("big").append_many([("x", "y" * 100_000)] * 12)
    events = list(runtime.feed(timeout=0))
    names = [event.session_id for event in events]
    assert by_session(events) == whole(runtime)
    assert max(index for index, name in enumerate(names) if name == "b") < 300
    assert names.index("big") < 300  # and its events come a few at a time, as they are large
    assert max(len(list(run)) for run in _runs(names, "big")) <= 3


def _runs(names: list[str | None], wanted: str) -> list[list[str]]:
    runs: list[list[str]] = [[]]
    for name in names:
        if name == wanted:
            runs[-1].append(wanted)
        elif runs[-1]:
            runs.append([])
    return runs


@pytest.mark.parametrize("seed", range(2))
def test_stopping_and_going_on_anywhere_loses_and_doubles_nothing(seed: int, runtime: logmark.Runtime) -> None:
    choice = random.Random(seed)
    seen: Seen = defaultdict(list)
    position: str | None = None
    for _ in range(25):
        for _ in range(choice.randrange(6)):
            session = runtime.session(f"s{choice.randrange(6)}")
            session.append_many([("x", 1)] * choice.randrange(1, 5))
        with runtime.feed(after=position, timeout=0) as feed:
            for count, event in enumerate(feed):
                seen[event.session_id or ""].append(event.event_seq or 0)
                position = event.position
                if count == choice.randrange(12):
                    break
    for event in runtime.feed(after=position, timeout=0):
        seen[event.session_id or ""].append(event.event_seq or 0)
    assert dict(seen) == whole(runtime)


WRITER = """
import sys, logmark
with logmark.open(sys.argv[1]) as runtime:
    for n in range(60):
        runtime.session(f"{sys.argv[2]}/{n % 7}").append("x", n)
        runtime.session("shared").append("x", n)
"""


@pytest.mark.slow
def test_nothing_is_skipped_while_other_processes_and_threads_write(every_store_url: str) -> None:
    if every_store_url == "memory:":
        pytest.skip("a memory store has no other processes")
    with logmark.open(every_store_url) as runtime, runtime.feed() as feed:
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, every_store_url, f"p{n}"]) for n in range(2)]

        def write() -> None:
            for n in range(60):
                runtime.session(f"own/{n % 7}").append("x", n)
                runtime.session("shared").append("x", n)

        thread = threading.Thread(target=write)
        thread.start()
        events = take(feed, 3 * 120)
        thread.join(SOON)
        assert [writer.wait(SOON) for writer in writers] == [0, 0]
        assert by_session(events) == whole(runtime)
        with pytest.raises(WaitTimeout):
            feed.get(0.1)


def test_many_idle_sessions_cost_no_thread_and_no_file(tmp_path: Path) -> None:
    count = 300
    with logmark.open(str(tmp_path), durability="os") as runtime:
        for n in range(count):
            runtime.session(f"s{n}").append("x")
    with logmark.open(str(tmp_path), durability="os", limits=Limits(open_sessions_max=8)) as runtime:
        threads = threading.active_count()
        with runtime.feed() as feed:
            take(feed, count)
            with pytest.raises(WaitTimeout):
                feed.get(0.05)
            assert threading.active_count() - threads <= 1
            if Path("/proc/self/fd").exists():
                held = [os.readlink(each.path) for each in os.scandir("/proc/self/fd") if os.path.exists(each.path)]
                assert sum(str(tmp_path) in each for each in held) < 40


# -- positions -------------------------------------------------------------------------------------------------------


def test_positions_are_text_that_survives(runtime: logmark.Runtime) -> None:
    filled(runtime, 3, 2)
    runtime.session("späte/Größe 漢字").append("x")
    (*_, last) = runtime.feed(timeout=0)
    assert isinstance(last.position, str)
    assert last.position.isascii()
    assert " " not in last.position
    copy = pickle.loads(pickle.dumps(last))
    assert copy == last
    assert copy.position == last.position
    assert list(runtime.feed(after=copy.position, timeout=0)) == []


def test_positions_round_trip_and_damage_is_refused() -> None:
    choice = random.Random(3)
    for size in (0, 1, 2, 50):
        vector = {
            f"s/{choice.random()}": choice.randrange(2**63) << 16 | choice.randrange(1 << 16) for _ in range(size)
        }
        position = encode_position(vector)
        assert decode_position(position) == vector
        for at in range(5, len(position)):
            other = "A" if position[at] != "A" else "B"
            with contextlib.suppress(InvalidPosition):  # but for the bits that base64 does not use
                assert decode_position(position[:at] + other + position[at + 1 :]) == vector
            with pytest.raises(InvalidPosition):
                decode_position(position[:at])


@pytest.mark.parametrize("after", ["", "nonsense", "lmf1.", "lmf1.%%", "lmf9.AAAA", "lmf1.é", 7, b"lmf1.", ["x"]])
def test_what_is_no_position_is_refused(after: Any, runtime: logmark.Runtime) -> None:
    with pytest.raises(InvalidPosition):
        runtime.feed(after=after)


def test_wrong_arguments_are_refused(runtime: logmark.Runtime) -> None:
    wrong: list[dict[str, Any]] = [{"prefix": 7}, {"timeout": "x"}]
    for options in wrong:
        with pytest.raises(InvalidArgument):
            runtime.feed(**options)


def test_a_position_of_another_store_is_noticed(runtime: logmark.Runtime) -> None:
    filled(runtime, 2, 5)
    (*_, last) = runtime.feed(timeout=0)
    with logmark.open("memory:") as empty, empty.feed(after=last.position) as feed:
        for _ in range(2):
            with pytest.raises(CursorAhead):
                feed.get(SOON)
    with logmark.open("memory:") as shorter:
        shorter.session("s0").append("x")
        with shorter.feed(after=last.position) as feed, pytest.raises(CursorAhead) as caught:
            feed.get(SOON)
        lost = {"s0": (5, 1), "s1": (6, 0)}
        assert (caught.value.cursor, caught.value.last_seq) == lost[caught.value.session_id]
    with logmark.open("memory:") as another:
        filled(another, 2, 9)
        with another.feed(after=last.position) as feed:
            for _ in range(2):
                with pytest.raises(StaleCursor):
                    feed.get(SOON)


def test_a_log_that_lost_its_end_is_noticed_live() -> None:
    store = MemoryEventStore()
    with logmark.Runtime(store, limits=Limits(watch_interval_s=0.01)) as runtime:
        runtime.session("s").append_many([("x", 1)] * 3)
        with runtime.feed() as feed:
            take(feed, 3)
            del store._logs["s"]
            with pytest.raises(CursorAhead):
                feed.get(SOON)


# -- what is wrong with one session ----------------------------------------------------------------------------------


def test_pruned_events_are_told_once_and_it_goes_on() -> None:
    with logmark.open("memory:") as runtime:
        filled(runtime, 2, 6)
        position = next(runtime.feed(timeout=0)).position
        runtime.store.truncate_before("s0", 4)
        runtime.store.truncate_before("s1", 3)
        with runtime.feed(after=position) as feed:
            missing: dict[str, tuple[int, int]] = {}
            events: list[FeedEvent] = []
            while len(events) < 8:
                try:
                    events.append(feed.get(SOON))
                except SeqPruned as error:
                    missing[error.session_id] = (error.seq, error.first_available)
            assert missing == {"s0": (2, 4), "s1": (1, 3)}
            assert by_session(events) == {"s0": [4, 5, 6], "s1": [3, 4, 5, 6, 7]}
            after = feed.position
        runtime.session("s0").append("x")
        assert by_session(list(runtime.feed(after=after, timeout=0))) == {"s0": [7]}


def test_pruning_what_was_handed_out_disturbs_nobody(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append_many([("x", n) for n in range(6)])
    with runtime.feed() as feed:
        position = take(feed, 6)[-1].position
        runtime.store.truncate_before("s", 7)
        session.append("x", 6)
        assert feed.get(SOON).event_seq == 7
    assert [event.event_seq for event in runtime.feed(after=position, timeout=0)] == [7]


def test_a_deleted_session_is_told_of_once(runtime: logmark.Runtime) -> None:
    filled(runtime, 3, 2)
    runtime.store.delete("s2")  # of which nothing was handed out
    with runtime.feed() as feed:
        position = take(feed, 5)[-1].position
        runtime.store.delete("s1")
        with pytest.raises(SessionDeleted) as caught:
            feed.get(SOON)
        assert caught.value.session_id == "s1"
        runtime.session("s0").append("x", "on")
        assert feed.get(SOON).payload == "on"
        after = feed.position
        with pytest.raises(WaitTimeout):
            feed.get(0.2)
    with runtime.feed(after=position) as feed:
        assert sorted(_named(feed, 2)) == ["SessionDeleted", "s0"]
    assert list(runtime.feed(after=after, timeout=0)) == []


def _named(feed: Feed, count: int) -> list[str]:
    found: list[str] = []
    for _ in range(count):
        try:
            found.append(feed.get(SOON).session_id or "")
        except SessionDeleted as error:
            found.append(type(error).__name__)
    return found


def test_a_halted_session_is_passed_over_until_it_is_cleared(runtime: logmark.Runtime) -> None:
    filled(runtime, 2, 3)
    runtime.store.halt("s0", "on request")
    with runtime.feed() as feed:
        events: list[FeedEvent] = []
        errors = 0
        while len(events) < 4 or not errors:
            try:
                events.append(feed.get(SOON))
            except SessionHalted:
                errors += 1
        with pytest.raises(WaitTimeout):  # it was told, and is not told at every look
            feed.get(0.5)
        assert by_session(events) == {"s1": [1, 2, 3, 4]}
        runtime.store.clear_halt("s0")
        assert by_session(take(feed, 3)) == {"s0": [1, 2, 3]}
        assert errors == 1


def test_an_upcaster_that_fails_costs_no_event(runtime: logmark.Runtime) -> None:
    session = runtime.session("s")
    session.append("x", 1)
    ready = False

    def upcast(payload: Any) -> Any:
        if not ready:
            raise ValueError("not yet")
        return payload + 1

    runtime.upcaster("x", from_version=1)(upcast)
    with runtime.feed() as feed:
        event = feed.get(SOON)
        with pytest.raises(UpcastFailed):
            _ = event.payload
        ready = True
        assert event.payload == 2
        assert pickle.loads(pickle.dumps(event)).payload == 2


# -- the end ---------------------------------------------------------------------------------------------------------


def test_closing_ends_it_from_any_thread(runtime: logmark.Runtime) -> None:
    feed = runtime.feed()
    got: list[FeedEvent] = []
    thread = threading.Thread(target=lambda: got.extend(feed), daemon=True)
    thread.start()
    runtime.session("s").append("x")
    feed.close()
    feed.close()
    thread.join(SOON)
    assert not thread.is_alive()
    with pytest.raises(SubscriptionClosed):
        feed.get()
    assert "closed" in repr(feed)


def test_it_ends_with_the_runtime(store_url: str) -> None:
    runtime = logmark.open(store_url)
    feeds = [runtime.feed() for _ in range(3)]
    threads = [threading.Thread(target=list, args=(feed,), daemon=True) for feed in feeds]
    for thread in threads:
        thread.start()
    runtime.close()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    with pytest.raises(logmark.errors.RuntimeClosed):
        runtime.feed()


def test_a_feed_that_is_dropped_is_forgotten(runtime: logmark.Runtime) -> None:
    for _ in range(20):
        next(runtime.feed(timeout=0), None)
    runtime.feed().close()
    runtime.session("s").append("x")
    assert not runtime.changes.has_listeners
    assert not list(runtime._feeds)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_so(tmp_path: Path) -> None:
    with logmark.open(str(tmp_path)) as runtime:
        runtime.session("s").append("x")
        with runtime.feed() as feed:
            feed.get(SOON)
            child = os.fork()
            if child == 0:
                try:
                    feed.get(0)
                except ForkedRuntime:
                    feed.close()
                    os._exit(0)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            runtime.session("s").append("x")
            assert feed.get(SOON).event_seq == 2
