"""The command line as a process: exit codes, pipes, terminals, Ctrl-C, and a second process that appends."""

from __future__ import annotations

import contextlib
import fcntl
import io
import itertools
import json
import os
import pty
import queue
import selectors
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import logmark
from logmark.cli._console import Messages
from logmark.cli._interrupts import Interrupts
from logmark.cli._progress import Progress
from logmark.testing import ManualClock, eventually

DATA = Path(__file__).parent / "data"
WIRE = DATA / "arcp-wire.jsonl"
SESSION = "sess_01M7XQ51823X7AXQJEQ40E133C"
DEADLINE_S = 60
MANY = 20_000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def filled(store: Path) -> Path:
    with logmark.open(str(store), durability="os") as runtime:
        runtime.session("s").append_many([("note", {"n": number, "text": "x" * 100}) for number in range(2000)])
    return store


def environment(store: Path, **more: str) -> dict[str, str]:
    unwanted = ("COLUMNS", "LINES", "NO_COLOR", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"LOGMARK_STORE": str(store), "TERM": "xterm"} | more


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let children take Ctrl-C: they inherit that it is ignored when the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def started(
    store: Path,
    *arguments: object,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    env: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command line; what still runs at the end is killed."""
    command = [sys.executable, "-m", "logmark", *map(str, arguments)]
    with (
        interruptible(),
        subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment(store, **env or {}), text=False
        ) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def run(store: Path, *arguments: object, data: bytes | None = None) -> tuple[int, str, str]:
    """Run the command line to its end and return its exit code and what it printed on each stream."""
    done = subprocess.run(
        [sys.executable, "-m", "logmark", *map(str, arguments)],
        env=environment(store),
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def events(*numbers: int, session_id: str = "s") -> bytes:
    return b"".join(
        json.dumps({"type": "note", "id": f"id-{number}", "session_id": session_id, "payload": number}).encode() + b"\n"
        for number in numbers
    )


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    """Wait for the first line of output, with a deadline, and leave the rest in the pipe."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:  # unlike select(), it takes descriptors beyond 1023
        selector.register(process.stdout, selectors.EVENT_READ)
        assert selector.select(DEADLINE_S)
    return process.stdout.readline()


class Lines:
    """What a process prints, line by line, with a deadline."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._stream = stream
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            self._lines.put(line)

    def next(self) -> bytes:
        return self._lines.get(timeout=DEADLINE_S)

    def rest(self) -> list[bytes]:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return [self._lines.get() for _ in range(self._lines.qsize())]


class Terminal:
    """A terminal of our own for a process to print on."""

    def __init__(self, columns: int = 80) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.shown = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the last process has closed its side
            while data := os.read(self._ours, 65_536):
                self.shown += data

    def close(self) -> str:
        """Return everything that was shown, after the process has ended."""
        os.close(self.theirs)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        os.close(self._ours)
        return self.shown.decode()


def shown_by(store: Path, *arguments: object, columns: int = 80, **env: str) -> str:
    terminal = Terminal(columns)
    with started(store, *arguments, stdout=terminal.theirs, stderr=terminal.theirs, env=env) as process:
        assert process.wait(DEADLINE_S) == 0
    return terminal.close()


def last_seq(store: Path, session_id: str = "s") -> int:
    try:
        with logmark.open(str(store), create=False) as runtime:
            return runtime.session(session_id).last_seq
    except logmark.errors.StorageUnavailable:
        return 0  # it is being made


def stored(store: Path, session_id: str = "s") -> list[Any]:
    with logmark.open(str(store), create=False) as runtime:
        return [event.payload for event in runtime.session(session_id).read()]


# -- exit codes and streams -------------------------------------------------------------------------------------------


def test_exit_codes_and_streams(store: Path) -> None:
    code, out, err = run(store, "verify")
    assert (code, out) == (3, "")
    assert err == f"logmark: store 'file:{store}': there is no store here\n"

    code, out, err = run(store, "ingest", WIRE)
    assert (code, err) == (0, "")
    assert "179" in out

    code, out, err = run(store, "ingest", "-", data=events(1) + b"garbage\n" + events(2))
    assert code == 1
    assert "2  stored" in out
    assert err.startswith("<stdin>:2: not valid JSON")

    code, out, err = run(store, "view", "s", "--from", "nowhere")
    assert (code, out) == (2, "")
    assert "nowhere" in err

    code, out, err = run(store, "view", "s", "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["payload"] for line in out.splitlines()] == [1, 2]


def test_json_is_utf_8_whatever_the_locale_says(store: Path) -> None:
    text = "Grüße, 日本 \x9b"
    with logmark.open(str(store)) as runtime:
        runtime.session("s").append("note", text)
    with started(store, "view", "s", "--json", env={"PYTHONIOENCODING": "ascii"}) as process:
        out, err = process.communicate(timeout=DEADLINE_S)
    with started(store, "view", "s", env={"PYTHONIOENCODING": "ascii"}) as process:
        plain, plain_err = process.communicate(timeout=DEADLINE_S)

    assert (json.loads(out)["payload"], err) == (text, b"")
    assert (b"Gr\\xfc\\xdfe" in plain, plain_err) == (True, b"")


def test_two_ingests_of_one_log_at_the_same_time_store_each_event_once(store: Path) -> None:
    """Rows 37 and 40: numbers stay contiguous, and the same id is the same event, over processes."""
    with started(store, "ingest", WIRE) as first, started(store, "ingest", WIRE) as second:
        for process in (first, second):
            _, err = process.communicate(timeout=DEADLINE_S)
            assert (process.returncode, err) == (0, b"")
    with logmark.open(str(store), create=False) as runtime:
        found = {info.session_id: list(runtime.session(info.session_id).read()) for info in runtime.sessions()}

    assert sum(map(len, found.values())) == 179
    for session in found.values():
        assert [event.event_seq for event in session] == list(range(1, len(session) + 1))
        assert [event.extensions["origin_seq"] for event in session] == sorted(
            event.extensions["origin_seq"] for event in session
        )
        assert len({event.id for event in session}) == len(session)


# -- pipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("view", "s"), ("view", "s", "--json"), ("view", "s", "--follow")])
def test_a_reader_that_has_seen_enough_ends_it_quietly(filled: Path, arguments: tuple[str, ...]) -> None:
    with started(filled, *arguments) as process:
        assert first_line(process)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()

        assert process.stderr.read() == b""
        assert process.wait(DEADLINE_S) == 0


def test_a_follower_notices_that_its_reader_left_though_nothing_comes(store: Path) -> None:
    run(store, "ingest", "-", data=events(1))
    with started(store, "view", "s", "--follow") as process:
        assert first_line(process)
        assert process.stdout is not None
        process.stdout.close()

        assert process.wait(DEADLINE_S) == 0


def test_verify_ends_with_its_own_code_when_nobody_reads_its_output(filled: Path) -> None:
    with logmark.open(str(filled)) as runtime:
        runtime.store.halt("s", "for a test")
    reading, writing = os.pipe()
    os.close(reading)
    with started(filled, "verify", stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate(timeout=DEADLINE_S)

    assert (process.returncode, err) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [("ls",), ("view", "s"), ("--help",)])
def test_a_full_disk_behind_standard_output_is_an_error(filled: Path, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full, started(filled, *arguments, stdout=full) as process:
        _, err = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 3
    assert err == b"logmark: standard output: No space left on device\n"


def test_a_closed_standard_output_is_an_error(filled: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "logmark", "ls"],
        env=environment(filled),
        stderr=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
    )

    assert done.returncode == 3
    assert done.stderr == b"logmark: standard output: Bad file descriptor\n"


# -- following --------------------------------------------------------------------------------------------------------


def test_following_shows_history_then_what_another_process_appends_until_ctrl_c(store: Path) -> None:
    """Row 60: catch-up, then live, without a gap or a duplicate."""
    run(store, "ingest", "-", data=events(1, 2, 3))
    with started(store, "view", "s", "--from", "2", "--follow", "--json") as process:
        lines = Lines(process.stdout)
        seen = [json.loads(lines.next()) for _ in range(2)]
        for number in (4, 5):
            assert run(store, "ingest", "-", data=events(number))[0] == 0
            seen.append(json.loads(lines.next()))  # while it runs: nothing waits in a buffer
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""

    assert lines.rest() == []
    assert [(event["event_seq"], event["payload"]) for event in seen] == [(2, 2), (3, 3), (4, 4), (5, 5)]


def test_following_waits_for_a_session_that_does_not_exist_yet(store: Path) -> None:
    run(store, "ingest", "-", data=events(1, session_id="other"))
    with started(store, "view", "s", "--follow") as process:
        notices, lines = Lines(process.stderr), Lines(process.stdout)
        assert b"session 's' has no events yet" in notices.next()
        run(store, "ingest", "-", data=events(1))
        assert lines.next().split()[0] == b"1"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0

    assert notices.rest() == []


def test_following_a_job_leaves_the_others_out(store: Path) -> None:
    with logmark.open(str(store)) as runtime:
        session = runtime.session("s")
        session.append("note", 1, job_id="a")
        with started(store, "view", "s", "--follow", "--json", "--job", "a") as process:
            lines = Lines(process.stdout)
            seen = [json.loads(lines.next())["payload"]]
            session.append("note", 2, job_id="b")
            session.append("note", 3, job_id="a")
            seen.append(json.loads(lines.next())["payload"])

    assert seen == [1, 3]


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


def large_file(path: Path) -> Path:
    with path.open("wb") as file:
        for start in range(0, MANY, 1000):
            file.write(events(*range(start, start + 1000)))
    return path


def test_ctrl_c_during_an_ingest_finishes_what_was_accepted(store: Path, tmp_path: Path) -> None:
    """Row 52: nothing that was accepted is lost."""
    path = large_file(tmp_path / "large.jsonl")
    with started(store, "ingest", path, "--json") as process:
        eventually(lambda: last_seq(store), DEADLINE_S)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)

    summary = json.loads(out)
    assert process.returncode == 130
    assert err.decode().splitlines() == [
        "logmark: stopping: what was accepted is being finished; Ctrl-C again ends at once"
    ]
    assert summary["interrupted"] is True
    assert 0 < summary["stored"] == summary["lines"] < MANY
    assert stored(store) == list(range(summary["stored"]))

    code, out_again, _ = run(store, "ingest", path, "--json")
    again = json.loads(out_again)
    assert (code, again["repeated"], again["stored"]) == (0, summary["stored"], MANY - summary["stored"])
    assert stored(store) == list(range(MANY))


def test_ctrl_c_ends_an_ingest_that_waits_for_its_input(store: Path) -> None:
    with started(store, "ingest", "-", "--json", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(events(1, 2))
        process.stdin.flush()
        eventually(lambda: last_seq(store) == 2, DEADLINE_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
        assert process.stdout is not None
        summary = json.loads(process.stdout.read())
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    assert (summary["interrupted"], summary["stored"]) == (True, 2)


def test_a_second_ctrl_c_ends_at_once(store: Path) -> None:
    run(store, "ingest", "-", data=events(1))
    with (
        (store / "sessions" / "s" / "lock").open("rb+") as lock,
        started(store, "ingest", "-", stdin=subprocess.PIPE) as process,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)  # what is accepted cannot be finished while this is held
        assert process.stdin is not None
        process.stdin.write(events(2))
        process.stdin.flush()
        notices = Lines(process.stderr)
        eventually(lambda: has_lock_file_open(process.pid, lock.name), DEADLINE_S)
        process.send_signal(signal.SIGINT)
        assert b"Ctrl-C again ends at once" in notices.next()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == -signal.SIGINT

    assert notices.rest() == []
    assert run(store, "verify")[0] == 0


def has_lock_file_open(pid: int, path: str) -> bool:
    """Say whether a process has come as far as waiting for the lock."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{name}") == path:
                return True
    return False


