"""GeometryCrafter (arXiv 2504.01016): a point map of every frame of a video, consistent in time, from a per-frame prior.

Conventions of this file, the paper's own: grids run from -1 at the first pixel's center to 1 at the last's; θ is √(fx² + fy²) where
x/z = fx·g_x; everything outside the networks is float32. One unknown scale per video.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

LATENT_SCALE = 0.18215
TIME_IDS = (7.0, 127.0, 0.02)
"""Frames a second, motion bucket, noise augmentation, as in training; no noise is added."""
SIGMA_MAX, SIGMA_MIN, RHO = 700.0, 0.002, 7
DETERM_TIMESTEP = 1.6378
MAX_LOG_Z = 10.0
MIN_Z = 1e-3
QUANTILE = 0.01

Points = tuple[Float[Tensor, "T H W 3"], Bool[Tensor, "T H W"]]
Prior = Callable[[Float[Tensor, "T 3 H W"]], Points]
"""Camera-frame points and their validity of frames in 0..1, per frame."""


class PriorMaps(NamedTuple):
    """The prior in the representation of the point-map VAE."""

    disparity: Float[Tensor, "T 1 H W"]
    """-1..1 over the whole video."""
    sign: Float[Tensor, "T 1 H W"]
    """1 where valid, -1 elsewhere."""
    xy: Float[Tensor, "T 2 H W"]
    """x/z and y/z."""
    log_z: Float[Tensor, "T 1 H W"]
    """0 where not valid."""
    center: Float[Tensor, "T 2"]
    focal: Float[Tensor, "T 2"]
    """xy ≈ center + focal · grid."""

    def stacked(self, size: tuple[int, int]) -> Float[Tensor, "T 4 h w"]:
        """The VAE's input at a processing size: θ, log z, disparity, sign; depth is resized as depth, not as its log."""
        theta = self.focal.norm(dim=1)[:, None, None, None].expand_as(self.disparity)
        maps = torch.cat((theta, self.log_z, self.disparity, self.sign), dim=1)
        if maps.shape[2:] == size:
            return maps
        maps[:, 1] = maps[:, 1].clamp(max=MAX_LOG_Z).exp()
        maps = F.interpolate(maps, size=size, mode="bilinear")
        maps[:, 1] = maps[:, 1].log()
        return maps


def prior_maps(points: Float[Tensor, "T H W 3"], valid: Bool[Tensor, "T H W"]) -> PriorMaps:
    """Scale and disparity range are the video's. Points that are not in front of the camera count as not valid."""
    points = points.permute(0, 3, 1, 2)
    valid = (valid & (points[:, 2] > 0))[:, None]
    m = valid.float()
    scale = ((points[:, 2:] * m).mean() / (m.mean() + 1e-8)).clamp(min=1e-3)
    points = points / scale
    z = torch.where(points[:, 2:] > 0, points[:, 2:], MIN_Z)
    # behind the camera a point still lies on its ray, as long as z is not near 0
    ray_z = torch.where(points[:, 2:] < -MIN_Z, points[:, 2:], z)
    xy = points[:, :2] / (ray_z + 1e-7)
    center, focal = _fitted_to_grid(xy)
    return PriorMaps(_disparity(z, m), 2 * m - 1, xy, (z + 1e-7).log() * m, center, focal)


def _disparity(z: Float[Tensor, "T 1 H W"], m: Float[Tensor, "T 1 H W"]) -> Float[Tensor, "T 1 H W"]:
    disparity = m / z.clamp(min=MIN_Z)
    pixels = disparity[0].numel()
    low_rank, high_rank = (round(q * (pixels - 1)) for q in (QUANTILE, 1 - QUANTILE))
    ordered = disparity.flatten(1).sort(dim=1).values
    low, high = ordered[:, low_rank].min(), ordered[:, high_rank].max()
    return 2 * ((disparity - low) / (high - low + 1e-4)).clamp(0, 1) - 1


def _fitted_to_grid(xy: Float[Tensor, "T 2 H W"]) -> tuple[Float[Tensor, "T 2"], Float[Tensor, "T 2"]]:
    """mean(xy), and mean((xy − center)/grid) over all pixels but those in the middle of an odd side, where grid is 0."""
    center = xy.mean(dim=(2, 3))
    grid_x, grid_y = grid(xy.shape[2], xy.shape[3], xy)
    offset = xy - center[:, :, None, None]
    columns, rows = grid_x.abs() > 1e-6, grid_y.abs() > 1e-6
    fx = (offset[:, 0][..., columns] / grid_x[columns]).mean(dim=(1, 2))
    fy = (offset[:, 1][:, rows] / grid_y[rows][:, None]).mean(dim=(1, 2))
    return center, torch.stack((fx, fy), dim=1)


