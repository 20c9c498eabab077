"""The page over HTTP and its data over a WebSocket, on one loopback port.

Any page in a browser may open a WebSocket to this port, and a name that was rebound may lead any page here. So the
``Host`` must be a name of this server and the ``Origin``, where there is one, exactly the page that this server itself
has served under that name; and nothing is told before a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from .._accepting import LOOPBACK_NAMES, NOT_TRACED, Acceptor, host_name, is_loopback, listen
from ..protocol import InvalidArgument, MissingExtra, StorageUnavailable
from ._assets import page

try:
    from websockets.exceptions import WebSocketException
    from websockets.sync.server import ServerConnection, serve
except ImportError as error:
    raise MissingExtra(engine="live page", extra="gateway") from error

from ._viewer import FRAME_BYTES_MAX, Viewer

if TYPE_CHECKING:
    from websockets.http11 import Request, Response

    from ._page import Hall

__all__ = ["PageListener", "check_loopback"]

SOCKET_PATH = "/live"
CONNECTIONS_MAX = 64
HANDSHAKE_WAIT_S = 10.0
_SEND_BUFFER_BYTES = 256 * 1024


def check_loopback(host: str) -> None:
    """Refuse an address that others can reach.

    Raises:
        InvalidArgument: it is not a loopback address.
    """
    if not is_loopback(host):
        message = f"host {host!r} can be reached from elsewhere; serve the page on 127.0.0.1 and use a tunnel"
        raise InvalidArgument(message)


class PageListener:
    """Accepts browsers, each in a thread of its own.

    Raises:
        StorageUnavailable: the address cannot be bound.
    """

    def __init__(self, hall: Hall, *, host: str, port: int, hosts: Sequence[str]) -> None:
        self._hall = hall
        try:
            listener = listen(host, port, send_buffer_bytes=_SEND_BUFFER_BYTES)
        except OSError as error:
            reason = f"cannot listen on {host} port {port}: {error.strerror or error}"
            raise StorageUnavailable(store=hall.runtime.store.url, reason=reason, errno=error.errno) from error
        self.port: int = listener.getsockname()[1]
        self._hosts = {name.lower() for name in hosts} | {host.lower()} | LOOPBACK_NAMES
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        server = serve(
            self._serve_one,
            sock=listener,
            compression=None,
            process_request=self._answer,
            server_header=None,
            open_timeout=HANDSHAKE_WAIT_S,
            ping_interval=20,
            ping_timeout=20,
            close_timeout=2,
            max_size=FRAME_BYTES_MAX,
            max_queue=16,
            logger=NOT_TRACED,
        )
        self._acceptor = Acceptor(
            server,
            listener,
            name="page",
            connections_max=CONNECTIONS_MAX,
            failed=lambda error: hall.log.warning("page_accept_failed", error=type(error).__name__, errno=error.errno),
            refused=lambda connections: hall.log.warning("page_connection_refused", connections=connections),
        )

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        hosts = request.headers.get_all("Host")
        if len(hosts) != 1 or host_name(hosts[0]) not in self._hosts:
            self._hall.log.warning("page_handshake_refused", reason="host")
            return self._plain(connection, HTTPStatus.FORBIDDEN, "this server has another name\n")
        path = request.path.partition("?")[0]
        if path == SOCKET_PATH:
            origins = request.headers.get_all("Origin")
            if any(origin.lower() != f"http://{hosts[0].lower()}" for origin in origins):
                self._hall.log.warning("page_handshake_refused", reason="origin")
                return self._plain(connection, HTTPStatus.FORBIDDEN, "another page may not connect\n")
            return None
        if path != "/":
            return self._plain(connection, HTTPStatus.NOT_FOUND, "there is nothing here\n")
        text, headers = page()
        response = connection.respond(HTTPStatus.OK, text)
        for name, value in headers.items():
            with contextlib.suppress(KeyError):
                del response.headers[name]
            response.headers[name] = value
        return response

    def _plain(self, connection: ServerConnection, status: HTTPStatus, text: str) -> Response:
        response = connection.respond(status, text)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    def _serve_one(self, connection: ServerConnection) -> None:
        viewer = Viewer(self._hall, connection)
        self._hall.add(viewer)
        try:
            viewer.run()
        except (WebSocketException, OSError):
            return  # the browser is gone
        except Exception as error:
            self._hall.log.error("page_connection_failed", exc_info=error)
        finally:
            self._hall.remove(viewer)
            viewer.end()

    def close(self) -> None:
        """Accept nothing more. Connections stay."""
        self._acceptor.close()
