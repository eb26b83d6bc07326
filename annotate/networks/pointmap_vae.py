"""GeometryCrafter's point-map VAE, and the encoder of Stable Video Diffusion's, whose latents it corrects.

Channels of a point map, in this order: focal angle θ, log z, disparity in -1..1, validity in -1..1.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from annotate.networks.loading import Weights, load_strictly, read_state_dict
from annotate.networks.svd_blocks import GROUPS, Downsample, ImageAttention, Resnet, Upsample, VideoResnet

EPS = 1e-6
TEMPORAL_EPS = 1e-5
OFFSET = 0.1
"""How much of the point-map encoder's output moves the mean of the disparity's latent."""
LATENT_CHANNELS = 4


class PointMaps(NamedTuple):
    """What the decoder says of each frame."""

    theta: Float[Tensor, "T 1 H W"]
    log_z: Float[Tensor, "T 1 H W"]
    valid_logit: Float[Tensor, "T 1 H W"]
    """Valid above 0."""


class PointmapVAE(nn.Module):
    """Encodes a point map as an offset to the latent of its disparity; decodes frames together."""

    def __init__(
        self,
        *,
        encoder_widths: tuple[int, ...] = (128, 256, 512, 512),
        encoder_layers: int = 2,
        decoder_widths: tuple[int, ...] = (128, 256, 512, 512),
        decoder_layers: int = 2,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(4, LATENT_CHANNELS, encoder_widths, encoder_layers)
        self.decoder = Decoder(decoder_widths, decoder_layers)
        self.eval()

    def load_checkpoint(self, weights: Weights) -> "PointmapVAE":
        """The official safetensors. Raises ValueError naming the keys that differ."""
        state, name = read_state_dict(weights)
        load_strictly(self, state, name)
        return self

    def encode(
        self, maps: Float[Tensor, "T 4 H W"], disparity_latent: Float[Tensor, "T 8 h w"]
    ) -> Float[Tensor, "T 8 h w"]:
        """Mean and log-variance: those of the disparity (from `SVDEncoder`), the mean moved by what the map adds."""
        mean, log_variance = disparity_latent.chunk(2, dim=1)
        return torch.cat((mean + OFFSET * self.encoder(maps), log_variance), dim=1)

    def decode(self, latents: Float[Tensor, "T 4 h w"]) -> PointMaps:
        """Frames of one call see each other, so how a video is cut into calls is part of the result."""
        return PointMaps(*self.decoder(latents))


class SVDEncoder(nn.Module):
    """Stable Video Diffusion's image encoder: mean and log-variance of a latent, not scaled."""

    def __init__(self, *, widths: tuple[int, ...] = (128, 256, 512, 512), layers: int = 2) -> None:
        super().__init__()
        self.encoder = Encoder(3, 2 * LATENT_CHANNELS, widths, layers)
        self.quant_conv = nn.Conv2d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.eval()

    def load_checkpoint(self, weights: Weights) -> "SVDEncoder":
        """The official safetensors of the whole VAE; its decoder is not kept. Raises ValueError naming the keys that differ."""
        state, name = read_state_dict(weights)
        load_strictly(self, {key: t for key, t in state.items() if not key.startswith("decoder.")}, name)
        return self

    def forward(self, images: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T 8 h w"]:
        """Images in -1..1, sides that divide by 8."""
        return self.quant_conv(self.encoder(images))


class Encoder(nn.Module):
    """To an eighth of the size; eps is 1e-6 throughout."""

    def __init__(self, inputs: int, outputs: int, widths: tuple[int, ...], layers: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        before = (widths[0], *widths[:-1])
        last = len(widths) - 1
        self.down_blocks = nn.ModuleList(
            DownBlock(before[at], width, layers, halve=at < last) for at, width in enumerate(widths)
        )
        self.mid_block = MidBlock([Resnet(widths[-1], widths[-1], EPS) for _ in range(2)], widths[-1])
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Float[Tensor, "T C H W"]) -> Float[Tensor, "T D h w"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, layers: int, halve: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(inputs if at == 0 else outputs, outputs, EPS) for at in range(layers))
        self.downsamplers = nn.ModuleList([Downsample(outputs, asymmetric=True)] if halve else [])

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.resnets, *self.downsamplers):
            x = part(x)
        return x


class MidBlock(nn.Module):
    """Attention k runs before resnet k + 1; a lone resnet leaves the attention a mere key of the files."""

    def __init__(self, resnets: list[Resnet] | list[VideoResnet], channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList([ImageAttention(channels, EPS)])

    def forward(self, x: Tensor, *num_frames: int) -> Tensor:
        x = self.resnets[0](x, *num_frames)
        for resnet, attention in zip(self.resnets[1:], self.attentions):
            x = resnet(attention(x), *num_frames)
        return x


class Decoder(nn.Module):
    """Three heads (θ, log z, validity) on one temporal decoder."""

    def __init__(self, widths: tuple[int, ...], layers: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(LATENT_CHANNELS, widths[-1], 3, padding=1)
        self.mid_block = MidBlock([_video_resnet(widths[-1], widths[-1]) for _ in range(layers)], widths[-1])
        before = (widths[-1], *widths[:0:-1])
        outputs = widths[::-1]
        self.up_blocks = nn.ModuleList(
            UpBlock(before[at], width, layers + 1, double=at < len(widths) - 1) for at, width in enumerate(outputs)
        )
        self.out_blocks = nn.ModuleList(Head(widths[0]) for _ in range(3))
        self.time_conv_outs = nn.ModuleList(nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0)) for _ in range(3))

    def forward(self, latents: Float[Tensor, "T 4 h w"]) -> list[Float[Tensor, "T 1 H W"]]:
        num_frames = len(latents)
        x = self.mid_block(self.conv_in(latents), num_frames)
        for block in self.up_blocks:
            x = block(x, num_frames)
        maps = [head(x, num_frames).transpose(0, 1) for head in self.out_blocks]
        return [over_time(one[None])[0].transpose(0, 1) for over_time, one in zip(self.time_conv_outs, maps)]


class UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, layers: int, double: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_video_resnet(inputs if at == 0 else outputs, outputs) for at in range(layers))
        self.upsamplers = nn.ModuleList([Upsample(outputs)] if double else [])

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, num_frames)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class Head(nn.ModuleList):
    """norm, ReLU, 3x3, video resnet, ReLU, 1x1; numbered as in the files."""

    def __init__(self, channels: int) -> None:
        half = channels // 2
        super().__init__(
            [
                nn.GroupNorm(GROUPS, channels, eps=EPS),
                nn.ReLU(),
                nn.Conv2d(channels, half, 3, padding=1),
                _video_resnet(half, half),
                nn.ReLU(),
                nn.Conv2d(half, 1, 1),
            ]
        )

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        for part in self:
            x = part(x, num_frames) if isinstance(part, VideoResnet) else part(x)
        return x


def _video_resnet(inputs: int, outputs: int) -> VideoResnet:
    return VideoResnet(inputs, outputs, eps=EPS, temporal_eps=TEMPORAL_EPS, switched=True)
