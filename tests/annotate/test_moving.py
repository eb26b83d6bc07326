"""The decision what moves: slow things as well as fast ones, no halos, up to the edges of the picture."""

import numpy as np

from annotate.annotator import PairFlow
from annotate.depth import moving
from annotate.depth.triangulate import half_grid
from annotate.flow.pairs import PairFlows

GRID = (60, 80)
INSIDE = np.s_[20:40, 30:50]


def still_votes() -> np.ndarray:
    return np.full(GRID, moving.STILL, np.float32)


def gray() -> np.ndarray:
    return np.full((*GRID, 3), 128, np.uint8)


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
    rgb = np.zeros((5, *(2 * n for n in GRID), 3), np.uint8)

    class Still:
        source = "still"

        def __call__(self, rgb: np.ndarray, pairs: np.ndarray) -> PairFlow:
            return PairFlow(flow=np.zeros((len(pairs), *rgb.shape[1:3], 2), np.float32))

    grid, nodes = half_grid(rgb.shape[1:3])
    found = np.full((5, *grid), 4, np.float32)
    found[2] = -1
    votes = moving.voted(found, PairFlows(rgb, Still()), nodes)
    assert np.allclose(votes[2, 10:-10, 10:-10], 3.0, atol=1e-4)
    assert np.allclose(found[2], -1)
