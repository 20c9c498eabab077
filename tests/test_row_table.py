"""The table of rows is what a naive one is, whatever order the rows come in, and whenever they are looked at."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logmark.protocol import EnvelopeFields, Limits, RawEnvelope, RowMark, RowTable, encode_event, row_change


def change(seq: int, **fields: Any) -> RawEnvelope:
    """Return a stored event with these top-level fields."""
    envelope = EnvelopeFields("message", "id", timestamp="t", extensions=fields)
    return encode_event(envelope, None, Limits()).stamped("s", seq)


class Naive:
    """Rows by id, sorted whenever somebody looks."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, int]] = {}

    def apply(self, seq: int, row_id: str, position: int | None, absent_at: int) -> None:
        known = self.rows.get(row_id)
        if known is not None and (position is not None or absent_at < known[1]):
            self.rows[row_id] = (known[0], seq)
            return
        self.rows.pop(row_id, None)
        taken = {each for each, _ in self.rows.values()}
        self.rows[row_id] = (seq if position is None or position in taken else position, seq)

    def all(self) -> list[RowMark]:
        rows = sorted(self.rows.items(), key=lambda row: row[1])
        return [RowMark(row_id, *row) for row_id, row in rows]


CHANGES = st.tuples(
    st.just("change"),
    st.sampled_from("abcd"),
    st.none() | st.integers(1, 4) | st.integers(31, 36),
    st.sampled_from([0, 5, 20, 1000]),
)
LOOKS = st.tuples(st.sampled_from(["look", "keep", "prune"]), st.integers(1, 40), st.integers(0, 4), st.none())


@given(steps=st.lists(CHANGES | CHANGES | LOOKS, max_size=40))
def test_it_is_what_a_naive_one_is(steps: list[tuple[Any, ...]]) -> None:
    table, naive, seq, pruned = RowTable(), Naive(), 30, 1
    for what, first, second, third in steps:
        if what == "change":
            seq += 1
            position = None if second is None or second >= seq else second
            fields = {"row_id": first, "row_absent_at": third}
            table.apply([change(seq, **fields, **({} if position is None else {"row_position": position}))])
            naive.apply(seq, first, position, third)
        elif what == "keep":
            again = RowTable()
            again.restore(table.last_seq, RowTable.decoded(RowTable.encoded(table.copied())))
            again.prune(pruned, table.last_seq)
            table = again
        elif what == "prune":
            pruned = max(pruned, seq + 1 - first % 4)
            table.prune(pruned, seq)
            if table.last_seq:
                naive.rows = {row_id: row for row_id, row in naive.rows.items() if row[1] >= pruned}
        elif what == "look":
            before = [row for row in naive.all() if row.position < first]
            expected = before[-second:] if second else []
            assert table.page(before=first, after=None, limit=second) == (expected, 0 < second < len(before))
            after = [row for row in naive.all() if row.position > first]
            assert table.page(before=None, after=first, limit=second) == (after[:second], 0 < second < len(after))
        assert len(table) == len(naive.rows)
    assert table.all() == naive.all()
    assert [table.get(row.row_id) for row in naive.all()] == naive.all()


@given(places=st.permutations(range(1, 40)))
def test_rows_may_come_in_any_order(places: list[int]) -> None:
    """As they do when the events that created them were pruned."""
    table = RowTable()
    table.apply([change(100 + n, row_id=f"m{place}", row_position=place) for n, place in enumerate(places)])
    table.apply([change(200 + n, row_id=f"m{place}", row_position=place) for n, place in enumerate(places[:20])])
    assert [row.position for row in table.all()] == list(range(1, 40))
    assert {row.last_seq for row in table.all()} == {*range(200, 220), *range(120, 139)}


def test_a_change_that_was_folded_in_is_not_folded_in_again() -> None:
    table = RowTable()
    events = [change(1, row_id="a"), change(2, row_id="b"), change(3, row_id="a", row_position=1)]
    table.apply(events)
    table.apply(events[:2])
    assert table.all() == [RowMark("a", 1, 3), RowMark("b", 2, 2)]


def test_what_is_no_change_of_a_row_is_none() -> None:
    assert row_change(change(1)) is None
    assert row_change(change(1, row_id="")) is None
    assert row_change(change(1, row_id=["a"])) is None
    unnumbered = encode_event(
        EnvelopeFields("message", "id", timestamp="t", extensions={"row_id": "a"}), None, Limits()
    )
    assert row_change(unnumbered.stamped("s", None)) is None
    travelled = RawEnvelope.from_wire(b'{"type":"m","event_seq":3,"row_id":"a","row_position":2,"row_final":true}')
    found = row_change(travelled)
    assert found is not None
    assert (found.row_id, found.position, found.absent_at, found.final) == ("a", 2, 0, True)


@pytest.mark.parametrize("data", [b"[]", b'{"v":1}', b'{"v":1,"ids":["a"],"positions":[],"last_seqs":[]}', b"no"])
def test_what_is_no_form_of_rows_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        RowTable.decoded(data)
