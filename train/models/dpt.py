"""The temporal DPT: a geometry-motion latent in, depth, points, camera, motion mask and scene flow of each key frame out.

Patches of 2x2 latent cells are tokens of a transformer whose blocks attend within a frame and over all frames in turn, with one
camera token a frame. Four taps become a feature pyramid, fused from coarse to fine by convolutions; small attention modules over
time steady the two coarse levels. All tasks share this backbone; the heads are two convolutions each, and run in float32.

Axes: B batch, K key frames, h w latent cells, p q tokens (h/2, w/2), L tokens, D width, C features.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from train.models import SIZES, DecoderKnobs
from train.sample import Predicted

PATCH = 2
CELL = 8
"""Pixels a latent cell spans."""


class TemporalDPT(nn.Module):
    """Decodes `B K 16 h w` latents into maps of 8h x 8w pixels, all in the first camera's frame and in units of the scene."""

    def __init__(self, knobs: DecoderKnobs | str = "paper", *, in_channels: int = 16) -> None:
        """`knobs` may be the name of a size: tiny, small or paper."""
        super().__init__()
        self.knobs = SIZES[knobs] if isinstance(knobs, str) else knobs
        self.in_channels = in_channels
        self.backbone = Backbone(self.knobs, in_channels)
        self.heads = Heads(self.knobs)

    def forward(self, latent: Float[Tensor, "B K C h w"]) -> Predicted:
        fused, camera = self.backbone(latent)
        height, width = latent.shape[-2] * CELL, latent.shape[-1] * CELL
        return self.heads(fused, camera, latent.shape[:2], (height, width))


class Backbone(nn.Module):
    """Everything the tasks share: tokens, pyramid, fusion."""

    gradient_checkpointing = False
    """True recomputes each block's activations in the backward pass."""

    def __init__(self, knobs: DecoderKnobs, in_channels: int) -> None:
        super().__init__()
        self.knobs = knobs
        self.embed = nn.Conv2d(in_channels, knobs.width, PATCH, stride=PATCH)
        self.camera_token = nn.Parameter(torch.randn(2, knobs.width) * 0.02)
        self.blocks = nn.ModuleList(Block(knobs.width, knobs.num_heads) for _ in range(knobs.depth))
        self.pyramid = Pyramid(knobs)
        self.camera_norm = nn.LayerNorm(knobs.width)

    def forward(self, latent: Float[Tensor, "B K C h w"]) -> tuple[Float[Tensor, "N D H W"], Float[Tensor, "B K D2"]]:
        """Fused features of every frame (N = B·K) at four times the token grid, and the camera tokens."""
        batch, frames = latent.shape[:2]
        patches = self.embed(latent.flatten(0, 1))
        rows, columns = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2) + positions(rows, columns, self.knobs.width, patches)
        tokens = torch.cat((self._camera_tokens(batch, frames), tokens), dim=1)
        tokens = tokens.unflatten(0, (batch, frames)) + _along(frames, self.knobs.width, patches)[:, None]
        taps = []
        for index, block in enumerate(self.blocks):
            tokens = self._attend(block, tokens, within_frame=index % 2 == 0)
            if index in self.knobs.taps:
                taps.append(tokens)
        maps = [tap[:, :, 1:].flatten(0, 1).transpose(1, 2).unflatten(2, (rows, columns)) for tap in taps]
        return self.pyramid(maps, batch), self.camera_norm(taps[-1][:, :, 0])

    def _camera_tokens(self, batch: int, frames: int) -> Float[Tensor, "N 1 D"]:
        """The first frame's differs from all others': it is the world."""
        tokens = torch.cat((self.camera_token[:1], self.camera_token[1:].expand(frames - 1, -1)))
        return tokens.repeat(batch, 1)[:, None]

    def _attend(
        self, block: nn.Module, tokens: Float[Tensor, "B K L D"], *, within_frame: bool
    ) -> Float[Tensor, "B K L D"]:
        flat = tokens.flatten(0, 1) if within_frame else tokens.flatten(1, 2)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, flat, use_reentrant=False).view_as(tokens)
        return block(flat).view_as(tokens)


class Block(nn.Module):
    """Pre-norm attention and perceptron."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Float[Tensor, "N L D"]) -> Float[Tensor, "N L D"]:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.perceptron(self.norm2(tokens))


class Attention(nn.Module):
    """Self-attention over the second axis."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "N L D"]) -> Float[Tensor, "N L D"]:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Pyramid(nn.Module):
    """Four taps -> levels at 4x, 2x, 1x and 1/2 of the token grid -> one map, fused from coarse to fine."""

    def __init__(self, knobs: DecoderKnobs) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(knobs.width, level, 1) for level in knobs.levels)
        first, second, third, fourth = knobs.levels
        self.resize = nn.ModuleList(
            (
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(fourth, fourth, 3, stride=2, padding=1),
            )
        )
        self.reduce = nn.ModuleList(
            nn.Conv2d(level, knobs.features, 3, padding=1, bias=False) for level in knobs.levels
        )
        self.fuse = nn.ModuleList(Fusion(knobs.features, merges=level < 3) for level in range(4))
        channels = {"level_3": third, "level_4": fourth, "path_4": knobs.features, "path_3": knobs.features}
        self.over_time = nn.ModuleDict(
            {name: OverTime(width, knobs.temporal_heads) for name, width in channels.items()}
        )

    def forward(self, taps: list[Float[Tensor, "N D p q"]], batch: int) -> Float[Tensor, "N C H W"]:
        first, second, third, fourth = (
            resize(project(tap)) for tap, project, resize in zip(taps, self.project, self.resize)
        )
        third, fourth = (
            self.over_time["level_3"](third, batch),
            self.over_time["level_4"](fourth, batch),
        )
        level1, level2, level3, level4 = (
            reduce(level) for reduce, level in zip(self.reduce, (first, second, third, fourth))
        )
        path = self.over_time["path_4"](self.fuse[3](None, level4, level3.shape[-2:]), batch)
        path = self.over_time["path_3"](self.fuse[2](path, level3, level2.shape[-2:]), batch)
        path = self.fuse[1](path, level2, level1.shape[-2:])
        return self.fuse[0](path, level1, level1.shape[-2:])


