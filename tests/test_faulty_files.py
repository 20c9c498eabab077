"""The disk in memory: that it behaves as a real one, and that it forgets what a real one may forget."""

from __future__ import annotations

import errno
import itertools
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from logmark.storage import FileEventStore, Files, OsFiles, SessionBatch
from logmark.testing import ManualClock, encoded_event, request_of
from logmark.testing._disk import Disk, FileImage, Truncation, Write
from logmark.testing._faults import OPERATIONS, Crashed, Operation
from logmark.testing._faulty_files import FaultyFiles
from logmark.testing._power_cut import cached_state, file_states, power_cut_states, random_power_cut, synced_state

WAIT_S = 10.0


def write(files: Files, path: str, data: bytes, *, offset: int = 0, sync: bool = False) -> None:
    fd = files.open(path, write=True, create=True)
    files.write(fd, data, offset)
    if sync:
        files.sync(fd)
    files.close(fd)


def read(files: Files, path: str) -> bytes | None:
    try:
        fd = files.open(path, write=False)
    except FileNotFoundError:
        return None
    data = files.read(fd, 1_000_000, 0)
    files.close(fd)
    return data


def append(store: FileEventStore) -> None:
    store.append([SessionBatch("s", (request_of(encoded_event()),))])


# -- as a real disk -------------------------------------------------------------------------------------------------


FILES = ("a", "b", "d/a", "d/b")
DIRECTORIES = ("d", "e")


def comparable(name: str, result: Any) -> Any:
    """Return what two implementations must agree on."""
    if name in {"stat", "fstat"}:
        return result.st_size, result.st_nlink
    if name == "listdir":
        return sorted(result)
    return "a descriptor" if name == "open" else result


class Pair:
    """Makes the same calls on the operating system's files and on those in memory, and compares what comes of them."""

    def __init__(self, root: str) -> None:
        self.sides: tuple[Files, Files] = (OsFiles(), FaultyFiles({root: None}))
        self.fds: list[tuple[int, int]] = []
        self._root = root

    def call(self, name: str, *arguments: Any, on: tuple[int, int] | None = None, **options: Any) -> list[Any]:
        results: list[Any] = []
        said: list[Any] = []
        for side, files in enumerate(self.sides):
            given = arguments if on is None else (on[side], *arguments)
            try:
                results.append(getattr(files, name)(*given, **options))
                said.append(comparable(name, results[-1]))
            except OSError as error:
                said.append(errno.errorcode[error.errno or 0])
        assert said[0] == said[1], (name, arguments, options)
        return results

    def one_call(self, rng: random.Random) -> None:
        name = rng.choice((*OPERATIONS, "open", "open", "write", "write"))
        file = f"{self._root}/{rng.choice(FILES)}"
        directory = f"{self._root}/{rng.choice(DIRECTORIES)}"
        offset, size = rng.randrange(6000), rng.randrange(5000)
        if name == "open":
            create = rng.random() < 0.5
            path = rng.choice((file, file, file, directory, f"{file}/under"))
            options: dict[str, Any] = {"create": True, "exclusive": rng.random() < 0.2} if create else {}
            if len(results := self.call(name, path, write=create or rng.random() < 0.5, **options)) > 1:
                self.fds.append((results[0], results[1]))
        elif name in {"stat", "unlink"}:
            self.call(name, file)
        elif name == "rename":
            self.call(name, file, f"{file[:-1]}{rng.choice('abc')}")
        elif name in {"mkdir", "listdir", "sync_dir"}:
            self.call(name, rng.choice((directory, directory, f"{file}/under")))
        elif self.fds:
            on = rng.choice(self.fds)
            arguments = {"read": (size, offset), "write": (rng.randbytes(size), offset), "truncate": (offset,)}
            self.call(name, *arguments.get(name, ()), on=on)
            if name == "close":
                self.fds.remove(on)


