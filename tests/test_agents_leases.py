"""Leases: refused when they make no sense, enforced where the agent asks, ended when their time is up."""

from __future__ import annotations

import fnmatch
import re
import threading
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logmark.errors import JobEnded, LeaseRefused, RequestRefused, StorageRejected
from logmark.gateway import AgentContext, Agents
from logmark.gateway._lease import Lease, budget_of, check_lease, expires_at_ns
from logmark.testing import RecordingSink, run_agent

ALL = frozenset({"lease_expires_at", "cost.budget"})
NOW_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
LATER = "2026-01-01T00:00:00.000001Z"


def checked(request: Any = None, constraints: Any = None, features: frozenset[str] = ALL) -> Any:
    return check_lease(request, constraints, now_ns=NOW_NS, features=features)


# -- what is taken ---------------------------------------------------------------------------------------------------


def test_a_lease_that_makes_sense_is_granted_as_it_was_asked_for() -> None:
    request = {
        "fs.read": ["/w/**"],
        "tool.call": ("search.*",),
        "cost.budget": ["USD:5.00", "credits:1000"],
        "x-vendor.acme.gpu": ["a100"],
        "model.use": [],
    }
    assert checked() == checked({}, {}) == checked(None, {"expires_at": None}) == ({}, None)
    assert checked(request, {"expires_at": LATER}) == (
        {**request, "tool.call": ["search.*"]},
        {"expires_at": LATER},
    )
    assert Agents().check_lease(request, None, now_ns=NOW_NS, features=ALL)[0]["fs.read"] == ["/w/**"]
    assert Agents().budget(request) == {"USD": Decimal("5.00"), "credits": Decimal(1000)}
    assert Agents().budget({}) is None


@pytest.mark.parametrize(
    ("request_", "constraints"),
    [
        ([], None),
        ("fs.read", None),
        ({"fs.everything": ["/"]}, None),
        ({"": ["/"]}, None),
        ({7: ["/"]}, None),
        ({"x-vendor.": ["/"]}, None),
        ({"fs.read": "/"}, None),
        ({"fs.read": [7]}, None),
        ({"fs.read": [""]}, None),
        ({"fs.read": ["x" * 1025]}, None),
        ({"fs.read": ["x"] * 257}, None),
        ({"cost.budget": ["5.00"]}, None),
        ({"cost.budget": ["USD:-5"]}, None),
        ({"cost.budget": ["USD:5."]}, None),
        ({"cost.budget": ["USD:1e9"]}, None),
        ({"cost.budget": ["USD:5", "USD:6"]}, None),
        ({"cost.budget": ["USD:\u0665"]}, None),
        (None, []),
        (None, {"expires_at": "2026-01-01T00:00:00Z"}),
        (None, {"expires_at": "2025-12-31T23:59:59Z"}),
        (None, {"expires_at": "2027-01-01T00:00:00"}),
        (None, {"expires_at": "2027-01-01T00:00:00+01:00"}),
        (None, {"expires_at": "soon"}),
        (None, {"expires_at": 1_800_000_000}),
        (None, {"expires_at": "2027-01-01T00:00:00Z", "max_calls": 3}),
    ],
)
def test_a_lease_that_cannot_be_kept_is_refused(request_: Any, constraints: Any) -> None:
    with pytest.raises(RequestRefused) as caught:
        checked(request_, constraints)
    assert caught.value.code == "INVALID_REQUEST"


def test_what_was_not_negotiated_cannot_be_asked_for() -> None:
    for request, constraints, feature in (
        ({"cost.budget": ["USD:1"]}, None, "cost.budget"),
        (None, {"expires_at": LATER}, "expires_at"),
    ):
        with pytest.raises(RequestRefused, match=feature):
            checked(request, constraints, frozenset())


def test_the_end_is_exact_and_utc_in_both_spellings() -> None:
    for text in (LATER, "2026-01-01T00:00:00.000001+00:00"):
        assert expires_at_ns({"expires_at": text}) == NOW_NS + 1000
    assert expires_at_ns(None) is None
    assert expires_at_ns({"expires_at": "9999-12-31T23:59:59.999999Z"}) is not None


# -- patterns --------------------------------------------------------------------------------------------------------


def allows(grants: dict[str, list[str]], namespace: str, target: str) -> bool:
    try:
        Lease("job", grants, ends_ns=None).authorize(namespace, target, now_ns=NOW_NS)
    except LeaseRefused as refused:
        return refused.code != "PERMISSION_DENIED"
    return True


