"""The whole runtime under a seeded scheduler, a virtual clock and a disk that fails: no promise is broken."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest

from logmark.storage import FileEventStore
from logmark.testing import simulate
from logmark.testing._simulation import Simulation

SEEDS = int(os.environ.get("LOGMARK_SIMULATION_SEEDS", "1000"))
PARTS = 4


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("logmark")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_breaks_a_promise(part: int, record_property: Callable[[str, object], None]) -> None:
    """A failing seed says itself: ``python -m logmark.testing.simulate --first SEED --seeds 1 --trace``."""
    reports = [Simulation(seed).run() for seed in range(part, SEEDS, PARTS)]
    for name in ("acknowledged", "crashes", "power_cuts", "halts", "delivered"):
        total = sum(getattr(report, name) for report in reports)
        record_property(name, total)
        assert total > len(reports) / 10, f"the simulation does not reach {name}"


def test_a_seed_replays_to_the_same_step() -> None:
    for seed in (3, 7):
        first, second = (Simulation(seed, trace=True).run() for _ in range(2))
        assert first == second


def test_a_broken_promise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that answers before the bytes are synced loses acknowledged events when the power goes."""
    original = FileEventStore.__init__

    def unsynced(self: FileEventStore, path: str, **options: object) -> None:
        original(self, path, **{**options, "durability": "os"})  # type: ignore[arg-type]

    monkeypatch.setattr(FileEventStore, "__init__", unsynced)
    with pytest.raises(AssertionError, match="seed"):
        all(Simulation(seed).run() for seed in range(200))


def test_the_long_hunt_reports_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["--seeds", "3"]) == 0
    assert "3 seeds" in capsys.readouterr().out
