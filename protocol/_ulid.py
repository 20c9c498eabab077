"""Monotonic ULIDs (github.com/ulid/spec): 48 bits of milliseconds, 80 bits of randomness, Crockford's base 32."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["UlidSequence", "encode_ulid"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_PAIR_CHARACTERS = 2
_PAIR_MASK = 1023
_RANDOM_BITS = 80
_SUFFIX_BITS = 20
_SUFFIX_CHARACTERS = 4
_TIME_MAX = 2**48 - 1


def encode_ulid(value: int) -> str:
    """Return the 26 characters of a 128-bit number."""
    return (
        _PAIRS[value >> 120]
        + _PAIRS[(value >> 110) & 1023]
        + _PAIRS[(value >> 100) & 1023]
        + _PAIRS[(value >> 90) & 1023]
        + _PAIRS[(value >> 80) & 1023]
        + _PAIRS[(value >> 70) & 1023]
        + _PAIRS[(value >> 60) & 1023]
        + _PAIRS[(value >> 50) & 1023]
        + _PAIRS[(value >> 40) & 1023]
        + _PAIRS[(value >> 30) & 1023]
        + _PAIRS[(value >> 20) & 1023]
        + _PAIRS[(value >> 10) & 1023]
        + _PAIRS[value & 1023]
    )


class UlidSequence:
    """A source of strictly increasing ULIDs. Not thread-safe: the caller holds a lock.

    Within one millisecond, and when the clock steps back, the previous value is incremented, as the specification's
    section "Monotonicity" asks. Of neighbours, only the last four characters differ, so only they are made anew.
    """

    def __init__(self, random_bits: Callable[[int], int]) -> None:
        self._random_bits = random_bits
        self._last_ms = -1
        self._last = -1
        self._prefix_value = -1
        self._prefix = ""

    def many(self, now_ms: int, count: int) -> list[str]:
        """Return the next ids, at one time."""
        if count == 0:
            return []
        ids = [self.next(now_ms)]
        value, end = self._last + 1, self._last + count
        while value < end:  # a run of those that differ in their last two characters only, at a time
            prefix = encode_ulid(value)[:-_PAIR_CHARACTERS]
            first = value & _PAIR_MASK
            pairs = _PAIRS[first : first + end - value]
            ids += [prefix + pair for pair in pairs]
            value += len(pairs)
        self._last = end - 1
        return ids

    def next(self, now_ms: int) -> str:
        """Return the next id; ``now_ms`` is the wall clock in milliseconds since 1970."""
        if now_ms > self._last_ms:
            self._last_ms = now_ms
            value = (min(max(now_ms, 0), _TIME_MAX) << _RANDOM_BITS) | self._random_bits(_RANDOM_BITS)
            if value <= self._last:  # beyond either end of what 48 bits can say, all times are one
                value = self._last + 1
        else:
            value = self._last + 1
        self._last = value
        if value >> _SUFFIX_BITS != self._prefix_value:
            self._prefix_value = value >> _SUFFIX_BITS
            self._prefix = encode_ulid(value)[:-_SUFFIX_CHARACTERS]
        return self._prefix + _PAIRS[(value >> 10) & 1023] + _PAIRS[value & 1023]
