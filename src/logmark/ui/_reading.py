"""Events as the page shows them: rows of a window, matches of a filter, one event in full.

Everything is bounded: a row shows the beginning of its payload, a window has so many rows, a search looks at so many
events before it says how far it came. Text is made printable here, so that no control character and no change of
direction reaches a browser.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import orjson

from ..cli._text import error_text, printable
from ..protocol import LogCorrupt, LogmarkError, RawEnvelope, SchemaMismatch, SeqPruned, SessionHalted, row_change
from ._overview import info_of

if TYPE_CHECKING:
    from .._runtime import Runtime
    from .._session import Session
    from ..storage import SessionInfo

__all__ = ["WINDOW_EVENTS_MAX", "Filter", "event_in_full", "find", "row_of", "window"]

WINDOW_EVENTS_MAX = 400
MATCHES_MAX = 200
SCANNED_EVENTS_MAX = 20_000
PREVIEW_CHARACTERS = 240
STREAMED_CHARACTERS = 400
FULL_BYTES_MAX = 128 * 1024
_STREAM_TEXTS = ("text", "content", "delta", "output", "message")
_NAMES_CHARACTERS = 200
_BELOW_EVENTS = 1000
_KINDS_BYTES_MAX = 16 * 1024

Row = dict[str, Any]


def _clipped(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[:characters] + "…"


def _streamed_text(event: RawEnvelope) -> str:
    """Return the text that a row stands for by now, of a payload that is text or has some in a usual place."""
    if len(event.payload_json) > FULL_BYTES_MAX:
        return event.payload_json[:STREAMED_CHARACTERS].decode(errors="replace")
    payload: Any = orjson.loads(event.payload_json)
    if isinstance(payload, dict):
        members = cast("dict[str, Any]", payload)
        payload = next((members[name] for name in _STREAM_TEXTS if isinstance(members.get(name), str)), None)
    return payload if isinstance(payload, str) else event.payload_json.decode()


def _preview(event: RawEnvelope) -> str:
    """Return how a payload begins; of an event of an ARCP job, its kind and how its body begins."""
    data = event.payload_json
    if event.type == "job.event" and len(data) <= _KINDS_BYTES_MAX:
        payload: Any = orjson.loads(data)
        if isinstance(payload, dict):
            members = cast("dict[str, Any]", payload)
            kind, body = members.get("kind"), members.get("body")
            if isinstance(kind, str) and isinstance(body, dict):
                return f"{kind} {orjson.dumps(body).decode()}"
    return data[: PREVIEW_CHARACTERS * 4].decode(errors="ignore")


def row_of(event: RawEnvelope) -> Row:
    """Return an event as a row of the timeline."""
    row: Row = {
        "s": event.event_seq,
        "t": _clipped(printable(event.type), _NAMES_CHARACTERS),
        "b": len(event.payload_json),
    }
    if event.job_id is not None:
        row["j"] = event.job_id
    if event.timestamp_text is not None:
        row["at"] = event.timestamp_text
    change = row_change(event)
    if change is not None:
        row["r"] = change.row_id
        if change.position is not None:
            row["h"] = change.position
        if change.final:
            row["f"] = 1
        text = _streamed_text(event)
        row["n"] = len(text)
        row["p"] = printable(text if len(text) <= STREAMED_CHARACTERS else "…" + text[-STREAMED_CHARACTERS:])
    else:
        row["p"] = _clipped(printable(_preview(event)), PREVIEW_CHARACTERS)
    return row


def _sound_events(session: Session, from_seq: int) -> Iterator[RawEnvelope]:
    """Yield what can be read of a session, halted or not."""
    try:
        yield from session.read_raw(from_seq)
    except SessionHalted:
        yield from session.read_raw(from_seq, halted_ok=True)


def _through(events: Iterable[RawEnvelope], seq: int) -> Iterator[RawEnvelope]:
    for event in events:
        if event.event_seq is None or event.event_seq > seq:
            return
        yield event


def _events_below(runtime: Runtime, session: Session, info: SessionInfo, before: int) -> Iterator[RawEnvelope]:
    """Yield what can be read below a number, downwards; also of a halted session, which is read upwards only."""
    try:
        yield from runtime.store.read_backwards(session.session_id, before_seq=before)
    except SessionHalted:
        high, step = min(before - 1, info.last_seq), _BELOW_EVENTS
        while high >= info.first_available:
            low = max(info.first_available, high - step + 1)
            events = deque(_through(_sound_events(session, low), high), SCANNED_EVENTS_MAX)  # all that anybody looks at
            yield from reversed(events)
            step = _BELOW_EVENTS if events else step * 2  # through a gap in a few steps, however wide it is
            high = low - 1


def window(runtime: Runtime, session_id: str, from_seq: int, to_seq: int) -> dict[str, Any]:
    """Return the rows of a range of numbers, the numbers in it that no event has, and where reading fails.

    A gap is told whole, also where it goes beyond the range. ``through`` is the number up to which the answer is
    complete: what is not there by then is not there.
    """
    session = runtime.session(session_id)
    info = info_of(runtime, session_id)
    to_seq = min(to_seq, from_seq + WINDOW_EVENTS_MAX - 1)
    start = max(from_seq, info.first_available, 1)
    rows: list[Row] = []
    gaps: list[tuple[int, int]] = []
    trouble: dict[str, Any] | None = None
    expected = start
    try:
        for event in _sound_events(session, start) if start <= info.last_seq else ():
            seq = cast("int", event.event_seq)
            if seq > expected:
                begins = expected
                if expected == start:
                    begins = _gap_start(runtime, session, max(info.first_available, 1), start, seq)
                gaps.append((begins, seq - 1))
            expected = seq + 1
            if seq > to_seq:
                break
            rows.append(row_of(event))
    except (LogCorrupt, SchemaMismatch) as error:
        trouble = {"from": expected, "to": max(info.last_seq, expected), "text": error_text(error)}
    except SeqPruned as error:
        return {"rows": [], "gaps": [], "through": from_seq - 1, "first": error.first_available, "trouble": None}
    if trouble is None and expected <= min(to_seq, info.last_seq):
        # Halted or damaged, and read as far as it is good.
        trouble = {"from": expected, "to": info.last_seq, "text": info.damage or "these events cannot be read"}
    through = min(to_seq, info.last_seq) if trouble is None else trouble["to"]
    return {"rows": rows, "gaps": gaps, "through": through, "first": info.first_available, "trouble": trouble}


def _gap_start(runtime: Runtime, session: Session, low: int, seq: int, after: int) -> int:
    """Return where a gap begins that goes on below a number, and ends before the event ``after``."""
    try:
        before = next(iter(runtime.store.read_backwards(session.session_id, before_seq=seq)), None)
    except LogmarkError:  # a halted session is read upwards only
        while low < seq:
            middle = (low + seq) // 2
            if next(_sound_events(session, middle)).event_seq == after:
                seq = middle
            else:
                low = middle + 1
        return seq
    return low if before is None else cast("int", before.event_seq) + 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a viewer wants to see of a session; nothing set matches everything.

    Attributes:
        job: the whole id of a job.
        words: texts that must all be there, in the type, in the job or in the payload as it is written.
        types: texts of which the type must contain one.
    """

    job: str | None = None
    types: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def matches(self, event: RawEnvelope) -> bool:
        """Say whether an event is wanted."""
        if self.job is not None and event.job_id != self.job:
            return False
        if self.types and not any(each in event.type for each in self.types):
            return False
        return all(
            word in event.type or word in (event.job_id or "") or word.encode() in event.payload_json
            for word in self.words
        )