class Fusion(nn.Module):
    """Adds a refined finer level to the coarser path (the coarsest has none), refines, and resizes to the next level."""

    def __init__(self, features: int, *, merges: bool) -> None:
        super().__init__()
        self.refine_level = Residual(features) if merges else nn.Identity()
        self.refine = Residual(features)
        self.out = nn.Conv2d(features, features, 1)

    def forward(
        self, path: Float[Tensor, "N C a b"] | None, level: Float[Tensor, "N C a b"], size: torch.Size
    ) -> Float[Tensor, "N C H W"]:
        fused = level if path is None else path + self.refine_level(level)
        fused = F.interpolate(self.refine(fused), size, mode="bilinear", align_corners=False)
        return self.out(fused)


class Residual(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class OverTime(nn.Module):
    """Attention of each pixel with itself over the frames; starts as the identity."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(32, channels), channels)
        self.into = nn.Linear(channels, channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.attentions = nn.ModuleList(Attention(channels, num_heads) for _ in range(2))
        self.gate = nn.Linear(channels, 8 * channels)
        self.down = nn.Linear(4 * channels, channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "N C H W"], batch: int) -> Float[Tensor, "N C H W"]:
        frames, (height, width) = len(x) // batch, x.shape[-2:]
        by_pixel = self.norm(x).unflatten(0, (batch, frames)).permute(0, 3, 4, 1, 2).flatten(0, 2)
        tokens = self.into(by_pixel) + _along(frames, x.shape[1], x)
        for norm, attention in zip(self.norms, self.attentions):
            tokens = tokens + attention(norm(tokens))
        value, gate = self.gate(self.norms[-1](tokens)).chunk(2, dim=-1)
        tokens = self.out(tokens + self.down(value * F.gelu(gate)))
        return x + tokens.unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2).flatten(0, 1)


class Heads(nn.Module):
    """The five tasks, in float32 whatever the backbone runs in. Depth is positive; points grow as sign(x)(e^|x| - 1)."""

    CHANNELS = ("depth", 1), ("points", 3), ("scene_flow", 3), ("dynamic", 1)

    def __init__(self, knobs: DecoderKnobs) -> None:
        super().__init__()
        half, last = knobs.features // 2, knobs.head_features
        self.shared = nn.Conv2d(knobs.features, half, 3, padding=1)
        self.tasks = nn.ModuleDict({name: _task(half, last, channels) for name, channels in self.CHANNELS})
        nine = nn.Linear(knobs.width, 9)
        nn.init.normal_(nine.weight, std=1e-3)
        with torch.no_grad():  # before training: the identity pose, one radian of view
            nine.bias.copy_(torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1]))
        self.camera = nn.Sequential(nn.Linear(knobs.width, knobs.width), nn.GELU(), nine)

    def forward(
        self,
        fused: Float[Tensor, "N C a b"],
        camera: Float[Tensor, "B K D"],
        frames: torch.Size,
        size: tuple[int, int],
    ) -> Predicted:
        with torch.autocast(fused.device.type, enabled=False):
            shared = F.interpolate(self.shared(fused.float()), size, mode="bilinear", align_corners=False)
            maps = {name: task(shared).permute(0, 2, 3, 1).unflatten(0, frames) for name, task in self.tasks.items()}
            points = maps["points"].clamp(-10, 10)
            return Predicted(
                depth=maps["depth"][..., 0].clamp(-10, 10).exp(),
                points=points.sign() * points.abs().expm1(),
                camera=self.camera(camera.float()),
                dynamic_logit=maps["dynamic"][..., 0],
                scene_flow=maps["scene_flow"],
            )


def _task(features: int, hidden: int, channels: int) -> nn.Sequential:
    """Two convolutions; before training: unit depth, nothing moving."""
    last = nn.Conv2d(hidden, channels, 1)
    nn.init.normal_(last.weight, std=1e-3)
    nn.init.zeros_(last.get_parameter("bias"))
    return nn.Sequential(nn.Conv2d(features, hidden, 3, padding=1), nn.ReLU(), last)


def positions(rows: int, columns: int, width: int, like: Tensor) -> Float[Tensor, "L D"]:
    """Sines and cosines of a token's row and column, for grids of any size."""
    half = width // 2
    by_row = _along(rows, half, like)[:, None].expand(-1, columns, -1)
    by_column = _along(columns, width - half, like)[None].expand(rows, -1, -1)
    return torch.cat((by_row, by_column), dim=-1).flatten(0, 1)


def _along(length: int, width: int, like: Tensor) -> Float[Tensor, "L D"]:
    place = torch.arange(length, dtype=torch.float32, device=like.device)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(1e3) / width))
    waves = torch.stack((torch.sin(place * rate), torch.cos(place * rate)), dim=-1).flatten(1)
    return waves[:, :width].to(like.dtype)
