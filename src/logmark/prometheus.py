"""Metrics for Prometheus: ``pip install 'logmark[prometheus]'``.

>>> import logmark, logmark.prometheus
>>> metrics = logmark.prometheus.PrometheusInstrumentation()
>>> with logmark.open("memory:", instrumentation=metrics) as rt:
...     rt.session("chat-42").append("message.created", {"text": "hi"})
1

The metrics are in the registry then, for whatever serves that: ``prometheus_client.start_http_server``, a framework's
own route, or ``logmark.serve(rt, metrics=metrics.exposition)``. ``docs/metrics.md`` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from ._metrics import METRICS, Recorder
from .protocol import MissingExtra

try:
    from prometheus_client import REGISTRY, CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtra(engine="prometheus", extra="prometheus") from error

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

__all__ = ["PrometheusInstrumentation"]


class PrometheusInstrumentation(Recorder, Collector):
    """Counts what runtimes do, and says it when it is scraped. Safe from any thread.

    Counts are logmark's own, kept under one lock that is taken once for each batch; the client library is asked for
    nothing before a scrape, which is when inboxes and subscribers are looked at too. A runtime whose store does not
    answer delays a scrape by a quarter of a second. No label has a session in it: their number has no bound.

    It may be given to several runtimes, and then speaks of all of them together; two of them need two registries.
    ``PROMETHEUS_MULTIPROC_DIR`` has no effect on it: scrape each process by itself.

    Args:
        registry: where to register; the client library's global one by default.

    Raises:
        MissingExtra: at the import: the package ``prometheus_client`` is not installed.
        ValueError: at once: the registry has metrics of these names already.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__()
        self._collectors = REGISTRY if registry is None else registry
        self._collectors.register(self)

    @classmethod
    def of_process(cls) -> Self:
        """Make one in a registry of its own, beside the client library's metrics of the process, its memory say."""
        collectors = CollectorRegistry()
        ProcessCollector("", lambda: "self", "/proc", collectors)
        return cls(collectors)

    def unregister(self) -> None:
        """Take the metrics out of the registry; what was counted stays."""
        self._collectors.unregister(self)

    def exposition(self) -> bytes:
        """Return everything in the registry in the text format, version 0.0.4; for ``logmark.serve(metrics=...)``."""
        return generate_latest(self._collectors)

    def describe(self) -> Iterator[Family]:
        """Name the metrics without asking a runtime; called by the registry."""
        for metric in METRICS:
            labels = [metric.label] if metric.label else None
            if metric.kind == "counter":
                yield CounterMetricFamily(metric.prometheus_name, metric.help, labels=labels)
            elif metric.kind == "gauge":
                yield GaugeMetricFamily(metric.prometheus_name, metric.help)
            else:
                yield HistogramMetricFamily(metric.prometheus_name, metric.help)

    def collect(self) -> Iterator[Family]:
        """Say how everything is; called by the registry at each scrape."""
        counters, histograms, gauges = self.counters(), self.histograms(), self.gauges()
        for metric in METRICS:
            name = metric.prometheus_name
            if metric.kind == "counter":
                counter = CounterMetricFamily(name, metric.help, labels=[metric.label] if metric.label else None)
                for label, count in sorted(counters[metric.name].items()):
                    counter.add_metric([label] if metric.label else [], count)
                yield counter
            elif metric.kind == "gauge":
                yield GaugeMetricFamily(name, metric.help, value=gauges[metric.name])
            else:
                state = histograms[metric.name]
                histogram = HistogramMetricFamily(name, metric.help)
                buckets = [("+Inf" if bound == float("inf") else repr(bound), count) for bound, count in state.buckets]
                histogram.add_metric([], buckets, sum_value=state.total)
                yield histogram
