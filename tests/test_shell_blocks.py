"""The commands on the reference pages work as they stand, but for the names of servers that are somebody else's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import logmark
from logmark.testing import NatsServer, PostgresServer

DOCS = Path(__file__).resolve().parent.parent / "docs"
RUN_ELSEWHERE = {"log-events.md", "tutorial.md"}  # tests/test_docs.py, tests/test_howtos.py
AGENTS = """
def register(runtime):
    runtime.agent("echo", version="1.0.0")(lambda ctx, input: input)
"""


def blocks() -> Iterator[tuple[str, str]]:
    for page in sorted(DOCS.glob("*.md")):
        if page.name not in RUN_ELSEWHERE:
            for block in re.findall(
                r"^```(?:sh|bash|console)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
            ):
                yield page.name, block


BLOCKS = list(blocks())


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(BLOCKS)])
def test_the_commands_of_a_page_work(
    page: str, block: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "my_agents.py").write_text(AGENTS, encoding="utf-8")
    (tmp_path / "tokens").touch(mode=0o600)
    (tmp_path / "tokens").write_text("token alice\n", encoding="utf-8")
    for name in ("data", "logmark-data"):
        with logmark.open(name) as runtime:
            runtime.session("chat-42").append("x")
    text = re.sub(r"^pip install .*\n", "", block, flags=re.MULTILINE).replace("127.0.0.1:7777", "127.0.0.1:0")
    for scheme, fixture in (("postgresql", "postgres_server"), ("nats", "nats_server")):
        if f"'{scheme}://" in text:
            server: PostgresServer | NatsServer = request.getfixturevalue(fixture)
            url = server.url(schema="blocks") if isinstance(server, PostgresServer) else server.url("BLOCKS")
            with logmark.open(url) as runtime:
                runtime.session("chat-42").append("x")
            text = re.sub(rf"'{scheme}://[^']*'", f"'{url}'", text)
    serving = re.search(r"^logmark (?:ui|serve) .*", text, flags=re.MULTILINE)
    if serving is None:
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, timeout=100, capture_output=True)
        return
    subprocess.run(["bash", "-euo", "pipefail", "-c", text[: serving.start()]], check=True, timeout=100)
    with subprocess.Popen(["bash", "-c", f"exec {serving[0]}"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert re.match(r"(ws|http)://127\.0\.0\.1:", process.stdout.readline())
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
