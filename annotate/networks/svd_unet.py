"""Stable Video Diffusion's UNet with one CLIP vector per frame, as GeometryCrafter (arXiv 2504.01016) trains it.

Axes: B videos, T frames, N = B·T, h w latent cells, L = h·w tokens.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from annotate.networks.loading import Weights, load_strictly, read_state_dict
from annotate.networks.svd_blocks import GROUPS, Attention, Downsample, Mixer, Upsample, VideoResnet

RESNET_EPS = 1e-6
DEEP_RESNET_EPS = 1e-5
"""Of the last down block and the middle: the official code's defaults differ there."""
LAYER_NORM_EPS = 1e-5


class Conditions(NamedTuple):
    """What every block sees beside its input."""

    num_frames: int
    time: Float[Tensor, "N E"]
    images: Float[Tensor, "N C"]
    first_images: Float[Tensor, "B C"]


class SVDUNet(nn.Module):
    """8 input channels for the deterministic variant, 12 for the diffusing one; latent sides divide by 8."""

    def __init__(
        self,
        in_channels: int,
        *,
        widths: tuple[int, ...] = (320, 640, 1280, 1280),
        heads: tuple[int, ...] = (5, 10, 20, 20),
        layers: int = 2,
        image_width: int = 1024,
        time_id_width: int = 256,
    ) -> None:
        super().__init__()
        time = 4 * widths[0]
        self.time_id_width = time_id_width
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_embedding = TwoLinear(widths[0], time, time)
        self.add_embedding = TwoLinear(3 * time_id_width, time, time)
        self.down_blocks = nn.ModuleList(_down_blocks(widths, heads, layers, image_width, time))
        self.mid_block = MidBlock(widths[-1], heads[-1], image_width, time)
        self.up_blocks = nn.ModuleList(_up_blocks(widths, heads, layers, image_width, time))
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)
        self.eval()

    def load_checkpoint(self, weights: Weights) -> "SVDUNet":
        """The official safetensors. Raises ValueError naming the keys that differ, or the other variant."""
        state, name = read_state_dict(weights)
        first = state.get("conv_in.weight")
        if first is not None and first.shape[1] != self.conv_in.in_channels:
            raise ValueError(
                f"{name}: holds a UNet of {first.shape[1]} input channels, expected {self.conv_in.in_channels} "
                "(8 is determ, 12 is diff)"
            )
        load_strictly(self, state, name)
        return self

    def forward(
        self,
        sample: Float[Tensor, "B T C h w"],
        timestep: float | Float[Tensor, "*#B"],
        images: Float[Tensor, "B T E"],
        time_ids: Float[Tensor, "B 3"],
    ) -> Float[Tensor, "B T 4 h w"]:
        """`images`: each frame's CLIP vector; `time_ids`: frames a second, motion bucket, noise augmentation."""
        videos, num_frames, _, height, width = sample.shape
        if height % 8 or width % 8:
            raise ValueError(f"the UNet was given latents of {height}×{width}, expected sides that divide by 8")
        seen = Conditions(
            num_frames,
            self._time(timestep, time_ids, videos).repeat_interleave(num_frames, dim=0).to(sample.dtype),
            images.flatten(0, 1),
            images[:, 0],
        )
        x = self.conv_in(sample.flatten(0, 1))
        skips = [x]
        for block in self.down_blocks:
            x, made = block(x, seen)
            skips += made
        x = self.mid_block(x, seen)
        for block in self.up_blocks:
            x = block(x, skips, seen)
        return self.conv_out(F.silu(self.conv_norm_out(x))).unflatten(0, (videos, num_frames))

    def _time(self, timestep: float | Tensor, time_ids: Tensor, videos: int) -> Float[Tensor, "B E"]:
        weight = self.time_embedding.linear_1.weight
        t = torch.as_tensor(timestep, dtype=torch.float32, device=weight.device).expand(videos)
        of_t = self.time_embedding(sincos(t, self.conv_in.out_channels).to(weight.dtype))
        ids = sincos(time_ids.float().flatten(), self.time_id_width).unflatten(0, (videos, 3)).flatten(1)
        return of_t + self.add_embedding(ids.to(weight.dtype))


def sincos(t: Float[Tensor, " N"], width: int) -> Float[Tensor, "N width"]:
    """cos(t·ω_k), then sin(t·ω_k), ω_k = 10⁴^(−k/(width/2)); any real t."""
    k = torch.arange(width // 2, device=t.device, dtype=torch.float32)
    angles = t[:, None] * torch.exp(-math.log(10_000) * k / (width // 2))
    return torch.cat((angles.cos(), angles.sin()), dim=1)


class TwoLinear(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, hidden)
        self.linear_2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class DownBlock(nn.Module):
    """Resnets, each followed by a transformer where the block has them, then half the size except at the deepest."""

    def __init__(
        self, resnets: list[VideoResnet], transformers: list["Transformer"], channels: int, last: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(transformers)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels, asymmetric=False)])

    def forward(self, x: Tensor, seen: Conditions) -> tuple[Tensor, list[Tensor]]:
        made = []
        for at, resnet in enumerate(self.resnets):
            x = resnet(x, seen.num_frames, seen.time)
            if self.attentions:
                x = self.attentions[at](x, seen)
            made.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            made.append(x)
        return x, made


class MidBlock(nn.Module):
    def __init__(self, channels: int, heads: int, image_width: int, time: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(channels, channels, DEEP_RESNET_EPS, time) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer(channels, heads, image_width)])

    def forward(self, x: Tensor, seen: Conditions) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, seen.num_frames, seen.time), seen)
        return self.resnets[1](x, seen.num_frames, seen.time)


