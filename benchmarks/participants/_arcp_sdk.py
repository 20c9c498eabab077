"""The event log of the Agent Runtime Control Protocol's Python SDK, on SQLite."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from ._base import Caller, Events, Missing, Participant, Payload, Tally
from ._loop import LoopThread
from ._packages import need

__all__ = ["ArcpSdk"]

_FULL = 2


class _LogCaller(Caller):
    def __init__(self, owner: ArcpSdk, session_id: str) -> None:
        self._owner = owner
        self._session_id = session_id

    def append(self, payload: Payload) -> int:
        return self.submit(payload).result()

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        return self._owner.loop.run(self._one_by_one(payloads))

    async def _one_by_one(self, payloads: Sequence[Payload]) -> int:
        number = 0
        for payload in payloads:  # the log has no call for several
            number = await self._owner.append(self._session_id, payload)
        return number

    def submit(self, payload: Payload) -> Future[int]:
        return self._owner.loop.submit(self._owner.append(self._session_id, payload))


class ArcpSdk(Participant):
    """``SqliteEventLog``; the numbers are the program's own, as the SDK's server counts them."""

    name = "arcp-sdk"
    label = "ARCP SDK, SQLite log"
    has_submit = True

    def __init__(self) -> None:
        self._module = need("arcp._store.eventlog", "agentruntimecontrolprotocol")
        self._log: Any = None
        self._loop: LoopThread | None = None
        self._lasts: dict[str, int] = {}

    @property
    def loop(self) -> LoopThread:
        """The thread that the log lives in."""
        if self._loop is None:
            raise RuntimeError("not open")
        return self._loop

    def open(self, directory: str) -> None:
        """Open the log in a loop of its own, and see that it syncs each commit."""
        self._loop = LoopThread()
        self._log = self._module.SqliteEventLog(os.path.join(directory, "events.db"))
        if self._loop.run(self._synchronous()) != _FULL:
            raise Missing("SQLite is built not to sync each commit in WAL mode, and the SDK sets nothing")

    async def _synchronous(self) -> int:
        await self._log.latest_seq("")  # opens it
        async with self._log._db.execute("PRAGMA synchronous") as cursor:  # noqa: SLF001 - it tells nobody else
            row = await cursor.fetchone()
        return int(row[0])

    async def append(self, session_id: str, payload: Payload) -> int:
        """Number one event and store it; in the loop only."""
        number = self._lasts[session_id] = self._lasts.get(session_id, 0) + 1
        envelope = {"session_id": session_id, "event_seq": number, "type": "job.event", "payload": payload}
        await self._log.append(session_id, envelope)
        return number

    def caller(self, session_id: str) -> Caller:
        """Hand everything to the loop."""
        return _LogCaller(self, session_id)

    def tally(self, session_id: str) -> Tally:
        """Read every envelope."""
        numbers = [seq for seq, _ in self.replay(session_id)]
        return Tally(len(set(numbers)), min(numbers, default=0), max(numbers, default=0))

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Read in the loop, in portions."""
        after = from_seq - 1
        while portion := self.loop.run(self._portion(session_id, after, ahead)):
            yield from portion
            after = portion[-1][0]

    async def _portion(self, session_id: str, after: int, size: int) -> list[tuple[int, Any]]:
        found: list[tuple[int, Any]] = []
        async for envelope in self._log.read_since_seq(session_id, after):
            found.append((envelope["event_seq"], envelope["payload"]))
            if len(found) == size:
                break
        return found

    def close(self) -> None:
        """Close the log, then its loop."""
        if self._loop is not None:
            self._loop.run(self._log.close())
            self._loop.stop()
            self._loop = None
