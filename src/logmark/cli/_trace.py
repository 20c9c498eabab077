"""``logmark trace``: what the logs of one or several processes say has happened."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..protocol import SEQ_MAX, InvalidArgument
from ._command import Command
from ._console import Console, Output
from ._exit_codes import ExitCode
from ._text import plural, printable, table

if TYPE_CHECKING:
    from ..trace import LogReader, LogSource, Oddity, Story, Summary, Violation

__all__ = ["COMMAND"]

_COLUMNS_MAX = 110
_INDENT = 4
_TIME_COLUMNS = 28  # 04:48:51.125  +16 min 40 s
_DIM, _RED, _YELLOW, _CYAN, _BOLD = "2", "31", "33", "36", "1"
_SESSIONS_SHOWN = 20
_RUNTIMES_SHOWN = 20


def _number(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() else 0
    if not 1 <= number <= SEQ_MAX:
        message = f"{text!r} is not a number of 1 to {SEQ_MAX}"
        raise argparse.ArgumentTypeError(message)
    return number


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "logs",
        metavar="LOG",
        nargs="+",
        help="a log of JSON lines, also gzip, also with other lines between; '-' is standard input",
    )
    parser.add_argument("--session", metavar="S", help="the story of this session; with --seq, the life of one event")
    parser.add_argument("--seq", metavar="N", type=_number, help="the life of the event with this number of --session")
    parser.add_argument("--id", metavar="ID", help="the life of the event with this id, which logs have at level debug")
    parser.add_argument("--job", metavar="J", help="the story of this job")
    parser.add_argument("--slowest", metavar="N", type=_number, help="the N slowest appends, and where they waited")
    parser.add_argument(
        "--odd", action="store_true", help="what was out of the ordinary, what is safe, and what to do about it"
    )
    parser.add_argument(
        "--check", action="store_true", help="verify the promises from the logs alone; exit code 1 if one was broken"
    )
    parser.add_argument("--full", action="store_true", help="a session's story line by line, routine included")
    parser.add_argument("--json", action="store_true", help="one object per line")


def _run(arguments: argparse.Namespace, console: Console) -> int:
    from ..trace import LogReader, find_sources

    _check_choice(arguments)
    sources = find_sources(arguments.logs)
    if arguments.id is not None:
        return _event_by_id(arguments, console, sources)
    reader = LogReader(sources, session=arguments.session)
    if arguments.check:
        return _check(arguments, console, reader)
    if arguments.odd:
        return _odd(arguments, console, reader)
    if arguments.slowest is not None:
        return _slowest(arguments, console, reader)
    if arguments.job is not None or arguments.session is not None:
        return _story(arguments, console, reader)
    return _summary(arguments, console, reader)


def _check_choice(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be answered together.

    Raises:
        InvalidArgument: several questions at once, or half of one.
    """
    asked = {"--check": arguments.check, "--odd": arguments.odd, "--slowest": arguments.slowest is not None}
    asked |= {"--seq": arguments.seq is not None, "--id": arguments.id is not None, "--job": arguments.job is not None}
    named = [name for name, is_asked in asked.items() if is_asked]
    if len(named) > 1:
        message = f"one question at a time: {' and '.join(named)} are {len(named)}"
        raise InvalidArgument(message)
    if arguments.seq is not None and arguments.session is None:
        raise InvalidArgument("--seq is a number of a session: name it with --session")


# -- timelines -------------------------------------------------------------------------------------------------------


def _event_by_id(arguments: argparse.Namespace, console: Console, sources: list[LogSource]) -> int:
    from ..trace import LogReader, event_life, find_id, readable_twice

    with readable_twice(sources) as again:
        hit = find_id(arguments.id, LogReader(again, session=arguments.session).facts())
        if hit is None:
            console.err.say(
                f"these logs do not have the id {arguments.id}: they have ids at level debug only. The store knows its"
                " number: logmark view SESSION --json | jq 'select(.id == \"…\") | .event_seq'"
            )
            return ExitCode.FOUND
        if hit.seq is None:
            console.err.say(
                f"{hit.place}: {arguments.id} begins a batch of session {hit.session} of which nobody knew whether it"
                f" was written; see --session {hit.session}"
            )
            return ExitCode.FOUND
        life = event_life(hit.session, hit.seq, LogReader(again, session=hit.session).facts())
    return _tell(life, arguments, console)


def _story(arguments: argparse.Namespace, console: Console, reader: LogReader) -> int:
    from ..trace import event_life, job_story, session_story

    if arguments.job is not None:
        full = arguments.full or arguments.json
        story = job_story(arguments.job, reader.facts(), session=arguments.session, full=full)
    elif arguments.seq is not None:
        story = event_life(arguments.session, arguments.seq, reader.facts())
    else:
        story = session_story(arguments.session, reader.facts(), full=arguments.full or arguments.json)
    return _tell(story, arguments, console)


