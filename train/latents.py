"""Videos, geometry and captions -> what the transformer sees. The one home of the video VAE, its scaling, and the text encoder.

Latents are `B F C h w` (diffusers' order for the transformer), F = (T - 1) / 4 + 1 latent frames of H/8 x W/8 cells.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from jaxtyping import Bool, Float, Float32
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.encoded import Encoded
from train.models import LatentKnobs
from train.noise import Noise
from train.sample import Batch, sent, unit

if TYPE_CHECKING:
    VideoVAE = Any  # a type checker knows nothing of diffusers' configurations
else:
    VideoVAE = AutoencoderKLCogVideoX


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranges:
    """The three numbers of each clip that turn its geometry video back into depth and flow."""

    depth_min: Float32[Tensor, " B"]
    depth_max: Float32[Tensor, " B"]
    flow_max: Float32[Tensor, " B"]
    """Pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """The VAE's posterior, scaled for the transformer."""

    mean: Float32[Tensor, "B F C h w"]
    std: Float32[Tensor, "B F C h w"]

    def sample(self, noise: Noise, purpose: str) -> Float32[Tensor, "B F C h w"]:
        """A draw for the transformer; the decoder is trained on the mean."""
        return self.mean + self.std * noise.normal(purpose, tuple(self.mean.shape[1:]), self.mean)


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """Both videos of a batch, encoded."""

    rgb: Moments
    geometry: Moments
    ranges: Ranges


def geometry_video(batch: Batch, knobs: LatentKnobs) -> tuple[Float32[Tensor, "B T H W 3"], Ranges]:
    """Depth and forward flow as one video in -1..1, with the numbers that undo it.

    depth: 2 (z - min) / (max - min) - 1, clipped, with the clip's quantiles of valid z for min and max; +1 where not valid.
    flow:  F / |F|max, clipped, with the clip's quantile of max(|u|, |v|), at least a part of the image's diagonal; the last
    frame, which leads nowhere, repeats the one before.
    """
    height, width = batch.depth.shape[-2:]
    low, high = _depth_range(batch, knobs)
    (peak,) = _quantiles(
        batch.flow.abs().amax(-1), torch.ones_like(batch.flow[..., 0], dtype=torch.bool), knobs.flow_high
    )
    floor = knobs.min_flow_diagonals * math.hypot(height, width)
    ranges = Ranges(depth_min=low, depth_max=high, flow_max=peak.clamp_min(floor))
    low, span = _wide(ranges.depth_min), _wide(ranges.depth_max - ranges.depth_min)
    depth = (2 * (batch.depth - low) / span - 1).clamp(-1, 1)
    depth = torch.where(batch.depth_valid, depth, 1.0)
    flow = (batch.flow / _wide(ranges.flow_max)[..., None]).clamp(-1, 1)
    flow = torch.cat((flow, flow[:, -1:]), dim=1)
    return torch.cat((depth[..., None], flow), dim=-1), ranges


def depth_and_flow(
    video: Float[Tensor, "B T H W 3"], ranges: Ranges
) -> tuple[Float[Tensor, "B T H W"], Float[Tensor, "B P H W 2"]]:
    """A geometry video back in the batch's units. What was not valid reads as the far end."""
    span = _wide(ranges.depth_max - ranges.depth_min)
    depth = (video[..., 0] + 1) / 2 * span + _wide(ranges.depth_min)
    return depth, video[:, :-1, ..., 1:] * _wide(ranges.flow_max)[..., None]


def encode(vae: VideoVAE, video: Float[Tensor, "B T H W 3"]) -> Moments:
    """The scaled posterior of a video in -1..1. No gradient: the VAE is frozen."""
    mean, std = _posterior(vae, video)
    scale = vae.config.scaling_factor
    return Moments(mean=mean.float() * scale, std=std.float() * scale)


