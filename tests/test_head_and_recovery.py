"""What a crash, a copy or an editor leaves behind: the rows decide, the head is a hint, and nothing told is lost."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from logmark.protocol import Limits, LogCorrupt, row_seed
from logmark.storage import AppendRequest, FileEventStore
from logmark.storage._head import Head
from logmark.testing import CapturedLogs
from logmark.testing._faulty_files import FaultyFiles
from logmark.testing.conformance import append_answers, append_events, make_event, make_events, seqs_of, texts_of

SESSION = "s"
SEED = row_seed(SESSION)


class Place:
    """A store's directory with one session, whose files the tests rewrite between two openings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = path / "sessions" / SESSION
        self.log = self.directory / f"{1:020d}.jsonl"
        self.head = self.directory / "head"
        self.quarantine = self.directory / "quarantine"

    def open(self, **limits: int) -> FileEventStore:
        return FileEventStore(self.path, limits=Limits(**limits), durability="os")  # no test here cuts the power

    def write(self, *requests: str) -> None:
        """Append one commit for each text, with an event for each of its words."""
        store = self.open()
        for words in requests:
            append_events(store, SESSION, *make_events(words))
        store.close()

    def decoded_head(self) -> Head | None:
        return Head.decode(self.head.read_bytes(), SEED)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "store")


def lower(place: Place) -> None:
    """Leave the head of the first commit, as a power cut may do with a file that is not synced."""
    rows = place.log.read_bytes().splitlines(keepends=True)
    place.head.write_bytes(Head(1, 1, 1, len(rows[0] + rows[1])).encode(SEED))


def lower_and_wrong(place: Place) -> None:
    place.head.write_bytes(Head(1, 1, 1, 123).encode(SEED))


def from_the_beginning(place: Place) -> None:
    place.head.write_bytes(Head(0, 0, 1, 0).encode(SEED))


def of_another_segment(place: Place) -> None:
    place.head.write_bytes(Head(3, 3, 77, 1).encode(SEED))


def deleted(place: Place) -> None:
    place.head.unlink()


def emptied(place: Place) -> None:
    place.head.write_bytes(b"")


def nulled(place: Place) -> None:
    place.head.write_bytes(bytes(len(place.head.read_bytes())))


def garbage(place: Place) -> None:
    place.head.write_bytes(random.Random(5).randbytes(200))


def cut(place: Place) -> None:
    place.head.write_bytes(place.head.read_bytes()[:-20])


def flipped(place: Place) -> None:
    data = bytearray(place.head.read_bytes())
    data[40] ^= 1
    place.head.write_bytes(data)


def of_another_session(place: Place) -> None:
    place.head.write_bytes(Head(900, 900, 1, 90_000).encode(row_seed("another")))


TRAILING = [lower, lower_and_wrong, from_the_beginning, of_another_segment]
UNUSABLE = [deleted, emptied, nulled, garbage, cut, flipped, of_another_session]


@pytest.mark.parametrize("change", [*TRAILING, *UNUSABLE])
@pytest.mark.parametrize("first_step", ["append", "read", "read_backwards", "last_seq", "info"])
def test_the_rows_decide_whatever_the_head_says(
    place: Place, change: Callable[[Place], None], first_step: str, logs: CapturedLogs
) -> None:
    """Rows 7 and 9: a head that trails, is absent or is damaged costs no event, no number and no session."""
    place.write("a", "b c")
    change(place)
    store = place.open()

    if first_step == "read":
        assert texts_of(store.read(SESSION)) == ["a", "b", "c"]
    elif first_step == "read_backwards":
        assert texts_of(store.read_backwards(SESSION)) == ["c", "b", "a"]
    elif first_step == "last_seq":
        assert store.last_seq(SESSION) == 3
    elif first_step == "info":
        assert (store.info(SESSION).last_seq, store.info(SESSION).next_seq) == (3, 4)
    assert append_events(store, SESSION, make_event("d")).first_seq == 4
    assert texts_of(store.read(SESSION)) == ["a", "b", "c", "d"]
    assert texts_of(store.read_backwards(SESSION)) == ["d", "c", "b", "a"]
    assert store.verify(SESSION) == []
    rebuilt = logs.named("head_rebuilt", session=SESSION)
    assert [each["level"] for each in rebuilt] == (["warning"] if change in UNUSABLE else [])


