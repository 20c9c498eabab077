"""Repair: make a session's log sound again, say what was done, and keep every byte that is taken out.

Rules, row by row, in the order of writing:

* a sound row whose number comes next stays;
* a sound row with a higher number stays, and the numbers before it, which are lost, become a reservation;
* a row whose number is spent (zero, a duplicate, two writers interleaved) gets the next number;
* a row that cannot be read, or whose checksum does not match although its number does, is taken out, and its number
  becomes a reservation: a number that anyone was told is never given to another event;
* sound rows that a damaged newline has joined are taken apart first.

The session is halted while this goes on, and the originals are copied aside first; a repair that is interrupted starts
again from the copies. Sound logs of a halted session are rewritten too: after a failed sync the page cache, which is
all that a verification can read, is not what the disk holds.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import orjson

from ..protocol import (
    ROW_PREFIX,
    EncodedEvent,
    Limits,
    SchemaMismatch,
    crc32,
    decode_row,
    encode_row,
    row_seed,
    split_row,
)
from ._files import Files, make_file, write_all
from ._halt import HaltMarker
from ._head import Head
from ._layout import HEAD, LIFETIME, QUARANTINE, REPAIR, available, is_derived, segment_first_seq, segment_name
from ._lifetime import LifetimeFile
from ._logging import Logger
from ._segment import RowCheck, blocks_of, encode_header, encode_reservation
from ._verify import read_head, verify_session

__all__ = ["repair_session"]

_COPIED = "copied"  # every original is in the directory
_DONE = "done"  # and the repair that needed them is over
_ROW_END = re.compile(rb',"crc":"([0-9a-f]{8})"\}')


@dataclasses.dataclass(slots=True)
class _Kept:
    """One line of the repaired log."""

    seq: int
    line: bytes
    is_event: bool


class _Walk:
    """Applies the rules to the rows in order and notes what they do."""

    def __init__(self, session_id: str, last_below: int) -> None:
        self._session_id = session_id
        self._seed = row_seed(session_id)
        self._check = RowCheck(session_id)
        self.steps: list[str] = []
        self.seq = last_below
        self.through = 0

    def rows(self, lines: Iterator[tuple[str, int, bytes]], first: int, head: Head | None) -> Iterator[_Kept]:
        """Yield the lines of the repaired log.

        The rows of a commit are held back until the next one begins: an incomplete commit at the end of the log is the
        remains of a write that nobody was told of, unless the head says that it was durable.
        """
        self.through = first - 1
        held: list[_Kept] = []
        commit: list[int] | None = None
        before, missing = (self.seq, self.through), 0
        for place, offset, line in self._taken_apart(lines):
            if not line:
                continue
            batch = self._batch_of(line)
            if batch is not None and batch != commit:
                yield from held
                held, commit, before, missing = [], batch, (self.seq, self.through), batch[1] - batch[0] + 1
            if batch is not None:
                missing -= self._numbers_of(line)
            held += self._row(f"{place}:{offset}", line)
        if commit is not None and missing > 0 and (head is None or head.through < commit[1]):
            self.seq, self.through = before
            self.steps.append(f"take out an unacknowledged write that is not complete ({len(held)} rows)")
            held = []
        yield from held
        if head is not None and head.through > self.through:
            yield self._reserve(head.through, "are lost")

    def _taken_apart(self, lines: Iterator[tuple[str, int, bytes]]) -> Iterator[tuple[str, int, bytes]]:
        """Yield the lines; of one that begins with a sound row and goes on behind it, the row and the rest."""
        for place, offset, line in lines:
            rest, at = line, offset
            while not self._check.is_sound(rest):
                end = self._end_of_row(rest)
                if end is None:
                    break
                self.steps.append(f"{place}:{at + end}: put the newline after a row back")
                yield place, at, rest[:end]
                end += not rest.startswith(ROW_PREFIX, end)  # what was a newline, unless that is gone
                rest, at = rest[end:], at + end
            yield place, at, rest

    def _end_of_row(self, line: bytes) -> int | None:
        """Return where the sound row ends with which a line begins, if it begins with one and goes on behind it."""
        if not line.startswith(ROW_PREFIX):
            return None
        crc, done = self._seed, 0
        for found in _ROW_END.finditer(line, 0, len(line) - 1):
            crc, done = crc32(line[done : found.start()], crc), found.start()
            if found[1] == b"%08x" % crc:
                return found.end()
        return None

    @staticmethod
    def _numbers_of(line: bytes) -> int:
        row = orjson.loads(line)
        return int(row["seq"] - row.get("reserved", row["seq"]) + 1)

    def _batch_of(self, line: bytes) -> list[int] | None:
        row = decode_row(line) if self._check.is_sound(line) else None
        return None if row is None else row["batch"]

    def _row(self, place: str, line: bytes) -> Iterator[_Kept]:
        row = decode_row(line)
        sound = self._check.is_sound(line)
        number: Any = None if row is None else row.get("seq")
        known = isinstance(number, int) and not isinstance(number, bool)
        expected = self.through + 1
        if sound and row is not None and "reserved" in row:
            yield from self._reservation(place, row, line)
            return
        spent = row is not None and (not known or number < expected)
        event = _event_of(line, row, self._session_id) if sound or spent else None
        if event is None:
            self.steps.append(f"{place}: take out what cannot be read ({len(line)} bytes)")
            return
        if sound and number > expected:
            yield self._reserve(number - 1, "are lost")
        elif number != expected:
            checked = "" if sound else "; its checksum did not match, its content is taken as it is"
            self.steps.append(f"{place}: number {number!r} is spent: becomes {expected}{checked}")
        yield self._event(event)

    def _reservation(self, place: str, row: dict[str, Any], line: bytes) -> Iterator[_Kept]:
        if row["seq"] <= self.through:
            self.steps.append(f"{place}: take out a reservation of spent numbers")
            return
        same = row["reserved"] == self.through + 1
        kept = self._reserve(row["seq"], None)
        if same:
            kept.line = line + b"\n"
        yield kept

    def _reserve(self, last: int, why: str | None) -> _Kept:
        if why is not None:
            self.steps.append(f"numbers {self.through + 1} to {last} {why}: reserve them, so that none is used again")
        line = encode_reservation(self._session_id, self.through + 1, last)
        self.through = last
        return _Kept(last, line, is_event=False)

    def _event(self, event: EncodedEvent) -> _Kept:
        self.through += 1
        self.seq = self.through
        line = encode_row(event, self.through, b"[%d,%d]" % (self.through, self.through), self._seed)
        return _Kept(self.through, line, is_event=True)


def _event_of(line: bytes, row: dict[str, Any] | None, session_id: str) -> EncodedEvent | None:
    """Return the event of a row, or None when it does not hold one."""
    if row is None or not isinstance(row.get("type"), str) or "payload" not in row:
        return None
    try:
        envelope = split_row(line, session_id, 0)
        orjson.loads(envelope.payload_json)
        head = envelope.head_json
        if head is not None and orjson.loads(b"{" + head + b"}").get("type") == row["type"]:
            return EncodedEvent(str(row.get("id")), row["type"], row.get("job"), head, envelope.payload_json)
    except ValueError:
        pass  # its sizes do not fit: take the members apart instead
    members = {name: row[name] for name in row if name not in {"v", "seq", "batch", "size", "payload", "crc"}}
    members.setdefault("id", f"repaired-{row.get('seq')}")
    payload = orjson.dumps(row["payload"])
    return EncodedEvent(str(members["id"]), row["type"], row.get("job"), orjson.dumps(members)[1:-1], payload)


class _Repair:
    """One repair of one session. The caller holds the session's lock."""

    def __init__(
        self,
        files: Files,
        session_id: str,
        path: str,
        limits: Limits,
        marker: HaltMarker,
        time_ns: int,
        log: Logger,
    ) -> None:
        self._files = files
        self._session_id = session_id
        self._path = path
        self._limits = limits
        self._time_ns = time_ns
        self._log = log
        self._seed = row_seed(session_id)
        self._marker = marker
        self._quarantine = os.path.join(path, QUARANTINE)
        self._lifetime_file = LifetimeFile(files, session_id, path)
        self._lifetime = self._lifetime_file.read_or_default()

    def run(self, *, dry_run: bool) -> list[str]:
        mended = self._mended_lifetime()
        if mended is not None and self._lifetime.deleted_at is not None:
            if not dry_run:
                self._lifetime_file.write(self._lifetime, sync=True)
            return [mended]
        interrupted = self._interrupted()
        if mended is None and interrupted is None and not self._segments(self._path):
            return self._run_empty(dry_run=dry_run)
        source = interrupted or self._path
        findings, error = verify_session(self._files, self._session_id, source, self._seed, self._limits)
        if isinstance(error, SchemaMismatch):
            raise error  # the version that wrote it understands it; this one would mangle it
        halted = self._marker.read()
        if interrupted is None and halted is None and all(finding.harmless for finding in findings):
            return []
        steps = ["start again from the originals of an interrupted repair"] if interrupted else []
        steps += [] if mended is None else [mended]
        head = read_head(self._files, source, self._seed)
        walk = _Walk(self._session_id, self._lifetime.last_below)
        if error is None:
            steps += [f"{finding.place or 'head'}: {finding.detail}" for finding in findings if finding.kind != "halt"]
        if dry_run:
            for _ in self._walk_all(walk, source, head):
                pass
        else:
            self._apply(walk, head, interrupted, is_mended=mended is not None)
        steps += walk.steps
        if halted is not None:
            steps.append(f"write the log anew and clear the halt ({halted.reason})")
        return steps

    def _run_empty(self, *, dry_run: bool) -> list[str]:
        """A session without a segment has nothing to repair but its halt, and what its head says is lost."""
        head = read_head(self._files, self._path, self._seed)
        halted = self._marker.read()
        walk = _Walk(self._session_id, self._lifetime.last_below)
        lines = list(walk.rows(iter(()), self._lifetime.first_available, head))
        if lines and not dry_run:
            self._write_segments(iter(lines))
            self._publish(walk)
        if halted is not None:
            walk.steps.append(f"clear the halt ({halted.reason})")
            if not dry_run:
                self._marker.remove()
        return walk.steps

    def _apply(self, walk: _Walk, head: Head | None, interrupted: str | None, *, is_mended: bool) -> None:
        self._marker.write(
            "a repair is under way or was interrupted: run 'logmark repair'", self._time_ns, None, self._log
        )
        originals = interrupted or self._copy_originals()
        if is_mended:
            self._lifetime_file.write(self._lifetime, sync=True)
        self._write_segments(self._walk_all(walk, originals, head))
        self._publish(walk)
        _, error = verify_session(self._files, self._session_id, self._path, self._seed, self._limits)
        if error is not None:
            raise error
        self._note(originals, _DONE)
        self._marker.remove()
        kept = os.path.relpath(originals, self._path)
        self._log.warning("session_repaired", steps=len(walk.steps), originals=kept)

    def _mended_lifetime(self) -> str | None:
        """Learn what becomes of a damaged lifetime file, and return a sentence about it; None when it is sound."""
        head = read_head(self._files, self._path, self._seed)
        found = self._lifetime_file.mended(self._segments(self._path), 0 if head is None else head.through)
        if found is None:
            return None
        self._lifetime = found[0]
        return found[1]

    def _interrupted(self) -> str | None:
        """Return the originals of a repair that had copied them and did not come to its end."""
        try:
            names = self._files.listdir(self._quarantine)
        except FileNotFoundError:
            return None
        for name in sorted(name for name in names if name.startswith(REPAIR)):
            inside = self._files.listdir(os.path.join(self._quarantine, name))
            if _COPIED in inside and _DONE not in inside:
                return os.path.join(self._quarantine, name)
        return None

    def _note(self, directory: str, name: str) -> None:
        """Put an empty file into a directory, durably."""
        self._files.close(self._files.open(os.path.join(directory, name), write=True, create=True))
        self._files.sync_dir(directory)

    def _copy_originals(self) -> str:
        files = self._files
        files.mkdir(self._quarantine)
        number = self._time_ns  # a name by which a person finds it, and one that no earlier repair has used
        while not files.mkdir(target_path := os.path.join(self._quarantine, f"{REPAIR}{number}")):
            number += 1
        try:
            for name in [*(segment_name(first) for first in self._segments(self._path)), HEAD, LIFETIME]:
                self._copy(name, target_path)
        except OSError:
            for name in files.listdir(target_path):
                files.unlink(os.path.join(target_path, name))  # on a full disk every attempt would leave another copy
            raise
        files.sync_dir(target_path)
        files.sync_dir(self._quarantine)
        files.sync_dir(self._path)
        self._note(target_path, _COPIED)
        return target_path

    def _copy(self, name: str, target_path: str) -> None:
        files = self._files
        try:
            source = files.open(os.path.join(self._path, name), write=False)
        except FileNotFoundError:
            return  # a head may be missing, and most sessions have no lifetime file
        try:
            target = files.open(os.path.join(target_path, name), write=True, create=True)
            try:
                files.truncate(target, 0)
                offset = 0
                while data := files.read(source, self._limits.read_chunk_bytes, offset):
                    write_all(files, target, data, offset)
                    offset += len(data)
                files.sync(target)
            finally:
                files.close(target)
        finally:
            files.close(source)

    def _walk_all(self, walk: _Walk, source: str, head: Head | None) -> Iterator[_Kept]:
        segments = self._segments(source)
        first = min([self._lifetime.first_available, *segments[:1]])
        return walk.rows(self._lines(source, segments), first, head)

    def _lines(self, source: str, segments: list[int]) -> Iterator[tuple[str, int, bytes]]:
        for first in segments:
            name = segment_name(first)
            fd = self._files.open(os.path.join(source, name), write=False)
            try:
                for base, lines, _ in blocks_of(self._files, fd, self._limits.read_chunk_bytes, 0):
                    at = base
                    for line in lines:
                        # Not the segment's own first line; but behind it, where its newline is damaged, is a row.
                        row = 0 if at > 0 or b'"logmark"' not in line else line.find(ROW_PREFIX)
                        if row >= 0:
                            yield name, at + row, line[row:]
                        at += len(line) + 1
            finally:
                self._files.close(fd)

    def _write_segments(self, rows: Iterator[_Kept]) -> None:
        """Write the repaired rows as new segments beside the old ones."""
        files = self._files
        for name in files.listdir(self._path):
            if name.endswith(".jsonl.new"):  # of an interrupted repair
                files.unlink(os.path.join(self._path, name))
        fd: int | None = None
        size = 0
        try:
            for kept in rows:
                if fd is None or size + len(kept.line) > self._limits.segment_bytes_max:
                    if fd is not None:
                        files.sync(fd)
                        files.close(fd)
                        fd = None
                    first = kept.seq if kept.is_event else orjson.loads(kept.line)["reserved"]
                    header = encode_header(self._session_id, first)
                    fd = make_file(files, os.path.join(self._path, segment_name(first) + ".new"), header, None)
                    size = len(header)
                write_all(files, fd, kept.line, size)
                size += len(kept.line)
            if fd is not None:
                files.sync(fd)
        finally:
            if fd is not None:
                files.close(fd)

    def _publish(self, walk: _Walk) -> None:
        """Put the new segments in place of the old ones. The halt marker stands: nobody reads in between."""
        files = self._files
        names = files.listdir(self._path)
        for name in filter(is_derived, names):  # it is made anew, of the new rows
            files.unlink(os.path.join(self._path, name))
        fresh = {name for name in names if name.endswith(".jsonl.new")}
        for first in self._segments(self._path):
            name = segment_name(first)
            if name + ".new" not in fresh:
                files.unlink(os.path.join(self._path, name))
        for name in fresh:
            files.rename(os.path.join(self._path, name), os.path.join(self._path, name.removesuffix(".new")))
        files.sync_dir(self._path)
        segments = self._segments(self._path)
        size = files.stat(os.path.join(self._path, segment_name(segments[-1]))).st_size if segments else 0
        head = Head(walk.seq, walk.through, segments[-1] if segments else 0, size)
        files.close(make_file(files, os.path.join(self._path, HEAD), head.encode(self._seed), files.sync))

    def _segments(self, path: str) -> list[int]:
        try:
            names = self._files.listdir(path)
        except FileNotFoundError:
            return []
        found = sorted(first for first in map(segment_first_seq, names) if first is not None)
        return available(found, self._lifetime.first_available)


def repair_session(
    files: Files,
    session_id: str,
    path: str,
    limits: Limits,
    *,
    marker: HaltMarker,
    time_ns: int,
    log: Logger,
    dry_run: bool,
) -> list[str]:
    """Repair a session whose lock the caller holds; return what was done (``dry_run``: what would be).

    ``marker`` is the caller's own, as it may know of a halt that the disk refused to take.

    Raises:
        LogCorrupt, SchemaMismatch: what came out is not sound either; the session stays halted, the originals are kept.
        OSError: the disk refused; the session stays halted, and the next repair starts again.
    """
    return _Repair(files, session_id, path, limits, marker, time_ns, log).run(dry_run=dry_run)
