"""``logmark trace --check``: what the log shows to be broken is found, and what only looks like it is not."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest

import logmark
from logmark import Envelope, Limits
from logmark.actors import BroadcastActor, Gate, JobActor, SessionActor
from logmark.actors.messages import Append, Committed
from logmark.testing import CapturedLogs, LogCheck, Simulation, SimulationFailure, capture_logs, checked_logs
from logmark.trace import Checker, Place, Violation

SOON = 30.0
Log = list[dict[str, Any]]


def check(log: Log) -> list[Violation]:
    checker = Checker()
    for line, fact in enumerate(log, 1):
        checker.feed(fact, Place(str(fact.get("file", "log")), line))
    return checker.finish()


def a_run(url: str = "memory:") -> Log:
    """Return the log of a runtime with everything in it: batches, a job, a subscriber, retries, refusals."""
    with capture_logs() as logs, logmark.open(url) as runtime:
        session = runtime.session("s")
        with session.subscribe() as viewer:
            for n in range(4):
                session.append("job.event", n, job_id="j")
            session.append_many([Envelope(type="job.event", job_id="j"), Envelope(type="x")])
            session.append("x", id="mine")
            session.append("x", id="mine")
            with pytest.raises(logmark.WrongExpectedSeq):
                session.append("x", expected_seq=1)
            session.append("x")
            for _ in range(8):
                viewer.get(SOON)
            assert session.job("j").mark.count == 5
    return [
        copy.deepcopy({name: value for name, value in event.items() if name != "exc_info"}) for event in logs.events
    ]


def at(log: Log, event: str, index: int = 0) -> int:
    """Return where the event of that name is."""
    return [place for place, fact in enumerate(log) if fact["event"] == event][index]


def named(log: Log, event: str, index: int = 0) -> dict[str, Any]:
    return log[at(log, event, index)]


# -- what is found ---------------------------------------------------------------------------------------------------


def shown_first(log: Log) -> None:
    place = at(log, "batch_persisted", 2)
    shown = at(log, "batch_broadcast", 2)
    log.insert(place, log.pop(shown))


def never_persisted(log: Log) -> None:
    log.pop(at(log, "batch_persisted", 2))


def number_again(log: Log) -> None:
    batch = named(log, "batch_persisted", 3)
    batch.update(first_seq=3, last_seq=3, before_seq=2, through_before=2, append_seqs=[3])


def number_left_out(log: Log) -> None:
    batch = named(log, "batch_persisted", 6)
    first = batch["first_seq"] + 1
    batch.update(first_seq=first, last_seq=first, append_seqs=[first])


def forgotten_events(log: Log) -> None:
    batch = named(log, "batch_persisted", 6)
    batch.update(before_seq=2, through_before=batch["first_seq"] - 1)


def odd_range(log: Log) -> None:
    named(log, "batch_persisted", 4)["events"] = 5


def shown_twice(log: Log) -> None:
    log.insert(at(log, "batch_broadcast", 3), copy.deepcopy(named(log, "batch_broadcast", 2)))


def subscriber_skips(log: Log) -> None:
    named(log, "subscriber_closed")["passed"] -= 1


def subscriber_doubles(log: Log) -> None:
    named(log, "subscriber_closed")["passed"] += 1


def marks_go_back(log: Log) -> None:
    named(log, "marks_moved", 2)["through_seq"] = 1


def mark_goes_back(log: Log) -> None:
    mark = named(log, "marks_moved", 2)["marks"][0]
    mark.update(last_seq=2, count=2, seqs=[2])


def mark_counts_twice(log: Log) -> None:
    named(log, "marks_moved", 4)["marks"][0]["count"] -= 1
    named(log, "marks_moved", 3)["marks"][0]["count"] -= 1


def mark_begins_elsewhere(log: Log) -> None:
    named(log, "marks_moved", 3)["marks"][0].update(first_seq=2, count=3)


def mark_beyond_the_log(log: Log) -> None:
    named(log, "marks_moved", 3)["marks"][0].update(last_seq=40, seqs=[40])


def batch_without_an_answer(log: Log) -> None:
    for fact in log:
        if fact.get("batch", 0) > 7:
            fact["batch"] += 1


def append_without_an_answer(log: Log) -> None:
    named(log, "session_closed")["answered"] -= 1


def told_twice(log: Log) -> None:
    log.insert(at(log, "batch_persisted", 4), copy.deepcopy(named(log, "batch_persisted", 3)))


def without_its_keys(log: Log) -> None:
    del named(log, "batch_persisted", 1)["append_seqs"]


MUTATIONS: dict[Callable[[Log], None], str] = {
    shown_first: "shown early",
    never_persisted: "shown early",
    number_again: "told twice",
    number_left_out: "skipped",
    forgotten_events: "skipped",
    odd_range: "told twice",
    shown_twice: "told twice",
    subscriber_skips: "skipped",
    subscriber_doubles: "told twice",
    marks_go_back: "mark",
    mark_goes_back: "mark",
    mark_counts_twice: "mark",
    mark_begins_elsewhere: "mark",
    mark_beyond_the_log: "mark",
    batch_without_an_answer: "unanswered",
    append_without_an_answer: "unanswered",
    told_twice: "told twice",
    without_its_keys: "keys",
}


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_log_that_shows_a_broken_promise_is_found_out(mutate: Callable[[Log], None]) -> None:
    log = a_run()
    assert check(log) == []
    mutate(log)
    found = check(log)
    assert MUTATIONS[mutate] in {violation.rule for violation in found}
    assert all(violation.places and str(violation).startswith("log:") for violation in found)


def test_two_processes_that_give_one_number_twice_are_found_out() -> None:
    one, other = a_run(), a_run()
    for fact in (named(one, "runtime_opened"), named(other, "runtime_opened")):
        fact["store"] = "file:/one/store"
    found = check(one + other)
    assert {violation.rule for violation in found} == {"told twice"}
    assert "numbers 1 to 8 were given to two events" in found[0].text


# -- what only looks like it -----------------------------------------------------------------------------------------


def test_every_memory_store_has_numbers_of_its_own() -> None:
    assert check(a_run() + a_run()) == []


@pytest.mark.parametrize("cut", range(0, 30, 3))
def test_a_log_may_begin_and_end_anywhere(cut: int) -> None:
    log = a_run()
    assert check(log[cut:]) == []
    assert check(log[:cut]) == []


def test_a_log_of_warnings_alone_has_nothing_to_say() -> None:
    log = a_run()
    log.append(
        {"event": "append_failed", "level": "warning", "runtime": "1-a", "session": "s", "batch": 7, "appends": 1}
    )
    assert check([fact for fact in log if fact["level"] in {"warning", "error"}]) == []


def test_processes_that_take_turns_fill_each_others_gaps(store_url: str) -> None:
    """Two runtimes on one store; one log, both, and one of them alone, whose gaps are the other's events."""
    if store_url == "memory:":
        pytest.skip("a store in memory has one process")
    with capture_logs() as logs, logmark.open(store_url) as one, logmark.open(store_url) as other:
        with other.session("s").subscribe(1) as viewer:
            for n in range(6):
                for runtime in (one, other):
                    runtime.session("s").append("x", n, job_id="j")
            for _ in range(12):
                viewer.get(SOON)
        assert one.session("s").jobs() == other.session("s").jobs()
        assert one.session("s").job("j").mark.count == 12
    runtimes = sorted({event["runtime"] for event in logs.events if "runtime" in event})
    assert len(runtimes) == 2
    assert check(logs.events) == []
    for runtime in runtimes:
        checker = Checker()
        for line, event in enumerate(logs.events):
            if event.get("runtime") == runtime:
                checker.feed(event, Place("log", line))
        assert checker.finish() == []
        assert checker.unseen["s"] >= 5