def grid(height: int, width: int, like: Tensor) -> tuple[Float[Tensor, " W"], Float[Tensor, " H"]]:
    """-1..1 with both ends on pixel centers; 0 for a side of one pixel."""
    x, y = (
        torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) if n > 1 else like.new_zeros(1)
        for n in (width, height)
    )
    return x, y


def sigmas(steps: int) -> Float[Tensor, " S"]:
    """Karras' noise levels from 700 to 0.002, then 0; the network's time is ln(σ)/4."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    ends = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    levels = (ends[0] + ramp * (ends[1] - ends[0])) ** RHO
    return torch.cat((levels, levels.new_zeros(1))).float()


def spans(frames: int, window: int, overlap: int) -> list[tuple[int, int]]:
    """Windows over a video, the last of them maybe short; one for a video that fits. Raises ValueError if they never end."""
    if frames <= window:
        return [(0, frames)]
    if overlap >= window:
        raise ValueError(f"windows of {window} frames overlap by {overlap}, expected less than their length")
    return [(start, min(start + window, frames)) for start in range(0, frames - overlap, window - overlap)]


def blended(
    so_far: Float[Tensor, "S 4 h w"] | None, new: Float[Tensor, "N 4 h w"], overlap: int
) -> Float[Tensor, "M 4 h w"]:
    """The next window appended, its first `overlap` frames faded in over the last ones."""
    if so_far is None:
        return new
    if not overlap:
        return torch.cat((so_far, new))
    share = torch.linspace(0, 1, overlap, dtype=new.dtype, device=new.device).view(-1, 1, 1, 1)
    faded = new[:overlap] * share + so_far[-overlap:] * (1 - share)
    return torch.cat((so_far[:-overlap], faded, new[overlap:]))


class Encoded(NamedTuple):
    """A video ready for the UNet."""

    images: Float[Tensor, "T E"]
    video: Float[Tensor, "T 4 h w"]
    """Not scaled."""
    prior: Float[Tensor, "T 4 h w"]
    """Scaled by 0.18215."""

    def window(self, start: int, end: int) -> "Encoded":
        """These frames."""
        return Encoded(*(part[start:end] for part in self))


class Networks:
    """The networks by name. `one_at_a_time` keeps only the last one asked for in memory."""

    def __init__(self, loaders: Mapping[str, Callable[[], Any]], one_at_a_time: bool) -> None:
        self._loaders, self._one_at_a_time = loaders, one_at_a_time
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            if self._one_at_a_time:
                self._loaded.clear()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            self._loaded[name] = self._loaders[name]()
        return self._loaded[name]


@torch.inference_mode()
def encode(networks: Networks, frames: Float[Tensor, "T 3 H W"], size: tuple[int, int], frames_at_once: int) -> Encoded:
    """Prior, CLIP vectors and latents of a video in 0..1, processed at `size` (sides that divide by 64)."""
    if size[0] % 64 or size[1] % 64:
        raise ValueError(f"GeometryCrafter was asked to process {size[0]}×{size[1]}, expected sides that divide by 64")
    points, valid = networks["prior"](frames)
    maps = prior_maps(points, valid).stacked(size)
    if frames.shape[2:] != size:
        frames = F.interpolate(frames, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    video = 2 * frames - 1
    images = _in_parts(networks["clip"], frames_at_once, video).float()
    disparity = maps[:, 2:3].expand(-1, 3, -1, -1)
    latents = _in_parts(networks["svd_encoder"], frames_at_once, video)[:, :4]
    mean = _in_parts(networks["svd_encoder"], frames_at_once, disparity)
    vae = networks["pointmap_vae"]
    prior = _in_parts(vae.encode, frames_at_once, maps, mean)[:, :4] * LATENT_SCALE
    return Encoded(images, latents, prior)


@torch.inference_mode()
def determ(networks: Networks, encoded: Encoded, window: int, overlap: int) -> Float[Tensor, "T 4 h w"]:
    """Latents in one pass of the UNet a window: −UNet([prior, video])."""
    unet, latents = networks["unet"], None
    for start, end in spans(len(encoded.video), window, overlap):
        part = encoded.window(start, end)
        new = -_predicted(unet, torch.cat((part.prior, part.video), dim=1), DETERM_TIMESTEP, part.images)
        latents = blended(latents, new, overlap)
    assert latents is not None
    return latents / LATENT_SCALE


@torch.inference_mode()
def diff(
    networks: Networks,
    encoded: Encoded,
    window: int,
    overlap: int,
    noise: Float[Tensor, "W 4 h w"],
    *,
    steps: int = 5,
    guidance: float = 1.0,
) -> Float[Tensor, "T 4 h w"]:
    """Latents by `steps` Euler steps a window. `noise` is unit noise of one window's length, reused by every window."""
    unet, latents = networks["unet"], None
    levels = sigmas(steps).tolist()
    start_scale = math.sqrt(levels[0] ** 2 + 1)
    for start, end in spans(len(encoded.video), window, overlap):
        part = encoded.window(start, end)
        x = noise[: end - start] * start_scale
        if latents is not None and overlap:
            x = torch.cat((latents[-overlap:] + x[:overlap] / start_scale * levels[0], x[overlap:]))
        for sigma, following in pairwise(levels):
            v = _guided(unet, x / math.sqrt(sigma**2 + 1), part, math.log(sigma) / 4, guidance)
            denoised = x / (sigma**2 + 1) - v * (sigma / math.sqrt(sigma**2 + 1))
            x = x + (x - denoised) / sigma * (following - sigma)
        latents = blended(latents, x, overlap)
        noise = torch.cat((noise[len(noise) - overlap :], noise[: len(noise) - overlap]))
    assert latents is not None
    return latents / LATENT_SCALE


