"""Cameras from optical flow alone: no weights, no network, one shot in; poses, one focal length and honest flags out.

Keyframes and flows between them, static weights by an epipolar vote, a rotation-only test, dense bundle adjustment with the focal
length as an unknown, its profile, and the frames between the keyframes. Scale is free: `metric` is False.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from annotate.annotator import Annotate, Annotator, FlowModel
from annotate.weights import device_of
from shared.clip import AnnotatedClip, Cameras

if TYPE_CHECKING:  # torch and OpenCV load with the first clip, not with the recipe
    from annotate.cameras.estimate import Estimate
    from annotate.flow.pairs import PairFlows


class FlowBA(Annotator):
    """Dense bundle adjustment on optical flow: no weights, self-calibrated, CPU by default; with `gpus` it solves on one."""

    kind: Literal["flow_ba"] = "flow_ba"
    long_side_px: Annotated[int, Field(ge=160, le=640)] = 384
    """Larger clips are reduced to this long side: the method's pixel thresholds were measured at 320."""
    horizontal_fov_deg: Annotated[float, Field(gt=5, lt=150)] | None = None
    """Known field of view; None: self-calibrated."""
    second_opinion: Literal["never", "flagged", "always"] = "never"
    """Ask pycolmap's global mapper (extra `second-opinion`), and take its cameras if they explain clearly more of the flow.

    Never by default: its answers vary from run to run, it costs ten times the CPU, and where things move it did worse (see
    `tests/benchmarks/bench_labels.py --colmap`).
    """
    second_opinion_timeout_s: Annotated[float, Field(gt=0)] = 600.0

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
        found = estimate(pairs, self._known_focal(pairs.size[1]), device_of(self.knobs.gpus))
        cameras, asked = self._second(to_cameras(found, pairs.size, flow.source), pairs)
        return clip.with_(cameras=enlarged(cameras, pairs.size, clip.shape), scores=_scores(found) | asked)

    def _known_focal(self, width: int) -> float | None:
        fov = self.knobs.horizontal_fov_deg
        return None if fov is None else width / 2 / math.tan(math.radians(fov) / 2)

    def _second(self, ours: Cameras, pairs: "PairFlows") -> tuple[Cameras, dict[str, float]]:
        """The better of two opinions, where a second one is due."""
        from annotate.cameras import second_opinion

        if not second_opinion.is_due(self.knobs.second_opinion, ours.degenerate):
            return ours, {}
        if not second_opinion.is_installed():
            return replace(ours, degenerate=",".join(filter(None, (ours.degenerate, second_opinion.MISSING)))), {}
        return second_opinion.ask(pairs, ours, self.knobs.second_opinion_timeout_s)


def to_cameras(found: "Estimate", size: tuple[int, int], flow_source: str) -> Cameras:
    """The estimate as cameras of frames of its own size."""
    height, width = size
    intrinsics = np.array([found.focal_px, found.focal_px, width / 2, height / 2])
    return Cameras(
        world_from_cam=found.world_from_cam,
        intrinsics=np.tile(intrinsics, (len(found.world_from_cam), 1)),
        metric=False,
        source=f"flow_ba({flow_source})",
        degenerate=",".join(found.flags) or None,
        focal_source=found.focal_source,
        focal_rel_ci=found.focal_rel_ci,
    )


def enlarged(cameras: Cameras, size: tuple[int, int], shape: tuple[int, int, int]) -> Cameras:
    """The same cameras for frames of another size."""
    scale = np.array([shape[2] / size[1], shape[1] / size[0]])
    return replace(cameras, intrinsics=cameras.intrinsics * np.tile(scale, 2))


def _scores(found: "Estimate") -> dict[str, float]:
    """The numbers behind every flag."""
    return {f"cameras_{name}": float(value) for name, value in found.evidence.items()}
