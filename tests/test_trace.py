"""``logmark trace``: logs in whatever form they are found, and answers that read well at three in the morning."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

import logmark
from logmark import Envelope, Limits, logs
from logmark.testing import CommandRun, check_log_files, incident
from logmark.trace import Checker, LogReader, find_sources, span_of

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "trace.md"
SOON = 30.0
LINES = int(os.environ.get("LOGMARK_TRACE_LINES", "30000"))
Run = Callable[..., CommandRun]


def write_log(path: Path, *, level: str = "debug") -> None:
    """Run something with a job, a subscriber that lags, a retry, a reservation and a halt, and keep its log."""
    with path.open("w", encoding="utf-8") as stream:
        logs.configure(json=True, level=level, stream=stream)
        with logmark.open(str(path.parent / "store"), limits=Limits(subscriber_events_max=5)) as runtime:
            session = runtime.session("chat-42")
            with session.subscribe() as viewer:
                session.append("message.created", {})
                session.append_many([Envelope(type="job.event", job_id="build-7"), Envelope(type="x")])
                session.append("x", id="mine")
                session.append("x", id="mine")
                for _ in range(12):
                    session.append("job.event", job_id="build-7")
                for _ in range(16):
                    viewer.get(SOON)
            session.cursor("mailer").ack(3)
            session.cursor("mailer").ack(5)
            session.job("build-7").mark  # noqa: B018 - all marks are logged then
            runtime.store.reserve("chat-42", 20)
            session.append("x")
            runtime.session("quiet").append("x")
            runtime.store.halt("quiet", "on request")
            with pytest.raises(logmark.SessionHalted):
                runtime.session("quiet").append("x")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write_log(tmp_path / "run.log")
    return tmp_path / "run.log"


# -- what a log may look like ----------------------------------------------------------------------------------------


def facts(*paths: Path) -> tuple[LogReader, list[Any]]:
    reader = LogReader(find_sources([str(path) for path in paths]))
    return reader, [fact for fact, _ in reader.facts()]


def test_gzip_is_known_by_its_first_bytes(log: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    assert facts(packed)[1] == facts(log)[1]


def test_a_gzip_that_ends_too_early_is_read_as_far_as_it_goes(log: Path, tmp_path: Path, run: Run) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(log.read_bytes() * 40, compresslevel=0)[:-3000])
    reader, found = facts(packed)
    assert len(found) > 100
    assert reader.broken[0][0] == str(packed)
    assert "could not be read to its end" in run("trace", packed).out


def test_foreign_lines_are_counted_and_skipped(log: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed.log"
    strange = [
        b"starting",
        b'{"event": "request_served", "level": "info"}',
        b"\xff\xfe\x00",
        b"{",
        b"[1, 2]",
        b"",
        b"17",
    ]
    lines: list[bytes] = []
    for index, line in enumerate(log.read_bytes().splitlines()):
        lines += [line, strange[index % len(strange)]]
    mixed.write_bytes(b"\n".join(lines) + b"\n")
    reader, found = facts(mixed)
    assert found == facts(log)[1]
    assert reader.lines == len(lines)
    assert reader.events == len(found)
    blank = sum(line == b"" for line in lines)
    assert reader.events + reader.foreign + reader.others + blank == reader.lines
    assert reader.others >= 3
    assert reader.foreign >= 3


def test_what_a_collector_puts_before_each_line_does_no_harm(log: Path, tmp_path: Path) -> None:
    collected = tmp_path / "collected.log"
    prefix = b"2026-11-21T04:48:51.1Z stderr F "
    collected.write_bytes(b"".join(prefix + line + b"\n" for line in log.read_bytes().splitlines()))
    assert facts(collected)[1] == facts(log)[1]


def test_a_last_line_that_was_cut_off_is_no_event_and_is_told(log: Path, tmp_path: Path, run: Run) -> None:
    cut = tmp_path / "cut.log"
    cut.write_bytes(log.read_bytes()[:-40])
    reader, found = facts(cut)
    assert found == facts(log)[1][:-1]
    assert (reader.cut, reader.foreign) == ([str(cut)], 0)
    assert "was cut off" in run("trace", cut).out
    assert "log_cut" in run("trace", cut, "--odd").out


def test_the_parts_of_a_rotated_log_may_be_named_in_any_order(log: Path, tmp_path: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    third = len(lines) // 3
    parts = [tmp_path / name for name in ("run.log.2.gz", "run.log.1", "run.log.0")]
    parts[0].write_bytes(gzip.compress(b"".join(lines[:third])))
    parts[1].write_bytes(b"".join(lines[third : 2 * third]))
    parts[2].write_bytes(b"".join(lines[2 * third :]))
    assert facts(*reversed(parts))[1] == facts(log)[1]
    check_log_files(parts[::-1])


def test_logs_come_through_a_pipe_too(log: Path) -> None:
    for option in (["--check"], ["--id", "mine"]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "logmark", "trace", "-", *option],
            input=log.read_bytes(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"Nothing wrong" in done.stdout or b"<stdin>:" in done.stdout


def test_a_named_pipe_can_be_read_twice(log: Path, tmp_path: Path, run: Run) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    feeder = threading.Thread(target=lambda: fifo.write_bytes(log.read_bytes()))
    feeder.start()
    done = run("trace", fifo, "--id", "mine")
    feeder.join(SOON)
    assert done.code == 0
    assert "Event 4 of session chat-42" in done.out


def test_a_program_with_another_structlog_set_up_is_understood(tmp_path: Path, run: Run) -> None:
    """Times as seconds, spaces in the JSON, keys of its own: what structlog's own processors make of it."""
    import structlog

    stream = io.StringIO()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(),
            lambda _logger, _name, event: {"service": "chat", **event},
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
    with logmark.open("memory:") as runtime:
        runtime.session("é").append("x")
    path = tmp_path / "own.log"
    path.write_text(stream.getvalue(), encoding="utf-8")
    done = run("trace", path, "--session", "é", "--seq", 1)
    assert done.code == 0
    assert dt.datetime.now(dt.UTC).strftime("on %Y-%m-%d") in done.out