class UpBlock(nn.Module):
    """Takes its skips from the end of the list."""

    def __init__(
        self, resnets: list[VideoResnet], transformers: list["Transformer"], channels: int, last: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(transformers)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels)])

    def forward(self, x: Tensor, skips: list[Tensor], seen: Conditions) -> Tensor:
        for at, resnet in enumerate(self.resnets):
            x = resnet(torch.cat((x, skips.pop()), dim=1), seen.num_frames, seen.time)
            if self.attentions:
                x = self.attentions[at](x, seen)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class Transformer(nn.Module):
    """A block over the cells of each frame, one over the frames of each cell, and their mixture; with a residual."""

    def __init__(self, channels: int, heads: int, image_width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([Block(channels, heads, image_width)])
        self.temporal_transformer_blocks = nn.ModuleList([TemporalBlock(channels, heads, image_width)])
        self.time_pos_embed = TwoLinear(channels, 4 * channels, channels)
        self.time_mixer = Mixer()
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "N C h w"], seen: Conditions) -> Float[Tensor, "N C h w"]:
        tokens = self.proj_in(self.norm(x).flatten(2).mT)
        spatial = self.transformer_blocks[0](tokens, seen.images)
        in_time = (spatial.unflatten(0, (-1, seen.num_frames)) + self._places(seen, x)).transpose(1, 2)
        videos, cells = in_time.shape[:2]
        in_time = self.temporal_transformer_blocks[0](in_time.flatten(0, 1), seen.first_images)
        temporal = in_time.unflatten(0, (videos, cells)).transpose(1, 2).flatten(0, 1)
        mixed = self.proj_out(self.time_mixer(spatial, temporal))
        return x + mixed.mT.unflatten(2, (x.shape[2], x.shape[3]))

    def _places(self, seen: Conditions, x: Tensor) -> Float[Tensor, "T 1 C"]:
        frames = torch.arange(seen.num_frames, device=x.device, dtype=torch.float32)
        return self.time_pos_embed(sincos(frames, x.shape[1]).to(x.dtype))[:, None]


class Block(nn.Module):
    """Self-attention, attention to one image vector, feed-forward; each on a LayerNorm, with a residual."""

    def __init__(self, channels: int, heads: int, image_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)  # a key of the files; one key needs no query
        self.attn2 = Attention(channels, heads, context_width=image_width)
        self.norm3 = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.ff = FeedForward(channels)

    def forward(self, x: Float[Tensor, "N L C"], images: Float[Tensor, "M E"]) -> Float[Tensor, "N L C"]:
        """N sequences share M image vectors, N/M each."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2.of_one(images).repeat_interleave(len(x) // len(images), dim=0)[:, None]
        return x + self.ff(self.norm3(x))


class TemporalBlock(Block):
    """The same over frames, after a feed-forward of its own."""

    def __init__(self, channels: int, heads: int, image_width: int) -> None:
        super().__init__(channels, heads, image_width)
        self.norm_in = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.ff_in = FeedForward(channels)

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        return super().forward(x + self.ff_in(self.norm_in(x)), images)


class FeedForward(nn.Module):
    """W2 · (a ∘ gelu(b)), with (a, b) = W1 · x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Projection(channels, 8 * channels), nn.Identity(), nn.Linear(4 * channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net[0](x).chunk(2, dim=-1)
        return self.net[2](value * F.gelu(gate))


class Projection(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def _resnet(inputs: int, outputs: int, eps: float, time: int) -> VideoResnet:
    return VideoResnet(inputs, outputs, eps=eps, temporal_eps=eps, time_width=time)


def _down_blocks(
    widths: tuple[int, ...], heads: tuple[int, ...], layers: int, image_width: int, time: int
) -> list[DownBlock]:
    blocks = []
    for at, width in enumerate(widths):
        last = at == len(widths) - 1
        inputs = [widths[max(at - 1, 0)]] + [width] * (layers - 1)
        resnets = [_resnet(i, width, DEEP_RESNET_EPS if last else RESNET_EPS, time) for i in inputs]
        transformers = [] if last else [Transformer(width, heads[at], image_width) for _ in range(layers)]
        blocks.append(DownBlock(resnets, transformers, width, last))
    return blocks


def _up_blocks(
    widths: tuple[int, ...], heads: tuple[int, ...], layers: int, image_width: int, time: int
) -> list[UpBlock]:
    skips = [widths[0]]
    for at, width in enumerate(widths):
        skips += [width] * (layers + (at < len(widths) - 1))
    blocks, below = [], widths[-1]
    for at in reversed(range(len(widths))):
        resnets = []
        for _ in range(layers + 1):
            resnets.append(_resnet(below + skips.pop(), widths[at], RESNET_EPS, time))
            below = widths[at]
        deepest = at == len(widths) - 1
        transformers = [] if deepest else [Transformer(below, heads[at], image_width) for _ in range(layers + 1)]
        blocks.append(UpBlock(resnets, transformers, below, last=at == 0))
    return blocks
