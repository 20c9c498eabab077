"""The JSONL event store: ``events/<session>.jsonl``, one row per event, beside it ``.sequence/<session>.seq``.

A row has ``seq``, ``schema_version``, ``timestamp`` (``secs_since_epoch``, ``nanos_since_epoch``), ``source``,
``stream_seq`` and ``event``, whose ``type`` is the event's. The file's name is the session: ``source`` is who produced
the event, which need not be the session itself.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections.abc import Mapping
from typing import Any, cast

from ..protocol import SEQ_MAX, Envelope, InvalidEvent
from ._ingest_events import ORIGIN_SEQ, ForeignEvent, MalformedLine

__all__ = ["ROWS_SUFFIX", "highest_number_given_out", "read_row", "row_files"]

ROWS_SUFFIX = ".jsonl"
_SCHEMA_VERSION = 2
_ROW_FIELDS = frozenset({"event", "schema_version", "seq", "source", "stream_seq", "timestamp"})
_SECONDS_MAX = 253_402_300_799  # the last second of the year 9999
_NANOSECONDS = 1_000_000_000
_ID_BYTES_MAX = 160
_SEQUENCE_BYTES_MAX = 20


def row_files(directory: str) -> list[str]:
    """Return the paths of the logs in an ``events`` directory or in the directory above it, in order of their names."""
    below = os.path.join(directory, "events")
    events = below if os.path.isdir(below) else directory
    return [
        os.path.join(events, name)
        for name in sorted(os.listdir(events))
        if name.endswith(ROWS_SUFFIX) and not name.startswith(".")
    ]


def highest_number_given_out(path: str) -> int | None:
    """Return what the store's sequence file says for a log, or None when there is none or it says nothing.

    It is a hint that trails the log after a crash. Ahead of the log it means rows that are missing, or numbers that
    were reserved: the store itself cannot tell.
    """
    directory, name = os.path.split(path)
    hint = os.path.join(directory, ".sequence", f"{name.removesuffix(ROWS_SUFFIX)}.seq")
    try:
        with open(hint, "rb") as file:
            text = file.read(_SEQUENCE_BYTES_MAX).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def read_row(row: Mapping[str, Any], session_id: str | None) -> ForeignEvent:
    """Read one row.

    Args:
        row: the row.
        session_id: the session that the file is named for; None for a row from elsewhere, whose source must tell.

    Raises:
        MalformedLine: another schema version, or a member that is missing or of the wrong type.
    """
    version = row.get("schema_version")
    if version != _SCHEMA_VERSION:
        message = f"schema version {version!r} found, {_SCHEMA_VERSION} expected"
        raise MalformedLine(message)
    seq, event, source = row.get("seq"), row.get("event"), row.get("source")
    if isinstance(seq, bool) or not isinstance(seq, int) or not 1 <= seq <= SEQ_MAX:
        message = f"seq is a number of 1 to {SEQ_MAX}, not {seq!r}"
        raise MalformedLine(message)
    if not isinstance(event, dict):
        message = "event is not a JSON object"
        raise MalformedLine(message)
    if not isinstance(source, dict):
        message = "source is not a JSON object"
        raise MalformedLine(message)
    session = session_id or _session_of(cast("dict[str, Any]", source))
    try:
        envelope = Envelope(
            type=cast("str", cast("dict[str, Any]", event).get("type")),
            payload=event,
            id=_row_id(session, seq),
            timestamp=_rfc3339(row.get("timestamp")),
            source=source,
            stream_seq=row.get("stream_seq"),
            extensions={ORIGIN_SEQ: seq} | {name: row[name] for name in row if name not in _ROW_FIELDS},
        )
    except InvalidEvent as error:
        raise MalformedLine(str(error)) from error
    return ForeignEvent(session, envelope, seq, is_row=True)


def _session_of(source: Mapping[str, Any]) -> str:
    session_id = source.get("session_id")
    if isinstance(session_id, str) and session_id:
        return session_id
    message = "the row does not say which session it belongs to; give the file by its name, <session>.jsonl"
    raise MalformedLine(message)


def _row_id(session_id: str, seq: int) -> str:
    """Return the id that this row gets at every ingest; rows have none of their own."""
    if len(session_id.encode(errors="replace")) > _ID_BYTES_MAX:
        session_id = hashlib.sha256(session_id.encode(errors="replace")).hexdigest()
    return f"{session_id}:{seq}"


def _rfc3339(timestamp: object) -> str:
    """Return the row's time with all its nanoseconds."""
    members = cast("dict[str, object]", timestamp) if isinstance(timestamp, dict) else {}
    seconds, nanoseconds = members.get("secs_since_epoch"), members.get("nanos_since_epoch")
    if (
        not isinstance(seconds, int)
        or not isinstance(nanoseconds, int)
        or not 0 <= seconds <= _SECONDS_MAX
        or not 0 <= nanoseconds < _NANOSECONDS
    ):
        message = f"timestamp is not {{secs_since_epoch, nanos_since_epoch}}: {timestamp!r}"
        raise MalformedLine(message)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"
