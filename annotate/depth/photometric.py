"""Whether a still world explains the pictures, where flow is in doubt: it drags the background along with a mover, follows moving
shadows, and loses what is fast. There, frames are compared through the cameras at the depths that a still point could have.

Zero-mean normalized correlation of small windows ignores the brightness that a shadow changes, but not the shadow's rim; colors at
equal brightness know of no rim. The better of both counts. Nodes are those of the half grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

WINDOW = 5
"""Side of the windows that are compared, in nodes."""
NOISE_VARIANCE = 9.0
"""Of grey levels; windows with less texture than that agree with anything."""
DARK = 16.0
"""Grey levels added to the brightness that colors are divided by: they are noise in the dark."""
OFFSETS = (2, 4, 8)
"""Frames away, to both sides: near ones for what is soon hidden, far ones for what is slow."""
OUTSIDE = -2.0
"""In place of a correlation."""
REACH = 21
"""Nodes within which the farthest depth around may be that of the background."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One pixel a node: brightness, red and blue at equal brightness; and of the window around each its mean and variance."""

    rgb: UInt8[np.ndarray, "h w 3"]
    values: Float32[np.ndarray, "h w 3"]
    mean: Float32[np.ndarray, "h w 3"]
    variance: Float32[np.ndarray, "h w 3"]


def halved(rgb: UInt8[np.ndarray, "T H W 3"], grid: tuple[int, int]) -> list[Picture]:
    """Pictures with one pixel a node."""
    return [_picture(cv2.resize(frame, grid[::-1], interpolation=cv2.INTER_AREA)) for frame in rgb]


def _picture(rgb: UInt8[np.ndarray, "h w 3"]) -> Picture:
    bright = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    red, blue = (128 * (rgb[..., c] - bright) / (bright + DARK) for c in (0, 2))
    values = np.stack((bright, red, blue), -1)
    mean = _mean(values)
    variance = np.maximum(_mean(values * values) - mean * mean, 0)
    return Picture(rgb=rgb, values=values, mean=mean, variance=variance)


def still_depths(
    inverse_depth: Float32[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]
) -> list[Float32[np.ndarray, "h w"]]:
    """Inverse depths that a still point may have: its own, the nearest known, and the farthest around."""
    if not known.any():
        return [inverse_depth]
    _, label = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label = np.asarray(label, np.int64)
    of_label = np.zeros(int(label.max()) + 1, np.float32)
    of_label[label[known]] = inverse_depth[known]
    nearest = of_label[label]
    least = cv2.erode(np.where(known, inverse_depth, 1e3).astype(np.float32), np.ones((REACH, REACH), np.uint8))
    farthest = np.where(least < 1e3, least, nearest)
    return [inverse_depth, nearest, farthest.astype(np.float32)]


def likeness(
    here: Picture,
    before: Sequence[tuple[Picture, Float[Tensor, "D 2 h w"]]],
    after: Sequence[tuple[Picture, Float[Tensor, "D 2 h w"]]],
) -> Float32[np.ndarray, "h w"]:
    """How well the best of D still depths explains the frames before, or those after: correlation, -1 to 1.

    Each other picture comes with where the nodes would be in it, in its pixels. The two best of a side count, because what is
    hidden in one of them may be seen in the others; the better side, because what is uncovered was seen on one only. Places
    outside say nothing; where all are, nothing speaks against a still world.
    """
    best = np.full(here.values.shape[:2], OUTSIDE, np.float32)
    for side in (before, after):
        if side:
            first, second = _two_best([_seen_as(here, picture, places) for picture, places in side])
            two = np.where(second > OUTSIDE, (first + second) / 2, first)
            best = np.maximum(best, two.max(0))
    return np.where(best > OUTSIDE, best, 1).astype(np.float32)


def _two_best(
    scores: list[Float32[np.ndarray, "D h w"]],
) -> tuple[Float32[np.ndarray, "D h w"], Float32[np.ndarray, "D h w"]]:
    """The one twice where there is but one. Running maxima take a tenth of the time of a partition of so few."""
    first, *others = scores
    second = np.full_like(first, OUTSIDE) if others else first
    for one in others:
        second = np.maximum(second, np.minimum(first, one))
        first = np.maximum(first, one)
    return first, second


def _seen_as(here: Picture, there: Picture, places: Float[Tensor, "D 2 h w"]) -> Float32[np.ndarray, "D h w"]:
    height, width = there.values.shape[:2]
    found = []
    for u, v in (places - 0.5).float().numpy():
        seen = cv2.remap(there.values, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
        found.append(np.where(inside, _correlation(here, seen), np.float32(OUTSIDE)))
    return np.stack(found).astype(np.float32)


def _correlation(here: Picture, seen: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
    """Of brightness, or of colors where that is higher; without texture brightness agrees, and colors say nothing."""
    mean = _mean(seen)
    both = _mean(here.values * seen) - here.mean * mean
    spread = np.sqrt(here.variance * np.maximum(_mean(seen * seen) - mean * mean, 0))
    bright = (both[..., 0] + NOISE_VARIANCE) / (spread[..., 0] + NOISE_VARIANCE)
    color = (both[..., 1] + both[..., 2]) / (spread[..., 1] + spread[..., 2] + 2 * NOISE_VARIANCE)
    return np.maximum(bright, color).astype(np.float32)


def _mean(x: np.ndarray) -> np.ndarray:
    return cv2.blur(x, (WINDOW, WINDOW))


def smoothed(values: np.ndarray) -> Float32[np.ndarray, "h w"]:
    """Over a few nodes: things are larger than nodes."""
    return cv2.GaussianBlur(np.asarray(values, np.float32), (0, 0), 2)


def places_in(
    turned: Float[Tensor, "3 N"], shift: Float[Tensor, "3 1"], intrinsics: Float[Tensor, " 4"], d: Float[Tensor, "D N"]
) -> Float[Tensor, "D 2 N"]:
    """Where nodes at these inverse depths are seen, in the units of the intrinsics."""
    y = torch.addcmul(turned, shift, d[:, None])
    return torch.addcmul(intrinsics[2:, None], y[:, :2] / y[:, 2:].clamp(min=0.05), intrinsics[:2, None])


def as_tensor(depths: list[Float32[np.ndarray, "h w"]]) -> Float[Tensor, "D N"]:
    return torch.from_numpy(np.stack(depths).reshape(len(depths), -1))
