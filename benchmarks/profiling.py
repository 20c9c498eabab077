"""Where the time of a lone append goes, hop by hop: ``python -m benchmarks profile``.

One caller, which is not the main thread, appends to one session. The functions that an append passes through are
replaced by ones that take the time and call the original. What a function spends in others that are measured too is
taken off, and so is what the measuring costs, which is calibrated before. What is left between the sum of the hops and
the time from call to return is what no hop covers; changes of threads, where there are any, are in ``wait``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib
import statistics
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from .events import ring
from .participants import EVENT_TYPE, Logmark

__all__ = ["HOPS", "Hop", "Profile", "profile", "profile_markdown", "profile_table"]


T = TypeVar("T")

_PORTION = 250


@dataclasses.dataclass(frozen=True, slots=True)
class Hop:
    """A part of the way, and the functions that make it up."""

    name: str
    what: str
    targets: tuple[str, ...]
    """Each as ``module:function`` or ``module:Class.method``; where a function is used, not where it is defined."""
    whole: bool = False
    """Whether what these functions call is theirs, also where it is measured elsewhere."""


HOPS = (
    Hop("encode", "checks, id, time, JSON", ("logmark._session:Session._encode",)),
    Hop(
        "submit",
        "a place in the inbox, the message, the caller's lane",
        (
            "logmark._session:Session._append",
            "logmark._session:Session._submit",
            "logmark.actors._dispatch:Mailbox.add",
        ),
    ),
    Hop(
        "turns",
        "giving the actors their turns",
        ("logmark.actors._caller:CallerLane.give_turns", "logmark.actors._base:LogmarkActor.take_turn"),
    ),
    Hop(
        "batch",
        "SessionActor: the batch and the writer for it",
        ("logmark.actors._session:SessionActor.on_receive", "logmark.actors._session:SessionActor.on_drained"),
    ),
    Hop(
        "commit",
        "PersistActor and store: numbers, the result",
        (
            "logmark.actors._persist:PersistActor.on_receive",
            "logmark.storage._file_store:FileEventStore.append",
            "logmark.storage._session_log:SessionLog.append",
        ),
    ),
    Hop(
        "lock",
        "between processes: taken, released; one look at the directory",
        ("logmark.storage._lock:FileLockGuard.acquire", "logmark.storage._lock:FileLockGuard.release"),
        whole=True,
    ),
    Hop(
        "tail check",
        "has anybody else written since",
        ("logmark.storage._session_log:SessionLog._tail_is_known",),
        whole=True,
    ),
    Hop("row", "the line and its checksum", ("logmark.storage._session_log:encode_rows",)),
    Hop("write", "the system call", ("logmark.storage._files:OsFiles.write",)),
    Hop("sync", "the system call", ("logmark.storage._files:OsFiles.sync",)),
    Hop("head", "how far the log is durable", ("logmark.storage._session_log:SessionLog._write_head",), whole=True),
    Hop(
        "settle",
        "the counter, the answer, the place given back",
        ("logmark.actors._session:SessionActor._on_persisted",),
    ),
    Hop("wait", "the caller, for its answer", ("logmark._replies:BlockingReply.wait",)),
)


@dataclasses.dataclass(slots=True)
class Profile:
    """Microseconds of a lone append: means over the middle half of all."""

    total_us: float
    hops_us: dict[str, float]
    calls: dict[str, float]
    """Calls of a hop's functions in one append."""
    plain_us: float
    """From call to return with nothing replaced."""

    @property
    def rest_us(self) -> float:
        """What no hop covers."""
        return self.total_us - sum(self.hops_us.values())


class _Frames(threading.local):
    """The measured functions that this thread is in: time and calls of what they call, and whether that is theirs."""

    def __init__(self) -> None:
        self.stack: list[list[int]] = []


