"""``logmark ls``, ``info``, ``view``, ``verify``: what they say equals a recount, also of halted or damaged logs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.cli._text import cut, pad, printable, table, width_of
from logmark.testing import CommandRun

DATA = Path(__file__).parent / "data"
INPUTS = (DATA / "arcp-wire.jsonl", DATA / "meerkat" / "0.7.5", DATA / "meerkat" / "0.8.10")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the store will be; the command line finds it by the environment."""
    monkeypatch.setenv("LOGMARK_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def filled(store: Path, run: Callable[..., CommandRun]) -> Path:
    """Fill the store with both data sets."""
    assert run("ingest", *INPUTS).code == 0
    return store


def fill(store: Path, *payloads: Any, session_id: str = "s", **options: Any) -> None:
    with logmark.open(str(store)) as runtime:
        for payload in payloads:
            runtime.session(session_id).append("note", payload, **options)


def rows_on_disk(store: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the events with nothing but a JSON parser."""
    sessions: dict[str, list[dict[str, Any]]] = {}
    for segment in sorted(store.glob("sessions/*/*.jsonl")):
        header, *rows = [json.loads(line) for line in segment.read_text(encoding="utf-8").splitlines()]
        sessions.setdefault(header["session"], []).extend(row for row in rows if "payload" in row)
    return sessions


def recounted_jobs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fold the job marks of ARCP events anew, from the rules of the draft and not from the code."""
    marks: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "job" not in row:
            continue
        mark = marks.setdefault(
            row["job"],
            {"job_id": row["job"], "first_seq": row["seq"], "last_seq": 0, "count": 0, "status": "running"},
        )
        mark["last_seq"] = row["seq"]
        mark["count"] += 1
        if row["type"] == "job.result":
            mark["status"] = row["payload"]["final_status"]
    return list(marks.values())


def damage_row(store: Path, seq: int) -> None:
    """Change one byte of a row's payload."""
    (segment,) = store.glob("sessions/*/*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[seq])["seq"] == seq
    lines[seq] = lines[seq].replace(b'"payload":"', b'"payload":"!', 1)[:-2] + b"}\n"
    segment.write_bytes(b"".join(lines))


# -- ls and info ------------------------------------------------------------------------------------------------------


def test_ls_equals_a_recount(filled: Path, run: Callable[..., CommandRun]) -> None:
    rows = rows_on_disk(filled)
    listed = run("ls", "--json").objects

    assert [each["session_id"] for each in listed] == sorted(rows)
    assert len(rows) == 11
    for each in listed:
        found = rows[each["session_id"]]
        assert (each["first_seq"], each["last_seq"], each["halted"]) == (1, len(found), None)
        assert each["count"] == len(found)
        assert each["jobs"] == recounted_jobs(found)


def test_ls_prints_a_table(filled: Path, run: Callable[..., CommandRun]) -> None:
    header, *lines = [line.split() for line in run("ls", "-l").out.splitlines()]

    assert header == ["SESSION", "FIRST_SEQ", "LAST_SEQ", "COUNT", "JOBS", "STATE"]
    assert ["01a00703-2118-7712-8d1b-5fd002e2a7d1", "1", "3", "3", "0", "ok"] in lines
    assert len(lines) == 11


def test_info_equals_a_recount(filled: Path, run: Callable[..., CommandRun]) -> None:
    for session_id, rows in rows_on_disk(filled).items():
        (info,) = run("info", session_id, "--json").objects

        assert (info["first_seq"], info["last_seq"], info["count"]) == (1, len(rows), len(rows))
        assert info["jobs"] == recounted_jobs(rows)
        assert (info["first_timestamp"], info["last_timestamp"]) == (rows[0]["ts"], rows[-1]["ts"])
        assert info["halted"] is None


def test_info_agrees_with_the_marks_of_the_library(filled: Path, run: Callable[..., CommandRun]) -> None:
    with logmark.open(str(filled)) as runtime:
        marks = {
            info.session_id: [dataclasses.asdict(mark) for mark in runtime.session(info.session_id).jobs()]
            for info in runtime.sessions()
        }

    assert sum(map(len, marks.values())) == 12
    for session_id, expected in marks.items():
        assert run("info", session_id, "--json").objects[0]["jobs"] == expected


def test_a_reservation_is_not_counted(store: Path, run: Callable[..., CommandRun]) -> None:
    """Row 8: numbers that were reserved are no events."""
    fill(store, "a", "b")
    with logmark.open(str(store)) as runtime:
        runtime.store.reserve("s", 10)
    fill(store, "c")

    (info,) = run("info", "s", "--json").objects
    (row,) = run("ls", "-l", "--json").objects
    assert (info["first_seq"], info["last_seq"], info["count"]) == (1, 11, 3)
    assert (row["last_seq"], row["next_seq"], row["count"]) == (11, 12, 3)


def test_info_prints_the_jobs_as_a_table(filled: Path, run: Callable[..., CommandRun]) -> None:
    ran = run("info", "sess_01M7XQ51823X7AXQJEQ40E133C")
    lines = [line.split() for line in ran.out.splitlines()]

    assert ["count", "91"] in lines
    assert ["halted", "no"] in lines
    assert ["job_01M7XQ5187DVCJ4HTNFEC5DN40", "1", "91", "91", "success"] in lines


# -- view -------------------------------------------------------------------------------------------------------------


def test_view_prints_number_time_type_job_and_payload(filled: Path, run: Callable[..., CommandRun]) -> None:
    for session_id, rows in rows_on_disk(filled).items():
        lines = run("view", session_id).out.splitlines()

        assert len(lines) == len(rows)
        for line, row in zip(lines, rows, strict=True):
            seq, time, type_, job, payload = line.split(maxsplit=4)
            assert (int(seq), type_, job) == (row["seq"], row["type"], row.get("job", "-"))
            assert (time[:23], time[23:]) == (row["ts"][:23], "Z")
            assert json.loads(payload) == row["payload"]


def test_view_as_json_has_every_field_of_an_event(store: Path, run: Callable[..., CommandRun]) -> None:
    fill(
        store,
        {"text": "hi"},
        id="id-1",
        job_id="j",
        trace_id="t",
        source={"who": [1]},
        stream_seq=0,
        timestamp="2026-01-02T03:04:05.123456789Z",
        extensions={"x_future": True},
    )

    assert run("view", "s", "--json").objects == [
        {
            "arcp": "1.1",
            "id": "id-1",
            "type": "note",
            "session_id": "s",
            "job_id": "j",
            "trace_id": "t",
            "event_seq": 1,
            "timestamp": "2026-01-02T03:04:05.123456789Z",
            "source": {"who": [1]},
            "stream_seq": 0,
            "x_future": True,
            "payload": {"text": "hi"},
        }
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [1, 2, 3, 4, 5, 6]),
        (("--from", 0), [1, 2, 3, 4, 5, 6]),
        (("--from", 4), [4, 5, 6]),
        (("--job", "even"), [2, 4, 6]),
        (("--job", "even", "--from", 3), [4, 6]),
        (("--job", "nobody"), []),
        (("--from", 7), []),
    ],
)
def test_view_starts_where_it_is_told_and_shows_the_job_it_is_told(
    store: Path, run: Callable[..., CommandRun], arguments: tuple[object, ...], expected: list[int]
) -> None:
    """Row 16: from a number on, itself included."""
    for number in range(1, 7):
        fill(store, number, job_id=("odd", "even")[number % 2 == 0])

    assert [each["event_seq"] for each in run("view", "s", "--json", *arguments).objects] == expected


def test_view_refuses_a_number_that_the_log_has_not_reached(store: Path, run: Callable[..., CommandRun]) -> None:
    """Row 58: nothing there is not the same as nothing new."""
    fill(store, 1)
    ran = run("view", "s", "--from", 3)

    assert (ran.code, ran.out) == (2, "")
    assert "position 2 is beyond the log, whose last_seq is 1" in ran.err


def test_view_keeps_control_characters_off_the_terminal(store: Path, run: Callable[..., CommandRun]) -> None:
    nasty = "\x1b[2J\x9b31m\x00\r\n\u202e\u2028\x7f"
    fill(store, nasty, session_id=nasty, job_id=nasty)
    with logmark.open(str(store)) as runtime:
        runtime.session(nasty).append(nasty, {nasty: 1})
        runtime.store.halt(nasty, nasty)

    ran = [run("view", nasty, "--halted-ok"), run("ls"), run("info", nasty), run("verify"), run("view", nasty)]

    for each in ran:
        assert not set(each.out + each.err) & set(nasty) - {"\n", "[", "2", "J", "3", "1", "m"}
    assert [len(each.out.splitlines()) for each in ran] == [2, 2, 11, 2, 0]
    payload = ran[0].out.splitlines()[0].split(maxsplit=4)[4]
    assert json.loads(payload) == nasty


def test_output_into_a_pipe_has_no_colours(filled: Path, run: Callable[..., CommandRun]) -> None:
    (session_id, *_) = rows_on_disk(filled)

    for arguments in (("ls", "-l"), ("info", session_id), ("view", session_id), ("verify",), ("ingest", *INPUTS)):
        assert "\x1b" not in run(*arguments).out


# -- halted and damaged sessions --------------------------------------------------------------------------------------


def test_a_halted_session_is_shown_as_halted_and_viewed_on_request(store: Path, run: Callable[..., CommandRun]) -> None:
    """Rows 20 and 21: a halt can be inspected, and blocks replay."""
    fill(store, 1, 2, job_id="j")
    fill(store, 1, session_id="other")
    with logmark.open(str(store)) as runtime:
        runtime.store.halt("s", "for a test")

    assert [each["halted"] for each in run("ls", "--json").objects] == [None, "for a test"]
    assert "halted: for a test" in run("ls").out
    (info,) = run("info", "s", "--json").objects
    assert (info["halted"], info["count"], info["jobs"][0]["count"]) == ("for a test", 2, 2)
    refused = run("view", "s")
    assert (refused.code, refused.out) == (1, "")
    assert "session 's' is halted" in refused.err
    assert [each["payload"] for each in run("view", "s", "--json", "--halted-ok").objects] == [1, 2]
    assert [run("view", "other").code, run("verify", "other").code, run("verify").code] == [0, 0, 1]


def test_damage_is_found_and_located_and_the_good_prefix_shown(store: Path, run: Callable[..., CommandRun]) -> None:
    """Row 32: interior corruption is detected and located."""
    fill(store, "a", "b", "c", "d")
    damage_row(store, 3)
    fill(store, "fine", session_id="other")

    verified = run("verify", "--json")
    assert verified.code == 1
    sound, damaged = verified.objects
    assert (sound["session_id"], sound["ok"], sound["findings"]) == ("other", True, [])
    assert (damaged["session_id"], damaged["ok"]) == ("s", False)
    assert damaged["findings"][0]["event_seq"] == 3
    assert "s: damage: session 's': the log is damaged at seq 3" in run("verify", "s").out

    viewed = run("view", "s", "--json", "--halted-ok")
    assert viewed.code == 1
    assert [each["payload"] for each in viewed.objects] == ["a", "b"]
    assert viewed.err.startswith("logmark: session 's': the log is damaged at seq 3")
    assert len(viewed.err.splitlines()) == 1
    informed = run("info", "s", "--json")
    assert (informed.code, informed.objects[0]["count"]) == (1, 2)


def test_one_damaged_session_does_not_hide_the_others_from_ls(store: Path, run: Callable[..., CommandRun]) -> None:
    fill(store, "a", "b", "c")
    (segment,) = store.glob("sessions/*/*.jsonl")
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:2]))  # rows 2 and 3 are lost
    fill(store, "fine", session_id="z")

    ran = run("ls", "--json")

    assert ran.code == 1
    assert [each["session_id"] for each in ran.objects] == ["s", "z"]
    assert "missing" in ran.objects[0]["error"]
    assert ran.objects[1]["last_seq"] == 1
    assert "error: session 's'" in run("ls").out


