"""stdio: one JSON object a line, for a client that has started this process as its child (section 4)."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

from ._gateway import make_hub
from ._limits import GatewayLimits
from ._link import TransportGone

if TYPE_CHECKING:
    from .._runtime import Runtime
    from ..protocol.arcp import Dialect

__all__ = ["serve_stdio"]

_LINE_BYTES_MAX = 60 * 1024
"""Published clients read lines of at most 64 KiB; the envelope takes some of it."""


class _Lines:
    """A ``Transport`` over a pair of streams."""

    peer = "stdio"

    def __init__(self, stdout: IO[bytes]) -> None:
        self._stdout = stdout
        self._gone = threading.Event()

    def send(self, data: bytes) -> None:
        if self._gone.is_set():
            raise TransportGone
        try:
            self._stdout.write(data + b"\n")
            self._stdout.flush()
        except (OSError, ValueError) as error:
            raise TransportGone from error

    def close(self, code: int, reason: str) -> None:
        self._gone.set()

    def abort(self) -> None:
        self._gone.set()


def serve_stdio(
    runtime: Runtime,
    stdin: IO[bytes],
    stdout: IO[bytes],
    *,
    tokens: Mapping[str, str] | None = None,
    compat: Dialect = "neutral",
    limits: GatewayLimits | None = None,
    timeout_s: float | None = None,
) -> None:
    """Serve one client over a pair of binary streams, until it closes or ``stdin`` ends.

    Nothing but frames is written to ``stdout``. Jobs that are running at the end have ``timeout_s`` seconds (else
    ``GatewayLimits.close_wait_s``); what is left of them is ended and can be resumed from.

    Args:
        runtime: has the agents and the store.
        stdin: lines of the client.
        stdout: lines to the client; nobody else may write to it.
        tokens: as for ``serve``; None: the client is whoever holds the other end of the pipes, its token is not looked
            at, and its principal is ``stdio``.
        compat: as for ``serve``.
        limits: every bound; events are bounded by what a line may hold, as well.
        timeout_s: see above.
    """
    limits = limits or GatewayLimits()
    limits = dataclasses.replace(
        limits,
        event_bytes_max=min(limits.event_bytes_max, _LINE_BYTES_MAX),
        list_bytes_max=min(limits.list_bytes_max, _LINE_BYTES_MAX),
    )
    hub = make_hub(runtime, tokens=tokens, anonymous="stdio" if tokens is None else None, compat=compat, limits=limits)
    link = hub.connect(_Lines(stdout))
    try:
        while not link.is_ended:
            line = stdin.readline(limits.frame_bytes_max + 1)
            if not line:
                break
            if len(line) > limits.frame_bytes_max:  # the rest of it is no frame: there is no place to go on from
                link.feed(b"")
                break
            if line.strip():
                link.feed(line)
    finally:
        hub.close(limits.close_wait_s if timeout_s is None else timeout_s)
        link.end("end of input")