class _Meter:
    """Adds up the time of each hop, in all threads."""

    def __init__(self, hops: Sequence[Hop]) -> None:
        self._frames = _Frames()
        self._sums = {hop.name: [0, 0, 0] for hop in hops}

    def reset(self) -> None:
        """Start anew."""
        for sums in self._sums.values():
            sums[:] = (0, 0, 0)

    def calls(self) -> dict[str, int]:
        """Return how often each hop's functions were called."""
        return {name: calls for name, (_, calls, _) in self._sums.items()}

    def read(self, own_ns: float, inner_ns: float) -> tuple[dict[str, float], float]:
        """Return the time of each hop less what measuring adds, and what that was in all."""
        costs = {name: calls * own_ns + inner * inner_ns for name, (_, calls, inner) in self._sums.items()}
        return {name: max(0.0, sums[0] - costs[name]) for name, sums in self._sums.items()}, sum(costs.values())

    def timed(self, hop: Hop, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a clock around it, which costs as little as it can."""
        frames, sums, whole, clock = self._frames, self._sums[hop.name], int(hop.whole), time.perf_counter_ns

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            stack = frames.stack
            if stack and stack[-1][2]:
                return function(*args, **options)
            frame = [0, 0, whole]
            stack.append(frame)
            began = clock()
            try:
                return function(*args, **options)
            finally:
                took = clock() - began
                stack.pop()
                sums[0] += took - frame[0]
                sums[1] += 1
                sums[2] += frame[1]
                if stack:
                    caller = stack[-1]
                    caller[0] += took
                    caller[1] += 1

        return timed


@contextlib.contextmanager
def _measured(hops: Sequence[Hop], meter: _Meter) -> Generator[None, None, None]:
    """Replace the functions of all hops, and put them back."""
    with contextlib.ExitStack() as stack:
        for hop in hops:
            for target in hop.targets:
                module, _, path = target.partition(":")
                *owners, name = path.split(".")
                owner: Any = importlib.import_module(module)
                for each in owners:
                    owner = getattr(owner, each)
                found = owner.__dict__[name]
                is_static = isinstance(found, staticmethod)  # and stays so
                timed = meter.timed(hop, getattr(owner, name))
                setattr(owner, name, staticmethod(timed) if is_static else timed)
                stack.callback(setattr, owner, name, found)
        yield


def _calibrate(rounds: int = 40, calls: int = 500) -> tuple[float, float]:
    """Return what measuring adds to a measured function, and to one that calls a measured function, in nanoseconds."""
    hops = (Hop("outer", "", ()), Hop("inner", "", ()))
    own_ns: list[float] = []
    inner_ns: list[float] = []
    for _ in range(rounds):  # in small portions, as a busy machine spoils some of them
        meter = _Meter(hops)

        def nothing(_one: object, _two: object) -> None:
            return None

        inner = meter.timed(hops[1], nothing)

        def call(one: object, two: object, inner: Callable[..., None] = inner) -> None:
            inner(one, two)

        outer = meter.timed(hops[0], call)
        for number in range(calls):
            outer(number, hops)
        spent, _ = meter.read(0, 0)
        own_ns.append(spent["inner"] / calls)
        inner_ns.append(max(0.0, spent["outer"] / calls - own_ns[-1]))
    return statistics.median(own_ns), statistics.median(inner_ns)


def profile(directory: str, *, appends: int) -> Profile:
    """Measure lone appends to a store in a directory, in a thread of their own: the main thread has signals to mind."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(_profile, directory, appends).result()


def _profile(directory: str, appends: int) -> Profile:
    payloads = ring()
    own_ns, inner_ns = _calibrate()
    logmark = Logmark()
    with contextlib.closing(logmark):
        logmark.open(directory)
        session = logmark.runtime.session("s")
        clock = time.perf_counter_ns

        def append(number: int) -> int:
            before = clock()
            session.append(EVENT_TYPE, payloads[number % len(payloads)])
            return clock() - before

        for number in range(max(appends // 10, 50)):
            append(number)
        meter = _Meter(HOPS)
        plain: list[float] = []
        taken: list[tuple[float, dict[str, float], dict[str, int]]] = []
        while len(taken) < appends:  # by turns, as the machine may be busier later on
            portion = min(_PORTION, appends - len(taken))
            plain += [append(number) for number in range(portion)]
            with _measured(HOPS, meter):
                for number in range(portion):
                    meter.reset()
                    wall_ns = append(number)
                    hops_ns, cost_ns = meter.read(own_ns, inner_ns)
                    taken.append((wall_ns - cost_ns, hops_ns, meter.calls()))
    # Means over the middle half: unlike medians they add up, and unlike means over all they forget what was unusual.
    middle = _middle(taken, key=lambda each: each[0])
    return Profile(
        total_us=statistics.mean(wall for wall, _, _ in middle) / 1000,
        hops_us={hop.name: statistics.mean(hops[hop.name] for _, hops, _ in middle) / 1000 for hop in HOPS},
        calls={hop.name: statistics.mean(calls[hop.name] for _, _, calls in middle) for hop in HOPS},
        plain_us=statistics.mean(_middle(plain, key=float)) / 1000,
    )


def _middle(values: list[T], key: Callable[[T], float]) -> list[T]:
    quarter = len(values) // 4
    return sorted(values, key=key)[quarter : len(values) - quarter]


def profile_table(found: Profile) -> str:
    """Return the figures as a text table."""
    lines = [f"{'hop':<12}{'µs':>8}{'share':>8}{'calls':>7}   what"]
    for hop in HOPS:
        spent = found.hops_us[hop.name]
        lines.append(
            f"{hop.name:<12}{spent:>8.2f}{spent / found.total_us:>8.1%}{found.calls[hop.name]:>7.1f}   {hop.what}"
        )
    rest = found.rest_us
    lines.append(f"{'rest':<12}{rest:>8.2f}{rest / found.total_us:>8.1%}{'':>7}   what no hop covers")
    lines.append(f"{'total':<12}{found.total_us:>8.2f}{'':>15}   less what measuring costs")
    lines.append(f"{'unmeasured':<12}{found.plain_us:>8.2f}{'':>15}   the same with nothing replaced")
    return "\n".join(lines)


def profile_markdown(found: Profile) -> str:
    """Return the figures as a table for a page."""
    lines = ["| hop | µs | share | what |", "|---|--:|--:|---|"]
    for hop in HOPS:
        spent = found.hops_us[hop.name]
        lines.append(f"| {hop.name} | {spent:.1f} | {spent / found.total_us:.0%} | {hop.what} |")
    lines.append(f"| rest | {found.rest_us:.1f} | {found.rest_us / found.total_us:.0%} | what no hop covers |")
    lines.append(
        f"| **total** | **{found.total_us:.1f}** | | {found.plain_us:.1f} when nothing is measured in between |"
    )
    return "\n".join(lines)
