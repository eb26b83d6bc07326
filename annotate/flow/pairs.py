"""Flow between any two frames of a clip, computed once: cameras, depth, motion and the flow slots ask for overlapping pairs."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from annotate.annotator import FlowModel, PairFlow


class PairFlows:
    """A `FlowModel` for one clip that remembers its answers, and gives them at a smaller working size too."""

    def __init__(self, rgb: UInt8[np.ndarray, "T H W 3"], flow: FlowModel) -> None:
        self.rgb, self.flow, self.source = rgb, flow, flow.source
        self._known: dict[tuple[int, int], Float32[np.ndarray, "H W 2"]] = {}
        self._uncertainty: dict[tuple[int, int], Float32[np.ndarray, "H W"]] = {}
        self._smaller: dict[tuple[int, int], PairFlows] = {}

    @classmethod
    def of(cls, rgb: UInt8[np.ndarray, "T H W 3"], flow: FlowModel) -> "PairFlows":
        """`flow` itself if it already remembers this clip."""
        return flow if isinstance(flow, PairFlows) and flow.rgb is rgb else cls(rgb, flow)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.rgb.shape[1], self.rgb.shape[2]

    def __call__(self, rgb: UInt8[np.ndarray, "T H W 3"], pairs: Int64[np.ndarray, "N 2"]) -> PairFlow:
        """Raises ValueError for frames of another clip."""
        if rgb is not self.rgb:
            raise ValueError("flow was asked for frames of another clip than the one it remembers")
        flow = self.get(pairs)
        known = [self._uncertainty.get((int(i), int(j))) for i, j in pairs]
        uncertainty = [u for u in known if u is not None]
        return PairFlow(flow=flow, uncertainty=np.stack(uncertainty) if len(uncertainty) == len(pairs) > 0 else None)

    def get(self, pairs: Int64[np.ndarray, "N 2"]) -> Float32[np.ndarray, "N H W 2"]:
        """Flow of each pair, in pixels of `rgb`; (i, i) is not a pair."""
        fields = self._fields(pairs)
        return np.stack(fields) if fields else np.zeros((0, *self.size, 2), np.float32)

    def _fields(self, pairs: Int64[np.ndarray, "N 2"]) -> list[Float32[np.ndarray, "H W 2"]]:
        wanted = [(int(i), int(j)) for i, j in pairs]
        missing = [pair for pair in dict.fromkeys(wanted) if pair not in self._known]
        if missing:
            made = self.flow(self.rgb, np.array(missing, np.int64))
            self._known.update(zip(missing, made.flow))
            if made.uncertainty is not None:
                self._uncertainty.update(zip(missing, made.uncertainty))
        return [self._known[pair] for pair in wanted]

    def at_most(self, long_side: int) -> "PairFlows":
        """The same clip with its long side reduced to `long_side`; itself if it is no longer."""
        height, width = self.size
        if max(height, width) <= long_side:
            return self
        scale = long_side / max(height, width)
        small = (round(height * scale), round(width * scale))
        if small not in self._smaller:
            resized = [cv2.resize(frame, small[::-1], interpolation=cv2.INTER_AREA) for frame in self.rgb]
            self._smaller[small] = PairFlows(np.stack(resized), self.flow)
        return self._smaller[small]

    def at_nodes(
        self, pairs: Int64[np.ndarray, "E 2"], nodes: Float[Tensor, "N 2"]
    ) -> tuple[Float[Tensor, "E N 2"], Float[Tensor, "E N"], Float[Tensor, "E N"]]:
        """Flow at these (u, v), the confidence 0..1 it deserves, and the forward-backward error in pixels.

        Confidence is exp(-(e / (0.5 + 0.02 |F|))²), and 0 where the target lies within a pixel of the border.
        """
        out = [self._at_nodes(pairs[s : s + 16], nodes) for s in range(0, len(pairs), 16)]
        if not out:
            none = nodes.new_zeros(0, len(nodes))
            return none[..., None].expand(0, len(nodes), 2), none, none
        flow, confidence, error = (torch.cat(parts) for parts in zip(*out))
        return flow, confidence, error

    def _at_nodes(self, pairs: Int64[np.ndarray, "E 2"], nodes: Float[Tensor, "N 2"]) -> tuple[Tensor, Tensor, Tensor]:
        forward = self._read(pairs, nodes.expand(len(pairs), -1, 2))
        target = nodes + forward
        back = self._read(pairs[:, ::-1], target)
        error = (forward + back).norm(dim=-1)
        confidence = torch.exp(-((error / (0.5 + 0.02 * forward.norm(dim=-1))) ** 2))
        height, width = self.size
        u, v = target.unbind(-1)
        inside = (u > 1) & (u < width - 1) & (v > 1) & (v < height - 1)
        return forward, confidence * inside, error

    def _read(self, pairs: Int64[np.ndarray, "E 2"], uv: Float[Tensor, "E N 2"]) -> Float[Tensor, "E N 2"]:
        """Bilinear; outside, the border goes on. Field by field: stacking fields to read a few nodes costs more than all else."""
        fields = self._fields(pairs)
        where = (uv - 0.5).float().cpu().numpy()
        none = np.zeros(0, np.float32)
        read = [
            cv2.remap(f, at[None], none, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
            for f, at in zip(fields, where)
        ]
        return torch.from_numpy(np.stack(read)).to(uv)
