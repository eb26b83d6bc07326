"""SEA-RAFT on a clip: any pairs of frames in one call, with the uncertainty the network gives."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Int64, UInt8
from pydantic import Field

from annotate.annotator import Annotator, FlowModel, PairFlow
from annotate.weights import Network, device_of, get

if TYPE_CHECKING:
    from annotate.networks.sea_raft import SeaRAFT

NUM_BYTES = {"S": 35_600_000, "M": 78_800_000, "L": 78_800_000}


class SeaRaft(Annotator):
    """Flow by a mixture of Laplace distributions (arXiv 2405.14793), official weights."""

    licence: ClassVar[str] = "BSD-3-Clause"
    accept_licence: ClassVar[bool] = True

    kind: Literal["sea_raft"] = "sea_raft"
    variant: Literal["S", "M", "L"] = "M"
    """S is 1.7 times as fast as M; L is M's weights with 12 iterations instead of 4."""
    weights: str | None = None
    """A hub id or a file (.safetensors or .pth); without, the generalist of the variant."""
    scale: Annotated[int, Field(ge=-3, le=3)] = 0
    """Frames are resized by 2^scale first: -1 with the Spring weights at 1080p. Raised for frames too small for the network."""
    pairs_at_once: Annotated[int, Field(ge=1)] = 4
    """More fill a large GPU better."""
    max_volume_mib: Annotated[int, Field(ge=1)] = 4096
    """Correlation kept at once; a pair that needs more is computed in rows, with the same numbers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions; correlation, coordinates and up-sampling are float32 always."""
    channels_last: bool = True
    compiled: bool = False
    """torch.compile: minutes once per frame size, for long runs on a GPU."""

    def networks(self) -> tuple[Network, ...]:
        """The one file it needs."""
        name = f"Tartan-C-T-TSKH432x960-{'S' if self.variant == 'S' else 'M'}"
        return (
            Network(
                name=f"SEA-RAFT {self.variant}",
                source=self.weights or f"MemorySlices/{name}",
                other_file=f"{(self.weights or name).split('/')[-1]}.pth",
                num_bytes=NUM_BYTES[self.variant],
                licence=self.licence,
                build=self._build,
            ),
        )

    def load(self) -> FlowModel:
        """Raises ValueError if the weights cannot be had, or are of another network or variant."""
        net = self._build().load_checkpoint(get(self.networks()[0]))
        return Loaded(self, net)

    def _build(self) -> "SeaRAFT":
        from annotate.networks.sea_raft import SeaRAFT

        return SeaRAFT(self.variant, scale=self.scale, max_volume_mib=self.max_volume_mib)


class Loaded:
    """The `FlowModel`: on the GPU if the knobs ask for one."""

    def __init__(self, knobs: SeaRaft, net: "SeaRAFT") -> None:
        import torch

        from annotate.networks.sea_raft_video import VideoFlow

        self.source = f"sea-raft-{knobs.variant.lower()}"
        self._scale = knobs.scale
        self._video = VideoFlow(
            net.to(device_of(knobs.gpus)),
            pairs_at_once=knobs.pairs_at_once,
            dtype=getattr(torch, knobs.precision),
            channels_last=knobs.channels_last,
            compiled=knobs.compiled,
        )

    def __call__(self, rgb: UInt8[np.ndarray, "T H W 3"], pairs: Int64[np.ndarray, "N 2"]) -> PairFlow:
        """Flow in pixels of `rgb`, with its uncertainty. Raises ValueError for a pair outside the clip."""
        import torch

        from annotate.networks.sea_raft import smallest_scale, uncertainty

        height, width = rgb.shape[1:3]
        if len(pairs) and not 0 <= pairs.min() <= pairs.max() < len(rgb):
            raise ValueError(f"flow was asked for frame {pairs.max()}, the clip has frames 0..{len(rgb) - 1}")
        self._video.net.scale = max(self._scale, smallest_scale(height, width))
        flow = np.empty((len(pairs), height, width, 2), np.float32)
        uncertain = np.empty((len(pairs), height, width), np.float32)
        frames = torch.tensor(rgb).permute(0, 3, 1, 2)
        for places, pixels, info in self._video(frames, pairs):
            flow[places] = pixels.permute(0, 2, 3, 1).cpu().numpy()
            uncertain[places] = uncertainty(info).cpu().numpy()
        return PairFlow(flow=flow, uncertainty=uncertain)
