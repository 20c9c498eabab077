"""Servers that the benchmark starts for itself and stops again."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from ._base import Missing

__all__ = ["Server", "unprivileged_user"]

_START_S = 30.0
_STOP_S = 20.0


def unprivileged_user() -> str | None:
    """Return whom to run a server as that refuses to be root's; None when we are not root ourselves.

    Raises:
        Missing: there is no such user.
    """
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody").pw_name
    except KeyError:
        raise Missing("it does not run as root, and there is no user nobody") from None


class Server:
    """A child process with its output in a file.

    Args:
        command: program and arguments.
        directory: where its output goes.
        is_up: says whether it answers; asked until it does.
        user: whom to run it as, if not as ourselves.
        stop_signal: what makes it end at once, with what it has stored left in order.

    Raises:
        Missing: it did not come up.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: str,
        is_up: Callable[[], bool],
        *,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._stop_signal = stop_signal
        self._output = os.path.join(directory, "server.out")
        with open(self._output, "wb") as output:
            # A session of its own, so that Ctrl-C reaches us alone, and we stop it when we are done with it.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=directory,
                user=user,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        try:
            while not is_up():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    reason = f"the server did not start: {self._last_line()}"
                    raise Missing(reason)
                time.sleep(0.02)
            self._check_preloaded()
        except BaseException:
            self.stop()
            raise

    def _check_preloaded(self) -> None:
        """See that what was preloaded into us is in the server too, as the loader only mutters when it cannot."""
        wanted = os.environ.get("LD_PRELOAD", "")
        if not wanted:
            return
        with open(f"/proc/{self._process.pid}/maps", encoding="utf-8", errors="replace") as maps:
            text = maps.read()
        if not all(path in text for path in wanted.split(":")):
            raise Missing("the server does not load what slows the disk")

    def _last_line(self) -> str:
        with open(self._output, encoding="utf-8", errors="replace") as output:
            return next((line.strip() for line in reversed(output.readlines()) if line.strip()), "no output")

    def stop(self) -> None:
        """Ask it to end, and insist when it does not."""
        if self._process.poll() is None:
            self._process.send_signal(self._stop_signal)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
