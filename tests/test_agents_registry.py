"""Names and versions of agents: several side by side, one default, and every mistake an error at registration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import logmark
from logmark.errors import InvalidArgument, RequestRefused
from logmark.gateway import AgentContext, AgentEntry, Agents


def work(ctx: AgentContext, input: Any) -> None:
    """Do nothing."""


async def work_async(ctx: AgentContext, input: Any) -> None:
    """Do nothing, asynchronously."""


def work_in_steps(ctx: AgentContext, input: Any) -> Iterator[int]:
    yield 1


class Worker:
    """An agent that is an object."""

    def __call__(self, ctx: AgentContext, input: Any) -> str:
        return "done"

    def method(self, ctx: AgentContext, input: Any) -> str:
        return "done"


class AsyncWorker:
    """An agent that is an object, and asynchronous."""

    async def __call__(self, ctx: AgentContext, input: Any) -> str:
        return "done"


def refused(agents: Agents, name: str) -> str:
    with pytest.raises(RequestRefused) as caught:
        agents.resolve(name)
    return caught.value.code


def test_versions_stand_side_by_side_and_a_bare_name_is_the_default() -> None:
    with logmark.open("memory:") as runtime:
        assert len(runtime.agents.describe()) == 0

        @runtime.agent("build", version="1.0.0")
        def first(ctx: AgentContext, input: Any) -> str:
            return "first"

        @runtime.agent("build", version="2.0.0-rc.1+x_y")
        def second(ctx: AgentContext, input: Any) -> str:
            return "second"

        runtime.agent("0-lint._", version="7")(work)
        agents = runtime.agents

        assert agents is runtime.agents
        assert first(None, None) == "first"  # type: ignore[arg-type]  # the decorator returns what it was given
        assert agents.resolve("build@1.0.0") == AgentEntry("build", "1.0.0")
        assert agents.resolve("build") == agents.resolve("build@2.0.0-rc.1+x_y")
        assert agents.function("build", "1.0.0") is first
        assert agents.function("build", "3") is None
        assert agents.function("deploy", "3") is None
        assert agents.describe() == [
            {"name": "build", "versions": ["1.0.0", "2.0.0-rc.1+x_y"], "default": "2.0.0-rc.1+x_y"},
            {"name": "0-lint._", "versions": ["7"], "default": "7"},
        ]


def test_a_marked_default_stays_whatever_is_registered_later() -> None:
    agents = Agents()
    agents.register("build", version="1")(work)
    agents.register("build", version="2", default=True)(work)
    agents.register("build", version="3")(work)
    with pytest.raises(InvalidArgument, match="build@2 is already marked"):
        agents.register("build", version="4", default=True)(work)

    assert agents.resolve("build").version == "2"
    assert agents.describe() == [{"name": "build", "versions": ["1", "2", "3"], "default": "2"}]


def test_what_is_not_there_and_what_is_no_name_are_told_apart() -> None:
    agents = Agents()
    agents.register("build", version="1")(work)

    assert refused(agents, "deploy") == refused(agents, "deploy@1") == "AGENT_NOT_AVAILABLE"
    assert refused(agents, "build@2") == "AGENT_VERSION_NOT_AVAILABLE"
    for name in ("", "@", "build@", "@1", "Build", "-build", "a b", "build@1@1", "build@\n", "b\n", "x" * 101):
        assert refused(agents, name) == "INVALID_REQUEST", name


@pytest.mark.parametrize("name", ["", "Build", "_build", "build@1", "bu/ild", "büld", "build\n", "x" * 101, None, 7])
def test_a_name_that_the_draft_does_not_know_is_refused(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        Agents().register(name, version="1")


@pytest.mark.parametrize("version", ["", "1 0", "1@0", "1/0", "1\n", "x" * 101, None, 1.0])
def test_a_version_that_the_draft_does_not_know_is_refused(version: Any) -> None:
    with pytest.raises(InvalidArgument, match="version"):
        Agents().register("build", version=version)


def test_a_version_is_registered_once() -> None:
    agents = Agents()
    agents.register("build", version="1")(work)
    with pytest.raises(InvalidArgument, match="build@1 is registered already"):
        agents.register("build", version="1")(Worker())
    assert agents.function("build", "1") is work


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (None, "not None"),
        ("work", "not 'work'"),
        (work_async, "asynchronous"),
        (AsyncWorker(), "asynchronous"),
        (work_in_steps, "generator"),
        (lambda: None, "a context and an input"),
        (lambda ctx: None, "a context and an input"),
        (lambda ctx, input, more: None, "a context and an input"),
        (lambda *, ctx, input: None, "a context and an input"),
    ],
)
def test_what_cannot_be_called_as_an_agent_is_refused_at_once(function: Any, match: str) -> None:
    agents = Agents()
    with pytest.raises(InvalidArgument, match=match):
        agents.register("build", version="1")(function)
    assert agents.describe() == []


@pytest.mark.parametrize("function", [work, Worker(), Worker().method, lambda ctx, input, more=1: None, print, max])
def test_anything_that_takes_a_context_and_an_input_will_do(function: Callable[..., Any]) -> None:
    agents = Agents()
    assert agents.register("build", version="1")(function) is function
    assert agents.function("build", "1") is function


def test_threads_may_register_at_once() -> None:
    agents = Agents()
    start = threading.Barrier(8)

    def register(number: int) -> None:
        start.wait(20)
        for version in range(50):
            agents.register(f"agent-{version % 5}", version=f"{number}.{version}")(work)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    inventory = agents.describe()

    assert [len(entry["versions"]) for entry in inventory] == [80] * 5
    assert all(entry["default"] in entry["versions"] for entry in inventory)
