"""Where flow leads: sampling an image there, and whether the way back ends where it began.

Convention: pixels have their corner origin, so pixel (i, j) is sampled exactly at (i + 0.5, j + 0.5).
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from shared import camera


def sample(
    image: Float[Tensor, "*batch H W C"],
    uv: Float[Tensor, "*points 2"],
    *,
    border: Literal["edge", "zero"] = "edge",
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Float[Tensor, "*points C"]:
    """The image's values at pixel positions, one set of positions (any shape) for each image of the batch.

    Outside the outermost pixel centers the image goes on as its `edge`, or fades to `zero` within a pixel.
    """
    batch = image.shape[:-3]
    height, width, channels = image.shape[-3:]
    if uv.shape[: len(batch)] != batch:
        raise ValueError(f"positions are {tuple(uv.shape)}, expected one set for each of the {tuple(batch)} images")
    points = math.prod(uv.shape[len(batch) : -1])  # not -1: there may be no image at all
    grid = uv.to(image.dtype).reshape(batch.numel(), 1, points, 2)
    size = torch.stack(
        (grid.new_full((), width), grid.new_full((), height))
    )  # made there: copying would wait for a device
    grid = 2 * grid / size - 1
    flat = image.reshape(batch.numel(), height, width, channels).permute(0, 3, 1, 2)
    padding = "border" if border == "edge" else "zeros"
    found = F.grid_sample(flat, grid, mode=mode, padding_mode=padding, align_corners=False)
    return found[:, :, 0].transpose(1, 2).reshape(*uv.shape[:-1], channels)


def in_bounds(uv: Float[Tensor, "*points 2"], height: int, width: int) -> Bool[Tensor, "*points"]:
    """True on the image: 0 <= u <= width and 0 <= v <= height. NaN is nowhere."""
    u, v = uv.unbind(-1)
    return (u >= 0) & (u <= width) & (v >= 0) & (v <= height)


def targets(flow: Float[Tensor, "P H W 2"]) -> Float[Tensor, "P H W 2"]:
    """Where each pixel's flow ends, as a pixel position in the other frame."""
    return camera.pixel_centers(flow.shape[1], flow.shape[2], like=flow) + flow


def cycle_error(forward: Float[Tensor, "P H W 2"], backward: Float[Tensor, "P H W 2"]) -> Float[Tensor, "P H W"]:
    """|F(x) + B(x + F(x))| in pixels: how far from its start the way there and back ends. inf where F leaves the image."""
    return cycle(forward, backward, camera.pixel_centers(*forward.shape[1:3], like=forward))[0]


def cycle_ok(forward: Float[Tensor, "P H W 2"], backward: Float[Tensor, "P H W 2"]) -> Bool[Tensor, "P H W"]:
    """True where the way back agrees; see `cycle`."""
    return cycle(forward, backward, camera.pixel_centers(*forward.shape[1:3], like=forward))[1]


def cycle(
    forward: Float[Tensor, "P *points 2"], backward: Float[Tensor, "P H W 2"], uv: Float[Tensor, "*points 2"]
) -> tuple[Float[Tensor, "P *points"], Bool[Tensor, "P *points"]]:
    """(`cycle_error`, agreement) of forward flow known at some pixel positions.

    They agree where |F + B|² < 0.01 (|F|² + |B|²) + 0.5, B at F's end, which is on the image. The test of Sundaram, Brox and
    Keutzer (2010): 0.5 px² for interpolation, a hundredth for what longer flow gets wrong.
    """
    ends = uv + forward
    back = sample(backward, ends)
    error = torch.where(in_bounds(ends, *backward.shape[1:3]), (forward + back).norm(dim=-1), torch.inf)
    return error, error.square() < 0.01 * (forward.square().sum(-1) + back.square().sum(-1)) + 0.5