# -- answers ---------------------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """Return a text without its line breaks and columns."""
    return " ".join(text.split())


def test_a_summary_says_who_wrote_what_and_how_it_ended(log: Path, run: Run) -> None:
    done = run("trace", log)
    assert done.code == 0
    assert re.search(rf"^{os.getpid()} +\d\d:\d\d:\d\d\.\d+ +\d\d:\d\d:\d\d\.\d+ +\d+ +file:", done.out, re.MULTILINE)
    assert re.search(r"^chat-42 +17 +1-21 +16 +16 ", done.out, re.MULTILINE)
    assert re.search(r"^quiet .* halted$", done.out, re.MULTILINE)
    assert "Order: nothing wrong." in done.out
    assert "session_halted" in done.out


def test_the_life_of_an_event_from_its_submission_to_its_readers(log: Path, run: Run) -> None:
    text = prose(run("trace", log, "--session", "chat-42", "--seq", 3).out)
    words = (
        "submitted in process",
        "in one call with numbers 2 to 3",
        "went to a writer, after",
        "batch 2 of the session",
        "on disk as number 3",
        "the sync took",
        "Its id is",
        "offered to 1 subscriber",
        "had read it when it left",
        "acknowledged under the cursor mailer, which was moved to number 3",
    )
    assert [word for word in words if word not in text] == []
    assert "mark of job" not in text
    assert "Number 3 is safe" in text
    assert "event 1 of the job" in prose(run("trace", log, "--session", "chat-42", "--seq", 2).out)


def test_an_event_is_found_by_its_id_and_so_are_its_repetitions(log: Path, tmp_path: Path, run: Run) -> None:
    text = prose(run("trace", log, "--id", "mine").out)
    assert "Event 4 of session chat-42" in text
    assert "submitted once more" in text
    assert run("trace", log, "--id", "nobody").code == 1
    (tmp_path / "info").mkdir()
    write_log(tmp_path / "info" / "run.log", level="info")
    done = run("trace", tmp_path / "info" / "run.log", "--id", "mine")
    assert done.code == 1
    assert "at level debug only" in done.err


@pytest.mark.parametrize(
    ("session", "seq", "why"),
    [
        ("chat-42", 19, "was reserved"),
        ("chat-42", 22, "end before number 22"),
        ("nobody", 1, "say nothing of session nobody"),
    ],
)
def test_a_number_that_is_not_there_is_explained(log: Path, run: Run, session: str, seq: int, why: str) -> None:
    done = run("trace", log, "--session", session, "--seq", seq)
    assert done.code == 1
    assert why in prose(done.out)


def test_a_story_is_short_where_nothing_happened(log: Path, run: Run) -> None:
    short, full = run("trace", log, "--session", "chat-42"), run("trace", log, "--session", "chat-42", "--full")
    assert "did not keep up" in prose(short.out)
    assert "of 12 appends" in prose(short.out) or "more lines]" in prose(short.out)
    assert len(full.out.splitlines()) > 2 * len(short.out.splitlines())
    assert run("trace", log, "--session", "nobody").code == 1