def test_ctrl_c_while_a_log_is_printed_leaves_no_traceback(filled: Path) -> None:
    with started(filled, "view", "s") as process:
        assert first_line(process)  # it is printing, and stays in it while the pipe is full
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts(lambda: None) as interrupts:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
        assert not interrupts.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_just_before_a_read_is_not_missed() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupts(lambda: None) as interrupts:
            signal.raise_signal(signal.SIGINT)
            assert interrupts.requested
            with pytest.raises(KeyboardInterrupt), interrupts.allowed:
                pytest.fail("the read would have begun")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# -- terminals --------------------------------------------------------------------------------------------------------


def test_a_terminal_gets_colours_and_lines_of_its_width(filled: Path) -> None:
    shown = shown_by(filled, "view", "s", "--from", "1990", columns=70)
    uncoloured = shown_by(filled, "view", "s", "--from", "1990", columns=70, NO_COLOR="1")
    full = shown_by(filled, "view", "s", "--from", "1990", "--full", columns=70, NO_COLOR="1")

    assert "\x1b[36mnote" in shown
    assert "\x1b" not in uncoloured
    assert {len(line) for line in uncoloured.splitlines()} == {70}
    assert {line[-1] for line in uncoloured.splitlines()} == {"…"}
    assert all(json.loads(line.split(maxsplit=4)[4])["text"] == "x" * 100 for line in full.splitlines())


