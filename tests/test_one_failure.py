"""One operation of the disk fails, any one: what is told stays true, every error is typed, and nothing stays open."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import logging
from collections.abc import Callable, Iterator

import pytest

from logmark.protocol import AppendRejected, AppendUncertain, Limits, LogmarkError
from logmark.storage import Appended, AppendRequest, FileEventStore
from logmark.testing._disk import DiskState
from logmark.testing._faults import OPERATIONS
from logmark.testing._faulty_files import FaultyFiles
from logmark.testing._power_cut import cached_state
from logmark.testing.conformance import append_answers, append_events, make_events, texts_of

LIMITS = Limits(segment_bytes_max=700, lock_wait_s=0.01)
SESSIONS = ("plain", "torn", "bad", "headless", "new")
KNOWN = {"plain": ["a", "b", "c"], "torn": ["a", "b", "c"], "bad": ["a", "c"], "headless": ["a", "b", "c"], "new": []}
FAILURES = [
    *((name, errno.EIO) for name in OPERATIONS if name != "close"),  # see OsFiles.close: it tells nobody of errors
    *((name, errno.ENOSPC) for name in ("open", "write", "rename")),
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Keep the warnings of a thousand failures out of the report."""
    logger = logging.getLogger("logmark")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(before)


@pytest.fixture(scope="module")
def state() -> DiskState:
    """A store with a sound session, one with a torn tail, one that is damaged and one without its head."""
    files = FaultyFiles()
    store = FileEventStore("/store", files=files, limits=LIMITS)
    for name in SESSIONS[:-1]:
        append_events(store, name, *make_events("a b"))
        append_events(store, name, *make_events("c"))
    store.close()
    place = "/store/sessions/{}/00000000000000000001.jsonl".format
    files.overwrite(place("torn"), files.content(place("torn")) + b'{"v":1,"seq":4,"batch":[4,4],"si')
    files.overwrite(place("bad"), files.content(place("bad")).replace(b'"text":"b"', b'"text":"X"'))
    headless = dict(cached_state(files.image()))
    del headless["/store/sessions/headless/head"]
    return headless


@dataclasses.dataclass
class Ledger:
    """What callers were told, by session."""

    told: dict[str, dict[int, str]] = dataclasses.field(default_factory=lambda: {name: {} for name in SESSIONS})
    in_doubt: dict[str, list[str]] = dataclasses.field(default_factory=lambda: {name: [] for name in SESSIONS})

    def append(self, store: FileEventStore, name: str, words: str) -> None:
        texts = words.split()
        (answer,) = append_answers(store, name, AppendRequest(make_events(words)))
        if isinstance(answer, Appended):
            self.told[name].update(enumerate(texts, answer.first_seq))
        elif isinstance(answer, AppendUncertain):
            self.in_doubt[name] += texts
        else:
            assert isinstance(answer, AppendRejected)


def tried(call: Callable[[], object]) -> None:
    """Call, and let only typed errors happen."""
    try:
        call()
    except LogmarkError:
        return


def read_whole(store: FileEventStore, name: str) -> None:
    list(store.read(name))


def use(store: FileEventStore, ledger: Ledger) -> None:
    """Do everything that a store can do, whether or not something before it has failed."""
    for name in SESSIONS:
        tried(functools.partial(read_whole, store, name))
        ledger.append(store, name, "d")
    ledger.append(store, "plain", "e f")
    ledger.append(store, "new", "d e f g")  # another segment
    tried(lambda: store.reserve("plain", 20))
    ledger.append(store, "headless", "f")
    ledger.append(store, "headless", "g")
    tried(lambda: list(store.read_backwards("plain")))
    tried(lambda: store.halt("torn", "why"))
    tried(lambda: list(store.read("torn", halted_ok=True)))
    tried(lambda: store.repair("torn"))
    ledger.append(store, "torn", "e")
    tried(lambda: store.repair("bad"))
    ledger.append(store, "bad", "e")
    tried(lambda: store.verify("bad"))
    tried(lambda: store.halt("headless", "why"))
    tried(lambda: store.clear_halt("headless"))
    ledger.append(store, "headless", "e")
    tried(lambda: list(store.sessions()))


def check(files: FaultyFiles, ledger: Ledger, *sessions: str) -> None:
    """Look at what is left with the eyes of another process, on a disk that is sound again."""
    store = FileEventStore("/store", files=files.another_process(), limits=LIMITS)
    for name in sessions or SESSIONS:
        if name == "bad" or store.halted(name) is not None:
            store.repair(name)
        assert [finding for finding in store.verify(name) if not finding.harmless] == []
        found = {event.event_seq or 0: texts_of([event])[0] for event in store.read(name)}
        texts = list(found.values())
        assert ledger.told[name].items() <= found.items(), (name, ledger.told[name], found)
        assert texts[: len(KNOWN[name])] == KNOWN[name]
        doubtful = [text for text in texts[len(KNOWN[name]) :] if text not in ledger.told[name].values()]
        assert set(doubtful) <= set(ledger.in_doubt[name]), (name, "rejected, and yet there")
        last = max(found, default=0)
        assert append_events(store, name, *make_events("next")).first_seq > last
    store.close()


def check_locks(files: FaultyFiles) -> None:
    """Look whether a failure has left a lock behind, which would keep other processes out for good."""
    other = files.another_process()
    for name in other.listdir("/store/sessions"):
        if "lock" in other.listdir(f"/store/sessions/{name}"):
            fd = other.open(f"/store/sessions/{name}/lock", write=True)
            assert other.lock(fd), f"{name} is still locked"
            other.close(fd)


@pytest.mark.parametrize(
    ("operation", "error"), FAILURES, ids=[f"{name}-{errno.errorcode[error]}" for name, error in FAILURES]
)
def test_any_operation_may_fail_once(state: DiskState, operation: str, error: int) -> None:
    first, step = (1 + (error == errno.ENOSPC), 2) if operation == "open" else (1, 1)  # which are many: either way
    for n in itertools.count(first, step):
        files, ledger = FaultyFiles(state), Ledger()
        files.fail(operation, n, error=error)
        try:
            store = FileEventStore("/store", files=files, limits=LIMITS)
        except LogmarkError:
            files.heal()
            store = FileEventStore("/store", files=files, limits=LIMITS)
        use(store, ledger)
        files.heal()
        check_locks(files)
        struck = any(done.error == error and done.name == operation for done in files.operations)
        store.close()

        assert files._open_files == {}, (n, sorted(file.node.path for file in files._open_files.values()))
        check(files, ledger)
        if not struck:
            assert n > first
            return


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "close"])
def test_an_append_may_be_interrupted_at_any_operation(operation: str, interruption: type[BaseException]) -> None:
    """What is raised in the middle, of a segment's making too, is rolled back, or in doubt and then halted."""

    def interrupt(_: object) -> None:
        struck.append(operation)
        raise interruption

    for n in itertools.count(1):
        files, ledger, struck = FaultyFiles(), Ledger(), list[str]()
        store = FileEventStore("/store", files=files, limits=LIMITS)
        files.call(operation, interrupt, n)
        for words in ("a", "b c", "d e f g", "h"):
            try:
                ledger.append(store, "new", words)
            except (KeyboardInterrupt, MemoryError):
                ledger.in_doubt["new"] += words.split()
        files.heal()
        check_locks(files)
        store.close()

        assert files._open_files == {}, (n, sorted(file.node.path for file in files._open_files.values()))
        check(files, ledger, "new")
        if not struck:
            return
