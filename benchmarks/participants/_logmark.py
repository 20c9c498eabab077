"""logmark, through its public surface only."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future

import logmark

from ._base import Caller, Events, Participant, Payload, Tally

__all__ = ["EVENT_TYPE", "Logmark"]

EVENT_TYPE = "message.created"


class _LogmarkCaller(Caller):
    def __init__(self, session: logmark.Session) -> None:
        self._session = session

    def append(self, payload: Payload) -> int:
        return self._session.append(EVENT_TYPE, payload)

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        return self._session.append_many([(EVENT_TYPE, payload) for payload in payloads])[1]

    def submit(self, payload: Payload) -> Future[int]:
        return self._session.submit(EVENT_TYPE, payload)


class _JobCaller(_LogmarkCaller):
    """The same, each event for the next of many jobs."""

    def __init__(self, session: logmark.Session, jobs: int) -> None:
        super().__init__(session)
        self._jobs = itertools.cycle([f"job-{number}" for number in range(jobs)])

    def append(self, payload: Payload) -> int:
        return self._session.append(EVENT_TYPE, payload, job_id=next(self._jobs))

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        events = [
            logmark.Envelope(type=EVENT_TYPE, payload=payload, job_id=job_id)
            for payload, job_id in zip(payloads, self._jobs, strict=False)
        ]
        return self._session.append_many(events)[1]

    def submit(self, payload: Payload) -> Future[int]:
        return self._session.submit(EVENT_TYPE, payload, job_id=next(self._jobs))


class Logmark(Participant):
    """The file engine with its defaults.

    Args:
        jobs: how many jobs the events belong to, in turn; 0: to none.
        durability: ``"os"`` only to fill a store that is not measured.
        instrumentation: measures it.
    """

    name = "logmark"
    label = "logmark"
    has_submit = True

    def __init__(
        self, *, jobs: int = 0, durability: str = "fsync", instrumentation: logmark.Instrumentation | None = None
    ) -> None:
        self._jobs = jobs
        self._durability = durability
        self._instrumentation = instrumentation
        self._runtime: logmark.Runtime | None = None

    @property
    def runtime(self) -> logmark.Runtime:
        """The open runtime."""
        if self._runtime is None:
            raise RuntimeError("not open")
        return self._runtime

    def open(self, directory: str) -> None:
        """Open the store in the directory."""
        self._runtime = logmark.open(
            self.store(directory), durability=self._durability, instrumentation=self._instrumentation
        )

    @staticmethod
    def store(directory: str) -> str:
        """Return where the store is."""
        return os.path.join(directory, "store")

    def caller(self, session_id: str) -> Caller:
        """Return access to the session, which all threads share."""
        session = self.runtime.session(session_id)
        return _JobCaller(session, self._jobs) if self._jobs else _LogmarkCaller(session)

    def tally(self, session_id: str) -> Tally:
        """Read every event back."""
        count = first = last = 0
        for event in self.runtime.session(session_id).read_raw():
            last = event.event_seq or 0
            first = first or last
            count += 1
        return Tally(count, first, last)

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Read decoded events."""
        for event in self.runtime.session(session_id).read(from_seq=from_seq):
            yield event.event_seq or 0, event.payload

    def close(self) -> None:
        """Close the runtime."""
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None
