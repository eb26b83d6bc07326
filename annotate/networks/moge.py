"""MoGe version 1 (arXiv 2410.19115): a point map and its validity from one image, each image in its own unit.

Conventions of this file, MoGe's own: a is the aspect W/H; uv spans ±a/√(1+a²) and ±1/√(1+a²) (half the diagonal is 1) and
ends half a pixel inside; a focal length is relative to half the diagonal.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from annotate.networks.dinov2 import PATCH, DINOv2
from annotate.networks.loading import Weights, load_strictly, read_state_dict

TRAINED_AREAS = (250_000, 500_000)
"""Pixels of the network's input at detail levels 0 and 9."""
VALID = 0.5
SOLVER_SIDE = 64


class Inferred(NamedTuple):
    """Images at their own size. Outside `valid` the numbers mean nothing and may be below 0."""

    points: Float[Tensor, "B H W 3"]
    z: Float[Tensor, "B H W"]
    valid: Bool[Tensor, "B H W"]
    focal: Float[Tensor, " B"]
    shift: Float[Tensor, " B"]
    """Of z, to make the points fit a pinhole of this focal length; NaN for an image without two valid pixels."""


class MoGe(nn.Module):
    """ViT-L by default; other sizes serve tests."""

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        *,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        positions: int = 37,
        last_blocks: int = 4,
        projection: int = 512,
        upsampling: tuple[int, ...] = (256, 128, 64),
    ) -> None:
        super().__init__()
        self.register_buffer("image_mean", torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1))
        self.last_blocks = last_blocks
        self.backbone = DINOv2(width=width, depth=depth, heads=heads, positions=positions)
        self.head = Head(width, last_blocks, projection, upsampling)
        self.eval()

    def load_checkpoint(self, weights: Weights) -> "MoGe":
        """The official `model.pt` (configuration and weights), or its weights. Raises ValueError naming keys that differ."""
        state, name = read_state_dict(weights)
        if "model" in state and "model_config" in state:
            state = state["model"]
        load_strictly(self, state, name)
        return self

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B H W 3"], Float[Tensor, "B H W"]]:
        """Points up to scale and a shift of z, and raw validity (above 0.5 is valid); RGB in 0..1, any size."""
        height, width = image.shape[2:]
        if min(height, width) < PATCH:
            raise ValueError(f"MoGe was given {height}×{width} pixels, expected at least {PATCH} a side")
        if not torch.isfinite(image).all():
            raise ValueError("MoGe was given an image with values that are not finite, expected 0..1")
        normed = (image - self.image_mean) / self.image_std
        patches = (height // PATCH * PATCH, width // PATCH * PATCH)
        normed = F.interpolate(normed, size=patches, mode="bilinear", antialias=True)
        points, raw_valid = self.head(self.backbone(normed, self.last_blocks), (height, width))
        xy, z = points[..., :2], points[..., 2:].exp()
        return torch.cat((xy * z, z), dim=-1), raw_valid

    @torch.inference_mode()
    def infer(
        self,
        image: Float[Tensor, "B 3 H W"],
        *,
        level: int = 9,
        focal: Float[np.ndarray, " B"] | float | None = None,
    ) -> Inferred:
        """Points of a pinhole camera with its center in the middle, at the image's size, in a unit of their own.

        `level` 0..9 is the detail; `focal` (see `focal_of_fov`) leaves only the shift to solve for.
        """
        points, raw_valid = self.maps(image, level)
        focals, shifts = solve(points, raw_valid > VALID, focal)
        return render(points, raw_valid, focals, shifts, (image.shape[2], image.shape[3]))

    def maps(
        self, image: Float[Tensor, "B 3 H W"], level: int
    ) -> tuple[Float[Tensor, "B h w 3"], Float[Tensor, "B h w"]]:
        """What the network says at the size of this level of detail."""
        height, width = image.shape[2:]
        low, high = TRAINED_AREAS
        factor = math.sqrt((low + (high - low) * level / 9) / (height * width))
        size = (int(height * factor), int(width * factor))
        return self(F.interpolate(image, size=size, mode="bicubic", antialias=True))


def render(
    points: Float[Tensor, "B h w 3"],
    raw_valid: Float[Tensor, "B h w"],
    focals: Float[Tensor, " B"],
    shifts: Float[Tensor, " B"],
    size: tuple[int, int],
) -> Inferred:
    """The maps under these cameras at the image's size; where nothing could be solved, z as it is and a focal of 1."""
    z = points[..., 2] + shifts.to(points).nan_to_num()[:, None, None]
    projected = pinhole(z, focals.nan_to_num(1.0), size[1] / size[0])
    stacked = torch.cat((projected.permute(0, 3, 1, 2), raw_valid[:, None]), dim=1)
    stacked = F.interpolate(stacked, size=size, mode="bilinear")
    return Inferred(stacked[:, :3].permute(0, 2, 3, 1), stacked[:, 2], stacked[:, 3] > VALID, focals, shifts)


def focal_of_fov(fov_x: float, aspect: float) -> float:
    """f = a/√(1+a²) / tan(φ/2) of a horizontal field of view in radians."""
    return aspect / math.sqrt(1 + aspect**2) / math.tan(fov_x / 2)


def focal_px(focal: float, height: int, width: int) -> float:
    """The focal length in pixels: half a diagonal is the unit of `focal`."""
    return focal * math.hypot(height, width) / 2


def uv_grid(height: int, width: int, aspect: float, like: Tensor) -> Float[Tensor, "H W 2"]:
    """Of pixel centers, on a map of this size of an image of this aspect."""
    span_x, span_y = aspect / math.sqrt(1 + aspect**2), 1 / math.sqrt(1 + aspect**2)
    u, v = (
        torch.linspace(-span * (n - 1) / n, span * (n - 1) / n, n, dtype=like.dtype, device=like.device)
        for span, n in ((span_x, width), (span_y, height))
    )
    return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)


