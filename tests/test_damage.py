"""Damage to what was acknowledged: found, named and left alone; never read as something else, never numbered over."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from logmark.protocol import AppendError, Limits, LogCorrupt, SchemaMismatch
from logmark.storage import Appended, AppendRequest, FileEventStore
from logmark.testing.conformance import append_answers, append_events, make_events, seqs_of, texts_of

SESSION = "s"
TEXTS = ["a", "b", "c", "d", "e", "f"]
COMMITS = ("a", "b c", "d", "e f")


class Place:
    """A closed log of six events in four commits, for the tests to damage."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: list[FileEventStore] = []
        self.log = path / "sessions" / SESSION / f"{1:020d}.jsonl"
        self.head = self.log.parent / "head"
        store = self.open()
        for name in (SESSION, "other"):
            for words in COMMITS:
                append_events(store, name, *make_events(words))
        store.close()
        self.sound = self.log.read_bytes()
        self.sound_head = self.head.read_bytes()
        self.lines = self.sound.splitlines(keepends=True)
        """The header, then a line for each event: its number is its index."""
        self.offsets = list(itertools.accumulate((len(line) for line in self.lines), initial=0))

    def open(self) -> FileEventStore:
        # No test here cuts the power.
        store = FileEventStore(self.path, durability="os", limits=Limits(lock_wait_s=0.2))
        self._opened.append(store)
        return store

    def close_all(self) -> None:
        """Close what was opened: a test of every byte would run out of descriptors."""
        while self._opened:
            self._opened.pop().close()

    def damage(self, log: bytes) -> None:
        """Put other bytes in place of the log, under the head that it had."""
        self.log.write_bytes(log)
        self.head.write_bytes(self.sound_head)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "store")


def upwards(store: FileEventStore, from_seq: int, *, halted_ok: bool = False) -> tuple[list[str], AppendError | None]:
    """Return what a read yields, and the error that ends it."""
    found: list[str] = []
    try:
        for event in store.read(SESSION, from_seq=from_seq, halted_ok=halted_ok):
            found += texts_of([event])
    except (LogCorrupt, SchemaMismatch) as error:
        return found, error
    return found, None


def downwards(store: FileEventStore, before_seq: int) -> tuple[list[str], AppendError | None]:
    found: list[str] = []
    try:
        for event in store.read_backwards(SESSION, before_seq=before_seq):
            found += texts_of([event])
    except (LogCorrupt, SchemaMismatch) as error:
        return found, error
    return found, None


def check_that_no_read_lies(store: FileEventStore) -> bool:
    """Check every read from every number: what it yields is right, and it ends by itself only at the end.

    Return whether everything could be read.
    """
    for seq in range(1, len(TEXTS) + 2):
        for found, error, whole in (
            (*upwards(store, seq), TEXTS[seq - 1 :]),
            (*downwards(store, seq), TEXTS[: seq - 1][::-1]),
        ):
            assert found == whole[: len(found)]
            assert error is not None or found == whole
    found, error = upwards(store, 1, halted_ok=True)
    assert found == TEXTS[: len(found)]
    return upwards(store, 1) == (TEXTS, None)


def check_that_no_number_is_given_twice(place: Place, damaged: bytes) -> None:
    """Check that an append gets a new number, or an error that has changed nothing."""
    (answer,) = append_answers(place.open(), SESSION, AppendRequest(make_events("new")))
    if isinstance(answer, AppendError):
        assert isinstance(answer, LogCorrupt | SchemaMismatch)
        assert place.log.read_bytes() == damaged
    else:
        assert answer == Appended(len(TEXTS) + 1, len(TEXTS) + 1)
        assert place.log.read_bytes().startswith(damaged.rstrip(b"\n"))


@contextlib.contextmanager
def caught_at(seq: int, segment: str, offset: int) -> Iterator[None]:
    with pytest.raises(LogCorrupt) as caught:
        yield
    error = caught.value
    assert (error.session_id, error.event_seq, error.segment, error.offset) == (SESSION, seq, segment, offset)


