"""What each log event that is out of the ordinary means, in sentences for somebody who has just been woken up.

``SENTENCES`` says what happened, ``SAFE`` what of the data is safe, ``TO_DO`` what to do. Braces stand for keys of the
event; ``{acknowledged}`` is the last number of the session that the logs before say to be on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SAFE", "SENTENCES", "TO_DO", "filled"]

SENTENCES: Mapping[str, str] = {
    "session_halted": "The session was halted: it refuses appends and reads from now on. The reason: {reason}.",
    "append_uncertain": "Nobody knows whether a batch of {n_appends} was written: {reason}. Its callers were told so"
    " (AppendUncertain).",
    "append_failed": "{n_appends} failed with {error}, and the callers were told so: {reason}.",
    "append_declined": "{n_appends} did not meet the caller's own condition ({error}): {reason}.",
    "append_rolled_back": "A write failed and was cut off again, back to {size} bytes.",
    "late_answer": "A writer answered for batch {batch} after its callers had been told that nobody knows. The log goes"
    " up to {last_seq}.",
    "answer_undeliverable": "A batch was written up to number {last_seq}, and the actor that asked for it was gone.",
    "retry_answered": "{n_appends} with the id of an earlier one got its number again.",
    "batch_retries": "{n_retries} with the id of an earlier one got its number again.",
    "torn_tail_cut": "The remains of a write that a process did not survive, {bytes} bytes, were cut off {segment} at"
    " byte {offset}. They are kept in {kept}.",
    "newline_restored": "The last row, number {seq}, was whole but for its newline, and got it.",
    "head_rebuilt": "The head was missing or damaged, and was made anew from the log, up to number {seq}.",
    "head_write_failed": "The head could not be written: {error}. Other processes see the last commits later.",
    "halt_marker_unwritten": "The disk refused the halt's marker: {error}. The halt holds in this process only.",
    "halt_not_recorded": "A halt could not be recorded: {reason}.",
    "halt_cleared": "The session was verified, and its halt was taken away: appends and reads go on.",
    "session_repaired": "The session was repaired; steps: {steps}. What was there before is kept in {originals}.",
    "subscriber_lagged": "Subscriber {subscriber} did not keep up: it stands before number {next_seq}, {lag} numbers"
    " behind the end, and its queue is full. It reads from the log until it has caught up.",
    "subscriber_detached": "A subscriber raised {error}, and gets nothing any more.",
    "subscriber_end_failed": "A subscriber raised {error} when it was told of the end.",
    "actor_failed": "The {actor} actor raised {error}.",
    "actor_restarted": "The {actor} actor was restarted; failures in a short while: {restarts}.",
    "actor_restart_failed": "The restart of the {actor} actor raised {error} as well.",
    "actor_gave_up": "The {actor} actor has failed too often and was stopped for good: {error}.",
    "close_timed_out": "The runtime was closed with appends under way, after waiting {waited_s} s; sessions:"
    " {sessions}.",
    "session_stop_timed_out": "The session's actor did not stop in time.",
    "writer_stop_failed": "A writer did not stop in time: it is stuck in a write.",
    "server_lost": "The server of the store cannot be reached: {reason}.",
    "checkpoint_failed": "SQLite's write-ahead log could not be copied into the database: {error}.",
    "marks_unavailable": "The log could not be read for the jobs' marks: {error}: {reason}.",
    "marks_unsaved": "The jobs' marks could not be saved: {error}.",
    "job_status_rule_failed": "A job status rule of the program raised {error} at number {seq}.",
    "reply_failed": "An answer could not be given: {error}.",
    "watch_failed": "The session could not be looked at for what other processes append: {error}.",
    "process_ended": "{process} was not heard of again: its runtime was never closed. It was killed, it crashed, or it"
    " is still running.",
    "not_drained": "{process} closed its runtime before everything accepted was answered.",
    "log_cut": "The last line of {file} was cut off in the middle.",
    "log_broken": "{file} could not be read to its end: {reason}.",
}

_KNOWN = "Everything up to number {acknowledged} was acknowledged before, and stays on disk."
_NOTHING_LOST = "Nothing was lost."
_NOTHING_WRITTEN = "Nothing of them was written. " + _KNOWN

SAFE: Mapping[str, str] = {
    "session_halted": _KNOWN + "{doubt}",
    "append_uncertain": _KNOWN + " The batch begins with the event {first_event_id}: it is there whole, or not at all.",
    "append_failed": _NOTHING_WRITTEN,
    "append_failed:AppendUncertain": _KNOWN + " Whether these were written is not known: as a whole, or not at all.",
    "append_declined": _NOTHING_WRITTEN,
    "append_rolled_back": _KNOWN,
    "late_answer": "What it wrote is in the log.",
    "answer_undeliverable": "What it wrote is in the log.",
    "retry_answered": "Each event is there once.",
    "batch_retries": "Each event is there once.",
    "torn_tail_cut": "Nobody had been told a number for them. " + _NOTHING_LOST,
    "newline_restored": _NOTHING_LOST,
    "head_rebuilt": "The log decides, the head is a hint. " + _NOTHING_LOST,
    "head_write_failed": _NOTHING_LOST,
    "subscriber_lagged": "It skips nothing, and nobody waits for it.",
    "subscriber_detached": "The log and the other subscribers are not concerned.",
    "actor_failed": "Callers got an answer or a typed error. " + _KNOWN,
    "actor_gave_up": _KNOWN,
    "process_ended": "What it had told its callers is on disk: {known}. What was under way then may be there as a"
    " whole, or not at all.",
    "server_lost": "An append that was under way is asked for again by its id: it is written once or not at all.",
    "session_repaired": "Every number that was told keeps its event; a number whose event is lost is never used again.",
}

TO_DO: Mapping[str, str] = {
    "session_halted": "Look at the disk first. Then `logmark verify`, and `logmark repair {session}`: it keeps a copy,"
    " checks every row and lets the session go on. Afterwards repeat the uncertain appends with the same ids: what is"
    " there is not written twice.",
    "append_uncertain": "Repair the session, then repeat these appends with the same ids.",
    "append_rolled_back": "Look whether the disk is full.",
    "halt_marker_unwritten": "Halt it by hand before another process appends: the disk does not take a marker.",
    "subscriber_lagged": "Nothing, if it catches up. If it stays behind, what reads it is stuck or too slow.",
    "subscriber_detached": "Mend the subscriber, and let it subscribe again from where it was.",
    "actor_failed": "Report it: an actor does not raise by itself.",
    "actor_gave_up": "Report it. Restart the program, after `logmark verify`.",
    "close_timed_out": "Look at the disk. Repeat what failed with the same ids.",
    "writer_stop_failed": "Look at the disk: a write does not return.",
    "process_ended": "Start it again: it goes on behind the last number. Repeat what has no answer with the same ids.",
    "server_lost": "Look at the server and the network; the runtime tries again by itself.",
    "head_write_failed": "Look whether the disk is full.",
    "job_status_rule_failed": "Mend the rule: the event counts, and the job's status stayed as it was.",
    "log_cut": "Nothing: the process that wrote it has died in that moment, or is about to go on.",
    "append_failed:AppendUncertain": "Repair the session (see its halt), then repeat these appends with the same ids.",
    "append_failed:SessionHalted": "Repair the session; see its halt.",
    "append_failed:LockTimeout": "See which process holds the session's lock: it is stuck, or its disk is.",
    "append_failed:StorageRejected": "Look whether the disk is full or read-only; the callers may simply repeat.",
    "append_failed:LogCorrupt": "`logmark verify`, then `logmark repair {session}`; look at the disk.",
}


class _Keys(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def filled(template: str | None, keys: Mapping[str, Any]) -> str:
    """Return a sentence with the keys filled in; empty for no sentence."""
    if template is None:
        return ""
    more = _Keys(keys)
    for name in ("appends", "retries"):
        count = keys.get(name)
        if isinstance(count, int):
            more[f"n_{name}"] = "1 append" if count == 1 else f"{count:,} appends"
    if isinstance(keys.get("reason"), str):
        more["reason"] = keys["reason"].rstrip(".")
    first_id = keys.get("first_event_id")
    more["doubt"] = (
        ""
        if first_id is None
        else f" Whether the batch that was under way is there is not known; its first event has the id {first_id}."
    )
    return template.format_map(more)