@pytest.mark.parametrize("change", [deleted, emptied, garbage])
def test_a_head_that_is_lost_while_the_store_is_open_is_rebuilt(place: Place, change: Callable[[Place], None]) -> None:
    """Row 9: as above, for a process that has used the session before."""
    place.write("a")
    store = place.open()
    append_events(store, SESSION, *make_events("b c"))
    change(place)

    assert store.last_seq(SESSION) == 3
    assert texts_of(store.read(SESSION)) == ["a", "b", "c"]
    change(place)
    assert append_events(store, SESSION, make_event("d")).first_seq == 4
    assert texts_of(place.open().read(SESSION)) == ["a", "b", "c", "d"]


def test_another_head_file_is_noticed_by_readers(place: Place) -> None:
    """Row 9: a descriptor of a head that was removed says nothing about the log any more."""
    place.write("a")
    one, two = place.open(), place.open()
    append_events(one, SESSION, make_event("b"))
    place.head.unlink()
    append_events(two, SESSION, make_event("c"))

    assert one.last_seq(SESSION) == 3
    assert texts_of(one.read(SESSION)) == ["a", "b", "c"]


def test_the_head_equals_the_log_after_each_append(place: Place) -> None:
    """Row 10: number, reservation, segment and size, each time."""
    store = place.open(segment_bytes_max=2000)
    for seq in range(1, 40):
        append_events(store, SESSION, make_event("x" * (seq * 7 % 300)))
        last = max(place.directory.glob("*.jsonl"))
        assert place.decoded_head() == Head(seq, seq, int(last.stem), last.stat().st_size)
    store.reserve(SESSION, 50)
    head = place.decoded_head()
    assert head is not None
    assert (head.seq, head.through) == (39, 50)


def test_other_files_mint_no_numbers(place: Place) -> None:
    """Row 15: whatever else lies in a session's directory, the next number is that after the last row."""
    place.write("a b")
    for name in ("checkpoint", "marks.json", f"{500:020d}.json", f"{500:020d}.jsonl.bak", "cursor"):
        (place.directory / name).write_text('{"seq":500,"through":500}\n')
    store = place.open()

    assert append_events(store, SESSION, make_event("c")).first_seq == 3
    assert seqs_of(place.open().read(SESSION)) == [1, 2, 3]


def test_a_reservation_is_told_from_lost_rows(place: Place) -> None:
    """Rows 8 and 33: a head ahead of the rows is loss, unless a row says that the numbers were reserved."""
    place.write("a b c")
    store = place.open()
    store.reserve(SESSION, 41)
    store.close()
    assert append_events(place.open(), SESSION, make_event("d")).first_seq == 42

    rows = place.log.read_bytes().splitlines(keepends=True)
    assert b'"reserved":4' in rows[4]
    place.log.write_bytes(b"".join(rows[:4]))  # the reservation and the event after it are gone
    (error,) = append_answers(place.open(), SESSION, AppendRequest(make_events("e")))
    assert isinstance(error, LogCorrupt)
    assert (error.event_seq, error.segment) == (4, place.log.name)
    assert "4 to 42" in error.reason


@pytest.mark.parametrize("with_head", [True, False], ids=["head", "no head"])
def test_every_cut_of_an_unacknowledged_commit_is_survived(place: Place, with_head: bool, logs: CapturedLogs) -> None:
    """Rows 28, 30 and 31: wherever a crash cut the last write, it is there wholly or not at all, and appends go on."""
    place.write("a", "b c")
    told, head = place.log.read_bytes(), place.head.read_bytes()
    place.write("v w x y z")
    written = place.log.read_bytes()

    for size in range(len(told), len(written) + 1):
        place.log.write_bytes(written[:size])
        if with_head:
            place.head.write_bytes(head)
        else:
            place.head.unlink()
        store = place.open()
        whole = size >= len(written) - 1  # only the newline may be missing
        kept = ["a", "b", "c", *(["v", "w", "x", "y", "z"] if whole else [])]

        assert texts_of(store.read(SESSION)) == kept
        assert append_events(store, SESSION, make_event("next")).first_seq == len(kept) + 1
        assert texts_of(store.read(SESSION)) == [*kept, "next"]
        assert texts_of(store.read_backwards(SESSION)) == ["next", *reversed(kept)]
        assert place.log.read_bytes().startswith(written if whole else told)
        quarantined = sorted(place.quarantine.iterdir()) if place.quarantine.exists() else []
        remains = written[len(told) : size]
        assert [path.read_bytes() for path in quarantined] == ([] if whole or not remains else [remains])
        assert [each["bytes"] for each in logs.named("torn_tail_cut")] == [
            len(each.read_bytes()) for each in quarantined
        ]
        for path in quarantined:
            path.unlink()
        logs._events.clear()
        store.close()


