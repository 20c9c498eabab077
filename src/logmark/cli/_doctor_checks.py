"""What ``logmark doctor`` looks at, and what it makes of what it sees."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import errno
import importlib.metadata
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Literal

from ..protocol import LogmarkError
from ._text import error_text, plural

__all__ = [
    "Opinion",
    "check_by_trial",
    "check_descriptors",
    "check_file_system",
    "check_permissions",
    "check_place",
    "check_server",
    "check_space",
    "check_store",
    "check_versions",
]

Verdict = Literal["ok", "note", "bad"]

_REQUIRED = ("filelock", "orjson", "pykka", "structlog")
_EXTRAS = {
    "cli": "rich",
    "fast": "isal",
    "gateway": "websockets",
    "nats": "nats-py",
    "otel": "opentelemetry-api",
    "postgres": "psycopg",
    "prometheus": "prometheus_client",
}
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs", "fuse.sshfs"})
_VOLATILE = frozenset({"tmpfs", "ramfs"})
_SPACE_BYTES_LOW = 1 << 30
_DESCRIPTORS_LOW = 1024
_SYNCS = 60
_SYNC_S_TOO_GOOD = 10e-6
_SYNC_S_SLOW = 10e-3
_CLOCK_OFF_S = 2.0
_PEER_S = 30.0

_TRY_LOCK = """
import os, sys
from filelock import lock_descriptor
print("granted" if lock_descriptor(os.open(sys.argv[1], os.O_RDWR), blocking=False) else "refused")
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Opinion:
    """What one check has found.

    Attributes:
        check: its name.
        verdict: ``ok``; ``note``: worth knowing; ``bad``: a promise would not hold, or nothing would work.
        says: a sentence.
    """

    check: str
    verdict: Verdict
    says: str


def check_versions() -> Iterator[Opinion]:
    """Say what is installed."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Opinion("python", "ok", f"Python {python} on {sys.platform} is supported.")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _REQUIRED)
    yield Opinion("packages", "ok", f"logmark {importlib.metadata.version('logmark')} runs with {versions}.")
    there, missing = list[str](), list[str]()
    for extra, package in _EXTRAS.items():
        try:
            there.append(f"{extra} ({package} {importlib.metadata.version(package)})")
        except importlib.metadata.PackageNotFoundError:
            missing.append(extra)
    said = f"Installed extras: {', '.join(there) or 'none'}."
    if missing:
        said += f" Not installed: {', '.join(missing)}; 'pip install logmark[{missing[0]}]' brings one where needed."
    yield Opinion("extras", "ok", said)


def check_place(path: str, existing: str) -> Opinion:
    """Say whether there is anything at the store's place."""
    if os.path.abspath(path) == existing:
        return Opinion("place", "ok", f"{existing} is there.")
    return Opinion("place", "note", f"{os.path.abspath(path)} is not there yet; what follows is about {existing}.")


def check_permissions(existing: str) -> Opinion:
    """Say whether this user may write there."""
    mode = os.stat(existing).st_mode & 0o7777
    if not os.access(existing, os.R_OK | os.W_OK | (os.X_OK if os.path.isdir(existing) else 0)):
        return Opinion(
            "permissions",
            "bad",
            f"This user (uid {_uid()}) may not read and write {existing} (mode {mode:o}): appends would be refused.",
        )
    if os.path.isdir(existing) and mode & 0o002 and not mode & 0o1000:
        return Opinion(
            "permissions", "note", f"Everybody may write into {existing} (mode {mode:o}): others could remove a store."
        )
    return Opinion("permissions", "ok", f"This user (uid {_uid()}) may read and write there (mode {mode:o}).")


