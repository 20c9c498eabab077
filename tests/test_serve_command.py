"""``logmark serve`` as an operator meets it: who is let in, what is refused, how it ends, and what it leaves."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.cli import main
from logmark.errors import InvalidArgument
from logmark.gateway import parse_tokens, read_token_file
from logmark.testing import ArcpProbe, eventually

SOON = 30.0
AGENTS = "arcp_agents:register"
WORKERS = Path(__file__).parent / "workers"
Serve = Callable[..., Any]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.touch(mode=0o600)
    path.write_text("# ours\n\ns3cret-a alice\n  s3cret-a2   alice  \ns3cret-b bob\n", encoding="utf-8")
    return path


@pytest.fixture
def command(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run the command in this process, for what is refused before anything is served."""
    monkeypatch.chdir(WORKERS)
    monkeypatch.syspath_prepend(str(WORKERS))
    monkeypatch.delenv("LOGMARK_TOKENS", raising=False)

    def run(*arguments: str, agents: str = AGENTS, token_file: str | None = str(tokens)) -> tuple[int, str]:
        options = [] if token_file is None else ["--token-file", token_file]
        code = main(["serve", "--store", str(tmp_path / "store"), "--agents", agents, *options, *arguments])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "s3cret" not in captured.err
        return code, captured.err

    return run


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_file_has_a_pair_in_each_line(tokens: Path) -> None:
    assert read_token_file(str(tokens)) == {"s3cret-a": "alice", "s3cret-a2": "alice", "s3cret-b": "bob"}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o601, 0o602, 0o604, 0o620])
def test_a_token_file_that_others_can_use_is_refused(tokens: Path, mode: int) -> None:
    tokens.chmod(mode)
    with pytest.raises(InvalidArgument, match=f"mode {mode:04o}.*chmod 600"):
        read_token_file(str(tokens))