@pytest.mark.parametrize(
    "remains",
    [
        pytest.param(lambda commit: bytes(1), id="one NUL"),
        pytest.param(lambda commit: bytes(5000), id="NULs in place of a block"),
        pytest.param(lambda commit: commit[:200] + bytes(3000), id="size updated before data"),
        pytest.param(lambda commit: bytes(len(commit)), id="all NULs"),
        pytest.param(lambda commit: bytes(100) + commit[100:], id="later page kept, earlier lost"),
        pytest.param(lambda commit: commit[:250] + bytes(40) + commit[290:], id="hole in the middle"),
        pytest.param(lambda commit: commit[:-1] + b"\x00", id="last byte lost"),
        pytest.param(lambda commit: b"\n\n" + commit[:50], id="blank lines, then a beginning"),
        pytest.param(lambda commit: random.Random(9).randbytes(777), id="noise"),
        pytest.param(lambda commit: b'{"v"', id="the first bytes of a row"),
        pytest.param(lambda commit: b'{"v":1,"seq":', id="a row's prefix"),
        pytest.param(lambda commit: b'{"v":1,"seq":4', id="part of a number"),
    ],
)
def test_what_a_power_cut_leaves_of_an_unacknowledged_commit_is_put_aside(
    place: Place, remains: Callable[[bytes], bytes]
) -> None:
    """Rows 28 and 31: blocks may be missing anywhere in what was never synced."""
    place.write("a", "b c")
    told, head = place.log.read_bytes(), place.head.read_bytes()
    place.write("v w x y z")
    commit = place.log.read_bytes()[len(told) :]
    left = remains(commit)
    place.log.write_bytes(told + left)
    place.head.write_bytes(head)
    reading = place.open()
    assert texts_of(reading.read(SESSION)) == ["a", "b", "c"]

    assert append_events(place.open(), SESSION, make_event("d")).first_seq == 4
    assert texts_of(reading.read(SESSION)) == ["a", "b", "c", "d"]
    assert place.log.read_bytes().startswith(told)
    assert b"".join(path.read_bytes() for path in place.quarantine.iterdir()).strip(b"\n") == left.strip(b"\n")
    assert reading.verify(SESSION) == []


@pytest.mark.parametrize("beginning", [b"{", b'{"v"', b'{"v":1,"seq":', b'{"v":1,"seq":4', b"\x00" * 50, b"\xff{"])
def test_a_write_in_progress_disturbs_no_reader(place: Place, beginning: bytes) -> None:
    """Row 36: bytes beyond the head are not yet events, whichever way and from wherever one reads."""
    place.write("a", "b c")
    store = place.open()
    assert store.last_seq(SESSION) == 3
    with place.log.open("ab") as log:
        log.write(beginning)

    assert store.last_seq(SESSION) == 3
    for seq in range(1, 5):
        assert texts_of(store.read(SESSION, from_seq=seq)) == ["a", "b", "c"][seq - 1 :]
        assert texts_of(store.read_backwards(SESSION, before_seq=seq)) == ["a", "b", "c"][: seq - 1][::-1]
    assert texts_of(store.read_backwards(SESSION)) == ["c", "b", "a"]
    assert texts_of(store.read(SESSION, halted_ok=True)) == ["a", "b", "c"]


