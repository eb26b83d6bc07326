"""What pictures say of a still world where flow is in doubt: shadows do not matter, other things do."""

import numpy as np
import torch

from annotate.depth import photometric

RNG = np.random.default_rng(0)
FLOOR, THING = (RNG.normal(120, 25, (40, 60)).astype(np.float32) for _ in range(2))
V, U = np.mgrid[0.5:40, 0.5:60]
PLACES = torch.from_numpy(np.stack((U, V))[None].astype(np.float32))
INSIDE = np.s_[14:26, 24:36]


def test_a_shadow_is_still_and_a_thing_is_not() -> None:
    shaded, covered = FLOOR.copy(), FLOOR.copy()
    shaded[10:30, 20:40] *= 0.6
    covered[10:30, 20:40] = THING[10:30, 20:40]
    assert photometric.likeness(FLOOR, [(shaded, PLACES)], [])[INSIDE].min() > 0.95
    assert np.median(photometric.likeness(FLOOR, [(covered, PLACES)], [])[INSIDE]) < 0.4


def test_what_is_seen_on_one_side_only_is_still() -> None:
    other = [(THING, PLACES), (THING, PLACES), (THING, PLACES)]
    assert photometric.likeness(FLOOR, other, [(FLOOR, PLACES), (FLOOR, PLACES), (THING, PLACES)]).min() > 0.95


def test_depths_around_what_is_not_known() -> None:
    d, known = np.full((40, 60), 0.5, np.float32), np.ones((40, 60), bool)
    d[:, 30:], known[15:25, 25:35] = 0.2, False
    d[~known] = 7
    own, nearest, smooth, farthest = (one[20, 27] for one in photometric.still_depths(d, known))
    assert (own, nearest) == (7, np.float32(0.5))
    assert 0.2 < smooth < 0.5
    assert farthest == np.float32(0.2)