def pinhole(z: Float[Tensor, "B H W"], focal: Float[Tensor, " B"], aspect: float) -> Float[Tensor, "B H W 3"]:
    """Points at these depths in front of a pinhole camera with its center in the middle."""
    rays = uv_grid(z.shape[1], z.shape[2], aspect, z) / focal.to(z)[:, None, None, None]
    return torch.cat((rays * z[..., None], z[..., None]), dim=-1)


class Samples(NamedTuple):
    """What the solver reads of a map."""

    uv: Float[Tensor, "64 64 2"]
    points: Float[Tensor, "B 64 64 3"]
    valid: Bool[Tensor, "B 64 64"]


def samples(points: Float[Tensor, "B H W 3"], valid: Bool[Tensor, "B H W"]) -> Samples:
    """64x64 of the pixels, nearest."""
    height, width = valid.shape[1:]
    uv = _sampled(uv_grid(height, width, width / height, points)[None])[0]
    return Samples(uv.cpu(), _sampled(points).cpu(), _sampled(valid[..., None].float())[..., 0].cpu() > 0)


def solve(
    points: Float[Tensor, "B H W 3"], valid: Bool[Tensor, "B H W"], focal: Float[np.ndarray, " B"] | float | None = None
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Focal length and shift of z under which the points project to their pixels; NaN where fewer than two are valid."""
    return solve_samples(samples(points, valid), focal)


def solve_samples(
    seen: Samples, focal: Float[np.ndarray, " B"] | float | None = None
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """See `solve`. By MINPACK's lm with the official options: where it stops is part of the result."""
    uv, points, valid = (part.numpy() for part in seen)
    given = [None] * len(points) if focal is None else np.broadcast_to(np.asarray(focal, np.float64), len(points))
    solved = [_solve_one(uv[keep], p[keep], f) for p, keep, f in zip(points, valid, given)]
    focals, shifts = np.array(solved, np.float32).T
    return torch.from_numpy(focals.copy()), torch.from_numpy(shifts.copy())


def _sampled(maps: Float[Tensor, "B H W C"]) -> Float[Tensor, "B 64 64 C"]:
    small = F.interpolate(maps.permute(0, 3, 1, 2), size=(SOLVER_SIDE, SOLVER_SIDE), mode="nearest")
    return small.permute(0, 2, 3, 1)


def _solve_one(
    uv: Float[np.ndarray, "N 2"], points: Float[np.ndarray, "N 3"], focal: float | None
) -> tuple[float, float]:
    """min over s of |f·xy/(z+s) − uv|², f in closed form or given."""
    if len(uv) < 2:
        return math.nan, math.nan
    xy, z = points[:, :2], points[:, 2]

    def fit(shift: np.ndarray | np.floating) -> tuple[float, np.ndarray]:
        projected = xy / (z + shift)[:, None]
        f = (projected * uv).sum() / np.square(projected).sum() if focal is None else focal
        return float(f), projected

    def residuals(shift: np.ndarray) -> np.ndarray:
        f, projected = fit(shift)
        return (f * projected - uv).ravel()

    shift = np.float32(_least_squares()(residuals, x0=0, ftol=1e-3, method="lm").x.squeeze())
    return fit(shift)[0], float(shift)


def _least_squares():
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise ValueError("MoGe's focal solver needs scipy, expected it installed: pip install scipy") from None
    return least_squares


class Head(nn.Module):
    """Features of several blocks, summed, enlarged eightfold with uv appended at each size, then two outputs."""

    def __init__(self, width: int, last_blocks: int, projection: int, upsampling: tuple[int, ...]) -> None:
        super().__init__()
        self.projects = nn.ModuleList(nn.Conv2d(width, projection, 1) for _ in range(last_blocks))
        widths = (projection, *upsampling)
        self.upsample_blocks = nn.ModuleList(
            nn.Sequential(_enlarge(before + 2, after), Residual(after), Residual(after))
            for before, after in pairwise(widths)
        )
        self.output_block = nn.ModuleList(_output(widths[-1] + 2, outputs) for outputs in (3, 1))

    def forward(
        self, features: list[Float[Tensor, "B C h w"]], size: tuple[int, int]
    ) -> tuple[Float[Tensor, "B H W 3"], Float[Tensor, "B H W"]]:
        aspect = size[1] / size[0]
        x = torch.stack([project(one) for project, one in zip(self.projects, features)], dim=1).sum(dim=1)
        for block in self.upsample_blocks:
            x = block(_with_uv(x, aspect))
        x = _with_uv(F.interpolate(x, size=size, mode="bilinear"), aspect)
        points, valid = (output(x) for output in self.output_block)
        return points.permute(0, 2, 3, 1), valid[:, 0]


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.ReLU(),
            _convolution(channels, 2 * channels),
            nn.GroupNorm(2 * channels // 32, 2 * channels),
            nn.ReLU(),
            _convolution(2 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _enlarge(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 2, stride=2), _convolution(outputs, outputs))


def _output(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_convolution(inputs, 32), nn.ReLU(), nn.Conv2d(32, outputs, 1))


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate")


def _with_uv(x: Float[Tensor, "B C h w"], aspect: float) -> Float[Tensor, "B D h w"]:
    uv = uv_grid(x.shape[2], x.shape[3], aspect, x).permute(2, 0, 1)
    return torch.cat((x, uv.expand(len(x), -1, -1, -1)), dim=1)
