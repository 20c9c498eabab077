"""Events at a terminal with colours: what a person is shown there, and that nobody else is."""

from __future__ import annotations

import datetime as dt
import io
import re

import pytest

import logmark
from logmark.cli._console import Output
from logmark.cli._pretty import PrettyEvents, ago, between, rich_console

pytest.importorskip("rich")

AT = dt.datetime(2026, 5, 4, 3, 2, 1, 250_000, tzinfo=dt.UTC)
SGR = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Output:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return Output(Terminal())


def shown(out: Output, *events: tuple[object, str | None, float], type_: str = "note", full: bool = False) -> list[str]:
    """Return the lines of events given as payload, job and seconds after the first."""
    console = rich_console(out)
    assert console is not None
    pretty = PrettyEvents(console, full=full)
    lines: list[str] = []
    with logmark.open("memory:") as runtime:
        session = runtime.session("s")
        for payload, job_id, after_s in events:
            session.append(type_, payload, job_id=job_id, timestamp=AT + dt.timedelta(seconds=after_s))
        for event in session.read_raw():
            lines += pretty.lines(event, AT + dt.timedelta(hours=2))
    return lines


def test_a_day_is_named_once_and_times_between_events_are_told(out: Output) -> None:
    lines = [SGR.sub("", line) for line in shown(out, (1, None, 0), (2, None, 0.02), (3, None, 90), (4, None, 86_400))]
    assert lines[0] == "Monday, 2026-05-04 UTC, 2h ago"
    assert lines[1].split()[:2] == ["1", "03:02:01.250"]
    assert lines[2].split()[:3] == ["2", "03:02:01.270", "+20ms"]
    assert lines[3].split()[:3] == ["3", "03:03:31.250", "+1m"]
    assert lines[4].startswith("Tuesday, 2026-05-05 UTC, in ")
    assert lines[5].split()[0] == "4"


def test_a_job_keeps_its_colour_and_the_end_of_its_id(out: Output) -> None:
    long = "job_01M7XQ50NY5V9G5000000000AB"
    lines = shown(out, (1, long, 0), (2, "b", 0), (3, long, 0))[1:]
    assert "…" in lines[0]
    assert "0000AB" in SGR.sub("", lines[0])
    lanes = [re.findall(r"\x1b\[([0-9;]+)m[^\x1b]*(?:AB|\bb\b)", line) for line in lines]
    assert lanes[0][-1] == lanes[2][-1]


def test_lines_are_cut_to_the_terminal_unless_all_is_wanted(out: Output) -> None:
    (_, cut) = shown(out, ("x" * 300, None, 0))
    (_, whole) = shown(out, ("x" * 300, None, 0), full=True)
    assert len(SGR.sub("", cut)) == 100
    assert "x" * 300 in SGR.sub("", whole)


def test_what_could_steer_the_terminal_is_shown_as_an_escape(out: Output) -> None:
    lines = shown(out, ("\x1b[2J\x9b31m\u202e[red]no markup[/red]", "\x1b]0;title\x07", 0), full=True)
    text = "".join(lines)
    assert set(SGR.sub("", text)) & {"\x1b", "\x9b", "\x07", "\u202e"} == set()
    assert "[red]no markup[/red]" in SGR.sub("", text)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_not_wanted(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert rich_console(Output(Terminal())) is None
    assert rich_console(Output(io.StringIO())) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0124, "12ms"),
        (1, "1.0s"),
        (59.94, "59.9s"),
        (61, "1m"),
        (7300, "2h"),
        (90_000, "1d"),
        (-2, "-2.0s"),
    ],
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert between(seconds) == text


def test_how_long_ago() -> None:
    assert ago(None, AT) == "at no known time"
    assert ago(AT, AT) == "just now"
    assert ago(AT - dt.timedelta(minutes=5), AT) == "5m ago"
    assert ago(AT + dt.timedelta(minutes=5), AT) == "in 5m"
