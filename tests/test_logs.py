"""Log events: catalogued, bound, complete, and never able to disturb what they tell of."""

from __future__ import annotations

import ast
import datetime as dt
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog

import logmark
from logmark import Envelope, Limits, logs
from logmark.errors import InvalidArgument
from logmark.testing import CapturedLogs, capture_logs

ROOT = Path(__file__).resolve().parent.parent
SOON = 10.0
LEVELS = ("debug", "info", "warning", "error")


def catalogue() -> dict[str, tuple[str, str, set[str]]]:
    """Return for each event of the page its level, its actor ("" for none) and every word given as a key."""
    found: dict[str, tuple[str, str, set[str]]] = {}
    for line in (ROOT / "docs" / "log-events.md").read_text(encoding="utf-8").splitlines():
        match = re.match(r"\| `(\w+)` \| (\w+) \| ?(.*?) ?\| (.*?) \|", line)
        if match:
            found[match[1]] = (match[2], match[3].strip("`"), set(re.findall(r"`(\w+)`", match[4])))
    return found


def events_in_the_code() -> dict[str, tuple[set[str], set[str]]]:
    """Return for each event that some module logs its levels and its keys, as the source says them."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for folder in (ROOT / "actors", ROOT / "protocol", ROOT / "storage", ROOT / "src" / "logmark"):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                    logger = node.func.value
                    name = logger.attr if isinstance(logger, ast.Attribute) else getattr(logger, "id", None)
                    if name in {"log", "_log"}:
                        event = node.args[0]
                        assert isinstance(event, ast.Constant), f"{path.name}:{node.lineno}: an event is named in full"
                        levels, keys = found.setdefault(str(event.value), (set(), set()))
                        levels.add(node.func.attr)
                        keys.update(each.arg for each in node.keywords if each.arg is not None)
    return found


def eventful_run(url: str) -> None:
    """Do what makes events of every room."""
    limits = Limits(subscriber_events_max=4, segment_bytes_max=4000)
    with logmark.open(url, limits=limits, job_status={"bad": lambda payload: payload["missing"]}) as runtime:
        session, other = runtime.session("s"), runtime.session("other")
        with session.subscribe(1) as live, session.subscribe(1) as slow:
            for n in range(20):
                session.append("job.event", {"secret": "hunter2"}, job_id=f"j{n % 2}")
                live.get(SOON)
            session.append("bad", {"secret": "hunter2"}, job_id="j0", id="01J")
            session.append("x", {"secret": "hunter2"}, id="01J")
            for _ in range(21):
                slow.get(SOON)
            with pytest.raises(TimeoutError):
                slow.get(timeout=0)
            other.append_many([Envelope(type="x", payload="hunter2", job_id="j")] * 3)
            with pytest.raises(logmark.WrongExpectedSeq):
                other.append("x", "hunter2", expected_seq=0)
            session.jobs()
            other.jobs()
        runtime.store.halt("other", "on request")
        with pytest.raises(logmark.SessionHalted):
            other.append("x", "hunter2")
        runtime.store.clear_halt("other")


# -- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_code_logs_exactly_what_the_catalogue_lists() -> None:
    documented, logged = catalogue(), events_in_the_code()
    assert logged.keys() == documented.keys()
    assert len(logged) > 30
    for event, (levels, keys) in logged.items():
        level, _, words = documented[event]
        assert levels == {level}, event
        assert keys - {"actor", "exc_info"} <= words, event
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", event)


def test_every_event_is_bound_to_its_actor_and_session(tmp_path: Path, logs: CapturedLogs) -> None:
    eventful_run(str(tmp_path))
    documented = catalogue()
    seen: set[str] = set()
    for event in logs.events:
        level, actor, words = documented[event["event"]]
        assert event["level"] == level
        assert event.get("actor", "") == actor
        assert event.keys() - {"event", "level", "actor", "exc_info", "runtime", "pid"} <= words, event
        assert ("runtime" in event) != ("pid" in event), event
        if actor:
            assert event["session"] in {"s", "other"}
        seen.add(event["event"])
    assert seen >= {
        "runtime_opened",
        "runtime_closed",
        "batch_persisted",
        "batch_broadcast",
        "marks_moved",
        "retry_answered",
        "append_failed",
        "subscriber_lagged",
        "subscriber_caught_up",
        "job_status_rule_failed",
        "segment_started",
        "session_halted",
        "halt_cleared",
    }


def test_no_payload_is_ever_logged(tmp_path: Path) -> None:
    stream = io.StringIO()
    logs.configure(json=True, level="debug", stream=stream)
    with capture_logs() as captured:
        eventful_run(str(tmp_path))
    assert len(captured.events) > 40
    assert "hunter2" not in stream.getvalue() + repr(captured.events)


# -- locating an event -----------------------------------------------------------------------------------------------


def moment(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)


def append_from_four_threads(sessions: list[logmark.Session]) -> None:
    def write(index: int) -> None:
        for n in range(30):
            if n % 5:
                sessions[n % 2].append("job.event", job_id=f"j{index}" if n % 3 else None)
            else:
                sessions[n % 2].append_many([Envelope(type="x", job_id="many")] * 3)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)


def holding(events: list[dict[str, Any]], name: str, seq: int) -> dict[str, Any]:
    """Return the one event of that name whose range holds a number."""
    (found,) = [each for each in events if each["event"] == name and each["first_seq"] <= seq <= each["last_seq"]]
    return found


@pytest.mark.parametrize("engine", ["file", "memory"])
def test_any_number_can_be_traced_through_one_runs_log(tmp_path: Path, engine: str) -> None:
    """For every seq: when it was submitted, persisted (in what batch, how long the sync took), shown and marked."""
    stream = io.StringIO()
    logs.configure(json=True, stream=stream)
    began = dt.datetime.now(dt.UTC)
    with logmark.open(str(tmp_path) if engine == "file" else "memory:") as runtime:
        sessions = [runtime.session(name) for name in ("a", "b")]
        with sessions[0].subscribe(1), sessions[1].subscribe(1):
            append_from_four_threads(sessions)
            stored = {session.session_id: list(session.read()) for session in sessions}
            assert [len(session.jobs()) for session in sessions] == [5, 5]
    ended = dt.datetime.now(dt.UTC)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {event["level"] for event in events} == {"info"}

    for session_id, expected in stored.items():
        mine = [event for event in events if event.get("session") == session_id]
        marks = [mark for event in mine if event["event"] == "marks_moved" for mark in event["marks"]]
        for event in expected:
            seq = event.event_seq or 0
            persisted, shown = holding(mine, "batch_persisted", seq), holding(mine, "batch_broadcast", seq)
            place = sum(first <= seq for first in persisted["append_seqs"]) - 1
            offset = dt.timedelta(microseconds=persisted["append_offsets_us"][place])
            submitted = moment(persisted["submitted_first"]) + offset
            assert began <= submitted <= moment(persisted["timestamp"]) <= moment(shown["timestamp"]) <= ended
            assert submitted <= moment(persisted["submitted_last"])
            assert persisted["events"] == persisted["last_seq"] - persisted["first_seq"] + 1
            assert 0 <= persisted["sync_ms"] <= persisted["commit_ms"]
            assert persisted["appends"] == len(persisted["append_seqs"])
            assert (persisted["bytes"] > 0, shown["subscribers"]) == (True, 1)
            moved = [mark for mark in marks if mark["job"] == event.job_id and seq in mark["seqs"]]
            assert len(moved) == (event.job_id is not None)
            assert all(mark["first_seq"] <= seq <= mark["last_seq"] for mark in moved)


# -- where they go ---------------------------------------------------------------------------------------------------


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, check=True, timeout=60, text=True
    )


LAG = """
session = runtime.session("s")
with session.subscribe(1) as subscription:
    for n in range(10):
        session.append("x", job_id="j")
    session.jobs()
