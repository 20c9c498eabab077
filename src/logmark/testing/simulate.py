"""A long hunt: ``python -m logmark.testing.simulate --seeds 100000``."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from ._sim_model import SimulationFailure
from ._simulation import Simulation

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run many seeds, show progress, and print the trace of the first that fails; exit code 1 if one did."""
    parser = argparse.ArgumentParser(
        prog="python -m logmark.testing.simulate",
        description="Run the whole runtime on a simulated machine, one seed after the other.",
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--steps", type=int, default=250, help="steps of chance in each (default: 250)")
    parser.add_argument("--trace", action="store_true", help="print every step; for one seed")
    options = parser.parse_args(arguments)
    logging.getLogger("logmark").setLevel(logging.CRITICAL)
    began = time.monotonic()
    acknowledged = 0
    for done, seed in enumerate(range(options.first, options.first + options.seeds), 1):
        simulation = Simulation(seed, steps=options.steps, trace=options.trace)
        try:
            report = simulation.run()
        except SimulationFailure as failure:
            print("\n".join(simulation.trace))
            print(f"\n{failure}", file=sys.stderr)
            print(f"again: python -m logmark.testing.simulate --first {seed} --seeds 1 --trace", file=sys.stderr)
            return 1
        acknowledged += report.acknowledged
        if options.trace:
            print("\n".join(report.trace))
        if done % 100 == 0 and sys.stderr.isatty():
            rate = done / (time.monotonic() - began)
            print(f"\r{done} of {options.seeds} seeds, {rate:.0f}/s, {acknowledged} appends", end="", file=sys.stderr)
    seconds = time.monotonic() - began
    print(f"{options.seeds} seeds, {acknowledged} acknowledged appends, {seconds:.0f} s: no promise broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
