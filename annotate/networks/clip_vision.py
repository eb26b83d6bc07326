"""CLIP's image vectors as Stable Video Diffusion makes them: transformers' model, and the resizing that comes before it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from annotate.networks.loading import Weights, load_strictly, read_state_dict

SIDE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
OLD_BUFFER = "vision_model.embeddings.position_ids"
"""Older exports carry it; it holds no weights."""


class ClipVision(nn.Module):
    """ViT-H/14 by default."""

    def __init__(
        self,
        *,
        width: int = 1280,
        hidden: int = 5120,
        layers: int = 32,
        heads: int = 16,
        patch: int = 14,
        outputs: int = 1024,
    ) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            patch_size=patch,
            image_size=SIDE,
            projection_dim=outputs,
            hidden_act="gelu",
        )
        self.model = CLIPVisionModelWithProjection(config).eval()

    def load_checkpoint(self, weights: Weights) -> "ClipVision":
        """The official safetensors. Raises ValueError naming the keys that differ."""
        state, name = read_state_dict(weights)
        load_strictly(self.model, {key: tensor for key, tensor in state.items() if key != OLD_BUFFER}, name)
        embeddings = self.model.vision_model.embeddings
        # not in the file, so a model built without memory would lack it
        embeddings.register_buffer("position_ids", torch.arange(embeddings.num_positions)[None], persistent=False)
        return self

    def forward(self, video: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T E"]:
        """One vector a frame; RGB in -1..1."""
        dtype = self.model.visual_projection.weight.dtype
        return self.model(pixels(video.float()).to(dtype)).image_embeds


def pixels(video: Float[Tensor, "T 3 H W"]) -> Float[Tensor, "T 3 224 224"]:
    """Blurred against aliasing, resized by bicubic with corners aligned (so the whole frame is seen, not a crop), normalized."""
    blurred = _blur(_blur(video, axis=3), axis=2)
    small = F.interpolate(blurred, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(c, dtype=video.dtype, device=video.device).view(3, 1, 1) for c in (MEAN, STD))
    return ((small + 1) / 2 - mean) / std


def _blur(video: Float[Tensor, "T 3 H W"], axis: int) -> Float[Tensor, "T 3 H W"]:
    """Gaussian of σ = (n/224 − 1)/2 along an axis of length n, with reflected borders."""
    sigma = max((video.shape[axis] / SIDE - 1) / 2, 0.001)
    taps = max(int(max(4 * sigma, 3)) // 2 * 2 + 1, 3)
    x = torch.arange(taps, dtype=video.dtype, device=video.device) - taps // 2
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, taps)
    half = taps // 2
    if axis == 3:
        return F.conv2d(F.pad(video, (half, half, 0, 0), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(video, (0, 0, half, half), mode="reflect"), kernel.transpose(2, 3), groups=3)