@pytest.mark.parametrize(
    ("pattern", "target", "expected"),
    [
        ("/w/**", "/w/a/b.py", True),
        ("/w/**", "/w", False),
        ("/w/*", "/w/a", True),
        ("/w/*", "/w/a/b", False),
        ("/w/*/x", "/w/a/x", True),
        ("/w/**/x", "/w/a/b/x", True),
        ("/w/a?.py", "/w/ab.py", True),
        ("/w/a?.py", "/w/a/.py", False),
        ("/w/[ab]", "/w/a", False),
        ("/w/[ab]", "/w/[ab]", True),
        ("/w/**", "/w/../etc/passwd", False),
        ("/w/**", "/w/./a//b", True),
        ("/w/**", "/w/a/../b", True),
        ("**", "/etc/passwd", True),
        ("***", "/a\nb", True),
    ],
)
def test_paths(pattern: str, target: str, expected: bool) -> None:
    assert allows({"fs.read": [pattern]}, "fs.read", target) is expected
    assert not allows({"fs.read": [pattern]}, "fs.write", target)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("https://api.example.com/v1/items", True),
        ("https://api.example.com/v1/", True),
        ("http://api.example.com/v1/items", False),
        ("https://api.example.com.evil.net/v1/", False),
        ("https://api.example.com/v1/../admin", False),
        ("https://api.example.com/v1/%2e%2E/admin", False),
        ("https://api.example.com/v1/a..b", True),
    ],
)
def test_addresses(target: str, expected: bool) -> None:
    assert allows({"net.fetch": ["https://api.example.com/v1/**"]}, "net.fetch", target) is expected


@given(st.text("ab/*?", max_size=8), st.text("ab/", max_size=8))
@example("*a*?**", "aba/a")
def test_globs_mean_what_they_mean_elsewhere(pattern: str, target: str) -> None:
    parts = re.findall(r"\*+|.", pattern)
    meaning = "".join(
        ".*" if part.startswith("**") else {"*": "[^/]*", "?": "[^/]"}.get(part) or re.escape(part) for part in parts
    )
    assert allows({"tool.call": [pattern]}, "tool.call", target) == bool(re.fullmatch(meaning, target))
    if "/" not in target + pattern:
        assert allows({"tool.call": [pattern]}, "tool.call", target) == fnmatch.fnmatchcase(target, pattern)


def test_a_client_cannot_choose_a_pattern_that_takes_for_ever() -> None:
    began = time.thread_time()
    assert not allows({"tool.call": ["*a" * 512] * 4}, "tool.call", "a" * 500 + "b")
    assert time.thread_time() - began < 5


# -- budgets ---------------------------------------------------------------------------------------------------------


def test_a_budget_falls_with_every_cost_in_its_currency_and_says_what_is_left() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        assert ctx.metric("cost.search", 0.1, unit="USD") == 1
        assert ctx.metric("cost.search", 0.2, unit="EUR") == 3  # not budgeted
        assert ctx.metric("rows", 9, unit="USD") == 4  # not a cost
        assert ctx.emit("metric", {"name": "cost.fetch", "value": 0.2, "unit": "USD"}) == 5
        ctx.emit_many([("metric", {"name": "cost.a", "value": 1, "unit": "calls"}), ("thought", {"text": "!"})] * 2)
        assert ctx.budget == {"USD": Decimal("0.7"), "calls": Decimal(1)}
        assert ctx.lease == {"cost.budget": ["USD:1.00", "calls:3"]}

    job = run_agent(agent, lease={"cost.budget": ["USD:1.00", "calls:3"]})
    assert job.error_fields is None
    said = [
        (body["value"], body["unit"])
        for kind, body in job.events
        if kind == "metric" and body["name"] == "cost.budget.remaining"
    ]
    assert said == [(0.9, "USD"), (0.7, "USD"), (2.0, "calls"), (1.0, "calls")]
    assert job.commits == [2, 1, 1, 2, 6]


def test_a_spent_budget_refuses_the_next_tool_and_the_agent_may_go_on() -> None:
    """The exchange of ARCP draft, section 13.5."""

    def agent(ctx: AgentContext, _input: Any) -> str:
        for call, cost in (("c1", 0.42), ("c2", 0.70)):
            ctx.tool_call("search.web", {"q": call}, call_id=call)
            ctx.tool_result(call, {})
            ctx.metric("cost.search", cost, unit="USD")
        with pytest.raises(LeaseRefused) as caught:
            ctx.tool_call("fetch.url", {}, call_id="c3")
        assert caught.value.code == "BUDGET_EXHAUSTED"
        with pytest.raises(LeaseRefused):
            ctx.authorize("tool.call", "fetch.url")
        return "partial"

    job = run_agent(agent, lease={"tool.call": ["search.*", "fetch.*"], "cost.budget": ["USD:1.00"]})
    assert job.kinds[-2:] == ["tool_call", "tool_result"]
    assert job.events[-3] == ("metric", {"name": "cost.budget.remaining", "value": -0.12, "unit": "USD"})
    assert job.events[-1][1] == {
        "call_id": "c3",
        "error": {"code": "BUDGET_EXHAUSTED", "message": "its USD budget is spent", "retryable": False},
    }
    assert job.result_fields == {"result": "partial"}


