"""Videos, geometry and captions -> what the transformer sees. The one home of the video VAE, its scaling, and the text encoder.

Latents are `B F C h w` (diffusers' order for the transformer), F = (T - 1) / 4 + 1 latent frames of H/8 x W/8 cells.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from jaxtyping import Bool, Float, Float32
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.models import LatentKnobs
from train.noise import Noise
from train.sample import Batch

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
    with torch.no_grad():
        posterior = vae.encode(video.permute(0, 4, 1, 2, 3).to(vae.dtype)).latent_dist
    scale = vae.config.scaling_factor
    mean, std = posterior.mean.float() * scale, posterior.std.float() * scale
    return Moments(mean=mean.transpose(1, 2).contiguous(), std=std.transpose(1, 2).contiguous())


def decode(vae: VideoVAE, latent: Float[Tensor, "B F C h w"]) -> Float32[Tensor, "B T H W 3"]:
    """The video of a scaled latent, -1..1 or slightly beyond."""
    scaled = latent.transpose(1, 2).to(vae.dtype) / vae.config.scaling_factor
    return vae.decode(scaled).sample.float().permute(0, 2, 3, 4, 1)


def encode_batch(vae: VideoVAE, batch: Batch, knobs: LatentKnobs) -> Latents:
    """Both videos, one after the other: together they would need twice the memory."""
    video, ranges = geometry_video(batch, knobs)
    return Latents(rgb=encode(vae, batch.rgb), geometry=encode(vae, video), ranges=ranges)


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


class LatentCache:
    """Latents on disk, half precision, named by a hash of the pixels and geometry, the knobs and the VAE's weights.

    A changed clip, crop, knob or VAE is another name, so nothing stale can be read. Files are whole or absent.
    """

    def __init__(self, folder: Path, vae: VideoVAE, knobs: LatentKnobs) -> None:
        self.folder, self.vae, self.knobs = folder, vae, knobs
        self.model = fingerprint(vae)
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, batch: Batch) -> Latents:
        """From disk if every sample is there, else encoded and written."""
        paths = [self._path(batch, row) for row in range(len(batch.ids))]
        if not all(path.exists() for path in paths):
            fresh = _halved(encode_batch(self.vae, batch, self.knobs))
            for row, path in enumerate(paths):
                _write_whole({name: value[row].contiguous() for name, value in fresh.items()}, path)
        rows = [load_file(path) for path in paths]
        stacked = {name: torch.stack([row[name] for row in rows]).float() for name in rows[0]}
        return _latents({name: value.to(batch.rgb.device) for name, value in stacked.items()})

    def _path(self, batch: Batch, row: int) -> Path:
        digest = hashlib.blake2b(f"{self.model}/{self.knobs.model_dump_json()}".encode(), digest_size=16)
        for values in (batch.rgb, batch.depth, batch.depth_valid, batch.flow):
            digest.update(str(tuple(values[row].shape)).encode())
            digest.update(values[row].contiguous().cpu().numpy().data)
        return self.folder / f"{digest.hexdigest()}.safetensors"


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
        return self.encoder(tokens.to(self.encoder.device))[0]


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


def fingerprint(module: nn.Module) -> str:
    """A hash of a module's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().contiguous().cpu().numpy().data)
    return digest.hexdigest()


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
    if flat.is_cuda:
        ordered = flat.sort(dim=1).values
        return [ordered.gather(1, rank[:, None])[:, 0] for rank in ranks]
    return [torch.stack([row.kthvalue(int(k) + 1).values for row, k in zip(flat, rank)]) for rank in ranks]


def _wide(per_clip: Float32[Tensor, " B"]) -> Float32[Tensor, "B 1 1 1"]:
    return per_clip[:, None, None, None]


def _halved(latents: Latents) -> dict[str, Tensor]:
    both = {"rgb": latents.rgb, "geometry": latents.geometry}
    halves = {f"{name}.mean": moments.mean.half().cpu() for name, moments in both.items()}
    halves |= {f"{name}.std": moments.std.half().cpu() for name, moments in both.items()}
    return halves | {f"ranges.{name}": value.cpu() for name, value in vars(latents.ranges).items()}


def _latents(flat: dict[str, Tensor]) -> Latents:
    rgb, geometry = (Moments(mean=flat[f"{name}.mean"], std=flat[f"{name}.std"]) for name in ("rgb", "geometry"))
    names = ("depth_min", "depth_max", "flow_max")
    return Latents(rgb=rgb, geometry=geometry, ranges=Ranges(**{name: flat[f"ranges.{name}"] for name in names}))


def _text_path(folder: Path, caption: str) -> Path:
    return folder / f"{hashlib.blake2b(caption.encode(), digest_size=16).hexdigest()}.safetensors"


def _write_whole(tensors: dict[str, Tensor], path: Path) -> None:
    aside = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, aside)
    os.replace(aside, path)
