"""Reading back: whole sessions, and from the middle of one."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from ..cold import ask
from ..events import ring
from ..harness import Sample, run_bout
from ..participants import PEERS, Logmark, Participant, Raw
from ..report import Row, rows_of
from ._base import Context, Field

__all__ = ["replay"]

_EVENTS = 100_000
_FILL_BATCH = 1000
_FILL_S = 4.0
_SESSION = "long"


def fill(participant: Participant, events: int) -> int:
    """Append events in large calls, but not for ever: peers without a call for several are slow at it."""
    payloads = ring()
    batch = [payloads[number % len(payloads)] for number in range(_FILL_BATCH)]
    caller = participant.caller(_SESSION)
    deadline = time.monotonic() + _FILL_S
    done = 0
    try:
        while done < events and (done == 0 or participant.name not in PEERS or time.monotonic() < deadline):
            done = caller.append_batch(batch[: events - done])
    finally:
        caller.close()
    return done


def replay(context: Context) -> list[Row]:
    """Read a session of 100,000 events, decoded; then find the event that lies nine tenths in."""
    with context.field() as field:
        events = context.amount(_EVENTS, 2000)
        lengths: dict[str, int] = {}
        for participant in list(field.participants):
            context.progress.begin(f"replay: filling {participant.label}")
            try:
                lengths[participant.label] = fill(participant, events)
            except Exception as error:
                if participant.name not in PEERS:
                    raise
                context.missing[participant.name] = f"failed: {error!r}"
                field.participants.remove(participant)
        return _replay(field, events, lengths) + _first(field, events, lengths)


def _lines(field: Field) -> Callable[[], Iterator[Any]]:
    """Return what decodes the lines of logmark's own log, the segments in their order."""
    logmark = next(each for each in field.participants if isinstance(each, Logmark))
    folder = logmark.store(field.directory_of(logmark))
    paths = [
        os.path.join(base, name)
        for base, _, names in os.walk(folder)
        for name in sorted(names)
        if name.endswith(".jsonl")
    ]

    def decode() -> Iterator[Any]:
        loads = orjson.loads
        for path in paths:
            with open(path, "rb") as lines:
                for line in lines:
                    yield loads(line)

    return decode


def _contender(events: Callable[[], Iterator[Any]], length: int, *, whole: bool) -> Callable[[float], Sample]:
    def read(seconds: float) -> Sample:
        began = time.perf_counter()
        deadline, count = began + seconds, 0
        for _ in events():
            count += 1
            if not whole and not count % 1000 and time.perf_counter() > deadline:
                break
        else:
            if count < length:
                raise RuntimeError(f"{count} of {length} events")
        return Sample(count, time.perf_counter() - began, [])

    return read


def _replay(field: Field, events: int, lengths: dict[str, int]) -> list[Row]:
    work = f"replay of {events:,} events"
    context = field.context
    context.progress.begin(work)
    contenders: dict[str, Callable[[float], Sample]] = {}
    for participant in field.participants:
        length = lengths[participant.label]

        def read(participant: Participant = participant) -> Iterator[Any]:
            return participant.replay(_SESSION)

        contenders[participant.label] = _contender(read, length, whole=participant.reads_ahead)
        if isinstance(participant, Raw):
            contenders["orjson.loads over logmark's own lines"] = _contender(_lines(field), length, whole=False)
        if isinstance(participant, Logmark):
            session = participant.runtime.session(_SESSION)
            contenders["logmark, payload untouched"] = _contender(session.read_raw, length, whole=False)
    bout = run_bout(
        contenders,
        rounds=context.rounds,
        seconds=max(context.seconds, 0.05 if context.quick else 0.6),
        step=context.progress.step,
        may_fail=field.peers(),
    )
    notes = {label: f"of {length:,}" for label, length in lengths.items() if length < events}
    return rows_of(bout, "replay", work, notes=notes) + field.missing_rows("replay", work)


def _first(field: Field, events: int, lengths: dict[str, int]) -> list[Row]:
    work = f"first event from seq {events * 9 // 10:,} of {events:,}"
    context = field.context
    context.progress.begin(work)
    rows: list[Row] = []
    limit = 0.0
    for participant in field.participants:
        context.progress.step(participant.label)
        length = lengths[participant.label]
        seq = length * 9 // 10
        note = "" if length == events else f"from {seq:,} of {length:,}"
        if isinstance(participant, Logmark):
            store = participant.store(field.directory_of(participant))
            answers = [ask("first", store, _SESSION, seq) for _ in range(context.rounds)]
            times = [answer["first_ms"] for answer in answers]
            opening = statistics.median([answer["open_ms"] for answer in answers])
            note = f"in a process just started, after {opening:.1f} ms of opening the store"
        else:
            times = [_first_ms(participant, seq) for _ in range(context.rounds)]
            note = note or ("a scan" if isinstance(participant, Raw) else "on a new connection or cursor")
        limit = limit or statistics.median(times)
        rows.append(
            Row(
                section="replay",
                work=work,
                participant=participant.label,
                value=statistics.median(times),
                unit="ms",
                value_min=min(times),
                value_max=max(times),
                ratio=statistics.median(times) / limit,
                note=note,
            )
        )
    return rows + field.missing_rows("replay", work)


def _first_ms(participant: Participant, seq: int) -> float:
    before = time.perf_counter()
    with contextlib.closing(participant.replay(_SESSION, seq, ahead=1)) as events:
        found, _ = next(events)
        took = (time.perf_counter() - before) * 1000
    if found != seq:
        raise RuntimeError(f"{participant.name}: asked for {seq}, got {found}")
    return took
