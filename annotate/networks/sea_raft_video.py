"""SEA-RAFT on many pairs of one clip: the pairwise network's numbers, with the work that pairs share done once.

Shared: the features of a frame, by all pairs it is in; the correlation of a pair, by its two directions; and the linear layers
that can be multiplied out beforehand. The context network sees an ordered pair, so it runs for each, but its first convolution is a
sum of what it says of either image, which is known once per frame and side.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from annotate.networks.sea_raft import (
    Cells,
    Correlation,
    Encoder,
    Refine,
    ResidualBlock,
    SeaRAFT,
    last,
    volume_mib,
)

Pair = tuple[int, int]


class VideoFlow:
    """A `SeaRAFT` made ready for inference on one device. Memory grows with `pairs_at_once`, not with the clip."""

    def __init__(
        self,
        net: SeaRAFT,
        *,
        pairs_at_once: int = 4,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        """`dtype` bfloat16 runs the convolutions in it; correlation, coordinates and up-sampling stay in float32."""
        self.net, self.stem = _folded(net)
        self.pairs_at_once, self.dtype = pairs_at_once, dtype
        if channels_last:
            self.stem.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if compiled:
            for part in (self.net.fnet, self.net.cnet, self.net.update_block):
                part.compile(dynamic=False)

    @torch.inference_mode()
    def __call__(
        self, frames: Num[Tensor, "T 3 H W"], pairs: Int64[np.ndarray, "N 2"]
    ) -> Iterator[tuple[list[int], Float[Tensor, "n 2 H W"], Float[Tensor, "n 4 H W"]]]:
        """Some pairs at a time: their positions in `pairs`, flow in pixels and info; every position comes once."""
        places: dict[Pair, list[int]] = {}
        for at, (first, second) in enumerate(pairs.tolist()):
            places.setdefault((first, second), []).append(at)
        size = (frames.shape[-2], frames.shape[-1])
        for group, stems, features in self._with_features(frames, _groups(places, self._at_once(*size))):
            for some, cells in self._predicted(group, stems, features):
                with self._precision(cells[0]):
                    full = self.net.upsample(*cells)
                flow, info = self.net.finish(*full, size, self.net.scale)
                asked = [(at, k) for k, pair in enumerate(some) for at in places[pair]]
                source = [k for _, k in asked]
                yield [at for at, _ in asked], flow[source], info[source]

    def _at_once(self, height: int, width: int) -> int:
        """Pairs of this size whose correlation can be kept, forward and backward."""
        volume = volume_mib(height, width, self.net.scale)
        return max(1, min(self.pairs_at_once, int(self.net.max_volume_mib / 2 / volume)))

    def _with_features(
        self, frames: Tensor, groups: list["_Group"]
    ) -> Iterator[tuple["_Group", dict[int, Tensor], dict[int, Tensor]]]:
        """Each group with the stems and features of its frames, kept only as long as a group needs them."""
        last_group = {frame: at for at, group in enumerate(groups) for pair in group.there for frame in pair}
        stems: dict[int, Tensor] = {}
        features: dict[int, Tensor] = {}
        for at, group in enumerate(groups):
            new = sorted({frame for pair in group.there for frame in pair} - stems.keys())
            if new:
                prepared = self.net.prepare(frames[new].to(self.net.init_conv.weight.device), self.net.scale)
                with self._precision(prepared):
                    features.update(zip(new, self.net.fnet(prepared).float().split(1)))
                    stems.update(zip(new, self.stem(prepared).split(1)))
            yield group, stems, features
            for frame in [f for f in stems if last_group[f] == at]:
                del stems[frame], features[frame]

    def _predicted(
        self, group: "_Group", stems: dict[int, Tensor], features: dict[int, Tensor]
    ) -> Iterator[tuple[list[Pair], Cells]]:
        """The last prediction of the pairs that lead one way, then of those that lead back, with their correlation transposed."""
        finest = None
        for pairs in (group.there, group.back):
            if not pairs:
                continue
            first, second = (torch.cat([features[pair[side]] for pair in pairs]) for side in (0, 1))
            correlation = Correlation(first, second, self.net.max_volume_mib // 2, finest)
            stem = torch.cat([stems[i][:, :64] + stems[j][:, 64:] for i, j in pairs])
            with self._precision(stem):
                cells = last(self.net.refinements(self.net.cnet(stem), correlation))
            finest = correlation.finest
            finest = None if finest is None else finest[: len(group.back)].mT.contiguous()
            yield pairs, cells

    def _precision(self, like: Tensor) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(like.device.type, dtype=self.dtype)


@dataclass(frozen=True)
class _Group:
    """Pairs that are computed together: `back[k]` reverses `there[k]`; pairs without a reverse stand last in `there`."""

    there: list[Pair]
    back: list[Pair]


def _groups(pairs: Collection[Pair], pairs_at_once: int) -> list[_Group]:
    """Distinct pairs in the order of their later frame, so that few frames are alive at once."""
    two_way = {pair for pair in pairs if pair[0] < pair[1] and pair[::-1] in pairs}
    leading = [pair for pair in pairs if pair in two_way or pair[::-1] not in two_way]
    groups: list[_Group] = []
    room = 0
    for pair in sorted(leading, key=lambda pair: (max(pair), pair)):
        size = 1 + (pair in two_way)
        if size > room:
            groups.append(_Group([], []))
            room = max(pairs_at_once, size)
        room -= size
        groups[-1].there.append(pair)
    for group in groups:
        group.there.sort(key=lambda pair: pair not in two_way)
        group.back.extend((second, first) for first, second in group.there if (first, second) in two_way)
    return groups


def _folded(net: SeaRAFT) -> tuple[SeaRAFT, nn.Conv2d]:
    """(The network without what can be multiplied into its neighbours; the first convolution of what was its `cnet`.)"""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    for encoder in (net.cnet, net.fnet):
        _fold_norms(encoder)
    refine = [block for block in net.update_block.refine if isinstance(block, Refine)]
    net.update_block.refine = nn.ModuleList([_Folded(block) for block in refine])
    stem = _per_image(net.cnet.conv1)
    net.cnet.register_module("conv1", nn.Identity())
    return net, stem


def _fold_norms(encoder: Encoder) -> None:
    """BatchNorm of known statistics is part of the convolution before it."""
    for module in list(encoder.modules()):
        if isinstance(module, Encoder | ResidualBlock):
            _fold_norm(module, "conv1", "bn1")
        if isinstance(module, ResidualBlock):
            _fold_norm(module, "conv2", "bn2")
        if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.BatchNorm2d):
            _fold_norm(module, "0", "1")


def _fold_norm(module: nn.Module, conv: str, norm: str) -> None:
    before, after = module.get_submodule(conv), module.get_submodule(norm)
    if isinstance(before, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
        setattr(module, conv, fuse_conv_bn_eval(before, after))
        setattr(module, norm, nn.Identity())


def _per_image(conv1: nn.Conv2d) -> nn.Conv2d:
    """6→64 channels on a pair as 3→128 on an image: what it adds as the first of a pair, bias included, and as the second."""
    assert conv1.bias is not None
    per_image = nn.Conv2d(3, 128, 7, stride=2, padding=3)
    per_image.weight = nn.Parameter(torch.cat(conv1.weight.split(3, dim=1)), requires_grad=False)
    per_image.bias = nn.Parameter(torch.cat((conv1.bias, torch.zeros_like(conv1.bias))), requires_grad=False)
    return per_image


class _Folded(nn.Module):
    """`Refine` with its last three linear maps as one: final(x + γ·pw2(y)) = final(x) + (final·γ·pw2)(y)."""

    def __init__(self, refine: Refine) -> None:
        super().__init__()
        self.dwconv, self.norm, self.pwconv1 = refine.dwconv, refine.norm, refine.pwconv1
        final = refine.final.weight[:, :, 0, 0].double()
        scaled = final * refine.gamma.double()
        self.of_input = nn.Parameter(refine.final.weight, requires_grad=False)
        self.of_hidden = nn.Parameter((scaled @ refine.pwconv2.weight.double()).float(), requires_grad=False)
        assert refine.final.bias is not None
        bias = scaled @ refine.pwconv2.bias.double() + refine.final.bias.double()
        self.bias = nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1))))
        return F.conv2d(x, self.of_input, self.bias) + F.linear(y, self.of_hidden).permute(0, 3, 1, 2)
