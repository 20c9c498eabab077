"""What an event takes of the processor, beside what it may take where a goal is about speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .goals import GOALS, ONE, OURS, SIXTEEN, Results
from .report import Row

__all__ = ["processor_markdown"]

_LIMIT = "raw"


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """Where the rows of a goal are.

    Attributes:
        goal: its text.
        section: of the rows.
        work: what that of the rows ends with.
        ours: what logmark's row begins with.
        beside: work and participant of the row that the goal compares with; None: its bound is a rate.
    """

    goal: str
    section: str
    work: str
    ours: str = OURS
    beside: tuple[str, str] | None = None


def _beside_limit(goal: str, section: str, work: str) -> _Work:
    return _Work(goal, section, work, beside=(work, _LIMIT))


_WORKS = (
    _beside_limit("one blocking caller, × limit", "append", ONE),
    _beside_limit("16 blocking callers, × limit", "append", SIXTEEN),
    _beside_limit("64 blocking callers, × limit", "append", "64 callers, 1 session"),
    _Work("16 callers on 16 sessions, × the same on one", "append", "16 callers, 16 sessions", beside=(SIXTEEN, OURS)),
    _beside_limit("100 per call, one caller, × limit", "batches", f"{ONE}, 100 per call"),
    _beside_limit("100 per call, 16 callers, × limit", "batches", f"{SIXTEEN}, 100 per call"),
    _beside_limit(
        "submit, 16 × 256 unanswered, × limit of 16 that wait", "pipelined", f"{SIXTEEN}, 256 unanswered each"
    ),
    _Work(
        "4 viewers and 100 jobs, 16 callers, × without",
        "subscribers",
        SIXTEEN,
        ours="logmark, 4",
        beside=(SIXTEEN, "logmark, nobody"),
    ),
    _Work("deliveries/s to 1 viewer", "fan-out", "per call to 1 viewer"),
    _Work("deliveries/s to 16 viewers", "fan-out", "per call to 16 viewers"),
)


def processor_markdown(rows: Sequence[Row]) -> str:
    """Return a line for each of those goals that the rows say something about."""
    bounds = {goal.text: goal.bound for goal in GOALS}
    results = Results(rows)
    lines = [
        "| µs for an event | may take | takes | Python | kernel | switches | limit: Python | kernel |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for each in _WORKS:
        ours = results.one(each.section, each.work, each.ours)
        other = None if each.beside is None else results.one(each.section, *each.beside)
        rate = 1.0 if each.beside is None else None if other is None else other.value
        if ours is None or not ours.value or not rate:
            continue
        limit = results.one(each.section, each.work, _LIMIT)
        cells = (
            each.goal.partition(", ×")[0],
            _shown(1e6 / (rate * bounds[each.goal])),
            _shown(1e6 / ours.value),
            _shown(ours.user_us),
            _shown(ours.kernel_us),
            _shown(ours.switches),
            _shown(None if limit is None else limit.user_us),
            _shown(None if limit is None else limit.kernel_us),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
