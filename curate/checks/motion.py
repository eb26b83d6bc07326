"""How much moves. These describe a clip; by default they drop nothing."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View


class Motion(Knobs):
    """Share and strength of object motion."""

    dyn_ratio: Limit | None = Limit(flag_above=0.6)
    """Share of moving pixels: above, the cameras hang on little."""
    motion_strength: Limit | None = None
    """CamVid-30K's: median displacement of moving pixels beyond the camera's, over the image's longer side, per frame."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        if view.clip.motion is None:
            return {}
        scores = {"dyn_ratio": float(view.clip.motion.dynamic.mean())}
        strength = _strength(view)
        return scores if strength is None else {**scores, "motion_strength": strength}


def _strength(view: "View") -> float | None:
    """0 where nothing moves; None where it cannot be told."""
    from shared import camera

    assert view.clip.motion is not None
    if 1 not in view.cycle or view.z is None or view.world_from_cam is None or view.intrinsics is None:
        return None
    next_from_this = camera.invert(view.world_from_cam[1:]) @ view.world_from_cam[:-1]
    p_cam = camera.unproject(view.uv, view.z[:-1], view.intrinsics[:-1, None])
    p_next = camera.transform(next_from_this[:, None], p_cam)
    moving = view.grid(view.clip.motion.dynamic[:-1]) & (view.z[:-1] > 0) & (p_next[..., 2] > 0)
    if not moving.any():
        return 0.0
    rigid = camera.project(p_next, view.intrinsics[1:, None]) - view.uv
    beyond = (view.cycle[1].forward - rigid)[moving].norm(dim=-1)
    return float(beyond.median()) / max(view.height, view.width)