"""
OPEN = "import sys, logmark\nruntime = logmark.open(sys.argv[1], limits=logmark.Limits(subscriber_events_max=2))\n"


def test_nothing_is_set_up_at_import() -> None:
    program = (
        "import logging, sys, structlog\n"
        "before = (logging.root.handlers[:], logging.root.level, logging.lastResort, sys.excepthook)\n"
        "import logmark, logmark.logs, logmark.actors, logmark.storage, logmark.testing\n"
        "logmark.open('memory:').close()\n"
        "assert not structlog.is_configured()\n"
        "assert (logging.root.handlers, logging.root.level, logging.lastResort, sys.excepthook) == before\n"
        "assert logging.getLogger('logmark').handlers == []\n"
        "assert logging.getLogger('logmark').level == 0\n"
    )
    run = run_program(program)
    assert (run.stdout, run.stderr) == ("", "")


def test_a_program_without_a_set_up_gets_warnings_on_standard_error_and_nothing_on_standard_output(
    tmp_path: Path,
) -> None:
    run = run_program(OPEN + "runtime.session('s').append('x')\nruntime.close()", str(tmp_path / "quiet"))
    assert (run.stdout, run.stderr) == ("", "")
    run = run_program(OPEN + LAG, str(tmp_path / "lagging"))
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "event='subscriber_lagged'" in run.stderr
    assert "session='s'" in run.stderr


def test_the_standard_librarys_set_up_is_honoured(tmp_path: Path) -> None:
    program = (
        "import logging\nlogging.basicConfig(level='INFO', format='%(name)s|%(levelname)s|%(message)s')\n" + OPEN + LAG
    )
    lines = run_program(program, str(tmp_path)).stderr.splitlines()
    assert len(lines) > 10
    assert all(line.startswith(("logmark|INFO|event='", "logmark|WARNING|event='subscriber_lagged'")) for line in lines)


def test_json_is_one_object_per_line(tmp_path: Path) -> None:
    run = run_program(OPEN + "logmark.logs.configure(json=True)\n" + LAG + "runtime.close()", str(tmp_path))
    assert run.stdout == ""
    events = [json.loads(line) for line in run.stderr.splitlines()]
    assert len(events) > 10
    for event in events:
        assert isinstance(event, dict)
        assert event["level"] in LEVELS
        assert moment(event["timestamp"]).tzinfo is not None
    assert {"batch_persisted", "marks_moved", "subscriber_lagged"} <= {event["event"] for event in events}


def test_columns_are_for_people(tmp_path: Path) -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)
    with logmark.open(str(tmp_path)) as runtime:
        runtime.session("s").append("x")
    assert re.search(r"\[info *\] batch_persisted .*first_seq=1 ", stream.getvalue())
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("level", [*LEVELS, "INFO"])
def test_a_level_is_the_least_that_is_written(level: str, tmp_path: Path) -> None:
    stream = io.StringIO()
    logs.configure(json=True, level=level, stream=stream)
    eventful_run(str(tmp_path))
    found = {json.loads(line)["level"] for line in stream.getvalue().splitlines()}
    assert found == set(LEVELS[LEVELS.index(level.lower()) :])


@pytest.mark.parametrize("level", ["", "loud", "10"])
def test_a_level_that_is_none_is_named(level: str) -> None:
    with pytest.raises(InvalidArgument, match="level"):
        logs.configure(level=level)
    assert not structlog.is_configured()


def test_a_later_set_up_counts_and_so_does_a_redirection(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = io.StringIO(), io.StringIO()
    with logmark.open("memory:") as runtime:
        session = runtime.session("s")
        for stream in (first, second):
            logs.configure(json=True, stream=stream)
            session.append("x")
        logs.configure(json=True)
        session.append("x")
        structlog.reset_defaults()
        session.append("x")
    captured = capsys.readouterr()
    for text, seq in ((first.getvalue(), 1), (second.getvalue(), 2), (captured.err, 3)):
        assert [json.loads(line)["first_seq"] for line in text.splitlines()] == [seq]
    assert captured.out == ""


def test_lines_of_many_threads_do_not_mix() -> None:
    stream = io.StringIO()
    logs.configure(json=True, stream=stream)
    logger = logs.get_logger(actor="test")

    def write(n: int) -> None:
        for _ in range(200):
            logger.info("thing_done", n=n, text="x" * 2000)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sorted(event["n"] for event in events) == sorted([0, 1, 2, 3] * 200)


def test_what_json_does_not_know_is_written_all_the_same() -> None:
    stream = io.StringIO()
    logs.configure(json=True, stream=stream)
    logs.get_logger().info("thing_done", what=object, key={1: 2}, odd=float("nan"), path=Path("x"))
    assert json.loads(stream.getvalue())["key"] == {"1": 2}


# -- an embedding program's own set-up -------------------------------------------------------------------------------


def test_the_programs_own_pipeline_gets_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Mapping[str, Any]] = []

    def keep(_logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        events.append({"method": method, **event})
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, keep],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    with logmark.open("memory:") as runtime:
        runtime.session("s").append("x")
    names = [event["event"] for event in events]
    assert names == ["runtime_opened", "batch_persisted", "session_closed", "runtime_closed"]
    assert events[1]["session"] == "s"
    assert events[1]["method"] == "info"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_pipeline_into_the_standard_library_keeps_its_levels(caplog: pytest.LogCaptureFixture) -> None:
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    with caplog.at_level(logging.WARNING), logmark.open("memory:") as runtime:
        runtime.session("s").append("x")
        with pytest.raises(logmark.WrongExpectedSeq):
            runtime.session("s").append("x", expected_seq=5)  # the caller's own condition is no warning
        runtime.store.halt("s", "on request")
        with pytest.raises(logmark.SessionHalted):
            runtime.session("s").append("x")
    assert [record.message for record in caplog.records] == ["append_failed"]


def test_structlogs_own_capture_works() -> None:
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    with structlog.testing.capture_logs() as captured, logmark.open("memory:") as runtime:
        runtime.session("s").append("x")
    assert {"runtime_opened", "batch_persisted"} <= {event["event"] for event in captured}


# -- what goes wrong with logging stays there ------------------------------------------------------------------------


def still_works(url: str) -> None:
    with logmark.open(url, limits=Limits(subscriber_events_max=2)) as runtime:
        session = runtime.session("s")
        with session.subscribe(1) as subscription:
            for n in range(10):
                assert session.append("x", n, job_id="j") == n + 1
            assert [subscription.get(SOON).payload for _ in range(10)] == list(range(10))
        assert session.job("j").mark.count == 10
        with pytest.raises(logmark.WrongExpectedSeq):
            session.append("x", expected_seq=0)


def test_a_sink_that_raises_costs_nothing_but_its_event(
    store_url: str, caplog: pytest.LogCaptureFixture, logs: CapturedLogs
) -> None:
    def broken(event: Mapping[str, Any]) -> None:
        raise LookupError(event["event"])

    logmark.logs.add_sink(broken)
    try:
        still_works(store_url)
    finally:
        logmark.logs.remove_sink(broken)
    assert logs.named("batch_persisted", session="s")  # the other sink has them all
    assert not logs.named("actor_failed")
    assert any("batch_persisted" in record.message and "LookupError" in record.message for record in caplog.records)


def test_a_pipeline_that_raises_costs_nothing_but_its_event(store_url: str) -> None:
    def broken(*_args: object) -> structlog.typing.EventDict:
        raise LookupError

    structlog.configure(processors=[broken])
    still_works(store_url)


def test_a_stream_that_was_closed_costs_nothing_but_the_events(store_url: str) -> None:
    stream = io.StringIO()
    logs.configure(json=True, stream=stream)
    stream.close()
    still_works(store_url)


def test_a_reader_of_standard_error_that_goes_away_stops_nobody(tmp_path: Path) -> None:
    """As in ``program 2>&1 | head -1``: the pipe breaks, the program goes on to its end."""
    program = OPEN + "logmark.logs.configure(json=True)\n" + LAG + "print(session.last_seq)\nruntime.close()"
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        run = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=write_end,
            check=False,
            timeout=60,
            text=True,
        )
    finally:
        os.close(write_end)
    assert run.stdout == "10\n"


def test_sinks_come_and_go() -> None:
    found: list[str] = []

    def sink(event: Mapping[str, Any]) -> None:
        found.append(f"{event['level']} {event['event']} {event['n']}")

    logger = logs.get_logger(n=1)
    enabled_without = logger.enabled("info")
    logger.info("thing_done")
    logs.add_sink(sink)
    for level in LEVELS:
        getattr(logger.bind(n=2), level)("thing_done")
        assert logger.enabled(level)
    logs.remove_sink(sink)
    logs.remove_sink(sink)
    logger.error("thing_done", n=3)
    assert found == [f"{level} thing_done 2" for level in LEVELS]
    assert logger.enabled("info") is enabled_without
