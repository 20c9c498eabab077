"""The real kernel says no, or the process dies, at every single system call of an append, a recovery and a repair.

Each sweep runs a real process under strace, which kills it right before the n-th call of one name, or makes that call
fail, for n = 1, 2, … until the process runs through unharmed. Then the store is opened again, and what the process had
said before is held against what is there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import logmark
from logmark.protocol import Limits
from logmark.storage import FileEventStore

WORKERS = Path(__file__).with_name("workers")
SESSION = "s"
# Four commits in three segments, of one event and of several.
SIZES: dict[int, int] = dict(enumerate((1, 3, 1, 2)))
LIMITS = Limits(segment_bytes_max=600)
RUN_S_MAX = 30.0
CALLS_MAX = 200
ABREAST = 2 * (os.cpu_count() or 1)

# One row for each thing that is done to a file system; the names differ between architectures.
OPEN = "?open,?openat"
WRITE = "pwrite64"
READ = "pread64"
SYNC = "fdatasync"
SYNC_DIR = "fsync"
TRUNCATE = "ftruncate"
RENAME = "?rename,?renameat,?renameat2"
MKDIR = "?mkdir,?mkdirat"
UNLINK = "?unlink,?unlinkat"
LOCK = "flock"
CLOSE = "close"
ACCESS = "?access,?faccessat,?faccessat2"  # by these a worker learns that it is traced; nothing else uses them
CHANGING = (WRITE, SYNC, SYNC_DIR, TRUNCATE, RENAME, MKDIR)

KILL = "signal=KILL:when={n}"
EIO = "error=EIO:when={n}"
EIO_EVER_AFTER = "error=EIO:when={n}+"
ENOSPC = "error=ENOSPC:when={n}"
ENOSPC_EVER_AFTER = "error=ENOSPC:when={n}+"
EIO_ALWAYS = "error=EIO"


@functools.cache
def _strace() -> tuple[str, str]:
    """Return the path of strace, or why it cannot be used."""
    found = shutil.which("strace")
    if found is None:
        return "", "strace is not installed"
    script = "import os, sys; sys.exit(7 if os.getppid() < 0 else 8)"  # getppid cannot fail but by injection
    command = [found, "-f", "-qq", "-o", os.devnull, "-e", "inject=getppid:error=EPERM", sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return (found, "") if result.returncode == 7 else ("", f"strace cannot inject here: {result.stderr[-200:]}")


@pytest.fixture(autouse=True)
def _needs_strace() -> None:
    _, reason = _strace()
    if reason:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@dataclasses.dataclass
class Run:
    """What a traced process said, and whether what was planned for it took place."""

    store: Path
    said: list[dict[str, Any]]
    struck: bool
    returncode: int
    injected: str
    errors: str
    kept: bytes = b""

    @property
    def killed(self) -> bool:
        return self.returncode == -signal.SIGKILL

    def describe(self) -> str:
        return f"exit {self.returncode}\n{self.injected}\n{self.errors}\n" + "\n".join(map(str, self.said))


class ForkServer:
    """Gives out processes that have everything imported, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKERS / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def start(self, worker: str, arguments: tuple[str, ...], output: Path, errors: Path) -> int:
        """Start a worker that waits for its tracer, and return its process id."""
        request = {"worker": worker, "arguments": arguments, "output": str(output), "errors": str(errors)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return self._number()

    def wait(self) -> int:
        """Return the exit code of the worker, negative for a signal."""
        return os.waitstatus_to_exitcode(self._number())

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=RUN_S_MAX)


@pytest.fixture(scope="module")
def servers() -> Iterator[queue.SimpleQueue[ForkServer]]:
    waiting: queue.SimpleQueue[ForkServer] = queue.SimpleQueue()
    started = [ForkServer() for _ in range(ABREAST)]
    for server in started:
        waiting.put(server)
    yield waiting
    for server in started:
        server.close()


