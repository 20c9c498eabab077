"""``logmark view``: the events of a session, as they are or as they come."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..protocol import SEQ_MAX, InvalidArgument, RawEnvelope, SubscriptionClosed, WaitTimeout
from ._command import Command
from ._console import Console, Output
from ._exit_codes import ExitCode
from ._pretty import PrettyEvents, rich_console
from ._stores import first_available, has_session, open_existing, require_session
from ._text import cut, pad, printable, width_of

if TYPE_CHECKING:
    from .._session import Session
    from .._subscription import Subscription

__all__ = ["COMMAND"]

_READER_CHECK_S = 1.0
_SEQ_COLUMNS_MIN = 4
_TYPE_COLUMNS_MIN = 14
_COLUMNS_MAX = 32
_PAYLOAD_COLUMNS_MIN = 16  # a very narrow terminal wraps rather than shows nothing
_DIM, _CYAN, _YELLOW = "2", "36", "33"


def _sequence_number(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() else -1
    if not 0 <= number <= SEQ_MAX:
        message = f"{text!r} is not an event_seq, which is a number of 0 to {SEQ_MAX}"
        raise argparse.ArgumentTypeError(message)
    return number


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="SESSION", help="a session id, as 'logmark ls' shows it")
    parser.add_argument(
        "--from",
        dest="from_seq",
        metavar="N",
        type=_sequence_number,
        help="start with this event_seq (default: the first that is there)",
    )
    parser.add_argument("--job", metavar="J", help="only the events of this job")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what is appended, by any process, until Ctrl-C"
    )
    parser.add_argument("--json", action="store_true", help="one event per line, in the form it has on the wire")
    parser.add_argument("--full", action="store_true", help="do not cut lines to the width of the terminal")
    parser.add_argument(
        "--halted-ok", action="store_true", help="show a halted session too, and a damaged one up to the damage"
    )


def _run(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.follow and arguments.halted_ok:
        message = "--halted-ok shows what a log holds; a halted session cannot be followed"
        raise InvalidArgument(message)
    with open_existing(arguments.store) as runtime:
        if not arguments.follow:
            require_session(runtime, arguments.session)
        elif not has_session(runtime, arguments.session):
            console.err.say(f"session {arguments.session!r} has no events yet; waiting for the first")
        session = runtime.session(arguments.session)
        if arguments.from_seq is None:
            arguments.from_seq = first_available(runtime, arguments.session)
            if arguments.from_seq > 1:
                console.err.say(f"the events before {arguments.from_seq} were pruned")
        printer = _Printer(console.out, as_json=arguments.json, full=arguments.full)
        if not arguments.follow:
            printer.print(session.read_raw(arguments.from_seq, job_id=arguments.job, halted_ok=arguments.halted_ok))
            return ExitCode.OK
        try:
            _follow(session, arguments, console.out, printer)
        except KeyboardInterrupt:  # the way to end it
            console.err.end_line()
    return ExitCode.OK


def _follow(session: Session, arguments: argparse.Namespace, out: Output, printer: _Printer) -> None:
    with session.subscribe(arguments.from_seq, arguments.job) as subscription:
        printer.print(_events_of(subscription, out))


def _events_of(subscription: Subscription, out: Output) -> Iterator[RawEnvelope]:
    """Yield events as they come; whatever has been printed is handed on before waiting for more."""
    timeout_s = 0.0
    while True:
        try:
            yield subscription.get_raw(timeout_s)
            timeout_s = 0.0
        except WaitTimeout:
            out.flush()
            if out.reader_left():
                return
            timeout_s = _READER_CHECK_S
        except SubscriptionClosed:
            return


class _Printer:
    """Prints events as lines: aligned for a person, or as JSON."""

    def __init__(self, out: Output, *, as_json: bool, full: bool) -> None:
        self._out = out
        self._as_json = as_json
        console = None if as_json else rich_console(out)
        self._pretty = None if console is None else PrettyEvents(console, full=full)
        self._full = full
        self._type_columns = _TYPE_COLUMNS_MIN
        self._job_columns = 1

    def print(self, events: Iterable[RawEnvelope]) -> None:
        """Print until there are no more events or nobody reads them."""
        for event in events:
            if self._as_json:
                self._out.json_line(event.to_wire())
            elif self._pretty is not None:
                for line in self._pretty.lines(event, dt.datetime.now(dt.UTC)):
                    self._out.line(line)
            else:
                self._out.line(self._text(event))
            if self._out.gone:
                return

    def _text(self, event: RawEnvelope) -> str:
        type_, job = printable(event.type), printable(event.job_id or "-")
        # Columns only grow, up to a bound, so that lines that are already printed stay nearly aligned with new ones.
        self._type_columns = max(self._type_columns, min(len(type_), _COLUMNS_MAX))
        self._job_columns = max(self._job_columns, min(len(job), _COLUMNS_MAX))
        seq = str(event.event_seq).rjust(_SEQ_COLUMNS_MIN)
        type_, job = pad(type_, self._type_columns), pad(job, self._job_columns)
        time = _time_text(event)
        payload = printable(event.payload_json.decode())
        columns = None if self._full else self._out.columns
        if columns is not None:
            payload = cut(payload, max(_PAYLOAD_COLUMNS_MIN, columns - width_of(f"{seq}  {time}  {type_}  {job}  ")))
        coloured = self._out.coloured
        return f"{seq}  {coloured(time, _DIM)}  {coloured(type_, _CYAN)}  {coloured(job, _YELLOW)}  {payload}"


def _time_text(event: RawEnvelope) -> str:
    moment = event.timestamp
    return "-" if moment is None else moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


COMMAND = Command(
    name="view",
    summary="print the events of a session, and follow it",
    description=(
        "Print the events of a session in order, one per line: number, time in UTC, type, job and payload. On a"
        " terminal lines are cut to its width and control characters are shown as escapes; where it has colours and"
        " rich is installed (logmark[cli]), each job has its own, and the time since the event before stands beside"
        " each. --json prints every field in full, and its output can be ingested again."
    ),
    example="""\
logmark view chat-42
logmark view chat-42 --from 100 --job build-7
logmark view chat-42 --follow --json | jq .payload
""",
    add_arguments=_add_arguments,
    run=_run,
)
