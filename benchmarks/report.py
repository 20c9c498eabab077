"""Rows of results, as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from .harness import Bout, Sample, Usage, percentile

__all__ = ["Row", "distribution", "markdown", "rows_of", "table"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One participant's result at one piece of work."""

    section: str
    work: str
    participant: str
    value: float | None = None
    """Median over the rounds; None when the participant is missing."""
    unit: str = "events/s"
    value_min: float | None = None
    value_max: float | None = None
    ratio: float | None = None
    """Median over the rounds of the ratio to the first row of the same work, taken within each round."""
    against: float | None = None
    """The same ratio to another row that the note names."""
    p50_us: float | None = None
    p99_us: float | None = None
    note: str = ""
    x: float | None = None
    """Position on the horizontal axis of a plot."""
    latency_us: dict[str, float] | None = None
    """Latency by percentile, of what waits for its answer."""
    user_us: float | None = None
    """Processor time of this process for one event, in its own code; servers have theirs beside it."""
    kernel_us: float | None = None
    """The same in system calls."""
    switches: float | None = None
    """How often one of its threads went to sleep or was taken off the processor, for one event."""

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Return the row that ``to_json`` made this of."""
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Return what the JSON file holds, without what is not known."""
        found = {key: value for key, value in dataclasses.asdict(self).items() if value is not None and value != ""}
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}


_PERCENTILES = (1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9)


def distribution(latencies_us: Sequence[float]) -> dict[str, float]:
    """Return latencies by percentile."""
    ordered = sorted(latencies_us)
    last = len(ordered) - 1
    return {f"{percent:g}": round(ordered[round(last * percent / 100)], 1) for percent in _PERCENTILES}


def rows_of(
    bout: Bout,
    section: str,
    work: str,
    *,
    unit: str = "events/s",
    notes: dict[str, str] | None = None,
    against: Mapping[str, tuple[str, str]] | None = None,
    positions: dict[str, float] | None = None,
) -> list[Row]:
    """Turn a bout into rows, one for each contender, the limit first.

    Args:
        bout: what was done.
        section: the heading.
        work: what the work was.
        unit: of the rates.
        notes: by contender.
        against: by contender, another one to compare it with, and how that is called in the note.
        positions: by contender, its place on the horizontal axis of a plot.
    """
    limit = next(iter(bout.contenders))
    rows: list[Row] = []
    for name, samples in bout.samples.items():
        other, called = (against or {}).get(name, (None, ""))
        versus = None if other is None else statistics.median(bout.ratios(name, other))
        note = (notes or {}).get(name, "")
        if versus is not None:
            note = f"{versus:.2f} × {called}"
        rates = [sample.rate for sample in samples]
        latencies_us = [latency / 1000 for sample in samples for latency in sample.latencies_ns]
        rows.append(
            Row(
                section=section,
                work=work,
                participant=name,
                value=statistics.median(rates),
                unit=unit,
                value_min=min(rates),
                value_max=max(rates),
                ratio=statistics.median(bout.ratios(name, limit)),
                p50_us=percentile(latencies_us, 50) if latencies_us else None,
                p99_us=percentile(latencies_us, 99) if latencies_us else None,
                against=versus,
                note=note,
                x=(positions or {}).get(name),
                latency_us=distribution(latencies_us) if latencies_us else None,
                user_us=_for_each(samples, lambda usage: usage.user_s * 1e6),
                kernel_us=_for_each(samples, lambda usage: usage.kernel_s * 1e6),
                switches=_for_each(samples, lambda usage: usage.switches),
            )
        )
    rows.extend(
        Row(section=section, work=work, participant=name, value=None, unit=unit, note=reason)
        for name, reason in bout.failed.items()
    )
    return rows


def _for_each(samples: Sequence[Sample], part: Callable[[Usage], float]) -> float | None:
    """Return what one event took of the processor, as a median over the rounds."""
    found = [part(sample.usage) / sample.events for sample in samples if sample.usage is not None and sample.events]
    return statistics.median(found) if found else None


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


_HEADINGS = ("", "median", "unit", "min – max", "× limit", "p50 µs", "p99 µs", "cpu µs", "")


def table(rows: Sequence[Row]) -> str:
    """Return one text table for each piece of work, under the name of its section."""
    blocks: list[str] = []
    section = ""
    for work in dict.fromkeys((row.section, row.work) for row in rows):
        if work[0] != section:
            section = work[0]
            blocks.append(f"\n== {section} ==")
        lines: list[tuple[str, ...]] = [(f"-- {work[1]}", *_HEADINGS[1:])]
        for row in rows:
            if (row.section, row.work) != work:
                continue
            spread = "" if row.value_min is None else f"{_number(row.value_min)} – {_number(row.value_max)}"
            lines.append(
                (
                    row.participant,
                    "missing" if row.value is None else _number(row.value),
                    row.unit if row.value is not None else "",
                    spread,
                    "" if row.ratio is None else f"{row.ratio:.2f}",
                    "" if row.p50_us is None else _number(row.p50_us),
                    "" if row.p99_us is None else _number(row.p99_us),
                    "" if row.user_us is None or row.kernel_us is None else _number(row.user_us + row.kernel_us),
                    row.note,
                )
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
        for line in lines:
            cells = [
                cell.ljust(width) if column in {0, 2, len(_HEADINGS) - 1} else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            blocks.append("  ".join(cells).rstrip())
    return "\n".join(blocks)


_COLUMNS = {
    "1 caller": ("append", "1 caller, 1 session"),
    "16 callers": ("append", "16 callers, 1 session"),
    "64 callers": ("append", "64 callers, 1 session"),
    "16 callers, 16 sessions": ("append", "16 callers, 16 sessions"),
    "100 per call": ("batches", "1 caller, 1 session, 100 per call"),
    "16 × 256 unanswered": ("pipelined", "16 callers, 1 session, 256 unanswered each"),
}


def markdown(rows: Sequence[Row]) -> str:
    """Return the README's table: participants by kinds of work, thousands of durable events a second."""
    names = list(dict.fromkeys(row.participant for row in rows if row.section == "append"))
    lines = ["| thousand durable events/s | " + " | ".join(_COLUMNS) + " |", "|---|" + "--:|" * len(_COLUMNS)]
    for name in names:
        cells: list[str] = []
        for column, (section, work) in _COLUMNS.items():
            row = next((row for row in rows if (row.section, row.work, row.participant) == (section, work, name)), None)
            known = row is not None and row.value is not None and not (name.startswith("raw") and "×" in column)
            cells.append(f"{row.value / 1000:.1f}" if known and row and row.value else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