def test_damage_in_the_interior_is_named(place: Place) -> None:
    """Row 32: the number and the byte offset, after the good events before it, in either direction."""
    at = place.offsets[2]
    damaged = place.sound.replace(b'{"text":"b"}', b'{"text":"B"}')
    place.damage(damaged)
    store = place.open()

    reader = store.read(SESSION)
    assert texts_of([next(reader)]) == ["a"]
    with caught_at(2, place.log.name, at):
        next(reader)
    found, error = downwards(store, 7)
    assert found == ["f", "e", "d", "c"]
    assert isinstance(error, LogCorrupt)
    assert (error.event_seq, error.offset) == (2, at)
    (finding,) = store.verify(SESSION)
    assert (finding.kind, finding.harmless, finding.event_seq, finding.place) == (
        "damage",
        False,
        2,
        f"{place.log.name}:{at}",
    )
    assert texts_of(store.read(SESSION, from_seq=3)) == ["c", "d", "e", "f"]
    assert upwards(store, 1, halted_ok=True)[0] == ["a"]
    assert place.log.read_bytes() == damaged


def test_every_flip_of_every_byte_is_found_or_harmless(place: Place) -> None:
    """Row 32: in the log and in the head, one bit, the case bit, all bits."""
    for path, sound in ((place.log, place.sound), (place.head, place.sound_head)):
        for index, mask in zip(range(len(sound)), itertools.cycle((0x01, 0x20, 0xFF, 0x80))):
            flipped = bytearray(sound)
            flipped[index] ^= mask
            place.damage(place.sound)
            path.write_bytes(flipped)
            store = place.open()

            findings = store.verify(SESSION)
            clean = check_that_no_read_lies(store)
            assert clean or [finding for finding in findings if not finding.harmless], (path.name, index, mask)
            if path == place.head:
                assert clean
            assert list(store.sessions()) == ["other", SESSION]
            store.close()


def test_no_flip_of_a_byte_makes_a_number_used_twice(place: Place) -> None:
    """Row 34: as above, for the append that comes first."""
    for index, mask in zip(range(len(place.sound)), itertools.cycle((0xFF, 0x01))):
        flipped = bytearray(place.sound)
        flipped[index] ^= mask
        place.damage(bytes(flipped))
        check_that_no_number_is_given_twice(place, bytes(flipped))


def test_every_cut_of_acknowledged_data_is_reported(place: Place) -> None:
    """Rows 30 and 33: the loss is named, the good prefix is readable, and nothing is appended or removed."""
    for size in range(len(place.sound) - 1):
        cut = place.sound[:size]
        place.damage(cut)
        whole = sum(end - 1 <= size for end in place.offsets[2:])  # a row may lack its newline

        for look in (
            lambda store: append_events(store, SESSION, *make_events("new")),
            lambda store: store.reserve(SESSION, 99),
            lambda store: store.last_seq(SESSION),
            lambda store: store.info(SESSION),
            lambda store: list(store.read(SESSION)),
            lambda store: list(store.read_backwards(SESSION)),
        ):
            with pytest.raises(LogCorrupt) as caught:
                look(place.open())
            assert caught.value.event_seq is not None
            assert caught.value.event_seq <= whole + 1
        assert [finding for finding in place.open().verify(SESSION) if not finding.harmless]
        found, error = upwards(place.open(), 1, halted_ok=True)
        assert (found, type(error)) == (TEXTS[:whole], LogCorrupt)
        assert place.log.read_bytes() == cut
        place.close_all()


def test_cuts_without_a_head_leave_the_whole_commits_readable(place: Place) -> None:
    """Row 30: with the head gone too, nobody can tell a commit that was cut off from one that was never there."""
    place.head.unlink()
    for size in range(len(place.lines[0]), len(place.sound)):
        place.log.write_bytes(place.sound[:size])
        whole = sum(end - 1 <= size for end in place.offsets[2:])

        found, error = upwards(place.open(), 1, halted_ok=True)
        assert (found, error) == (TEXTS[: max(end for end in (0, 1, 3, 4, 6) if end <= whole)], None)
    for size in range(len(place.lines[0])):
        place.log.write_bytes(place.sound[:size])
        with pytest.raises(LogCorrupt):
            list(place.open().read(SESSION, halted_ok=True))


def without(lines: list[bytes], index: int) -> list[bytes]:
    return lines[:index] + lines[index + 1 :]