def _tell(story: Story, arguments: argparse.Namespace, console: Console) -> int:
    if arguments.json:
        for step in story.steps:
            console.out.json(_with_place(dataclasses.asdict(step)))
    else:
        _print_story(story, console.out)
    if not story.found:
        if not story.verdict:
            console.err.say(f"these logs say nothing of {story.title[0].lower()}{story.title[1:]}")
        elif arguments.json:
            console.err.say(story.verdict[0])
    return ExitCode.OK if story.found else ExitCode.FOUND


def _print_story(story: Story, out: Output) -> None:
    from ..trace import clock_of, day_of, span_of

    if not story.steps and not story.verdict:
        return
    moments = [step.moment_ns for step in story.steps if step.moment_ns is not None]
    day = f", on {day_of(moments[0])}, in UTC" if moments else ""
    out.line(out.coloured(printable(f"{story.title}{day}"), _BOLD))
    out.line("")
    for step in story.steps:
        since = "" if step.moment_ns is None or not moments else span_of(step.moment_ns - moments[0])
        when = f"{clock_of(step.moment_ns)}  {'+' + since if since and step.moment_ns != moments[0] else ''}"
        until = "" if step.until_ns is None else f" Until {clock_of(step.until_ns)}."
        lines = "" if step.count == 1 else f" and {step.count - 1:,} more lines"
        text = f"{step.text}{until} [{step.place}{lines}]"
        colour = {"error": _RED, "warning": _YELLOW}.get(step.level, "")
        _hanging(out, when, text, colour)
    if story.verdict:
        if story.steps:
            out.line("")
        for sentence in story.verdict:
            _say(sentence, out)


def _say(sentence: str, out: Output) -> None:
    for line in textwrap.wrap(printable(sentence), _width(out), break_on_hyphens=False):
        out.line(line)


def _width(out: Output) -> int:
    return min(_COLUMNS_MAX, out.columns or _COLUMNS_MAX)


def _hanging(out: Output, when: str, text: str, colour: str) -> None:
    """Write a text beside its time; in a narrow terminal, below it."""
    width = _width(out) - _TIME_COLUMNS
    narrow = width < 40  # noqa: PLR2004 - less is hard to read
    lines = textwrap.wrap(printable(text), _width(out) - _INDENT if narrow else width, break_on_hyphens=False)
    if narrow:
        out.line(out.coloured(when.rstrip(), _DIM))
        for line in lines:
            out.line(" " * _INDENT + out.coloured(line, colour) if colour else " " * _INDENT + line)
        return
    for index, line in enumerate(lines):
        head = out.coloured(f"{when:<{_TIME_COLUMNS}}", _DIM) if index == 0 else " " * _TIME_COLUMNS
        out.line(head + (out.coloured(line, colour) if colour else line))


# -- questions to all of it ------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace, console: Console, reader: LogReader) -> int:
    from ..trace import Checker

    checker = Checker()
    for fact, place in reader.facts():
        checker.feed(fact, place)
    found = checker.finish()
    if arguments.session is not None:
        found = [each for each in found if each.session == arguments.session]
    for violation in found:
        _print_violation(violation, arguments, console.out)
    if arguments.json:
        verdict = {"kind": "verdict", "violations": checker.found_count, "unseen": checker.unseen, **_counts(reader)}
        console.out.json(verdict)
    else:
        _print_verdict(checker.found_count, checker.unseen, reader, console.out)
    return ExitCode.FOUND if checker.found_count else ExitCode.OK


def _print_violation(violation: Violation, arguments: argparse.Namespace, out: Output) -> None:
    if arguments.json:
        places = [{"file": place.file, "line": place.line} for place in violation.places]
        shown = {"rule": violation.rule, "session": violation.session, "text": violation.text}
        out.json({"kind": "violation", **shown, "places": places})
        return
    first, *others = violation.places
    see = "" if not others else f" (see {', '.join(map(str, others))})"
    out.line(f"{out.coloured(printable(str(first)), _CYAN)}: {printable(violation.text)}{printable(see)}")


def _print_verdict(count: int, unseen: dict[str, int], reader: LogReader, out: Output) -> None:
    what = f"{plural(reader.events, 'log event')} in {plural(reader.lines, 'line')}"
    if reader.events == 0:
        out.line(f"There is nothing to check: no log event of logmark in {plural(reader.lines, 'line')}.")
    elif count:
        out.line(out.coloured(f"{plural(count, 'violation')} in {what}.", _RED))
    else:
        _say(
            f"Nothing wrong in {what}: nothing was shown before it was on disk, no number was skipped or given twice,"
            " every mark moved forward, and every accepted append was answered.",
            out,
        )
    for session, numbers in sorted(unseen.items()):
        _say(
            f"Session {session} has {plural(numbers, 'number')} that writers found in the log and that these logs do"
            " not tell of: written by a process whose log, or whose last lines, are not here, by an append whose"
            " outcome was unknown, or reserved.",
            out,
        )
    _print_reading(reader, out)


