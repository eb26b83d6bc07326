"""Scene flow lands where flow lands, and what stands still does not move."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View


FAST_PX = 20.0
"""Per frame at 720 wide. What moves faster may land off by as large a part of its motion: in pixels, scene flow that is 5 % off was
rejected where movers are fast. Chosen on `mujoco:100-111`: with 20, 5 % stays below 1.2 px and 100 % above 3.7."""


class SceneFlow(Knobs):
    """Movers in 3-D and in the image tell one story."""

    sf_reproj_px: Limit | None = Limit(flag_above=1.2, fail_above=2.5)
    """Median |π(X + SF) - (u + F)| of valid moving pixels, in px at 720 wide; of `n FAST_PX` of motion, n > 1, the n-th part."""
    sf_static: Limit | None = Limit(fail_above=0)
    """The largest scene flow off the moving pixels, over median depth: exactly 0."""
    sf_kept: Limit | None = Limit(flag_below=0.3)
    """Share of moving pixels with a depth whose scene flow is valid; without a depth network movers have none."""
    sf_speed: Limit | None = Limit(flag_above=0.3)
    """99th percentile of valid scene flow over median depth, per frame."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        from curate.view import present, quantile

        motion = view.clip.motion
        if motion is None or view.median_depth is None:
            return {}
        moving = view.grid(motion.dynamic[:-1])
        valid = view.grid(motion.scene_flow_valid)
        length = view.grid(motion.scene_flow).double().norm(dim=-1) / view.median_depth
        still = length[~moving]
        known = moving if view.z is None else moving & (view.z[:-1] > 0)
        return present(
            {
                "sf_static": float(still.max()) if still.numel() else None,
                "sf_kept": float((valid & known).sum() / known.sum()) if known.any() else None,
                "sf_speed": quantile(length[valid & moving], 0.99),
                "sf_reproj_px": _landing_px(view),
            }
        )


def _landing_px(view: "View") -> float | None:
    from curate.view import median
    from shared import camera

    motion = view.clip.motion
    if (
        1 not in view.cycle
        or view.z is None
        or view.world_from_cam is None
        or view.intrinsics is None
        or motion is None
    ):
        return None
    usable = view.grid(motion.dynamic[:-1]) & view.grid(motion.scene_flow_valid) & (view.z[:-1] > 0)
    p_cam = camera.unproject(view.uv, view.z[:-1], view.intrinsics[:-1, None])
    p_world = camera.transform(view.world_from_cam[:-1, None], p_cam)
    next_from_world = camera.invert(view.world_from_cam[1:])[:, None]
    p_still = camera.transform(next_from_world, p_world)
    p_moved = camera.transform(next_from_world, p_world + view.grid(motion.scene_flow).double())
    usable &= (p_still[..., 2] > 0) & (p_moved[..., 2] > 0)
    still, moved = (camera.project(p, view.intrinsics[1:, None]) for p in (p_still, p_moved))
    end = view.uv + view.cycle[1].forward
    off_px, own_px = (view.to_reference * (uv - end)[usable].norm(dim=-1) for uv in (moved, still))
    return median(off_px / (own_px / FAST_PX).clamp(min=1))
