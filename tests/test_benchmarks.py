"""The benchmark measures what it says: it runs end to end, checks what was stored, and leaves nobody out silently."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest

from logmark.storage import OsFiles

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # a checkout's folder, not an installed package; `python -m pytest` has it there already
    sys.path.append(str(ROOT))

from benchmarks import goals, publish, slow_disk  # noqa: E402
from benchmarks.events import EVENT_BYTES, ring  # noqa: E402
from benchmarks.goals import GOALS, goals_table  # noqa: E402
from benchmarks.harness import Sample, WrongResult, check_waited, run_bout, verify  # noqa: E402
from benchmarks.participants import PEERS, Caller, Events, Missing, Participant, Payload, Raw, Tally, label_of, make  # noqa: E402
from benchmarks.participants._nats_engine import NatsEach, NatsGrouped  # noqa: E402
from benchmarks.profiling import HOPS, profile  # noqa: E402
from benchmarks.report import Row, markdown, rows_of, table  # noqa: E402
from benchmarks.sections import SECTIONS, Context, _engines  # noqa: E402

WAIT_S = 60


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(*arguments, **environment)
    output, errors = process.communicate(timeout=100)
    return process.returncode, output, errors


def ignore(_what: str) -> None:
    """Show no progress."""


@contextmanager
def place_for_servers() -> Generator[str, None, None]:
    """Make a directory that somebody else can get at, as a server that is not root's is; pytest's are closed to all."""
    with tempfile.TemporaryDirectory(prefix="logmark-bench-") as place:
        os.chmod(place, 0o711)
        yield place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """Run every section once, tiny, with the peers that need nothing but Python; return JSON, output and plots."""
    base = tmp_path_factory.mktemp("bench")
    with place_for_servers() as stores:
        code, output, errors = run(
            *("--quick", "--rounds", "1", "--seconds", "0.02", "--peer", "sqlite,sqlite-group"),
            *("--json", str(base / "out" / "results.json"), "--out", str(base / "plots")),
            *("--store-dir", stores),
        )
        assert code == 0, output + errors
        assert os.listdir(stores) == []
    return json.loads((base / "out" / "results.json").read_bytes()), output, base / "plots"


def rows_in(results: dict[str, Any]) -> list[Row]:
    return [Row.from_json(each) for each in results["rows"]]


@pytest.mark.slow
def test_every_section_runs_and_is_in_the_report(whole: tuple[dict[str, Any], str, Path]) -> None:
    results, output, _ = whole
    rows = rows_in(results)

    assert list(dict.fromkeys(each.section for each in rows)) == list(SECTIONS)
    assert all(each.value is not None for each in rows)
    assert set(results["machine"]) >= {"cpus", "file_system", "fdatasync_p50_us", "python", "system", "versions"}
    assert all(f"== {section} ==" in output for section in SECTIONS)


@pytest.mark.slow
def test_work_is_headed_by_its_limit_and_done_by_everybody(whole: tuple[dict[str, Any], str, Path]) -> None:
    rows = rows_in(whole[0])
    for section in ("append", "batches", "pipelined"):
        for work in dict.fromkeys(each.work for each in rows if each.section == section):
            those = [each for each in rows if (each.section, each.work) == (section, work)]
            names = [each.participant for each in those]
            expected = ["SQLite, a commit each"] if section != "pipelined" else []
            assert names == [Raw.label, "logmark", *expected, "SQLite, group commit"]
            assert those[0].ratio == 1.0
            assert all(each.ratio for each in those)
            assert all(each.p50_us for each in those if section != "pipelined")


@pytest.mark.slow
def test_each_goal_is_read_off_the_rows(whole: tuple[dict[str, Any], str, Path]) -> None:
    said = goals_table(rows_in(whole[0]))

    assert [goal.text for goal in GOALS if goal.text not in said] == []


@pytest.mark.slow
def test_the_table_of_the_readme_has_a_figure_in_every_place(whole: tuple[dict[str, Any], str, Path]) -> None:
    lines = markdown(rows_in(whole[0])).splitlines()

    assert len(lines) == 2 + 4
    assert "|  |" not in lines[3], "logmark does all of it"


@pytest.mark.slow
def test_plots_are_drawn_or_said_to_be_missing(whole: tuple[dict[str, Any], str, Path]) -> None:
    _, output, plots = whole
    if find_spec("matplotlib") is None:
        assert "no plots:" in output
        return
    names = sorted(path.name for path in plots.iterdir())

    assert names == ["growth.png", "latency.png", "throughput.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots.iterdir())


def test_every_event_is_as_long_as_is_said() -> None:
    lines = [orjson.dumps(payload) for payload in ring()]

    assert {len(line) for line in lines} == {EVENT_BYTES}
    assert len(set(lines)) == len(lines)


# -- the harness --------------------------------------------------------------------------------------------------


def test_contenders_take_turns_and_ratios_are_taken_within_a_round() -> None:
    """The machine gets slower from round to round: a ratio of medians would show it, the median of ratios does not."""
    turns: list[str] = []
    speed = iter([1.0, 1.0, 100.0, 200.0, 10.0, 5.0, 4.0, 8.0])  # a warm-up each, then three rounds

    def contender(name: str) -> Any:
        def work(_seconds: float) -> Sample:
            turns.append(name)
            return Sample(events=1, elapsed_s=1 / next(speed), latencies_ns=[1])

        return work

    bout = run_bout({"limit": contender("limit"), "ours": contender("ours")}, rounds=3, seconds=1, step=ignore)

    assert turns == ["limit", "ours", "limit", "ours", "ours", "limit", "limit", "ours"]
    assert bout.ratios("ours", "limit") == [2.0, 2.0, 2.0]
    assert [each.ratio for each in rows_of(bout, "s", "w")] == [1.0, 2.0]


def test_a_peer_that_fails_is_reported_and_the_others_go_on() -> None:
    def fine(_seconds: float) -> Sample:
        return Sample(1, 1.0, [1])

    def broken(_seconds: float) -> Sample:
        raise OSError("no space left")

    bout = run_bout({"limit": fine, "peer": broken}, rounds=2, seconds=1, step=ignore, may_fail={"peer"})
    found = rows_of(bout, "s", "w")

    assert [(each.participant, each.value) for each in found] == [("limit", 1.0), ("peer", None)]
    assert "no space left" in found[1].note
    assert "missing" in table(found)
    with pytest.raises(OSError, match="no space"):
        run_bout({"limit": fine, "logmark": broken}, rounds=2, seconds=1, step=ignore)


class Liar(Participant):
    """Acknowledges everything, and holds what it is told to hold."""

    name = label = "liar"

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def open(self, directory: str) -> None:
        raise NotImplementedError

    def caller(self, session_id: str) -> Caller:
        raise NotImplementedError

    def tally(self, session_id: str) -> Tally:
        return self._tally

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    "tally", [Tally(9, 1, 9), Tally(11, 1, 11), Tally(10, 1, 11), Tally(10, 2, 11), Tally(0, 0, 0)]
)
def test_a_store_that_does_not_hold_what_it_acknowledged_is_found_out(tally: Tally) -> None:
    verify(Liar(Tally(10, 1, 10)), {"s": 10})
    with pytest.raises(WrongResult, match="10 events of s were acknowledged"):
        verify(Liar(tally), {"s": 10})


def test_a_torn_file_of_the_limit_is_found_out(tmp_path: Path) -> None:
    raw = Raw()
    raw.open(str(tmp_path))
    caller = raw.caller("s")
    assert [caller.append({"a": 1}), caller.append_batch([{"a": 2}, {"a": 3}])] == [1, 3]
    verify(raw, {"s": 3})
    Path(raw.path("s")).write_bytes(b'{"a":1}\n{"a":2}\n')
    with pytest.raises(WrongResult):
        verify(raw, {"s": 3})
    raw.close()


def test_who_answers_before_the_disk_does_is_found_out() -> None:
    waited, hasty = Sample(2, 1.0, [1_000_001, 1_200_000]), Sample(2, 1.0, [1_100_000, 999_000])
    check_waited("peer", [waited, Sample(9, 1.0, [])], 1000)
    with pytest.raises(WrongResult, match="peer: an answer after 999 µs"):
        check_waited("peer", [waited, hasty], 1000)


# -- peers --------------------------------------------------------------------------------------------------------


def test_a_peer_that_is_not_installed_is_in_the_report_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "persistqueue", None)  # what an import of a missing package looks like
    context = Context(directory=str(tmp_path), peers=("persist-queue", "sqlite"), rounds=1, seconds=0.01)
    rows = SECTIONS["batches"](context)
    missing = [each for each in rows if each.value is None]

    assert {each.work for each in missing} == {each.work for each in rows}
    assert {each.participant for each in missing} == {"persist-queue (SQLite)"}
    assert all("pip install -e '.[bench]'" in each.note for each in missing)
    assert "missing" in table(rows)
    assert set(context.missing) == {"persist-queue"}
    assert {each.participant for each in rows if each.value is not None} >= {"logmark", "SQLite, a commit each"}


def test_a_server_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("redis") is None:
        pytest.skip("needs the redis package, as the [bench] extra installs it")
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: None)
    with pytest.raises(Missing, match="apt-get install redis-server"):
        make("redis")


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_stores_numbers_and_gives_back_what_it_was_given(name: str) -> None:
    payloads: list[Payload] = list(ring()[:10])
    try:
        peer = make(name)
    except Missing as error:
        pytest.skip(str(error))
    places = ExitStack()
    try:
        peer.open(places.enter_context(place_for_servers()))
        caller = peer.caller("s")
        assert caller.append(payloads[0]) == 1
        assert caller.append_batch(payloads[1:8]) == 8
        if peer.has_submit:
            assert [future.result(WAIT_S) for future in [caller.submit(each) for each in payloads[8:]]] == [9, 10]
        caller.close()
        count = 10 if peer.has_submit else 8
        other = peer.caller("other")
        assert other.append(payloads[0]) == 1
        other.close()
        verify(peer, {"s": count, "other": 1})
        assert list(peer.replay("s")) == list(enumerate(payloads[:count], 1))
        assert list(peer.replay("s", 7)) == list(enumerate(payloads[6:count], 7))
    except Missing as error:
        pytest.skip(str(error))
    finally:
        peer.close()
        places.close()


# -- engines ------------------------------------------------------------------------------------------------------


@pytest.fixture
def nats_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave NATS JetStream as the only engine."""
    assert tuple(_engines.ENGINES) == goals.ENGINES
    monkeypatch.setattr(_engines, "ENGINES", {"NATS JetStream": _engines.ENGINES["NATS JetStream"]})


