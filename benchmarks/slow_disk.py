"""A disk that takes a millisecond more for each sync: a small library, built on the spot and preloaded everywhere.

Cheap syncs hide what hand-offs cost, dear ones hide everything else; a design has to be good at both, and most machines
have only one kind of disk. The library is compiled with ``cc`` into a temporary directory, and the benchmark starts
itself anew with ``LD_PRELOAD`` set, which the servers that it starts inherit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from .participants import Missing

__all__ = ["EXTRA_US", "build", "environment", "is_on", "remove", "restart"]

EXTRA_US = 1000
_SOURCE = os.path.join(os.path.dirname(__file__), "slow_sync.c")
_DIRECTORY = "LOGMARK_BENCH_SLOW_DISK"
_DELAY = "LOGMARK_BENCH_SYNC_US"


def build(directory: str) -> str:
    """Compile the library into a directory and return its path.

    Raises:
        Missing: there is no compiler, or it refuses.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Missing("no C compiler: --slow-disk builds a small library with cc")
    library = os.path.join(directory, "slow_sync.so")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"the compiler refused: {done.stderr.strip()}"
        raise Missing(reason)
    os.chmod(directory, 0o755)  # a server may run as another user
    os.chmod(library, 0o755)
    return library


def environment(library: str, *, extra_us: int = EXTRA_US) -> dict[str, str]:
    """Return our environment with the library preloaded."""
    preload = ":".join(part for part in (library, os.environ.get("LD_PRELOAD", "")) if part)
    return {**os.environ, "LD_PRELOAD": preload, _DIRECTORY: os.path.dirname(library), _DELAY: str(extra_us)}


def is_on() -> bool:
    """Say whether this process was started with the library."""
    return _DIRECTORY in os.environ


def restart(arguments: Sequence[str]) -> None:
    """Start the benchmark anew in this process, under the library. Returns only by raising.

    Raises:
        Missing: the library cannot be built.
    """
    directory = tempfile.mkdtemp(prefix="logmark-bench-slow-")
    try:
        library = build(directory)
    except Missing:
        shutil.rmtree(directory)
        raise
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *arguments], environment(library))


def remove() -> None:
    """Delete the library that this process was started with."""
    shutil.rmtree(os.environ[_DIRECTORY], ignore_errors=True)
