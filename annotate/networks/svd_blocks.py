"""Residual blocks that the video UNet and the point-map VAE share, under Stable Video Diffusion's names.

Axes: frames ride in the batch, N = B·T, video by video; a temporal convolution takes them apart for a moment.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

GROUPS = 32


class Resnet(nn.Module):
    """norm, SiLU, conv, (+ time), norm, SiLU, conv, + input; over space (3x3), or over time (3x1x1) on B C T H W."""

    def __init__(
        self, inputs: int, outputs: int, eps: float, time_width: int | None = None, temporal: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inputs, eps=eps)
        self.conv1 = _convolution(inputs, outputs, temporal)
        if time_width is not None:
            self.time_emb_proj = nn.Linear(time_width, outputs)
        self.norm2 = nn.GroupNorm(GROUPS, outputs, eps=eps)
        self.conv2 = _convolution(outputs, outputs, temporal)
        self.conv_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """`time`: N E, or B E T for a temporal block."""
        y = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            y = y + self._of_time(time)
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(y)))

    def _of_time(self, time: Tensor) -> Tensor:
        if time.ndim == 3:
            return self.time_emb_proj(F.silu(time.mT)).mT[..., None, None]
        return self.time_emb_proj(F.silu(time))[..., None, None]


class Mixer(nn.Module):
    """sigmoid(mix_factor), the share of one of two."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.zeros(1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        share = self.mix_factor.sigmoid()
        return share * first + (1 - share) * second


class VideoResnet(nn.Module):
    """A spatial block, a temporal one on its output, and their mixture; `switched` gives the temporal one the share."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        eps: float,
        temporal_eps: float,
        time_width: int | None = None,
        switched: bool = False,
    ) -> None:
        super().__init__()
        self.spatial_res_block = Resnet(inputs, outputs, eps, time_width)
        self.temporal_res_block = Resnet(outputs, outputs, temporal_eps, time_width, temporal=True)
        self.time_mixer = Mixer()
        self.switched = switched

    def forward(
        self, x: Float[Tensor, "N C H W"], num_frames: int, time: Tensor | None = None
    ) -> Float[Tensor, "N D H W"]:
        """`time`: N E."""
        spatial = self.spatial_res_block(x, time)
        volume = spatial.unflatten(0, (-1, num_frames)).transpose(1, 2)
        per_video = None if time is None else time.unflatten(0, (-1, num_frames)).mT
        temporal = self.temporal_res_block(volume, per_video).transpose(1, 2).flatten(0, 1)
        return self.time_mixer(temporal, spatial) if self.switched else self.time_mixer(spatial, temporal)


class Attention(nn.Module):
    """Multi-head self-attention of N L C tokens; `context_width` only shapes the keys' and values' weights."""

    def __init__(self, width: int, heads: int, *, context_width: int | None = None, qkv_bias: bool = False) -> None:
        super().__init__()
        context_width = context_width or width
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=qkv_bias)
        self.to_k = nn.Linear(context_width, width, bias=qkv_bias)
        self.to_v = nn.Linear(context_width, width, bias=qkv_bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Float[Tensor, "N L C"]) -> Float[Tensor, "N L C"]:
        q, k, v = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def of_one(self, context: Float[Tensor, "N E"]) -> Float[Tensor, "N C"]:
        """Attention to a single token: the softmax of one key is 1, so every query receives the same."""
        return self.to_out[0](self.to_v(context))


class ImageAttention(Attention):
    """Over the pixels of each frame, one head as wide as the channels, after a norm, with a residual."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, heads=1, qkv_bias=True)
        self.group_norm = nn.GroupNorm(GROUPS, channels, eps=eps)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        tokens = self.group_norm(x).flatten(2).mT
        return x + super().forward(tokens).mT.unflatten(2, (x.shape[2], x.shape[3]))


class Downsample(nn.Module):
    """Halves the size. `asymmetric` pads one row and column of zeros below and right, as the VAEs do."""

    def __init__(self, channels: int, *, asymmetric: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)
        self.asymmetric = asymmetric

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Doubles the size: nearest, then 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _convolution(inputs: int, outputs: int, temporal: bool) -> nn.Module:
    if temporal:
        return nn.Conv3d(inputs, outputs, (3, 1, 1), padding=(1, 0, 0))
    return nn.Conv2d(inputs, outputs, 3, padding=1)