def test_an_agent_that_does_not_catch_it_ends_its_job_with_that_code() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        ctx.metric("cost.x", 1, unit="USD")
        ctx.tool_call("search")

    job = run_agent(agent, lease={"cost.budget": ["USD:1"]})
    assert job.error_fields == {
        "code": "BUDGET_EXHAUSTED",
        "message": "its USD budget is spent",
        "retryable": False,
        "status": "error",
    }


def test_a_cost_that_was_not_stored_is_not_charged() -> None:
    sink = RecordingSink()

    def agent(ctx: AgentContext, _input: Any) -> None:
        sink.refusals.append(StorageRejected(session_id="session", reason="no space", errno=28))
        with pytest.raises(StorageRejected):
            ctx.metric("cost.x", 0.5, unit="USD")
        assert ctx.budget == {"USD": Decimal(1)}

    run_agent(agent, sink=sink, lease={"cost.budget": ["USD:1"]})
    assert sink.events == []


def test_costs_of_many_threads_add_up() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        threads = [
            threading.Thread(target=lambda: [ctx.metric("cost.x", 0.1, unit="USD") for _ in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert ctx.budget == {"USD": Decimal("-10.0")}

    job = run_agent(agent, lease={"cost.budget": ["USD:10"]})
    left = [body["value"] for _, body in job.events if body["name"] == "cost.budget.remaining"]
    assert left == [round(10 - 0.1 * number, 1) for number in range(1, 201)]


def test_without_a_budget_costs_are_only_reported() -> None:
    job = run_agent(lambda ctx, _input: (ctx.metric("cost.x", 5, unit="USD"), ctx.budget)[1])
    assert job.events == [("metric", {"name": "cost.x", "value": 5, "unit": "USD"})]
    assert job.result_fields == {}
    assert budget_of({}) is None


# -- authority -------------------------------------------------------------------------------------------------------


def test_what_an_agent_asks_for_must_be_covered_and_what_it_reports_only_if_the_lease_speaks_of_it() -> None:
    def agent(ctx: AgentContext, _input: Any) -> None:
        ctx.authorize("fs.read", "/w/a.py")
        for namespace, target in (("fs.write", "/w/a.py"), ("fs.read", "/etc/passwd"), ("model.use", "m")):
            with pytest.raises(LeaseRefused) as caught:
                ctx.authorize(namespace, target)
            assert caught.value.code == "PERMISSION_DENIED"
        ctx.tool_call("anything")

    assert run_agent(agent, lease={"fs.read": ["/w/**"]}).kinds == ["tool_call"]

    def caller(ctx: AgentContext, _input: Any) -> None:
        ctx.tool_call("search.web")
        ctx.tool_call("shell")

    job = run_agent(caller, lease={"tool.call": ["search.*"]})
    assert job.kinds == ["tool_call", "tool_call", "tool_result"]
    assert (job.error_fields or {})["code"] == "PERMISSION_DENIED"


def test_a_lease_ends_its_job_at_its_time_and_nothing_is_done_with_it_after() -> None:
    seen: list[BaseException] = []

    def agent(ctx: AgentContext, _input: Any) -> str:
        ctx.thought("in time")
        assert ctx.cancelled.wait(20)
        try:
            ctx.thought("too late")
        except JobEnded as error:
            seen.append(error)
        return "too late as well"

    began = time.monotonic()
    job = run_agent(agent, expires_in_s=0.2)
    assert job.kinds == ["thought"]
    assert job.error_fields == {
        "code": "LEASE_EXPIRED",
        "message": "the job's lease has expired",
        "retryable": False,
        "status": "error",
    }
    assert time.monotonic() - began >= 0.2


def test_an_operation_behind_the_end_is_refused_even_before_the_job_is_ended() -> None:
    lease = Lease("job", {"fs.read": ["/**"]}, ends_ns=NOW_NS)
    lease.authorize("fs.read", "/x", now_ns=NOW_NS - 1)
    for now_ns in (NOW_NS, NOW_NS + 1):
        with pytest.raises(LeaseRefused) as caught:
            lease.authorize("fs.read", "/x", now_ns=now_ns)
        assert caught.value.code == "LEASE_EXPIRED"
