"""The decision what moves: slow things as well as fast ones, no halos, up to the edges of the picture."""

import numpy as np

from annotate.depth import moving

GRID = (60, 80)
INSIDE = np.s_[20:40, 30:50]


def still_votes() -> np.ndarray:
    return np.full(GRID, moving.STILL, np.float32)


def gray() -> np.ndarray:
    return np.full((*GRID, 3), 128, np.uint8)


def test_lost_flow_alone_does_not_move() -> None:
    """Blank walls and water lose it; a thing loses it and is not explained by a still world either."""
    score, nothing, everywhere = np.zeros(GRID, np.float32), np.zeros(GRID, bool), np.ones(GRID, bool)
    explained, unexplained = np.full(GRID, 0.99, np.float32), np.full(GRID, 0.2, np.float32)
    assert moving.evidence(score, everywhere, nothing, explained).max() < moving.LEAST
    assert moving.evidence(score, everywhere, nothing, unexplained).min() > 2


def test_all_of_a_slow_thing_that_stands_out_a_little() -> None:
    votes = still_votes()
    votes[INSIDE] = moving.LEAST + 1
    found = moving.decided(votes, gray())
    assert found[27:33, 37:43].all()
    assert not found[:16].any()


def test_a_halo_does_not_move_though_it_says_more_than_a_slow_thing() -> None:
    votes, picture = still_votes(), gray()
    votes[14:46, 24:56] = -1.0
    votes[INSIDE] = moving.SURE
    picture[INSIDE] = (200, 40, 40)
    found = moving.decided(votes, picture)
    assert found[22:38, 32:48].all()
    assert found.sum() < 1.15 * 20 * 20


def test_masks_end_where_colors_do() -> None:
    """Flow lost a corner of the thing."""
    picture, votes, truth = gray(), still_votes(), np.zeros(GRID, bool)
    votes[INSIDE], picture[INSIDE], truth[INSIDE] = moving.SURE, (40, 40, 200), True
    votes[20:25, 30:35] = moving.STILL

    def iou(found: np.ndarray) -> float:
        return (found & truth).sum() / (found | truth).sum()

    assert iou(moving.decided(votes, picture)) > max(0.9, iou(moving.decided(votes, gray())))


def test_neighbors_outvote_a_frame_that_saw_nothing() -> None:
    """The thing moves by two nodes a frame; where the flow cannot be believed, nobody votes."""
    found, step = np.full((5, *GRID), -3, np.float32), np.zeros((*GRID, 3), np.float32)
    for t in range(5):
        found[t, 20:40, 30 + 2 * t : 50 + 2 * t] = 4
    found[2] = -3
    step[..., 0], step[:, :, 2] = 2, 1
    steps = [{1: step, -1: step * np.float32([-1, 1, 1])} for _ in range(5)]
    votes = moving.voted(found, steps)[2]
    assert np.allclose(votes[20:40, 34:54], (4 * 4 - 3) / 5)
    assert np.allclose(votes[:20, 10:-10], -3)
    step[..., 2] = 0
    assert np.allclose(moving.voted(found, [{1: step, -1: step}] * 5), found)


def test_the_guided_filter_is_the_exact_local_fit() -> None:
    """A linear function of color comes out as it went in; against the definition, with LAPACK, at one node."""
    rng = np.random.default_rng(0)
    picture = rng.random((*GRID, 3), np.float32)
    linear = (picture @ np.float32([1, -2, 0.5]) + 3).astype(np.float32)
    assert np.abs(moving.guided(linear, picture) - linear)[10:-10, 10:-10].max() < 0.05
    matrix = rng.random((4, 5, 6), np.float32) + np.float32([3, 0, 0, 3, 0, 3])
    right = rng.random((4, 5, 3), np.float32)
    whole = np.empty((4, 5, 3, 3), np.float32)
    whole[..., moving.FIRST, moving.SECOND] = whole[..., moving.SECOND, moving.FIRST] = matrix
    assert np.allclose(moving._solved(matrix, right), np.linalg.solve(whole, right[..., None])[..., 0], atol=1e-5)


def test_a_speck_is_no_crash_and_a_large_thing_moves() -> None:
    """SpatialVID dies of a contour of one or two points and takes what covers a third of the picture for still."""
    votes, picture = still_votes(), gray()
    votes[30, 40:42] = moving.SURE
    assert moving.decided(votes, picture).sum() < 50
    large = np.s_[:, :56]
    votes[large], picture[large] = moving.SURE, (200, 40, 40)
    found = moving.decided(votes, picture)
    assert found[:, :54].all()
    assert not found[:, 60:].any()
