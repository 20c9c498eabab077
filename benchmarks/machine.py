"""What the figures were measured on, in general words."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from importlib import metadata
from typing import Any

__all__ = ["describe", "file_system", "is_memory", "print_line", "sentence", "sync_us"]

_SYNCS = 200


def file_system(path: str) -> str:
    """Return the type of the file system that a path lies on, as the mount table has it."""
    path = os.path.realpath(path)
    best, kind = "", "unknown"
    try:
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            for line in mounts:
                _, point, found, *_ = line.split(" ")
                point = point.replace("\\040", " ")
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, found
    except OSError:  # no Linux: the name of the system has to do
        kind = platform.system()
    return kind


def is_memory(kind: str) -> bool:
    """Say whether a file system keeps its files in memory, so that a sync costs nothing."""
    return kind in {"tmpfs", "ramfs"}


def sync_us(directory: str, *, syncs: int = _SYNCS) -> float:
    """Return the median time of an ``fdatasync`` after appending 297 bytes, in microseconds."""
    path = os.path.join(directory, "sync-probe")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    times: list[int] = []
    try:
        for _ in range(syncs):
            os.write(fd, b"x" * 297)
            before = time.perf_counter_ns()
            os.fdatasync(fd)
            times.append(time.perf_counter_ns() - before)
    finally:
        os.close(fd)
        os.unlink(path)
    return statistics.median(times) / 1000


def describe(directory: str) -> dict[str, Any]:
    """Describe processor count, system, file system, disk and versions."""
    versions: dict[str, str] = {}
    for package in ("logmark", "pykka", "orjson", "filelock"):
        versions[package] = metadata.version(package)
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "file_system": file_system(directory),
        "fdatasync_p50_us": round(sync_us(directory), 1),
        "versions": versions,
    }


def sentence(about: dict[str, Any]) -> str:
    """Say in one line what ``describe`` found."""
    return (
        f"{about['cpus']} CPUs, {about['system']} {about['architecture']}, {about['file_system']}, {about['python']},"
        f" fdatasync p50 {about['fdatasync_p50_us']:.0f} µs"
    )


def print_line(about: dict[str, Any], *, slowed: bool = False) -> None:
    """Print what ``describe`` found, and warn when the disk is none."""
    print(sentence(about) + (" (slowed)" if slowed else ""))
    if is_memory(about["file_system"]):
        print(
            "warning: the stores are in memory, where a sync costs nothing; --store-dir names a directory on a disk",
            file=sys.stderr,
        )
