"""Which nodes move: evidence of every frame, voted on along the flow, and decided where pictures have edges.

Nodes are those of the half grid; evidence is the logarithm of odds, so that what is known of one frame adds up with its neighbors'.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from annotate.depth import photometric

STILL, SURE = -6.0, 5.0
"""Evidence of what is plainly still, and the most that one frame may say."""
LIKE_ENOUGH = 0.03
"""Short of perfect correlation: noise."""
LEAST = -2.0
"""What is below is still: short of even odds, because all of a slow thing stands out a little."""
OF_PEAK = 0.6
"""Of the way from still to the strongest evidence around: less belongs to the halo of what is there."""
REACH = 17
"""Nodes across which a halo may lie: flow smears that far."""
VOTERS = 4
"""Frames before and after that vote."""
EDGE_WINDOW, EDGE_NOISE = 9, 5e-4
"""Of the guided filter: side in nodes, and variance of colors in 0..1 below which there is no edge."""
FIRST, SECOND = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]
"""The products of two colors."""


def evidence(
    score: Float32[np.ndarray, "h w"],
    lost: Bool[np.ndarray, "h w"],
    beyond: Bool[np.ndarray, "h w"],
    like: Float32[np.ndarray, "h w"],
) -> Float32[np.ndarray, "h w"]:
    """Log odds that a node moves.

    `score`: how far the flows of a still point miss, pixels, judged by the frame's own noise, 0 where none can be believed; `lost`:
    such where some neighbor should see it; `beyond`: farther than infinity; `like`: how well a still world explains the pictures.
    What is lost speaks only where a still world does not explain the pictures, because flow is lost on blank walls and water too.
    The weights are a logistic regression, rounded, on simulated scenes 2000, 2001 and 2003 and on 2010 with hard shadows.
    """
    noise = float(np.median(score)) + 0.03
    odd = np.where(score > 0, np.log(np.clip(score, 0.03, 10) / noise), 0)
    unlike = 1 - np.clip(like, -1, 1)
    total = odd + 4.7 * lost * np.minimum(unlike, 1) + 2.2 * np.log(unlike + LIKE_ENOUGH) + beyond
    return np.clip(1.6 + photometric.smoothed(total), STILL, SURE).astype(np.float32)


def voted(
    found: Float32[np.ndarray, "T h w"], steps: Sequence[Mapping[int, Float32[np.ndarray, "h w 3"]]]
) -> Float32[np.ndarray, "T h w"]:
    """Each frame's mean with what its neighbors say of the same points, which the flow leads to while it can be believed.

    `steps`: of each frame, the flow to the one before (-1) and the next (1) in nodes, and its confidence 0..1.
    """
    height, width = found.shape[1:]
    v, u = np.mgrid[:height, :width].astype(np.float32)
    out = np.empty_like(found)
    for t in range(len(found)):
        total, weight = found[t].copy(), np.ones((height, width), np.float32)
        for sign in (-1, 1):
            x, y, trust = u, v, np.ones((height, width), np.float32)
            for s in range(t, t + sign * VOTERS, sign):
                if not 0 <= s + sign < len(found):
                    break
                step = _read(steps[s][sign], x, y)
                x, y = x + step[..., 0], y + step[..., 1]
                trust = trust * step[..., 2] * ((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))
                total += trust * _read(found[s + sign], x, y)
                weight += trust
        out[t] = total / weight
    return out


def _read(image: np.ndarray, x: Float32[np.ndarray, "h w"], y: Float32[np.ndarray, "h w"]) -> np.ndarray:
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def decided(votes: Float32[np.ndarray, "h w"], picture: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Nodes that stand out from what is still, and are no halo of what stands out more, up to the edges of the picture."""
    sharp = guided(votes, picture.astype(np.float32) / 255) - STILL
    peak = cv2.dilate(sharp, disk(REACH))
    return cleaned(sharp > np.maximum(LEAST - STILL, OF_PEAK * peak), holes=5)


def guided(values: Float32[np.ndarray, "h w"], picture: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
    """The guided filter (He et al. 2013): smooth values that are locally linear in color, so that their edges are the picture's."""

    def mean(image: np.ndarray) -> np.ndarray:
        return cv2.blur(image, (EDGE_WINDOW, EDGE_WINDOW))

    colors, middle = mean(picture), mean(values)
    mixed = mean(picture * values[..., None]) - colors * middle[..., None]
    spread = mean(picture[..., FIRST] * picture[..., SECOND]) - colors[..., FIRST] * colors[..., SECOND]
    slope = _solved(spread + EDGE_NOISE * np.equal(FIRST, SECOND).astype(np.float32), mixed)
    offset = middle - (slope * colors).sum(-1)
    return ((mean(slope) * picture).sum(-1) + mean(offset)).astype(np.float32)


def _solved(matrix: Float32[np.ndarray, "h w 6"], right: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Symmetric 3x3 systems by their cofactors: ten times as fast as LAPACK on so many."""
    a, b, c, d, e, f = np.moveaxis(matrix, -1, 0)
    rows = ((d * f - e * e, c * e - b * f, b * e - c * d), (c * e - b * f, a * f - c * c, b * c - a * e))
    rows += ((b * e - c * d, b * c - a * e, a * d - b * b),)
    determinant = a * rows[0][0] + b * rows[0][1] + c * rows[0][2]
    return np.stack([sum(k * r for k, r in zip(row, np.moveaxis(right, -1, 0))) / determinant for row in rows], -1)


def cleaned(moving: Bool[np.ndarray, "h w"], holes: int = 9) -> Bool[np.ndarray, "h w"]:
    """Without specks, without holes up to so many nodes."""
    image = cv2.morphologyEx(moving.astype(np.uint8), cv2.MORPH_OPEN, disk(3))
    return cv2.morphologyEx(image, cv2.MORPH_CLOSE, disk(holes)) > 0


def disk(size: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
