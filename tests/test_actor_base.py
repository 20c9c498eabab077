"""What every actor does: whole turns, restarts, giving up, and an answer to all that is left when it stops."""

from __future__ import annotations

from typing import Any

import pykka
import pytest

from logmark.actors import LogmarkActor, ThreadDispatcher
from logmark.storage import MemoryEventStore, get_logger
from logmark.testing import (
    ActorHarness,
    CapturedLogs,
    ManualClock,
    MockWriter,
    StepDispatcher,
)

SOON = 5.0


class Recorder(LogmarkActor):
    """Notes what its hooks see, and raises what it is told."""

    def __init__(self, dispatcher: StepDispatcher, **options: Any) -> None:
        self.clock = ManualClock()
        super().__init__(dispatcher=dispatcher, clock=self.clock, log=get_logger(actor="recorder"), **options)
        self.seen: list[Any] = []
        self.fail_in: dict[str, Exception] = {}

    def note(self, hook: str, argument: Any = None) -> None:
        self.seen.append((hook, argument))
        if hook in self.fail_in:
            raise self.fail_in[hook]

    def on_start(self) -> None:
        self.note("start")

    def on_receive(self, message: Any) -> Any:
        self.note("receive", message)
        if isinstance(message, Exception):
            raise message
        return message

    def on_drained(self) -> None:
        self.note("drained")

    def on_restarted(self, error: Exception) -> None:
        self.note("restarted", str(error))

    def on_gave_up(self, error: Exception) -> None:
        self.note("gave_up", str(error))

    def on_dead_letter(self, message: Any) -> None:
        self.note("dead_letter", message)

    def on_stop(self) -> None:
        self.note("stop")

    def hooks(self) -> list[str]:
        return [hook for hook, _ in self.seen if hook not in ("receive", "drained")]


def started(**options: Any) -> tuple[StepDispatcher, Recorder]:
    dispatcher = StepDispatcher()
    actor = Recorder(dispatcher, **options)
    pykka.ActorRegistry.register(actor.actor_ref)
    actor._start_actor_loop()
    dispatcher.run_until_idle()
    return dispatcher, actor


def test_a_turn_handles_all_that_waits_and_then_drains_once() -> None:
    dispatcher, actor = started()
    assert actor.seen == [("start", None), ("drained", None)]
    actor.seen.clear()
    for n in range(3):
        actor.actor_ref.tell(n)
    assert dispatcher.run_until_idle() == 1
    assert actor.seen == [("receive", 0), ("receive", 1), ("receive", 2), ("drained", None)]


def test_after_a_failure_the_rest_of_the_turn_is_handled() -> None:
    dispatcher, actor = started()
    for message in ("a", ValueError("b"), "c"):
        actor.actor_ref.tell(message)
    dispatcher.run_until_idle()
    assert [argument for hook, argument in actor.seen if hook == "receive"][-1] == "c"
    assert ("restarted", "b") in actor.seen
    assert actor.seen[-1] == ("drained", None)


def test_a_failure_while_draining_is_drained_again() -> None:
    dispatcher, actor = started()
    original = actor.on_drained
    calls: list[int] = []

    def once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("once")
        original()

    actor.on_drained = once  # type: ignore[method-assign]
    actor.actor_ref.tell("a")
    dispatcher.run_until_idle()
    assert len(calls) == 2
    assert actor.actor_ref.is_alive()


def test_failing_for_ever_while_draining_ends_in_giving_up() -> None:
    dispatcher, actor = started(restarts_max=3)
    actor.fail_in["drained"] = ValueError("always")
    actor.actor_ref.tell("a")
    dispatcher.run_until_idle()
    assert actor.hooks() == ["start", "restarted", "restarted", "restarted", "gave_up"]
    assert not actor.actor_ref.is_alive()


def test_a_failure_in_the_start_is_a_failure() -> None:
    dispatcher = StepDispatcher()
    actor = Recorder(dispatcher)
    actor.fail_in["start"] = ValueError("no start")
    pykka.ActorRegistry.register(actor.actor_ref)
    actor._start_actor_loop()
    dispatcher.run_until_idle()
    assert ("restarted", "no start") in actor.seen
    actor.actor_ref.stop(block=False)
    dispatcher.run_until_idle()


def test_a_restart_that_fails_is_given_up_so_that_who_waits_is_answered(logs: CapturedLogs) -> None:
    dispatcher, actor = started()
    actor.fail_in["restarted"] = ValueError("second")
    actor.actor_ref.tell(ValueError("first"))
    actor.actor_ref.tell("late")
    dispatcher.run_until_idle()
    assert ("gave_up", "first") in actor.seen
    assert ("dead_letter", "late") in actor.seen
    assert logs.named("actor_restart_failed", actor="recorder")
    assert pykka.ActorRegistry.get_by_urn(actor.actor_urn) is None


def test_an_asker_gets_the_exception_and_the_actor_goes_on() -> None:
    dispatcher, actor = started()
    question = actor.actor_ref.ask(ValueError("asked"), block=False)
    dispatcher.run_until_idle()
    with pytest.raises(ValueError, match="asked"):
        question.get(timeout=0)
    assert actor.hooks() == ["start"]


def test_what_is_left_when_an_actor_stops_is_answered() -> None:
    dispatcher, actor = started()
    actor.fail_in["dead_letter"] = ValueError("its own fault")
    stopped = actor.actor_ref.stop(block=False)
    again = actor.actor_ref.stop(block=False)
    asked = actor.actor_ref.ask("question", block=False)
    actor.actor_ref.tell("a")
    actor.actor_ref.tell("b")
    dispatcher.run_until_idle()

    assert stopped.get(timeout=0)
    assert again.get(timeout=0)
    with pytest.raises(pykka.ActorDeadError):
        asked.get(timeout=0)
    assert actor.seen[-2:] == [("dead_letter", "a"), ("dead_letter", "b")]
    assert actor.hooks()[:2] == ["start", "stop"]


def test_an_actor_that_gave_up_is_out_of_the_registry_and_stops_at_once() -> None:
    dispatcher, actor = started(restarts_max=1)
    for n in range(3):
        actor.actor_ref.tell(ValueError(str(n)))
    asked = actor.actor_ref.ask("late", block=False)
    dispatcher.run_until_idle()
    assert actor.hooks() == ["start", "restarted", "gave_up", "dead_letter"]
    with pytest.raises(pykka.ActorDeadError):
        asked.get(timeout=0)
    assert actor.actor_ref not in pykka.ActorRegistry.get_all()


def test_proxies_work_as_for_every_pykka_actor() -> None:
    dispatcher = ThreadDispatcher("proxies", 1)
    writer = MockWriter.start(dispatcher=dispatcher)
    proxy = writer.proxy()
    assert proxy.asked.get(timeout=SOON) == ()
    writer.stop(block=True, timeout=SOON)
    dispatcher.stop()


def test_a_store_that_ends_its_thread_is_not_hidden() -> None:
    """Only exceptions restart an actor: what ends a thread on purpose, such as a simulated crash, passes through."""

    class Crash(BaseException):
        pass

    class Crashing(MemoryEventStore):
        def append(self, batches: Any) -> Any:
            raise Crash

    with ActorHarness(stepped=True, persist=True, store=Crashing()) as harness:
        harness.append()
        with pytest.raises(Crash):
            harness.run()
        harness.run()
