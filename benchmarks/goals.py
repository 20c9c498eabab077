"""What logmark means to reach, as ratios within one run, and whether a run has shown it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from .report import Row

__all__ = ["GOALS", "ONE", "OURS", "SIXTEEN", "Goal", "Results", "goals_markdown", "goals_table"]

OURS = "logmark"


class Results:
    """Rows, to be asked for by section, work and participant."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def one(self, section: str, work: str, participant: str = OURS) -> Row | None:
        """Return the row of this work, or of the first one that ends like this."""
        for row in self.rows:
            if row.section == section and row.work.endswith(work) and row.participant.startswith(participant):
                return row
        return None

    def ratio(self, section: str, work: str, participant: str = OURS) -> float | None:
        """Return a row's ratio to the limit."""
        row = self.one(section, work, participant)
        return None if row is None else row.ratio

    def value(self, section: str, work: str, participant: str = OURS) -> float | None:
        """Return a row's value."""
        row = self.one(section, work, participant)
        return None if row is None else row.value

    def between(self, ours: Row | None, theirs: Row | None) -> float | None:
        """Return the ratio of two medians, for rows that were not taken in the same round."""
        if ours is None or theirs is None or not ours.value or not theirs.value:
            return None
        return ours.value / theirs.value

    def ahead(self) -> float | None:
        """Return the smallest lead over the best peer at any durable work."""
        leads: list[float] = []
        for section in ("append", "batches", "pipelined"):
            for work in dict.fromkeys(row.work for row in self.rows if row.section == section):
                those = [row for row in self.rows if (row.section, row.work) == (section, work) and row.value]
                ours = [row.value for row in those if row.participant == OURS and row.value]
                peers = [row.value for row in those if not row.participant.startswith(("raw", OURS)) and row.value]
                if ours and peers:
                    leads.append(ours[0] / max(peers))
        return min(leads, default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """One aim: what it is, the bound, and how it is read off the rows."""

    text: str
    bound: float
    value: Callable[[Results], float | None]
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Say whether a value is within the bound."""
        return value <= self.bound if self.at_most else value >= self.bound


def _against(section: str, work: str, participant: str) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        row = results.one(section, work, participant)
        return None if row is None else row.against

    return read


def _replay(participant: str) -> Callable[[Results], float | None]:
    def read(results: Results) -> float | None:
        limit = results.one("replay", "events", "orjson.loads over logmark's own lines")
        return results.between(results.one("replay", "events", participant), limit)

    return read


def _last(section: str, unit: str) -> Callable[[Results], Row | None]:
    """Find the last row of a section with a unit, which is that of the greatest length."""

    def read(results: Results) -> Row | None:
        return next((row for row in reversed(results.rows) if (row.section, row.unit) == (section, unit)), None)

    return read


def _longest(results: Results) -> float | None:
    row = _last("growth", "events/s")(results)
    return None if row is None else row.against


def _opening(results: Results) -> float | None:
    row = _last("growth", "ms")(results)
    return None if row is None else row.value


def _first(results: Results) -> float | None:
    """Find logmark's time to the first event; the other rows of that section are rates."""
    row = next(
        (row for row in results.rows if (row.section, row.unit, row.participant) == ("replay", "ms", OURS)), None
    )
    return None if row is None else row.value


def _many(results: Results) -> float | None:
    row = next((row for row in reversed(results.rows) if row.section == "sessions" and row.against is not None), None)
    return None if row is None else row.against


def _idle(results: Results) -> float | None:
    row = next((row for row in results.rows if row.unit == "bytes each"), None)
    return None if row is None else row.value


def _engine_goals(engine: str) -> tuple[Goal, Goal]:
    """Return the aims of an engine: beside a grouped client of the same server, and one that commits each event."""
    work = f"{engine}: {SIXTEEN}"

    def beside_plain(results: Results) -> float | None:
        plain = results.one("engines", work, f"{engine}, a commit each")
        return results.between(results.one("engines", work), plain)

    return (
        Goal(f"{engine}, 16 callers, × a grouped client", 0.8, lambda r: r.ratio("engines", work)),
        Goal(f"{engine}, 16 callers, × a commit each", 3.0, beside_plain),
    )


ENGINES = ("SQLite", "PostgreSQL", "NATS JetStream")
ONE = "1 caller, 1 session"
SIXTEEN = "16 callers, 1 session"

GOALS = (
    Goal("one blocking caller, × limit", 0.9, lambda r: r.ratio("append", ONE)),
    Goal("16 blocking callers, × limit", 2.5, lambda r: r.ratio("append", SIXTEEN)),
    Goal("64 blocking callers, × limit", 4.0, lambda r: r.ratio("append", "64 callers, 1 session")),
    Goal(
        "16 callers on 16 sessions, × the same on one",
        0.8,
        lambda r: r.between(r.one("append", "16 callers, 16 sessions"), r.one("append", SIXTEEN)),
    ),
    Goal("100 per call, one caller, × limit", 0.8, lambda r: r.ratio("batches", f"{ONE}, 100 per call")),
    Goal("100 per call, 16 callers, × limit", 0.8, lambda r: r.ratio("batches", f"{SIXTEEN}, 100 per call")),
    Goal(
        "submit, 16 × 256 unanswered, × limit of 16 that wait",
        12.0,
        lambda r: r.ratio("pipelined", f"{SIXTEEN}, 256 unanswered each"),
    ),
    Goal("smallest lead over the best peer", 1.0, lambda r: r.ahead()),
    Goal("4 viewers and 100 jobs, 16 callers, × without", 0.8, _against("subscribers", SIXTEEN, "logmark, 4")),
    Goal("a stalled viewer, 16 callers, × without", 0.95, _against("subscribers", SIXTEEN, "logmark, a stalled")),
    Goal("deliveries/s to 1 viewer", 300_000, lambda r: r.value("fan-out", "per call to 1 viewer")),
    Goal("deliveries/s to 16 viewers", 600_000, lambda r: r.value("fan-out", "per call to 16 viewers")),
    Goal("from commit to get, p50 in fsyncs", 3.0, lambda r: r.value("fan-out", "at a time to 1 viewer"), at_most=True),
    Goal("replay decoded, × orjson.loads over its lines", 0.7, _replay("logmark")),
    Goal("replay with payload untouched, × the same", 1.5, _replay("logmark, payload")),
    Goal("first event from nine tenths in, cold, ms", 1.0, _first, at_most=True),
    Goal("append at the longest session, × at none", 0.9, _longest),
    Goal("opening the longest session and its marks, ms", 500.0, _opening, at_most=True),
    Goal("an idle open session, bytes", 8000.0, _idle, at_most=True),
    Goal("10,000 sessions round robin, × 16", 0.5, _many),
    *(goal for engine in ENGINES for goal in _engine_goals(engine)),
)


def _judged(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """Return text, bound, value and verdict of each goal that the rows say something about."""
    results = Results(rows)
    found: list[tuple[str, str, str, str]] = []
    for goal in GOALS:
        value = goal.value(results)
        if value is not None:
            bound = f"{'≤' if goal.at_most else '≥'} {goal.bound:,g}"
            shown = f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
            found.append((goal.text, bound, shown, "met" if goal.met(value) else "not met"))
    return found


def goals_table(rows: Sequence[Row]) -> str:
    """Return one line for each goal that the rows say something about."""
    lines = [f"{text:<55} {bound:>10}  {value:>11}   {verdict}" for text, bound, value, verdict in _judged(rows)]
    return "\n".join(["", "== goals ==", *lines]) if lines else ""


def goals_markdown(rows: Sequence[Row]) -> str:
    """Return the same as a table for a page."""
    lines = ["| what | aim | measured | |", "|---|--:|--:|---|"]
    return "\n".join(lines + [f"| {' | '.join(judged)} |" for judged in _judged(rows)])
