"""Near neighbors among perceptual hashes, against comparing all with all."""

import numpy as np
import pytest

from curate.duplicates import first_alike


def brute(phash: np.ndarray, source: np.ndarray, clip: np.ndarray, distance: int, within: bool) -> list[int]:
    rank = {i: (int(source[i]), int(clip[i])) for i in range(len(phash))}
    found = []
    for i in range(len(phash)):
        near = [j for j in range(len(phash)) if (int(phash[i]) ^ int(phash[j])).bit_count() <= distance]
        first = min(near, key=lambda j: rank[j])
        other = within or source[first] != source[i]
        found.append(first if rank[first] < rank[i] and other else -1)
    return found


@pytest.mark.parametrize("distance", [0, 1, 2, 3])
@pytest.mark.parametrize("within", [False, True])
def test_equals_comparing_all_with_all(distance: int, within: bool) -> None:
    rng = np.random.default_rng(distance)
    base = rng.integers(0, 2**63, 12, dtype=np.uint64)
    phash = base[rng.integers(0, 12, 240)]
    for _ in range(3):  # up to three bits off, anywhere
        phash = phash ^ np.where(
            rng.random(240) < 0.5, np.uint64(1) << rng.integers(0, 64, 240, dtype=np.uint64), np.uint64(0)
        )
    source, clip = rng.integers(0, 30, 240, dtype=np.uint64), rng.permutation(240).astype(np.uint64)
    found = first_alike(phash, source, clip, distance, within)
    assert found.tolist() == brute(phash, source, clip, distance, within)
    assert (found >= 0).any()


def test_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    phash = rng.integers(0, 40, 200, dtype=np.uint64)
    source, clip = rng.integers(0, 20, 200, dtype=np.uint64), np.arange(200, dtype=np.uint64)
    first = first_alike(phash, source, clip, 1, False)
    order = rng.permutation(200)
    second = first_alike(phash[order], source[order], clip[order], 1, False)
    assert (np.where(second >= 0, order[second], -1) == first[order]).all()


def test_few_clips() -> None:
    none = np.zeros(0, np.uint64)
    assert first_alike(none, none, none, 3, False).tolist() == []
    one = np.ones(1, np.uint64)
    assert first_alike(one, one, one, 3, True).tolist() == [-1]