@dataclasses.dataclass
class Tracer:
    """Runs workers with a fault at the n-th of some calls."""

    servers: queue.SimpleQueue[ForkServer]

    def run(self, store: Path, worker: str, *arguments: str, faults: dict[str, str], everywhere: bool = False) -> Run:
        """Run a worker with faults at the calls on the files of the session, or ``everywhere``.

        strace counts the calls of each thread for itself. The workers do all that changes a session in one thread.
        """
        record, output, errors = (store.with_name(f"{store.name}.{kind}") for kind in ("trace", "out", "err"))
        names = [f"{first:020d}.jsonl" for first in range(1, 20)]
        names += [f"{name}.new" for name in names]
        names += ["..", "", "head", "lock", "halt.json", "halt.json.new", "quarantine"]
        folder = store / "sessions" / SESSION
        only = [] if everywhere else [word for name in names for word in ("-P", os.path.normpath(folder / name))]
        only += [] if everywhere else ["-P", str(output)]
        faults = {**faults, ACCESS: "error=EPERM"}
        injections = [f"trace={','.join(faults)}", *(f"inject={calls}:{fault}" for calls, fault in faults.items())]
        server = self.servers.get()
        try:
            pid = server.start(worker, (str(store), *arguments), output, errors)
            command = [_strace()[0], "-f", "-qq", "-o", str(record), *only]
            command += [word for injection in injections for word in ("-e", injection)]
            try:
                subprocess.run([*command, "-p", str(pid)], timeout=RUN_S_MAX, check=False)
            except subprocess.TimeoutExpired:
                os.kill(pid, signal.SIGKILL)
                raise
            finally:
                returncode = server.wait()
        finally:
            self.servers.put(server)
        lines = record.read_text().splitlines()
        injected = [line for line in lines if "(INJECTED)" in line and "access" not in line]
        said = [json.loads(line) for line in output.read_text().splitlines()]
        struck = bool(injected) or returncode == -signal.SIGKILL
        return Run(store, said, struck, returncode, "\n".join(injected), errors.read_text())


@pytest.fixture
def tracer(servers: queue.SimpleQueue[ForkServer]) -> Tracer:
    return Tracer(servers)


def sweep(folder: Path, run: Callable[[Path, int], Run], check: Callable[[Run], None]) -> int:
    """Run with n = 1, 2, … until nothing was struck, check every run, and return how many calls there were."""
    enough = threading.Event()

    def one(n: int) -> bool:
        if enough.is_set():
            return False
        done = run(folder / f"at-{n}", n)
        try:
            check(done)
        except BaseException as error:
            enough.set()
            error.add_note(f"with a fault at call {n}: {done.describe()}")
            raise
        if not done.struck:
            enough.set()
        shutil.rmtree(done.store)
        return done.struck

    with ThreadPoolExecutor(ABREAST) as pool:
        struck = sum(pool.map(one, range(1, CALLS_MAX)))
    assert enough.is_set(), f"call {CALLS_MAX} was still struck"
    return struck


# -- what must hold afterwards ----------------------------------------------------------------------------------


