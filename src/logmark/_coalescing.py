"""Coalescing: of a row's changes that wait for one subscriber, the newest stands for those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from .protocol import RawEnvelope, row_change

__all__ = ["coalesced"]

_WINDOW_EVENTS = 1024


def coalesced(
    events: Iterable[RawEnvelope], job_id: str | None, dropped: Callable[[int], None]
) -> Iterator[RawEnvelope]:
    """Yield the events without the changes of rows that a later one of the same row replaces.

    The event that creates a row and its final ones are always there, as is everything that is no change of a row.
    "Later" is within some thousand events that are at hand together, so that memory stays bounded.

    Args:
        events: in the order of their numbers.
        job_id: the job that the subscriber asked for: a change of another job replaces nothing that it sees.
        dropped: told how many were left out, before what follows them is yielded.
    """
    waiting = iter(events)
    while True:
        window: list[RawEnvelope] = []
        failure: Exception | None = None
        try:
            window.extend(islice(waiting, _WINDOW_EVENTS))
        except Exception as error:  # what came before the damage is to be seen before it
            failure = error
        yield from _newest(window, job_id, dropped)
        if failure is not None:
            raise failure
        if len(window) < _WINDOW_EVENTS:
            return


def _newest(window: list[RawEnvelope], job_id: str | None, dropped: Callable[[int], None]) -> Iterator[RawEnvelope]:
    replaced: set[int] = set()
    seen: set[str] = set()
    for place in range(len(window) - 1, -1, -1):
        event = window[place]
        change = None if job_id is not None and event.job_id != job_id else row_change(event)
        if change is None:
            continue
        if change.row_id in seen and change.position is not None and not change.final:
            replaced.add(place)
        seen.add(change.row_id)
    left_out = 0
    for place, event in enumerate(window):
        if place in replaced:
            left_out += 1
            continue
        if left_out:
            dropped(left_out)
            left_out = 0
        yield event