@pytest.mark.parametrize("seed", range(8))
def test_it_answers_as_the_operating_system_does(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    pair = Pair(str(tmp_path))
    for _ in range(500):
        pair.one_call(rng)
    for fd, _ in pair.fds:
        pair.sides[0].close(fd)


# -- what a power cut leaves ----------------------------------------------------------------------------------------


def test_only_what_was_synced_is_sure_to_survive() -> None:
    files = FaultyFiles({"/d": None})
    write(files, "/d/named", b"synced", sync=True)
    files.sync_dir("/d")
    write(files, "/d/named", b"cached")
    write(files, "/d/nameless", b"synced", sync=True)

    files.restart()
    assert (read(files, "/d/named"), read(files, "/d/nameless")) == (b"cached", b"synced")
    files.power_cut()
    assert (read(files, "/d/named"), read(files, "/d/nameless")) == (b"synced", None)


def test_a_rename_happens_wholly_or_not_at_all() -> None:
    files = FaultyFiles({"/d/old": b"o", "/d/new": b"n"})
    files.rename("/d/old", "/d/new")

    assert {
        tuple(sorted((path, content) for path, content in state.items() if content is not None))
        for state in power_cut_states(files.image(), budget=100)
    } == {(("/d/new", b"n"), ("/d/old", b"o")), (("/d/new", b"o"),)}


def test_names_are_durable_independently_of_each_other() -> None:
    files = FaultyFiles({"/d/a": b""})
    files.unlink("/d/a")
    write(files, "/d/b", b"", sync=True)
    files.mkdir("/d/c")
    states = list(power_cut_states(files.image(), budget=100))

    assert {frozenset(path[-1] for path in state if len(path) > 2) for state in states} == {
        frozenset(names) for count in range(4) for names in itertools.combinations("abc", count)
    }


def test_a_torn_write_leaves_any_prefix_any_tail_of_nuls_and_any_of_its_blocks() -> None:
    old, new = b"o" * 10, b"n" * 1200
    states = file_states(FileImage(durable=old, cached=old + new, pending=(Write(10, new),)))

    assert states[:2] == (old, old + new)
    assert {old + b"n" * count for count in (1, 2, 61, 501, 502, 503, 1199)} <= set(states)
    assert old + bytes(1200) in states
    assert old + b"n" * 502 + bytes(698) in states
    assert old + bytes(502) + b"n" * 698 in states  # the first block missing, the others there
    assert all(state[:10] in (old, old[:10]) for state in states)


def test_a_short_write_is_torn_at_every_byte() -> None:
    states = set(file_states(FileImage(durable=b"12", cached=b"12abc", pending=(Write(2, b"abc"),))))

    assert states == {b"12", b"12a", b"12ab", b"12abc", b"12\0", b"12\0\0", b"12\0\0\0", b"12a\0\0", b"12ab\0"}


def test_a_truncation_may_be_lost_while_a_later_write_is_not() -> None:
    image = FileImage(durable=b"12345678", cached=b"12ab", pending=(Truncation(2), Write(2, b"ab")))

    assert {b"12345678", b"12", b"12ab", b"12ab5678"} <= set(file_states(image))


def test_a_failed_sync_is_not_made_good_by_the_next_one() -> None:
    """The pages count as clean from then on (Rebello et al., ATC'20), so that only writing again can save them."""
    files = FaultyFiles({"/f": b"before"})
    files.fail("sync")
    fd = files.open("/f", write=True)
    files.write(fd, b"behind", 0)
    with pytest.raises(OSError, match="Input/output"):
        files.sync(fd)
    files.sync(fd)
    image = files.image()

    assert files.read(fd, 100, 0) == b"behind"
    assert synced_state(image) == {"/f": b"before"}
    assert cached_state(image) == {"/f": b"behind"}

    files.write(fd, b"B", 0)  # the whole page is dirty again
    files.sync(fd)
    files.power_cut()
    assert read(files, "/f") == b"Behind"


def test_a_failed_sync_loses_its_pages_and_not_those_of_a_later_write() -> None:
    files = FaultyFiles({"/f": b""})
    files.fail("sync")
    fd = files.open("/f", write=True)
    files.write(fd, b"1" * 8192, 0)
    with pytest.raises(OSError, match="Input/output"):
        files.sync(fd)
    files.write(fd, b"2", 8192)
    files.sync(fd)
    files.power_cut()

    assert read(files, "/f") == bytes(8192) + b"2"


@pytest.mark.parametrize("seed", range(20))
def test_a_random_power_cut_is_one_of_the_legal_ones(seed: int) -> None:
    files = FaultyFiles({"/d": None})
    write(files, "/d/a", b"first", sync=True)
    files.sync_dir("/d")
    write(files, "/d/a", b"again", offset=5)
    write(files, "/d/b", b"other")
    image = files.image()
    legal = [dict(state) for state in power_cut_states(image, budget=100_000)]

    chosen = random_power_cut(image, random.Random(seed))

    assert chosen in legal
    files.power_cut(random.Random(seed))
    assert synced_state(files.image()) == cached_state(files.image()) == chosen


def test_a_disk_can_be_copied_with_all_that_is_pending() -> None:
    files = FaultyFiles({"/d/a": b"a"})
    write(files, "/d/a", b"pending", sync=False)
    files.rename("/d/a", "/d/b")
    copy = FaultyFiles(disk=Disk.of_image(files.image()))
    write(files, "/d/b", b"later")

    assert read(copy, "/d/b") == b"pending"
    copy.power_cut()
    assert (read(copy, "/d/a"), read(copy, "/d/b")) == (b"a", None)


# -- scripts --------------------------------------------------------------------------------------------------------


def test_a_failure_strikes_the_nth_operation_that_matches() -> None:
    files = FaultyFiles({"/a.log": b"", "/b": b""})
    log, other = files.open("/a.log", write=True), files.open("/b", write=True)
    files.fail("write", 2, error=errno.ENOSPC, path="*.log", times=2)

    files.write(other, b"1", 0)
    files.write(log, b"1", 0)
    for _ in range(2):
        with pytest.raises(OSError, match="No space") as caught:
            files.write(log, b"2", 1)
        assert caught.value.errno == errno.ENOSPC
    files.write(log, b"3", 1)

    assert read(files, "/a.log") == b"13"


def test_a_failure_lasts_until_the_disk_is_healed() -> None:
    files = FaultyFiles()
    files.fail("mkdir", error=errno.EROFS, times=None)
    for _ in range(3):
        with pytest.raises(OSError, match="Read-only"):
            files.mkdir("/d")
    files.heal()

    assert files.mkdir("/d")


def test_a_short_write_takes_the_beginning() -> None:
    files = FaultyFiles({"/f": b""})
    fd = files.open("/f", write=True)
    files.short("write", size=3)

    assert files.write(fd, b"12345", 0) == 3
    assert files.write(fd, b"45", 3) == 2
    assert read(files, "/f") == b"12345"


def test_an_operation_can_be_held_while_others_go_on() -> None:
    files = FaultyFiles({"/f": b""})
    held, go = threading.Event(), threading.Event()

    def hold(_: Operation) -> None:
        held.set()
        go.wait(WAIT_S)

    files.call("sync", hold)
    thread = threading.Thread(target=lambda: write(files, "/f", b"data", sync=True))
    thread.start()
    assert held.wait(WAIT_S)
    assert read(files, "/f") == b"data"
    assert synced_state(files.image()) == {"/f": b""}
    go.set()
    thread.join(WAIT_S)

    assert synced_state(files.image()) == {"/f": b"data"}


def test_a_crash_ends_the_process_and_nothing_else() -> None:
    files = FaultyFiles({"/lock": b""})
    other = files.another_process()
    fd, others_fd = files.open("/lock", write=True), other.open("/lock", write=True)
    assert files.lock(fd)
    assert not other.lock(others_fd)
    files.crash("write", 2)
    files.write(fd, b"1", 0)
    for _ in range(2):
        with pytest.raises(Crashed):
            files.write(fd, b"2", 0)
    with pytest.raises(Crashed):
        files.stat("/lock")

    assert files.crashed
    assert other.lock(others_fd)
    assert read(other, "/lock") == b"1"
    files.restart()
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.read(fd, 1, 0)
    assert read(files, "/lock") == b"1"


def test_a_crash_ends_the_wait_of_another_thread() -> None:
    files = FaultyFiles({"/f": b""})
    held, go = threading.Event(), threading.Event()
    died = threading.Event()

    def wait(_: Operation) -> None:
        held.set()
        go.wait(WAIT_S)

    def worker() -> None:
        try:
            write(files, "/f", b"data", sync=True)
        except Crashed:
            died.set()

    files.call("sync", wait)
    thread = threading.Thread(target=worker)
    thread.start()
    assert held.wait(WAIT_S)
    files.crash()
    with pytest.raises(Crashed):
        files.listdir("/")
    go.set()
    thread.join(WAIT_S)

    assert died.is_set()
    assert synced_state(files.image()) == {"/f": b""}


def test_a_lock_belongs_to_a_descriptor() -> None:
    files = FaultyFiles({"/lock": b""})
    one, two = files.open("/lock", write=True), files.open("/lock", write=True)

    assert files.lock(one)
    assert files.lock(one)
    assert not files.lock(two)
    files.unlock(two)
    assert not files.lock(two)
    files.close(one)
    assert files.lock(two)


def test_chance_is_repeatable() -> None:
    def course(seed: int) -> list[Operation]:
        files = FaultyFiles()
        files.fail_at_random(random.Random(seed), failure_rate=0.1, short_rate=0.1, crash_rate=0.02)
        for _ in range(20):
            try:
                append(FileEventStore("/store", files=files, clock=ManualClock()))
            except (OSError, Crashed):
                files.restart()
        return files.operations

    assert course(3) == course(3)
    assert course(3) != course(4)
    assert {operation.error for operation in course(3)} > {None, errno.ENOENT}


def test_every_call_is_recorded_with_its_process_and_its_file() -> None:
    files = FaultyFiles({"/d/a.new": b""})
    other = files.another_process()
    fd = files.open("/d/a.new", write=True)
    files.rename("/d/a.new", "/d/a")
    files.short("write", size=1)
    files.write(fd, b"12", 5)
    with pytest.raises(FileNotFoundError):
        other.stat("/d/b")

    assert files.operations is other.operations
    assert files.operations == [
        Operation(files.process, "open", "/d/a.new"),
        Operation(files.process, "rename", "/d/a"),
        Operation(files.process, "write", "/d/a", 5, 1),
        Operation(other.process, "stat", "/d/b", error=errno.ENOENT),
    ]


def test_a_script_for_no_operation_is_refused() -> None:
    files = FaultyFiles()
    with pytest.raises(ValueError, match="no operation 'fsync'"):
        files.fail("fsync")
    with pytest.raises(ValueError, match="only a write"):
        files.short("sync", size=1)


def test_many_threads_can_use_it_at_once() -> None:
    files = FaultyFiles({"/f": b""})

    def work(number: int) -> None:
        fd = files.open("/f", write=True)
        for turn in range(200):
            files.write(fd, bytes([number]), number * 200 + turn)
            files.sync(fd)
        files.close(fd)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    files.power_cut()

    assert read(files, "/f") == bytes(200) + b"".join(bytes([number]) * 200 for number in range(1, 5))
    assert len(files.operations) == 4 * 402 + 3
