"""Cameras from optical flow alone: no weights, no network, one shot in; poses, one focal length and honest flags out.

Keyframes and flows between them, static weights by an epipolar vote, a rotation-only test, dense bundle adjustment with the focal
length as an unknown, its profile, and the frames between the keyframes. Scale is free: `metric` is False.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from annotate.annotator import Annotate, Annotator, FlowModel
from shared.clip import AnnotatedClip, Cameras

if TYPE_CHECKING:  # torch and OpenCV load with the first clip, not with the recipe
    from annotate.cameras.estimate import Estimate


class FlowBA(Annotator):
    """Dense bundle adjustment on optical flow: CPU, no weights, self-calibrated."""

    kind: Literal["flow_ba"] = "flow_ba"
    long_side_px: Annotated[int, Field(ge=160, le=640)] = 384
    """Larger clips are reduced to this long side: the method's pixel thresholds were measured at 320."""
    horizontal_fov_deg: Annotated[float, Field(gt=5, lt=150)] | None = None
    """Known field of view; None: self-calibrated."""

    def load(self) -> Annotate:
        return _FlowBA(self)


@dataclass(frozen=True)
class _FlowBA:
    knobs: FlowBA

    def __call__(self, clip: AnnotatedClip, flow: FlowModel) -> AnnotatedClip:
        if clip.cameras is not None:
            return clip
        from annotate.cameras.estimate import estimate
        from annotate.flow.pairs import PairFlows

        pairs = PairFlows.of(clip.rgb, flow).at_most(self.knobs.long_side_px)
        focal = self._known_focal(pairs.size[1])
        found = estimate(pairs, focal)
        cameras = to_cameras(found, clip.shape, pairs.size, flow.source)
        return clip.with_(cameras=cameras, scores=_scores(found))

    def _known_focal(self, width: int) -> float | None:
        fov = self.knobs.horizontal_fov_deg
        return None if fov is None else width / 2 / math.tan(math.radians(fov) / 2)


def to_cameras(found: "Estimate", shape: tuple[int, int, int], working: tuple[int, int], flow_source: str) -> Cameras:
    """The estimate at the clip's own size."""
    num_frames, height, width = shape
    focal = found.focal_px * np.array([width / working[1], height / working[0]])
    intrinsics = np.tile([*focal, width / 2, height / 2], (num_frames, 1))
    return Cameras(
        world_from_cam=found.world_from_cam,
        intrinsics=intrinsics,
        metric=False,
        source=f"flow_ba({flow_source})",
        degenerate=",".join(found.flags) or None,
        focal_source=found.focal_source,
        focal_rel_ci=found.focal_rel_ci,
    )


def _scores(found: "Estimate") -> Mapping[str, float]:
    """The numbers behind every flag."""
    return {f"cameras_{name}": float(value) for name, value in found.evidence.items()}
