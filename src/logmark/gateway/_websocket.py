"""WebSocket: path ``/arcp``, one JSON object in each text frame (section 4 of the ARCP draft).

A page in a browser may open a WebSocket to any address, so who comes with an ``Origin`` is refused unless it is listed,
and so is a ``Host`` that is not this server's (DNS rebinding). Every accepted socket counts from its first moment, so
that idle handshakes cannot use up more than their share; compression is off, because a few bytes can stand for many.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from .._accepting import LOOPBACK_NAMES, NOT_TRACED, Acceptor, host_name, is_loopback, listen
from ..protocol import InvalidArgument, MissingExtra, StorageUnavailable
from ._link import TransportGone
from ._pages import Pages

try:
    from websockets.exceptions import ConnectionClosed, WebSocketException
    from websockets.sync.server import ServerConnection, serve
    from websockets.typing import Origin
except ImportError as error:
    raise MissingExtra(engine="gateway", extra="gateway") from error

if TYPE_CHECKING:
    import ssl

    from websockets.http11 import Request, Response

    from ._hub import Hub

__all__ = ["WebSocketListener", "check_host"]

PATH = "/arcp"
_BACKLOG = 1024


def check_host(host: str, *, allow_remote: bool) -> None:
    """Refuse an address that others can reach, unless that is wanted.

    Raises:
        InvalidArgument: it is not a loopback address.
    """
    if not allow_remote and not is_loopback(host):
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
        try:
            # What the system holds for a slow reader stands before a pong.
            listener = listen(host, port, backlog=_BACKLOG, send_buffer_bytes=limits.send_buffer_bytes)
        except OSError as error:
            reason = f"cannot listen on {host} port {port}: {error.strerror or error}"
            raise StorageUnavailable(store=hub.runtime.store.url, reason=reason, errno=error.errno) from error
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # inherited by every accepted socket
        self.port: int = listener.getsockname()[1]
        self._hosts = {name.lower() for name in hosts} | {host.lower()} | LOOPBACK_NAMES
        name = f"[{host}]" if ":" in host else host
        self.url = f"{'ws' if tls is None else 'wss'}://{name}:{self.port}{PATH}"
        server = serve(
            self._serve_one,
            sock=listener,
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
            logger=NOT_TRACED,
        )
        self._acceptor = Acceptor(
            server,
            listener,
            name="arcp",
            connections_max=limits.connections_max,
            failed=lambda error: hub.log.warning("arcp_accept_failed", error=type(error).__name__, errno=error.errno),
            refused=lambda connections: hub.log.warning("arcp_connection_refused", connections=connections),
        )

    def _check_request(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        is_page = self._pages.has(path)
        if path != PATH and not is_page:
            return connection.respond(HTTPStatus.NOT_FOUND, "there is nothing here\n")
        hosts = [host_name(header) for header in request.headers.get_all("Host")]
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
        self._acceptor.close()


def _as_bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
