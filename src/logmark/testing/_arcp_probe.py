"""A wire recorder: an ARCP client that keeps every frame it was sent and knows what the wire may not show."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import orjson

from ..protocol import ARCP_COUNTABLE, UlidSequence

if TYPE_CHECKING:
    from types import TracebackType

    from websockets.sync.client import ClientConnection

__all__ = ["ArcpProbe", "wire_faults"]

Frame = dict[str, Any]
SOON_S = 30.0
_TERMINALS = ("job.result", "job.error")
_FEATURES = (
    "heartbeat",
    "ack",
    "list_jobs",
    "subscribe",
    "lease_expires_at",
    "cost.budget",
    "progress",
    "result_chunk",
    "agent_versions",
)


def wire_faults(frames: Iterable[Frame], *, after_seq: int = 0) -> list[str]:
    """Return what is wrong with the frames of one session, in the order they came: nothing, on a good day.

    Countable frames are numbered from ``after_seq + 1`` without a repeat or a hole, no other frame has a number, the
    first one is ``session.welcome`` or ``session.error``, a job has one terminal and nothing behind it.
    """
    faults: list[str] = []
    expected = after_seq + 1
    ended: set[str] = set()
    for index, frame in enumerate(frames):
        kind, seq, job_id = frame.get("type"), frame.get("event_seq"), frame.get("job_id")
        if index == 0 and kind not in ("session.welcome", "session.error"):
            faults.append(f"the first frame is {kind}")
        if kind not in ARCP_COUNTABLE:
            if seq is not None:
                faults.append(f"{kind} has number {seq}")
            continue
        if seq != expected:
            faults.append(f"{kind} has number {seq}, expected {expected}")
        expected = (seq or expected) + 1
        if job_id in ended:
            faults.append(f"{kind} {seq} of {job_id} comes after its terminal")
        if kind in _TERMINALS and job_id is not None:
            ended.add(job_id)
    return faults


class ArcpProbe:
    """One connection, from ``session.hello`` on; every frame that comes is kept in ``frames``.

    Its waits raise ``TimeoutError`` after half a minute, with the types of what has come instead.

    Args:
        url: of a gateway.
        token: the bearer token.
        features: what to negotiate; all by default.
        resume: ``(session_id, resume_token, last_event_seq)`` to go on with.
        hello: say hello, and wait for the answer.
        reading: False reads nothing after the welcome, as a client that has stalled.
        headers: further ones for the opening handshake.
        receive_buffer_bytes: of the socket, for a client that is to stall soon.
    """

    def __init__(
        self,
        url: str,
        token: str = "token",  # noqa: S107 - a test's
        *,
        features: Iterable[str] = _FEATURES,
        resume: tuple[str, str, int] | None = None,
        hello: bool = True,
        reading: bool = True,
        headers: Mapping[str, str] | None = None,
        receive_buffer_bytes: int | None = None,
    ) -> None:
        from websockets.sync.client import connect

        host, _, port = url.split("/")[2].rpartition(":")
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            sock.connect((host, int(port)))
        except OSError:
            sock.close()
            raise
        self._opened = contextlib.ExitStack()
        self.connection: ClientConnection = self._opened.enter_context(
            connect(
                url, sock=sock, additional_headers=headers, compression=None, max_size=1024 * 1024, ping_interval=None
            )
        )
        self.frames: list[Frame] = []
        self.arrived_at: list[float] = []
        self.after_seq = 0 if resume is None else resume[2]
        self.closed = threading.Event()
        self._ulids = UlidSequence(lambda bits: time.time_ns() % (1 << bits))
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="arcp-probe", daemon=True)
        if reading:
            self._reader.start()
        if hello:
            payload: dict[str, Any] = {
                "client": {"name": "probe", "version": "1"},
                "auth": {"scheme": "bearer", "token": token},
                "capabilities": {"encodings": ["json"], "features": list(features)},
            }
            if resume is not None:
                session_id, resume_token, last_event_seq = resume
                payload["resume"] = {
                    "session_id": session_id,
                    "resume_token": resume_token,
                    "last_event_seq": last_event_seq,
                }
            self.send("session.hello", payload)
            if not reading:
                self._take(self.connection.recv(timeout=SOON_S, decode=False))
            self.wait_for(lambda frame: frame["type"] in ("session.welcome", "session.error"))

    # -- what it knows ----------------------------------------------------------------------------------------------

    @property
    def welcome(self) -> Frame:
        """The answer to the hello; AssertionError when it was an error."""
        assert self.frames[0]["type"] == "session.welcome", self.frames[0]
        return self.frames[0]

    @property
    def session_id(self) -> str:
        """The session."""
        return str(self.welcome["payload"]["session_id"])

    @property
    def last_seq(self) -> int:
        """The highest number that has come."""
        with self._changed:
            return max((each["event_seq"] for each in self.frames if "event_seq" in each), default=self.after_seq)

    @property
    def position(self) -> tuple[str, str, int]:
        """Where to resume."""
        return self.session_id, str(self.welcome["payload"]["resume_token"]), self.last_seq

    def events(self, job_id: str | None = None) -> list[Frame]:
        """Return the countable frames, of one job or of all."""
        with self._changed:
            frames = list(self.frames)
        return [each for each in frames if "event_seq" in each and job_id in (None, each.get("job_id"))]

    def faults(self) -> list[str]:
        """Return what ``wire_faults`` finds."""
        with self._changed:
            return wire_faults(list(self.frames), after_seq=self.after_seq)

    # -- what it does -----------------------------------------------------------------------------------------------

    def send(self, type_: str, payload: Mapping[str, Any] | None = None, **envelope: Any) -> str:
        """Send a frame and return its id."""
        frame_id = self._ulids.next(time.time_ns() // 1_000_000)
        frame = {"arcp": "1.1", "id": frame_id, "type": type_, "payload": payload or {}, **envelope}
        self.connection.send(orjson.dumps(frame), text=True)
        return frame_id

    def ask(self, type_: str, payload: Mapping[str, Any] | None = None, **envelope: Any) -> Frame:
        """Send a request and return its answer, whichever it is."""
        frame_id = self.send(type_, payload, **envelope)
        return self.wait_for(lambda frame: frame["payload"].get("request_id") == frame_id)

    def submit(self, agent: str, input: Any = None, **payload: Any) -> str:
        """Submit a job and return its id."""
        answer = self.ask("job.submit", {"agent": agent, "input": input, **payload})
        assert answer["type"] == "job.accepted", answer
        return str(answer["payload"]["job_id"])

    def ping(self) -> float:
        """Return how long a pong takes, in seconds."""
        began = time.monotonic()
        nonce = self._ulids.next(time.time_ns() // 1_000_000)
        self.send("session.ping", {"nonce": nonce, "sent_at": "2026-01-01T00:00:00Z"})
        pong = self.wait_for(lambda frame: frame["payload"].get("ping_nonce") == nonce)
        with self._changed:
            return self.arrived_at[self.frames.index(pong)] - began

    def wait_for(self, wanted: Callable[[Frame], bool]) -> Frame:
        """Return the first frame that is wanted, waiting for it."""
        deadline = time.monotonic() + SOON_S
        looked = 0
        with self._changed:
            while True:
                for frame in self.frames[looked:]:
                    if wanted(frame):
                        return frame
                looked = len(self.frames)
                left = deadline - time.monotonic()
                if left <= 0 or (self.closed.is_set() and looked == len(self.frames)):
                    types = [frame["type"] for frame in self.frames[-20:]]
                    message = f"it has not come; closed: {self.closed.is_set()}; last of {looked} frames: {types}"
                    raise TimeoutError(message)
                self._changed.wait(left)

    def wait_end(self, job_id: str) -> Frame:
        """Return the terminal of a job, waiting for it."""
        return self.wait_for(lambda frame: frame["type"] in _TERMINALS and frame.get("job_id") == job_id)

    def wait_seq(self, seq: int) -> Frame:
        """Return the event with a number, waiting for it."""
        return self.wait_for(lambda frame: frame.get("event_seq") == seq)

    # -- the end ----------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Reset the connection, without a word."""
        sock = self.connection.socket
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.shutdown(socket.SHUT_RD)
        self.connection.close_socket()
        self.close()

    def close(self) -> None:
        """Close the connection; the session stays."""
        self._opened.close()
        if self._reader.ident is not None and self._reader is not threading.current_thread():
            self._reader.join(SOON_S)

    def __enter__(self) -> Self:
        """Return the probe; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                self._take(self.connection.recv(decode=False))
        except (ConnectionClosed, OSError):
            pass
        finally:
            self.closed.set()
            with self._changed:
                self._changed.notify_all()

    def _take(self, data: str | bytes) -> None:
        frame = orjson.loads(data)
        with self._changed:
            self.arrived_at.append(time.monotonic())
            self.frames.append(frame)
            self._changed.notify_all()
