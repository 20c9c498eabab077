"""Run the other workers in forked children, so that a sweep pays for the imports once.

Reads one JSON object per line: ``{"worker": "append", "arguments": […], "output": OUTPUT, "errors": PATH}``, and
answers with two numbers, a line each: the child's process id at once, its wait status when it has ended. The child does
nothing until a tracer lets no access to OUTPUT succeed: then every later system call of it is seen.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import traceback
from typing import Any

import append
import repair

MAINS = {"append": append.main, "repair": repair.main}
TRACER_WAIT_S = 20.0
TRACER_POLL_S = 0.001
PR_SET_PTRACER = 0x59616D61
UNTRACED = 97


def wait_for_tracer(marker: str) -> None:
    # Where only ancestors may trace (Yama), this lets anybody; elsewhere it is refused and not needed.
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    pause = threading.Event()
    for _ in range(int(TRACER_WAIT_S / TRACER_POLL_S)):
        if not os.access(marker, os.F_OK):
            return
        pause.wait(TRACER_POLL_S)
    os._exit(UNTRACED)


def run_child(request: dict[str, Any], opened: list[int]) -> None:
    """Run a worker in this process and end it."""
    status = 1
    try:
        for number, fd in enumerate(opened, 1):
            os.dup2(fd, number)
        wait_for_tracer(request["output"])
        MAINS[request["worker"]](request["arguments"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        # Opened here, and left open in the child: its tracer may be there before it has done anything at all.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = [os.open(request[name], flags, 0o600) for name in ("output", "errors")]
        pid = os.fork()
        if pid == 0:
            run_child(request, opened)
        os.write(1, b"%d\n" % pid)
        for fd in opened:
            os.close(fd)
        _, status = os.waitpid(pid, 0)
        os.write(1, b"%d\n" % status)


if __name__ == "__main__":
    main()
