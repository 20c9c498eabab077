"""The safeguards of the log on disk."""

from __future__ import annotations

from safeguard import Safeguard

__all__ = ["OF_STORAGE"]

SESSION_LOG = "storage/_session_log.py"
SESSION_VIEW = "storage/_session_view.py"
SESSION_LIFETIME = "storage/_session_lifetime.py"
LOG_READER = "storage/_log_reader.py"
RECOVERY = "storage/_recovery.py"
REPAIR = "storage/_repair.py"
HALT = "storage/_halt.py"
SEGMENT = "storage/_segment.py"
FILES = "storage/_files.py"
LOCK = "storage/_lock.py"
ROW = "protocol/_row.py"
PLAN = "storage/_plan.py"
UNDISTURBED = "storage/_undisturbed.py"

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

OF_STORAGE = (
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
        "            catch_up()  # while the disk works\n            began",
        "            catch_up()  # while the disk works\n"
        "            self._write_head(Tail(seq, through, tail.segment, start + len(rows), tail.inode))\n"
        "            began",
        (ORDER,),
    ),
    Safeguard(
        "sync of a new segment",
        "storage/_files.py",
        "        if sync is not None:\n            sync(fd)\n",
        "",
        (ORDER, CRASHES),
    ),
    Safeguard(
        "sync of the directory of a new segment",
        SESSION_LOG,
        '            files.rename(path + ".new", path)\n            self._sync_dir(self.path)\n',
        '            files.rename(path + ".new", path)\n',
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
        SESSION_VIEW,
        "        return self._head.newest(self._reader.read_head(self._head.fd))\n",
        "        return self._head.newest(self._reader.scan_position(damaged_ok=True))\n",
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
        "        self._learn_lifetime()",
        "        self._learn_lifetime()",
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
        'fresh=self._path + ".new", sync=self._files.sync)',
        'fresh=self._path + ".new", sync=None)',
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
        SESSION_VIEW,
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
        "            self._sync(fd)\n            self._sync_dir(self._reader.path)\n",
        "",
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
        "a head that was refused is offered again",
        SESSION_VIEW,
        "                self._write_late()\n            finally:",
        "                pass\n            finally:",
        (HEADS,),
    ),
    Safeguard(
        "a table of ids that does not hold is made anew",
        "storage/_session_ids.py",
        "                if not anew and (table.is_full",
        "                if (table.is_full",
        ("tests/test_id_tables.py",),
    ),
    Safeguard(
        "after a rotation that failed the log is looked at again",
        SESSION_LOG,
        "            self._tail = None  # the new segment may",
        "            pass  # the new segment may",
        ("tests/test_one_failure.py", "-k", "interrupted"),
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
        "checksums of many rows that are read",
        SEGMENT,
        '        if b"".join(map(_TAIL, lines)) != b\',"crc":"%b"}\' % sums:\n            return False\n',
        "",
        (DAMAGE,),
    ),
    Safeguard(
        "checksum of each row that is looked at by itself",
        SEGMENT,
        "            if not self._is_sound(line):\n                at = base",
        "            if not line.startswith(ROW_PREFIX):\n                at = base",
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
        "    return crc32(session_id.encode())\n",
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
        "numbers of many rows that are read are dense",
        SEGMENT,
        '        if b"".join(map(start, lines)) != _row_starts(first_seq, count):\n            return False\n',
        "",
        (DAMAGE,),
    ),
    Safeguard(
        "the number of each row that is looked at by itself comes next",
        SEGMENT,
        "            if expected not in (seq, reserved) and not (",
        "            if expected < 0 and not (",
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
        "a copy of the originals that found no space is removed",
        REPAIR,
        "                files.unlink(os.path.join(target_path, name))  # on a full disk",
        "                pass  # on a full disk",
        (DISKS, "-k", "small_disk"),
    ),
    Safeguard(
        "repaired segments are synced before they are put in place",
        REPAIR,
        "            if fd is not None:\n                files.sync(fd)\n        finally:\n",
        "        finally:\n",
        (MENDING,),
    ),
    # -- several processes, and odd files ---------------------------------------------------------------------------
    Safeguard(
        "tail looked at again under the lock",
        SESSION_LOG,
        "            if not self._tail_is_known():\n",
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
        "a lock is not kept after a failure",
        LOCK,
        "                    self.close()  # a lock that is kept",
        "                    pass  # a lock that is kept",
        ("tests/test_one_failure.py", "-k", "stat"),
    ),
    Safeguard(
        "changes of the names in a directory are seen",
        UNDISTURBED,
        "self._known is not None and self._identity() == self._known",
        "self._known is not None",
        ("tests/test_undisturbed.py",),
    ),
    Safeguard(
        "a directory that was just modified is not relied on",
        UNDISTURBED,
        " - modified_ns > step_ns else None",
        " >= 0 else None",
        ("tests/test_undisturbed.py",),
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
        PLAN,
        "request.expected_seq != self.seq:",
        "request.expected_seq < 0:",
        (CONFORMANCE, "-k", "TestFileEngine and expectation"),
    ),
    Safeguard(
        "a retry gets its first number",
        PLAN,
        "    return list(dict.fromkeys(event.id for",
        "    return [] and list(dict.fromkeys(event.id for",
        (CONFORMANCE, "-k", "TestFileEngine and retry"),
    ),
    Safeguard(
        "ids are looked at before expected_seq",
        PLAN,
        "        if settled is not None:",
        "        if settled is not None and request.expected_seq is None:",
        (CONFORMANCE, "-k", "TestFileEngine and (ids or retry)"),
    ),
)
