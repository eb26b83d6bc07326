"""SEA-RAFT (arXiv 2405.14793): optical flow as a mixture of Laplace distributions, with the official keys and numbers.

Axes inside: B pairs, C channels, H W pixels, h w cells of 8x8 pixels, Q = h·w query cells.
Flow inside is in eighth-pixels, that is, in cells; what leaves is in pixels.
"""

import math
from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from annotate.networks.loading import Weights, load_strictly, read_state_dict

Cells = tuple[Tensor, Tensor, Tensor]
"""Hidden state, flow and info of a prediction, in cells."""
BLOCKS: dict[str, tuple[int, int, int]] = {"S": (2, 2, 2), "M": (3, 4, 6), "L": (3, 4, 6)}
ITERATIONS: dict[str, int] = {"S": 4, "M": 4, "L": 12}
LEVELS = 4
RADIUS = 4
SMALLEST_SIDE = 121
"""Below it the fourth correlation level is one cell, where the official program fails."""
LN_EPS = 1e-6


class SeaRAFT(nn.Module):
    """S has 2 blocks a stage and 4 iterations, M has 3, 4, 6 and 4; L is M's weights with 12 iterations."""

    def __init__(self, variant: str, *, scale: int = 0, max_volume_mib: int = 4096) -> None:
        """`scale`: images are resized by 2^scale first (the Spring settings use -1). Above `max_volume_mib` the
        correlation of a call is computed in rows of queries when it is looked up, instead of kept."""
        super().__init__()
        if variant not in BLOCKS:
            raise ValueError(f"SEA-RAFT has no variant {variant!r}, expected S, M or L")
        self.variant, self.iterations = variant, ITERATIONS[variant]
        self.scale, self.max_volume_mib = scale, max_volume_mib
        self.cnet = Encoder(6, BLOCKS[variant])
        self.fnet = Encoder(3, BLOCKS[variant])
        self.init_conv = nn.Conv2d(256, 256, 3, padding=1)
        self.upsample_weight = _two_convolutions(9 * 64, last_kernel=1)
        self.flow_head = _two_convolutions(6, last_kernel=3)
        self.update_block = Update()
        self.eval()

    def load_checkpoint(self, weights: Weights) -> "SeaRAFT":
        """The official `.pth` (both names of shared tensors) or safetensors (one of them), or such a state dict.

        Raises ValueError naming the keys that are missing, left over, or of the other variant.
        """
        state, name = read_state_dict(weights)
        deep = any(key.startswith("cnet.layer1.2.") for key in state)
        if deep != (self.variant != "S") and any(key.startswith("cnet.") for key in state):
            holds = "M or L" if deep else "S"
            raise ValueError(f"{name}: holds SEA-RAFT {holds}, expected weights of {self.variant}")
        load_strictly(self, _with_aliases(state), name)
        return self

    def forward(
        self, image1: Num[Tensor, "B 3 H W"], image2: Num[Tensor, "B 3 H W"], *, scale: int | None = None
    ) -> tuple[Float[Tensor, "B 2 H W"], Float[Tensor, "B 4 H W"]]:
        """Flow from image1 to image2 in pixels, and `info` (2 mixture logits, 2 raw log-scales); RGB in 0..255."""
        size, scale = (image1.shape[-2], image1.shape[-1]), self.scale if scale is None else scale
        image1, image2 = self.prepare(image1, scale), self.prepare(image2, scale)
        cells = last(self._cells(image1, image2))  # only the last prediction is worth up-sampling
        return self.finish(*self.upsample(*cells), size, scale)

    def predictions(
        self, image1: Num[Tensor, "B 3 H W"], image2: Num[Tensor, "B 3 H W"]
    ) -> list[tuple[Float[Tensor, "B 2 H W"], Float[Tensor, "B 4 H W"]]]:
        """The first guess and every refinement, as training on a sequence loss needs them."""
        size = (image1.shape[-2], image1.shape[-1])
        image1, image2 = self.prepare(image1, self.scale), self.prepare(image2, self.scale)
        return [self.finish(*self.upsample(*cells), size, self.scale) for cells in self._cells(image1, image2)]

    def _cells(self, image1: Tensor, image2: Tensor) -> Iterator[Cells]:
        features1, features2 = self.fnet(torch.cat((image1, image2))).chunk(2)
        correlation = Correlation(features1, features2, self.max_volume_mib)
        return self.refinements(self.cnet(torch.cat((image1, image2), dim=1)), correlation)

    def prepare(self, image: Num[Tensor, "B 3 H W"], scale: int) -> Float[Tensor, "B 3 H8 W8"]:
        """Scaled, in -1..1, and padded to multiples of 8 by repeating the border on both sides."""
        image = image.to(self.init_conv.weight.dtype)
        if not torch.isfinite(image).all():
            raise ValueError("SEA-RAFT was given an image with values that are not finite, expected 0..255")
        if scale:
            image = F.interpolate(image, scale_factor=2.0**scale, mode="bilinear", align_corners=False)
        height, width = image.shape[-2:]
        if min(height, width) < SMALLEST_SIDE:
            raise ValueError(
                f"SEA-RAFT was given {height}×{width} pixels (after scaling by 2^{scale}), expected at least "
                f"{SMALLEST_SIDE} a side: raise the scale"
            )
        return F.pad(2 * (image / 255) - 1, _padding(height, width), mode="replicate")

    def refinements(self, encoded: Float[Tensor, "B 256 h w"], correlation: "Correlation") -> Iterator[Cells]:
        """(hidden state, flow in cells, info) of the first guess and of each iteration."""
        hidden, context = self.init_conv(encoded).split(128, dim=1)
        flow, info = self._head(hidden)
        yield hidden, flow, info
        for _ in range(self.iterations):
            flow = flow.detach()
            taps = correlation(flow).to(hidden.dtype)
            hidden = self.update_block(hidden, context, taps, flow.to(hidden.dtype))
            step, info = self._head(hidden)
            flow = flow + step
            yield hidden, flow, info

    def _head(self, hidden: Tensor) -> tuple[Float[Tensor, "B 2 h w"], Float[Tensor, "B 4 h w"]]:
        out = self.flow_head(hidden).float()
        return out[:, :2], out[:, 2:]

    def upsample(
        self, hidden: Tensor, flow: Float[Tensor, "B 2 h w"], info: Float[Tensor, "B 4 h w"]
    ) -> tuple[Float[Tensor, "B 2 H8 W8"], Float[Tensor, "B 4 H8 W8"]]:
        """Each pixel is a convex combination of the 3x3 cells around its own; flow becomes pixels."""
        weights = 0.25 * self.upsample_weight(hidden).float()
        batch, _, height, width = weights.shape
        weights = weights.view(batch, 1, 9, 64, height * width).softmax(dim=2)
        around = F.unfold(torch.cat((8 * flow, info), dim=1), 3, padding=1)
        around = around.view(batch, 6, 9, 1, height * width)
        full = weights[:, :, 0] * around[:, :, 0]
        for neighbor in range(1, 9):
            full.addcmul_(weights[:, :, neighbor], around[:, :, neighbor])
        full = full.reshape(batch, 6 * 64, height, width)
        full = F.pixel_shuffle(full, 8)
        return full[:, :2], full[:, 2:]

    @staticmethod
    def finish(
        flow: Float[Tensor, "B 2 H8 W8"], info: Float[Tensor, "B 4 H8 W8"], size: tuple[int, int], scale: int
    ) -> tuple[Float[Tensor, "B 2 H W"], Float[Tensor, "B 4 H W"]]:
        """Padding cropped and the scale undone, at exactly the size of the images (the official code loses odd rows)."""
        height, width = (math.floor(side * 2.0**scale) for side in size)
        left, _, top, _ = _padding(height, width)
        flow = flow[..., top : top + height, left : left + width]
        info = info[..., top : top + height, left : left + width]
        if not scale:
            return flow, info
        flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * 2.0**-scale
        return flow, F.interpolate(info, size=size, mode="area")


