"""Which process runs a job, and whether it still lives.

An instance id names host, boot, process namespace, process and its start, so that on the same machine the kernel can be
asked. Elsewhere nobody can see the process: there it counts as alive as long as it says so, in a log of its own.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["Instance", "instance_log"]

_living: set[str] = set()  # the instances of this process
_PLACE = 3  # host, boot and namespace come first in an id


def instance_log(instance_id: str) -> str:
    """Return the session that an instance says its life signs in."""
    return f"arcp/instances/{instance_id.rsplit(':', 1)[1]}"


def _text_of(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().strip()
    return ""


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return ""


def _start_of(pid: int) -> str | None:
    """Return when a process started, in the kernel's ticks; "" where that cannot be told, None for no process."""
    stat = _text_of(f"/proc/{pid}/stat")
    if stat:
        fields = stat.rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else fields[19]  # a zombie runs no job
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return ""
    return ""


class Instance:
    """This gateway, as others see it, and what it sees of others."""

    def __init__(self, runtime: Runtime, nonce: str, *, silence_s: float) -> None:
        self._runtime = runtime
        self._silence_s = silence_s
        host = socket.gethostname().replace(":", "-")
        self._place = [host, _text_of("/proc/sys/kernel/random/boot_id"), _namespace()]
        self.id = ":".join([*self._place, str(os.getpid()), _start_of(os.getpid()) or "", nonce])
        self._beaten_at: float | None = None
        self.epoch = 0
        """Counts how often it was silent for so long that others may have given it up."""
        _living.add(self.id)

    def beat(self) -> None:
        """Say that this instance lives; raises as ``Session.append`` does."""
        at = self._runtime.clock.monotonic()
        self._runtime.session(instance_log(self.id)).append("arcp.instance_alive", {"instance": self.id})
        if not self.is_trusted:
            self.epoch += 1
        self._beaten_at = at

    @property
    def is_trusted(self) -> bool:
        """Whether no other process can have given this one up: its last life sign is recent."""
        at = self._beaten_at
        return at is not None and self._runtime.clock.monotonic() - at < self._silence_s / 2

    def end(self) -> None:
        """Note that this instance runs nothing any more."""
        _living.discard(self.id)

    def is_gone(self, instance_id: str) -> bool:
        """Say whether an instance has certainly, or after its silence presumably, died."""
        if instance_id == self.id:
            return False
        parts = instance_id.split(":")
        if parts[:_PLACE] == self._place:
            pid, start = int(parts[_PLACE]), parts[_PLACE + 1]
            if pid == os.getpid() and start == (_start_of(pid) or ""):
                return instance_id not in _living
            return _start_of(pid) != start
        page = self._runtime.session(instance_log(instance_id)).page(limit=1)
        if not page.events:
            return True
        said_at = page.events[-1].timestamp
        now_s = self._runtime.clock.time_ns() / 1e9
        return said_at is None or now_s - said_at.timestamp() > self._silence_s
