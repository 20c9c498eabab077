"""The log: the EventStore contract and its engines."""

from __future__ import annotations

from ._clock import SystemClock, rfc3339
from ._file_store import FileEventStore
from ._files import Files, FileStat, OsFiles, replace_file, write_all
from ._logging import Logger, LogSink, LogTap, add_sink, get_logger, remove_sink
from ._memory import MemoryEventStore
from ._open import local_path, open_store
from ._patience import WouldWait, catch_up, may_put_off, put_off, puts_off, set_patience
from ._plan import event_checksum
from ._store import (
    Appended,
    AppendRequest,
    BatchResult,
    EventStore,
    Finding,
    HaltRecord,
    Record,
    SessionBatch,
    SessionInfo,
    Snapshot,
)

__all__ = [
    "AppendRequest",
    "Appended",
    "BatchResult",
    "EventStore",
    "FileEventStore",
    "FileStat",
    "Files",
    "Finding",
    "HaltRecord",
    "LogSink",
    "LogTap",
    "Logger",
    "MemoryEventStore",
    "OsFiles",
    "Record",
    "SessionBatch",
    "SessionInfo",
    "Snapshot",
    "SystemClock",
    "WouldWait",
    "add_sink",
    "catch_up",
    "event_checksum",
    "get_logger",
    "local_path",
    "may_put_off",
    "open_store",
    "put_off",
    "puts_off",
    "remove_sink",
    "replace_file",
    "rfc3339",
    "set_patience",
    "write_all",
]
