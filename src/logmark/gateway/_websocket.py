"""WebSocket: path ``/arcp``, one JSON object in each text frame (section 4 of the ARCP draft).

A page in a browser may open a WebSocket to any address, so who comes with an ``Origin`` is refused unless it is listed,
and so is a ``Host`` that is not this server's (DNS rebinding). Every accepted socket counts from its first moment, so
that idle handshakes cannot use up more than their share; compression is off, because a few bytes can stand for many.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ..protocol import InvalidArgument, MissingExtra, StorageUnavailable
from ._link import TransportGone
from ._pages import Pages

try:
    from websockets.exceptions import ConnectionClosed, WebSocketException
    from websockets.sync.server import Server, ServerConnection, serve
    from websockets.typing import Origin
except ImportError as error:
    raise MissingExtra(engine="gateway", extra="gateway") from error

if TYPE_CHECKING:
    import ssl

    from websockets.http11 import Request, Response

    from ._hub import Hub

__all__ = ["WebSocketListener", "check_host"]

PATH = "/arcp"
_NOT_TRACED = logging.getLogger("logmark.websockets")
_NOT_TRACED.setLevel(logging.CRITICAL)  # what it would tell (headers, peers' faults) is in logmark's own events
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_BACKLOG = 1024


def check_host(host: str, *, allow_remote: bool) -> None:
    """Refuse an address that others can reach, unless that is wanted.

    Raises:
        InvalidArgument: it is not a loopback address.
    """
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost" and not allow_remote:
        message = f"host {host!r} can be reached from elsewhere; pass allow_remote=True if that is meant, and ssl="
        raise InvalidArgument(message)


class _WebSocket:
    """A ``Transport`` over one connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        address = connection.remote_address
        self.peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unknown"

    def send(self, data: bytes) -> None:
        try:
            self._connection.send(data, text=True)
        except (ConnectionClosed, OSError) as error:
            raise TransportGone from error

    def close(self, code: int, reason: str) -> None:
        with contextlib.suppress(WebSocketException, OSError):
            self._connection.close(code, reason[:100])

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            # Below TLS, whose own shutdown takes the layer away from under a thread that is writing.
            socket.socket.shutdown(self._connection.socket, socket.SHUT_RDWR)


class WebSocketListener:
    """Accepts connections and hands their frames to a hub, each in a thread of its own.

    Raises:
        StorageUnavailable: the address cannot be bound.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        host: str,
        port: int,
        origins: Sequence[str],
        hosts: Sequence[str],
        tls: ssl.SSLContext | None,
        pages: Pages,
    ) -> None:
        self._hub = hub
        self._pages = pages
        limits = hub.limits
        self._slots = threading.BoundedSemaphore(limits.connections_max)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            reason = f"cannot listen on {host} port {port}: {error.strerror or error}"
            raise StorageUnavailable(store=hub.runtime.store.url, reason=reason, errno=error.errno) from error
        # Inherited by every accepted socket. What the system holds for a slow reader stands before a pong.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer_bytes)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.port: int = self._listener.getsockname()[1]
        self._hosts = {name.lower() for name in hosts} | {host.lower()} | _LOOPBACK_NAMES
        name = f"[{host}]" if ":" in host else host
        self.url = f"{'ws' if tls is None else 'wss'}://{name}:{self.port}{PATH}"
        self._server: Server = serve(
            self._serve_one,
            sock=self._listener,
            ssl=tls,
            origins=[None, *map(Origin, origins)],
            compression=None,
            process_request=self._check_request,
            server_header=None,
            open_timeout=limits.handshake_wait_s,
            ping_interval=None,  # ARCP has heartbeats of its own
            close_timeout=2,
            max_size=limits.frame_bytes_max,
            max_queue=16,
            logger=_NOT_TRACED,
        )
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="arcp-listener", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        """Accept until closed. The server's own loop starts threads without bound, which outlive the program."""
        while not self._closing.is_set():
            try:
                sock, address = self._server.socket.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                self._hub.log.warning("arcp_accept_failed", error=type(error).__name__, errno=error.errno)
                self._closing.wait(0.1)  # out of descriptors, say: try again when some connection has ended
                continue
            if not self._slots.acquire(blocking=False):
                self._hub.log.warning("arcp_connection_refused", connections=self._hub.limits.connections_max)
                sock.close()
                continue
            thread = threading.Thread(
                target=self._run, args=(sock, address), name=f"arcp-reader-{address[1]}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no thread for it
                self._hub.log.warning("arcp_connection_refused", connections=threading.active_count())
                sock.close()
                self._slots.release()

    def _run(self, sock: socket.socket, address: Any) -> None:
        try:
            self._server.handler(sock, address)
        finally:
            self._slots.release()

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        is_page = self._pages.has(path)
        if path != PATH and not is_page:
            return connection.respond(HTTPStatus.NOT_FOUND, "there is nothing here\n")
        hosts = [_host_name(header) for header in request.headers.get_all("Host")]
        if len(hosts) != 1 or not (hosts[0] in self._hosts or (is_page and _is_address(hosts[0]))):
            self._hub.log.warning("arcp_handshake_refused", reason="host")
            return connection.respond(HTTPStatus.FORBIDDEN, "this server has another name\n")
        return self._page(connection, path) if is_page else None

    def _page(self, connection: ServerConnection, path: str) -> Response:
        page = self._pages.answer(path)
        response = connection.respond(page.status, page.text)
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = page.content_type
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def _serve_one(self, connection: ServerConnection) -> None:
        link = self._hub.connect(_WebSocket(connection))
        try:
            while True:
                link.feed(_as_bytes(connection.recv(decode=False)))
                if link.is_ended:
                    break
        except (ConnectionClosed, OSError):
            link.end("lost")
        finally:
            link.end("failed")

    def close(self) -> None:
        """Accept nothing more. Connections stay."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._server.socket.close()
        self._thread.join()
        # Made for the server's own loop, which is not used here, and closed by nobody else.
        for name in ("shutdown_watcher", "shutdown_notifier"):
            end = getattr(self._server, name, None)
            if isinstance(end, socket.socket):
                end.close()


def _as_bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _host_name(header: str) -> str:
    """Return the name in a ``Host`` header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
