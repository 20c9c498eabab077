"""A result that is too large, or too slow, to be given at once: ``ctx.result_stream()``. ARCP draft, section 8.4."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self

import orjson

from ..protocol import InvalidEvent, JobFailed, NotEncodable

__all__ = ["ResultStream", "pieces_of"]

_BASE64_STEP = 3  # so many bytes become four characters without padding
_ESCAPE_BYTES_MAX = 6  # a control character becomes \u0000


class ChunkTarget(Protocol):
    """Where chunks go: the context of the job."""

    def emit_chunks(self, bodies: list[dict[str, Any]]) -> None:
        """Append ``result_chunk`` events, all or none, and return once they are durable."""
        ...


class ResultStream:
    """Writes the result of a job piece by piece. Safe from any thread; made by ``AgentContext.result_stream``.

    A context manager: leaving it closes the result, leaving it with an exception does not, and then the job cannot
    succeed any more. The pieces are cut so that every client's frame limit holds; what is assembled from them is what
    was written, in the order of the calls.

    Attributes:
        result_id: names the result on the wire.
        summary: what ``job.result`` says of the result; None for a sentence about its size. May be set at any time
            before the end.
    """

    def __init__(
        self, target: ChunkTarget | None, *, result_id: str, summary: str | None, chunk_bytes_max: int, bytes_max: int
    ) -> None:
        self.result_id = result_id
        self.summary = summary
        self._target = target
        self._chunk_bytes_max = chunk_bytes_max
        self._bytes_max = bytes_max
        self._mutex = threading.Lock()
        self._state = "new"
        self._chunks = 0
        self._size_bytes = 0
        self._collected: list[str | bytes] = []

    @property
    def size_bytes(self) -> int:
        """How many bytes of result were written."""
        return self._size_bytes

    @property
    def complete(self) -> bool:
        """Whether the result was closed, so that the job may succeed with it."""
        return self._state == "complete"

    @property
    def begun(self) -> bool:
        """Whether clients have seen a part of it, so that the job cannot succeed with another result any more."""
        return self._chunks > 0

    def write(self, data: str | bytes | bytearray | memoryview) -> None:
        """Add to the result; returns once it is durable. Text and bytes may be mixed: text stands for its UTF-8.

        Raises:
            InvalidEvent: neither text nor bytes, or the stream is not open.
            JobFailed: the result would exceed the limit of a result; nothing was written.
            AppendError, JobEnded: as for every emit.
        """
        if isinstance(data, bytearray | memoryview):
            data = bytes(data)
        kind: type[Any] = type(data)
        if not issubclass(kind, str | bytes):
            message = f"a result is written as text or bytes, not as {kind.__name__}"
            raise InvalidEvent(message)
        with self._mutex:
            self._check_open()
            if not data:
                return
            size_bytes = _size_of(data)
            if self._size_bytes + size_bytes > self._bytes_max:
                message = f"the result has more than {self._bytes_max} bytes, which is the limit"
                raise JobFailed(message)
            if self._target is None:
                self._collected.append(data)
            else:
                self._send(self._target, pieces_of(data, bytes_max=self._chunk_bytes_max))
            self._size_bytes += size_bytes

    def _send(self, target: ChunkTarget, pieces: Iterator[tuple[str, str]]) -> None:
        """Emit some chunks at a time, so that a large write costs few commits and bounded memory."""
        batch: list[dict[str, Any]] = []
        for data, encoding in pieces:
            batch.append(self._body(self._chunks + len(batch), data, encoding, more=True))
            if len(batch) == _BATCH_CHUNKS:
                target.emit_chunks(batch)
                self._chunks += len(batch)
                batch = []
        if batch:
            target.emit_chunks(batch)
            self._chunks += len(batch)

    def _body(self, chunk_seq: int, data: str, encoding: str, *, more: bool) -> dict[str, Any]:
        return {
            "result_id": self.result_id,
            "chunk_seq": chunk_seq,
            "data": data,
            "encoding": encoding,
            "more": more,
        }

    def _check_open(self) -> None:
        if self._state != "open":
            hint = "use it in a with statement" if self._state == "new" else "it was left already"
            message = f"the result stream is not open: {hint}"
            raise InvalidEvent(message)

    def __enter__(self) -> Self:
        """Open the stream."""
        with self._mutex:
            if self._state != "new":
                message = "a result stream is entered once"
                raise InvalidEvent(message)
            self._state = "open"
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the result with a last, empty chunk; after an exception leave it as it is."""
        with self._mutex:
            self._state = "broken"
            if exc_type is not None:
                return
            if self._target is not None:
                self._target.emit_chunks([self._body(self._chunks, "", "utf8", more=False)])
                self._chunks += 1
            self._state = "complete"

    def closing_summary(self) -> str:
        """Return what ``job.result`` says of the result."""
        return f"{self._size_bytes} bytes in {self._chunks} chunks" if self.summary is None else self.summary

    def inline_result(self) -> str | dict[str, str]:
        """Return the result of a session without chunks: text, or ``{"encoding": "base64", "data"}`` for bytes.

        That is when the session has not negotiated ``result_chunk`` (ARCP draft, section 6.2).
        """
        if all(isinstance(part, str) for part in self._collected):
            return "".join(part for part in self._collected if isinstance(part, str))
        data = b"".join(part.encode() if isinstance(part, str) else part for part in self._collected)
        return {"encoding": "base64", "data": base64.b64encode(data).decode("ascii")}


_BATCH_CHUNKS = 16


def _size_of(data: str | bytes) -> int:
    if isinstance(data, bytes):
        return len(data)
    try:
        return len(data.encode())
    except UnicodeEncodeError as error:
        message = f"the text cannot be encoded: {error.reason} at {error.start}"
        raise NotEncodable(message) from error


def pieces_of(data: str | bytes, *, bytes_max: int) -> Iterator[tuple[str, str]]:
    """Cut data into pieces whose JSON text has at most ``bytes_max`` bytes; yields them with their encoding."""
    if isinstance(data, bytes):
        step = max(1, bytes_max // 4) * _BASE64_STEP
        for start in range(0, len(data), step):
            yield base64.b64encode(data[start : start + step]).decode("ascii"), "base64"
        return
    start = 0
    while start < len(data):
        length = min(bytes_max, len(data) - start)
        # JSON's escapes and UTF-8 make the text longer by a factor that is different in every part of it.
        while (size := _json_size(data[start : start + length])) > bytes_max and length > 1:
            length = max(1, min(length - 1, length * bytes_max // size))
        yield data[start : start + length], "utf8"
        start += length


def _json_size(text: str) -> int:
    return len(orjson.dumps(text)) - 2
