"""Leases: what a job may do, until when, and for how much. ARCP draft, section 9. No thread, no clock.

What is enforced, and where: the end of a lease by the runner, which ends the job at that moment; patterns and budgets
where the agent passes through its context (``ctx.authorize``, ``ctx.tool_call``). An agent is Python code of this
process: what it does beside its context is its own.
"""

from __future__ import annotations

import datetime as dt
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

import orjson

from ..protocol import LeaseRefused, RawEnvelope, RequestRefused

__all__ = ["REMAINING", "Lease", "budget_left", "budget_of", "check_lease", "expires_at_ns"]

_NAMESPACES = frozenset({"agent.delegate", "cost.budget", "fs.read", "fs.write", "model.use", "net.fetch", "tool.call"})
_VENDOR_NAMESPACE = re.compile(r"x-vendor(?:\.[a-z0-9_-]+)+")
_AMOUNT = re.compile(r"([A-Za-z][A-Za-z0-9_-]{0,15}):([0-9]{1,18}(?:\.[0-9]{1,18})?)")
_PATTERNS_MAX = 256
_PATTERN_CHARS_MAX = 1024
_BUDGET = "cost.budget"
REMAINING = "cost.budget.remaining"
_REMAINING_JSON = REMAINING.encode()
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_PART = re.compile(r"\*+|.", re.DOTALL)
_DOTS = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)


def _refuse(reason: str) -> RequestRefused:
    return RequestRefused(code="INVALID_REQUEST", reason=reason)


def check_lease(
    lease_request: Any, lease_constraints: Any, *, now_ns: int, features: frozenset[str]
) -> tuple[dict[str, list[str]], dict[str, Any] | None]:
    """Return the effective lease and constraints: what was asked for, once it is known to be well formed.

    Args:
        lease_request: namespace to patterns, or None.
        lease_constraints: None, or an object with ``expires_at``.
        now_ns: the wall clock, in nanoseconds since 1970.
        features: what the session has negotiated.

    Raises:
        RequestRefused: INVALID_REQUEST.
    """
    lease: dict[str, list[str]] = {}
    if lease_request is not None:
        if not isinstance(lease_request, Mapping):
            raise _refuse("lease_request is not an object")
        for namespace, patterns in cast("Mapping[object, object]", lease_request).items():
            lease[_checked_namespace(namespace)] = _checked_patterns(namespace, patterns)
    if _BUDGET in lease and _BUDGET not in features:
        raise _refuse("lease_request has cost.budget, a feature that this session has not negotiated")
    budget_of(lease)
    return lease, _checked_constraints(lease_constraints, now_ns=now_ns, features=features)


def _checked_namespace(namespace: object) -> str:
    if isinstance(namespace, str) and (namespace in _NAMESPACES or _VENDOR_NAMESPACE.fullmatch(namespace)):
        return namespace
    raise _refuse(f"lease_request names the unknown capability {namespace!r:.80}")


def _checked_patterns(namespace: object, patterns: object) -> list[str]:
    if not isinstance(patterns, list | tuple) or len(cast("Sequence[Any]", patterns)) > _PATTERNS_MAX:
        raise _refuse(f"lease_request.{namespace} is not a list of at most {_PATTERNS_MAX} patterns")
    checked = list(cast("Sequence[Any]", patterns))
    if not all(isinstance(pattern, str) and 0 < len(pattern) <= _PATTERN_CHARS_MAX for pattern in checked):
        raise _refuse(f"lease_request.{namespace} has a pattern that is not text of 1 to {_PATTERN_CHARS_MAX}")
    return checked


def _checked_constraints(constraints: Any, *, now_ns: int, features: frozenset[str]) -> dict[str, Any] | None:
    if constraints is None:
        return None
    if not isinstance(constraints, Mapping):
        raise _refuse("lease_constraints is not an object")
    checked = dict(cast("Mapping[str, Any]", constraints))
    unknown = checked.keys() - {"expires_at"}
    if unknown:  # a bound that nobody enforces must not look like one that somebody does
        raise _refuse(f"lease_constraints has the unknown member {min(map(str, unknown))!r:.80}")
    if checked.get("expires_at") is None:
        return None
    if "lease_expires_at" not in features:
        raise _refuse("lease_constraints has expires_at, a feature that this session has not negotiated")
    ends_ns = expires_at_ns(checked)
    if ends_ns is None or ends_ns <= now_ns:
        raise _refuse("lease_constraints.expires_at is not a time in UTC that is still to come")
    return checked


def expires_at_ns(constraints: Mapping[str, Any] | None) -> int | None:
    """Return when a lease ends, in nanoseconds since 1970; None when it does not, or when that is no time in UTC.

    The draft wants a ``Z``; the Python client also sends what ``isoformat`` makes of UTC, ``+00:00``.
    """
    text = None if constraints is None else constraints.get("expires_at")
    if not isinstance(text, str):
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
        if moment.utcoffset() != dt.timedelta(0):
            return None
        return (moment - _EPOCH) // dt.timedelta(microseconds=1) * 1000
    except (ValueError, OverflowError):
        return None


def budget_of(lease: Mapping[str, Sequence[str]]) -> dict[str, Decimal] | None:
    """Return the counters that a lease starts with (ARCP draft, section 9.6), None without ``cost.budget``.

    Raises:
        RequestRefused: INVALID_REQUEST: an amount is not of the draft's form, or a currency is there twice.
    """
    if _BUDGET not in lease:
        return None
    counters: dict[str, Decimal] = {}
    for amount in lease[_BUDGET]:
        match = _AMOUNT.fullmatch(amount)
        if match is None:
            raise _refuse("lease_request.cost.budget has an amount that is not of the form currency:decimal")
        if match[1] in counters:
            raise _refuse(f"lease_request.cost.budget names {match[1]} twice")
        counters[match[1]] = Decimal(match[2])
    return counters


