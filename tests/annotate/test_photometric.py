"""What pictures say of a still world where flow is in doubt: shadows do not matter, other things do."""

import cv2
import numpy as np
import torch

from annotate.depth import photometric

RNG = np.random.default_rng(0)
GRID = (40, 60)
FLOOR, THING = (RNG.normal(120, 25, (*GRID, 3)).clip(0, 255).astype(np.uint8) for _ in range(2))
V, U = np.mgrid[0.5:40, 0.5:60]
PLACES = torch.from_numpy(np.stack((U, V))[None].astype(np.float32))
INSIDE = np.s_[14:26, 24:36]


def likeness(here: np.ndarray, before: list[np.ndarray], after: list[np.ndarray]) -> np.ndarray:
    """The camera stands still."""
    first, *others = photometric.halved(np.stack([here, *before, *after]), GRID)
    sides = [(picture, PLACES) for picture in others]
    return photometric.likeness(first, sides[: len(before)], sides[len(before) :])


def test_a_shadow_is_still_and_a_thing_is_not() -> None:
    shaded, covered = FLOOR.copy(), FLOOR.copy()
    shaded[10:30, 20:40] = 0.6 * shaded[10:30, 20:40]
    covered[10:30, 20:40] = THING[10:30, 20:40]
    assert likeness(FLOOR, [shaded], [])[INSIDE].min() > 0.95
    assert np.median(likeness(FLOOR, [covered], [])[INSIDE]) < 0.4


def test_the_rim_of_a_shadow_is_still_where_there_are_colors() -> None:
    """Brightness alone cannot tell it from a thing; a grey floor has nothing else, and its colors must not agree with all."""
    faint = np.repeat(cv2.GaussianBlur(FLOOR[..., :1], (0, 0), 2)[..., None], 3, axis=2)
    thing = np.repeat(THING[..., :1], 3, axis=2)
    rims = []
    for floor in (FLOOR, faint):
        shaded = floor.copy()
        shaded[:, 30:] = 0.4 * shaded[:, 30:]
        rims.append(likeness(floor, [shaded], [])[5:-5, 29:31])
    assert rims[0].min() > 0.9 > np.median(rims[1])
    assert np.median(likeness(faint, [thing], [])[INSIDE]) < 0.4


def test_what_is_seen_on_one_side_only_is_still() -> None:
    assert likeness(FLOOR, [THING, THING, THING], [FLOOR, FLOOR, THING]).min() > 0.95


def test_depths_around_what_is_not_known() -> None:
    d, known = np.full((40, 60), 0.5, np.float32), np.ones((40, 60), bool)
    d[:, 30:], known[15:25, 25:35] = 0.2, False
    d[~known] = 7
    own, nearest, farthest = (one[20, 27] for one in photometric.still_depths(d, known))
    assert (own, nearest, farthest) == (7, np.float32(0.5), np.float32(0.2))