def _odd(arguments: argparse.Namespace, console: Console, reader: LogReader) -> int:
    from ..trace import Oddities

    oddities = Oddities()
    for fact, place in reader.facts():
        oddities.feed(fact, place)
    found = [
        each
        for each in oddities.finish(reader)
        if arguments.session is None or each.session in (None, arguments.session)
    ]
    if arguments.json:
        for oddity in found:
            console.out.json(_with_place(dataclasses.asdict(oddity)))
        return ExitCode.OK
    if not found:
        console.out.line(f"Nothing odd in {plural(reader.events, 'log event')}.")
        _print_reading(reader, console.out)
        return ExitCode.OK
    _print_odd(found, console.out)
    _print_reading(reader, console.out)
    return ExitCode.OK


def _print_odd(found: list[Oddity], out: Output) -> None:
    from ..trace import clock_of, day_of, span_of

    began = found[0].first_ns
    if began is not None:
        out.line(out.coloured(f"On {day_of(began)}, in UTC:", _BOLD))
        out.line("")
    for oddity in found:
        since = (
            "" if began is None or oddity.first_ns in (None, began) else f"+{span_of((oddity.first_ns or 0) - began)}"
        )
        session = "" if oddity.session is None else f"session {oddity.session}, "
        times = ""
        if oddity.count > 1:
            times = f", {oddity.count:,} times until {clock_of(oddity.last_ns)} (first one told here)"
        place = oddity.place if oddity.place.line else oddity.place.file
        colour = {"error": _RED, "warning": _YELLOW}.get(oddity.level, "")
        head = f"{oddity.event}: {session}{oddity.process}{times} [{place}]"
        _hanging(out, f"{clock_of(oddity.first_ns)}  {since}", head, colour or _BOLD)
        for label, text in (("", oddity.text), ("Safe: ", oddity.safe), ("To do: ", oddity.to_do)):
            if text:
                _hanging(out, "", label + text, "")
        out.line("")


def _slowest(arguments: argparse.Namespace, console: Console, reader: LogReader) -> int:
    from ..trace import Slowest, clock_of

    slowest = Slowest(arguments.slowest)
    for fact, place in reader.facts():
        if arguments.session is None or fact.get("session") == arguments.session:
            slowest.feed(fact, place)
    found = slowest.all()
    if arguments.json:
        for append in found:
            console.out.json(_with_place(dataclasses.asdict(append)) | {"waited_in": append.waited_in})
        return ExitCode.OK
    if not found:
        console.out.line(f"There is no append in {plural(reader.events, 'log event')}.")
        return ExitCode.OK
    rows = [
        (
            f"{append.total_ms:.3f}",
            append.waited_in,
            f"{append.inbox_ms:.3f}",
            f"{append.writer_ms:.3f}",
            f"{append.commit_ms:.3f}",
            f"{append.sync_ms:.3f}",
            clock_of(append.submitted_ns),
            printable(append.session),
            f"{append.first_seq}" if append.first_seq == append.last_seq else f"{append.first_seq}-{append.last_seq}",
            printable(str(append.place)),
        )
        for append in found
    ]
    header = ("TOTAL_MS", "MOST_IN", "INBOX", "WRITER", "COMMIT", "SYNC", "SUBMITTED", "SESSION", "NUMBERS", "LINE")
    console.out.table(table(header, rows))
    console.out.line("")
    _say(
        "inbox: waited for a place and for the batch before; writer: for a writer that was not busy; commit: for the"
        " session's lock and the write; sync: for the disk.",
        console.out,
    )
    return ExitCode.OK


def _summary(arguments: argparse.Namespace, console: Console, reader: LogReader) -> int:
    from ..trace import Checker, Oddities, Summary

    summary, checker, oddities = Summary(), Checker(), Oddities()
    feeds = (summary.feed, checker.feed, oddities.feed)
    for fact, place in reader.facts():
        for feed in feeds:
            feed(fact, place)
    summary.finish()
    violations, odd = len(checker.finish()), oddities.finish(reader)
    if arguments.json:
        console.out.json({"kind": "log", **_counts(reader), "violations": violations, "odd": len(odd)})
        for runtime in summary.runtimes.values():
            console.out.json({"kind": "runtime", **_with_place(dataclasses.asdict(runtime))})
        for session in summary.sessions.values():
            shown = dataclasses.asdict(session) | {"runtimes": sorted(session.runtimes)}
            console.out.json({"kind": "session", **shown})
        return ExitCode.OK
    _print_summary(summary, reader, console.out)
    out = console.out
    out.line("Order: nothing wrong." if not violations else f"Order: {plural(violations, 'violation')}; see --check.")
    kinds = ", ".join(dict.fromkeys(each.event for each in odd))
    out.line("Odd: nothing." if not odd else f"Odd: {kinds}; see --odd.")
    return ExitCode.OK