def twice(lines: list[bytes], index: int) -> list[bytes]:
    return lines[: index + 1] + lines[index:]


def swapped(lines: list[bytes], index: int) -> list[bytes]:
    other = index % (len(lines) - 1) + 1
    lines = lines[:]
    lines[index], lines[other] = lines[other], lines[index]
    return lines


def repeated_at_the_end(lines: list[bytes], index: int) -> list[bytes]:
    return [*lines, lines[index]]


def moved_to_the_end(lines: list[bytes], index: int) -> list[bytes]:
    return [*without(lines, index), lines[index]]


def blanked(lines: list[bytes], index: int) -> list[bytes]:
    return [*lines[:index], b"\n", *lines[index + 1 :]]


def glued(lines: list[bytes], index: int) -> list[bytes]:
    return [*lines[:index], lines[index].rstrip(b"\n"), *lines[index + 1 :]]


def renumbered(lines: list[bytes], index: int) -> list[bytes]:
    line = lines[index].replace(b'"seq":%d' % index, b'"seq":%d' % (index + 3))
    return [*lines[:index], line, *lines[index + 1 :]]


CHANGES = [without, twice, swapped, repeated_at_the_end, moved_to_the_end, blanked, glued, renumbered]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("index", range(1, 7))
def test_rows_that_were_moved_about_are_noticed(
    place: Place, change: Callable[[list[bytes], int], list[bytes]], index: int
) -> None:
    """Rows 32 to 34: deleted, duplicated, swapped, moved, blanked out, glued to the next or renumbered rows."""
    damaged = b"".join(change(place.lines, index))
    if damaged.rstrip(b"\n") == place.sound.rstrip(b"\n"):
        return  # nothing was moved; that a last row without its newline is whole, test_head_and_recovery.py says
    place.damage(damaged)
    store = place.open()

    assert [finding for finding in store.verify(SESSION) if not finding.harmless]
    assert not check_that_no_read_lies(store)
    store.close()
    check_that_no_number_is_given_twice(place, damaged)


@pytest.mark.parametrize("index", range(1, 7))
def test_a_row_of_another_session_is_noticed(place: Place, index: int) -> None:
    """Row 32: its number fits and its checksum is right, but not for this session."""
    other = (place.path / "sessions" / "other" / place.log.name).read_bytes().splitlines(keepends=True)
    damaged = b"".join([*place.lines[:index], other[index], *place.lines[index + 1 :]])
    place.damage(damaged)
    store = place.open()

    assert [finding for finding in store.verify(SESSION) if not finding.harmless]
    assert not check_that_no_read_lies(store)
    found, error = upwards(store, 1, halted_ok=True)
    assert (found, type(error)) == (TEXTS[: index - 1], LogCorrupt)
    store.close()
    check_that_no_number_is_given_twice(place, damaged)


def test_a_log_copied_from_another_session_is_refused(place: Place) -> None:
    """Row 32: the error names the session that it belongs to; so does a directory renamed by hand."""
    place.damage((place.path / "sessions" / "other" / place.log.name).read_bytes())

    with pytest.raises(LogCorrupt, match="other"):
        list(place.open().read(SESSION, halted_ok=True))
    (error,) = append_answers(place.open(), SESSION, AppendRequest(make_events("new")))
    assert isinstance(error, LogCorrupt)
    assert "'other'" in error.reason
    (place.path / "sessions" / "other").rename(place.path / "sessions" / "renamed")
    with pytest.raises(LogCorrupt, match="other"):
        append_events(place.open(), "renamed", *make_events("new"))


def test_an_old_row_appended_by_hand_is_refused(place: Place) -> None:
    """Row 34: also by a process that has the session open, and twice, so that no number is used again."""
    store = place.open()
    append_events(store, SESSION, *make_events("g"))
    with place.log.open("ab") as log:
        log.write(place.lines[2])
    damaged = place.log.read_bytes()

    for writer in (store, store, place.open()):
        (error,) = append_answers(writer, SESSION, AppendRequest(make_events("new")))
        assert isinstance(error, LogCorrupt)
        assert (error.event_seq, error.offset) == (8, len(damaged) - len(place.lines[2]))
        assert "row 2" in error.reason
    assert place.log.read_bytes() == damaged
    assert texts_of(place.open().read(SESSION, halted_ok=True)) == [*TEXTS, "g"]


