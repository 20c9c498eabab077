"""The safeguards, and how each is taken out.

A safeguard is a line or two of the code without which a promise does not hold. ``run.py`` takes one out at a time, in a
copy, and expects the tests that are named here to notice.
"""

from __future__ import annotations

import dataclasses

__all__ = ["SAFEGUARDS", "Safeguard"]

SESSION_LOG = "storage/_session_log.py"
RECOVERY = "storage/_recovery.py"
REPAIR = "storage/_repair.py"
HALT = "storage/_halt.py"
SEGMENT = "storage/_segment.py"
FILES = "storage/_files.py"
LOCK = "storage/_lock.py"
ROW = "protocol/_row.py"
SESSION_ACTOR = "actors/_session.py"
SUBSCRIPTION = "src/logmark/_subscription.py"

ORDER = "tests/test_write_order.py"
CRASHES = "tests/test_crash_states.py"
HALTS = "tests/test_halts.py"
DAMAGE = "tests/test_damage.py"
HEADS = "tests/test_head_and_recovery.py"
SEGMENTS = "tests/test_segments.py"
PROCESSES = "tests/test_two_processes.py"
CONFORMANCE = "tests/test_conformance_files.py"
PLACES = "tests/test_odd_places.py"
SYSCALLS = "tests/test_real_syscalls.py"
DISKS = "tests/test_real_disks.py"
MENDING = "tests/test_interrupted_recovery.py"


@dataclasses.dataclass(frozen=True)
class Safeguard:
    """One safeguard.

    Attributes:
        name: what it does, in the words of the table.
        path: the file that it is in.
        text: what to replace; must be there exactly once.
        without: what to put in its place.
        tests: arguments of pytest, the tests that should notice.
    """

    name: str
    path: str
    text: str
    without: str
    tests: tuple[str, ...]


