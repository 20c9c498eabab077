"""Many sessions: appended to in turn, and lying idle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..cold import ask
from ..harness import Sample, Shape, WrongResult, drive, run_bout
from ..participants import Logmark, Raw
from ..report import Row, rows_of
from ._base import Context

__all__ = ["sessions"]

_FEW = 16
_MANY = 10_000
_MANY_SLOW = 1000
_IDLE = 100_000
_USED = 10_000


def sessions(context: Context) -> list[Row]:
    """Append round robin to a few and to many sessions; then count what idle ones hold."""
    return _round_robin(context) + _idle(context)


def _round_robin(context: Context) -> list[Row]:
    many = context.amount(_MANY_SLOW if context.slow_disk else _MANY, 200)
    raw, few, lots = Raw(), Logmark(), Logmark()
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        for participant in (raw, few, lots):
            participant.open(context.place(participant.name))
            stack.callback(participant.close)
        done: dict[str, int] = {}
        few_ids = [f"few-{number}" for number in range(_FEW)]
        many_ids = [f"many-{number}" for number in range(many)]

        def over(participant: Raw | Logmark, callers: int, ids: list[str]) -> Callable[[float], Sample]:
            def work(seconds: float) -> Sample:
                sample = drive(participant, Shape(callers=callers, sessions=len(ids)), ids, seconds)
                if participant is not raw:
                    for session_id, count in sample.by_session.items():
                        done[session_id] = done.get(session_id, 0) + count
                return sample

            return work

        context.progress.begin(f"sessions: first event of each of {many:,}")
        rows.append(_first_events(lots, many_ids, done))
        for callers in (1, 16):
            work = f"{callers} caller{'s' if callers > 1 else ''}, round robin"
            context.progress.begin(f"sessions: {work}")
            few_label, many_label = f"logmark, {_FEW} sessions", f"logmark, {many:,} sessions"
            bout = run_bout(
                {
                    raw.label: over(raw, callers, few_ids),
                    few_label: over(few, callers, few_ids),
                    many_label: over(lots, callers, many_ids),
                },
                rounds=context.rounds,
                # Long enough to come by more sessions than any cache of open files holds.
                seconds=context.seconds if context.quick else max(context.seconds, 1.0),
                step=context.progress.step,
            )
            against = {many_label: (few_label, f"{_FEW} sessions")}
            rows += rows_of(bout, "sessions", work, against=against)
        context.progress.step("looking whether all is there")
        found = {info.session_id: info.last_seq for each in (few, lots) for info in each.runtime.sessions()}
        if found != {session_id: count for session_id, count in done.items() if count}:
            raise WrongResult("the sessions do not hold what was appended to them")
    return rows


def _first_events(logmark: Logmark, session_ids: list[str], done: dict[str, int]) -> Row:
    """Append once to each session, which brings its files into being."""
    shape = Shape(callers=_FEW, sessions=len(session_ids))
    sample = drive(logmark, shape, session_ids, 0.0, events_each=-(-len(session_ids) // _FEW))
    done.update(sample.by_session)
    return Row(
        section="sessions",
        work=f"the first event of {len(session_ids):,} sessions, {_FEW} callers",
        participant="logmark",
        value=len(session_ids) / sample.elapsed_s,
        unit="sessions/s",
    )


def _idle(context: Context) -> list[Row]:
    rows: list[Row] = []
    for what, work, count in (
        ("idle", "sessions opened and idle", context.amount(_IDLE, 2000)),
        ("used", "sessions appended to once and idle", context.amount(_MANY_SLOW if context.slow_disk else _USED, 200)),
    ):
        context.progress.begin(f"sessions: {count:,} {work}")
        answer = ask(what, Logmark.store(context.place("idle")), count)
        rows.append(
            Row(
                section="sessions",
                work=f"{count:,} {work}",
                participant="logmark",
                value=answer["bytes_each"],
                unit="bytes each",
                note=f"{answer['threads']:.0f} more threads, {answer['fds']:.0f} more open files in all",
            )
        )
    return rows