def test_the_story_of_a_job_is_that_of_its_mark(log: Path, run: Run) -> None:
    text = prose(run("trace", log, "--job", "build-7").out)
    assert "Job build-7 of session chat-42" in text
    assert "it is running: 13 events, the last one number 16" in text
    assert run("trace", log, "--job", "nobody").code == 1


def test_the_slowest_appends_say_where_they_waited(log: Path, run: Run) -> None:
    found = run("trace", log, "--slowest", 5, "--json").objects
    assert len(found) == 5
    assert [each["total_ms"] for each in found] == sorted((each["total_ms"] for each in found), reverse=True)
    for each in found:
        parts = sum(each[name] for name in ("inbox_ms", "writer_ms", "commit_ms", "sync_ms"))
        assert parts == pytest.approx(each["total_ms"], abs=0.01) or each["inbox_ms"] == 0
        assert each["waited_in"] in {"inbox", "writer", "commit", "sync"}
    assert "MOST_IN" in run("trace", log, "--slowest", 5).out


def test_what_is_odd_says_what_is_safe_and_what_to_do(log: Path, run: Run) -> None:
    done = run("trace", log, "--odd")
    assert done.code == 0
    for name in ("subscriber_lagged", "session_halted", "append_failed", "retry_answered"):
        assert f"{name}: session" in done.out
    text = prose(done.out)
    assert "Safe: Everything up to number 1 was acknowledged before" in text
    assert "To do: Look at the disk first." in text
    assert "{" not in done.out
    assert "?" not in done.out


def test_json_is_one_object_per_line(log: Path, run: Run) -> None:
    for option in (
        ["--check"],
        ["--odd"],
        ["--slowest", 2],
        ["--session", "chat-42"],
        ["--session", "chat-42", "--seq", 2],
        ["--job", "build-7"],
        [],
    ):
        objects = run("trace", log, "--json", *option).objects
        assert objects
        assert all(isinstance(each, dict) for each in objects)


def test_a_broken_promise_is_shown_with_its_lines(log: Path, run: Run) -> None:
    assert run("trace", log, "--check").code == 0
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if '"batch_broadcast"' in line)
    before = next(n for n, line in enumerate(lines) if '"batch_persisted"' in line)
    lines.insert(before, lines.pop(place))
    log.write_text("".join(lines), encoding="utf-8")
    done = run("trace", log, "--check")
    assert done.code == 1
    assert done.out.startswith(f"{log}:{before + 1}: session chat-42: number 1 was shown to 1 subscribers")
    assert run("trace", log, "--check", "--json").objects[-1]["violations"] == 2
    with pytest.raises(AssertionError, match="shown"):
        check_log_files([log])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--seq", "3"], 2),
        (["--seq", "0", "--session", "s"], 2),
        (["--check", "--odd"], 2),
        (["--slowest", "none"], 2),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(log: Path, run: Run, options: list[str], code: int) -> None:
    done = run("trace", log, *options)
    assert (done.code, done.out) == (code, "")


def test_a_log_that_is_not_there_is_named(tmp_path: Path, run: Run) -> None:
    done = run("trace", tmp_path / "none.log")
    assert (done.code, done.out) == (3, "")
    assert "none.log" in done.err
    assert run("trace", tmp_path).code == 3


def test_an_empty_log_has_nothing_to_check(tmp_path: Path, run: Run) -> None:
    empty = tmp_path / "empty.log"
    empty.touch()
    assert "nothing to check" in run("trace", empty, "--check").out
    assert run("trace", empty).code == 0


def test_names_that_could_steer_the_terminal_are_escaped(tmp_path: Path, run: Run) -> None:
    evil = "\x1b[2J\u202e\x07"
    path = tmp_path / "run.log"
    with path.open("w", encoding="utf-8") as stream:
        logs.configure(json=True, level="debug", stream=stream)
        with logmark.open("memory:") as runtime, runtime.session(evil).subscribe() as viewer:
            runtime.session(evil).append("x", job_id=evil, id=evil)
            viewer.get(SOON)
            runtime.session(evil).jobs()
            runtime.store.halt(evil, evil)
    for option in (
        [],
        ["--odd"],
        ["--session", evil],
        ["--session", evil, "--seq", 1],
        ["--job", evil],
        ["--slowest", 3],
    ):
        done = run("trace", path, *option)
        assert done.code == 0
        assert not set(evil) & {"\x1b", "\u202e", "\x07"} & set(done.out + done.err)


