"""Rows: what a session's upserts leave, folded from its events. A row stands where it was created, whatever changes it.

An upsert is an event with further top-level fields:

* ``row_id``: which row it creates or changes;
* ``row_position``: where the row stands, the number of the event that created it; absent in that event itself;
* ``row_absent_at``: in an event that means to create the row: up to this event, its writer saw no such row;
* ``row_final``: true in the change that the row's writer called its last.

With its position in every change, a row stays in its place when the event that created it is pruned. ``row_absent_at``
tells apart two ways to "create" a row that is there: it was created by somebody else at the same time, and then the
first one counts; or its writer saw that it had been pruned, and then this is a new row.
"""

from __future__ import annotations

import dataclasses
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, cast

import orjson

from ._envelope import RawEnvelope

__all__ = ["ROW_FIELDS", "RowChange", "RowMark", "RowTable", "row_change"]

ROW_FIELDS = frozenset({"row_id", "row_position", "row_absent_at", "row_final"})
_VERSION = 1
_HINT = b'"row_id":'


@dataclasses.dataclass(frozen=True, slots=True)
class RowChange:
    """What an event says of a row.

    Attributes:
        position: where the row stands, as its writer knew; None in an event that means to create it.
        absent_at: up to this event the writer saw no such row; 0 when it did not look.
    """

    row_id: str
    position: int | None
    absent_at: int
    final: bool


@dataclasses.dataclass(frozen=True, slots=True)
class RowMark:
    """Where a row stands and which event has its content."""

    row_id: str
    position: int
    last_seq: int


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def row_change(event: RawEnvelope) -> RowChange | None:
    """Return what an event says of a row; None when it is no upsert."""
    head = event.head_json
    if head is not None and _HINT not in head:  # most events are not, and need not be decoded to be told so
        return None
    members: Mapping[str, Any] = event.fields.extensions
    row_id = members.get("row_id")
    if event.event_seq is None or not isinstance(row_id, str) or not row_id:
        return None
    position = _number(members.get("row_position"))
    if position is not None and position >= event.event_seq:
        position = None  # no row was created after its own change
    return RowChange(row_id, position, _number(members.get("row_absent_at")) or 0, members.get("row_final") is True)