def budget_left(initial: Mapping[str, Decimal], job_id: str, newest_first: Iterable[RawEnvelope]) -> dict[str, Decimal]:
    """Return the counters of a job whose agent is gone, as the last report of each in the log of its session has it."""
    left: dict[str, Decimal] = {}
    for event in newest_first:
        # A copy, made for a subscription, may be younger than what it is a copy of.
        if event.job_id != job_id or event.source is not None or _REMAINING_JSON not in event.payload_json:
            continue
        payload: dict[str, Any] = orjson.loads(event.payload_json)
        body: Any = payload.get("body")
        if payload.get("kind") == "metric" and isinstance(body, dict):
            report = cast("dict[str, Any]", body)
            if report.get("name") == REMAINING and report.get("unit") in initial:
                left.setdefault(report["unit"], Decimal(str(report["value"])))
        if len(left) == len(initial):
            break
    return {**initial, **left}


class Lease:
    """The lease of one job, with its counters. Not thread-safe: the job's context holds a lock."""

    def __init__(self, job_id: str, grants: Mapping[str, Sequence[str]], *, ends_ns: int | None) -> None:
        self._job_id = job_id
        self._ends_ns = ends_ns
        self._patterns = {namespace: [_Glob(pattern) for pattern in patterns] for namespace, patterns in grants.items()}
        self._counters = budget_of(grants)

    @property
    def budget(self) -> dict[str, Decimal] | None:
        """The counters as they are, None without ``cost.budget``."""
        return None if self._counters is None else dict(self._counters)

    def names(self, namespace: str) -> bool:
        """Say whether the lease says anything about a namespace."""
        return namespace in self._patterns

    def authorize(self, namespace: str, target: str, *, now_ns: int) -> None:
        """Raise unless the lease covers the operation now (ARCP draft, sections 9.3, 9.5, 9.6).

        Raises:
            LeaseRefused: PERMISSION_DENIED, LEASE_EXPIRED or BUDGET_EXHAUSTED.
        """
        if not self._covers(namespace, target):
            raise LeaseRefused(
                job_id=self._job_id, code="PERMISSION_DENIED", reason=f"{namespace} does not cover {target!r:.200}"
            )
        self.check_alive(now_ns=now_ns)

    def check_alive(self, *, now_ns: int) -> None:
        """Raise when the lease has ended or a budget is spent: then nothing more can be authorised.

        Raises:
            LeaseRefused: LEASE_EXPIRED or BUDGET_EXHAUSTED.
        """
        if self._ends_ns is not None and now_ns >= self._ends_ns:
            raise LeaseRefused(job_id=self._job_id, code="LEASE_EXPIRED", reason="it has expired")
        spent = [currency for currency, left in (self._counters or {}).items() if left <= 0]
        if spent:
            raise LeaseRefused(
                job_id=self._job_id, code="BUDGET_EXHAUSTED", reason=f"its {', '.join(spent)} budget is spent"
            )

    def _covers(self, namespace: str, target: str) -> bool:
        if namespace.startswith("fs."):
            # A pattern speaks of places, so the place counts and not the spelling: /w/../etc is not below /w.
            target = posixpath.normpath(target)
        elif namespace == "net.fetch" and _DOTS.search(target):
            return False
        return any(pattern.matches(target) for pattern in self._patterns.get(namespace, ()))

    def left_after(self, currency: str | None, cost: Decimal) -> Decimal | None:
        """Return what would be left of a budget after a cost; None when the currency is not budgeted."""
        if self._counters is None or currency not in self._counters:
            return None
        return self._counters[currency] - cost

    def charge(self, currency: str, left: Decimal) -> None:
        """Set a counter to what is left after a cost whose event is durable."""
        if self._counters is not None:
            self._counters[currency] = left


class _Glob:
    """A pattern: ``*`` and ``?`` stay within a segment, ``**`` crosses slashes.

    The clients choose the patterns. So this walks along the target once, with the set of places in the pattern where it
    may be as the bits of an integer; a regular expression of many stars would take a lifetime.
    """

    __slots__ = ("_anywhere", "_end", "_literals", "_one", "_segment")

    def __init__(self, pattern: str) -> None:
        self._literals: dict[str, int] = {}
        self._one = self._segment = self._anywhere = 0
        parts: list[str] = _PART.findall(pattern)
        for index, part in enumerate(parts):
            bit = 1 << index
            if part == "?":
                self._one |= bit
            elif part == "*":
                self._segment |= bit
            elif part.startswith("*"):
                self._anywhere |= bit
            else:
                self._literals[part] = self._literals.get(part, 0) | bit
        self._end = 1 << len(parts)

    def matches(self, target: str) -> bool:
        """Say whether the whole target is of this form."""
        places = self._skip_stars(1)
        for character in target:
            one, stay = self._one, self._segment | self._anywhere
            if character == "/":
                one, stay = 0, self._anywhere
            stepped = (places & (self._literals.get(character, 0) | one)) << 1
            places = self._skip_stars(stepped | (places & stay))
        return bool(places & self._end)

    def _skip_stars(self, places: int) -> int:
        """Add what is reached by letting a star match nothing; no two of them are neighbours."""
        return places | (places & (self._segment | self._anywhere)) << 1