def test_what_the_next_append_mends_is_a_note(store: Path, run: Callable[..., CommandRun]) -> None:
    """Row 28: a torn tail is no damage."""
    fill(store, "a", "b")
    (segment,) = store.glob("sessions/*/*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"v":1,"seq":3,')
    before = segment.read_bytes()

    ran = run("verify")
    assert ran.code == 0
    assert ran.out.splitlines()[0].startswith("s: note (torn_tail): ")
    assert ran.out.splitlines()[1:] == ["s: ok", "1 session verified, all sound"]
    (report,) = run("verify", "--json").objects
    assert (report["ok"], report["findings"][0]["harmless"]) == (True, True)
    assert segment.read_bytes() == before


def test_verify_reads_the_sessions_that_are_named_and_no_other(store: Path, run: Callable[..., CommandRun]) -> None:
    fill(store, "a", "b", session_id="bad")
    damage_row(store, 1)
    for session_id in ("good", "better"):
        fill(store, "a", session_id=session_id)

    assert run("verify", "good", "better", "good").out.splitlines() == [
        "good: ok",
        "better: ok",
        "2 sessions verified, all sound",
    ]
    assert run("verify").out.splitlines()[-1] == "3 sessions verified, 1 not sound"


def test_a_session_that_cannot_be_read_is_reported_as_io(
    store: Path, run: Callable[..., CommandRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, "a", session_id="a")
    fill(store, "b", session_id="b")
    from logmark.storage import _verify

    original = _verify.verify_session

    def failing(files: Any, session_id: str, *rest: Any) -> Any:
        if session_id == "a":
            raise PermissionError(13, "Permission denied", "some/segment")
        return original(files, session_id, *rest)

    monkeypatch.setattr("logmark.storage._file_store.verify_session", failing)
    ran = run("verify")

    assert ran.code == 3
    assert ran.out.splitlines()[0].startswith("a: cannot be read: ")
    assert "Permission denied" in ran.out.splitlines()[0]
    assert ran.out.splitlines()[1] == "b: ok"


# -- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("ls",), ("info", "s"), ("view", "s"), ("view", "s", "--follow"), ("verify",), ("verify", "s")]
)
def test_reading_a_store_that_is_not_there_fails_and_makes_none(
    store: Path, run: Callable[..., CommandRun], arguments: tuple[str, ...]
) -> None:
    ran = run(*arguments)

    assert (ran.code, ran.out) == (3, "")
    assert ran.err == f"logmark: store 'file:{store}': there is no store here\n"
    assert not store.exists()


@pytest.mark.parametrize("arguments", [("info", "misspelt"), ("view", "misspelt"), ("verify", "s", "misspelt")])
def test_a_session_that_is_not_there_is_an_error_and_not_an_empty_answer(
    store: Path, run: Callable[..., CommandRun], arguments: tuple[str, ...]
) -> None:
    """Row 61: never an empty success."""
    fill(store, "a")
    ran = run(*arguments)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("logmark: there is no session 'misspelt' in file:")
    assert os.listdir(store / "sessions") == ["s"]


def test_the_store_is_named_by_option_then_environment_then_default(
    tmp_path: Path, run: Callable[..., CommandRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("by-option", "by-environment", "logmark-data"):
        fill(tmp_path / name, 1, session_id=name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGMARK_STORE", f"file:{tmp_path / 'by-environment'}")

    def listed(*arguments: str) -> str:
        return str(run(*arguments, "--json").objects[0]["session_id"])

    assert listed("ls", "--store", "by-option") == "by-option"
    assert listed("--store", "by-option", "ls") == "by-option"
    assert listed("ls") == "by-environment"
    monkeypatch.setenv("LOGMARK_STORE", "")
    assert listed("ls") == "logmark-data"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("ls", "--nonsense"),
        ("ls", "extra"),
        ("ingest",),
        ("view",),
        ("view", "s", "--from", "-1"),
        ("view", "s", "--from", "x"),
        ("view", "s", "--follow", "--halted-ok"),
        ("view", "s", "--from", str(2**63)),
        ("ls", "--log-level", "loud"),
        ("ls", "--store", "gopher://here"),
        ("info", ""),
        ("info", "x" * 201),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(
    store: Path, run: Callable[..., CommandRun], arguments: tuple[str, ...]
) -> None:
    fill(store, 1)
    ran = run(*arguments)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines()[-1].startswith("logmark")


@pytest.mark.parametrize("command", ["ingest", "ls", "info", "view", "verify"])
def test_every_command_explains_itself_with_an_example(run: Callable[..., CommandRun], command: str) -> None:
    ran = run(command, "--help")

    assert (ran.code, ran.err) == (0, "")
    assert f"\nexamples:\n  logmark {command}" in ran.out
    assert "--store URL" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100


def test_the_help_lists_the_commands_and_the_exit_codes(run: Callable[..., CommandRun]) -> None:
    ran = run("--help")

    assert ran.code == 0
    for word in ("ingest", "ls", "info", "view", "verify", "exit codes:", "  3  "):
        assert word in ran.out
    assert run("--version").out == f"logmark {logmark.__version__}\n"


# -- logs -------------------------------------------------------------------------------------------------------------


def test_log_events_go_to_standard_error_when_asked_for(store: Path, run: Callable[..., CommandRun]) -> None:
    quiet = run("ingest", INPUTS[0])
    plain = run("ls", "--log-level", "info")
    as_json = run("--log-level", "info", "ls", "--log-json", "--json")

    assert quiet.err == ""
    assert "runtime_opened" in plain.err
    assert "runtime" not in plain.out
    assert "runtime_opened" in [json.loads(line)["event"] for line in as_json.err.splitlines()]
    assert len(as_json.objects) == 9


def test_warnings_are_shown_without_being_asked_for(store: Path, run: Callable[..., CommandRun]) -> None:
    fill(store, "a", session_id="\x1b[31m")
    (segment,) = store.glob("sessions/*/*.jsonl")
    with segment.open("ab") as file:
        file.write(b"torn")

    ran = run("ls")

    assert ran.code == 0
    assert "torn_tail_cut" in ran.err
    assert "\x1b" not in ran.err
    assert "torn_tail_cut" not in ran.out


# -- text -------------------------------------------------------------------------------------------------------------


def test_text_is_measured_and_cut_in_terminal_columns() -> None:
    assert [width_of(text) for text in ("abc", "äß", "日本", "e\u0301")] == [3, 2, 4, 1]
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdef", 5) == "abcd…"
    assert cut("日本語", 5) == "日本…"
    assert cut("日本語", 4) == "日…"
    assert pad("日", 4) == "日  "
    assert table(("A", "B"), [("日", 1), ("x", 10)]) == ["A    B", "日   1", "x   10"]


def test_printable_text_reads_back_as_json() -> None:
    everything = "".join(map(chr, range(0x3000)))

    shown = printable(json.dumps(everything, ensure_ascii=False))

    assert json.loads(shown) == everything
    assert all(character.isprintable() or character.isspace() or ord(character) > 0x9F for character in shown)
