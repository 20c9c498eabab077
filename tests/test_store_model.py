"""Random calls on real engines against the simplest model that could be right: a list of events per session.

A failure prints the shortest sequence of calls that shows it, and the line that repeats it.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from logmark.protocol import (
    AppendError,
    CursorAhead,
    EventIdConflict,
    Limits,
    RecordChanged,
    SeqPruned,
    SessionDeleted,
    SessionHalted,
    SessionSealed,
    WrongExpectedSeq,
)
from logmark.storage import Appended, AppendRequest, EventStore, FileEventStore, MemoryEventStore, Record
from logmark.testing.conformance import append_batch, make_event, raised_by, seqs_of, texts_of

SESSIONS = ("a", "B", "\N{PILE OF POO}/..")
LIMITS = Limits(segment_bytes_max=900, read_chunk_bytes=113, open_sessions_max=2)

sessions = st.sampled_from(SESSIONS)
stores = st.integers(0, 1)
seqs = st.integers(-1, 60)
events = st.lists(st.tuples(st.none() | st.sampled_from("uvwxyz"), st.integers(0, 400)), min_size=1, max_size=4)
requests = st.lists(st.tuples(events, st.none() | st.integers(-3, 1)), min_size=1, max_size=4)


@dataclasses.dataclass
class Model:
    """What a session should be."""

    seqs: list[int] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)
    ids: dict[str, int] = dataclasses.field(default_factory=dict)
    through: int = 0
    halt: str | None = None
    pruned_seq: int = 0
    first_available: int = 1
    sealed: bool = False
    deleted: bool = False
    records: dict[str, Record] = dataclasses.field(default_factory=dict)

    @property
    def last_seq(self) -> int:
        return self.seqs[-1] if self.seqs else self.pruned_seq

    @property
    def refusal(self) -> type[AppendError] | None:
        """What everything is refused with that changes the events."""
        return SessionDeleted if self.deleted else SessionHalted if self.halt is not None else None

    def append(self, request: AppendRequest, texts: list[str]) -> Appended | type[AppendError]:
        """Return the answer that the request should get, and take it in."""
        if self.refusal is not None:
            return self.refusal
        ids = [event.id for event in request.events]
        if len(set(ids)) < len(ids):
            return EventIdConflict
        found = [self.ids[event_id] for event_id in ids if event_id in self.ids]
        if found:
            whole = found == list(range(found[0], found[0] + len(ids)))
            return Appended(found[0], found[-1], written=False) if whole else EventIdConflict
        if self.sealed:
            return SessionSealed
        if request.expected_seq not in {None, self.last_seq}:
            return WrongExpectedSeq
        first = self.through + 1
        for event_id, text in zip(ids, texts, strict=True):
            self.through += 1
            self.seqs.append(self.through)
            self.texts.append(text)
            self.ids[event_id] = self.through
        return Appended(first, self.through)

    def truncate_before(self, seq: int) -> None:
        """Take in that the events below a number are gone."""
        if seq > self.first_available:
            self.pruned_seq = max([0, *(each for each in (*self.seqs, self.pruned_seq) if each < seq)])
            kept = [index for index, each in enumerate(self.seqs) if each >= seq]
            self.texts = [self.texts[index] for index in kept]
            self.seqs = [self.seqs[index] for index in kept]
            self.ids = {event_id: each for event_id, each in self.ids.items() if each >= seq}
            self.first_available = seq

    def delete(self) -> None:
        """Take in that nothing is left but a tombstone."""
        if not self.deleted:
            through = self.through
            self.__init__()  # type: ignore[misc]
            self.deleted, self.through, self.pruned_seq, self.first_available = True, through, through, through + 1


class StoreMachine(RuleBasedStateMachine):
    """Two stores on the same data; an engine that cannot share gives the same store twice."""

    def __init__(self) -> None:
        super().__init__()
        self.models = {name: Model() for name in SESSIONS}
        self.stores: list[EventStore] = []
        self.written = 0

    def open(self) -> EventStore:
        raise NotImplementedError

    @initialize()
    def open_both(self) -> None:
        self.stores = [self.open(), self.open()]

    def teardown(self) -> None:
        for store in self.stores:
            store.close()

    @rule(at=stores, session=sessions, batch=requests)
    def append(self, at: int, session: str, batch: list[tuple[list[tuple[str | None, int]], int | None]]) -> None:
        model = self.models[session]
        before = model.last_seq
        made: list[AppendRequest] = []
        expected: list[Appended | type[AppendError]] = []
        for drawn, offset in batch:
            texts: list[str] = []
            for _, size in drawn:
                self.written += 1
                texts.append(f"{self.written}{'.' * size}")
            made.append(
                AppendRequest(
                    tuple(make_event(text, id=event_id) for (event_id, _), text in zip(drawn, texts, strict=True)),
                    None if offset is None else max(0, model.last_seq + offset),
                )
            )
            expected.append(model.append(made[-1], texts))

        result = append_batch(self.stores[at], session, *made)

        assert [each if isinstance(each, Appended) else type(each) for each in result.answers] == expected
        assert (result.last_seq_before, result.last_seq) == (before, model.last_seq)

    @rule(at=stores, session=sessions, from_seq=seqs, through_seq=st.none() | seqs)
    def read(self, at: int, session: str, from_seq: int, through_seq: int | None) -> None:
        model = self.models[session]
        store = self.stores[at]
        if model.deleted or max(1, from_seq) < model.first_available:
            kind = SessionDeleted if model.deleted else SeqPruned
            read = functools.partial(store.read, session, from_seq=from_seq, through_seq=through_seq)
            raised_by(kind, read, halted_ok=True)
            raised_by(SessionHalted if model.halt else kind, read)
            return
        if model.halt is not None:
            raised_by(SessionHalted, lambda: list(store.read(session, from_seq=from_seq, through_seq=through_seq)))
        found = list(store.read(session, from_seq=from_seq, through_seq=through_seq, halted_ok=True))
        until = model.through if through_seq is None else through_seq
        wanted = [index for index, seq in enumerate(model.seqs) if from_seq <= seq <= until]
        assert seqs_of(found) == [model.seqs[index] for index in wanted]
        assert texts_of(found) == [model.texts[index] for index in wanted]

    @rule(at=stores, session=sessions, before_seq=st.none() | seqs)
    def read_backwards(self, at: int, session: str, before_seq: int | None) -> None:
        model = self.models[session]
        if model.refusal is not None:
            raised_by(model.refusal, lambda: list(self.stores[at].read_backwards(session, before_seq=before_seq)))
            return
        found = list(self.stores[at].read_backwards(session, before_seq=before_seq))
        wanted = [index for index, seq in enumerate(model.seqs) if before_seq is None or seq < before_seq][::-1]
        assert seqs_of(found) == [model.seqs[index] for index in wanted]
        assert texts_of(found) == [model.texts[index] for index in wanted]

    @rule(at=stores, session=sessions, offset=st.integers(-2, 9))
    def reserve(self, at: int, session: str, offset: int) -> None:
        model = self.models[session]
        through = max(0, model.through + offset)
        if model.refusal is not None or model.sealed:
            raised_by(model.refusal or SessionSealed, lambda: self.stores[at].reserve(session, through))
            return
        self.stores[at].reserve(session, through)
        model.through = max(model.through, through)

    @rule(at=stores, session=sessions, offset=st.integers(-12, 2))
    def truncate_before(self, at: int, session: str, offset: int) -> None:
        model = self.models[session]
        seq = model.through + offset
        if model.refusal is not None:
            raised_by(model.refusal, self.stores[at].truncate_before, session, seq)
        elif offset > 1:
            raised_by(CursorAhead, self.stores[at].truncate_before, session, seq)
        else:
            model.truncate_before(seq)
            assert self.stores[at].truncate_before(session, seq) == model.first_available

    @precondition(lambda self: self.written > 12)
    @rule(at=stores, session=sessions)
    def seal(self, at: int, session: str) -> None:
        model = self.models[session]
        if model.refusal is not None:
            raised_by(model.refusal, self.stores[at].seal, session)
        else:
            assert self.stores[at].seal(session) == model.last_seq
            model.sealed = True

    @precondition(lambda self: self.written > 12)
    @rule(at=stores, session=sessions)
    def delete(self, at: int, session: str) -> None:
        self.stores[at].delete(session)
        self.models[session].delete()

    @rule(at=stores, session=sessions, name=st.sampled_from("pq"), data=st.none() | st.binary(max_size=3))
    def save_record(self, at: int, session: str, name: str, data: bytes | None) -> None:
        model = self.models[session]
        known = model.records.get(name)
        version = 0 if known is None else known.version
        save = functools.partial(self.stores[at].save_record, session, name, data)
        if model.deleted:
            raised_by(SessionDeleted, save, version=version)
            return
        raised_by(RecordChanged, save, version=version + 1)
        if data is None:
            assert save(version=version) == 0
            model.records.pop(name, None)
        else:
            assert save(version=version) == version + 1
            model.records[name] = Record(data, version + 1)

    @rule(at=stores, session=sessions, reason=st.sampled_from(["first", "second"]))
    def halt(self, at: int, session: str, reason: str) -> None:
        if self.models[session].deleted:
            raised_by(SessionDeleted, self.stores[at].halt, session, reason)
            return
        self.stores[at].halt(session, reason)
        self.models[session].halt = self.models[session].halt or reason

    @rule(at=stores, session=sessions)
    def clear_halt(self, at: int, session: str) -> None:
        if self.models[session].deleted:
            raised_by(SessionDeleted, self.stores[at].clear_halt, session)
            return
        self.stores[at].clear_halt(session)
        self.models[session].halt = None

    @rule(at=stores, session=sessions)
    def repair(self, at: int, session: str) -> None:
        steps = self.stores[at].repair(session)
        assert bool(steps) == (self.models[session].halt is not None)
        self.models[session].halt = None

    @rule(at=stores)
    def reopen(self, at: int) -> None:
        self.stores[at].close()
        self.stores[at] = self.open()

    @rule(at=stores, session=sessions)
    def verify(self, at: int, session: str) -> None:
        kinds = [finding.kind for finding in self.stores[at].verify(session) if not finding.harmless]
        assert kinds == ["halt"] * (self.models[session].halt is not None)

    @invariant()
    def positions_agree(self) -> None:
        for store in self.stores:
            for name, model in self.models.items():
                info = store.info(name)
                assert (info.last_seq, info.next_seq, info.halted) == (model.last_seq, model.through + 1, model.halt)
                assert store.last_seq(name) == model.last_seq
                assert (info.first_available, info.deleted) == (model.first_available, model.deleted)
                assert info.sealed == model.sealed
                if model.halt is None:
                    assert info.first_seq == (model.seqs[0] if model.seqs else 0)
                if not model.deleted:
                    assert store.records(name) == model.records

    @invariant()
    def listings_agree(self) -> None:
        written = sorted(name for name, model in self.models.items() if model.through and not model.deleted)
        deleted = {name for name, model in self.models.items() if model.deleted}
        for store in self.stores:
            assert [name for name in store.sessions() if name in written] == written
            assert not deleted.intersection(store.sessions())


class MemoryMachine(StoreMachine):
    """The memory engine, whose two stores are one."""

    def open(self) -> EventStore:
        return self.stores[0] if self.stores else MemoryEventStore()

    @initialize()
    def open_both(self) -> None:
        self.stores = [MemoryEventStore()] * 2


class FileMachine(StoreMachine):
    """The file engine with a segment for every few rows; heads and lock files get lost now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="logmark-model-")

    def open(self) -> EventStore:
        return FileEventStore(self.directory.name, limits=LIMITS, durability="os")

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()

    @rule(content=st.sampled_from([None, b"", b"garbage"]))
    def lose_a_head(self, content: bytes | None) -> None:
        heads = sorted(Path(self.directory.name).glob("sessions/*/head"))
        for head in heads[:1]:
            head.unlink()
            if content is not None:
                head.write_bytes(content)

    @rule()
    def lose_the_lock_files(self) -> None:
        for lock in Path(self.directory.name).glob("sessions/*/lock"):
            lock.unlink()

    @precondition(lambda self: self.written > 0)
    @rule(at=stores, remains=st.sampled_from([b"\n", b"{", b'{"v":1,"seq":', b"\x00" * 70]))
    def crash_in_the_middle_of_a_write(self, at: int, remains: bytes) -> None:
        self.stores[at].close()
        for log in sorted(Path(self.directory.name).glob("sessions/*/*.jsonl"))[-1:]:
            with log.open("ab") as file:
                file.write(remains)
        self.stores[at] = self.open()


_SETTINGS = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TestMemoryEngine = MemoryMachine.TestCase
TestMemoryEngine.settings = _SETTINGS
TestFileEngine = FileMachine.TestCase
TestFileEngine.settings = _SETTINGS
