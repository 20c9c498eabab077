"""What the exit code says, one table for all commands."""

from __future__ import annotations

import enum

from ..protocol import (
    CursorAhead,
    DecodeError,
    EventIdConflict,
    ForeignCursor,
    InvalidArgument,
    InvalidEvent,
    LogCorrupt,
    MissingExtra,
    SchemaMismatch,
    SeqPruned,
    SequenceExhausted,
    SessionDeleted,
    SessionHalted,
    SessionSealed,
)

__all__ = ["ExitCode", "exit_code_of"]


class ExitCode(enum.IntEnum):
    """The exit codes; scripts rely on them."""

    OK = 0
    FOUND = 1
    """Damage, a gap, a halt or a bad input line."""
    USAGE = 2
    """The command line cannot be carried out as it is written."""
    IO = 3
    """A file, a disk, a lock or a server failed."""
    INTERRUPTED = 130
    """Ctrl-C, as a shell reports it: 128 + SIGINT."""


_USAGE = (InvalidArgument, CursorAhead, ForeignCursor, MissingExtra, SeqPruned, SessionDeleted, SessionSealed)
_FOUND = (
    DecodeError,
    EventIdConflict,
    InvalidEvent,
    LogCorrupt,
    SchemaMismatch,
    SequenceExhausted,
    SessionHalted,
)


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the exit code for an error; what is neither the user's mistake nor in the data is I/O."""
    if isinstance(error, _USAGE):
        return ExitCode.USAGE
    if isinstance(error, _FOUND):
        return ExitCode.FOUND
    return ExitCode.IO
