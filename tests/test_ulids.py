"""Event ids: valid ULIDs that only rise, whatever the clock does and however many threads ask."""

from __future__ import annotations

import itertools
import random
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import logmark
from logmark.protocol import UlidSequence, encode_ulid
from logmark.testing import ManualClock

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O or U
ULID = re.compile(f"[0-7][{ALPHABET}]{{25}}")
RANDOM_BITS = 80


def decode(ulid: str) -> int:
    assert ULID.fullmatch(ulid), ulid
    value = 0
    for character in ulid:
        value = value * 32 + ALPHABET.index(character)
    return value


@given(st.integers(0, 2**128 - 1))
def test_26_characters_hold_128_bits(value: int) -> None:
    assert decode(encode_ulid(value)) == value


def test_the_specifications_own_example() -> None:
    """github.com/ulid/spec: the largest valid ULID, and the time of its first example."""
    assert encode_ulid(2**128 - 1) == "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
    assert encode_ulid(1_469_918_176_385 << RANDOM_BITS).startswith("01ARYZ6S41")


@given(
    st.lists(st.integers(-(2**50), 2**47) | st.integers(0, 3), min_size=1, max_size=40),
    st.sampled_from(["zeros", "ones", "chance"]),
    st.randoms(use_true_random=False),
)
def test_ids_rise_whatever_the_clock_does(times_ms: list[int], bits: str, chance: random.Random) -> None:
    def random_bits(count: int) -> int:
        if bits == "chance":
            return chance.getrandbits(count)
        return 2**count - 1 if bits == "ones" else 0

    ulids = UlidSequence(random_bits)
    ids = [ulids.next(now_ms) for now_ms in times_ms]
    assert all(one < other and decode(one) < decode(other) for one, other in itertools.pairwise(ids))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=8), st.integers(0, 2**80 - 1))
def test_many_at_once_are_as_one_after_the_other(calls: list[tuple[int, int]], bits: int) -> None:
    together, alone = UlidSequence(lambda _count: bits), UlidSequence(lambda _count: bits)
    for now_ms, count in calls:
        assert together.many(now_ms, count) == [alone.next(now_ms) for _ in range(count)]


def test_a_clock_far_beyond_48_bits_makes_a_valid_id() -> None:
    for now_ms in (-(2**80), 2**48 - 1, 2**48, 2**80):
        decode(UlidSequence(lambda count: 0).next(now_ms))


@given(st.lists(st.integers(0, 2**48 - 2), min_size=1, unique=True).map(sorted))
def test_an_id_tells_the_time_of_a_clock_that_only_goes_forward(times_ms: list[int]) -> None:
    ulids = UlidSequence(lambda count: 5)
    assert [decode(ulids.next(now_ms)) >> RANDOM_BITS for now_ms in times_ms] == times_ms


def test_a_carry_out_of_the_random_part_still_rises() -> None:
    ulids = UlidSequence(lambda count: 2**count - 1)
    first, second = ulids.next(1000), ulids.next(1000)
    assert first < second
    assert decode(second) >> RANDOM_BITS == 1001


def test_threads_get_ids_of_their_own_in_rising_order() -> None:
    threads_count, ids_each = 8, 3000
    found: list[list[str]] = [[] for _ in range(threads_count)]
    ready = threading.Barrier(threads_count)
    with logmark.open("memory:") as runtime:

        def stamp(mine: list[str]) -> None:
            ready.wait(10)
            mine.extend(runtime.stamp()[0] for _ in range(ids_each))

        threads = [threading.Thread(target=stamp, args=(mine,)) for mine in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len({each for mine in found for each in mine}) == threads_count * ids_each
    for mine in found:
        assert mine == sorted(mine)


def test_events_get_rising_ids_while_the_wall_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    with logmark.open("memory:") as runtime:
        monkeypatch.setattr(runtime, "clock", clock)
        session = runtime.session("s")
        for step_s in (0.0, 1.0, -3600.0, 0.0, 86400.0, -86400.0):
            clock.step_wall_clock(step_s)
            session.append("x")
        events = list(session.read())
    ids = [event.id or "" for event in events]
    assert ids == sorted(set(ids))
    assert all(ULID.fullmatch(each) for each in ids)
    stamps = [event.timestamp for event in events if event.timestamp is not None]
    assert stamps != sorted(stamps)  # informational: the order is that of the numbers
    assert [event.event_seq for event in events] == [1, 2, 3, 4, 5, 6]
