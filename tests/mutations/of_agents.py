"""The safeguards of agents and of ``logmark serve``."""

from __future__ import annotations

from safeguard import Safeguard

__all__ = ["OF_AGENTS"]

RUNNER = "src/logmark/gateway/_runner.py"
CONTEXT = "src/logmark/gateway/_context.py"
STREAM = "src/logmark/gateway/_stream.py"
LEASE = "src/logmark/gateway/_lease.py"
DEADLINES = "src/logmark/gateway/_deadlines.py"
BODIES = "src/logmark/gateway/_bodies.py"
TOKENS = "src/logmark/gateway/_tokens.py"
SERVE = "src/logmark/cli/_serve.py"
ENDS = ("tests/test_agents_ends.py",)
EVENTS = ("tests/test_agents_events.py",)
LEASES = ("tests/test_agents_leases.py",)
COMMAND = ("tests/test_serve_command.py",)


OF_AGENTS = (
    # -- the end of a job --------------------------------------------------------------------------------------------
    Safeguard(
        "one end for a job: who claims it first",
        RUNNER,
        '            mine = run.state == "running"\n',
        "            mine = True\n",
        ENDS,
    ),
    Safeguard(
        "what an agent returns after a cancel does not count",
        RUNNER,
        "            self._conclude(run, _CANCELLED if run.cancelling else ending)\n            return\n",
        "            self._conclude(run, ending)\n            return\n",
        ENDS,
    ),
    Safeguard(
        "nothing is emitted behind the end",
        CONTEXT,
        "        self._ended = status\n",
        "",
        (*ENDS, *EVENTS),
    ),
    Safeguard(
        "a queued job that is cancelled never begins",
        RUNNER,
        '        if run.state == "queued":\n            self._queue.remove(run)\n        elif not returned:\n',
        '        if run.state != "queued" and not returned:\n',
        ENDS,
    ),
    Safeguard(
        "a hung agent does not hold a place",
        RUNNER,
        "            run.abandoned = True\n            self._abandoned += 1\n",
        "",
        ENDS,
    ),
    Safeguard(
        "a thread too many ends",
        RUNNER,
        "len(self._threads) - self._abandoned <= self._threads_max:",
        "True:",
        ENDS,
    ),
    Safeguard(
        "a refused end is written again",
        RUNNER,
        "                self._closed.wait(delay_s)\n",
        "                break\n",
        ENDS,
    ),
    Safeguard(
        "a result that cannot be sent is an error",
        RUNNER,
        '                return self._write(run, _Failure("INTERNAL_ERROR", message))\n',
        "                break\n",
        ENDS,
    ),
    Safeguard(
        "what an agent has raised is not told",
        RUNNER,
        "failed with {type(error).__name__}",
        "failed with {error!r}",
        ENDS,
    ),
    Safeguard(
        "deadlines of jobs that are over are forgotten",
        DEADLINES,
        "            if len(self._heap) >= self._compact_at:",
        "            if not self._heap and len(self._heap) >= self._compact_at:",
        ENDS,
    ),
    Safeguard(
        "a lease ends by the wall clock",
        RUNNER,
        "max(0.0, min(left_s, _LEASE_LOOK_S))",
        "max(0.0, left_s)",
        ENDS,
    ),
    Safeguard(
        "the queue is bounded",
        RUNNER,
        "            if waiting >= self._queue_max:\n",
        "            if waiting >= 10 * self._queue_max:\n",
        ENDS,
    ),
    # -- events and results ------------------------------------------------------------------------------------------
    Safeguard(
        "a stream is closed on success only",
        STREAM,
        "            if exc_type is not None:\n                return\n",
        "",
        EVENTS,
    ),
    Safeguard(
        "an incomplete stream is no success",
        RUNNER,
        "        if not stream.complete:\n",
        "        if not stream.begun:\n",
        EVENTS,
    ),
    Safeguard(
        "chunks are counted when they are written",
        STREAM,
        "        if batch:\n            target.emit_chunks(batch)\n            self._chunks += len(batch)\n",
        "        if batch:\n            self._chunks += len(batch)\n            target.emit_chunks(batch)\n",
        EVENTS,
    ),
    Safeguard(
        "chunks are cut by their size in JSON",
        STREAM,
        "    return len(orjson.dumps(text)) - 2\n",
        "    return len(text)\n",
        EVENTS,
    ),
    Safeguard(
        "a body that a client would drop is refused",
        BODIES,
        "        elif not field.holds(body[name]):\n",
        "        elif not field.holds and body:\n",
        EVENTS,
    ),
    # -- leases ------------------------------------------------------------------------------------------------------
    Safeguard(
        "a cost is charged when it is stored",
        CONTEXT,
        "            if len(reported) == 1:\n                first",
        "            for unit, after in left.items():\n"
        "                self._lease.charge(unit, after)\n"
        "            if len(reported) == 1:\n                first",
        LEASES,
    ),
    Safeguard(
        "a spent budget refuses",
        LEASE,
        "if left <= 0]",
        "if left < 0]",
        (*LEASES, "tests/test_arcp_client_jobs.py"),
    ),
    Safeguard(
        "a path is the place that it leads to",
        LEASE,
        "            target = posixpath.normpath(target)\n",
        "            target = str(target)\n",
        LEASES,
    ),
    Safeguard(
        "a bound that nobody keeps is refused",
        LEASE,
        "    if unknown:  #",
        "    if unknown and not checked:  #",
        LEASES,
    ),
    # -- serving -----------------------------------------------------------------------------------------------------
    Safeguard(
        "a token file that others can read is refused",
        TOKENS,
        "        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):\n",
        "        if found.st_mode & stat.S_IRWXO:\n",
        COMMAND,
    ),
    Safeguard(
        "tokens are not left in the environment",
        "src/logmark/cli/_serving.py",
        "os.environ.pop(variable, None)",
        "os.environ.get(variable)",
        COMMAND,
    ),
    Safeguard(
        "standard output is the client's alone",
        SERVE,
        "    os.dup2(2, 1)\n",
        "",
        ("tests/test_arcp_client_stdio.py",),
    ),
    Safeguard(
        "a signal lets jobs end",
        SERVE,
        "stack.callback(gateway.close, arguments.drain_wait)",
        "stack.callback(gateway.close, 0)",
        COMMAND,
    ),
)
