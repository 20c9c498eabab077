"""The safeguards of a session's life: pruning, sealing, deleting, and what is kept beside the log."""

from __future__ import annotations

from safeguard import Safeguard

__all__ = ["OF_LIFETIMES"]

SESSION_LOG = "storage/_session_log.py"
SESSION_VIEW = "storage/_session_view.py"
SESSION_LIFETIME = "storage/_session_lifetime.py"
LOG_READER = "storage/_log_reader.py"
LIFETIME = "storage/_lifetime.py"
RECORDS = "storage/_records.py"
IDS = "storage/_session_ids.py"
VERIFY = "storage/_verify.py"
FRONT = "src/logmark/_session_lifetime.py"
FOLD = "actors/_fold.py"

CONFORMANCE = "tests/test_conformance_files.py"
CRASHES = "tests/test_crash_lifetimes.py"
FAILURES = "tests/test_lifetime_failures.py"
LIFETIMES = "tests/test_lifetimes.py"
SEGMENTS = "tests/test_segments.py"

OF_LIFETIMES = (
    Safeguard(
        "every writer looks again when a session is pruned or ended",
        SESSION_LIFETIME,
        "        self._head.renew(self._files.sync if self._env.sync else None)\n",
        "",
        (CONFORMANCE, "-k", "TestFileEngine and (both_stores or for_the_other)"),
    ),
    Safeguard(
        "what says that rows may go is durable before they go",
        LIFETIME,
        "        if sync:\n            self._files.sync_dir(self._directory)\n",
        "",
        (CRASHES, "-k", "pruned_or_ended and (deleting or sealing)"),
    ),
    Safeguard(
        "a state that its writer may not have made durable is made so",
        SESSION_LOG,
        "            if self._env.sync:  # whoever has written it may have died before its name was durable\n"
        "                self._files.sync_dir(self.path)\n",
        "",
        (CRASHES, "-k", "takes_back"),
    ),
    Safeguard(
        "the last segment goes last",
        LOG_READER,
        "(first == pruned[0] or (first == pruned[-1] and not kept))",
        "first == pruned[0]",
        (CRASHES, "-k", "pruned_or_ended and reserved"),
    ),
    Safeguard(
        "what is hidden is not read",
        SESSION_VIEW,
        "        if from_seq < lifetime.first_available:\n",
        "        if from_seq < 0:\n",
        (CONFORMANCE, "-k", "TestFileEngine and refused_at_the_call"),
    ),
    Safeguard(
        "segments that are gone are told from segments that are lost",
        LOG_READER,
        "        if start is None:\n",
        "        start = start or 0\n        if start is None:\n",
        (SEGMENTS, "-k", "front"),
    ),
    Safeguard(
        "an id that was pruned is free",
        IDS,
        " and (seq := row_seq(line)) >= self.first_available:",
        " and (seq := row_seq(line)):",
        (CONFORMANCE, "-k", "TestFileEngine and id_that_was_pruned"),
    ),
    Safeguard(
        "a sealed session takes no plain append",
        SESSION_LOG,
        "        plain = None if self._lifetime.sealed else number_plainly(",
        "        plain = number_plainly(",
        (CONFORMANCE, "-k", "TestFileEngine and sealed"),
    ),
    Safeguard(
        "a record is replaced under its lock",
        RECORDS,
        "            if lock.acquire(self._env.clock, wait_s):\n",
        "            if lock:\n",
        (CONFORMANCE, "-k", "TestFileEngine and one_is_told"),
    ),
    Safeguard(
        "no record comes into being in a session that is being deleted",
        SESSION_LIFETIME,
        "        self.records.remove_all()\n",
        "",
        (FAILURES, "-k", "space"),
    ),
    Safeguard(
        "marks are kept before their events go",
        FRONT,
        "                self._save_base(name, question, info, seq)\n",
        "                pass\n",
        (LIFETIMES, "-k", "marks"),
    ),
    Safeguard(
        "a fold begins with what was kept of pruned events",
        FOLD,
        "                if base is not None and base[0] >= start:\n",
        "                if base is not None and base[0] < 0:\n",
        (LIFETIMES, "-k", "marks or seen_by_another"),
    ),
)
