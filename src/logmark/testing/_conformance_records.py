"""What an engine promises of records: small, durable, beside a session's log, replaced by compare and swap."""

from __future__ import annotations

from ..protocol import RecordChanged
from ..storage import Appended, EventStore, Record
from ._conformance_base import StoreHarness, append_events, make_event, make_events, raised_by, run_together, seqs_of
from ._conformance_read import ODD_SESSION_IDS

__all__ = ["RecordConformance", "TwoStoresRecordConformance"]

S = "session"


class RecordConformance(StoreHarness):
    """Records are kept, replaced on condition, and do not touch the log."""

    def test_a_record_is_kept(self) -> None:
        """With its version, which counts how often it was replaced; also after a restart."""
        store = self.opened()
        assert store.load_record(S, "ui") is None
        assert store.records(S) == {}
        assert store.save_record(S, "ui", b"one", version=0) == 1
        assert store.load_record(S, "ui") == Record(b"one", 1)
        assert store.save_record(S, "ui", b"two", version=1) == 2

        for seen in self.before_and_after_restart(store):
            assert seen.load_record(S, "ui") == Record(b"two", 2)
            assert seen.load_record(S, "other") is None
            assert seen.records(S) == {"ui": Record(b"two", 2)}

    def test_a_record_that_was_replaced_is_not_replaced_unseen(self) -> None:
        """Whoever holds an older version is told the one there is."""
        store = self.opened()
        store.save_record(S, "ui", b"one", version=0)
        store.save_record(S, "ui", b"two", version=1)

        for seen in self.before_and_after_restart(store):
            for version in (0, 1, 3):
                error = raised_by(RecordChanged, seen.save_record, S, "ui", b"no", version=version)
                assert (error.session_id, error.name, error.version) == (S, "ui", 2)
            error = raised_by(RecordChanged, seen.save_record, S, "ui", None, version=1)
            assert error.version == 2
            error = raised_by(RecordChanged, seen.save_record, S, "absent", b"no", version=1)
            assert error.version == 0
            assert seen.records(S) == {"ui": Record(b"two", 2)}

    def test_a_record_is_removed(self) -> None:
        """And may be made again, from version 1."""
        store = self.opened()
        store.save_record(S, "ui", b"one", version=0)
        store.save_record(S, "other", b"", version=0)
        assert store.save_record(S, "ui", None, version=1) == 0

        seen = store
        for seen in self.before_and_after_restart(store):
            assert seen.load_record(S, "ui") is None
            assert seen.records(S) == {"other": Record(b"", 1)}
            assert seen.save_record(S, "ui", None, version=0) == 0
        assert self.reopened(seen).save_record(S, "ui", b"again", version=0) == 1

    def test_records_have_names_of_every_kind(self) -> None:
        """Each is a record of its own, and they come in the order of their names."""
        store = self.opened()
        for name in ODD_SESSION_IDS:
            assert store.save_record(S, name, name.encode(), version=0) == 1

        for seen in self.before_and_after_restart(store):
            found = seen.records(S)
            assert list(found) == sorted(ODD_SESSION_IDS)
            assert all(record == Record(name.encode(), 1) for name, record in found.items())
            assert seen.load_record(S, "../../etc/passwd") == Record(b"../../etc/passwd", 1)
            assert list(seen.sessions()) == []

    def test_records_hold_bytes_of_every_kind(self) -> None:
        """Nothing, every byte there is, and much."""
        store = self.opened()
        contents = {"empty": b"", "bytes": bytes(range(256)), "lines": b"\n\r\n\x00\n", "much": b"\xff{" * 50_000}
        for name, data in contents.items():
            store.save_record(S, name, data, version=0)

        for seen in self.before_and_after_restart(store):
            assert {name: record.data for name, record in seen.records(S).items()} == contents

    def test_records_belong_to_their_session(self) -> None:
        """The same name in another session, odd or not, is another record."""
        store = self.opened()
        for name in ("a", "A", "a/b", "a%2fb", "..", "\N{PILE OF POO}"):
            store.save_record(name, "ui", name.encode(), version=0)
        for seen in self.before_and_after_restart(store):
            for name in ("a", "A", "a/b", "a%2fb", "..", "\N{PILE OF POO}"):
                assert seen.records(name) == {"ui": Record(name.encode(), 1)}

    def test_records_do_not_touch_the_log(self) -> None:
        """Nor does the log touch them: events, reservations, pruning, a seal and a halt leave them alone."""
        store = self.opened()
        store.save_record(S, "ui", b"1", version=0)
        assert list(store.sessions()) == []
        assert store.info(S).next_seq == 1
        assert append_events(store, S, *make_events("a b", ids=["x", "y"])) == Appended(1, 2)
        store.save_record(S, "ui", b"2", version=1)
        assert append_events(store, S, make_event(id="x")) == Appended(1, 1, written=False)
        assert append_events(store, S, make_event("c")) == Appended(3, 3)
        store.truncate_before(S, 2)
        store.save_record(S, "ui", b"3", version=2)
        store.seal(S)
        store.save_record(S, "ui", b"4", version=3)
        store.halt(S, "why")
        store.save_record(S, "ui", b"5", version=4)

        seen = store
        for seen in self.before_and_after_restart(store):
            assert seen.load_record(S, "ui") == Record(b"5", 5)
            assert seen.records(S) == {"ui": Record(b"5", 5)}
        seen = self.reopened(seen)
        seen.repair(S)
        assert seen.load_record(S, "ui") == Record(b"5", 5)
        assert seqs_of(seen.read(S, from_seq=2)) == [2, 3]
        assert seen.verify(S) == []


class TwoStoresRecordConformance(StoreHarness):
    """Two stores see and respect each other's records."""

    def test_each_store_sees_the_records_of_the_other(self) -> None:
        """At once, and compares with them."""
        one, two = self.two_stores()
        one.save_record(S, "ui", b"one", version=0)
        assert two.load_record(S, "ui") == Record(b"one", 1)
        raised_by(RecordChanged, two.save_record, S, "ui", b"no", version=0)
        two.save_record(S, "ui", b"two", version=1)
        assert one.records(S) == {"ui": Record(b"two", 2)}
        raised_by(RecordChanged, one.save_record, S, "ui", b"no", version=1)
        one.save_record(S, "ui", None, version=2)
        assert two.load_record(S, "ui") is None

    def test_of_two_who_replace_a_record_one_is_told(self) -> None:
        """Two count in one record at once, and no step is lost."""
        one, two = self.two_stores()

        def count(store: EventStore) -> None:
            for _ in range(20):
                while True:
                    found = store.load_record(S, "count") or Record(b"0", 0)
                    try:
                        version = store.save_record(S, "count", b"%d" % (int(found.data) + 1), version=found.version)
                    except RecordChanged:
                        continue
                    assert version == found.version + 1
                    break

        run_together(lambda: count(one), lambda: count(two))
        assert one.load_record(S, "count") == Record(b"40", 40)
