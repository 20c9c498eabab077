"""logmark on NATS JetStream, and plain clients that do the same work on the same server.

The same work: dense numbers in each session, an id for each event, and an answer when the server has it on its disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import orjson

import logmark

from ._base import Caller, Events, Missing, Participant, Payload, Tally
from ._logmark import Logmark
from ._nats import NatsJetStream

__all__ = ["LogmarkOnNats", "NatsEach", "NatsGrouped"]

_EVENTS_MAX = 2048  # of a message, which is one of at most a megabyte by the server's default
_PREFIX = "grouped-"  # its streams are others than those of the client that has the server
_VERSION_MIN = (2, 11)


class LogmarkOnNats(Logmark):
    """The NATS engine with its defaults, on a server that is up.

    Args:
        server: the participant that has started it.
    """

    name = "logmark-nats"
    label = "logmark on NATS JetStream"
    syncs_through_libc = False

    def __init__(self, server: NatsJetStream) -> None:
        super().__init__()
        self._server = server

    def open(self, directory: str) -> None:
        """Open a store in a stream of its own; the server is asked whether it syncs."""
        self._runtime = logmark.open(f"{self._server.url}/logmark?monitor={self._server.monitor}")


class _EachCaller(Caller):
    def __init__(self, owner: NatsEach, session_id: str) -> None:
        self._owner = owner
        self._session_id = session_id
        self._begin = f"{time.time_ns():x}-{threading.get_ident():x}-"
        self._count = 0

    def append(self, payload: Payload) -> int:
        self._count += 1
        headers = {"Nats-Msg-Id": f"{self._begin}{self._count}"}
        return self._owner.loop.run(self._owner.publish(self._session_id, orjson.dumps(payload), headers))


class NatsEach(NatsJetStream):
    """A message for each event, published and waited for by each caller; its number is that in the session's stream."""

    name = "nats-each"
    label = "NATS JetStream, a commit each"
    has_batches = False
    has_submit = False

    def open(self, directory: str) -> None:
        """Start the server, which must be one that logmark can use as well."""
        super().open(directory)
        if self.version < _VERSION_MIN:
            seen, wanted = (".".join(map(str, each)) for each in (self.version, _VERSION_MIN))
            reason = f"nats-server is of version {seen}, and {wanted} or later is needed"
            raise Missing(reason)

    def caller(self, session_id: str) -> Caller:
        """Share the connection."""
        self.make_stream(session_id)
        return _EachCaller(self, session_id)


class _Publisher:
    """Publishes all that waits for one session as one message, behind the last one, and waits for the server's word.

    It works in the event loop of the connection while there is something to do, so that a caller who comes meanwhile
    has nobody to wake, and an answer goes from there straight to those who wait for it.
    """

    def __init__(self, server: NatsJetStream, stream: str) -> None:
        self._server = server
        self._stream = stream
        self._mutex = threading.Lock()
        self._waiting: list[tuple[bytes, Future[int]]] = []
        self._is_busy = False
        self._last_seq = 0
        self._last_message = 0

    def put(self, payload: bytes) -> Future[int]:
        """Hand an event over; the future has its number."""
        future: Future[int] = Future()
        with self._mutex:
            self._waiting.append((payload, future))
            is_first, self._is_busy = not self._is_busy, True
        if is_first:
            self._server.loop.submit(self._publish_all())
        return future

    async def _publish_all(self) -> None:
        while True:
            with self._mutex:
                items = self._waiting[:_EVENTS_MAX]
                del self._waiting[:_EVENTS_MAX]
                if not items:
                    self._is_busy = False
                    return
            try:
                await self._commit([payload for payload, _ in items])
            except Exception as error:
                for _, future in items:
                    future.set_exception(error)
                continue
            for seq, (_, future) in enumerate(items, self._last_seq - len(items) + 1):
                future.set_result(seq)

    async def _commit(self, payloads: Sequence[bytes]) -> None:
        first, now = self._last_seq + 1, f"{time.time_ns():016x}"
        events = b",".join(
            b'{"id":"%s%010x","payload":%s}' % (now.encode(), seq, payload)
            for seq, payload in enumerate(payloads, first)
        )
        headers = {"Nats-Expected-Last-Subject-Sequence": str(self._last_message), "Nats-Msg-Id": f"{now}{first:010x}"}
        body = b'{"first":%d,"events":[%s]}' % (first, events)
        self._last_message = await self._server.publish(self._stream, body, headers)
        self._last_seq += len(payloads)


class _GroupedCaller(Caller):
    def __init__(self, publisher: _Publisher) -> None:
        self._publisher = publisher

    def append(self, payload: Payload) -> int:
        return self._publisher.put(orjson.dumps(payload)).result()


class NatsGrouped(Participant):
    """All that waits is one message, compared with the last of its subject and waited for.

    Args:
        server: the participant that has started the server; its connection is used.
    """

    name = "nats-grouped"
    label = "NATS JetStream, group commit"
    has_batches = False
    syncs_through_libc = False

    def __init__(self, server: NatsJetStream) -> None:
        self._server = server
        self._publishers: dict[str, _Publisher] = {}
        self._mutex = threading.Lock()

    def open(self, directory: str) -> None:
        """Do nothing: the server is up, and a stream is made for each session."""

    def caller(self, session_id: str) -> Caller:
        """Share the publisher of the session."""
        stream = _PREFIX + session_id
        self._server.make_stream(stream)
        with self._mutex:
            publisher = self._publishers.setdefault(session_id, _Publisher(self._server, stream))
        return _GroupedCaller(publisher)

    def tally(self, session_id: str) -> Tally:
        """Read every event back."""
        count = first = last = 0
        for last, _ in self.replay(session_id, ahead=100):
            first = first or last
            count += 1
        return Tally(count, first, last)

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Read the messages from the first one on."""
        for _, message in self._server.replay(_PREFIX + session_id, ahead=ahead):
            for seq, event in enumerate(message["events"], message["first"]):
                if seq >= from_seq:
                    yield seq, event["payload"]

    def close(self) -> None:
        """Leave the server."""
        self._publishers.clear()
