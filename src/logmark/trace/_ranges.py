"""The numbers that the logs say were given out: by whom, in what ranges, and whether they fit together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ._facts import Place

__all__ = ["Run", "SessionRuns"]


@dataclasses.dataclass(slots=True)
class Run:
    """Batches of one writer that follow each other without a gap.

    Attributes:
        first, last: its numbers.
        before: the last event that the writer had found before its first batch; None: the log does not say.
        through: the last number in use that it had found.
        first_place, last_place: the lines of its first and its last batch.
    """

    first: int
    last: int
    before: int | None
    through: int | None
    first_place: Place
    last_place: Place


class SessionRuns:
    """All runs of one session of one store, whoever wrote them."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int, Run]] = []
        self._writers = 0
        self.unseen = 0
        """How many numbers writers have found in the log that nobody here has told of; after ``compare``."""

    def add(self, runs: Sequence[Run]) -> None:
        """Take the runs of one runtime."""
        self._writers += 1
        self._runs += [(run.first, self._writers, run) for run in runs]

    def compare(self) -> Iterator[tuple[str, str, tuple[Place, ...]]]:
        """Yield what does not fit, as a rule, a sentence and the lines that show it."""
        self._runs.sort(key=lambda each: each[:2])
        before: Run | None = None
        writer_before = 0
        for _, writer, run in self._runs:
            if before is not None and run.first <= before.last:
                through = min(run.last, before.last)
                numbers = (
                    f"number {run.first} was" if through == run.first else f"numbers {run.first} to {through} were"
                )
                places = (run.first_place, before.first_place, before.last_place)
                yield "told twice", f"{numbers} given to two events", tuple(dict.fromkeys(places))
            elif before is not None and run.before is not None:
                if run.before < before.last and writer != writer_before:
                    text = f"the writer of number {run.first} found {run.before} to be the last, though there was more"
                    yield "skipped", f"{text}, up to {before.last}", (run.first_place, before.last_place)
                self.unseen += max(0, run.before - before.last)
            if before is None or run.last > before.last:
                before, writer_before = run, writer

    def covered(self, first: int, end: int) -> int:
        """Return how many numbers from ``first`` up to ``end``, which is not counted, are known to be of events."""
        found, reached = 0, first
        for _, _, run in self._runs:
            start, stop = max(run.first, reached), min(run.last + 1, end)
            if stop > start:
                found += stop - start
                reached = stop
        return found