def _guided(unet: nn.Module, x: Tensor, part: Encoded, timestep: float, guidance: float) -> Tensor:
    conditioned = _predicted(unet, torch.cat((x, part.video, part.prior), dim=1), timestep, part.images)
    if guidance <= 1:
        return conditioned
    nothing = torch.cat((x, torch.zeros_like(part.video), torch.zeros_like(part.prior)), dim=1)
    free = _predicted(unet, nothing, timestep, torch.zeros_like(part.images))
    return free + guidance * (conditioned - free)


def _predicted(unet: nn.Module, x: Tensor, timestep: float, images: Tensor) -> Float[Tensor, "T 4 h w"]:
    weight = next(unet.parameters())
    time_ids = torch.tensor([TIME_IDS], device=weight.device)
    return unet(x[None].to(weight), timestep, images[None].to(weight), time_ids)[0].float()


class Geometry(NamedTuple):
    """What a video's point maps hold, at its own size: with projection, z and two focals a frame say it all."""

    z: Float[Tensor, "T H W"]
    valid: Bool[Tensor, "T H W"]
    focal_x: Float[Tensor, "T #H #W"]
    focal_y: Float[Tensor, "T #H #W"]

    def points(self) -> Float[Tensor, "T H W 3"]:
        """(fx·g_x·z, fy·g_y·z, z)."""
        x, y = grid(self.z.shape[1], self.z.shape[2], self.z)
        return torch.stack((self.focal_x * x * self.z, self.focal_y * y[:, None] * self.z, self.z), dim=-1)


@torch.inference_mode()
def decode(
    networks: Networks,
    latents: Float[Tensor, "T 4 h w"],
    size: tuple[int, int],
    chunk: int,
    *,
    projection: bool = True,
    fixed_focal: bool = True,
    nearest: bool = False,
) -> Geometry:
    """Point maps at `size`. The chunk is part of the result: frames see each other within one, not across.

    `projection` with `fixed_focal` is one pinhole for the video, without it one a frame (for zooms); no projection leaves a focal
    to every pixel. `nearest` enlarges depth and validity without blending across edges.
    """
    vae = networks["pointmap_vae"]
    decoded = [vae.decode(latents[at : at + chunk]) for at in range(0, len(latents), chunk)]
    theta, log_z, logit = (torch.cat(parts) for parts in zip(*decoded))
    if theta.shape[2:] != size:
        theta = F.interpolate(theta, size=size, mode="bilinear")
        log_z, logit = _resized(log_z, logit, size, nearest)
    valid = logit[:, 0] > 0
    diagonal = math.hypot(*size)
    focal_x, focal_y = (_focal(theta[:, 0] * side / diagonal, valid, projection, fixed_focal) for side in size[::-1])
    return Geometry(log_z[:, 0].clamp(max=MAX_LOG_Z).exp(), valid, focal_x, focal_y)


def _resized(log_z: Tensor, logit: Tensor, size: tuple[int, int], nearest: bool) -> tuple[Tensor, Tensor]:
    if nearest:
        log_z, logit = (F.interpolate(one, size=size, mode="nearest-exact") for one in (log_z, logit))
        return log_z, logit
    z = F.interpolate(log_z.clamp(max=MAX_LOG_Z).exp(), size=size, mode="bilinear")
    return z.log(), F.interpolate(logit, size=size, mode="bilinear")


def _focal(per_pixel: Float[Tensor, "T H W"], valid: Bool[Tensor, "T H W"], projection: bool, fixed: bool) -> Tensor:
    if not projection:
        return per_pixel
    over = (0, 1, 2) if fixed else (1, 2)
    m = valid.float()
    mean = (per_pixel * m).mean(dim=over, keepdim=True) / (m.mean(dim=over, keepdim=True) + 1e-4)
    return mean.expand(len(per_pixel), 1, 1)


def _in_parts(function: Callable[..., Tensor], at_once: int, *frames: Tensor) -> Tensor:
    return torch.cat([function(*parts) for parts in zip(*(one.split(at_once) for one in frames))])
