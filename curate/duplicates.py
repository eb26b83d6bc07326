"""Which clips look like another one: near neighbors among 64-bit perceptual hashes, without comparing all with all.

Two hashes that differ in at most d bits agree in at least 3 of d + 3 blocks of bits, whichever the bits are. So for every choice of
3 blocks, hashes are sorted by those blocks and only those with equal ones compared (Manku, Jain and Das Sarma, 2007).
"""

from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Int32, Int64, UInt64

Hashes = UInt64[np.ndarray, " N"]

_PLACE = np.int32
"""Half the memory of numpy's own, for up to two thousand million clips."""


def first_alike(
    phash: Hashes, source: Hashes, clip: Hashes, max_distance_bits: int, within_source: bool
) -> Int64[np.ndarray, " N"]:
    """For each clip, the place of the one it must yield to, or -1.

    Clips are ranked by (hash of the source, hash of the clip). A clip yields to the first-ranked clip within the distance, if that
    one ranks before it and, unless `within_source`, is of another source. The order of the clips does not matter.
    """
    order = np.lexsort((clip, source)).astype(_PLACE)
    rank = np.empty(len(order), _PLACE)
    rank[order] = np.arange(len(order), dtype=_PLACE)
    by_value = np.argsort(phash, kind="stable").astype(_PLACE)
    values = phash[by_value]
    first = np.r_[True, values[1:] != values[:-1]][: len(values)]
    begins = np.flatnonzero(first)
    best = np.minimum.reduceat(rank[by_value], begins) if len(begins) else rank
    lowest = _lowest_near(values[begins], best, max_distance_bits)
    winner = np.empty_like(rank)
    winner[by_value] = np.repeat(lowest, np.diff(np.r_[begins, len(values)]))
    found = order[winner] if len(order) else winner
    yields = winner < rank
    if not within_source:
        yields &= source[found] != source
    return np.where(yields, found, -1).astype(np.int64)


def _lowest_near(values: Hashes, best: Int32[np.ndarray, " N"], distance: int) -> Int32[np.ndarray, " N"]:
    """For each distinct hash, the lowest rank among all hashes within the distance, itself included."""
    lowest = best.copy()
    if distance == 0:
        return lowest
    for key_bits in _key_masks(distance):
        keys = values & key_bits
        order = np.argsort(keys, kind="stable").astype(_PLACE)
        keys = keys[order]
        here = np.arange(len(order) - 1, dtype=_PLACE)
        step = 1
        while len(here := here[here + step < len(order)]):
            here = here[keys[here + step] == keys[here]]  # of sorted keys, equal ones are together
            a, b = order[here], order[here + step]
            near = np.bitwise_count(values[a] ^ values[b]) <= distance
            np.minimum.at(lowest, a[near], best[b[near]])
            np.minimum.at(lowest, b[near], best[a[near]])
            step += 1
    return lowest


def _key_masks(distance: int) -> list[np.uint64]:
    """One mask for each choice of 3 of distance + 3 blocks of the 64 bits."""
    edges = np.linspace(0, 64, distance + 4).round().astype(int)
    blocks = [((1 << int(b)) - 1) ^ ((1 << int(a)) - 1) for a, b in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(blocks, 3)]
