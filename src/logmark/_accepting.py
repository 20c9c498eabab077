"""What the gateway and the live page share as servers: which names are ours, and accepting up to so many at once."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from websockets.sync.server import Server

__all__ = ["LOOPBACK_NAMES", "NOT_TRACED", "Acceptor", "host_name", "is_loopback", "listen"]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
NOT_TRACED = logging.getLogger("logmark.websockets")
NOT_TRACED.setLevel(logging.CRITICAL)  # what it would tell (headers, peers' faults) is in logmark's own events
_PAUSE_S = 0.1


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def host_name(header: str) -> str:
    """Return the name in a ``Host`` header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def listen(host: str, port: int, *, backlog: int | None = None, send_buffer_bytes: int) -> socket.socket:
    """Return a listening socket; what it accepts inherits the size of its buffer.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=backlog)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    return listener


class Acceptor:
    """Accepts for a server, each connection in a thread of its own, and refuses those that are too many.

    The server's own loop starts threads without bound, which outlive the program.

    Args:
        server: handles a connection; its own loop is not used.
        listener: the socket that it was made with.
        name: begins the names of the threads.
        connections_max: how many at once.
        failed: told of an accept that failed, such as for want of a descriptor.
        refused: told how many there are when one more is turned away.
    """

    def __init__(
        self,
        server: Server,
        listener: socket.socket,
        *,
        name: str,
        connections_max: int,
        failed: Callable[[OSError], None],
        refused: Callable[[int], None],
    ) -> None:
        self._server = server
        self._listener = listener
        self._name = name
        self._connections_max = connections_max
        self._failed = failed
        self._refused = refused
        self._slots = threading.BoundedSemaphore(connections_max)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, name=f"{name}-listener", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, address = self._server.socket.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                self._failed(error)
                self._closing.wait(_PAUSE_S)  # out of descriptors, say: try again when some connection has ended
                continue
            if not self._slots.acquire(blocking=False):
                self._refused(self._connections_max)
                sock.close()
                continue
            thread = threading.Thread(
                target=self._run, args=(sock, address), name=f"{self._name}-reader-{address[1]}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no thread for it
                self._refused(threading.active_count())
                sock.close()
                self._slots.release()

    def _run(self, sock: socket.socket, address: Any) -> None:
        try:
            self._server.handler(sock, address)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Accept nothing more. Connections stay."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._server.socket.close()
        self._thread.join()
        # Made for the server's own loop, and closed by nobody else.
        for name in ("shutdown_watcher", "shutdown_notifier"):
            end = getattr(self._server, name, None)
            if isinstance(end, socket.socket):
                end.close()
