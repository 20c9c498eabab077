"""What the commands that serve share: where to listen, who is let in, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import threading
from types import FrameType, TracebackType
from typing import IO, Any, NamedTuple, Self

from ._console import Console

__all__ = ["Address", "Stop", "address_of", "read_tokens"]

_LOOK_S = 0.5
_PORT_MAX = 65_535


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


def address_of(text: str) -> Address:
    """Return the address that an argument names."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > _PORT_MAX:
        message = f"{text!r} is not HOST:PORT, such as 127.0.0.1:7777 or [::1]:0"
        raise argparse.ArgumentTypeError(message)
    return Address(match[1] or match[2], int(match[3]))


def read_tokens(path: str | None, variable: str) -> dict[str, str] | None:
    """Return the principal of each token, from a file, else from the environment; None when there is neither.

    Raises:
        InvalidArgument: the file is open to others, or its lines or those of the variable are wrong.
        OSError: the file cannot be read.
    """
    from ..gateway import parse_tokens, read_token_file

    # Taken out of the environment whether it is used or not: the programs that agents start need not know it.
    from_environment = os.environ.pop(variable, None)
    if path is not None:
        return read_token_file(path)
    if from_environment is not None:
        return parse_tokens(from_environment, source=f"${variable}")
    return None


class Stop:
    """While it is entered, the first SIGTERM, SIGHUP or Ctrl-C ends in order; the next one ends the process at once.

    Args:
        console: tells a person that the signal was taken.
        pipes: standard input and output of a client, if there is one; its input ends then.
        saying: what the person is told.
    """

    def __init__(self, console: Console, pipes: tuple[IO[bytes], IO[bytes]] | None, saying: str) -> None:
        self.requested = threading.Event()
        self._console = console
        self._saying = saying
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

    def wait(self) -> None:
        """Wait until it is asked for.

        A signal that comes right before the main thread falls asleep does not wake it, and its handler, which is to
        end the sleep, is run by nobody else. So it never sleeps for long.
        """
        while not self.requested.wait(_LOOK_S):
            pass

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        self.requested.set()
        if self._pipes is not None:
            # The read that is under way is interrupted by the signal, tried again, and then finds the end of input.
            os.dup2(self._null, self._pipes[0].fileno())
        self._console.err.say_at_once(self._saying)
