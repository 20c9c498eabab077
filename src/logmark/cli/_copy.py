"""``logmark copy``: a store, or some of its sessions, into another store of any engine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..protocol import InvalidArgument, LogmarkError, StorageUnavailable
from ._command import Command
from ._console import Console
from ._copy_sessions import Copied, Copier, CopyDiffers
from ._exit_codes import ExitCode, exit_code_of
from ._interrupts import Interrupts
from ._progress import Progress
from ._text import error_text, plural, printable

if TYPE_CHECKING:
    from ..storage import EventStore

__all__ = ["COMMAND", "copy_stores"]

_STOPPING = "stopping: the commit under way is being finished; Ctrl-C again ends at once"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="the store to read: a directory or a URL; --store has no meaning")
    parser.add_argument("target", metavar="DST", help="the store to fill: made when there is none")
    parser.add_argument("sessions", metavar="SESSION", nargs="*", help="the sessions to copy (default: all)")
    parser.add_argument("--json", action="store_true", help="one object per session")


def _run(arguments: argparse.Namespace, console: Console) -> int:
    return copy_stores(arguments.source, arguments.target, arguments.sessions, console, as_json=arguments.json)


def copy_stores(
    source_url: str,
    target_url: str,
    names: Sequence[str],
    console: Console,
    *,
    as_json: bool,
    halted_ok: bool = False,
) -> int:
    """Copy sessions from one store to another, say what became of them, and return the exit code.

    Args:
        source_url: the store to read.
        target_url: the store to fill, made when there is none.
        names: the sessions, all when there is none.
        console: where to write.
        as_json: one object for each session.
        halted_ok: copy what can be read of sessions that are halted, and of damaged ones up to the damage.

    Raises:
        InvalidArgument: no two stores, or no such session.
        StorageUnavailable: one of them cannot be opened, read or written.
    """
    from ..storage import open_store

    for url in (source_url, target_url):
        if url.lower().startswith("memory:"):
            message = "a memory store is empty at the start of a command and gone at its end: it cannot be copied"
            raise InvalidArgument(message)
    source = open_store(source_url, create=False)
    try:
        wanted = _wanted(source, names)
        target = open_store(target_url)
        try:
            if target.url == source.url:
                message = f"{source_url} and {target_url} are the same store"
                raise InvalidArgument(message)
            with Interrupts(lambda: console.err.say_at_once(_STOPPING)) as interrupts:
                run = _Run(
                    Copier(source, target, lambda: interrupts.requested, halted_ok=halted_ok), console, interrupts
                )
                run.copy(wanted)
        finally:
            target.close()
    finally:
        source.close()
    return run.report(target.url, as_json=as_json)


def _wanted(source: EventStore, names: Sequence[str]) -> list[str]:
    known = list(source.sessions())
    for name in names:
        if name not in known:
            message = f"there is no session {name!r} in {source.url}; see 'logmark ls'"
            raise InvalidArgument(message)
    return list(dict.fromkeys(names)) or known


class _Run:
    """One run of the command: compare what is there, copy what is not, read back what was copied."""

    def __init__(self, copier: Copier, console: Console, interrupts: Interrupts) -> None:
        self._copier = copier
        self._console = console
        self._interrupts = interrupts
        self._sessions: list[Copied] = []

    def copy(self, names: Sequence[str]) -> None:
        """Carry it out; what goes wrong with a session is its ``error``, and nothing is written if any differs."""
        self._sessions = [Copied(name, 0, 0) for name in names]
        self._each("looking at", self._begin)
        self._each("comparing", self._copier.compare)
        if self._interrupts.requested or any(isinstance(session.error, CopyDiffers) for session in self._sessions):
            return
        self._each("copying", self._copier.copy)
        self._copier.flush()
        if not self._interrupts.requested:
            self._each("verifying", self._copier.verify)

    def _begin(self, session: Copied) -> Iterator[int]:
        self._copier.begin(session)
        yield 0

    def _each(self, what: str, step: Callable[[Copied], Iterator[int]]) -> None:
        """Take every session that is sound so far through one step, and draw how far that is."""
        total = sum(session.last_seq - session.verified for session in self._sessions)
        progress = Progress(self._console.err, total or None, noun=f"events, {what}")
        done = 0
        try:
            for session in self._sessions:
                if session.error is not None:
                    continue
                try:
                    for count in step(session):
                        done += count
                        progress.update(done, done)
                        if self._interrupts.requested:
                            return
                except StorageUnavailable:
                    raise  # it concerns the store, and every other session with it
                except (LogmarkError, OSError, CopyDiffers) as error:  # one bad session does not stop the others
                    session.error = error
        finally:
            progress.end()

    def report(self, target: str, *, as_json: bool) -> int:
        """Say what became of the sessions, and return the exit code."""
        out, codes = self._console.out, [ExitCode.OK]
        for session in self._sessions:
            if session.error is not None:
                codes.append(_exit_code(session.error))
                self._console.err.say(f"{printable(session.session_id)}: {error_text(session.error)}")
            if session.damage is not None:
                codes.append(ExitCode.FOUND)
                self._console.err.say(
                    f"{printable(session.session_id)}: copied to {session.last_seq}, where it is damaged:"
                    f" {error_text(session.damage)}"
                )
            if as_json:
                out.json(_members(session))
        if not as_json:
            copied = sum(session.copied for session in self._sessions)
            present = sum(session.present for session in self._sessions)
            complete = sum(session.is_complete for session in self._sessions)
            out.line(f"{plural(copied, 'event')} copied to {printable(target)}, {present:,} were there already")
            out.line(
                f"{plural(complete, 'session')} of {len(self._sessions):,} complete: count, numbers, ids and checksums"
                " agree"
            )
        if self._interrupts.requested:
            self._console.err.say("interrupted; run it again to go on")
            return ExitCode.INTERRUPTED
        return max(codes)


def _exit_code(error: BaseException) -> ExitCode:
    return ExitCode.FOUND if isinstance(error, CopyDiffers) else exit_code_of(error)


def _members(session: Copied) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "ok": session.is_complete,
        "last_seq": session.last_seq,
        "next_seq": session.next_seq,
        "first_available": session.first_available,
        "sealed": session.sealed,
        "records": len(session.records),
        "present": session.present,
        "copied": session.copied,
        "verified": session.verified,
        "crc": f"{session.checksum:08x}",
        "damage": None if session.damage is None else error_text(session.damage),
        "error": None if session.error is None else error_text(session.error),
    }


COMMAND = Command(
    name="copy",
    summary="copy a store into another, of any engine",
    description=(
        "Copy the sessions of a store into another: every event under its own number, gaps and reservations included."
        " What the destination has already is compared first; if any of it differs, nothing is written. Then what is"
        " missing is appended, read back and compared: count, numbers, ids and checksums. A copy that was interrupted"
        " goes on where it stopped, and one that is complete is only compared. Sessions that are halted or damaged are"
        " not copied; repair them first. The source may be in use: what is appended meanwhile is left for another run."
    ),
    example="""\
logmark copy logmark-data sqlite:events.db
logmark copy sqlite:events.db postgresql://db.example/chat
logmark copy /var/lib/chat /mnt/backup/chat chat-42
""",
    add_arguments=_add_arguments,
    run=_run,
)
