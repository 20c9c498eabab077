"""What an engine promises when several runtimes, threads or processes use one store at the same moment."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Generator

from ..protocol import WrongExpectedSeq
from ..storage import Appended, AppendRequest, EventStore, SessionBatch, open_store
from ._conformance_base import (
    StoreHarness,
    append_answers,
    append_events,
    make_event,
    make_events,
    run_together,
    seqs_of,
    texts_of,
)
from ._conformance_program import event_ids, request_of_turn

__all__ = ["ProcessConformance", "RaceConformance"]

S = "session"
_WAIT_S = 120.0


class RaceConformance(StoreHarness):
    """Two stores on the same data, used at once: the store decides, and decides once."""

    def test_the_url_opens_the_same_store(self) -> None:
        """``EventStore.url`` is what another process would be given."""
        store = self.opened()
        append_events(store, S, *make_events("a b"))

        again = self.closed_later(open_store(self.url_of(store)))
        assert texts_of(again.read(S)) == ["a", "b"]
        assert append_events(again, S, make_event("c")) == Appended(3, 3)
        assert texts_of(store.read(S)) == ["a", "b", "c"]

    def test_an_id_that_two_bring_at_once_is_written_once(self) -> None:
        """Row 40: both are answered with the same number, and exactly one of them wrote it."""
        one, two = self.two_stores()
        answers: dict[str, list[Appended]] = {"one": [], "two": []}

        def write(store: EventStore, name: str) -> None:
            for turn in range(40):
                events = make_events("a b", ids=[f"{turn}-a", f"{turn}-b"])
                answers[name].append(append_events(store, S, *events))

        run_together(lambda: write(one, "one"), lambda: write(two, "two"))

        for mine, theirs in zip(answers["one"], answers["two"], strict=True):
            assert (mine.first_seq, mine.last_seq) == (theirs.first_seq, theirs.last_seq)
            assert mine.written != theirs.written
        assert seqs_of(one.read(S)) == list(range(1, 81))
        assert len({event.id for event in one.read(S)}) == 80

    def test_of_two_who_expect_the_same_one_is_let_through(self) -> None:
        """``expected_seq`` compares and appends in one step; the other learns what is there by then."""
        one, two = self.two_stores()
        won: dict[str, list[int]] = {"one": [], "two": []}

        def write(store: EventStore, name: str) -> None:
            expected = 0
            while expected < 60:
                (answer,) = append_answers(store, S, AppendRequest((make_event(name),), expected))
                if isinstance(answer, Appended):
                    assert answer.first_seq == expected + 1
                    won[name].append(answer.first_seq)
                    expected = answer.first_seq
                else:
                    assert isinstance(answer, WrongExpectedSeq)
                    assert answer.last_seq > expected
                    expected = answer.last_seq

        run_together(lambda: write(one, "one"), lambda: write(two, "two"))

        assert sorted(won["one"] + won["two"]) == list(range(1, len(won["one"] + won["two"]) + 1))
        for event in one.read(S):
            assert event.event_seq in won[event.decode().payload["text"]]

    def test_reservations_and_events_share_no_number(self) -> None:
        """Row 8: whoever is first has the number; what was reserved stays empty."""
        one, two = self.two_stores()
        reserved: set[int] = set()

        def write() -> None:
            for _ in range(60):
                append_events(one, S, *make_events("a b"))

        def reserve() -> None:
            for _ in range(20):
                info = two.info(S)
                two.reserve(S, info.next_seq + 3)
                reserved.add(info.next_seq + 3)

        run_together(write, reserve)

        found = seqs_of(two.read(S))
        assert len(found) == 120
        assert sorted(set(found), key=lambda seq: seq or 0) == found
        assert seqs_of(two.read_backwards(S)) == found[::-1]
        assert (two.info(S).next_seq - 1) in reserved | set(found)
        assert one.verify(S) == []

    def test_two_stores_write_to_several_sessions_at_once(self) -> None:
        """Each session is dense, and nobody waits for the other for ever, in whatever order each takes them."""
        one, two = self.two_stores()
        names = [f"s{index}" for index in range(6)]

        def write(store: EventStore, order: list[str]) -> None:
            for turn in range(10):
                results = store.append(
                    [SessionBatch(name, (AppendRequest((make_event(str(turn)),)),)) for name in order]
                )
                assert [result.session_id for result in results] == order
                assert all(isinstance(answer, Appended) for result in results for answer in result.answers)

        run_together(lambda: write(one, names), lambda: write(two, names[::-1]))

        for name in names:
            assert seqs_of(one.read(name)) == list(range(1, 21))
            assert sorted(texts_of(two.read(name))) == sorted([str(turn) for turn in range(10)] * 2)

    def test_a_store_is_verified_while_another_writes(self) -> None:
        """A verification finds nothing where there is nothing, and disturbs nobody."""
        one, two = self.two_stores()
        append_events(one, S, make_event())
        done = threading.Event()

        def write() -> None:
            try:
                for turn in range(60):
                    append_events(one, S, *make_events("a b c"))
                    if turn % 20 == 0:
                        one.reserve(S, one.info(S).next_seq + 2)
            finally:
                done.set()

        def verify() -> None:
            while not done.is_set():
                assert [finding for finding in two.verify(S) if not finding.harmless] == []

        run_together(write, verify)
        assert two.verify(S) == []


class ProcessConformance(StoreHarness):
    """Two processes on the same data, one of which may be killed at any moment."""

    def test_two_processes_append_while_this_one_reads(self) -> None:
        """Row 37: dense, contiguous per append, each event once, and a reader sees whole appends in order."""
        store = self.opened()
        with self.program(store, "one", 60, 3) as one, self.program(store, "two", 60, 3) as two:
            for process in (one, two):
                _tell(process)
            seen: list[int | None] = []
            while len(seen) < 360:
                found = seqs_of(store.read(S, from_seq=len(seen) + 1))
                assert found == list(range(len(seen) + 1, len(seen) + len(found) + 1))
                assert len(found) % 3 == 0
                seen += found
                if not found and one.poll() is not None and two.poll() is not None and store.last_seq(S) == len(seen):
                    break
            told = {name: _answers(process) for name, process in (("one", one), ("two", two))}

        ids = [event.id for event in store.read(S)]
        for name, answers in told.items():
            assert sorted(answers) == list(range(60))
            assert [answers[turn] for turn in range(60)] == sorted(answers.values())
            for turn, first in answers.items():
                assert ids[first - 1 : first + 2] == event_ids(name, turn, 3)
        assert len(set(ids)) == 360
        assert store.verify(S) == []

    def test_a_killed_process_loses_nothing_it_was_told(self) -> None:
        """Rows 1 and 46: what was answered is there, whole and once; what was not is settled by trying again."""
        store = self.opened()
        first_ids: list[str] = []
        for round_ in range(3):
            name = f"round{round_}"
            with self.program(store, name, 100_000, 3) as process:
                _tell(process)
                told = _answers(process, until=5 + 4 * round_)
                process.kill()
                told |= _answers(process)
            last_turn = max(told)
            for turn in range(last_turn + 3):
                answer = append_events(store, S, *request_of_turn(name, turn, 3).events)
                if turn in told:
                    assert (answer.first_seq, answer.written) == (told[turn], False)
                first_ids += event_ids(name, turn, 3)

        found = list(store.read(S))
        assert seqs_of(found) == list(range(1, len(found) + 1))
        assert len({event.id for event in found}) == len(found)
        # A killed process may have been one append ahead of what it had said; it was tried again above.
        assert [event.id for event in found] == first_ids
        assert store.verify(S) == []

    def test_a_process_that_dies_holds_nothing_up(self) -> None:
        """The lock, or whatever stands for it, dies with its process: the next append goes through."""
        store = self.opened()
        with self.program(store, "killed", 100_000, 1) as process:
            _tell(process)
            _answers(process, until=2)
            process.kill()
            process.wait(_WAIT_S)
            assert isinstance(append_events(store, S, make_event()), Appended)
            _answers(process)

    @contextlib.contextmanager
    def program(self, store: EventStore, name: str, appends: int, events_each: int) -> Generator[subprocess.Popen[str]]:
        """Start a process that is ready to append, and end it."""
        process = subprocess.Popen(  # noqa: S603 - this interpreter, on a module of this package
            [
                sys.executable,
                "-m",
                "logmark.testing._conformance_program",
                self.url_of(store),
                S,
                name,
                str(appends),
                str(events_each),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert _line(process) == "ready"
                yield process
            finally:
                process.kill()


def _tell(process: subprocess.Popen[str]) -> None:
    """Let a program go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    """Return the next line of a program, empty at its end; one that says nothing for too long is killed."""
    assert process.stdout is not None
    timer = threading.Timer(_WAIT_S, process.kill)
    timer.start()
    try:
        return process.stdout.readline().strip()
    finally:
        timer.cancel()


def _answers(process: subprocess.Popen[str], *, until: int | None = None) -> dict[int, int]:
    """Return what a program was answered by turn, up to its end or until there are so many."""
    told: dict[int, int] = {}
    while until is None or len(told) < until:
        line = _line(process)
        if not line:
            break
        turn, first = line.split()
        told[int(turn)] = int(first)
    return told
