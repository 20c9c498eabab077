"""What is measured: one table of names for every adapter, and the counts behind it."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from .actors import Instrumentation, Notice, PersistedBatch
from .protocol import AppendError

if TYPE_CHECKING:
    from ._health import Health

__all__ = ["METRICS", "HistogramState", "Metric", "Recorder", "gauges_of"]

Kind = Literal["counter", "gauge", "histogram"]

_SECONDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_EVENTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0)
_BYTES = tuple(float(4**power) for power in range(4, 13))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        name: in dots, as OpenTelemetry has it.
        kind: counter, gauge or histogram.
        help: what it says, in a sentence.
        unit: ``s``, ``By`` or, in braces, what is counted (UCUM).
        label: the one label that it has, whose values are names in this package; None when it has none.
        buckets: upper bounds, of a histogram.
    """

    name: str
    kind: Kind
    help: str
    unit: str
    label: str | None = None
    buckets: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """Its name in an exposition, with the unit and, for a counter, ``_total``."""
        suffix = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        name = self.name.replace(".", "_")
        name += "" if name.endswith(suffix) else suffix
        return name + ("_total" if self.kind == "counter" else "")


def _counter(name: str, unit: str, text: str, label: str | None = None) -> Metric:
    return Metric(name=name, kind="counter", help=text, unit=unit, label=label)


def _gauge(name: str, unit: str, text: str) -> Metric:
    return Metric(name=name, kind="gauge", help=text, unit=unit)


def _histogram(name: str, unit: str, text: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name=name, kind="histogram", help=text, unit=unit, buckets=buckets)


METRICS: tuple[Metric, ...] = (
    _counter("logmark.appends", "{append}", "Appends answered with their numbers; retries are counted apart."),
    _counter("logmark.events", "{event}", "Events written."),
    _counter("logmark.written", "By", "Bytes added to logs."),
    _counter("logmark.commits", "{commit}", "Commits: batches that one sync made durable."),
    _counter("logmark.retries", "{append}", "Appends whose events were there already, answered with their numbers."),
    _counter("logmark.failures", "{append}", "Appends answered with an error, by its class.", "error"),
    _counter("logmark.actor.restarts", "{restart}", "Actors restarted after an exception.", "actor"),
    _counter("logmark.actor.ends", "{actor}", "Actors stopped for good after too many failures.", "actor"),
    _counter("logmark.session.halts", "{halt}", "Halts: sessions that refuse everything until they are repaired."),
    _counter("logmark.torn", "By", "Bytes of unacknowledged writes that were cut off the ends of logs."),
    _counter("logmark.subscriber.lags", "{lag}", "Times that a subscriber's queue was full, and it read the log."),
    _counter("logmark.notices", "{notice}", "Warnings and errors of the log, by their event.", "event"),
    _histogram("logmark.append.duration", "s", "From the submission of an append to its answer.", _SECONDS),
    _histogram("logmark.commit.duration", "s", "The store's part of it, lock, write and sync.", _SECONDS),
    _histogram("logmark.sync.duration", "s", "Making a commit durable: fsync, or the server's own.", _SECONDS),
    _histogram("logmark.batch.events", "{event}", "Events in a commit.", _EVENTS),
    _histogram("logmark.batch.size", "By", "Bytes in a commit.", _BYTES),
    _gauge("logmark.up", "{runtime}", "Runtimes that work: open, and their store answers."),
    _gauge("logmark.runtimes", "{runtime}", "Runtimes that are open."),
    _gauge("logmark.sessions", "{session}", "Session objects that runtimes hold."),
    _gauge("logmark.sessions.halted", "{session}", "Sessions known to be halted."),
    _gauge("logmark.inbox.events", "{event}", "Events accepted and not yet answered."),
    _gauge("logmark.inbox", "By", "Bytes accepted and not yet answered."),
    _gauge("logmark.inbox.age", "s", "Age of the oldest append that the disk has not answered."),
    _gauge("logmark.subscriptions", "{subscription}", "Subscriptions that are open."),
    _gauge("logmark.subscriber.lag", "{event}", "How many events logs are ahead of all subscribers together."),
    _gauge("logmark.subscriber.lag.max", "{event}", "The same of the one that is furthest behind."),
    _gauge("logmark.writers", "{thread}", "Threads that write."),
)
_ACTORS = ("session", "persist", "broadcast", "job", "watch")


def _subclasses(error: type[Exception]) -> set[str]:
    return {name for one in error.__subclasses__() for name in (one.__name__, *_subclasses(one))}


