"""Which types are countable: one table.

A countable type carries an ``event_seq``; a control type never does and is not stored. ARCP draft, section 8.3, counts
``job.event``, ``job.result`` and ``job.error``; sections 6.4 and 6.5 say that heartbeats and acknowledgements are not
counted, and no published runtime counts any other ``session.*`` or ``job.*`` type of that dialect. Every other type
belongs to the embedding program and is countable, unless the program registers it as control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import orjson

from ._errors import InvalidArgument

__all__ = ["ARCP_COUNTABLE", "ARCP_NAMESPACES", "EventTypes", "JobStatusRule"]

ARCP_COUNTABLE = frozenset({"job.event", "job.result", "job.error"})
ARCP_NAMESPACES = ("session.", "job.")

JobStatusRule = str | Callable[[Any], str | None]
"""The status that an event of some type gives its job: a word, or a function of the payload (None: no change)."""

_TERMINAL_STATUSES = frozenset({"success", "error", "cancelled", "timed_out"})


def _member(payload: Any, name: str) -> object:
    return cast("dict[str, object]", payload).get(name) if isinstance(payload, dict) else None


def _result_status(payload: Any) -> str:
    """ARCP draft, section 7.3: ``job.result`` says success unless its ``final_status`` says otherwise."""
    status = str(_member(payload, "final_status"))
    return status if status in _TERMINAL_STATUSES else "success"


def _error_status(payload: Any) -> str:
    """ARCP draft, section 7.3: ``job.error`` ends a job; a cancel or a timeout may say so by status or by code."""
    status = str(_member(payload, "final_status"))
    if status in ("cancelled", "timed_out"):
        return status
    return {"CANCELLED": "cancelled", "TIMEOUT": "timed_out"}.get(str(_member(payload, "code")), "error")


_ARCP_STATUS_VERSION = "1"  # of the two functions above: statuses that another version found are not taken over
_ARCP_STATUS: Mapping[str, JobStatusRule] = {"job.result": _result_status, "job.error": _error_status}


def _rules_text(rules: Mapping[str, Any]) -> str | None:
    if not all(isinstance(rule, str) for rule in rules.values()):
        return None
    return orjson.dumps([_ARCP_STATUS_VERSION, rules], option=orjson.OPT_SORT_KEYS).decode()


class EventTypes:
    """The types of one runtime: ARCP's table, the program's own control types and its own job states.

    Args:
        control: types of the embedding program that are control.
        job_status: for a type of the embedding program, the status that it gives its job: text, or a function of the
            payload. A job that has reached ``success``, ``error``, ``cancelled`` or ``timed_out`` keeps that status.

    Raises:
        InvalidArgument: a type in ARCP's namespaces is redefined, or is not text or empty; or a rule is no rule.
    """

    def __init__(self, *, control: Iterable[str] = (), job_status: Mapping[str, JobStatusRule] | None = None) -> None:
        if isinstance(control, str):
            message = f"control types are given as a collection of text, not as one text {control!r}"
            raise InvalidArgument(message)
        self._control = frozenset(control)
        self._job_status = dict(job_status or {})
        names: tuple[Any, ...] = (*self._control, *self._job_status)
        for name in names:
            if not isinstance(name, str) or not name or name.startswith(ARCP_NAMESPACES):
                message = f"{name!r} cannot be registered: {' and '.join(ARCP_NAMESPACES)} types are ARCP's own"
                raise InvalidArgument(message)
        rules: Mapping[str, Any] = self._job_status
        for name, rule in rules.items():
            if not (isinstance(rule, str) and rule) and not callable(rule):
                message = f"the status rule of {name!r} is text or a function of the payload, not {rule!r}"
                raise InvalidArgument(message)
        self.status_rules = _rules_text(rules)
        """The rules as text, equal where they are; None when one is a function, of which nobody can say that."""
        self._job_status.update(_ARCP_STATUS)

    def is_countable(self, type_: str) -> bool:
        """Say whether events of this type are numbered and stored."""
        if type_.startswith(ARCP_NAMESPACES):
            return type_ in ARCP_COUNTABLE
        return type_ not in self._control

    def next_status(self, status: str, type_: str, payload: Callable[[], Any]) -> str:
        """Return a job's status after an event; ``payload`` is called only for types that decide by it."""
        if status in _TERMINAL_STATUSES:
            return status
        rule = self._job_status.get(type_)
        if rule is None:
            return "running" if status == "pending" else status
        decided = rule if isinstance(rule, str) else rule(payload())
        return status if decided is None else decided
