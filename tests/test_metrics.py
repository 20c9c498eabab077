"""Metrics: what is counted is what happened, under names that the page, the dashboard and the code agree on."""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import logmark
from logmark._metrics import METRICS, Recorder
from logmark.actors import PersistedBatch
from logmark.errors import EventIdConflict, InvalidArgument, MissingExtra, WrongExpectedSeq
from logmark.otel import OpenTelemetryInstrumentation
from logmark.prometheus import PrometheusInstrumentation
from logmark.storage import MemoryEventStore

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = json.loads((ROOT / "examples" / "grafana-dashboard.json").read_text(encoding="utf-8"))
SOON = 30.0


def scraped(metrics: PrometheusInstrumentation) -> dict[str, float]:
    """Return the samples of an exposition by their names, with the label in braces."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.fixture
def metrics() -> PrometheusInstrumentation:
    return PrometheusInstrumentation(CollectorRegistry())


def test_an_exposition_says_what_happened(store_url: str, metrics: PrometheusInstrumentation) -> None:
    with logmark.open(store_url, instrumentation=metrics) as runtime:
        session = runtime.session("a")
        session.append("x", id="one")
        session.append_many([("x", n) for n in range(5)])
        session.append("x", id="one")
        with pytest.raises(WrongExpectedSeq):
            session.append("x", expected_seq=1)
        with pytest.raises(EventIdConflict):
            session.append_many([logmark.Envelope(type="x", id=name) for name in ("one", "two")])
        with session.subscribe(from_seq=3):
            during = scraped(metrics)
    after = scraped(metrics)

    expected = {
        "logmark_appends_total": 2,
        "logmark_events_total": 6,
        "logmark_commits_total": 2,
        "logmark_retries_total": 1,
        "logmark_failures_total{error=WrongExpectedSeq}": 1,
        "logmark_failures_total{error=EventIdConflict}": 1,
        "logmark_failures_total{error=Overloaded}": 0,
        "logmark_actor_restarts_total{actor=session}": 0,
        "logmark_append_duration_seconds_count": 3,
        "logmark_append_duration_seconds_bucket{le=+Inf}": 3,
        "logmark_commit_duration_seconds_count": 2,
        "logmark_sync_duration_seconds_count": 0 if store_url == "memory:" else 2,
        "logmark_batch_events_sum": 6,
        "logmark_batch_events_bucket{le=1.0}": 1,
        "logmark_batch_events_bucket{le=4.0}": 1,
        "logmark_batch_events_bucket{le=8.0}": 2,
        "logmark_up": 1,
        "logmark_runtimes": 1,
        "logmark_sessions": 1,
        "logmark_subscriptions": 1,
        "logmark_subscriber_lag": 4,
        "logmark_inbox_events": 0,
    }
    assert {name: during[name] for name in expected} == expected
    assert during["logmark_written_bytes_total"] == during["logmark_batch_size_bytes_sum"] > 0
    assert (after["logmark_up"], after["logmark_runtimes"], after["logmark_events_total"]) == (0, 0, 6)


def test_every_metric_is_in_the_first_scrape_and_none_names_a_session(metrics: PrometheusInstrumentation) -> None:
    with logmark.open("memory:", instrumentation=metrics) as runtime:
        families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
        runtime.session("private").append("x", job_id="private")
        text = metrics.exposition().decode()

    # In the text format the family of a counter goes without the suffix that its samples have.
    assert set(families) == {metric.prometheus_name.removesuffix("_total") for metric in METRICS}
    for metric in METRICS:
        family = families[metric.prometheus_name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels <= ({metric.label} if metric.label else set())
    assert "private" not in text


def test_nothing_is_lost_when_many_threads_append_and_others_scrape(metrics: PrometheusInstrumentation) -> None:
    threads, each = 8, 60
    with logmark.open("memory:", instrumentation=metrics) as runtime:
        done = threading.Event()
        seen: list[float] = []

        def append(number: int) -> None:
            for _ in range(each):
                runtime.session(f"s{number % 3}").append("x")

        def scrape() -> None:
            while not done.is_set():
                seen.append(scraped(metrics)["logmark_events_total"])

        workers = [threading.Thread(target=append, args=(number,)) for number in range(threads)]
        scraper = threading.Thread(target=scrape)
        for thread in (*workers, scraper):
            thread.start()
        for thread in workers:
            thread.join(SOON)
        done.set()
        scraper.join(SOON)
        found = scraped(metrics)

    total = threads * each
    assert found["logmark_events_total"] == found["logmark_appends_total"] == total
    assert found["logmark_append_duration_seconds_count"] == found["logmark_batch_events_sum"] == total
    assert seen == sorted(seen)


def test_a_halt_a_restart_and_a_torn_tail_are_counted(
    metrics: PrometheusInstrumentation, tmp_path: Path, raise_once: Callable[..., list[Any]]
) -> None:
    store = tmp_path / "store"
    with logmark.open(str(store)) as runtime:
        runtime.session("a").append("x")
    (segment,) = store.rglob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"torn":')
    with logmark.open(str(store), instrumentation=metrics) as runtime:
        session = runtime.session("a")
        assert session.append("x") == 2
        raise_once(logmark.actors.SessionActor, "_on_persisted")
        session.append("x")
        runtime.store.halt("a", "on purpose")
        found = scraped(metrics)

    assert found["logmark_torn_bytes_total"] == len(b'{"torn":')
    assert found["logmark_actor_restarts_total{actor=session}"] == 1
    assert found["logmark_session_halts_total"] == found["logmark_sessions_halted"] == 1
    assert found["logmark_notices_total{event=torn_tail_cut}"] == 1


def test_a_subscriber_that_is_too_slow_is_counted(metrics: PrometheusInstrumentation) -> None:
    limits = logmark.Limits(subscriber_events_max=2)
    with logmark.open("memory:", limits=limits, instrumentation=metrics) as runtime:
        session = runtime.session("a")
        with session.subscribe() as slow:
            session.append_many([("x", n) for n in range(5)])
            assert [slow.get(timeout=SOON).event_seq for _ in range(5)] == [1, 2, 3, 4, 5]
            session.append("x")
            assert slow.get(timeout=SOON).event_seq == 6
        assert scraped(metrics)["logmark_subscriber_lags_total"] == 1


def test_a_store_that_hangs_delays_a_scrape_and_no_more(metrics: PrometheusInstrumentation) -> None:
    class Hanging(MemoryEventStore):
        go_on = threading.Event()

        def ping(self) -> None:
            assert self.go_on.wait(SOON)

    store = Hanging()
    with logmark.Runtime(store, instrumentation=metrics):
        found = scraped(metrics)
        store.go_on.set()

    assert (found["logmark_up"], found["logmark_runtimes"]) == (0, 1)


def test_several_runtimes_are_spoken_of_together(metrics: PrometheusInstrumentation) -> None:
    with (
        logmark.open("memory:", instrumentation=metrics) as one,
        logmark.open("memory:", instrumentation=metrics) as two,
    ):
        one.session("a").append("x")
        two.session("a").append("x")
        both = scraped(metrics)
        one.close()
        left = scraped(metrics)

    assert (both["logmark_up"], both["logmark_sessions"], both["logmark_events_total"]) == (2, 2, 2)
    assert (left["logmark_up"], left["logmark_sessions"], left["logmark_events_total"]) == (1, 1, 2)


def test_a_registry_takes_one_and_gives_it_back() -> None:
    collectors = CollectorRegistry()
    first = PrometheusInstrumentation(collectors)
    with pytest.raises(ValueError, match="Duplicated"):
        PrometheusInstrumentation(collectors)
    first.unregister()
    assert PrometheusInstrumentation(collectors).exposition()


@settings(max_examples=30)
@given(st.lists(st.floats(0, 100, allow_nan=False), max_size=30))
def test_a_histogram_has_each_value_in_every_bucket_that_holds_it(values: list[float]) -> None:
    recorder = Recorder()
    recorder.batch_persisted(
        PersistedBatch(
            session_id="a",
            first_seq=0,
            last_seq=0,
            events=0,
            size_bytes=0,
            commit_s=0.0,
            sync_s=0.0,
            ended_ns=0,
            appends_s=values,
            retries=0,
            errors={},
            spans=(),
        )
    )
    state = recorder.histograms()["logmark.append.duration"]

    assert dict(state.buckets) == {bound: sum(value <= bound for value in values) for bound, _ in state.buckets}
    assert state.total == pytest.approx(sum(values))


# -- OpenTelemetry -----------------------------------------------------------------------------------------------------


def test_open_telemetry_has_the_same_numbers() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    both = OpenTelemetryInstrumentation(meter_provider=provider, tracing=False)
    prometheus = PrometheusInstrumentation(CollectorRegistry())
    with logmark.open("memory:", instrumentation=[both, prometheus]) as runtime:
        session = runtime.session("a")
        session.append("x")
        session.append_many([("x", 1), ("x", 2)])
        with pytest.raises(WrongExpectedSeq):
            session.append("x", expected_seq=1)
        data = reader.get_metrics_data()
        text = scraped(prometheus)
        (event, *_) = session.read()
    provider.shutdown()

    assert data is not None
    points: dict[str, Any] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            label = "".join(f"{{{name}={value!s}}}" for name, value in (point.attributes or {}).items())
            points[metric.name + label] = point
    by_name = {metric.name: metric for metric in METRICS}
    for name, point in points.items():
        plain, _, label = name.partition("{")
        exposed = by_name[plain].prometheus_name
        if by_name[plain].kind == "histogram":
            assert (point.count, point.sum) == (text[f"{exposed}_count"], pytest.approx(text[f"{exposed}_sum"]))
            assert list(point.explicit_bounds) == list(by_name[plain].buckets)
        else:
            assert point.value == text[exposed + ("{" + label if label else "")], name
    assert {name.partition("{")[0] for name in points} >= {m.name for m in METRICS} - {
        "logmark.notices",  # nothing was noticed,
        "logmark.sync.duration",  # and memory syncs nothing
    }
    assert event.extensions == {}  # without tracing nothing is stored


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_an_age_is_a_number_of_seconds(wrong: float) -> None:
    with pytest.raises(InvalidArgument, match="delivery_age_s_max"):
        OpenTelemetryInstrumentation(delivery_age_s_max=wrong)


@pytest.mark.parametrize(
    ("module", "needs", "extra"),
    [("logmark.prometheus", "prometheus_client", "prometheus"), ("logmark.otel", "opentelemetry", "otel")],
)
def test_an_adapter_without_its_library_says_what_to_install(
    module: str, needs: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, needs, None)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(MissingExtra, match=re.escape(f"logmark[{extra}]")):
        importlib.import_module(module)


# -- the page and the dashboard ----------------------------------------------------------------------------------------


def test_the_table_in_the_page_is_the_table_in_the_code() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(logmark_\w+)` \| (\S+) \| (\w+) \| (\w+) \| (\w*) ?\| (.+) \|$", page, flags=re.MULTILINE)

    assert rows == [(m.prometheus_name, m.name, m.kind, m.unit.strip("{}"), m.label or "", m.help) for m in METRICS]


def expressions() -> list[str]:
    targets = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    queries = [variable["definition"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    return [target["expr"] for target in targets] + queries


def exposed_names() -> set[str]:
    """Return every name that a sample can have."""
    names: set[str] = set()
    for metric in METRICS:
        name = metric.prometheus_name
        names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if metric.kind == "histogram" else {name}
    return names


def test_the_dashboard_asks_for_what_there_is_and_for_all_of_it() -> None:
    asked = {name for expression in expressions() for name in re.findall(r"\blogmark_\w+", expression)}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}

    assert asked <= exposed_names()
    assert {metric.prometheus_name for metric in METRICS} <= stems | asked
    assert set(re.findall(r"\blogmark_\w+", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))) <= (
        exposed_names() | {metric.prometheus_name for metric in METRICS}
    )


def test_the_labels_that_the_dashboard_groups_by_are_there() -> None:
    labels = {metric.prometheus_name: metric.label for metric in METRICS}
    for expression in expressions():
        for label, name in re.findall(r"sum by \((\w+)\) \((?:rate|increase)\((\w+)\{", expression):
            known = "le" if name.endswith("_bucket") else labels[name]
            assert label == known, expression
        assert expression.count("(") == expression.count(")")


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    panels = DASHBOARD["panels"]
    drawn = [panel for panel in panels if panel["type"] != "row"]

    assert (DASHBOARD["uid"], DASHBOARD["title"], DASHBOARD["id"]) == ("logmark", "logmark", None)
    assert DASHBOARD["schemaVersion"] >= 36
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in drawn)
    assert all(panel["targets"] and panel["title"] for panel in drawn)
    used = {name for expression in expressions() for name in re.findall(r"\$(\w+)", expression)}
    assert used <= set(variables) | {"__rate_interval"}
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in own) < 24
        assert not own & cells, panel["title"]
        cells |= own