def gauges_of(healths: Sequence[Health]) -> dict[str, float]:
    """Return the value of each gauge, for several runtimes together."""
    return {
        "logmark.up": sum(health.is_serving for health in healths),
        "logmark.runtimes": len(healths),
        "logmark.sessions": sum(health.sessions for health in healths),
        "logmark.sessions.halted": sum(len(health.halted) for health in healths),
        "logmark.inbox.events": sum(health.inbox_events for health in healths),
        "logmark.inbox": sum(health.inbox_bytes for health in healths),
        "logmark.inbox.age": max((health.oldest_append_s for health in healths), default=0.0),
        "logmark.subscriptions": sum(health.subscriptions for health in healths),
        "logmark.subscriber.lag": sum(health.lag for health in healths),
        "logmark.subscriber.lag.max": max((health.lag_max for health in healths), default=0),
        "logmark.writers": sum(health.writers for health in healths),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class HistogramState:
    """A histogram at one moment.

    Attributes:
        buckets: for each upper bound, how many values were at most that; the last is infinity.
        total: the sum of all values.
    """

    buckets: tuple[tuple[float, int], ...]
    total: float


class _Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def state(self) -> HistogramState:
        bounds = (*self.bounds, float("inf"))
        return HistogramState(tuple(zip(bounds, itertools.accumulate(self.counts), strict=True)), self.total)


class Recorder(Instrumentation):
    """Counts, under one lock that is taken once for each batch; adapters hand on what it has when they are asked.

    Args:
        histograms: keep histograms too; not for an adapter whose library does that.
    """

    def __init__(self, *, histograms: bool = True) -> None:
        self._mutex = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._appends = self._events = self._bytes = self._commits = self._retries = 0
        for actor in _ACTORS:  # there from the first scrape on, or the first restart would pass for none
            self._counts["logmark.actor.restarts", actor] = self._counts["logmark.actor.ends", actor] = 0
        for error in _subclasses(AppendError):
            self._counts["logmark.failures", error] = 0
        kept = (metric for metric in METRICS if metric.kind == "histogram" and histograms)
        self._histograms = {metric.name: _Histogram(metric.buckets) for metric in kept}
        self._observe = self._histograms.__getitem__ if histograms else None
        self._sources: list[Callable[[], Health]] = []

    def opened(self, health: Callable[[], Health]) -> None:
        """See ``Instrumentation.opened``."""
        with self._mutex:
            self._sources.append(health)

    def closed(self, health: Callable[[], Health]) -> None:
        """See ``Instrumentation.closed``."""
        with self._mutex:
            if health in self._sources:
                self._sources.remove(health)

    def batch_persisted(self, batch: PersistedBatch) -> None:
        """See ``Instrumentation.batch_persisted``."""
        answered = len(batch.appends_s)
        of = self._observe
        with self._mutex:
            self._appends += answered - batch.retries
            self._retries += batch.retries
            for error, count in batch.errors.items():
                self._counts["logmark.failures", error] += count
            if of is not None:
                observe = of("logmark.append.duration").observe
                for seconds in batch.appends_s:
                    observe(seconds)
            if not batch.events:
                return
            self._commits += 1
            self._events += batch.events
            self._bytes += batch.size_bytes
            if of is not None:
                of("logmark.commit.duration").observe(batch.commit_s)
                if batch.sync_s:  # an engine without a disk has none
                    of("logmark.sync.duration").observe(batch.sync_s)
                of("logmark.batch.events").observe(batch.events)
                of("logmark.batch.size").observe(batch.size_bytes)

    def append_refused(self, error: str) -> None:
        """See ``Instrumentation.append_refused``."""
        with self._mutex:
            self._counts["logmark.failures", error] += 1

    def noticed(self, notice: Notice) -> None:
        """See ``Instrumentation.noticed``."""
        keys, event = notice.keys, notice.event
        with self._mutex:
            self._counts["logmark.notices", event] += 1
            match event:
                case "actor_restarted":
                    self._counts["logmark.actor.restarts", str(keys.get("actor", ""))] += 1
                case "actor_gave_up":
                    self._counts["logmark.actor.ends", str(keys.get("actor", ""))] += 1
                case "session_halted":
                    self._counts["logmark.session.halts", ""] += 1
                case "torn_tail_cut":
                    self._counts["logmark.torn", ""] += keys["bytes"]
                case "subscriber_lagged":
                    self._counts["logmark.subscriber.lags", ""] += 1
                case _:
                    pass

    def counters(self) -> dict[str, dict[str, int]]:
        """Return every counter's values by the value of its label; one without a label has one, under ``""``."""
        with self._mutex:
            found: dict[str, dict[str, int]] = {
                "logmark.appends": {"": self._appends},
                "logmark.events": {"": self._events},
                "logmark.written": {"": self._bytes},
                "logmark.commits": {"": self._commits},
                "logmark.retries": {"": self._retries},
            }
            counts = dict(self._counts)
        for metric in METRICS:
            if metric.kind == "counter":
                found.setdefault(metric.name, {} if metric.label else {"": 0})
        for (name, value), count in counts.items():
            found[name][value] = count
        return found

    def histograms(self) -> dict[str, HistogramState]:
        """Return every histogram that is kept here."""
        with self._mutex:
            return {name: histogram.state() for name, histogram in self._histograms.items()}

    def gauges(self) -> dict[str, float]:
        """Ask every open runtime, and return the value of each gauge."""
        with self._mutex:
            sources = list(self._sources)
        return gauges_of([source() for source in sources])