def test_reserved_numbers_are_not_skipped(store_url: str) -> None:
    with checked_logs(), logmark.open(store_url) as runtime:
        session = runtime.session("s")
        with session.subscribe() as viewer:
            session.append("x")
            runtime.store.reserve("s", 9)
            assert session.append("x") == 10
            runtime.store.reserve("s", 20)
            assert session.append_many([("x", 1), ("x", 2)]) == (21, 22)
            assert [viewer.get(SOON).event_seq for _ in range(4)] == [1, 10, 21, 22]


def test_actors_that_fail_and_are_restarted_break_nothing(
    raise_once: Callable[..., list[Any]], logs: CapturedLogs
) -> None:
    """The SessionActor in the middle of an answer, the BroadcastActor and the JobActor in the middle of a batch."""
    raise_once(SessionActor, "_envelopes", call=3)
    raise_once(BroadcastActor, "_offer", call=4, after=True)
    raise_once(JobActor, "_fold", call=2)
    with checked_logs(), logmark.open("memory:") as runtime:
        session = runtime.session("s")
        with session.subscribe() as viewer:
            for n in range(12):
                session.append("x", n, job_id="j")
            assert [viewer.get(SOON).event_seq for _ in range(12)] == list(range(1, 13))
            assert session.job("j").mark.count == 12
    assert len(logs.named("actor_restarted")) == 3
    batches = [event["batch"] for event in logs.named("batch_persisted")]
    assert batches == list(range(1, 13)), "the one whose answer was interrupted is told of as well"


