"""What the log says of a batch that the writer has answered."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocol import EventIdConflict, WrongExpectedSeq
from ..storage import Appended, BatchResult, Logger, rfc3339
from .messages import Append

__all__ = ["log_answer"]


def log_answer(
    log: Logger, batch: int, appends: Sequence[Append], result: BatchResult, commit_s: float, writer_s: float
) -> None:
    """Log one line for a batch that was written, or held retries only; and one for each kind of failure in it.

    Args:
        log: the session's.
        batch: its number among the batches of the SessionActor.
        appends: what was in it, in order; ``result`` has an answer for each.
        result: the writer's answer.
        commit_s: seconds in the writer, the sync included; 0 when that is not known any more.
        writer_s: seconds from the hand-over to the answer.
    """
    answers = result.answers
    written = [answer for answer in answers if isinstance(answer, Appended) and answer.written]
    if len(written) == len(answers) == len(appends):  # nearly always, so this must be quick
        first_seq, last_seq = written[0].first_seq, written[-1].last_seq
        began_ns, ended_ns = appends[0].submitted_ns, appends[-1].submitted_ns
        began = rfc3339(began_ns)
        log.info(
            "batch_persisted",
            batch=batch,
            first_seq=first_seq,
            last_seq=last_seq,
            before_seq=result.last_seq_before,
            through_before=result.through_before,
            events=sum([answer.last_seq - answer.first_seq + 1 for answer in written]),
            appends=len(appends),
            retries=0,
            bytes=result.bytes_written,
            sync_ms=round(result.sync_s * 1000, 3),
            commit_ms=round(commit_s * 1000, 3),
            writer_ms=round(writer_s * 1000, 3),
            submitted_first=began,
            submitted_last=began if ended_ns == began_ns else rfc3339(ended_ns),
            append_seqs=[answer.first_seq for answer in written],
            append_offsets_us=[(append.submitted_ns - began_ns) // 1000 for append in appends],
        )
    else:
        _log_mixed(log, batch, appends, result, commit_s, writer_s)
    if log.enabled("debug"):
        _log_ids(log, batch, appends, result)


def _log_mixed(
    log: Logger, batch: int, appends: Sequence[Append], result: BatchResult, commit_s: float, writer_s: float
) -> None:
    pairs = list(zip(appends, result.answers, strict=False))
    done = [(append, answer) for append, answer in pairs if isinstance(answer, Appended) and answer.written]
    failed = [answer for answer in result.answers if not isinstance(answer, Appended)]
    retries = len(pairs) - len(done) - len(failed)
    if done:
        began_ns = appends[0].submitted_ns
        log.info(
            "batch_persisted",
            batch=batch,
            first_seq=done[0][1].first_seq,
            last_seq=done[-1][1].last_seq,
            before_seq=result.last_seq_before,
            through_before=result.through_before,
            events=sum([answer.last_seq - answer.first_seq + 1 for _, answer in done]),
            appends=len(appends),
            retries=retries,
            bytes=result.bytes_written,
            sync_ms=round(result.sync_s * 1000, 3),
            commit_ms=round(commit_s * 1000, 3),
            writer_ms=round(writer_s * 1000, 3),
            submitted_first=rfc3339(began_ns),
            submitted_last=rfc3339(appends[-1].submitted_ns),
            append_seqs=[answer.first_seq for _, answer in done],
            append_offsets_us=[(append.submitted_ns - began_ns) // 1000 for append, _ in done],
        )
    elif retries:
        log.info("retry_answered", batch=batch, appends=retries, last_seq=result.last_seq)
    for error in {type(answer): answer for answer in failed}.values():
        count = sum(type(answer) is type(error) for answer in failed)
        name, reason = type(error).__name__, str(error)
        if isinstance(error, WrongExpectedSeq | EventIdConflict):
            # The caller's own condition did not hold: it has its answer, and nobody else need look.
            log.info("append_declined", batch=batch, error=name, reason=reason, appends=count)
        else:
            log.warning("append_failed", batch=batch, error=name, reason=reason, appends=count)


def _log_ids(log: Logger, batch: int, appends: Sequence[Append], result: BatchResult) -> None:
    """Say which event got which number; by event, so for those who want to see everything."""
    written: list[str] = []
    repeated: list[list[str | int]] = []
    first_seq = 0
    for append, answer in zip(appends, result.answers, strict=False):
        if isinstance(answer, Appended):
            first_seq = first_seq or (answer.first_seq if answer.written else 0)
            for seq, event in enumerate(append.request.events, answer.first_seq):
                if answer.written:
                    written.append(event.id)
                else:
                    repeated.append([event.id, seq])
    if written or repeated:
        log.debug("events_numbered", batch=batch, first_seq=first_seq, ids=written, repeated=repeated)
