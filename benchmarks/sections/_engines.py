"""logmark's engines, each beside plain clients of the same server or database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

from logmark.errors import MissingExtra

from ..harness import Shape
from ..participants import Missing, Participant
from ..report import Row
from ._base import Context, Field

__all__ = ["ENGINES", "engines"]

SHAPES = (Shape(callers=1), Shape(callers=16), Shape(callers=64))
_Opened = Generator[list[Participant], None, None]


def engines(context: Context) -> list[Row]:
    """Blocking callers; the limit is a client written for the same work, which commits all that waits at once."""
    rows: list[Row] = []
    for title, opened in ENGINES.items():
        try:
            with opened(context) as participants:
                field = Field(context, participants, names_missing=False)
                rows += [row for shape in SHAPES for row in field.bout("engines", shape, title=f"{title}: ")]
        except (Missing, MissingExtra) as error:
            note = str(error)
            rows.append(Row(section="engines", work=f"{title}: all", participant=f"logmark on {title}", note=note))
    return rows


@contextlib.contextmanager
def _all_open(context: Context, *participants: Participant) -> _Opened:
    with contextlib.ExitStack() as stack:
        for participant in participants:
            context.check_slowed(participant)
            stack.callback(participant.close)
            participant.open(context.place(participant.name))
        yield list(participants)


@contextlib.contextmanager
def _sqlite(context: Context) -> _Opened:
    from ..participants._engines import LogmarkOnSqlite, SqliteEach, SqliteGrouped

    with _all_open(context, SqliteGrouped(), LogmarkOnSqlite(), SqliteEach()) as participants:
        yield participants


@contextlib.contextmanager
def _postgres(context: Context) -> _Opened:
    from ..participants._engines import LogmarkOnPostgres, PostgresEach, PostgresGrouped

    each = PostgresEach()
    with (
        _all_open(context, each),  # which starts the server for all
        _all_open(context, PostgresGrouped(each), LogmarkOnPostgres(each)) as others,
    ):
        yield [*others, each]


@contextlib.contextmanager
def _nats(context: Context) -> _Opened:
    from ..participants._nats_engine import LogmarkOnNats, NatsEach, NatsGrouped

    each = NatsEach()
    with (
        _all_open(context, each),  # which starts the server for all
        _all_open(context, NatsGrouped(each), LogmarkOnNats(each)) as others,
    ):
        yield [*others, each]


ENGINES: dict[str, Callable[[Context], contextlib.AbstractContextManager[list[Participant]]]] = {
    "SQLite": _sqlite,
    "PostgreSQL": _postgres,
    "NATS JetStream": _nats,
}