@torch.no_grad()
def _posterior(vae: VideoVAE, video: Float[Tensor, "B T H W 3"], alone: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and deviation as the VAE gives them."""
    each = [
        vae.encode(some.permute(0, 4, 1, 2, 3).to(vae.dtype)).latent_dist
        for some in video.split(1 if alone else len(video))
    ]
    mean, std = (torch.cat([getattr(posterior, part) for posterior in each]) for part in ("mean", "std"))
    return mean.transpose(1, 2).contiguous(), std.transpose(1, 2).contiguous()


def decode(vae: VideoVAE, latent: Float[Tensor, "B F C h w"]) -> Float32[Tensor, "B T H W 3"]:
    """The video of a scaled latent, -1..1 or slightly beyond."""
    scaled = latent.transpose(1, 2).to(vae.dtype) / vae.config.scaling_factor
    return vae.decode(scaled).sample.float().permute(0, 2, 3, 4, 1)


def encode_batch(vae: VideoVAE, batch: Batch, knobs: LatentKnobs, *, alone: bool = False) -> Encoded:
    """Both videos, one after the other: together they would need twice the memory.

    `alone`: one sample after the other, so that the bits of none depend on its neighbors; what is kept will meet others.
    """
    video, ranges = geometry_video(batch, knobs)
    rgb_mean, rgb_std = _posterior(vae, unit(batch.rgb), alone)
    mean, std = _posterior(vae, video, alone)
    return Encoded(rgb_mean=rgb_mean, rgb_std=rgb_std, geometry_mean=mean, geometry_std=std, **vars(ranges))


def scaled(vae: VideoVAE, encoded: Encoded) -> Latents:
    """What the transformer and the decoder see of the VAE's own numbers."""
    scale, raw = vae.config.scaling_factor, vars(encoded)
    rgb, geometry = (
        Moments(mean=raw[f"{name}_mean"].float() * scale, std=raw[f"{name}_std"].float() * scale)
        for name in ("rgb", "geometry")
    )
    return Latents(rgb=rgb, geometry=geometry, ranges=Ranges(**{f.name: raw[f.name] for f in fields(Ranges)}))


def image_condition(
    vae: VideoVAE, image: Float[Tensor, "B H W 3"], frames: int, noise: Noise, *, blur: bool, dropout: float = 0.0
) -> Float32[Tensor, "B F C h w"]:
    """The first frame's latent in latent frame 0, zeros elsewhere; all zeros with probability `dropout`.

    `blur` adds pixel noise of standard deviation exp(N(-3, 0.5)), drawn for each sample, as the base was trained; never when
    sampling.
    """
    if blur:
        sigma = (noise.normal("image_sigma", (), image) * 0.5 - 3).exp()
        image = image + sigma[:, None, None, None] * noise.normal("image", tuple(image.shape[1:]), image)
    latent = encode(vae, image[:, None]).sample(noise, "image_posterior")
    kept = noise.uniform("image_dropout", image) >= dropout
    latent = latent * kept[:, None, None, None, None]
    padding = latent.new_zeros(len(latent), frames - 1, *latent.shape[2:])
    return torch.cat((latent, padding), dim=1)


@runtime_checkable
class TextEncoder(Protocol):
    """Captions in, embeddings out: always all `length` tokens, padding included."""

    width: int

    def __call__(self, captions: Sequence[str]) -> Float[Tensor, "B L D"]: ...


class T5:
    """A T5 encoder with its tokenizer. No attention mask: the base model saw its padding as tokens."""

    def __init__(self, tokenizer: Any, encoder: Any, length: int) -> None:
        self.tokenizer, self.encoder, self.length = tokenizer, encoder.eval().requires_grad_(False), length
        self.width = int(encoder.config.d_model)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Float[Tensor, "B L D"]:
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids
        return self.encoder(sent(tokens, self.encoder.device))[0]


class CachedText:
    """Embeddings that `cache_text` wrote; a caption that is not among them is refused."""

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width

    def __call__(self, captions: Sequence[str]) -> Float[Tensor, "B L D"]:
        return torch.stack([self._read(caption) for caption in captions])

    def _read(self, caption: str) -> Float[Tensor, "L D"]:
        path = _text_path(self.folder, caption)
        if not path.exists():
            raise ValueError(f"{self.folder} holds no embedding of {caption!r}: cache the captions first")
        return load_file(path)["embedding"]


def cache_text(encoder: TextEncoder, captions: Sequence[str], folder: Path) -> None:
    """Writes the embedding of each caption, and of the empty one, that `folder` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for caption in ("", *captions):
        if not (path := _text_path(folder, caption)).exists():
            _write_whole({"embedding": encoder([caption])[0].contiguous().cpu()}, path)


def _depth_range(batch: Batch, knobs: LatentKnobs) -> tuple[Float32[Tensor, " B"], Float32[Tensor, " B"]]:
    """Where the clip has no valid depth: 0 and 1."""
    low, high = _quantiles(batch.depth, batch.depth_valid, knobs.depth_low, knobs.depth_high)
    high = torch.maximum(high, low + 1e-3 * low.abs() + 1e-12)  # a wall seen head-on has no range
    some = batch.depth_valid.flatten(1).any(1)
    return torch.where(some, low, 0.0), torch.where(some, high, 1.0)


def _quantiles(
    values: Float32[Tensor, "B *map"], counts: Bool[Tensor, "B *map"], *shares: float
) -> list[Float32[Tensor, " B"]]:
    """Of the values that count in each sample, by nearest rank, for any number of them (torch's own stops at 2^24).

    A GPU sorts faster than it selects: selection gives it one block of threads a row.
    """
    flat = values.masked_fill(~counts, torch.inf).flatten(1)
    last = (counts.flatten(1).sum(1) - 1).clamp_min(0)
    ranks = [(last.double() * share).round().long() for share in shares]
    if flat.device.type != "cpu":
        ordered = flat.sort(dim=1).values
        return [ordered.gather(1, rank[:, None])[:, 0] for rank in ranks]
    return [torch.stack([row.kthvalue(int(k) + 1).values for row, k in zip(flat, rank)]) for rank in ranks]


def _wide(per_clip: Float32[Tensor, " B"]) -> Float32[Tensor, "B 1 1 1"]:
    return per_clip[:, None, None, None]


def _text_path(folder: Path, caption: str) -> Path:
    return folder / f"{hashlib.blake2b(caption.encode(), digest_size=16).hexdigest()}.safetensors"


def _write_whole(tensors: dict[str, Tensor], path: Path) -> None:
    aside = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, aside)
    os.replace(aside, path)
