"""A TCP proxy that loses connections at chosen moments; it knows no protocol, so it serves for any server."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Literal, Self

__all__ = ["FaultyProxy", "ProxyFault"]

Moment = Literal["before", "sent", "answered", "silent"]

_CHUNK_BYTES = 65_536
_DEADLINE_S = 60.0


class ProxyFault:
    """What a proxy does once, to the connection on which it next sees certain bytes go to the server.

    Attributes:
        happened: set when it has been done.
    """

    def __init__(self, needle: bytes, moment: Moment, *, refuse: bool = False) -> None:
        self.needle = needle
        self.moment: Moment = moment
        self.refuse = refuse
        self.happened = threading.Event()

    def wait(self) -> None:
        """Wait until it was done."""
        if not self.happened.wait(_DEADLINE_S):
            message = f"{self.needle!r} has not passed within {_DEADLINE_S:g} s"
            raise TimeoutError(message)


class _Link:
    """One client's connection and its connection to the server."""

    def __init__(self, proxy: FaultyProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self.client = client
        self.server = server
        self._swallowing: ProxyFault | None = None
        self._mutex = threading.Lock()

    def start(self) -> None:
        for name, pump in (("up", self._pump_up), ("down", self._pump_down)):
            threading.Thread(target=pump, name=f"proxy-{name}", daemon=True).start()

    def _pump_up(self) -> None:
        seen = b""
        with contextlib.suppress(OSError):  # cut, or closed by either side
            while data := self.client.recv(_CHUNK_BYTES):
                seen = seen[-256:] + data
                fault = self._proxy.take_fault(seen)
                if fault is None:
                    self.server.sendall(data)
                    continue
                seen = b""
                match fault.moment:
                    case "before":
                        self.break_off(fault)
                        return
                    case "sent":
                        self.server.sendall(data)
                        self.break_off(fault)
                        return
                    case "answered" | "silent":
                        with self._mutex:
                            self._swallowing = fault
                        self.server.sendall(data)
        self.cut()

    def _pump_down(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.server.recv(_CHUNK_BYTES):
                with self._mutex:
                    fault = self._swallowing
                if fault is None:
                    self.client.sendall(data)
                    continue
                if fault.moment == "answered":
                    self.break_off(fault)
                    return
                fault.happened.set()  # silent: the answer is kept from the client, and the connection stays open
        self.cut()

    def break_off(self, fault: ProxyFault) -> None:
        """Do what a fault asks for."""
        if fault.refuse:
            self._proxy.refuse()
        self.cut()
        fault.happened.set()

    def cut(self) -> None:
        """Close both sides, without a goodbye in either direction."""
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()
        self._proxy.forget(self)


class FaultyProxy:
    """Passes TCP connections on to a server, and breaks them when told; a context manager that closes.

    Args:
        port: where the server listens.
        host: on which host.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._mutex = threading.Lock()
        self._links: set[_Link] = set()
        self._faults: list[ProxyFault] = []
        self._closed = False
        self._refuses = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy-accept", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            if self._refuses:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, timeout=_DEADLINE_S)
            except OSError:  # the server is away: so is the proxy
                client.close()
                continue
            server.settimeout(None)
            link = _Link(self, client, server)
            with self._mutex:
                if self._closed or self._refuses:
                    client.close()
                    server.close()
                    continue
                self._links.add(link)
            link.start()

    def redirect(self, port: int, host: str = "127.0.0.1") -> None:
        """Pass new connections on to another server, as a failover does."""
        self._target = (host, port)

    def fault(self, needle: bytes, moment: Moment, *, refuse: bool = False) -> ProxyFault:
        """Break, once, the connection on which these bytes next go to the server, and return the fault to wait for.

        Args:
            needle: bytes that mark the request, such as its event's text.
            moment: ``"before"``: the request does not reach the server. ``"sent"``: it does, and the connection is cut
                at once. ``"answered"``: the server has answered, and the client does not hear it. ``"silent"``:
                likewise, and the connection stays open.
            refuse: take no connections from then on, as ``refuse`` does.
        """
        fault = ProxyFault(needle, moment, refuse=refuse)
        with self._mutex:
            self._faults.append(fault)
        return fault

    def take_fault(self, seen: bytes) -> ProxyFault | None:
        """Return the fault that these bytes bring about, once."""
        with self._mutex:
            for fault in self._faults:
                if fault.needle in seen:
                    self._faults.remove(fault)
                    return fault
        return None

    def forget(self, link: _Link) -> None:
        """Drop a connection that is over."""
        with self._mutex:
            self._links.discard(link)

    @property
    def connections(self) -> int:
        """Connections that pass through now."""
        with self._mutex:
            return len(self._links)

    def cut_all(self) -> None:
        """Cut every connection; new ones pass."""
        with self._mutex:
            links = list(self._links)
        for link in links:
            link.cut()

    def refuse(self) -> None:
        """Cut every connection and take no new ones, until ``heal``."""
        self._refuses = True
        self.cut_all()

    def heal(self) -> None:
        """Take connections again, and forget the faults that have not happened."""
        with self._mutex:
            self._faults.clear()
        self._refuses = False

    def close(self) -> None:
        """Cut everything and stop listening."""
        with self._mutex:
            self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._listener.close()
        self.cut_all()

    def __enter__(self) -> Self:
        """Return the proxy; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the proxy."""
        self.close()