@pytest.mark.parametrize(
    ("span_ns", "text"),
    [
        (0, "0 µs"),
        (999_400, "999 µs"),
        (999_600, "1.00 ms"),
        (12_345_678, "12.3 ms"),
        (999_700_000, "1.00 s"),
        (61e9, "61.0 s"),
        (125e9, "2 min 05 s"),
        (3_725e9, "1 h 02 min"),
        (-5e6, "-5.00 ms"),
    ],
)
def test_spans_have_three_digits_and_a_unit(span_ns: float, text: str) -> None:
    assert span_of(span_ns) == text


# -- long logs -------------------------------------------------------------------------------------------------------


def long_log(path: Path, lines: int) -> None:
    """Write what appends to fifty sessions leave, three lines for each batch."""
    stamp = "2026-11-21T14:28:47.362147Z"
    common = {"runtime": "4242-7f3a1c", "level": "info", "timestamp": stamp}
    last: dict[str, int] = {}
    with path.open("wb") as file:
        file.write(orjson.dumps({**common, "event": "runtime_opened", "store": "file:/srv/x"}) + b"\n")
        for number in range((lines - 1) // 3):
            mine = {**common, "session": f"chat-{number % 50}"}
            before = last.get(mine["session"], 0)
            last[mine["session"]] = after = before + 4
            numbers = {"first_seq": before + 1, "last_seq": after, "events": 4}
            batch = {"batch": after // 4, "before_seq": before, "through_before": before, "appends": 2, "retries": 0}
            times = {"bytes": 1318, "sync_ms": 0.257, "commit_ms": 0.537, "writer_ms": 0.622}
            calls = {"submitted_first": stamp, "append_seqs": [before + 1, before + 3], "append_offsets_us": [0, 12]}
            mark = {"job": "b", "first_seq": 1, "last_seq": after, "count": after, "status": "running"}
            moved = {"through_seq": after, "marks": [{**mark, "seqs": [*range(before + 1, after + 1)]}]}
            shown = {"controls": 0, "subscribers": 3}
            for fact in (
                {**mine, "event": "batch_persisted", "actor": "session", **numbers, **batch, **times, **calls},
                {**mine, "event": "batch_broadcast", "actor": "broadcast", **numbers, **shown},
                {**mine, "event": "marks_moved", "actor": "job", **moved},
            ):
                file.write(orjson.dumps(fact) + b"\n")


def test_a_long_log_is_checked_in_one_pass(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """``LOGMARK_TRACE_LINES=1000000`` for the figure of docs/trace.md; here, that time goes with the lines."""
    path = tmp_path / "long.log"
    long_log(path, LINES)
    began = time.process_time()
    reader, checker = LogReader(find_sources([str(path)])), Checker()
    for fact, place in reader.facts():
        checker.feed(fact, place)
    assert checker.finish() == []
    took_s = time.process_time() - began
    record_property("seconds_per_million_lines", took_s / reader.lines * 1_000_000)
    assert reader.events == reader.lines >= LINES - 3
    if os.environ.get("LOGMARK_TRACE_LINES"):
        assert took_s / reader.lines * 1_000_000 < 10


# -- the page and its incident ---------------------------------------------------------------------------------------


def same_in_every_run(text: str) -> list[str]:
    """Return the entries of an output without what differs: times, process ids, paths, line breaks, and the order.

    Whether a batch is shown to subscribers or moves its mark first is nobody's promise.
    """
    text = re.sub(r"file:\S+", "file:STORE", text)
    entries = [" ".join(entry.split()) for entry in re.split(r"^(?=\d\d:\d\d:\d\d)", text, flags=re.MULTILINE)]
    masked = [re.sub(r"\d[\d,.:T-]*Z?( (µs|ms|s|min))?( \d+ s\b)?", "0", entry).replace("+0", "") for entry in entries]
    return sorted(" ".join(entry.split()) for entry in masked)


@pytest.mark.timeout(120)
def test_a_bad_night_is_explained_by_the_log_alone_as_the_page_says(tmp_path: Path, run: Run, monkeypatch: Any) -> None:
    """A stalled subscriber, a killed process, a failed fsync: the outputs in docs/trace.md are those of this run."""
    monkeypatch.chdir(tmp_path)
    incident.play("incident")
    blocks = re.findall(
        r"^```text\n\$ logmark (trace [^\n]*)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) >= 6
    for command, shown in blocks:
        done = run(*command.split())
        assert done.code == 0, command
        assert same_in_every_run(done.out) == same_in_every_run(shown), command
    check_log_files([Path("incident", "run.log")])


def test_an_incident_needs_a_place_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "something").touch()
    assert incident.main([str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
