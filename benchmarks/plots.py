"""Three pictures of the results; they need matplotlib, which the ``bench`` extra brings."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

from .report import Row

__all__ = ["can_draw", "draw"]

_RAW = "raw"
_OURS = "logmark"


def can_draw() -> str | None:
    """Return None when matplotlib is there, else what is in the way."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        return f"no plots: {error}; python -m pip install -e '.[bench]' brings it"
    return None


def draw(rows: Sequence[Row], directory: str) -> list[str]:
    """Draw what there are rows for, as PNG files in a directory; return their paths."""
    os.makedirs(directory, exist_ok=True)
    drawn: list[str] = []
    for name, plot in (("throughput", _throughput), ("growth", _growth), ("latency", _latency)):
        figure = plot(rows)
        if figure is not None:
            path = os.path.join(directory, f"{name}.png")
            figure.savefig(path, dpi=100, metadata={"Software": None})
            drawn.append(path)
    return drawn


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    matplotlib: Any = importlib.import_module("matplotlib.figure")
    figure = matplotlib.Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, which="major", alpha=0.3)
    return figure, axes


_PEERS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")


def _style(participant: str, place: int = 0) -> dict[str, Any]:
    """Make the limit and logmark stand out, and give each peer a colour of its own."""
    if participant.startswith(_RAW):
        return {"color": "black", "linestyle": "--", "linewidth": 1.5, "zorder": 3}
    if participant.startswith(_OURS):
        return {"color": "tab:red", "linewidth": 2.5, "zorder": 4}
    return {"color": _PEERS[place % len(_PEERS)], "linewidth": 1.2}


def _logarithmic(axis: Any, scale: Any) -> None:
    """Label a logarithmic axis with plain numbers."""
    ticker: Any = importlib.import_module("matplotlib.ticker")
    scale("log")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axis.set_minor_locator(ticker.NullLocator())


def _series(rows: Sequence[Row], section: str, works: Sequence[str]) -> dict[str, list[tuple[int, Row]]]:
    """Return each participant's rows at pieces of work, with the place of the work."""
    found: dict[str, list[tuple[int, Row]]] = {}
    for place, work in enumerate(works):
        for row in rows:
            if (row.section, row.work) == (section, work) and row.value is not None:
                found.setdefault(row.participant, []).append((place, row))
    return found


def _throughput(rows: Sequence[Row]) -> Any:
    """Durable events a second by the number of callers of one session."""
    callers = {1: "1 caller, 1 session", 16: "16 callers, 1 session", 64: "64 callers, 1 session"}
    series = _series(rows, "append", list(callers.values()))
    if not series:
        return None
    figure, axes = _axes("Durable appends to one session", "callers, each waiting for its answer", "events/s")
    for number, (participant, points) in enumerate(series.items()):
        x = [list(callers)[place] for place, _ in points]
        axes.plot(x, [row.value for _, row in points], marker="o", label=participant, **_style(participant, number))
    axes.set_xscale("log", base=4)
    _logarithmic(axes.yaxis, axes.set_yscale)
    axes.set_xticks(list(callers), [str(number) for number in callers])
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _growth(rows: Sequence[Row]) -> Any:
    """Time of an append by the length of the session."""
    points = [row for row in rows if row.section == "growth" and row.unit == "events/s" and row.value]
    ours = sorted((row.x, 1e6 / row.value) for row in points if row.x is not None and row.value)
    if not ours:
        return None
    figure, axes = _axes("What an append costs as the session grows", "events in the session", "µs per append")
    axes.plot([x for x, _ in ours], [y for _, y in ours], marker="o", label=_OURS, **_style(_OURS))
    for row in points:
        if row.x is None and row.value:
            axes.axhline(1e6 / row.value, label=row.participant, **_style(row.participant))
    axes.set_xscale("symlog", linthresh=1000)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


def _latency(rows: Sequence[Row]) -> Any:
    """Latency by percentile, sixteen callers of one session."""
    series = _series(rows, "append", ["16 callers, 1 session"])
    if not series:
        return None
    figure, axes = _axes("How long an append takes, 16 callers of one session", "percentile", "µs")
    for number, (participant, points) in enumerate(series.items()):
        latencies = points[0][1].latency_us or {}
        # From 50 on, each step to the right is ten times rarer.
        x = [1 / (1 - float(percent) / 100) for percent in latencies]
        axes.plot(x, list(latencies.values()), label=participant, **_style(participant, number))
    axes.set_xscale("log")
    _logarithmic(axes.yaxis, axes.set_yscale)
    axes.minorticks_off()
    ticks = {1.01: "1", 2: "50", 10: "90", 100: "99", 1000: "99.9"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
