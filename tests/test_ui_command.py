"""``logmark ui`` and ``logmark serve --ui``: what is refused, who is let in, and where the page is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import logmark
from logmark.cli import main
from logmark.testing import CommandRun

SOON = 30.0


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        (("--listen", "0.0.0.0:0"), 2, "reached from elsewhere"),
        (("--listen", "7777"), 2, "HOST:PORT"),
        (("--token-file", "open"), 2, "chmod 600"),
        (("--token-file", "missing"), 3, "No such file"),
        (("--store", "nowhere"), 3, "nowhere"),
    ],
)
def test_a_command_line_that_cannot_be_carried_out(
    run: Callable[..., CommandRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOGMARK_UI_TOKENS", raising=False)
    with logmark.open("logmark-data"):
        Path("open").write_text("s3cret alice", encoding="utf-8")
        Path("open").chmod(0o644)
    done = run("ui", *arguments)
    assert done.code == code
    assert match in done.err
    assert "s3cret" not in done.err
    assert done.out == ""


def test_serve_shows_the_page_beside_the_agents(serve: Callable[..., Any], tmp_path: Path) -> None:
    """The clients' tokens do not open it: who has one sees his own jobs, the page shows everybody's."""
    served = serve("--ui", store=f"file:{tmp_path / 'store'}")
    assert served.url.startswith("ws://")
    assert served.process.stdout is not None
    url = served.process.stdout.readline().decode().strip()
    match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#token=([\w-]{43})", url)
    assert match is not None
    with connect(f"ws://127.0.0.1:{match[1]}/live", compression=None) as client:
        client.send(orjson.dumps({"op": "hello", "token": "token-a"}), text=True)
        with pytest.raises(ConnectionClosed):
            client.recv(SOON)
    with connect(f"ws://127.0.0.1:{match[1]}/live", compression=None) as client:
        client.send(orjson.dumps({"op": "hello", "token": match[2]}), text=True)
        assert orjson.loads(client.recv(SOON))["writing"] is True
    assert served.end() == 0
    assert match[2] not in served.log.read_text(encoding="utf-8")


def test_the_commands_own_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--help"]) == 0
    assert "logmark ui --store sqlite:events.db" in capsys.readouterr().out


def test_without_websockets_it_says_what_to_install(tmp_path: Path) -> None:
    with logmark.open(str(tmp_path / "store")):
        program = (
            "import sys; sys.modules['websockets'] = None; from logmark.cli import main; sys.exit(main(sys.argv[1:]))"
        )
    done = subprocess.run(
        [sys.executable, "-c", program, "ui", "--store", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "logmark[gateway]" in done.stderr