def test_a_token_file_is_a_file_of_text(tmp_path: Path) -> None:
    for name, data, match in (("binary", b"\xff\xfe token", "UTF-8"), ("large", b"x" * (1024 * 1024 + 1), "bytes")):
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        with pytest.raises(InvalidArgument, match=match):
            read_token_file(str(path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(InvalidArgument, match="regular"):
        read_token_file(str(tmp_path / "pipe"))
    with pytest.raises(FileNotFoundError):
        read_token_file(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no tokens"),
        ("# nobody\n\n", "no tokens"),
        ("s3cret", "line 1: .*1 words"),
        ("s3cret alice\ns3cret2 bob and more", "line 2: .*4 words"),
        ("s3cret alice\ns3cret bob", "line 2: this token"),
    ],
)
def test_a_line_that_is_no_pair_is_named_and_its_token_is_not(text: str, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match) as caught:
        parse_tokens(text, source="$LOGMARK_TOKENS")
    assert "s3cret" not in str(caught.value)


# -- what is refused -------------------------------------------------------------------------------------------------


def test_without_a_token_nobody_could_come_so_it_does_not_start(command: Callable[..., tuple[int, str]]) -> None:
    code, said = command(token_file=None)
    assert code == 2
    assert "--token-file" in said
    assert "LOGMARK_TOKENS" in said


@pytest.mark.parametrize(
    ("agents", "match"),
    [
        ("arcp_agents", "MODULE:FUNCTION"),
        (":register", "MODULE:FUNCTION"),
        ("arcp_agents:", "MODULE:FUNCTION"),
        ("arcp agents:register", "MODULE:FUNCTION"),
        ("no_such_module:register", "ModuleNotFoundError"),
        ("arcp_agents:no_such_function", "has no function"),
        ("arcp_agents:AGENTS", "has no function"),
        ("arcp_agents:register_badly", "RuntimeError: no agents today"),
        ("arcp_agents:register_nothing", "registered no agent"),
    ],
)
def test_agents_that_cannot_be_had_are_a_usage_error(
    command: Callable[..., tuple[int, str]], agents: str, match: str
) -> None:
    code, said = command(agents=agents)
    assert code == 2
    assert match in said


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--listen", "7777"), "HOST:PORT"),
        (("--listen", "127.0.0.1:65536"), "HOST:PORT"),
        (("--listen", "::1:7777"), "HOST:PORT"),
        (("--listen", "127.0.0.1:"), "HOST:PORT"),
        (("--compat", "spec"), "invalid choice"),
        (("--drain-wait", "-1"), "seconds"),
        (("--drain-wait", "nan"), "seconds"),
        (("--listen", "0.0.0.0:0"), "reached from elsewhere"),
        (("--listen", "[::]:0"), "reached from elsewhere"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(
    command: Callable[..., tuple[int, str]], arguments: tuple[str, ...], match: str
) -> None:
    code, said = command(*arguments)
    assert code == 2
    assert match in said


def test_what_the_machine_refuses_is_an_error_of_the_machine(
    command: Callable[..., tuple[int, str]], tokens: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = command("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 3
    assert "cannot listen" in said
    code, said = command(token_file=str(tmp_path / "missing"))
    assert code == 3
    tokens.chmod(0o644)
    code, said = command()
    assert code == 2
    assert "chmod 600" in said


def test_without_websockets_it_says_what_to_install(tmp_path: Path, tokens: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['websockets'] = None\n"
        "import logmark.gateway  # agents and their kit need no network\n"
        "from logmark.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["serve", "--store", str(tmp_path / "store"), "--agents", AGENTS, "--token-file", str(tokens)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--listen", "127.0.0.1:0"],
        cwd=WORKERS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "logmark[gateway]" in done.stderr


# -- the process -----------------------------------------------------------------------------------------------------


def test_it_prints_one_line_takes_tokens_from_the_environment_and_passes_them_on_to_nobody(serve: Serve) -> None:
    server = serve("--log-level", "debug", "--log-json", LOGMARK_TOKENS="unused-1 carol")
    with ArcpProbe(server.url, "token-a") as client:
        client.wait_end(client.submit("fail"))
        seen = client.wait_end(client.submit("environment"))["payload"]["result"]
        assert "PATH" in seen
        assert "LOGMARK_TOKENS" not in seen
        with ArcpProbe(server.url, "unused-1") as stranger:
            assert stranger.frames[0]["payload"]["code"] == "UNAUTHENTICATED"
        resume_token = client.position[1]
    assert server.end() == 0
    assert server.process.stdout.read() == b""
    log = server.log.read_text(encoding="utf-8")
    for secret in ("token-a", "unused-1", resume_token):
        assert secret not in log
    for event in ("runtime_opened", "agent_failed", "job_concluded", "runtime_closed"):
        assert f'"event":"{event}"' in log


def test_a_child_may_listen_as_well(serve: Serve) -> None:
    server = serve("--stdio", stdin=subprocess.PIPE)
    eventually(lambda: b"ws://" in server.log.read_bytes(), SOON)
    with ArcpProbe(server.log.read_text(encoding="utf-8").strip(), "token-a") as client:
        job_id = client.submit("quick@1.0.0", 1)
        assert client.wait_end(job_id)["payload"]["result"] == 1
        server.process.stdin.close()
        assert client.closed.wait(SOON)
    assert server.process.wait(SOON) == 0
    assert server.process.stdout.read() == b""


def test_a_terminal_that_is_closed_is_a_request_to_end(serve: Serve) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by every child too
    try:
        server = serve()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert server.url
    assert server.end(signal.SIGHUP) == 0


def refuses(url: str) -> bool:
    """Say whether nobody listens any more."""
    host, _, port = url.split("/")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SOON).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_jobs_end_and_the_store_is_whole(serve: Serve, tmp_path: Path, number: int) -> None:
    server = serve("--drain-wait", "30")
    gate = tmp_path / "gate"
    with ArcpProbe(server.url, "token-a") as client:
        job_id = client.submit("gated", {"gate": str(gate)})
        client.wait_seq(1)
        server.process.send_signal(number)
        eventually(lambda: b"finishing" in server.log.read_bytes(), SOON)
        eventually(lambda: refuses(server.url), SOON)
        gate.touch()
        assert client.wait_end(job_id)["payload"]["result"] == "through"
        assert client.closed.wait(SOON)
        assert (client.faults(), client.last_seq) == ([], 3)
    assert server.process.wait(60) == 0
    with logmark.open(server.store, create=False) as runtime:
        (mark,) = runtime.session(client.session_id).jobs()
        assert (mark.status, mark.last_seq) == ("success", 3)


def test_a_second_signal_ends_it_at_once(serve: Serve) -> None:
    server = serve("--drain-wait", "3600")
    with ArcpProbe(server.url, "token-a") as client:
        client.submit("obey")
        client.wait_seq(1)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: b"finishing" in server.log.read_bytes(), SOON)
        assert server.end() == -signal.SIGTERM


def test_agents_are_found_beside_an_installed_command_too(tmp_path: Path, tokens: Path) -> None:
    """``python -m logmark`` has the working directory in its path; the command that pip installs has not."""
    program = "import sys; sys.path.remove(''); from logmark.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["serve", "--stdio", "--store", str(tmp_path / "store"), "--agents", AGENTS]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=WORKERS,
        input=b"",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b""), done.stderr


def test_what_it_leaves_is_for_its_owner_only(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    with ArcpProbe(server.url, "token-a") as client:
        client.wait_end(client.submit("quick", {"pass": "word"}))
    assert server.end() == 0
    for path in (tmp_path / "store").rglob("*"):
        assert client.position[1] not in (path.read_text(errors="replace") if path.is_file() else "")
        assert not path.stat().st_mode & stat.S_IWOTH
