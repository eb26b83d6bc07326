"""Who is next, in closed form: shares as a table of slots, shuffles as keyed permutations. Nothing here has state."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

PERIOD = 4096
"""Slots of a table: shares are true within 1 / PERIOD."""

ROUNDS = 6
_BITS = 2**64 - 1


@dataclass(frozen=True, eq=False)
class Shares:
    """Turns dealt by share: turn n goes to `names[slot[n mod PERIOD]]`, and how often it had one before is known at once."""

    names: tuple[str, ...]
    slot: Int64[np.ndarray, " period"]
    prefix: Int64[np.ndarray, "period names"]
    """Turns each name had in this period before the slot."""
    count: Int64[np.ndarray, " names"]
    """Turns each name has in a whole period."""

    def __getitem__(self, turn: int) -> tuple[str, int]:
        """Whose turn it is, and the number of turns it had before."""
        periods, place = divmod(turn, PERIOD)
        index = int(self.slot[place])
        return self.names[index], int(periods * self.count[index] + self.prefix[place, index])

    def turn(self, name: str, number: int) -> int:
        """The inverse: the turn at which `name` has had `number` turns before."""
        index = self.names.index(name)
        periods, nth = divmod(number, int(self.count[index]))
        return periods * PERIOD + int(np.flatnonzero(self.slot == index)[nth])


def shares(weights: Mapping[str, float]) -> Shares:
    """Deals each slot to the name furthest behind its share; a share below one slot is raised to one.

    Raises ValueError for weights that are not all finite and positive.
    """
    names = tuple(sorted(weights))
    given = np.array([weights[name] for name in names], dtype=np.float64)
    if not len(names) or not np.isfinite(given).all() or (given <= 0).any():
        raise ValueError(f"mixture {dict(weights)}: expected at least one name, and every weight above 0")
    if len(names) > PERIOD:
        raise ValueError(f"a mixture of {len(names)} names: expected at most {PERIOD}")
    share = np.maximum(given / given.sum(), 1 / PERIOD)
    share /= share.sum()
    slot, prefix = np.empty(PERIOD, np.int64), np.empty((PERIOD, len(names)), np.int64)
    dealt = np.zeros(len(names), np.int64)
    for place in range(PERIOD):
        prefix[place] = dealt
        slot[place] = np.argmax(share * (place + 1) - dealt)
        dealt[slot[place]] += 1
    return Shares(names, slot, prefix, dealt)


def key(*parts: object) -> int:
    """64 bits that stand for these parts, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def permute(index: int, size: int, seed: int) -> int:
    """Where a keyed bijection of 0..size-1 sends an index: a Feistel network on the next even number of bits, walked along its
    cycle until it is back below `size`. No table, so an epoch of any length costs no memory."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for turn in range(1, ROUNDS + 1):
            left, right = right, left ^ (_mix(right + seed + turn * 0x9E3779B97F4A7C15) & low)
        index = left << half | right
        if index < size:
            return index


def _mix(x: int) -> int:
    """The finalizer of splitmix64 (Steele et al. 2014): every input bit moves about half of the output bits."""
    x &= _BITS
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _BITS
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _BITS
    return x ^ x >> 31
