"""A clip's labels on a sparse grid of pixels, and what checks share: where a still world would put them next.

Statistics of a clip need no more than a few thousand pixels a frame; images are looked up where those pixels lead, never resized.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from shared import camera, warp
from shared.clip import KEY_STRIDE, AnnotatedClip, Flow

POINTS = 4096
"""Pixels a frame, about."""
REFERENCE_WIDTH = 720
"""Scores in pixels are in pixels of a picture this wide, whatever the size of the labels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Landing:
    """Where the grid's points of frame t are in frame t + stride, if nothing but the camera moved."""

    uv: Float64[Tensor, "P N 2"]
    z: Float64[Tensor, "P N"]
    """Their depth in that camera; at most 0: behind it."""
    usable: Bool[Tensor, "P N"]
    """True where depth is valid, nothing moves, and the point is seen: before the camera and in the image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cycle:
    """Stored flow of the grid's points, and what its way back says of it."""

    forward: Float64[Tensor, "P N 2"]
    error_px: Float64[Tensor, "P N"]
    """inf where the flow leaves the image."""
    agrees: Bool[Tensor, "P N"]


class View:
    """A clip as checks see it. What the clip does not have is None here."""

    def __init__(self, clip: AnnotatedClip) -> None:
        self.clip = clip
        self.num_frames, self.height, self.width = clip.shape
        self._step = max(1, math.ceil(math.sqrt(self.height * self.width / POINTS)))
        self.to_reference = REFERENCE_WIDTH / self.width

    @cached_property
    def uv(self) -> Float64[Tensor, "N 2"]:
        return camera.pixel_centers(self.height, self.width)[self._sparse, self._sparse].reshape(-1, 2)

    @property
    def _sparse(self) -> slice:
        return slice(self._step // 2, None, self._step)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        rows, columns = (len(range(self._step // 2, side, self._step)) for side in (self.height, self.width))
        return rows, columns

    def grid(self, field: np.ndarray) -> Tensor:
        """T N ...: the grid's pixels of an array of images."""
        taken = field[:, self._sparse, self._sparse]
        points = math.prod(
            taken.shape[1:3]
        )  # in words, not as -1: four frames or fewer have not one pair of key frames
        return torch.tensor(taken.reshape(len(taken), points, *field.shape[3:]))

    @cached_property
    def world_from_cam(self) -> Float64[Tensor, "T 4 4"] | None:
        return torch.tensor(self.clip.cameras.world_from_cam) if self.clip.cameras else None

    @cached_property
    def intrinsics(self) -> Float64[Tensor, "T 4"] | None:
        return torch.tensor(self.clip.cameras.intrinsics) if self.clip.cameras else None

    @cached_property
    def depth(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(z, valid) of every pixel, from depth or from points."""
        if self.clip.depth is not None:
            return self.clip.depth.z, self.clip.depth.valid
        if self.clip.points is not None:
            z = self.clip.points.p_cam[..., 2]
            return z, self.clip.points.valid & (z > 0)
        return None

    @cached_property
    def z(self) -> Float64[Tensor, "T N"] | None:
        """0 where not valid."""
        if self.depth is None:
            return None
        return torch.where(self.grid(self.depth[1]), self.grid(self.depth[0]).double(), 0)

    @cached_property
    def still(self) -> Bool[Tensor, "T N"]:
        """True where no motion is labeled, nor sky."""
        motion = self.clip.motion
        if motion is None:
            return torch.ones(self.num_frames, len(self.uv), dtype=torch.bool)
        still = ~self.grid(motion.dynamic)
        return still if motion.sky is None else still & ~self.grid(motion.sky)

    @cached_property
    def median_depth(self) -> float | None:
        """Of valid still pixels; of all valid ones if none is still."""
        if self.z is None:
            return None
        for where in ((self.z > 0) & self.still, self.z > 0):
            if where.any():
                return float(self.z[where].median())
        return None

    @cached_property
    def near_depth(self) -> float | None:
        """The 2nd percentile of valid depth."""
        if self.z is None or not (self.z > 0).any():
            return None
        return float(torch.quantile(self.z[self.z > 0], 0.02))

    def flow_of(self, stride: int) -> Flow | None:
        return {1: self.clip.flow, KEY_STRIDE: self.clip.key_flow}.get(stride)

    @cached_property
    def cycle(self) -> dict[int, Cycle]:
        """By stride, of the flows there are."""
        return {stride: self._cycle(flow) for stride in (1, KEY_STRIDE) if (flow := self.flow_of(stride)) is not None}

    def _cycle(self, flow: Flow) -> Cycle:
        forward = self.grid(flow.forward)
        error, agrees = warp.cycle(forward, _tensor(flow.backward), self.uv.float())
        return Cycle(forward=forward.double(), error_px=error.double(), agrees=agrees)

    def landing(self, stride: int, every: int = 1) -> Landing | None:
        """Frames 0, every, 2 every, ... seen `stride` frames later; None without depth, cameras or such frames."""
        if self.z is None or self.world_from_cam is None or self.intrinsics is None or self.num_frames <= stride:
            return None
        start = torch.arange(0, self.num_frames - stride, every)
        then_from_now = camera.invert(self.world_from_cam[start + stride]) @ self.world_from_cam[start]
        p_cam = camera.unproject(self.uv, self.z[start], self.intrinsics[start, None])
        p_then = camera.transform(then_from_now[:, None], p_cam)
        z = p_then[..., 2]
        uv = camera.project(p_then, self.intrinsics[start + stride, None])
        usable = (self.z[start] > 0) & self.still[start] & (z > 0)
        usable &= warp.in_bounds(torch.where(usable[..., None], uv, -1), self.height, self.width)
        return Landing(uv=torch.where(usable[..., None], uv, 0), z=z, usable=usable)

    def depth_at(self, frames: Tensor, uv: Float64[Tensor, "P N 2"]) -> Float64[Tensor, "P N"]:
        """The stored depth where points land, interpolated in 1/z (exact on planes); 0 where a neighbor is not valid."""
        assert self.depth is not None
        z, valid = (array[frames.numpy()] for array in self.depth)
        inverse = np.divide(1, z, out=np.zeros_like(z), where=valid)
        found = warp.sample(torch.from_numpy(np.stack((inverse, valid.astype(z.dtype)), -1)), uv.float()).double()
        return torch.where(found[..., 1] > 0.999, 1 / found[..., 0].clamp(min=1e-12), 0)


def median(values: Tensor) -> float | None:
    """None of nothing."""
    return float(values.median()) if values.numel() else None


def quantile(values: Tensor, part: float) -> float | None:
    """The value that `part` of them does not exceed; None of nothing."""
    return float(values.flatten().kthvalue(max(1, math.ceil(part * values.numel()))).values) if values.numel() else None


def worst(values: Tensor, usable: Tensor, at_least: int = 50) -> float | None:
    """The largest median of a frame, of those with enough usable pixels: one bad frame is not lost among many."""
    medians = [float(v[u].median()) for v, u in zip(values, usable) if int(u.sum()) >= at_least]
    return max(medians) if medians else None


def present(scores: dict[str, float | None]) -> dict[str, float]:
    """Without those that could not be had."""
    return {name: value for name, value in scores.items() if value is not None and math.isfinite(value)}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
