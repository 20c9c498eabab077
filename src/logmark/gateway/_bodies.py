"""What the body of a ``job.event`` may be: ARCP draft, section 8.2, as narrow as the strictest published client.

A frame that a client's schema refuses is dropped there without a word, and its ``event_seq`` with it, which that client
then takes for a gap. So what leaves here is what all of them accept, and an agent's mistake is an error to the agent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from ..protocol import InvalidEvent
from ..protocol.arcp import ERROR_CODES

__all__ = ["check_body", "error_body", "log_level"]

LOG_LEVELS = ("trace", "debug", "info", "warn", "error", "critical")
# The names that Python's own logging has for two of them.
_LEVEL_ALIASES = {"warning": "warn", "fatal": "critical"}

NEVER_RETRYABLE = frozenset({"BUDGET_EXHAUSTED", "LEASE_EXPIRED"})
"""ARCP draft, section 12: a naive retry will fail identically."""

_VENDOR_KIND = re.compile(r"x-vendor\.[a-z0-9_.-]+")


class _Field(NamedTuple):
    """What a field of a body must be."""

    what: str
    holds: Callable[[Any], bool]
    required: bool = True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_any_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_there(_value: Any) -> bool:
    return True


def _is_log_level(value: Any) -> bool:
    return isinstance(value, str) and value in LOG_LEVELS


def _is_object(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(name, str) for name in cast("Mapping[object, object]", value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_error(value: Any) -> bool:
    if not _is_object(value):
        return False
    code, retryable = value.get("code"), value.get("retryable")
    return (
        isinstance(code, str)
        and code in ERROR_CODES
        and _is_text(value.get("message"))
        and isinstance(retryable, bool)
        and not (retryable and code in NEVER_RETRYABLE)
        and (retryable or code != "INTERNAL_ERROR")
    )


_TEXT = _Field("non-empty text", _is_text)
_ANY_TEXT = _Field("text", _is_any_text)
_OBJECT = _Field("an object", _is_object)
_NUMBER = _Field("a finite number", _is_number)
_AMOUNT = _Field("a finite number of at least 0", _is_amount)
_SIZE = _Field("an integer of at least 0", _is_size)
_ANYTHING = _Field("any JSON value", _is_there)


def _optional(field: _Field) -> _Field:
    return field._replace(required=False)


_FIELDS: Mapping[str, Mapping[str, _Field]] = {
    "log": {
        "level": _Field(f"one of {', '.join(LOG_LEVELS)}", _is_log_level),
        "message": _TEXT,
        "attributes": _optional(_OBJECT),
    },
    "thought": {"text": _ANY_TEXT},
    "tool_call": {"tool": _TEXT, "args": _optional(_OBJECT), "call_id": _TEXT},
    "tool_result": {
        "call_id": _TEXT,
        "result": _optional(_ANYTHING),
        "error": _optional(_Field("an error of the draft's codes: code, message, retryable", _is_error)),
    },
    "status": {"phase": _TEXT, "message": _optional(_ANY_TEXT)},
    "metric": {"name": _TEXT, "value": _NUMBER, "unit": _optional(_TEXT), "dimensions": _optional(_OBJECT)},
    "artifact_ref": {
        "uri": _TEXT,
        "content_type": _TEXT,
        "byte_size": _optional(_SIZE),
        "sha256": _optional(_ANY_TEXT),
    },
    "progress": {
        "current": _AMOUNT,
        "total": _optional(_AMOUNT),
        "units": _optional(_TEXT),
        "message": _optional(_ANY_TEXT),
    },
}

_ELSEWHERE = {
    "result_chunk": "use ctx.result_stream()",
    "delegate": "delegation (ARCP draft, section 10) is not offered; submit the other job as a client of its own",
}


def check_body(kind: str, body: Mapping[str, Any]) -> None:
    """Raise unless every published client accepts the body; fields that the draft does not know may be there.

    Raises:
        InvalidEvent: the kind is neither the draft's nor ``x-vendor.…``, or its body is not of the draft's shape.
    """
    if not _is_object(body):
        message = f"the body of a {kind!r} event is an object with text keys, not {type(body).__name__}"
        raise InvalidEvent(message)
    fields = _FIELDS.get(kind)
    if fields is None:
        if _VENDOR_KIND.fullmatch(kind):
            return
        hint = _ELSEWHERE.get(kind, f"it is one of {', '.join(_FIELDS)}, or starts with 'x-vendor.'")
        message = f"no event of kind {kind!r} can be emitted: {hint}"
        raise InvalidEvent(message)
    for name, field in fields.items():
        if name not in body:
            if field.required:
                message = f"a {kind!r} event needs {name!r}: {field.what}"
                raise InvalidEvent(message)
        elif not field.holds(body[name]):
            message = f"{name!r} of a {kind!r} event must be {field.what}, not {body[name]!r:.100}"
            raise InvalidEvent(message)
    cross_check = _CROSS_CHECKS.get(kind)
    wrong = None if cross_check is None else cross_check(body)
    if wrong is not None:
        raise InvalidEvent(wrong)


def _check_progress(body: Mapping[str, Any]) -> str | None:
    if body["current"] <= body.get("total", math.inf):
        return None
    return f"progress cannot be at {body['current']!r} of {body['total']!r}"


def _check_tool_result(body: Mapping[str, Any]) -> str | None:
    return None if ("result" in body) != ("error" in body) else "a tool_result has either a result or an error"


def _check_metric(body: Mapping[str, Any]) -> str | None:
    if not body["name"].startswith("cost."):
        return None
    if body["name"].startswith("cost.budget."):
        return f"{body['name']!r} is what the runtime reports of a budget; name the cost otherwise"
    if body["value"] < 0:
        return f"a cost is not negative (ARCP draft, section 9.6): {body['value']!r}"
    return None


_CROSS_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], str | None]] = {
    "metric": _check_metric,
    "progress": _check_progress,
    "tool_result": _check_tool_result,
}


def log_level(level: Any) -> Any:
    """Return the draft's word for a level; Python's ``warning`` and ``fatal``, and capitals, are understood."""
    if not isinstance(level, str):
        return level
    word = level.lower()
    return _LEVEL_ALIASES.get(word, word)


def error_body(code: str, message: str, *, retryable: bool | None = None) -> dict[str, Any]:
    """Return an error payload of ARCP draft, section 12; what it fixes of ``retryable`` is not the caller's choice."""
    if code in NEVER_RETRYABLE:
        retryable = False
    elif code == "INTERNAL_ERROR":
        retryable = True
    return {"code": code, "message": message, "retryable": bool(retryable)}