def _uid() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def check_file_system(existing: str) -> Opinion:
    """Say which file system it is, and whether it is one for a log."""
    name = _file_system(existing)
    if name is None:
        return Opinion(
            "file system", "note", "This system does not say which file system it is; the trials below count."
        )
    if name in _NETWORK:
        return Opinion(
            "file system",
            "bad",
            f"It is a network file system ({name}): locks and syncs may not mean there what they mean on a disk. Keep"
            " the store on a local disk, or use a server engine (docs/engines.md).",
        )
    if name in _VOLATILE:
        return Opinion("file system", "bad", f"It is in memory ({name}): everything is gone when the machine restarts.")
    if name.startswith("fuse"):
        return Opinion(
            "file system", "note", f"It is a file system of a program ({name}): its syncs are as good as it is."
        )
    if name == "overlay":
        return Opinion(
            "file system",
            "note",
            "It is a layer of a container (overlay): it is gone with the container; use a volume.",
        )
    return Opinion("file system", "ok", f"It is {name}, a file system of a local disk.")


def _file_system(path: str) -> str | None:
    """Return the type of the file system that a path is on, None where the system does not say."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            device = os.stat(path).st_dev
            found = None
            for line in mounts:
                place, _, kind = line.partition(" - ")
                major, _, minor = place.split()[2].partition(":")
                if os.makedev(int(major), int(minor)) == device:
                    found = kind.split()[0]
            return found or _by_longest_mount(path)
    except (OSError, ValueError, IndexError):
        return None


def _by_longest_mount(path: str) -> str | None:
    """Return the same by names, for file systems whose files have other device numbers than their mount."""
    real, best, found = os.path.realpath(path), -1, None
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            mount, kind = line.split()[1:3]
            if os.path.commonpath((mount, real)) == mount and len(mount) > best:
                best, found = len(mount), kind
    return found


def check_space(existing: str) -> Opinion:
    """Say how much room there is."""
    if not hasattr(os, "statvfs"):
        return Opinion("space", "note", "This system does not say how much room there is.")
    found = os.statvfs(existing)
    free = found.f_bavail * found.f_frsize
    said = f"{free / 1e9:,.1f} GB are free"
    if found.f_files and not found.f_favail:
        return Opinion("space", "bad", f"{said}, but no file can be made: the file system has no inode left.")
    if free < _SPACE_BYTES_LOW:
        return Opinion("space", "note", f"Only {said}; a full disk refuses appends, and loses none.")
    return Opinion("space", "ok", f"{said}.")


def check_descriptors() -> Opinion:
    """Say how many files the process may open."""
    try:
        import resource
    except ImportError:
        return Opinion("descriptors", "note", "This system has no limit of open files to ask for.")
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < _DESCRIPTORS_LOW:
        return Opinion(
            "descriptors", "note", f"A process may open {limit} files: raise it (ulimit -n) for many busy sessions."
        )
    return Opinion("descriptors", "ok", f"A process may open {limit:,} files; an idle session needs none.")


def check_by_trial(directory: str) -> Iterator[Opinion]:
    """Make a file, lock it, write and sync it, and look at its time."""
    path = os.path.join(directory, f".logmark-doctor-{os.getpid()}")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        yield Opinion("trial", "bad", f"No file can be made in {directory}: {error.strerror}.")
        return
    try:
        yield _try_lock(fd, path)
        yield _try_sync(fd)
        yield _try_clock(fd)
    except OSError as error:
        yield Opinion("trial", "bad", f"A file in {directory} cannot be used: {error.strerror}.")
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _try_lock(fd: int, path: str) -> Opinion:
    from filelock import lock_descriptor, unlock_descriptor

    lock_descriptor(fd, blocking=False)
    try:
        answer = _ask_other_process(path)
    finally:
        unlock_descriptor(fd)
    if answer != "refused":
        return Opinion(
            "lock",
            "bad",
            f"Another process was not kept out by a lock ({answer}): two writers would damage a log.",
        )
    answer = _ask_other_process(path)
    if answer != "granted":
        return Opinion("lock", "bad", f"A lock that was released could not be taken by another process ({answer}).")
    return Opinion("lock", "ok", "A lock keeps another process out, and lets it in when it is released.")


def _ask_other_process(path: str) -> str:
    command = [sys.executable, "-c", _TRY_LOCK, path]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_PEER_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"no answer in {_PEER_S:g} s"
    return ran.stdout.strip() or (ran.stderr.strip().splitlines() or ["no answer"])[-1]


def _try_sync(fd: int) -> Opinion:
    sync = getattr(os, "fdatasync", os.fsync)
    taken: list[float] = []
    for number in range(_SYNCS):
        os.pwrite(fd, b"x" * 400, number * 400)
        began = time.perf_counter()
        sync(fd)
        taken.append(time.perf_counter() - began)
    median, worst = statistics.median(taken), max(taken)
    said = f"A sync takes {_duration(median)} (at worst {_duration(worst)}, of {_SYNCS})"
    if median < _SYNC_S_TOO_GOOD:
        return Opinion(
            "sync",
            "note",
            f"{said}, which no disk can do: something acknowledges writes before they are durable.",
        )
    means = f"one caller can append at most {1 / median:,.0f} times a second; many at once share a sync"
    return Opinion("sync", "note" if median > _SYNC_S_SLOW else "ok", f"{said}: {means}.")


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"  # noqa: PLR2004


def _try_clock(fd: int) -> Opinion:
    os.utime(fd)
    off = os.fstat(fd).st_mtime - time.time()
    now = dt.datetime.now(dt.UTC)
    if abs(off) > _CLOCK_OFF_S:
        return Opinion(
            "clock",
            "note",
            f"The file system's clock is {off:+.1f} s off this machine's, which events get their times from.",
        )
    made = dt.datetime.fromtimestamp(os.stat(__file__).st_mtime, dt.UTC)
    if now < made - dt.timedelta(days=1):
        return Opinion(
            "clock", "bad", f"The clock says {now:%Y-%m-%d %H:%M} UTC, which is before this program was installed."
        )
    return Opinion("clock", "ok", f"The clock says {now:%Y-%m-%d %H:%M:%S} UTC, and the file system agrees.")


def check_store(url: str, path: str) -> Iterator[Opinion]:
    """Open the store that is there, and look at its sessions without reading their events."""
    if not os.path.lexists(path):
        return
    from ._stores import open_existing

    try:
        with open_existing(url) as runtime:
            halted, damaged, count = list[str](), list[str](), 0
            for info in runtime.sessions():
                count += 1
                if info.damage is not None:
                    damaged.append(info.session_id)
                elif info.halted is not None:
                    halted.append(info.session_id)
    except (LogmarkError, OSError) as error:
        yield Opinion(
            "store", "note" if os.path.isdir(path) and not os.listdir(path) else "bad", f"{error_text(error)}."
        )
        return
    said = f"The store has {plural(count, 'session')}"
    if halted or damaged:
        named = ", ".join(repr(name) for name in (damaged + halted)[:5])
        yield Opinion(
            "store",
            "bad",
            f"{said}; {len(damaged)} damaged and {len(halted)} halted, such as {named}: run 'logmark verify', then"
            " 'logmark repair'.",
        )
    else:
        yield Opinion("store", "ok", f"{said}, none halted or known to be damaged; 'logmark verify' reads them all.")


def check_server(url: str) -> Iterator[Opinion]:
    """Say whether a server answers, and how quickly."""
    from ._stores import open_existing

    began = time.perf_counter()
    try:
        with open_existing(url) as runtime:
            opened_s = time.perf_counter() - began
            taken: list[float] = []
            for _ in range(10):
                before = time.perf_counter()
                runtime.store.last_seq("doctor")
                taken.append(time.perf_counter() - before)
            shown = runtime.store.url
    except (LogmarkError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOENT:
            yield Opinion("server", "note", f"It answers, and the first open will make a store: {error_text(error)}.")
            return
        yield Opinion("server", "bad", f"{error_text(error)}.")
        return
    yield Opinion("server", "ok", f"{shown} was opened in {opened_s * 1000:.0f} ms, and its settings were accepted.")
    yield Opinion(
        "round trip",
        "ok",
        f"A question takes {_duration(statistics.median(taken))} there and back; no append by one caller is quicker.",
    )