@pytest.mark.parametrize("lacking", ["nats-py", "nats-server", "99.0 or later", "slow disk"])
@pytest.mark.usefixtures("nats_alone")
def test_an_engine_that_cannot_be_measured_is_in_the_report_with_the_reason(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking == "nats-py":
        monkeypatch.setitem(sys.modules, "nats", None)  # what an import of a missing package looks like
    elif find_spec("nats") is None:
        pytest.skip("needs nats-py, as the [test] extra installs it")
    elif lacking == "nats-server":
        monkeypatch.setattr(shutil, "which", lambda *_args, **_options: None)
    elif lacking == "99.0 or later":
        monkeypatch.setattr("benchmarks.participants._nats_engine._VERSION_MIN", (99, 0))
    rows = SECTIONS["engines"](Context(directory=str(tmp_path), slow_disk=lacking == "slow disk"))

    assert [(each.work, each.participant, each.value) for each in rows] == [
        ("NATS JetStream: all", "logmark on NATS JetStream", None)
    ]
    assert ("cannot be slowed" if lacking == "slow disk" else lacking) in rows[0].note
    assert "missing" in table(rows)


def test_plain_clients_of_nats_number_and_keep_what_many_callers_bring(tmp_path: Path) -> None:
    callers, payloads = 8, ring()[:10]
    try:
        each = NatsEach()
    except Missing as error:
        pytest.skip(str(error))
    grouped = NatsGrouped(each)
    try:
        each.open(str(tmp_path))
        for client in (each, grouped):
            with ThreadPoolExecutor(callers) as pool:

                def append_all(_: int, client: Participant = client) -> list[tuple[int, Payload]]:
                    caller = client.caller("s")
                    return [(caller.append(payload), payload) for payload in payloads]

                answered = [pair for pairs in pool.map(append_all, range(callers)) for pair in pairs]
            answered.sort(key=lambda pair: pair[0])
            assert [seq for seq, _ in answered] == list(range(1, callers * len(payloads) + 1))
            assert list(client.replay("s")) == answered
            verify(client, {"s": len(answered)})
    finally:
        grouped.close()
        each.close()


# -- the profile --------------------------------------------------------------------------------------------------


def test_the_profile_covers_an_append_hop_by_hop(tmp_path: Path) -> None:
    """Each hop is passed by each append: whoever moves a function away finds its hop missing here."""
    found = profile(str(tmp_path), appends=50)

    assert {name for name, calls in found.calls.items() if calls < 0.5} == set()
    assert set(found.hops_us) == {hop.name for hop in HOPS}
    assert 0 < found.hops_us["sync"] < found.total_us
    assert vars(OsFiles)["sync"].__func__ is os.fdatasync, "what was replaced is back"


def test_the_profile_is_a_command(tmp_path: Path) -> None:
    code, output, errors = run("profile", "--appends", "20", "--json", str(tmp_path / "p.json"), TMPDIR=str(tmp_path))

    assert code == 0, errors
    assert all(re.search(rf"^{hop.name} .*{re.escape(hop.what)}$", output, re.MULTILINE) for hop in HOPS)
    assert json.loads((tmp_path / "p.json").read_bytes())["total_us"] > 0
    assert os.listdir(tmp_path) == ["p.json"]


# -- the slow disk ------------------------------------------------------------------------------------------------

SYNCS = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
began = time.perf_counter()
for _ in range(4):
    os.fsync(fd)
    os.fdatasync(fd)
print(time.perf_counter() - began)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    try:
        return slow_disk.build(str(tmp_path_factory.mktemp("slow")))
    except Missing as error:
        pytest.skip(str(error))


def test_the_slow_disk_slows_each_sync(library: str, tmp_path: Path) -> None:
    extra_us = 25_000
    command = [sys.executable, "-c", SYNCS, str(tmp_path / "file")]
    took = subprocess.check_output(command, env=slow_disk.environment(library, extra_us=extra_us), text=True)

    assert float(took) >= 8 * extra_us / 1e6


@pytest.mark.slow
def test_the_whole_run_is_slowed_and_leaves_nothing_behind(library: str, tmp_path: Path) -> None:
    code, output, errors = run(
        *("--slow-disk", "--quick", "--rounds", "1", "--seconds", "0.05", "--only", "append", "--peer", "sqlite"),
        *("--json", str(tmp_path / "r.json")),
        TMPDIR=str(tmp_path),
    )
    assert code == 0, output + errors
    results = json.loads((tmp_path / "r.json").read_bytes())
    lone = [each for each in rows_in(results) if each.work == "1 caller, 1 session"]

    assert "(slowed)" in output
    assert results["slow_disk"] is True
    assert {each.participant for each in lone} == {Raw.label, "logmark", "SQLite, a commit each"}
    assert all(each.p50_us is not None and each.p50_us >= slow_disk.EXTRA_US for each in lone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json"]


def test_a_slow_disk_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(Missing, match="no C compiler"):
        slow_disk.build(str(tmp_path))
    code, _, errors = run("--slow-disk", "--quick", TMPDIR=str(tmp_path))

    assert code == 1
    assert "no C compiler" in errors
    assert os.listdir(tmp_path) == []


# -- the pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "mark"), publish.BLOCKS)
def test_the_figures_of_the_pages_are_those_of_the_results_that_are_kept(page: str, mark: str) -> None:
    name, make = publish.BLOCKS[page, mark]

    assert publish.body(page, mark) == make(publish.load(name))


def test_the_results_that_are_kept_are_of_whole_runs() -> None:
    for name, slow in (("sample", False), ("slow-disk", True)):
        results = publish.load(name)
        rows = rows_in(results)

        assert (results["quick"], results["slow_disk"]) == (False, slow)
        assert {each.section for each in rows} == set(SECTIONS)
        assert {each.participant for each in rows} >= {label_of(peer) for peer in PEERS}


def test_results_come_into_a_page_where_its_comments_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- measured: x -->\nold\n<!-- end -->\nb\n", encoding="utf-8")
    monkeypatch.setattr(publish, "_ROOT", str(tmp_path))
    monkeypatch.setattr(publish, "RESULTS", {"kept": str(tmp_path / "kept.json")})
    monkeypatch.setattr(publish, "BLOCKS", {("page.md", "x"): ("kept", lambda results: f"{len(results['rows'])} rows")})
    results = {"rows": [{"a": 1}, {"a": 2}], "quick": False}

    assert publish.renew("kept", results) == [str(tmp_path / "kept.json"), str(page)]
    assert page.read_text(encoding="utf-8") == "a\n<!-- measured: x -->\n2 rows\n<!-- end -->\nb\n"
    assert publish.load("kept") == results
    with pytest.raises(LookupError, match="no place for y"):
        publish.body("page.md", "y")


def test_the_page_tells_of_every_section_and_every_peer() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

    assert [name for name in (*SECTIONS, *PEERS) if f"`{name}`" not in text] == []


# -- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "speed"], "no speed: there are append"),
        (["--peer", "oracle"], "no oracle: there are sqlite"),
        (["--rounds", "0"], "--rounds is at least 1"),
        (["--store-dir", "no/such/directory"], "there is no directory"),
        (["--publish", "--quick"], "goes with a whole run"),
        (["profile", "--appends", "0"], "--appends is at least 1"),
        (["profile", "--store-dir", "no/such/directory"], "there is no directory"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_measured(arguments: list[str], words: str) -> None:
    code, output, errors = run(*arguments)

    assert (code, output) == (2, "")
    assert words in errors


def test_an_interrupted_run_stops_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = start(
        *("--only", "append", "--peer", "sqlite", "--rounds", "1000", "--seconds", "0.05"),
        *("--store-dir", str(tmp_path)),
    )
    assert process.stderr is not None
    assert "append" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)

    assert process.returncode == 130
    assert os.listdir(tmp_path) == []
