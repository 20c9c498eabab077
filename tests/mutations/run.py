"""Prove that the tests bite: take the safeguards out, one at a time, and see the tests turn red.

    python tests/mutations/run.py [--jobs N] [--check] [--no-baseline] [WORDS …]

WORDS choose the safeguards whose names contain one of them. Each is taken out in a scratch copy of the project; the
tests that ``safeguards.py`` names for it are run there, and the first that fails is printed beside it. ``--check`` only
looks whether the texts to be replaced are still in the code. The exit code is 1 when a safeguard can be taken out and
no test notices, and 2 when a text is not found or the tests are red to begin with.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safeguards import SAFEGUARDS, Safeguard

ROOT = Path(__file__).resolve().parents[2]
RUN_S_MAX = 600
TEST_S_MAX = 60
IGNORED = (".git", ".ci-venv", ".venv", "venv", "build", "dist", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)
SURVIVED = "SURVIVED"
PYTEST_ENDED = (2, 3)  # by a KeyboardInterrupt or a SystemExit that nobody caught any more
SMALLER = {"LOGMARK_PRESSURE_EVENTS": "50000", "LOGMARK_KILL_ROUNDS": "5"}  # enough to show what is shown here


def not_found(safeguards: Sequence[Safeguard]) -> Iterator[str]:
    """Yield what is wrong with the texts to be replaced."""
    for safeguard in safeguards:
        count = (ROOT / safeguard.path).read_text(encoding="utf-8").count(safeguard.text)
        if count != 1:
            yield f"{safeguard.name}: its text is {count} times in {safeguard.path}\n{safeguard.text}"
        for argument in safeguard.tests:
            if argument.startswith("tests/") and not (ROOT / argument).is_file():
                yield f"{safeguard.name}: there is no {argument}"


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests against a copy of the project, up to the first failure; return pytest's exit code and output."""
    scratch = f"--basetemp={copy}.tmp"  # not the one that pytest shares between, and clears for, runs of the same user
    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", f"--timeout={TEST_S_MAX}", scratch]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=copy,
            env={**os.environ, **SMALLER, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_S_MAX,
        )
    except subprocess.TimeoutExpired:
        return 1, "FAILED tests/ (they hang)"
    return done.returncode, done.stdout + done.stderr


def take_out(copy: Path, safeguard: Safeguard) -> str:
    """Return which test noticed that a safeguard was taken out."""
    path = copy / safeguard.path
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(safeguard.text, safeguard.without), encoding="utf-8")
    try:
        code, output = run_tests(copy, safeguard.tests)
    finally:
        path.write_text(whole, encoding="utf-8")
    if code == 0:
        return SURVIVED
    if code in PYTEST_ENDED:
        return f"(pytest itself was ended: exit code {code})"
    failed = FAILED.search(output)
    if code != 1 or failed is None:
        message = f"{safeguard.name}: pytest ended with {code}\n{output[-3000:]}"
        raise SystemExit(message)
    return failed[1]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1)))
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--no-baseline", action="store_true")
    options = parser.parse_args()
    chosen = [each for each in SAFEGUARDS if not options.words or any(word in each.name for word in options.words)]
    problems = list(not_found(chosen))
    if problems:
        say("\n".join(problems))
        return 2
    if options.check:
        return 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(options.jobs):
            shutil.copytree(ROOT, Path(scratch, str(number)), symlinks=True, ignore=shutil.ignore_patterns(*IGNORED))
            copies.put(Path(scratch, str(number)))
        if not options.no_baseline:
            files = sorted({argument for each in chosen for argument in each.tests if argument.startswith("tests/")})
            code, output = run_tests(Path(scratch, "0"), files)
            if code != 0:
                say(f"the tests are red with every safeguard in place\n{output[-3000:]}")
                return 2

        def judge(safeguard: Safeguard) -> tuple[str, float]:
            copy = copies.get()
            began = time.monotonic()
            try:
                return take_out(copy, safeguard), time.monotonic() - began
            finally:
                copies.put(copy)

        survived = 0
        with ThreadPoolExecutor(options.jobs) as pool:
            for safeguard, (noticed, seconds) in zip(chosen, pool.map(judge, chosen), strict=True):
                survived += noticed == SURVIVED
                say(f"{safeguard.name:66} {seconds:6.1f} s  {noticed.removeprefix('tests/')}")
    say(f"{len(chosen)} safeguards taken out, {survived} unnoticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
