"""``logmark ui``: the live page of a store, in a browser on this machine."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..protocol import SEQ_MAX, Limits
from ._command import Command
from ._console import Console
from ._exit_codes import ExitCode
from ._serving import Address, Stop, address_of, read_tokens

if TYPE_CHECKING:
    from .._runtime import Runtime
    from ..ui import LivePage

__all__ = ["COMMAND", "LISTEN_DEFAULT", "listen_for_browsers", "page_tokens"]

LISTEN_DEFAULT = Address("127.0.0.1", 0)
_TOKENS_VARIABLE = "LOGMARK_UI_TOKENS"
_OF_THIS_RUN = "this run"
_STOPPING = "stopping; once more stops at once"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=address_of,
        default=LISTEN_DEFAULT,
        help="an address that only this machine reaches (default: a free port of 127.0.0.1)",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="one 'token principal' pair per line, readable by its owner only (default: $LOGMARK_UI_TOKENS, else a"
        " token of this run, in the URL that is printed)",
    )


def page_tokens(path: str | None) -> dict[str, str]:
    """Return who may see the page: as a file or the environment says, else whoever is given a token made here."""
    return read_tokens(path, _TOKENS_VARIABLE) or {secrets.token_urlsafe(32): _OF_THIS_RUN}


def listen_for_browsers(
    runtime: Runtime, where: Address, tokens: dict[str, str], say: Callable[[str], object], *, writing: bool
) -> LivePage:
    """Serve the page and say where; a token that was made for this run is told there, behind the ``#``."""
    from ..ui import serve_page

    page = serve_page(runtime, tokens=tokens, host=where.host, port=where.port, writing=writing)
    made = [token for token, name in tokens.items() if name == _OF_THIS_RUN]  # no file can have it: it has a space
    say(f"{page.url}#token={made[0]}" if made else page.url)
    return page


def _run(arguments: argparse.Namespace, console: Console) -> int:
    tokens = page_tokens(arguments.token_file)
    from .. import open as open_store

    # Nothing that is derived is kept either: who only looks leaves the store as it is.
    limits = Limits(marks_unsaved_events_max=SEQ_MAX)
    stop = Stop(console, None, _STOPPING)
    with (
        stop,
        open_store(arguments.store, limits=limits, create=False) as runtime,
        listen_for_browsers(runtime, arguments.listen, tokens, console.out.line, writing=False),
    ):
        console.out.flush()
        stop.wait()
    return ExitCode.OK


COMMAND = Command(
    name="ui",
    summary="watch a store in a browser",
    description=(
        "Serve the live page of a store to browsers on this machine: its sessions, the events of one as they come, the"
        " marks of its jobs, gaps and damage. It only looks, on any engine, also at a store that another process"
        " writes. Prints one line with the URL when it is ready; without --token-file it has a token of this run. From"
        " another machine, go through a tunnel such as 'ssh -L'. Ctrl-C ends it."
    ),
    example="""\
logmark ui
logmark ui --store sqlite:events.db --listen 127.0.0.1:7778
logmark ui --store postgresql:///events --token-file tokens
""",
    add_arguments=_add_arguments,
    run=_run,
)