class RowTable:
    """The fold of a session's events into rows. Not thread-safe.

    Events are applied in order of their numbers; an event at or below ``last_seq`` was applied before and is ignored.
    A row takes some 150 bytes and its id; its content stays in the log.
    """

    def __init__(self) -> None:
        self.last_seq = 0
        self._positions = array("q")  # ascending, and beside each what else is known of its row
        self._last_seqs = array("q")
        self._ids: list[str] = []
        self._places: dict[str, int] = {}
        self._late: dict[str, RowMark] = {}  # rows that belong between these: put there together when somebody looks
        self._late_positions: set[int] = set()
        self._has_gaps = False  # places of rows that are gone
        self._first_available = 1

    def __len__(self) -> int:
        return len(self._places) + len(self._late)

    def apply(self, events: Iterable[RawEnvelope]) -> None:
        """Fold events in."""
        for event in events:
            seq = event.event_seq
            if seq is None or seq <= self.last_seq:
                continue
            change = row_change(event)
            if change is not None:
                self._apply(change, seq)
            self.last_seq = seq

    def _apply(self, change: RowChange, seq: int) -> None:
        known = self.get(change.row_id)
        if known is not None:
            is_new = change.position is None and change.absent_at >= known.last_seq
            if not is_new:
                self._change(known, seq)
                return
            self._remove(change.row_id)
        position = change.position
        if position is None or self._is_taken(position):
            position = seq
        self._insert(RowMark(change.row_id, position, seq))

    def _is_taken(self, position: int) -> bool:
        if position in self._late_positions:
            return True
        places = range(bisect_left(self._positions, position), bisect_right(self._positions, position))
        # A row that is gone leaves its place to whoever brings it back.
        return any(self._places.get(self._ids[place]) == place for place in places)

    def _change(self, known: RowMark, seq: int) -> None:
        place = self._places.get(known.row_id)
        if place is None:
            self._late[known.row_id] = RowMark(known.row_id, known.position, seq)
        else:
            self._last_seqs[place] = seq

    def _insert(self, row: RowMark) -> None:
        if self._positions and row.position < self._positions[-1]:  # its creation was pruned
            self._late[row.row_id] = row
            self._late_positions.add(row.position)
            return
        self._places[row.row_id] = len(self._ids)
        self._positions.append(row.position)
        self._last_seqs.append(row.last_seq)
        self._ids.append(row.row_id)

    def _remove(self, row_id: str) -> None:
        late = self._late.pop(row_id, None)
        if late is not None:
            self._late_positions.discard(late.position)
        self._has_gaps = self._places.pop(row_id, None) is not None or self._has_gaps

    def _settle(self) -> None:
        """Put every row in its place."""
        if self._late or self._has_gaps:
            self._set([*map(self._at, self._places.values()), *self._late.values()])

    def _set(self, rows: Iterable[RowMark]) -> None:
        ordered = sorted(rows, key=lambda row: row.position)
        self._positions = array("q", [row.position for row in ordered])
        self._last_seqs = array("q", [row.last_seq for row in ordered])
        self._ids = [row.row_id for row in ordered]
        self._places = {row_id: place for place, row_id in enumerate(self._ids)}
        self._late, self._late_positions, self._has_gaps = {}, set(), False

    def prune(self, first_available: int, through_seq: int) -> None:
        """Forget the rows whose content is no longer there, unless some of the log up to then is not yet folded in.

        Args:
            first_available: the first event that is there.
            through_seq: the last one that was there at that time.
        """
        if first_available <= self._first_available or self.last_seq < min(first_available - 1, through_seq):
            return
        self._first_available = first_available
        for row in self.all():
            if row.last_seq < first_available:
                self._remove(row.row_id)

    def get(self, row_id: str) -> RowMark | None:
        """Return one row, or None."""
        place = self._places.get(row_id)
        return self._late.get(row_id) if place is None else self._at(place)

    def _at(self, place: int) -> RowMark:
        return RowMark(self._ids[place], self._positions[place], self._last_seqs[place])

    def page(self, *, before: int | None, after: int | None, limit: int) -> tuple[list[RowMark], bool]:
        """Return the newest rows, those right below a position or right above one, and whether there are more."""
        self._settle()
        if after is not None:
            start = bisect_right(self._positions, after)
            end = min(len(self._ids), start + limit)
            has_more = end < len(self._ids)
        else:
            end = len(self._ids) if before is None else bisect_left(self._positions, before)
            start = max(0, end - limit)
            has_more = start > 0
        return [self._at(place) for place in range(start, end)], has_more and limit > 0

    def all(self) -> list[RowMark]:
        """Return every row, ordered by position."""
        self._settle()
        return [self._at(place) for place in range(len(self._ids))]

    def beginnings(self, first_available: int, first_kept: int) -> list[RowMark]:
        """Return where the rows stand of which a pruning leaves changes and not the creation, each as of the pruning.

        The changes say so too, but for one that meant to create the row itself and came second. Rows of which that was
        so already are here as well: the pruning that is to come may yet fail.
        """
        found: list[RowMark] = []
        for row in self.all():
            if row.position < first_kept <= row.last_seq:
                found.append(RowMark(row.row_id, row.position, first_kept - 1))
            elif row.position < first_available <= row.last_seq:
                found.append(RowMark(row.row_id, row.position, first_available - 1))
        return found

    def copied(self) -> tuple[list[str], array[int], array[int]]:
        """Return ids, positions and last numbers as they are now, cheaply, for ``encoded``."""
        self._settle()
        return list(self._ids), self._positions[:], self._last_seqs[:]

    @staticmethod
    def encoded(copied: tuple[list[str], array[int], array[int]]) -> bytes:
        """Return rows as bytes for a later run."""
        ids, positions, last_seqs = copied
        return orjson.dumps(
            {"v": _VERSION, "ids": ids, "positions": positions.tolist(), "last_seqs": last_seqs.tolist()}
        )

    @staticmethod
    def encoded_rows(rows: Iterable[RowMark]) -> bytes:
        """Return rows as bytes for a later run."""
        table = RowTable()
        table.restore(0, rows)
        return RowTable.encoded(table.copied())

    @staticmethod
    def decoded(data: bytes) -> list[RowMark]:
        """Return rows that were encoded before.

        Raises:
            ValueError: they are of another version.
        """
        try:
            members = cast("dict[str, Any]", orjson.loads(data))
            if members["v"] != _VERSION:
                raise ValueError("it is of another version")
            columns = zip(members["ids"], members["positions"], members["last_seqs"], strict=True)
            return [RowMark(row_id, position, last_seq) for row_id, position, last_seq in columns]
        except (KeyError, TypeError) as error:
            message = f"it is not of the form of rows: {error!r}"
            raise ValueError(message) from error

    def restore(self, last_seq: int, rows: Iterable[RowMark]) -> None:
        """Begin with rows that were folded before, from all events up to ``last_seq``."""
        self._set(rows)
        self.last_seq = last_seq