def test_missing_rows_at_the_end_of_an_open_session_are_noticed(place: Place) -> None:
    """Row 33: by the readers of a process that has looked at the session before."""
    store = place.open()
    assert store.last_seq(SESSION) == 6
    place.damage(b"".join(place.lines[:5]))

    assert not check_that_no_read_lies(store)
    assert upwards(store, 6)[1] is not None
    assert downwards(store, 7)[1] is not None


def row(**members: object) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode() + b"\n"


FOREIGN = {
    "a later version": (row(v=2, seq=7, batch=[7, 7], kind="event", crc="00000000"), 2),
    "a later version that looks alike": (row(v=10, seq=7, batch=[7, 7], size=2, type="t", payload={}), 10),
    "an old shape without a version": (
        row(session_id=SESSION, sequence=7, timestamp="2025-01-01T00:00:00Z", event={"type": "t", "payload": {}}),
        None,
    ),
    "an old shape of one member": (row(seq=7), None),
    "a version that is text": (row(v="1", seq=7), "1"),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("index", [7, 4], ids=["at the end", "in the middle"])
def test_rows_of_another_schema_fail_closed(place: Place, name: str, index: int) -> None:
    """Rows 17 and 18: a typed error that says what was expected and what was found, not a parse error."""
    line, version = FOREIGN[name]
    damaged = b"".join([*place.lines[:index], line, *place.lines[index:]])
    place.damage(damaged)
    store = place.open()

    found, error = upwards(store, 1, halted_ok=True)
    assert found == TEXTS[: index - 1]
    if index == 4:
        assert error is not None
    errors = [error] if error is not None else []
    if index == 7:
        for look in (
            lambda: store.last_seq(SESSION),
            lambda: store.info(SESSION),
            lambda: list(store.read(SESSION)),
            lambda: list(store.read_backwards(SESSION)),
            lambda: append_events(store, SESSION, *make_events("new")),
            lambda: store.reserve(SESSION, 99),
        ):
            with pytest.raises(SchemaMismatch) as caught:
                look()
            errors.append(caught.value)
    for each in errors:
        assert isinstance(each, SchemaMismatch)
        assert (each.session_id, each.expected, each.found) == (SESSION, 1, version)
        assert (each.segment, each.offset) == (place.log.name, place.offsets[index])
    assert "schema" in [finding.kind for finding in store.verify(SESSION) if not finding.harmless]
    assert place.log.read_bytes() == damaged


def test_a_segment_of_another_schema_fails_closed(place: Place) -> None:
    """Row 17: its first line says the version before any row does."""
    header = place.lines[0].replace(b'"v":1', b'"v":2')
    place.damage(b"".join([header, *place.lines[1:]]))

    for look in (
        lambda: append_events(place.open(), SESSION, *make_events("new")),
        lambda: place.open().last_seq(SESSION),
        lambda: list(place.open().read(SESSION)),
        lambda: list(place.open().read(SESSION, halted_ok=True)),
    ):
        with pytest.raises(SchemaMismatch) as caught:
            look()
        assert (caught.value.expected, caught.value.found) == (1, 2)
    assert [finding.kind for finding in place.open().verify(SESSION)] == ["schema"]


def test_damage_in_one_session_concerns_no_other(place: Place) -> None:
    """Row 4: the others are read and appended to, and all are listed."""
    place.damage(b"not a log at all\n")
    store = place.open()

    assert texts_of(store.read("other")) == TEXTS
    assert append_events(store, "other", *make_events("g")) == Appended(7, 7)
    assert list(store.sessions()) == ["other", SESSION]


def test_the_good_prefix_is_readable_without_a_head(place: Place) -> None:
    """Row 32: two faults at once leave nothing to go by but the rows."""
    place.damage(b"".join([*place.lines[:4], b'{"v":1,"seq":4,"x":0}\n', *place.lines[5:]]))
    place.head.unlink()

    assert seqs_of(place.open().read(SESSION, halted_ok=True)) == [1, 2, 3]
    with pytest.raises(LogCorrupt):
        place.open().last_seq(SESSION)
