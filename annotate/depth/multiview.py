"""Depth of static pixels from known cameras and optical flow, and the evidence of what moves.

Poses fixed, every node triangulates its own inverse depth against six neighbors in time. What moves, or was never seen from two
places, has no depth here: its place stays invalid for a depth network to fill.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from annotate.annotator import Annotate, Annotator, FlowModel
from shared.clip import AnnotatedClip, Depth, Motion

if TYPE_CHECKING:  # torch and OpenCV load with the first clip, not with the recipe
    from annotate.depth.triangulate import Dense


class Multiview(Annotator):
    """Depth of static pixels from the clip's cameras and flow: CPU, no weights, no invention."""

    kind: Literal["multiview"] = "multiview"
    long_side_px: Annotated[int, Field(ge=160, le=640)] = 384
    """Larger clips are reduced to this long side; the cameras' setting gives it the same flows."""
    max_rel_sigma: Annotated[float, Field(gt=0)] = 0.15
    """Depth is valid where its own relative standard deviation stays below this."""

    def load(self) -> Annotate:
        return _Multiview(self)


@dataclass(frozen=True)
class _Multiview:
    knobs: Multiview

    def __call__(self, clip: AnnotatedClip, flow: FlowModel) -> AnnotatedClip:
        if clip.depth is not None:
            return clip  # what moves follows from that depth: `annotate.dynamic`
        if clip.cameras is None:
            raise ValueError(f"{clip.id}: multiview depth asks for cameras, and the clip has none")
        from annotate.cameras import degenerate
        from annotate.depth import triangulate
        from annotate.flow.pairs import PairFlows

        pairs = PairFlows.of(clip.rgb, flow).at_most(self.knobs.long_side_px)
        if degenerate.is_unusable(clip.cameras.degenerate) or len(clip.rgb) < 2:
            found = triangulate.without_depth(pairs, clip.cameras, clip.shape)
        else:
            found = triangulate.dense(pairs, clip.cameras, clip.shape, self.knobs.max_rel_sigma)
        return _filled(clip, found, f"multiview({flow.source})")


def _filled(clip: AnnotatedClip, found: "Dense", source: str) -> AnnotatedClip:
    assert clip.cameras is not None
    num_frames, height, width = clip.shape
    depth = Depth(z=found.z, valid=found.valid, metric=clip.cameras.metric, source=source)
    steps = (num_frames - 1, height, width)
    motion = Motion(
        dynamic=found.dynamic,
        scene_flow=np.zeros((*steps, 3), np.float32),
        scene_flow_valid=np.zeros(steps, bool),
        source=source,
    )
    scores = {
        "depth_valid": float(found.valid.mean()),
        "depth_residual_px": found.residual_px,
        "depth_dynamic": float(found.dynamic.mean()),
    }
    return clip.with_(depth=depth, motion=clip.motion or motion, scores=scores)
