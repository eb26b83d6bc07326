"""Whether a still world explains the pictures, where flow is in doubt: it drags the background along with a mover, follows moving
shadows, and loses what is fast. There, frames are compared through the cameras at the depths that a still point could have.

Zero-mean normalized correlation of small windows ignores the brightness that a shadow changes. Nodes are those of the half grid.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

WINDOW = 5
"""Side of the windows that are compared, in nodes."""
NOISE_VARIANCE = 9.0
"""Of grey levels; windows with less texture than that agree with anything."""
OFFSETS = (2, 4, 8)
"""Frames away, to both sides: near ones for what is soon hidden, far ones for what is slow."""
OUTSIDE = -2.0
"""In place of a correlation."""
REACH = 21
"""Nodes within which the farthest depth around may be that of the background."""


def halved(rgb: UInt8[np.ndarray, "T H W 3"], grid: tuple[int, int]) -> list[Float32[np.ndarray, "h w"]]:
    """Grey pictures with one pixel a node."""
    gray = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb)
    return [cv2.resize(one, grid[::-1], interpolation=cv2.INTER_AREA).astype(np.float32) for one in gray]


def still_depths(
    inverse_depth: Float32[np.ndarray, "h w"], known: Bool[np.ndarray, "h w"]
) -> list[Float32[np.ndarray, "h w"]]:
    """Inverse depths that a still point may have: its own; the nearest known, the smooth mean, and the farthest around."""
    if not known.any():
        return [inverse_depth]
    _, label = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label = np.asarray(label, np.int64)
    of_label = np.zeros(int(label.max()) + 1, np.float32)
    of_label[label[known]] = inverse_depth[known]
    nearest = of_label[label]
    weight = cv2.GaussianBlur(known.astype(np.float32), (0, 0), 8)
    total = cv2.GaussianBlur(np.where(known, inverse_depth, 0).astype(np.float32), (0, 0), 8)
    smooth = np.where(weight > 1e-3, total / np.maximum(weight, 1e-6), nearest)
    least = cv2.erode(np.where(known, inverse_depth, 1e3).astype(np.float32), np.ones((REACH, REACH), np.uint8))
    farthest = np.where(least < 1e3, least, nearest)
    return [inverse_depth, nearest, smooth.astype(np.float32), farthest.astype(np.float32)]


def likeness(
    here: Float32[np.ndarray, "h w"],
    before: Sequence[tuple[Float32[np.ndarray, "h w"], Float[Tensor, "D 2 h w"]]],
    after: Sequence[tuple[Float32[np.ndarray, "h w"], Float[Tensor, "D 2 h w"]]],
) -> Float32[np.ndarray, "h w"]:
    """How well the best of D still depths explains the frames before, or those after: correlation, -1 to 1.

    Each other picture comes with where the nodes would be in it, in its pixels. The two best of a side count, because what is
    hidden in one of them may be seen in the others; the better side, because what is uncovered was seen on one only. Places
    outside say nothing; where all are, nothing speaks against a still world.
    """
    best = np.full(here.shape, OUTSIDE, np.float32)
    for side in (before, after):
        if side:
            scores = np.stack([_seen_as(here, picture, places) for picture, places in side])
            first, second = np.partition(scores, -2, axis=0)[-2:][::-1] if len(scores) > 1 else (scores[0], scores[0])
            two = np.where(second > OUTSIDE, (first + second) / 2, first)
            best = np.maximum(best, two.max(0))
    return np.where(best > OUTSIDE, best, 1).astype(np.float32)


def _seen_as(
    here: Float32[np.ndarray, "h w"], there: Float32[np.ndarray, "h w"], places: Float[Tensor, "D 2 h w"]
) -> Float32[np.ndarray, "D h w"]:
    height, width = there.shape
    found = []
    for u, v in (places - 0.5).float().numpy():
        picture = cv2.remap(there, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
        found.append(np.where(inside, _correlation(here, picture), np.float32(OUTSIDE)))
    return np.stack(found).astype(np.float32)


def _correlation(a: Float32[np.ndarray, "h w"], b: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (WINDOW, WINDOW))

    mean_a, mean_b = mean(a), mean(b)
    both = mean(a * b) - mean_a * mean_b
    spread = np.maximum(mean(a * a) - mean_a**2, 0) * np.maximum(mean(b * b) - mean_b**2, 0)
    return ((both + NOISE_VARIANCE) / (np.sqrt(spread) + NOISE_VARIANCE)).astype(np.float32)


def smoothed(values: np.ndarray) -> Float32[np.ndarray, "h w"]:
    """Over a few nodes: things are larger than nodes."""
    return cv2.GaussianBlur(np.asarray(values, np.float32), (0, 0), 2)


def places_in(
    turned: Float[Tensor, "3 N"], shift: Float[Tensor, "3 1"], intrinsics: Float[Tensor, " 4"], d: Float[Tensor, "D N"]
) -> Float[Tensor, "D 2 N"]:
    """Where nodes at these inverse depths are seen, in pixels."""
    y = turned + shift * d[:, None]
    return y[:, :2] / y[:, 2:].clamp(min=0.05) * intrinsics[:2, None] + intrinsics[2:, None]


def as_tensor(depths: list[Float32[np.ndarray, "h w"]]) -> Float[Tensor, "D N"]:
    return torch.from_numpy(np.stack(depths).reshape(len(depths), -1))