@pytest.mark.parametrize("head_there", [True, False], ids=["head", "no head"])
@pytest.mark.parametrize("first_step", ["append", "read", "read_halted_ok", "read_backwards"])
def test_a_last_row_without_its_newline_is_whole(place: Place, head_there: bool, first_step: str) -> None:
    """Row 29: an editor or a copy took the last byte; the next append must not glue its row to this one."""
    place.write("a", "b c")
    place.log.write_bytes(place.log.read_bytes()[:-1])
    if not head_there:
        place.head.unlink()
    store = place.open()

    if first_step == "read":
        assert texts_of(store.read(SESSION)) == ["a", "b", "c"]
    elif first_step == "read_halted_ok":
        assert texts_of(store.read(SESSION, halted_ok=True)) == ["a", "b", "c"]
    elif first_step == "read_backwards":
        assert texts_of(store.read_backwards(SESSION)) == ["c", "b", "a"]
    assert append_events(store, SESSION, make_event("d")).first_seq == 4
    assert texts_of(store.read(SESSION)) == ["a", "b", "c", "d"]
    assert place.log.read_bytes().count(b"\n") == 5
    assert not place.quarantine.exists()
    assert store.verify(SESSION) == []


@pytest.mark.parametrize("while_open", [True, False], ids=["while the store is open", "between two openings"])
@pytest.mark.parametrize("blank", [b"\n", b"\n\n\n"], ids=["one", "three"])
def test_blank_lines_disturb_nobody(place: Place, while_open: bool, blank: bytes) -> None:
    """Row 16: wherever an editor leaves blank lines, reads and later appends go on."""
    place.write("a", "b c", "d")
    written, head = place.log.read_bytes(), place.head.read_bytes()
    ends = [index + 1 for index, byte in enumerate(written) if byte == 0x0A]
    assert len(ends) == 5

    for at in ends:
        store = place.open()
        assert store.last_seq(SESSION) == 4
        if not while_open:
            store.close()
        place.log.write_bytes(written[:at] + blank + written[at:])
        if not while_open:
            store = place.open()
        for seq in range(1, 6):
            assert texts_of(store.read(SESSION, from_seq=seq)) == ["a", "b", "c", "d"][seq - 1 :]
            assert texts_of(store.read_backwards(SESSION, before_seq=seq)) == ["a", "b", "c", "d"][: seq - 1][::-1]
        assert append_events(store, SESSION, make_event("e")).first_seq == 5
        assert texts_of(store.read(SESSION)) == ["a", "b", "c", "d", "e"]
        assert texts_of(store.read_backwards(SESSION)) == ["e", "d", "c", "b", "a"]
        assert store.verify(SESSION) == []
        store.close()
        place.log.write_bytes(written)
        place.head.write_bytes(head)


def test_a_blank_line_left_in_the_middle_of_an_open_session_is_appended_after(place: Place) -> None:
    """Row 16: the writer believes to know where the log ends, and looks again."""
    store = place.open()
    append_events(store, SESSION, make_event("a"))
    with place.log.open("ab") as log:
        log.write(b"\n\n")

    assert append_events(store, SESSION, make_event("b")).first_seq == 2
    assert append_events(store, SESSION, make_event("c")).first_seq == 3
    assert texts_of(store.read(SESSION)) == ["a", "b", "c"]
    assert not place.quarantine.exists()


def test_recovery_can_be_repeated(place: Place) -> None:
    """Row 28: opening again after a recovery finds nothing more to do, and quarantine keeps what each one took."""
    place.write("a")
    for turn in range(3):
        with place.log.open("ab") as log:
            log.write(b"remains %d" % turn)
        place.write(f"x{turn}")
        before = place.log.read_bytes()
        assert texts_of(place.open().read(SESSION)) == ["a", *(f"x{index}" for index in range(turn + 1))]
        assert place.log.read_bytes() == before

    kept = {path.read_bytes() for path in place.quarantine.iterdir()}
    assert kept == {b"remains 0", b"remains 1", b"remains 2"}


def test_an_older_copy_in_place_of_an_open_log_is_refused(place: Place) -> None:
    """Rows 33 and 54: a process that told higher numbers does not give them to other events."""
    place.write("a", "b")
    old_log, old_head = place.log.read_bytes(), place.head.read_bytes()
    store = place.open()
    append_events(store, SESSION, *make_events("c d"))
    place.log.write_bytes(old_log)
    place.head.write_bytes(old_head)

    for _ in range(2):
        (error,) = append_answers(store, SESSION, AppendRequest(make_events("e")))
        assert isinstance(error, LogCorrupt)
        assert error.event_seq == 3
    assert place.log.read_bytes() == old_log


