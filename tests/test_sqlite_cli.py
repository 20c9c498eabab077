"""The command line says the same of the same events, whatever engine keeps them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.errors import InvalidArgument
from logmark.storage import open_store
from logmark.testing import CommandRun

DATA = Path(__file__).parent / "data"
INPUTS = (DATA / "arcp-wire.jsonl", DATA / "meerkat" / "0.7.5", DATA / "meerkat" / "0.8.10")


def without_times(text: str) -> Any:
    """Return the objects of JSON lines without what depends on the clock."""
    return [{k: v for k, v in json.loads(line).items() if k not in {"elapsed_s", "ts"}} for line in text.splitlines()]


def test_every_command_says_the_same_of_files_and_sqlite(run: Callable[..., CommandRun], tmp_path: Path) -> None:
    urls = (f"file:{tmp_path / 'files'}", f"sqlite:{tmp_path / 'events.db'}")
    ingested = [run("ingest", *INPUTS, "--json", "--store", url) for url in urls]
    assert [each.code for each in ingested] == [0, 0]
    assert without_times(ingested[0].out) == without_times(ingested[1].out)
    again = [run("ingest", *INPUTS, "--json", "--store", url) for url in urls]
    assert json.loads(again[1].out)["stored"] == 0
    assert without_times(again[0].out) == without_times(again[1].out)

    listed = [run("ls", "--json", "--store", url) for url in urls]
    assert without_times(listed[0].out) == without_times(listed[1].out)
    names = [json.loads(line)["session_id"] for line in listed[1].out.splitlines()]
    assert len(names) > 2
    for arguments in (["verify", "--json"], ["verify", "--json", names[0]], ["repair", "--json", "--dry-run"], ["ls"]):
        one, two = (run(*arguments, "--store", url) for url in urls)
        assert (one.code, one.out) == (two.code, two.out) == (0, two.out)
    for name in names[:3]:
        for command in ("info", "view"):
            one, two = (run(command, name, "--json", "--store", url) for url in urls)
            assert one.code == two.code == 0
            assert len(one.out.splitlines()) == len(two.out.splitlines())
            for mine, theirs in zip(one.out.splitlines(), two.out.splitlines(), strict=True):
                assert json.loads(mine).keys() == json.loads(theirs).keys()
                assert json.loads(mine).get("payload") == json.loads(theirs).get("payload")


def test_damage_is_found_reported_and_repaired_by_the_commands(run: Callable[..., CommandRun], tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'events.db'}"
    with logmark.open(url) as runtime:
        for name in ("a", "b"):
            runtime.session(name).append_many([("x", {"n": n}) for n in range(5)])
    connection = sqlite3.connect(tmp_path / "events.db")
    connection.execute("UPDATE event SET payload = x'7b7d' WHERE session = 1 AND seq = 3")
    connection.execute("INSERT INTO event SELECT 99, seq, id, head, payload, crc FROM event WHERE session = 2")
    connection.commit()
    connection.close()

    found = run("verify", "--store", url)
    assert found.code == 1
    assert "belong to no session" in found.out
    assert "a: damage" in found.out
    assert "b: ok" in found.out
    assert run("view", "a", "--store", url).code == 1
    assert run("repair", "a", "--store", url).code == 0
    assert run("verify", "a", "--store", url).code == 0
    assert run("repair", "a", "--dry-run", "--store", url).code == 0
    with logmark.open(url) as runtime:
        assert [event.event_seq for event in runtime.session("a").read()] == [1, 2, 4, 5]
        assert runtime.session("a").append("x") == 6


def test_a_store_that_is_not_there_is_not_made_by_looking(run: Callable[..., CommandRun], tmp_path: Path) -> None:
    for command in (["ls"], ["info", "s"], ["view", "s"], ["verify"], ["repair"]):
        assert run(*command, "--store", f"sqlite:{tmp_path / 'events.db'}").code == 3
    assert list(tmp_path.iterdir()) == []


def test_urls_that_name_no_engine_are_refused() -> None:
    for url in ("oracle:x", "sqlite:", "sqlite://host/x", "sqlite::memory:", "memory:x", ""):
        with pytest.raises(InvalidArgument):
            open_store(url)


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [("postgresql://127.0.0.1:1/x", "psycopg", "postgres")],
)
def test_a_missing_package_is_an_error_that_names_the_extra(url: str, package: str, extra: str) -> None:
    program = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "import logmark\n"
        "try:\n"
        f"    logmark.open({url!r})\n"
        "except logmark.errors.MissingExtra as error:\n"
        "    print(error.extra, error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{extra} ")
    assert f"pip install 'logmark[{extra}]'" in done.stdout