def _print_summary(summary: Summary, reader: LogReader, out: Output) -> None:
    from ..trace import clock_of, day_of, span_of

    out.line(f"{plural(reader.events, 'log event')} of logmark in {plural(reader.lines, 'line')}.")
    _print_reading(reader, out)
    if summary.first_ns is not None and summary.last_ns is not None:
        span = span_of(summary.last_ns - summary.first_ns)
        first, last = clock_of(summary.first_ns), clock_of(summary.last_ns)
        out.line(f"On {day_of(summary.first_ns)} from {first} to {last} UTC ({span}).")
    runtimes = list(summary.runtimes.values())
    if runtimes:
        rows = [
            (
                printable(runtime.process.removeprefix("process ")),
                clock_of(runtime.opened_ns),
                _ended(runtime.closed_ns, runtime.last_ns, drained=runtime.drained),
                f"{runtime.events:,}",
                printable(runtime.store or "?"),
            )
            for runtime in runtimes[:_RUNTIMES_SHOWN]
        ]
        _print_table(("PROCESS", "OPENED", "CLOSED", "LOG_EVENTS", "STORE"), rows, len(runtimes), out)
    if summary.sessions:
        sessions = sorted(summary.sessions.values(), key=lambda each: -each.events)
        session_rows = [
            (
                printable(session.session),
                f"{session.events:,}",
                f"{session.first_seq}-{session.last_seq}" if session.batches else "-",
                f"{session.batches:,}",
                f"{session.shown:,}",
                f"{session.commit_ms_max}",
                "halted" if session.halted else "",
            )
            for session in sessions[:_SESSIONS_SHOWN]
        ]
        header = ("SESSION", "EVENTS", "NUMBERS", "BATCHES", "SHOWN", "SLOWEST_MS", "")
        _print_table(header, session_rows, len(sessions), out)
    out.line("")


def _ended(closed_ns: int | None, last_ns: int | None, *, drained: bool | None) -> str:
    from ..trace import clock_of

    if closed_ns is None:
        return f"never; last heard of at {clock_of(last_ns)}"
    return clock_of(closed_ns) if drained else f"{clock_of(closed_ns)}, not drained"


def _print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], count: int, out: Output) -> None:
    shown = list(rows)
    out.line("")
    out.table(table(header, shown))
    if count > len(shown):
        out.line(f"and {count - len(shown):,} more")


def _print_reading(reader: LogReader, out: Output) -> None:
    skipped = [
        f"{plural(reader.foreign, 'line')} that {'is' if reader.foreign == 1 else 'are'} no JSON"
        if reader.foreign
        else "",
        f"{plural(reader.others, 'object')} of other programs" if reader.others else "",
    ]
    if any(skipped):
        out.line(f"Skipped: {' and '.join(filter(None, skipped))}.")
    for name in reader.cut:
        out.line(f"The last line of {printable(name)} was cut off.")
    for name, reason in reader.broken:
        out.line(f"{printable(name)} could not be read to its end: {printable(reason)}")


def _counts(reader: LogReader) -> dict[str, Any]:
    names = ("lines", "events", "others", "foreign", "cut")
    return {name: getattr(reader, name) for name in names} | {"broken": [name for name, _ in reader.broken]}


def _with_place(shown: dict[str, Any]) -> dict[str, Any]:
    """Return an object with its places as text."""
    places = {name: value for name, value in shown.items() if name.endswith("place") and value is not None}
    return shown | {name: f"{value[0]}:{value[1]}" for name, value in places.items()}


COMMAND = Command(
    name="trace",
    summary="tell from the logs what has happened",
    description=(
        "Read the JSON log of one or several processes and tell what became of an event, the story of a session or a"
        " job, which appends were slow and where they waited, what was out of the ordinary, and whether every promise"
        " held. It needs no store, and says where each thing stands in the logs. Without an option: a summary."
    ),
    example="""\
logmark trace run.log                                 a summary
logmark trace run.log --session chat-42 --seq 3       the life of number 3
zcat old/*.gz | logmark trace - --odd                 what went wrong, and what to do
logmark trace a.log b.log --check                     exit code 1 if a promise was broken
""",
    add_arguments=_add_arguments,
    run=_run,
)
