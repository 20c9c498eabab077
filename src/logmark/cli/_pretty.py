"""Events for a person at a terminal with colours: times between events, a colour for each job, JSON that reads well.

It needs ``rich`` (``logmark[cli]``). Without it, in a pipe, and where ``NO_COLOR`` or the terminal says so, the plain
lines are written, which scripts may rely on.
"""

from __future__ import annotations

import datetime as dt
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._text import printable

if TYPE_CHECKING:
    from rich.console import Console

    from ..protocol import RawEnvelope
    from ._console import Output

__all__ = ["PrettyEvents", "ago", "between", "pretty_table", "rich_console"]

_LANES = ("cyan", "magenta", "green", "yellow", "blue", "bright_red", "bright_cyan", "bright_magenta")
_BAD_ENDS = ("error", "failed", "cancelled", "timed_out")
_TYPE_COLUMNS = (12, 28)
_JOB_COLUMNS = (1, 20)
_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86400
_PAUSE_S = 1.0


def rich_console(out: Output) -> Console | None:
    """Return a console that renders for this terminal; None where the plain form is right."""
    columns = out.columns
    if columns is None or not out.has_colours:
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(width=columns, force_terminal=True, highlight=False, soft_wrap=True, legacy_windows=False)


def between(seconds: float) -> str:
    """Return a span of time in its largest unit, for a narrow column."""
    if seconds < 0:
        return "-" + between(-seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < _MINUTE_S:
        return f"{seconds:.1f}s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f}m"
    return f"{seconds / _HOUR_S:.0f}h" if seconds < _DAY_S else f"{seconds / _DAY_S:.0f}d"


def ago(moment: dt.datetime | None, now: dt.datetime) -> str:
    """Return how long ago something was, in words."""
    if moment is None:
        return "at no known time"
    seconds = (now - moment).total_seconds()
    if seconds < 0:
        return f"in {between(-seconds)}"
    return "just now" if seconds < 1 else f"{between(seconds)} ago"


class PrettyEvents:
    """Renders the events of a session as lines for one terminal."""

    def __init__(self, console: Console, *, full: bool) -> None:
        self._console = console
        self._full = full
        self._last: dt.datetime | None = None
        self._day: dt.date | None = None
        self._type_columns = _TYPE_COLUMNS[0]
        self._job_columns = _JOB_COLUMNS[0]

    def lines(self, event: RawEnvelope, now: dt.datetime) -> list[str]:
        """Return the lines of the next event: its own, and before it one that names the day when that is another."""
        from rich.highlighter import JSONHighlighter
        from rich.text import Text

        lines: list[str] = []
        moment = event.timestamp
        local = None if moment is None else moment.astimezone(dt.UTC)
        if local is not None and local.date() != self._day:
            self._day = local.date()
            lines.append(self._render(Text(f"{local:%A, %Y-%m-%d} UTC, {ago(local, now)}", style="bold")))
        passed_s = 0.0 if moment is None or self._last is None else (moment - self._last).total_seconds()
        delta = "" if moment is None or self._last is None else f"+{between(passed_s)}"
        self._last = moment or self._last
        type_, job = printable(event.type), printable(event.job_id or "-")
        self._type_columns = max(self._type_columns, min(len(type_), _TYPE_COLUMNS[1]))
        self._job_columns = max(self._job_columns, min(len(job), _JOB_COLUMNS[1]))
        line = Text(no_wrap=True)
        line.append(f"{event.event_seq:>6}  ", style="bold")
        line.append("-" * 12 if local is None else f"{local:%H:%M:%S}.{local.microsecond // 1000:03}", style="dim")
        line.append(f" {delta:>6}  ", style="yellow" if passed_s > _PAUSE_S else "dim")
        line.append(_fitted(type_, self._type_columns), style=_style_of_type(event))
        line.append("  ")
        line.append(_fitted(job, self._job_columns, from_end=True), style=_lane(event.job_id))
        line.append("  ")
        payload = Text(printable(event.payload_json.decode()))
        JSONHighlighter().highlight(payload)
        line.append_text(payload)
        if not self._full:
            line.truncate(self._console.width, overflow="ellipsis")
        lines.append(self._render(line))
        return lines

    def _render(self, text: object) -> str:
        with self._console.capture() as captured:
            self._console.print(text, end="", no_wrap=True, crop=False, overflow="ignore")
        return captured.get()


def _fitted(text: str, columns: int, *, from_end: bool = False) -> str:
    """Return the text in a column; of one that is too long its beginning, or its end, which is where ids differ."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= columns:
        return set_cell_size(text, columns)
    return "…" + set_cell_size(text[::-1], columns - 1)[::-1] if from_end else set_cell_size(text, columns - 1) + "…"


def _style_of_type(event: RawEnvelope) -> str:
    if event.type == "job.error" or any(word in event.type for word in _BAD_ENDS):
        return "red"
    return "green" if event.type == "job.result" else "cyan"


def _lane(job_id: str | None) -> str:
    """Return a job's colour: the same one in every run."""
    return "dim" if job_id is None else _LANES[zlib.crc32(job_id.encode(errors="replace")) % len(_LANES)]


def pretty_table(console: Console, names: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a table as lines; numbers stand right, and a state other than ``ok`` stands out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column, name in enumerate(names):
        numeric = bool(rows) and all(isinstance(row[column], int) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="ellipsis", no_wrap=numeric)
    for row in rows:
        cells = [Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row]
        cells[0].stylize("cyan")
        cells[-1].stylize("green" if row[-1] == "ok" else "yellow")
        if str(row[-1]).startswith(("halted", "error")):
            cells[-1].stylize("bold red")
        table.add_row(*cells)
    with console.capture() as captured:
        console.print(table)
    return captured.get().splitlines()
