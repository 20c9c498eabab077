"""What tests of every hazard share. Test files do not import each other; larger tools are in ``logmark.testing``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

import logmark
from logmark import _runtime
from logmark.storage import FileEventStore
from logmark.testing import CapturedLogs, capture_logs

# How long an example takes says how busy the machine is; a test that hangs is ended by its own timeout.
settings.register_profile("logmark", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("logmark")


@pytest.fixture(autouse=True)
def _no_runtime_outlives_its_test() -> Iterator[None]:
    """Close what a test that failed half-way has left open, so that it cannot disturb the tests after it."""
    before = set(_runtime._open_runtimes)
    yield
    for runtime in set(_runtime._open_runtimes) - before:
        runtime.close()


@pytest.fixture(autouse=True)
def _no_descriptor_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the stores on real files that a test has left open: over the whole run their descriptors add up."""
    opened: list[FileEventStore] = []
    original = FileEventStore.__init__

    @functools.wraps(original)
    def remembering(self: FileEventStore, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if kwargs.get("files") is None:
            opened.append(self)

    monkeypatch.setattr(FileEventStore, "__init__", remembering)
    yield
    for store in opened:
        store.close()


@pytest.fixture(autouse=True)
def _structlog_is_as_it_was() -> Iterator[None]:
    """Forget a structlog set-up that a test, or the command line run by one, has made for the whole program."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def logs() -> Iterator[CapturedLogs]:
    """Logmark's log events during the test."""
    with capture_logs() as captured:
        yield captured


class Planned(Exception):
    """What ``raise_once`` raises."""


@pytest.fixture
def raise_once(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Make a method raise at one of its calls: ``raise_once(SessionActor, "_on_persisted")``.

    ``call`` says at which (1 is the next one), ``times`` at how many from there on, ``after`` whether it raises before
    or after it has done its work, ``error`` what it raises. The returned list gets the arguments of each call that
    raised, so that a test can see that it happened.
    """

    def patch(
        owner: type,
        name: str,
        *,
        call: int = 1,
        times: int = 1,
        after: bool = False,
        error: BaseException | None = None,
    ) -> list[Any]:
        original = getattr(owner, name)
        raised: list[Any] = []
        calls = 0

        @functools.wraps(original)
        def raising(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            due = call <= calls < call + times
            if due and not after:
                raised.append(args)
                raise error or Planned(name)
            result = original(*args, **kwargs)
            if due:
                raised.append(args)
                raise error or Planned(name)
            return result

        monkeypatch.setattr(owner, name, raising)
        return raised

    return patch


@pytest.fixture(params=["file", "memory"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty store, of each engine that needs no server."""
    return "memory:" if request.param == "memory" else f"file:{tmp_path / 'store'}"


@pytest.fixture
def runtime(store_url: str) -> Iterator[logmark.Runtime]:
    """A runtime on a new, empty store."""
    with logmark.open(store_url) as opened:
        yield opened