def test_json_on_a_terminal_has_its_control_characters_escaped(store: Path) -> None:
    with logmark.open(str(store)) as runtime:
        runtime.session("s").append("note", "\x9b31m\x7f")

    shown = shown_by(store, "view", "s", "--json")

    assert not set(shown) & {"\x9b", "\x7f", "\x1b"}
    assert json.loads(shown)["payload"] == "\x9b31m\x7f"


def test_progress_is_shown_on_a_terminal_and_nowhere_else(store: Path) -> None:
    terminal = Terminal()
    numbers = itertools.count(1)
    with started(store, "ingest", "-", stdin=subprocess.PIPE, stderr=terminal.theirs) as process:
        stdin = process.stdin
        assert stdin is not None

        def fed_until_shown() -> bool:
            stdin.write(events(next(numbers)))
            stdin.flush()
            return b" lines, " in terminal.shown

        eventually(fed_until_shown, DEADLINE_S)
        out, _ = process.communicate(b"garbage\n", timeout=DEADLINE_S)
        assert process.returncode == 1
    shown = terminal.close()

    assert b" lines, " not in out
    assert b"\x1b" not in out
    # The message took the place of the progress, and at the end the line is clean.
    assert "\r\x1b[K<stdin>:" in shown
    assert shown.endswith("\r\x1b[K")


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_of_files_is_a_bar() -> None:
    terminal = FakeTerminal()
    clock = ManualClock()
    progress = Progress(Messages(terminal), 1000, monotonic=clock.monotonic)
    progress.update(1, 1)
    assert terminal.getvalue() == ""  # what is quick needs no bar

    clock.advance(2.0)
    progress.update(500, 5000)
    progress.update(600, 6000)  # within a tenth of a second
    assert terminal.getvalue() == "\r[############............]  50%  5,000 lines, 2,500 a second\x1b[K"
    progress.end()
    assert terminal.getvalue().endswith("\r\x1b[K")