SAFEGUARDS = (
    # -- durable before anything else -------------------------------------------------------------------------------
    Safeguard(
        "sync of the rows before the answer",
        SESSION_LOG,
        "            self._sync(fd, first_event_id)\n            sync_s",
        "            sync_s",
        (ORDER,),
    ),
    Safeguard(
        "head written after the sync",
        SESSION_LOG,
        "            write_all(self._files, fd, rows, start)\n            began",
        "            write_all(self._files, fd, rows, start)\n"
        "            self._write_head(Tail(seq, through, tail.segment, start + len(rows), tail.inode))\n"
        "            began",
        (ORDER,),
    ),
    Safeguard(
        "sync of a new segment",
        SESSION_LOG,
        "            write_all(files, fd, header, 0)\n            self._sync(fd)\n",
        "            write_all(files, fd, header, 0)\n",
        (ORDER, CRASHES),
    ),
    Safeguard(
        "sync of the directory of a new segment",
        SESSION_LOG,
        "            files.rename(fresh, path)\n            self._sync_dir(self.path)\n",
        "            files.rename(fresh, path)\n",
        (ORDER,),
    ),
    Safeguard(
        "sync of the directory of a new session",
        SESSION_LOG,
        "            if tail.segment == 0:\n",
        "            if tail.segment < 0:\n",
        (ORDER,),
    ),
    Safeguard(
        "head names a new segment before it is there",
        SESSION_LOG,
        "            if tail.segment:\n                self._write_head(Tail(tail.seq, tail.through, first, 0, 0))\n",
        "",
        (SEGMENTS,),
    ),
    Safeguard(
        "readers stop where the head does",
        SESSION_LOG,
        "        head, unwritten = self._reader.read_head(self._head_fd), self._unwritten_head\n",
        "        head, unwritten = self._reader.scan_position(damaged_ok=True), self._unwritten_head\n",
        (ORDER, HEADS),
    ),
    # -- failures ---------------------------------------------------------------------------------------------------
    Safeguard(
        "halt after a failed sync",
        SESSION_LOG,
        "        self._set_halt(reason, first_event_id)\n        return AppendUncertain",
        "        return AppendUncertain",
        (HALTS,),
    ),
    Safeguard(
        "a failed sync is not tried again",
        SESSION_LOG,
        "                self._files.sync(fd)\n"
        "            except BaseException as error:\n"
        '                raise self._uncertain(f"sync failed: {error}", first_event_id) from error\n',
        "                self._files.sync(fd)\n"
        "            except BaseException:\n"
        "                self._files.sync(fd)\n",
        (HALTS,),
    ),
    Safeguard(
        "roll-back of a write that found no space",
        SESSION_LOG,
        "            self._roll_back(fd, start, first_event_id)\n",
        "",
        (HALTS,),
    ),
    Safeguard(
        "sync of the roll-back",
        SESSION_LOG,
        "            self._files.truncate(fd, size)\n"
        "            if self._env.sync:\n"
        "                self._files.sync(fd)\n",
        "            self._files.truncate(fd, size)\n",
        (HALTS, CRASHES),
    ),
    Safeguard(
        "a failed roll-back halts",
        SESSION_LOG,
        '            raise self._uncertain(f"roll-back failed: {error}", first_event_id) from error\n',
        "            return\n",
        (HALTS,),
    ),
    Safeguard(
        "short writes are continued",
        FILES,
        "    while written < len(data):",
        "    while written < 0:",
        (HALTS,),
    ),
    Safeguard(
        "a halt is cleared only when the log is sound",
        SESSION_LOG,
        "            verify()\n            self._halt_marker.remove()\n",
        "            self._halt_marker.remove()\n",
        (HALTS,),
    ),
    Safeguard(
        "a halt holds in every process",
        SESSION_LOG,
        "        self._halt = self._halt_marker.read()\n"
        "        if self._halt is not None:\n"
        "            raise self._halted_error(self._halt)\n"
        "        segments",
        "        segments",
        (CONFORMANCE, HALTS),
    ),
    Safeguard(
        "a halt holds for a process that believes to know the tail",
        SESSION_LOG,
        "        return not self._halt_marker.stands()\n",
        "        return True\n",
        (MENDING,),
    ),
    Safeguard(
        "a halt that the disk does not take holds in its process",
        HALT,
        "            self.unwritten = record\n            log",
        "            log",
        (HALTS,),
    ),
    Safeguard(
        "a halt is synced",
        HALT,
        "            self._files.sync(fd)\n        finally:\n",
        "        finally:\n",
        (MENDING,),
    ),
    Safeguard(
        "the name of a halt is synced",
        HALT,
        "            return record\n        try:\n            self._files.sync_dir(os.path.dirname(self._path))\n",
        "            return record\n        try:\n            pass\n",
        (MENDING,),
    ),
    Safeguard(
        "a full disk does not keep what is there from being read",
        SESSION_LOG,
        "errno.EPERM, errno.ENOSPC, errno.EDQUOT}",
        "errno.EPERM}",
        (DISKS, "-k", "small_disk"),
    ),
    Safeguard(
        "a copy of a torn tail that found no space is removed",
        RECOVERY,
        "            files.unlink(kept)  # on a full disk every attempt would leave another\n",
        "",
        (DISKS, "-k", "small_disk"),
    ),
    Safeguard(
        "a failed unlock does not fail what was done",
        LOCK,
        "            except OSError:\n                self.close()  # which",
        "            except ZeroDivisionError:\n                self.close()  # which",
        (SYSCALLS, "-k", "fail and flock"),
    ),
    Safeguard(
        "a failed close does not fail what was done",
        FILES,
        "            if error.errno == errno.EBADF:",
        "            if error.errno:",
        (SYSCALLS, "-k", "fail and close"),
    ),
    # -- recovery ---------------------------------------------------------------------------------------------------
    Safeguard(
        "a commit counts only when it is whole",
        SEGMENT,
        "                if at_through == batch[1]:\n",
        "                if at_through:\n",
        (HEADS,),
    ),
    Safeguard(
        "rows that were durable and are missing are reported",
        RECOVERY,
        "        if head is not None and head.through > scan.through:\n",
        "        if head is not None and head.through < 0:\n",
        (DAMAGE, HEADS),
    ),
    Safeguard(
        "what is cut is kept",
        RECOVERY,
        "            while offset < size:\n",
        "            while offset < 0:\n",
        (HEADS,),
    ),
    Safeguard(
        "what is cut is kept durably before it is cut",
        RECOVERY,
        "            self._sync(copy)\n",
        "",
        (MENDING,),
    ),
    Safeguard(
        "the cut is synced",
        RECOVERY,
        "        files.truncate(fd, end)\n        self._sync(fd)\n",
        "        files.truncate(fd, end)\n",
        (MENDING,),
    ),
    Safeguard(
        "rows beyond the head are synced before they count",
        RECOVERY,
        "            self._sync(fd)\n            self._sync_dir(self._reader.path)\n            if head is None:\n",
        "            if head is None:\n",
        (CRASHES, HEADS),
    ),
    Safeguard(
        "rows beyond the head are written once more",
        RECOVERY,
        "            self._rewrite(fd, head.size if head is not None and resumed else header_end, scan.end)\n",
        "",
        (CRASHES, HEADS, HALTS),
    ),
    Safeguard(
        "torn is told from damaged",
        SEGMENT,
        "                    if batch[0] != found.through + 1:\n",
        "                    if batch[0] < 0:\n",
        (MENDING,),
    ),
    Safeguard(
        "an older copy in place of the log is refused",
        SESSION_LOG,
        "            if tail.through < self._through_seen:",
        "            if tail.through < 0:",
        (HEADS,),
    ),
    Safeguard(
        "half-made files are removed",
        "storage/_log_reader.py",
        '                if name.endswith(".new"):\n',
        '                if name.endswith(".never"):\n',
        (SEGMENTS,),
    ),
    # -- damage -----------------------------------------------------------------------------------------------------
    Safeguard(
        "checksum of each row that is read",
        SEGMENT,
        "                if not line.endswith(tail) or not line.startswith(prefix):\n",
        "                if not line.startswith(prefix):\n",
        (DAMAGE,),
    ),
    Safeguard(
        "checksum of each row that is recovered",
        SEGMENT,
        "        return line.endswith(tail) and line.startswith(ROW_PREFIX)\n",
        "        return line.startswith(ROW_PREFIX)\n",
        (DAMAGE, HEADS),
    ),
    Safeguard(
        "checksum starts from the session id",
        ROW,
        "    return zlib.crc32(session_id.encode())\n",
        "    return 0\n",
        (DAMAGE,),
    ),
    Safeguard(
        "first line of a segment",
        SEGMENT,
        '        if line + b"\\n" == encode_header(self._session_id, self.first_seq) and newline:\n',
        "        if newline:\n",
        (DAMAGE,),
    ),
    Safeguard(
        "numbers of the rows that are read are dense",
        SEGMENT,
        "                if expected is not None and seq != expected:\n",
        "                if expected is None:\n",
        (DAMAGE,),
    ),
    Safeguard(
        "numbers of the rows that are recovered are dense",
        SEGMENT,
        "                if first != at_through + 1 or batch != (pending or [first, batch[1]]):\n",
        "                if first < 0:\n",
        (DAMAGE,),
    ),
    Safeguard(
        "other schema versions are refused",
        SEGMENT,
        "        if version != SCHEMA_VERSION:\n",
        "        if version == -1:\n",
        (DAMAGE,),
    ),
    Safeguard(
        "an interrupted repair starts again from its originals",
        REPAIR,
        "            if _COPIED in inside and _DONE not in inside:\n",
        "            if _COPIED in inside and not inside:\n",
        ("tests/test_repair.py", SYSCALLS, "-k", "repair"),
    ),
    Safeguard(
        "a session is halted while it is repaired",
        REPAIR,
        '        self._marker.write(\n            "a repair is under way',
        '        (lambda *_: None)(\n            "a repair is under way',
        ("tests/test_repair.py", SYSCALLS, "-k", "repair"),
    ),
    Safeguard(
        "originals are synced before a repair",
        REPAIR,
        "                files.sync(target)\n",
        "",
        (MENDING,),
    ),
    Safeguard(
        "repaired segments are synced before they are put in place",
        REPAIR,
        "        if fd is not None:\n            files.sync(fd)\n            files.close(fd)\n\n    def _publish",
        "        if fd is not None:\n            files.close(fd)\n\n    def _publish",
        (MENDING,),
    ),
    # -- several processes, and odd files ---------------------------------------------------------------------------
    Safeguard(
        "tail looked at again under the lock",
        SESSION_LOG,
        "            if not self._tail_is_current():\n",
        "            if self._tail is None:\n",
        (CONFORMANCE, PROCESSES),
    ),
    Safeguard(
        "one writer at a time",
        LOCK,
        "            if files.lock(self._fd):\n",
        "            if files.lock(self._fd) or True:\n",
        (PROCESSES,),
    ),
    Safeguard(
        "the lock is that of the file in place",
        LOCK,
        "        return (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev)\n",
        "        return True\n",
        (PROCESSES, DISKS, "-k", "lock"),
    ),
    Safeguard(
        "a forked child drops the lock",
        "storage/_file_store.py",
        "            log.drop_lock()\n",
        "            pass\n",
        (PROCESSES, "-k", "fork"),
    ),
    Safeguard(
        "links are not followed",
        FILES,
        "flags = os.O_CLOEXEC | _NO_FOLLOW | _NON_BLOCK |",
        "flags = os.O_CLOEXEC | _NON_BLOCK |",
        (PLACES,),
    ),
    Safeguard(
        "a FIFO is not waited for",
        FILES,
        "flags = os.O_CLOEXEC | _NO_FOLLOW | _NON_BLOCK |",
        "flags = os.O_CLOEXEC | _NO_FOLLOW |",
        (PLACES, "-k", "fifo"),
    ),
    Safeguard(
        "only regular files are opened",
        FILES,
        "        if not stat.S_ISREG(os.fstat(fd).st_mode):\n",
        "        if os.fstat(fd).st_mode < 0:\n",
        (PLACES,),
    ),
    # -- ids and expectations ---------------------------------------------------------------------------------------
    Safeguard(
        "expected_seq is compared",
        SESSION_LOG,
        "            if answer is None and request.expected_seq is not None and request.expected_seq != seq:\n",
        "            if answer is None and request.expected_seq is not None and request.expected_seq < 0:\n",
        (CONFORMANCE, "-k", "TestFileEngine and expectation"),
    ),
    Safeguard(
        "a retry gets its first number",
        SESSION_LOG,
        "        if all(event.id_is_fresh for request in requests for event in request.events):\n"
        "            return None\n",
        "        return None\n",
        (CONFORMANCE, "-k", "TestFileEngine and retry"),
    ),
    Safeguard(
        "ids are looked at before expected_seq",
        SESSION_LOG,
        "            if known is not None or len(request.events) > 1 or pending:\n",
        "            if request.expected_seq is None and (known is not None or len(request.events) > 1 or pending):\n",
        (CONFORMANCE, "-k", "TestFileEngine and (ids or retry)"),
    ),
    # -- the end of a program, and forks -----------------------------------------------------------------------------
    Safeguard(
        "closing waits for what was accepted",
        "src/logmark/_runtime.py",
        "            drained = [session.drain(deadline) for session in sessions]\n",
        "            drained = [True for session in sessions]\n",
        ("tests/test_shutdown.py", "tests/test_actor_close.py"),
    ),
    Safeguard(
        "a forked child is told so",
        "src/logmark/_runtime.py",
        "        self._forked = True\n",
        "        self._forked = False\n",
        ("tests/test_real_processes.py", "-k", "forked"),
    ),
    # -- actors -----------------------------------------------------------------------------------------------------
    Safeguard(
        "shown only after the answer of the writer",
        SESSION_ACTOR,
        "        in_flight.writer = writer\n        try:\n",
        "        in_flight.writer = writer\n"
        "        events = [event for append in appends for event in append.request.events]\n"
        "        early = [e.stamped(self.session_id, seq) for seq, e in enumerate(events, self.last_seq + 1)]\n"
        "        self._announce(Committed(tuple(early), self.last_seq, self.last_seq + len(early)))\n"
        "        try:\n",
        ("tests/test_persist_first.py",),
    ),
    Safeguard(
        "callers are answered last",
        SESSION_ACTOR,
        "        known = self.last_seq\n        self._watermark.rise(result.last_seq)\n",
        "        self._finish(None)\n        known = self.last_seq\n        self._watermark.rise(result.last_seq)\n",
        ("tests/test_persist_first.py", "tests/test_own_writes.py", "tests/test_actor_invariants.py"),
    ),
    Safeguard(
        "a retry is not shown again",
        SESSION_ACTOR,
        "            if isinstance(answer, Appended) and answer.written:\n                envelopes.extend(",
        "            if isinstance(answer, Appended):\n                envelopes.extend(",
        ("tests/test_persist_first.py", "tests/test_actor_batches.py", "tests/test_actor_invariants.py"),
    ),
    Safeguard(
        "one batch at a time",
        SESSION_ACTOR,
        "        while self._waiting and self._in_flight is None:\n",
        "        while self._waiting:\n",
        ("tests/test_actor_batches.py",),
    ),
    Safeguard(
        "a restart answers who waits",
        SESSION_ACTOR,
        "        self._reject_waiting(ActorRestarted(session_id=self.session_id, reason=repr(error)))\n"
        "        self._watch_writer()\n",
        "        self._waiting.clear()\n        self._watch_writer()\n",
        ("tests/test_actor_restart.py",),
    ),
    Safeguard(
        "places in the inbox are given back",
        SESSION_ACTOR,
        "        self._gate.leave(sum(len(each.request.events) for each in appends), _size(appends))\n"
        "        if result",
        "        if result",
        ("tests/test_actor_gate.py", "tests/test_overload.py"),
    ),
    Safeguard(
        "control envelopes keep their places",
        SESSION_ACTOR,
        "                envelopes.append(item.envelope)\n                continue\n",
        "                envelopes.insert(0, item.envelope)\n                continue\n",
        ("tests/test_control_order.py",),
    ),
    Safeguard(
        "a dead writer is noticed",
        SESSION_ACTOR,
        '            self._halt_uncertain("the writer died")\n',
        "            pass\n",
        ("tests/test_dead_writer.py",),
    ),
    Safeguard(
        "a failing writer answers its batch",
        "actors/_persist.py",
        "        self._answer(message, _failed(message, error), 0.0)\n\n    def on_dead_letter",
        "\n    def on_dead_letter",
        ("tests/test_dead_writer.py", "tests/test_many_threads.py"),
    ),
    Safeguard(
        "a subscriber that raises is detached",
        "actors/_broadcast.py",
        "        except BaseException as error:  # a SystemExit",
        "        except ZeroDivisionError as error:  # a SystemExit",
        ("tests/test_actor_broadcast.py",),
    ),
    Safeguard(
        "a lagging subscriber rejoins without a gap",
        SUBSCRIPTION,
        "                if self._queue and self._queue[0][0] <= self._next_seq:\n",
        "                if self._queue:\n",
        ("tests/test_slow_subscriber.py", "tests/test_subscriptions.py"),
    ),
    Safeguard(
        "nothing is handed out twice where history meets live",
        SUBSCRIPTION,
        "                    if seq >= self._next_seq:\n",
        "                    if seq > 0:\n",
        ("tests/test_subscriptions.py", "tests/test_actor_broadcast.py"),
    ),
    Safeguard(
        "a subscriber's queue is bounded",
        SUBSCRIPTION,
        "                    self._queued_events + len(events) <= self._limits.subscriber_events_max\n",
        "                    self._queued_events >= 0\n",
        ("tests/test_slow_subscriber.py", "tests/test_pressure.py", "-k", "not stalled_subscriber_costs"),
    ),
    Safeguard(
        "the threads that are there do the work when no more are to be had",
        "actors/_seams.py",
        "                except RuntimeError:  # no more threads to be had: those that run do the work\n"
        "                    if not self._threads:\n"
        "                        raise\n",
        "                except ZeroDivisionError:\n                    raise\n",
        ("tests/test_real_processes.py", "-k", "thread"),
    ),
)