@pytest.mark.parametrize("gone", ["log", "log and head", "everything"])
def test_a_log_that_vanishes_while_it_is_open_is_refused(place: Place, gone: str) -> None:
    """Row 54: removed files do not make the session begin anew under the feet of its writer."""
    store = place.open()
    append_events(store, SESSION, *make_events("a b"))
    names = {"log": ["log"], "log and head": ["log", "head"], "everything": ["log", "head"]}[gone]
    for name in names:
        getattr(place, name).unlink()
    if gone == "everything":
        (place.directory / "lock").unlink()

    (error,) = append_answers(store, SESSION, AppendRequest(make_events("c")))
    assert isinstance(error, LogCorrupt)
    assert "1 to 2" in error.reason
    assert not place.log.exists()


def test_a_lost_log_is_reported_after_a_restart(place: Place) -> None:
    """Row 33: a head without rows is loss, for whoever looks first."""
    place.write("a b")
    place.log.unlink()

    for look in (
        lambda store: append_events(store, SESSION, make_event()),
        lambda store: list(store.read(SESSION)),
        lambda store: store.last_seq(SESSION),
        lambda store: store.info(SESSION),
    ):
        with pytest.raises(LogCorrupt) as caught:
            look(place.open())
        assert caught.value.event_seq == 1
    assert [finding.kind for finding in place.open().verify(SESSION)] == ["lost"]
    assert list(place.open().sessions()) == [SESSION]


@pytest.mark.parametrize("times", [1, 2, 1000], ids=["once", "twice", "from now on"])
def test_a_head_that_cannot_be_written_hides_nothing_from_its_writer(
    place: Place, times: int, monkeypatch: pytest.MonkeyPatch, logs: CapturedLogs
) -> None:
    """Row 10: the events are durable and told, so their writer reads them, whatever happens to the hint."""
    store = place.open()
    append_events(store, SESSION, make_event("a"))
    written = store._env.files.write
    left = [times]

    def write(fd: int, data: bytes, offset: int, /) -> int:
        if data.startswith(b"logmark-head") and left[0]:
            left[0] -= 1
            raise OSError(28, os.strerror(28))
        return written(fd, data, offset)

    monkeypatch.setattr(type(store._env.files), "write", staticmethod(write))
    for seq in (2, 3):
        assert append_events(store, SESSION, make_event("b")).first_seq == seq
        assert store.last_seq(SESSION) == seq
        assert seqs_of(store.read(SESSION)) == list(range(1, seq + 1))
    assert bool(logs.named("head_write_failed", level="warning")) == (times > 1)  # once, it is tried again at once
    monkeypatch.undo()
    assert seqs_of(place.open().read(SESSION)) == [1, 2, 3]


@pytest.mark.parametrize("then", ["look", "close"])
def test_a_head_that_was_refused_is_offered_again(then: str, logs: CapturedLogs) -> None:
    """Row 10: or who follows in another process would wait for the next append to see what was acknowledged."""
    files = FaultyFiles()
    limits = Limits(lock_wait_s=0.01)
    writer = FileEventStore("/store", files=files, limits=limits)
    reader = FileEventStore("/store", files=files.another_process(), limits=limits)
    append_events(writer, SESSION, make_event("a"))
    assert reader.last_seq(SESSION) == 1
    files.fail("write", error=errno.ENOSPC, path="head", times=4)
    assert append_events(writer, SESSION, make_event("b")).first_seq == 2
    assert reader.last_seq(SESSION) == 1
    assert writer.last_seq(SESSION) == 2
    assert reader.last_seq(SESSION) == 1
    assert len(logs.named("head_write_failed")) == 1

    if then == "look":
        assert writer.last_seq(SESSION) == 2
    else:
        writer.close()
    assert reader.last_seq(SESSION) == 2
    assert texts_of(reader.read(SESSION)) == ["a", "b"]
