"""What length costs: appends at the end of ever longer sessions, and opening them."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable

from ..cold import ask
from ..events import ring
from ..harness import Sample, Shape, WrongResult, drive, run_bout
from ..participants import Logmark, Raw
from ..report import Row, rows_of
from ._base import Context

__all__ = ["growth"]

_LENGTHS = (0, 10_000, 100_000, 1_000_000)
_FULL = 10_000_000
_QUICK = (0, 1000, 5000)
_JOBS = 100
_BATCH = 4000


def growth(context: Context) -> list[Row]:
    """Append to sessions of different lengths in turns; then open each in a process that has just started."""
    lengths = _QUICK if context.quick else _LENGTHS + ((_FULL,) if context.full else ())
    directory = context.place("logmark")
    for length in lengths:
        _build(context, directory, length)
    os.sync()  # or the disk would still be busy with what was built while the appends are measured
    return _appends(context, directory, lengths) + _openings(context, directory, lengths)


def _build(context: Context, directory: str, length: int) -> None:
    """Fill a session without a sync for each call, which changes nothing about what is on disk in the end."""
    context.progress.begin(f"growth: building a session of {length:,} events")
    if not length:
        return
    payloads = ring()
    batch = [payloads[number % len(payloads)] for number in range(_BATCH)]
    logmark = Logmark(jobs=_JOBS, durability="os")
    logmark.open(directory)
    with contextlib.closing(logmark):
        caller, done = logmark.caller(_name(length)), 0
        while done < length:
            done = caller.append_batch(batch[: length - done])
            context.progress.step(f"{done:,}")


def _name(length: int) -> str:
    return f"of-{length}"


def _appends(context: Context, directory: str, lengths: tuple[int, ...]) -> list[Row]:
    work = "1 caller, appends at the end of N events"
    context.progress.begin(f"growth: {work}")
    raw, logmark = Raw(), Logmark(jobs=_JOBS)
    with contextlib.ExitStack() as stack:
        raw.open(context.place("raw"))
        stack.callback(raw.close)
        logmark.open(directory)
        stack.callback(logmark.close)

        lasts = {_name(length): length for length in lengths}

        def contender(session_id: str) -> Callable[[float], Sample]:
            def work(seconds: float) -> Sample:
                sample = drive(logmark, Shape(), [session_id], seconds)
                lasts[session_id] += sample.events
                return sample

            return work

        labels = {length: f"logmark, {length:,} events" for length in lengths}

        def limit(seconds: float) -> Sample:
            return drive(raw, Shape(), ["s"], seconds)

        contenders = {raw.label: limit, **{labels[length]: contender(_name(length)) for length in lengths}}
        # More rounds than elsewhere: the difference looked for is small.
        bout = run_bout(
            contenders,
            rounds=context.rounds if context.quick else 2 * context.rounds,
            seconds=context.seconds,
            step=context.progress.step,
        )
        found = {session_id: logmark.runtime.session(session_id).last_seq for session_id in lasts}
        if found != lasts:
            message = f"the sessions end at {found}, and should at {lasts}"
            raise WrongResult(message)
    against = {labels[length]: (labels[0], "at none") for length in lengths[1:]}
    positions = {label: float(length) for length, label in labels.items()}
    return rows_of(bout, "growth", work, against=against, positions=positions)


def _openings(context: Context, directory: str, lengths: tuple[int, ...]) -> list[Row]:
    work = "opening a store and the marks of a session of N events, in a process just started"
    context.progress.begin(f"growth: {work}")
    rows: list[Row] = []
    for length in lengths[1:]:
        answers = [ask("marks", Logmark.store(directory), _name(length)) for _ in range(min(context.rounds, 3))]
        times = [answer["open_ms"] + answer["marks_ms"] for answer in answers]
        rows.append(
            Row(
                section="growth",
                work=work,
                participant=f"logmark, {length:,} events",
                value=statistics.median(times),
                unit="ms",
                value_min=min(times),
                value_max=max(times),
                note=f"of which the marks {statistics.median([answer['marks_ms'] for answer in answers]):.1f}",
                x=float(length),
            )
        )
    return rows
