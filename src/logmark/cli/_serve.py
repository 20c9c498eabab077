"""``logmark serve``: the agents of a Python module, for ARCP clients."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

from ..protocol import InvalidArgument
from ._command import Command
from ._console import Console
from ._exit_codes import ExitCode

if TYPE_CHECKING:
    from .._runtime import Runtime

__all__ = ["COMMAND"]

_LISTEN_DEFAULT = "127.0.0.1:7777"
_TOKENS_VARIABLE = "LOGMARK_TOKENS"
_DRAIN_DEFAULT_S = 10.0
_PORT_MAX = 65_535
_STOPPING = "finishing the jobs that run; once more stops at once"


class _Address(NamedTuple):
    host: str
    port: int


def _address(text: str) -> _Address:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > _PORT_MAX:
        message = f"{text!r} is not HOST:PORT, such as 127.0.0.1:7777 or [::1]:0"
        raise argparse.ArgumentTypeError(message)
    return _Address(match[1] or match[2], int(match[3]))


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
        type=_address,
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
        "--drain-wait",
        metavar="SECONDS",
        type=_seconds,
        default=_DRAIN_DEFAULT_S,
        help=f"how long running jobs may go on after SIGTERM or Ctrl-C (default: {_DRAIN_DEFAULT_S:g})",
    )


def _run(arguments: argparse.Namespace, console: Console) -> int:
    pipes = _take_stdio() if arguments.stdio else None  # before any code of the agents runs, which may print
    tokens = _tokens(arguments)
    address: _Address | None = arguments.listen
    if pipes is None and address is None:
        address = _address(_LISTEN_DEFAULT)
    if address is not None and tokens is None:
        message = f"nobody could be let in: give --token-file, or set {_TOKENS_VARIABLE} to 'token principal' lines"
        raise InvalidArgument(message)
    register = _load(arguments.agents)
    from .. import open as open_store

    stop = _Stop(console, pipes)
    with stop, open_store(arguments.store) as runtime, contextlib.ExitStack() as stack:
        _register(runtime, register, arguments.agents)
        if address is not None:
            _listen(arguments, console, runtime, address, tokens or {}, stack)
        if pipes is None:
            stop.requested.wait()
        else:
            from ..gateway import serve_stdio

            serve_stdio(runtime, *pipes, tokens=tokens, compat=arguments.compat, timeout_s=arguments.drain_wait)
    return ExitCode.OK


def _listen(
    arguments: argparse.Namespace,
    console: Console,
    runtime: Runtime,
    address: _Address,
    tokens: dict[str, str],
    stack: contextlib.ExitStack,
) -> None:
    from .. import serve

    gateway = serve(
        runtime,
        host=address.host,
        port=address.port,
        tokens=tokens,
        compat=arguments.compat,
        allow_remote=arguments.allow_remote,
    )
    stack.callback(gateway.close, arguments.drain_wait)
    if arguments.stdio:
        console.err.line(gateway.url)
    else:
        console.out.line(gateway.url)
        console.out.flush()


def _tokens(arguments: argparse.Namespace) -> dict[str, str] | None:
    from ..gateway import parse_tokens, read_token_file

    # Taken out of the environment whether it is used or not: the programs that agents start need not know it.
    from_environment = os.environ.pop(_TOKENS_VARIABLE, None)
    if arguments.token_file is not None:
        return read_token_file(arguments.token_file)
    if from_environment is not None:
        return parse_tokens(from_environment, source=f"${_TOKENS_VARIABLE}")
    return None


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


class _Stop:
    """While it is entered, the first SIGTERM, SIGHUP or Ctrl-C ends in order; the next one ends the process at once.

    Args:
        console: tells a person that the signal was taken.
        pipes: standard input and output of a client, if there is one; its input ends then.
    """

    def __init__(self, console: Console, pipes: tuple[IO[bytes], IO[bytes]] | None) -> None:
        self.requested = threading.Event()
        self._console = console
        self._pipes = pipes
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals, unless this is not the main thread or the process ignores them, as under nohup."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give them back, and close what is open."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._null)
        for stream in self._pipes or ():
            with contextlib.suppress(OSError):  # the client is gone, and with it whoever wanted what is buffered
                stream.close()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        self.requested.set()
        if self._pipes is not None:
            # The read that is under way is interrupted by the signal, tried again, and then finds the end of input.
            os.dup2(self._null, self._pipes[0].fileno())
        self._console.err.say_at_once(_STOPPING)


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
""",
    add_arguments=_add_arguments,
    run=_run,
)