def last(predictions: Iterator[Cells]) -> Cells:
    """The last one, without keeping the others."""
    return deque(predictions, maxlen=1).pop()


def uncertainty(info: Float[Tensor, "B 4 H W"]) -> Float[Tensor, "B H W"]:
    """Expected log-scale of the mixture: 0 is certain; the second component's is 0 by construction."""
    return info[:, :2].softmax(dim=1)[:, 0] * info[:, 2].clamp(0, 10)


def smallest_scale(height: int, width: int) -> int:
    """The smallest scale at which images of this size are large enough for the network."""
    scale = -3
    while min(math.floor(height * 2.0**scale), math.floor(width * 2.0**scale)) < SMALLEST_SIDE:
        scale += 1
    return scale


def volume_mib(height: int, width: int, scale: int) -> float:
    """What the correlation of one pair of images of this size takes."""
    cells = math.ceil(height * 2.0**scale / 8) * math.ceil(width * 2.0**scale / 8)
    return cells**2 * 4 * sum(0.25**level for level in range(LEVELS)) / 2**20


class Correlation:
    """Dot products of every cell of image 1 with every cell of image 2 at four resolutions, read around a flow.

    Always in float32. What does not fit into `max_volume_mib` is not kept but computed again, rows of queries at a time, with the
    same numbers.
    """

    def __init__(
        self,
        features1: Float[Tensor, "B C h w"],
        features2: Float[Tensor, "B C h w"],
        max_volume_mib: int,
        finest: Float[Tensor, "B Q Q"] | None = None,
    ) -> None:
        """`finest`: the products at full resolution, where they are known: those of the swapped pair, transposed."""
        batch, channels, self.height, self.width = features1.shape
        cells = self.height * self.width
        self.queries = features1.float().flatten(2).mT / math.sqrt(channels)
        self.targets = [features2.float()]
        for _ in range(LEVELS - 1):
            self.targets.append(F.avg_pool2d(self.targets[-1], 2))
        self.rows = max(1, min(cells, max_volume_mib * 2**20 // (4 * batch * _volume_cells(self.targets))))
        self.kept = self._volumes(slice(None), finest) if self.rows == cells else None

    @property
    def finest(self) -> Float[Tensor, "B Q Q"] | None:
        """All products at full resolution, if they are kept."""
        return self.kept[0].flatten(2) if self.kept else None

    def __call__(self, flow: Float[Tensor, "B 2 h w"]) -> Float[Tensor, "B 324 h w"]:
        """Level by level, the 9x9 taps around (grid + flow) / 2^level; x is the slow axis of the taps."""
        x = flow[:, 0] + torch.arange(self.width, device=flow.device, dtype=flow.dtype)
        y = flow[:, 1] + torch.arange(self.height, device=flow.device, dtype=flow.dtype)[:, None]
        x, y = x.flatten(1), y.flatten(1)
        parts = []
        for start in range(0, x.shape[1], self.rows):
            rows = slice(start, start + self.rows)
            volumes = self.kept or self._volumes(rows)
            levels = [_taps(v, x[:, rows] / 2**level, y[:, rows] / 2**level) for level, v in enumerate(volumes)]
            parts.append(torch.cat(levels, dim=2))
        taps = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return taps.mT.unflatten(2, (self.height, self.width)).contiguous()

    def _volumes(self, rows: slice, finest: Tensor | None = None) -> list[Float[Tensor, "B R _ _"]]:
        with torch.autocast(self.queries.device.type, enabled=False):
            queries = self.queries[:, rows]
            volumes = [queries @ target.flatten(2) for target in self.targets[finest is not None :]]
        if finest is not None:
            volumes.insert(0, finest)
        return [volume.unflatten(2, t.shape[2:]) for volume, t in zip(volumes, self.targets)]


def _taps(volume: Tensor, x: Float[Tensor, "B R"], y: Float[Tensor, "B R"]) -> Float[Tensor, "B R 81"]:
    """The 9x9 bilinear taps around (x, y), zero outside.

    All taps of a query have one fraction, so 10x10 cells are fetched once and mixed along x, then along y.
    """
    height, width = volume.shape[2:]
    offsets = torch.arange(-RADIUS, RADIUS + 2, device=x.device)
    # beyond this all cells are outside: a wild flow must not overflow the integers
    left = x.floor().clamp(-2 * RADIUS, width + 2 * RADIUS)
    top = y.floor().clamp(-2 * RADIUS, height + 2 * RADIUS)
    columns, rows = left.long()[..., None] + offsets, top.long()[..., None] + offsets
    inside = (_within(columns, width)[..., :, None] & _within(rows, height)[..., None, :]).flatten(2)
    index = columns.clamp(0, width - 1)[..., :, None] + width * rows.clamp(0, height - 1)[..., None, :]
    cells = volume.flatten(2).gather(2, index.flatten(2)) * inside
    cells = cells.unflatten(2, (len(offsets), len(offsets)))
    along_x, along_y = (x - left).clamp(0, 1)[..., None, None], (y - top).clamp(0, 1)[..., None, None]
    cells = torch.lerp(cells[:, :, :-1], cells[:, :, 1:], along_x)
    return torch.lerp(cells[..., :-1], cells[..., 1:], along_y).flatten(2)


def _within(cells: Tensor, size: int) -> Tensor:
    return (cells >= 0) & (cells < size)


def _volume_cells(targets: list[Tensor]) -> int:
    return sum(target.shape[2] * target.shape[3] for target in targets)


class Encoder(nn.Module):
    """256 channels at an eighth of the size."""

    def __init__(self, in_channels: int, blocks: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(64, 64, blocks[0], stride=1)
        self.layer2 = _stage(64, 128, blocks[1], stride=2)
        self.layer3 = _stage(128, 256, blocks[2], stride=2)
        self.final_conv = nn.Conv2d(256, 256, 1)

    def forward(self, image: Tensor) -> Tensor:
        stem = F.relu(self.bn1(self.conv1(image)), inplace=True)
        return self.final_conv(self.layer3(self.layer2(self.layer1(stem))))


class ResidualBlock(nn.Module):
    """Unlike torchvision's, with a ReLU before the sum. `bn3` is `downsample.1`: one module, two official names."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.bn3 = nn.BatchNorm2d(channels)
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride), self.bn3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.downsample(x) + y)


class Update(nn.Module):
    """One iteration: what the taps and the flow say is mixed into the hidden state by two ConvNeXt blocks (no GRU)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MotionEncoder()
        self.refine = nn.ModuleList([Refine(128), Refine(128)])

    def forward(self, hidden: Tensor, context: Tensor, taps: Tensor, flow: Tensor) -> Tensor:
        motion = self.encoder(taps, flow)
        for refine in self.refine:
            hidden = refine(torch.cat((hidden, context, motion), dim=1))
        return hidden


class MotionEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(LEVELS * (2 * RADIUS + 1) ** 2, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(256, 126, 3, padding=1)

    def forward(self, taps: Tensor, flow: Tensor) -> Tensor:
        matched = F.relu(self.convc2(F.relu(self.convc1(taps))))
        moved = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat((F.relu(self.conv(torch.cat((matched, moved), dim=1))), flow), dim=1)


class Refine(nn.Module):
    """A ConvNeXt block over 3·channels, then down to `channels`; without an outer residual."""

    def __init__(self, channels: int, hidden: int = 512) -> None:
        super().__init__()
        wide = 3 * channels
        self.dwconv = nn.Conv2d(wide, wide, 7, padding=3, groups=wide)
        self.norm = nn.LayerNorm(wide, eps=LN_EPS)
        self.pwconv1 = nn.Linear(wide, hidden)
        self.pwconv2 = nn.Linear(hidden, wide)
        self.gamma = nn.Parameter(torch.full((wide,), 1e-6))
        self.final = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return self.final(x + y.permute(0, 3, 1, 2))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [ResidualBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(ResidualBlock(in_channels, channels, stride), *rest)


def _two_convolutions(out_channels: int, last_kernel: int) -> nn.Sequential:
    last = nn.Conv2d(256, out_channels, last_kernel, padding=last_kernel // 2)
    return nn.Sequential(nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), last)


def _padding(height: int, width: int) -> tuple[int, int, int, int]:
    """Left, right, top, bottom up to multiples of 8, split over both sides."""
    rows, columns = -height % 8, -width % 8
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _with_aliases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both names of the shared BatchNorms: `.pth` files hold both, safetensors only one."""
    full = dict(state)
    for key, tensor in state.items():
        full.setdefault(key.replace(".bn3.", ".downsample.1."), tensor)
        full.setdefault(key.replace(".downsample.1.", ".bn3."), tensor)
    return full
