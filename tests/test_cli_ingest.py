"""``logmark ingest``: both data sets, recounted against their raw lines, and inputs with something wrong in them."""

from __future__ import annotations

import collections
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.testing import CommandRun

DATA = Path(__file__).parent / "data"
WIRE = DATA / "arcp-wire.jsonl"
RECORDS = [json.loads(line) for line in WIRE.read_text(encoding="utf-8").splitlines()]
COUNTABLE = ("job.event", "job.result", "job.error")
FRAMES = [record["frame"] for record in RECORDS if record["dir"] == "s2c" and record["frame"]["type"] in COUNTABLE]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the store will be; the command line finds it by the environment."""
    monkeypatch.setenv("LOGMARK_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def summary_of(run: Callable[..., CommandRun], *files: object, code: int = 0) -> dict[str, Any]:
    ran = run("ingest", "--json", *files)
    assert ran.code == code, ran.err
    (summary,) = ran.objects
    assert isinstance(summary, dict)
    return summary


def stored(store: Path) -> dict[str, list[logmark.Envelope]]:
    with logmark.open(str(store), create=False) as runtime:
        return {info.session_id: list(runtime.session(info.session_id).read()) for info in runtime.sessions()}


def first_frames() -> dict[str, list[dict[str, Any]]]:
    """Return the countable server frames per session, repeated ids left out: what the store should hold."""
    sessions: dict[str, dict[str, dict[str, Any]]] = collections.defaultdict(dict)
    for frame in FRAMES:
        sessions[frame["session_id"]].setdefault(frame["id"], frame)
    return {session_id: list(frames.values()) for session_id, frames in sessions.items()}


def write_lines(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def event(number: int, **members: Any) -> dict[str, Any]:
    return {
        "type": "note",
        "id": f"id-{number}",
        "session_id": "s",
        "event_seq": number,
        "payload": {"n": number},
    } | members


def test_the_wire_log_holds_what_its_description_says() -> None:
    assert len(FRAMES) == 180
    assert sum(map(len, first_frames().values())) == 179
    assert len(first_frames()) == 9


def test_every_event_of_the_wire_log_is_numbered_from_one_in_its_session(
    run: Callable[..., CommandRun], store: Path
) -> None:
    summary = summary_of(run, WIRE)
    found = stored(store)

    assert found.keys() == first_frames().keys()
    for session_id, frames in first_frames().items():
        events = found[session_id]
        assert [each.event_seq for each in events] == list(range(1, len(frames) + 1))
        assert [each.extensions["origin_seq"] for each in events] == [frame["event_seq"] for frame in frames]
        for name in ("id", "type", "job_id", "payload"):
            assert [getattr(each, name) for each in events] == [frame[name] for frame in frames]
    assert {name: summary[name] for name in ("lines", "stored", "repeated", "sessions", "malformed", "refused")} == {
        "lines": 300,
        "stored": 179,
        "repeated": 1,
        "sessions": 9,
        "malformed": 0,
        "refused": 0,
    }


def test_control_and_client_frames_are_counted_and_not_stored(run: Callable[..., CommandRun], store: Path) -> None:
    summary = summary_of(run, WIRE)

    assert summary["client"] == sum(record["dir"] == "c2s" for record in RECORDS)
    assert summary["control"] == sum(record["dir"] == "s2c" for record in RECORDS) - len(FRAMES)
    assert {each.type for events in stored(store).values() for each in events} <= set(COUNTABLE)


def test_a_second_ingest_adds_nothing(run: Callable[..., CommandRun], store: Path) -> None:
    """Row 40: ids are idempotent, also over a restart."""
    inputs = (WIRE, DATA / "meerkat" / "0.7.5", DATA / "meerkat" / "0.8.10")
    first = summary_of(run, *inputs)
    before = stored(store)
    second = summary_of(run, *inputs)

    assert stored(store) == before
    assert second["stored"] == 0
    assert second["repeated"] == first["stored"] + first["repeated"]


def test_bare_envelopes_are_ingested_like_records(run: Callable[..., CommandRun], store: Path, tmp_path: Path) -> None:
    bare = write_lines(tmp_path / "bare.jsonl", *FRAMES)
    summary_of(run, bare)
    from_bare = stored(store)
    shutil.rmtree(store)
    summary_of(run, WIRE)

    assert from_bare == stored(store)


@pytest.mark.parametrize("form", [".", "events", "file"])
@pytest.mark.parametrize("version", ["0.7.5", "0.8.10"])
def test_an_event_store_comes_back_unchanged_from_view(
    run: Callable[..., CommandRun], store: Path, version: str, form: str
) -> None:
    """Row 19: source identity, producer numbers, times and bodies."""
    (path,) = (DATA / "meerkat" / version / "events").glob("*.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    summary = summary_of(run, path if form == "file" else DATA / "meerkat" / version / form)
    events = run("view", path.stem, "--json").objects

    assert (summary["stored"], summary["sessions_with_gaps"]) == (len(rows), 0)
    assert [each["event_seq"] for each in events] == list(range(1, len(rows) + 1))
    assert [each["origin_seq"] for each in events] == [row["seq"] for row in rows]
    assert [each["source"] for each in events] == [row["source"] for row in rows]
    assert [each["stream_seq"] for each in events] == [row["stream_seq"] for row in rows]
    assert [each["type"] for each in events] == [row["event"]["type"] for row in rows]
    assert [each["payload"] for each in events] == [row["event"] for row in rows]
    for each, row in zip(events, rows, strict=True):
        assert each["timestamp"].endswith(f".{row['timestamp']['nanos_since_epoch']:09d}Z")
    assert summary_of(run, path)["stored"] == 0


def test_what_view_prints_can_be_ingested(run: Callable[..., CommandRun], store: Path, tmp_path: Path) -> None:
    run("ingest", WIRE, DATA / "meerkat" / "0.8.10")
    original = stored(store)
    copy = tmp_path / "copy.jsonl"
    copy.write_text("".join(run("view", session_id, "--json").out for session_id in original), encoding="utf-8")

    run("ingest", copy, "--store", tmp_path / "second")

    assert stored(tmp_path / "second") == original


def test_malformed_lines_are_reported_by_number_and_the_rest_is_ingested(
    run: Callable[..., CommandRun], store: Path, tmp_path: Path
) -> None:
    """Row 48: one bad item does not discard the others."""
    path = write_lines(
        tmp_path / "mixed.jsonl",
        event(1),
        "not json",
        "",
        event(2, session_id=5),
        event(2, type="job.event", session_id=None),
        event(2),
        event(3, payload="x" * 1024 * 1024),
        "\x1b[31m{",
        event(3),
    )
    ran = run("ingest", "--json", path)

    assert ran.code == 1
    places = [line.split(": ")[0] for line in ran.err.splitlines()]
    assert places == [f"{path}:{number}" for number in (2, 4, 5, 7, 8)]
    assert "\x1b" not in ran.err
    assert (ran.objects[0]["stored"], ran.objects[0]["malformed"], ran.objects[0]["lines"]) == (3, 5, 8)
    assert [each.payload["n"] for each in stored(store)["s"]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [((4, 5, 7), "1 of its numbers are not in the input, first 6"), ((4, 5, 4, 5, 6), None)],
    ids=["jump", "repetition"],
)
def test_a_gap_in_the_foreign_numbers_is_found(
    run: Callable[..., CommandRun], store: Path, tmp_path: Path, numbers: tuple[int, ...], expected: str | None
) -> None:
    ran = run("ingest", write_lines(tmp_path / "wire.jsonl", *map(event, numbers)))

    assert ran.code == (0 if expected is None else 1)
    assert (expected or "") in ran.err
    assert len(stored(store)["s"]) == len(set(numbers))


def test_rows_that_an_event_store_has_lost_are_found(
    run: Callable[..., CommandRun], store: Path, tmp_path: Path
) -> None:
    """Row 33: its sequence file says that they were there."""
    shutil.copytree(DATA / "meerkat" / "0.8.10" / "events", tmp_path / "events")
    (path,) = (tmp_path / "events").glob("*.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    write_lines(path, *lines[:10])

    ran = run("ingest", tmp_path)

    assert ran.code == 1
    assert f"session '{path.stem}': 2 of its numbers are not in the input, first 11 to 12" in ran.err
    assert len(stored(store)[path.stem]) == 10


def test_a_torn_last_row_is_malformed_and_the_rows_before_it_are_kept(
    run: Callable[..., CommandRun], store: Path, tmp_path: Path
) -> None:
    """Row 28, in a foreign log."""
    source = next((DATA / "meerkat" / "0.7.5" / "events").glob("*.jsonl"))
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes()[:-20])

    ran = run("ingest", path)

    assert ran.code == 1
    assert ran.err.startswith(f"{path}:3: not valid JSON")
    assert len(stored(store)[source.stem]) == 2


def test_a_missing_file_is_an_error_before_a_store_is_made(
    run: Callable[..., CommandRun], store: Path, tmp_path: Path
) -> None:
    ran = run("ingest", WIRE, tmp_path / "missing.jsonl")

    assert (ran.code, ran.out) == (3, "")
    assert ran.err == f"logmark: {tmp_path / 'missing.jsonl'}: No such file or directory\n"
    assert not store.exists()


def test_a_halted_session_refuses_and_the_others_go_on(
    run: Callable[..., CommandRun], store: Path, tmp_path: Path
) -> None:
    """Row 20: a halt blocks that session only."""
    with logmark.open(str(store)) as runtime:
        runtime.session("s").append("note", id="id-0")
        runtime.store.halt("s", "for a test")
    path = write_lines(tmp_path / "wire.jsonl", event(1), event(1, session_id="t"), event(2), event(2, session_id="t"))
    ran = run("ingest", "--json", path)

    assert ran.code == 1
    assert "session 's' is halted" in ran.err
    assert "(2 events refused)" in ran.err
    assert len(ran.err.splitlines()) == 1 + ran.err.count("append_failed")
    assert (ran.objects[0]["stored"], ran.objects[0]["refused"]) == (2, 2)


def test_the_summary_is_for_a_person_unless_it_is_asked_as_json(run: Callable[..., CommandRun], store: Path) -> None:
    ran = run("ingest", WIRE)
    lines = [line.split(maxsplit=1) for line in ran.out.splitlines()]

    assert ran.out.startswith("ingested 300 lines in ")
    assert ["179", "stored, in 9 sessions"] in lines
    assert ["1", "there already, by their ids"] in lines
    assert ran.err == ""


def test_two_inputs_with_one_event_each_store_it_once(
    run: Callable[..., CommandRun], store: Path, tmp_path: Path
) -> None:
    first = write_lines(tmp_path / "first.jsonl", event(1), event(2))
    second = write_lines(tmp_path / "second.jsonl", event(2, payload="other"), event(3))

    summary = summary_of(run, first, second)

    assert (summary["stored"], summary["repeated"], summary["sessions_with_gaps"]) == (3, 1, 0)
    assert [each.payload for each in stored(store)["s"]] == [{"n": 1}, {"n": 2}, {"n": 3}]
