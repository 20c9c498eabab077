"""The command line of ``python -m benchmarks profile``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from . import machine, publish
from .profiling import profile, profile_table

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks profile", description="Show where the time of a lone append goes."
    )
    parser.add_argument("--appends", type=int, default=5000, metavar="N", help="how many (5000)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--store-dir", metavar="DIR", help="keep the store below DIR; its disk is what is measured")
    parser.add_argument("--publish", action="store_true", help="put the figures into benchmarks/results and the pages")
    options = parser.parse_args(arguments)
    if options.appends < 1:
        parser.error("--appends is at least 1")
    if options.store_dir is not None and not os.path.isdir(options.store_dir):
        parser.error(f"--store-dir: there is no directory {options.store_dir}")
    with tempfile.TemporaryDirectory(prefix="logmark-bench-", dir=options.store_dir) as directory:
        about = machine.describe(directory)
        machine.print_line(about)
        found = profile(directory, appends=options.appends)
        print(profile_table(found))
    results: dict[str, Any] = {"machine": about, **dataclasses.asdict(found)}
    if options.json:
        publish.save(options.json, results)
        print(f"wrote {options.json}")
    if options.publish:
        for path in publish.renew("profile", results):
            print(f"wrote {path}")
    return 0
