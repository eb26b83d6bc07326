"""DINOv2's vision transformer (arXiv 2304.07193), without registers, as MoGe's backbone."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

EPS = 1e-6
PATCH = 14


class DINOv2(nn.Module):
    """ViT-L/14 by default."""

    def __init__(self, *, width: int = 1024, depth: int = 24, heads: int = 16, positions: int = 37) -> None:
        """`positions`: a side of the square grid that position embeddings are stored for."""
        super().__init__()
        self.positions = positions
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # a key of the files; only training uses it
        self.patch_embed = PatchEmbed(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, image: Float[Tensor, "B 3 H W"], last_blocks: int) -> list[Float[Tensor, "B C h w"]]:
        """Normed patch features of the last blocks, in their order. Sides divide by 14."""
        grid = self.patch_embed.proj(image)
        height, width = grid.shape[2:]
        tokens = grid.flatten(2).mT
        tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1) + self._positions(height, width)
        kept = []
        for at, block in enumerate(self.blocks):
            tokens = block(tokens)
            if at >= len(self.blocks) - last_blocks:
                kept.append(self.norm(tokens)[:, 1:].mT.unflatten(2, (height, width)))
        return kept

    def _positions(self, height: int, width: int) -> Float[Tensor, "1 L C"]:
        """Resized by factors that carry the official 0.1, not to a size: the samples lie elsewhere."""
        side = self.positions
        if height == width == side:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().mT.unflatten(2, (side, side))
        factors = ((height + 0.1) / side, (width + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic").flatten(2).mT
        return torch.cat((self.pos_embed[:, :1], grid.to(self.pos_embed.dtype)), dim=1)


class PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)


class Block(nn.Module):
    """x += γ₁·attention(norm x); x += γ₂·mlp(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1.gamma * self.attn(self.norm1(x))
        return x + self.ls2.gamma * self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L C"]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))
