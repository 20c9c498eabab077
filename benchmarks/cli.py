"""The command line of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from types import FrameType
from typing import Any, NoReturn

from . import cli_profile, machine, plots, publish, slow_disk
from .goals import goals_table
from .harness import WrongResult
from .participants import PEERS, Missing
from .progress import Progress
from .report import Row, table
from .sections import SECTIONS, Context

__all__ = ["main"]

_INTERRUPTED = 130
_DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure logmark, its peers and the bare disk at the same work. `python -m benchmarks profile`"
        " shows instead where the time of one append goes.",
    )
    parser.add_argument("--only", metavar="SECTIONS", help=f"some of: {', '.join(SECTIONS)}")
    parser.add_argument("--peer", metavar="PEERS", help=f"none, or some of: {', '.join(PEERS)}; all when not given")
    parser.add_argument("--quick", action="store_true", help="tiny amounts: to see that it works, not how fast it is")
    parser.add_argument("--full", action="store_true", help="ten million events in the section growth")
    parser.add_argument("--slow-disk", action="store_true", help="let each sync take a millisecond more, for everybody")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each piece of work")
    parser.add_argument("--seconds", type=float, metavar="S", help="length of a participant's turn in a round")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--out", metavar="DIR", help="draw the plots there")
    parser.add_argument("--store-dir", metavar="DIR", help="keep the stores below DIR; its disk is what is measured")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="put the figures into benchmarks/results and the pages, plots into docs",
    )
    return parser


def _names(parser: argparse.ArgumentParser, text: str | None, known: dict[str, Any]) -> tuple[str, ...]:
    if text is None:
        return tuple(known)
    if text == "none":
        return ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no {', '.join(unknown)}: there are {', '.join(known)}")
    return names


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for.

    Returns:
        0; 1 when a store did not hold what it had acknowledged, or nothing could be measured; 130 after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["profile"]:
        return cli_profile.main(given[1:])
    parser = _parser()
    if sys.platform != "linux":
        parser.error("this needs Linux: fdatasync, /proc and LD_PRELOAD")
    options = parser.parse_args(given)
    sections, peers = _names(parser, options.only, SECTIONS), _names(parser, options.peer, PEERS)
    if options.publish and (options.quick or sections != tuple(SECTIONS) or peers != tuple(PEERS)):
        parser.error("--publish goes with a whole run: without --quick, --only and --peer")
    problem = plots.can_draw()
    if options.publish and problem is not None:
        parser.error(f"--publish: {problem}")
    for name, least in (("rounds", 1), ("seconds", 0.001)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            parser.error(f"--{name} is at least {least}")
    if options.store_dir is not None and not os.path.isdir(options.store_dir):
        parser.error(f"--store-dir: there is no directory {options.store_dir}")
    try:
        if options.slow_disk and not slow_disk.is_on():
            slow_disk.restart(given)
    except Missing as error:
        print(f"--slow-disk: {error}", file=sys.stderr)
        return 1
    # What goes wrong on purpose, such as a viewer that never reads, need not be reported in between.
    logging.getLogger("logmark").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _stop)
    directory = os.path.abspath(tempfile.mkdtemp(prefix="logmark-bench-", dir=options.store_dir))
    os.chmod(directory, 0o711)  # a server that must not be root's passes through it to its own
    try:
        return _run(options, sections, peers, directory)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _INTERRUPTED
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if slow_disk.is_on():
            slow_disk.remove()


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """End as an error does, so that servers are stopped and stores deleted."""
    sys.exit(128 + number)


def _run(options: argparse.Namespace, sections: tuple[str, ...], peers: tuple[str, ...], directory: str) -> int:
    began = time.monotonic()
    about = machine.describe(directory)
    machine.print_line(about, slowed=slow_disk.is_on())
    if slow_disk.is_on() and about["fdatasync_p50_us"] < slow_disk.EXTRA_US:
        print("--slow-disk: the preloaded library has no effect here", file=sys.stderr)
        return 1
    progress = Progress()
    progress.plan(len(sections))
    context = Context(
        directory=directory,
        peers=peers,
        rounds=options.rounds or (2 if options.quick else 5),
        seconds=options.seconds or (0.05 if options.quick else 0.25),
        quick=options.quick,
        full=options.full,
        slow_disk=slow_disk.is_on(),
        progress=progress,
    )
    rows: list[Row] = []
    for name in sections:
        try:
            found = SECTIONS[name](context)
        except WrongResult as error:
            progress.clear()
            print(f"wrong: {error}", file=sys.stderr)
            return 1
        context.clear()
        progress.section_done()
        progress.clear()
        print(table(found), flush=True)
        rows.extend(found)
    if not options.quick:
        print(goals_table(rows))
    for name, reason in context.missing.items():
        print(f"missing: {name}: {reason}")
    print(f"\n{time.monotonic() - began:.0f} s")
    results: dict[str, Any] = {
        "machine": about,
        "slow_disk": context.slow_disk,
        "quick": context.quick,
        "rounds": context.rounds,
        "seconds": context.seconds,
        "missing": context.missing,
        "rows": [row.to_json() for row in rows],
    }
    if options.json:
        publish.save(options.json, results)
        print(f"wrote {options.json}")
    if options.publish:
        for path in publish.renew("slow-disk" if context.slow_disk else "sample", results):
            print(f"wrote {path}")
    if options.out:
        _draw(options.out, rows)
    if options.publish and not context.slow_disk:
        _draw(_DOCS, rows)
    return 0


def _draw(directory: str, rows: list[Row]) -> None:
    problem = plots.can_draw()
    if problem is not None:
        print(problem)
        return
    for path in plots.draw(rows, directory):
        print(f"drew {path}")