def stretches(events: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return the attempt, the first and the last number of each run of events of one attempt."""
    found: list[tuple[int, int, int]] = []
    for attempt, group in itertools.groupby(events, key=lambda event: event[1]):
        numbers = [seq for seq, _ in group]
        found.append((attempt, numbers[0], numbers[-1]))
    return found


def check_log(store: Path, said: list[dict[str, Any]], sizes: Mapping[int, int] = SIZES) -> None:
    """Open a store after a fault, mend what was halted, and compare it with what its callers were told.

    Args:
        sizes: how many events each attempt has.
    """
    with logmark.open(str(store), limits=LIMITS) as runtime:
        session = runtime.session(SESSION)
        if runtime.store.halted(SESSION) is not None:
            before = [event.event_seq for event in readable(session)]
            with pytest.raises(logmark.errors.SessionHalted):
                session.append("after")
            assert runtime.store.repair(SESSION)
            assert [event.event_seq for event in session.read(1)][: len(before)] == before
        events = [(event.event_seq or 0, event.payload["attempt"]) for event in session.read(1)]
        count = len(events)
        assert [seq for seq, _ in events] == list(range(1, count + 1))
        found = {attempt: (first, last) for attempt, first, last in stretches(events)}
        assert len(found) == len(stretches(events)), "an append is there twice"
        for attempt, (first, last) in found.items():
            assert last - first + 1 == sizes[attempt], "an append is there in part"
        answers = {each["attempt"]: each for each in said if "attempt" in each}
        for attempt, answer in answers.items():
            if "first" in answer:
                assert found.get(attempt) == (answer["first"], answer["last"]), "an acknowledged append has changed"
            elif answer["certain"]:
                assert attempt not in found, "a rejected append is there"
        assert len(set(found) - set(answers)) <= 1, "only the append under way may be there without an answer"
        assert session.append("after") == count + 1
        assert session.last_seq == count + 1
        assert [finding for finding in runtime.store.verify(SESSION) if not finding.harmless] == []


def readable(session: logmark.Session) -> Iterator[logmark.Envelope]:
    """Yield the events of a halted session up to the damage, if there is any."""
    try:
        yield from session.read(1, halted_ok=True)
    except logmark.errors.LogCorrupt:
        return


def check_shown(run: Run) -> None:
    """Hold what a subscriber was shown against the answers: all that was acknowledged, and nothing else."""
    shown = next((each["shown"] for each in run.said if "shown" in each), None)
    if shown is not None:
        acknowledged = [each for each in run.said if "first" in each]
        assert shown == [
            [seq, each["attempt"]] for each in acknowledged for seq in range(each["first"], each["last"] + 1)
        ]


# -- opening a store --------------------------------------------------------------------------------------------


MAKING = [*itertools.product((WRITE, SYNC, SYNC_DIR, RENAME, MKDIR), (KILL, EIO)), (WRITE, ENOSPC)]


@pytest.mark.parametrize(("calls", "fault"), MAKING)
def test_the_making_of_a_store_may_be_interrupted(tmp_path: Path, tracer: Tracer, calls: str, fault: str) -> None:
    """The store is not there, with a typed error, or wholly there; and the next opening makes it."""

    def run(store: Path, n: int) -> Run:
        return tracer.run(store, "append", "", faults={calls: fault.format(n=n)}, everywhere=True)

    def check(done: Run) -> None:
        assert done.killed or done.returncode == 0
        assert all(each["error"] == "StorageUnavailable" for each in done.said)
        check_log(done.store, [])

    assert sweep(tmp_path, run, check) >= 1


# -- an append --------------------------------------------------------------------------------------------------


def run_appends(tracer: Tracer, calls: str, fault: str, *options: str) -> Callable[[Path, int], Run]:
    def run(store: Path, n: int) -> Run:
        FileEventStore(store).close()
        sizes = ",".join(map(str, SIZES.values()))
        arguments = (sizes, "--segment-bytes", str(LIMITS.segment_bytes_max), *options)
        return tracer.run(store, "append", *arguments, faults={calls: fault.format(n=n)})

    return run


@pytest.mark.parametrize("calls", [*CHANGING, OPEN, LOCK, CLOSE])
def test_a_process_killed_at_any_call_of_an_append_loses_nothing(tmp_path: Path, tracer: Tracer, calls: str) -> None:
    """Row 12: what was announced is there, with its number, and the next append goes on."""

    def check(run: Run) -> None:
        assert run.killed or run.returncode == 0
        check_log(run.store, run.said)

    points = sweep(tmp_path, run_appends(tracer, calls, KILL), check)
    assert points >= {MKDIR: 1, RENAME: 3, TRUNCATE: 3, SYNC_DIR: 4}.get(calls, len(SIZES))


FAILING = [
    *itertools.product((*CHANGING, OPEN, READ, LOCK, CLOSE), (EIO,)),
    *itertools.product((WRITE, SYNC, RENAME, OPEN), (ENOSPC,)),
    *itertools.product((WRITE, SYNC), (EIO_EVER_AFTER,)),
    (WRITE, ENOSPC_EVER_AFTER),
]


@pytest.mark.parametrize(("calls", "fault"), FAILING)
def test_any_call_of_an_append_may_fail(tmp_path: Path, tracer: Tracer, calls: str, fault: str) -> None:
    """Rows 22, 45: an error to the caller, nothing to the subscribers, and no hole."""

    def check(run: Run) -> None:
        assert run.returncode == 0, "every error is one of logmark's"
        assert len([each for each in run.said if "attempt" in each]) == len(SIZES)
        check_shown(run)
        check_log(run.store, run.said)

    assert sweep(tmp_path, run_appends(tracer, calls, fault, "--subscribe"), check) >= 1


def test_a_failed_sync_is_not_tried_again_and_halts_the_session(tmp_path: Path, tracer: Tracer) -> None:
    """Row 22: nothing is appended behind an append of which nobody knows whether it is there."""
    store = tmp_path / "store"
    run = run_appends(tracer, SYNC, EIO)(store, 2)  # the first is of the new segment, the second of the first event

    assert [each.get("error") for each in run.said] == ["AppendUncertain", *["SessionHalted"] * (len(SIZES) - 1)]
    segment = store / "sessions" / SESSION / f"{1:020d}.jsonl"
    assert segment.read_bytes().count(b"\n") == 2
    check_log(store, run.said)


@pytest.mark.parametrize("calls", [TRUNCATE, SYNC])
def test_a_failed_roll_back_halts_the_session(tmp_path: Path, tracer: Tracer, calls: str) -> None:
    """Row 22: what a full disk has left of an append could not be taken away, so nothing is put behind it."""
    store = tmp_path / "store"
    with logmark.open(str(store)) as runtime:
        runtime.session(SESSION).append("step", {"attempt": 0, "part": 0})
    # In the thread that writes, the first is to name the holder of the lock, the second is that of the append.
    faults = {WRITE: ENOSPC.format(n="1..2"), calls: EIO_ALWAYS}
    run = tracer.run(store, "append", "3,1", "--first-attempt", "1", "--subscribe", faults=faults)

    assert [each.get("error") for each in run.said[:2]] == ["AppendUncertain", "SessionHalted"]
    assert run.said[-1] == {"shown": []}
    check_log(store, [{"attempt": 0, "first": 1, "last": 1}, *run.said], {0: 1, 1: 3, 2: 1})


# -- a recovery -------------------------------------------------------------------------------------------------

TORN_SIZES = {0: 1, 1: 3, 2: 1, 3: 2}
BEFORE_THE_CRASH = [{"attempt": 0, "first": 1, "last": 1}, {"attempt": 1, "certain": True}]


def make_torn_store(store: Path) -> bytes:
    """Leave what a crash leaves: two rows and a half of an append of three, a head from before it, half a new file.

    Returns:
        the torn bytes.
    """
    path = store / "sessions" / SESSION
    segment = path / f"{1:020d}.jsonl"
    with logmark.open(str(store)) as runtime:
        session = runtime.session(SESSION)
        session.append_many([("step", {"attempt": 0, "part": 0})])
        sound, head = segment.read_bytes(), (path / "head").read_bytes()
        session.append_many([("step", {"attempt": 1, "part": part}) for part in range(3)])
    torn = segment.read_bytes()[:-40]
    segment.write_bytes(torn)
    (path / "head").write_bytes(head)
    (path / f"{5:020d}.jsonl.new").write_bytes(b"half a")
    return torn[len(sound) :]


def run_recovery(tracer: Tracer, calls: str, fault: str) -> Callable[[Path, int], Run]:
    def run(store: Path, n: int) -> Run:
        torn = make_torn_store(store)
        done = tracer.run(store, "append", "1,2", "--first-attempt", "2", faults={calls: fault.format(n=n)})
        done.kept = torn
        return done

    return run


def check_recovery(run: Run) -> None:
    check_log(run.store, [*BEFORE_THE_CRASH, *run.said], TORN_SIZES)
    kept = [path.read_bytes() for path in (run.store / "sessions" / SESSION / "quarantine").rglob("*.jsonl*")]
    assert any(run.kept in each for each in kept), "bytes were taken out and not kept"


@pytest.mark.parametrize("calls", [*CHANGING, OPEN, UNLINK])
def test_a_process_killed_at_any_call_of_a_recovery_loses_nothing(tmp_path: Path, tracer: Tracer, calls: str) -> None:
    """Row 28: recovery is as interruptible as an append, and keeps what it cuts."""

    def check(run: Run) -> None:
        assert run.killed or run.returncode == 0
        check_recovery(run)

    assert sweep(tmp_path, run_recovery(tracer, calls, KILL), check) >= (calls != RENAME)


FAILING_RECOVERY = [
    *itertools.product((WRITE, SYNC, SYNC_DIR, TRUNCATE, MKDIR, OPEN, READ, UNLINK), (EIO,)),
    *itertools.product((WRITE, OPEN), (ENOSPC,)),
]


@pytest.mark.parametrize(("calls", "fault"), FAILING_RECOVERY)
def test_any_call_of_a_recovery_may_fail(tmp_path: Path, tracer: Tracer, calls: str, fault: str) -> None:
    """Row 28: the append that met the torn tail fails typed, and the tail is still there to be mended."""

    def check(run: Run) -> None:
        assert run.returncode == 0, "every error is one of logmark's"
        check_recovery(run)

    assert sweep(tmp_path, run_recovery(tracer, calls, fault), check) >= 1


# -- a repair ---------------------------------------------------------------------------------------------------


def make_damaged_store(store: Path) -> None:
    """Make three segments, and damage one row."""
    with logmark.open(str(store), limits=LIMITS) as runtime:
        session = runtime.session(SESSION)
        for attempt, size in SIZES.items():
            session.append_many([("step", {"attempt": attempt, "part": part}) for part in range(size)])
    for segment in (store / "sessions" / SESSION).glob("*.jsonl"):
        segment.write_bytes(segment.read_bytes().replace(b'{"attempt":1,"part":0}', b'{"attempt":7,"part":0}'))


def segments_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "sessions" / SESSION).glob("*.jsonl")}


@pytest.mark.parametrize("fault", [KILL, EIO])
@pytest.mark.parametrize("calls", [*CHANGING, UNLINK])
def test_a_repair_may_be_interrupted_at_any_call(tmp_path: Path, tracer: Tracer, calls: str, fault: str) -> None:
    """Row 67: the session stays halted until a repair has run through, which finds all that the first one found."""

    before: dict[Path, dict[str, bytes]] = {}

    def run(store: Path, n: int) -> Run:
        make_damaged_store(store)
        before[store] = segments_of(store)
        return tracer.run(store, "repair", SESSION, faults={calls: fault.format(n=n)})

    def check(done: Run) -> None:
        assert done.killed or done.returncode == 0
        with logmark.open(str(done.store), limits=LIMITS) as runtime:
            session = runtime.session(SESSION)
            if runtime.store.halted(SESSION) is None:
                untouched = segments_of(done.store) == before[done.store]
                assert untouched or len(list(session.read(1))) == sum(SIZES.values()) - 1, (
                    "half repaired and not halted"
                )
            steps = runtime.store.repair(SESSION)
            assert done.struck or not steps
            events = [(event.event_seq, event.payload["attempt"], event.payload["part"]) for event in session.read(1)]
            numbers = itertools.count(1)
            everything = [(next(numbers), attempt, part) for attempt, size in SIZES.items() for part in range(size)]
            assert events == [event for event in everything if event[1:] != (1, 0)]
            assert session.append("after") == len(everything) + 1
            assert runtime.store.verify(SESSION) == []

    assert sweep(tmp_path, run, check) >= (calls != UNLINK)
