"""``logmark ingest``: foreign logs into a store."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..protocol import InvalidEvent
from ._command import Command
from ._console import Console
from ._exit_codes import ExitCode, exit_code_of
from ._ingest_events import ForeignEvent, MalformedLine, NotStored
from ._ingest_feed import Feed
from ._ingest_gaps import GapTracker
from ._ingest_reader import LineReader, LogFile, find_files
from ._interrupts import Interrupts
from ._progress import Progress
from ._text import error_text, plural

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["COMMAND"]

_STOPPING = "stopping: what was accepted is being finished; Ctrl-C again ends at once"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="an ARCP wire log; a directory of a JSONL event store, the one above it, or a file in it; - is"
        " standard input",
    )
    parser.add_argument("--json", action="store_true", help="the summary as one object")


@dataclasses.dataclass(slots=True, kw_only=True)
class _Summary:
    """What became of the input's lines: each is counted in exactly one of the five after ``lines``, or refused."""

    lines: int = 0
    stored: int = 0
    repeated: int = 0
    control: int = 0
    client: int = 0
    malformed: int = 0
    refused: int = 0
    sessions: int = 0
    sessions_with_gaps: int = 0
    interrupted: bool = False
    elapsed_s: float = 0.0


def _run(arguments: argparse.Namespace, console: Console) -> int:
    from .. import open as open_store

    files = find_files(arguments.files)  # before the store is made: a misspelt name leaves nothing behind
    with Interrupts(lambda: console.err.say_at_once(_STOPPING)) as interrupts, open_store(arguments.store) as runtime:
        ingest = _Ingest(runtime, console, interrupts, files)
        code = ingest.run(files)
    if arguments.json:
        console.out.json(dataclasses.asdict(ingest.summary))
    else:
        _print(ingest.summary, console)
    return code


class _Ingest:
    """One run of the command."""

    def __init__(self, runtime: Runtime, console: Console, interrupts: Interrupts, files: Sequence[LogFile]) -> None:
        self._runtime = runtime
        self._err = console.err
        self._interrupts = interrupts
        self._feed = Feed(runtime)
        self._gaps = GapTracker()
        sizes = [file.size_bytes for file in files]
        self._progress = Progress(
            console.err,
            None if None in sizes else sum(size or 0 for size in sizes),
            wanted=not any(file.is_typed for file in files),
        )
        self._bytes_before = 0
        self.summary = _Summary()

    def run(self, files: Sequence[LogFile]) -> int:
        """Read the files and return the exit code; everything that was accepted is answered by then."""
        codes: list[int] = [ExitCode.OK]
        for file in files:
            if self._interrupts.requested:
                break
            try:
                self._read(file)
            except OSError as error:
                self._err.say(f"{file.name}: {error_text(error)}")
                codes.append(ExitCode.IO)
        self._feed.finish()
        self._progress.end()
        codes.append(self._report())
        return ExitCode.INTERRUPTED if self.summary.interrupted else max(codes)

    def _read(self, file: LogFile) -> None:
        with file.open() as stream:
            reader = LineReader(stream, file.session_id, self._runtime.limits, self._runtime.types.is_countable)
            rows = 0
            while not self._interrupts.requested:
                line = self._next_line(reader)
                if line is None:
                    break
                self.summary.lines += 1
                rows += self._take(line, reader, f"{file.name}:{reader.line_number}")
                self._progress.update(self._bytes_before + reader.bytes_read, self.summary.lines)
            self._bytes_before += reader.bytes_read
        if rows and file.session_id and file.given_out is not None and not self._interrupts.requested:
            self._gaps.note_given_out(file.session_id, file.given_out, f"the end of {file.name}")

    def _next_line(self, reader: LineReader) -> bytes | None:
        try:
            with self._interrupts.allowed:
                return reader.next_line()
        except KeyboardInterrupt:
            self._interrupts.requested = True
            return None

    def _take(self, line: bytes, reader: LineReader, place: str) -> bool:
        """Deal with one line; True when it is a row of an event store."""
        try:
            found = reader.decode(line)
            if isinstance(found, ForeignEvent):
                self._feed.put(found.session_id, found.envelope, len(line))
                if found.origin_seq is not None:
                    self._gaps.note(found.session_id, found.origin_seq, place, from_one=found.is_row)
                return found.is_row
        except (MalformedLine, InvalidEvent) as error:
            self.summary.malformed += 1
            self._err.line(f"{place}: {error_text(error)}")
        else:
            if found is NotStored.CONTROL:
                self.summary.control += 1
            else:
                self.summary.client += 1
        return False

    def _report(self) -> int:
        """Complete the summary, say what is wrong with the input or the store, and return the exit code for it."""
        summary, feed = self.summary, self._feed
        gaps, failed = self._gaps.sentences(), feed.failed()
        summary.stored, summary.repeated, summary.refused = feed.stored, feed.repeated, feed.refused
        summary.sessions, summary.sessions_with_gaps = feed.sessions, len(gaps)
        summary.interrupted = self._interrupts.requested
        summary.elapsed_s = round(self._progress.elapsed_s, 3)
        for session in failed:
            self._err.say(f"{error_text(session.error)} ({plural(session.refused, 'event')} refused)")
        for gap in gaps:
            self._err.say(gap)
        found = ExitCode.FOUND if summary.malformed or gaps else ExitCode.OK
        return max([found, *(exit_code_of(session.error) for session in failed)])


def _print(summary: _Summary, console: Console) -> None:
    out = console.out
    lines = [
        (summary.stored, f"stored, in {plural(summary.sessions, 'session')}"),
        (summary.repeated, "there already, by their ids"),
        (summary.control, "control envelopes, which have no number"),
        (summary.client, "from the client, which are no events of a session"),
        (summary.malformed, "malformed"),
        (summary.refused, "refused by the store"),
    ]
    columns = len(f"{summary.lines:,}")
    state = "interrupted after" if summary.interrupted else "ingested"
    out.line(f"{state} {plural(summary.lines, 'line')} in {summary.elapsed_s:.2f} s")
    for count, what in lines:
        if count:
            out.line(f"  {count:>{columns},}  {what}")


COMMAND = Command(
    name="ingest",
    summary="append the events of foreign logs to a store",
    description=(
        "Append the events of ARCP wire logs and of JSONL event stores to their sessions, which are made as needed."
        " Events get new numbers; their old ones are kept in the field origin_seq. An event whose id is there already"
        " is not stored again, so an ingest can be repeated or resumed. Lines that cannot be read are reported by their"
        " numbers on standard error, and the rest is ingested."
    ),
    example="""\
logmark ingest wire.jsonl
logmark ingest --store /var/lib/chat recordings/*.jsonl
logmark ingest old-store/events
zcat wire.jsonl.gz | logmark ingest -
""",
    add_arguments=_add_arguments,
    run=_run,
)