def test_many_threads_and_sessions_with_slow_subscribers(store_url: str) -> None:
    with checked_logs(), logmark.open(store_url, limits=Limits(subscriber_events_max=3)) as runtime:
        names = ["a", "b"]
        viewers = [runtime.session(name).subscribe(1) for name in names]

        def write(index: int) -> None:
            for n in range(20):
                runtime.session(names[n % 2]).append("job.event", n, job_id=f"j{index}")

        threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for viewer in viewers:
            assert [viewer.get(SOON).event_seq for _ in range(40)] == list(range(1, 41))
            viewer.close()
        for thread in threads:
            thread.join(SOON)


# -- code that breaks a promise is found by what it logs -------------------------------------------------------------


def eager(original: Callable[[SessionActor], None]) -> Callable[[SessionActor], None]:
    """Show a batch when it is handed over, with the numbers that it will get, instead of when it is on disk."""

    def hand_over(actor: SessionActor) -> None:
        seq = actor.last_seq
        events = [event for item in actor._waiting if isinstance(item, Append) for event in item.request.events]
        if events and actor._broadcast is not None:
            envelopes = tuple(event.stamped(actor.session_id, n) for n, event in enumerate(events, seq + 1))
            actor._broadcast.tell(Committed(envelopes, seq, seq + len(events)))
        original(actor)

    return hand_over


def breaks_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SessionActor, "_hand_over", eager(SessionActor._hand_over))


def forgets_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Gate.leave
    monkeypatch.setattr(Gate, "leave", lambda gate, events, size, appends=1: original(gate, events, size, 0))


@pytest.mark.parametrize("mutant", [breaks_the_order, forgets_an_answer], ids=lambda mutant: mutant.__name__)
def test_code_that_breaks_a_promise_is_found_by_its_log(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises(AssertionError, match="broken promises"), checked_logs():
        a_run()


def test_the_simulation_looks_at_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    breaks_the_order(monkeypatch)
    with pytest.raises(SimulationFailure, match="shown"):
        all(Simulation(seed).run() for seed in range(40))


def test_only_what_is_wanted_is_looked_at() -> None:
    log = a_run()
    shown_first(log)
    everything, nothing = LogCheck(), LogCheck(lambda event: event["session"] == "another")
    for fact in log:
        everything(fact)
        if "session" in fact:
            nothing(fact)
    nothing.verify()
    with pytest.raises(AssertionError, match="shown"):
        everything.verify()