def find(runtime: Runtime, session_id: str, wanted: Filter, *, after: int | None, before: int | None) -> dict[str, Any]:
    """Return matches above a number or below one, and how far the log was looked at.

    ``scanned`` is the last number that was looked at, ``end`` says whether there is nothing further that way.
    """
    session = runtime.session(session_id)
    info = info_of(runtime, session_id)
    events: Iterable[RawEnvelope]
    if before is not None:
        events = _events_below(runtime, session, info, before)
        scanned = before
    else:
        start = max((after or 0) + 1, info.first_available)
        events = _sound_events(session, start) if start <= info.last_seq else ()
        scanned = after or 0
    rows: list[Row] = []
    end = True
    trouble: str | None = None
    try:
        for count, event in enumerate(events):
            if len(rows) >= MATCHES_MAX or count >= SCANNED_EVENTS_MAX:
                end = False
                break
            scanned = cast("int", event.event_seq)
            if wanted.matches(event):
                rows.append(row_of(event))
    except LogmarkError as error:
        trouble = error_text(error)
    return {"rows": rows, "scanned": scanned, "end": end, "trouble": trouble}


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _pretty(data: bytes) -> str:
    if len(data) > FULL_BYTES_MAX:
        return _printable_lines(data[:FULL_BYTES_MAX].decode(errors="ignore"))
    return _printable_lines(orjson.dumps(orjson.loads(data), option=orjson.OPT_INDENT_2).decode())


def event_in_full(runtime: Runtime, session_id: str, seq: int) -> dict[str, Any] | None:
    """Return an event with all that its envelope says, its payload indented; None when there is none of that number."""
    session = runtime.session(session_id)
    event = next(_sound_events(session, seq), None)
    if event is None or event.event_seq != seq:
        return None
    fields: list[tuple[str, str]] = []
    for name, value in (
        ("event_seq", seq),
        ("type", event.type),
        ("id", event.id),
        ("job_id", event.job_id),
        ("timestamp", event.timestamp_text),
        ("source", event.source),
        ("stream_seq", event.stream_seq),
        ("trace_id", event.trace_id),
        ("arcp", event.arcp),
        *sorted(event.extensions.items()),
    ):
        if value is not None:
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            fields.append((_clipped(printable(name), _NAMES_CHARACTERS), _clipped(printable(text), 2000)))
    size = len(event.payload_json)
    shown = _pretty(event.payload_json)
    return {"row": row_of(event), "fields": fields, "payload": shown, "bytes": size, "cut": size > FULL_BYTES_MAX}
