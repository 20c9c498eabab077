"""``logmark serve``: the agents of a Python module, for ARCP clients."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from ..protocol import InvalidArgument
from ._command import Command
from ._console import Console
from ._exit_codes import ExitCode
from ._serving import Address, Stop, address_of, read_tokens
from ._ui import LISTEN_DEFAULT, listen_for_browsers, page_tokens

if TYPE_CHECKING:
    from .._runtime import Runtime
    from ..prometheus import PrometheusInstrumentation

__all__ = ["COMMAND"]

_LISTEN_DEFAULT = "127.0.0.1:7777"
_TOKENS_VARIABLE = "LOGMARK_TOKENS"
_DRAIN_DEFAULT_S = 10.0
_STOPPING = "finishing the jobs that run; once more stops at once"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:  # noqa: PLR2004 - a day
        message = f"{text!r} is not a number of seconds up to a day"
        raise argparse.ArgumentTypeError(message)
    return seconds


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--agents",
        metavar="MODULE:FUNCTION",
        required=True,
        help="a function that is called with the runtime and registers the agents; looked for in this directory too",
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=address_of,
        help=f"where to listen; port 0 takes a free one (default: {_LISTEN_DEFAULT})",
    )
    parser.add_argument(
        "--stdio", action="store_true", help="serve the client at standard input and output; without --listen no other"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"one 'token principal' pair per line, readable by its owner only (default: ${_TOKENS_VARIABLE})",
    )
    parser.add_argument(
        "--compat",
        choices=("neutral", "draft"),
        default="neutral",
        help="send only what every published client survives, or the draft's own forms (default: neutral)",
    )
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="listen on an address that other machines reach; tokens are in clear text unless something in front of"
        " this encrypts",
    )
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="answer GET /metrics where clients connect, for Prometheus; without a token (logmark[prometheus])",
    )
    parser.add_argument(
        "--ui",
        metavar="HOST:PORT",
        type=address_of,
        nargs="?",
        const=LISTEN_DEFAULT,
        help="serve the live page of the store too, to browsers of this machine (default: a free port of 127.0.0.1)",
    )
    parser.add_argument(
        "--ui-token-file",
        metavar="FILE",
        help="who may see the page, in the form of --token-file (default: $LOGMARK_UI_TOKENS, else a token of this run,"
        " in the URL that is printed)",
    )
    parser.add_argument(
        "--drain-wait",
        metavar="SECONDS",
        type=_seconds,
        default=_DRAIN_DEFAULT_S,
        help=f"how long running jobs may go on after SIGTERM or Ctrl-C (default: {_DRAIN_DEFAULT_S:g})",
    )


def _run(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.metrics and arguments.stdio and arguments.listen is None:
        raise InvalidArgument("--metrics is a page at --listen HOST:PORT, which --stdio is without")
    pipes = _take_stdio() if arguments.stdio else None  # before any code of the agents runs, which may print
    tokens = read_tokens(arguments.token_file, _TOKENS_VARIABLE)
    address: Address | None = arguments.listen
    if pipes is None and address is None:
        address = address_of(_LISTEN_DEFAULT)
    if address is not None and tokens is None:
        message = f"nobody could be let in: give --token-file, or set {_TOKENS_VARIABLE} to 'token principal' lines"
        raise InvalidArgument(message)
    ui_tokens = page_tokens(arguments.ui_token_file) if arguments.ui is not None else {}
    instrumentation = _instrumentation() if arguments.metrics else None
    register = _load(arguments.agents)
    from .. import open as open_store

    stop = Stop(console, pipes, _STOPPING)
    opened = open_store(arguments.store, instrumentation=instrumentation)
    with stop, opened as runtime, contextlib.ExitStack() as stack:
        _register(runtime, register, arguments.agents)
        if address is not None:
            metrics = None if instrumentation is None else instrumentation.exposition
            _listen(arguments, console, runtime, address, tokens or {}, stack, metrics)
        if arguments.ui is not None:
            say = console.err.line if arguments.stdio else console.out.line
            stack.enter_context(listen_for_browsers(runtime, arguments.ui, ui_tokens, say, writing=True))
            console.out.flush()
        if pipes is None:
            stop.wait()
        else:
            from ..gateway import serve_stdio

            serve_stdio(runtime, *pipes, tokens=tokens, compat=arguments.compat, timeout_s=arguments.drain_wait)
    return ExitCode.OK


def _listen(
    arguments: argparse.Namespace,
    console: Console,
    runtime: Runtime,
    address: Address,
    tokens: dict[str, str],
    stack: contextlib.ExitStack,
    metrics: Callable[[], bytes] | None,
) -> None:
    from .. import serve

    gateway = serve(
        runtime,
        host=address.host,
        port=address.port,
        tokens=tokens,
        compat=arguments.compat,
        allow_remote=arguments.allow_remote,
        metrics=metrics,
    )
    stack.callback(gateway.close, arguments.drain_wait)
    if arguments.stdio:
        console.err.line(gateway.url)
    else:
        console.out.line(gateway.url)
        console.out.flush()


def _instrumentation() -> PrometheusInstrumentation:
    """Return metrics of this process alone, with what the client library knows of it."""
    from ..prometheus import PrometheusInstrumentation

    return PrometheusInstrumentation.of_process()


def _load(spec: str) -> Callable[[Any], object]:
    """Return the function that a ``module:function`` names.

    Raises:
        InvalidArgument: it names none, or the module cannot be imported.
    """
    module_name, colon, path = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        message = f"--agents {spec!r} is not of the form MODULE:FUNCTION, such as my_agents:register"
        raise InvalidArgument(message)
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does; the installed command does not by itself
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        message = f"--agents {spec!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        raise InvalidArgument(message) from error
    for name in path.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        message = f"--agents {spec!r}: {module_name} has no function {path}"
        raise InvalidArgument(message)
    function: Callable[[Any], object] = found
    return function


def _register(runtime: Runtime, register: Callable[[Any], object], spec: str) -> None:
    try:
        register(runtime)
    except InvalidArgument:
        raise
    except Exception as error:
        message = f"--agents {spec!r}: it raised {type(error).__name__}: {error}"
        raise InvalidArgument(message) from error
    if not runtime.agents.describe():
        message = f"--agents {spec!r} has registered no agent; it is called with the runtime: @runtime.agent(...)"
        raise InvalidArgument(message)


def _take_stdio() -> tuple[IO[bytes], IO[bytes]]:
    """Keep standard input and output for the client: agents print to standard error, and read nothing."""
    sys.stdout.flush()
    stdin, stdout = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return stdin, stdout


COMMAND = Command(
    name="serve",
    summary="serve agents to ARCP clients",
    description=(
        "Serve the agents of a Python module to clients of the Agent Runtime Control Protocol, over WebSocket or, with"
        " --stdio, to the program that has started this one. Prints one line with the URL when it is ready. SIGTERM or"
        " Ctrl-C ends it in order: nothing new is taken, running jobs may end, sessions are told and can be resumed."
        " What clients were told is in the store, so that the next server goes on with it."
    ),
    example="""\
logmark serve --store ./jobs --agents my_agents:register --token-file tokens
LOGMARK_TOKENS="$TOKEN alice" logmark serve --agents my_agents:register --listen 127.0.0.1:0
logmark serve --stdio --agents my_agents:register
logmark serve --agents my_agents:register --token-file tokens --ui
""",
    add_arguments=_add_arguments,
    run=_run,
)
