"""Depth steps where the surfaces end, not beside."""

from typing import TYPE_CHECKING

import numpy as np

from curate.check import Limit
from shared import trust
from shared.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor

    from curate.view import View

REACH_PX = 24
"""How far from a step a pixel is near it, at 720 wide."""
OFF_PX, OFF_RATIO = 4.0, 0.1
"""A pixel is wrong if its depth does not explain its flow, or is another one four frames later."""
TELLS_PX = 8.0
"""Flow differs by this within the reach of pixels that can be told from those across the step: elsewhere (a still camera, walls far
away) a surface that is too wide moves as what it hides, and its pixels say nothing."""


class DepthEdges(Knobs):
    """Beside a step, a surface that is drawn too wide moves with the wrong side."""

    edge_outliers: Limit | None = Limit(flag_above=0.25, fail_above=0.33)
    """Share of still pixels near a step, beside which things move apart, that are wrong from key frame to key frame."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        from curate.checks.depth_reprojection import log_ratios
        from curate.checks.rigid_flow import residual

        error, explained = residual(view, 4)
        log_ratio, stored = log_ratios(view, 4, every=4)
        if error is None or explained is None or log_ratio is None or stored is None:
            return {}
        usable = explained & near_step(view, range(0, view.num_frames - 4, 4)) & _moves_apart(view)
        if int(usable.sum()) < 200:
            return {}
        allowed = (0.05 * view.to_reference * view.cycle[4].forward.norm(dim=-1)).clamp(min=OFF_PX)
        wrong = (error > allowed) | (stored & (log_ratio.abs() > OFF_RATIO))
        return {"edge_outliers": float(wrong[usable].double().mean())}


def _moves_apart(view: "View") -> "Tensor":
    """P N: True where key flow differs by at least `TELLS_PX` within `REACH_PX`."""
    import cv2

    assert view.clip.key_flow is not None
    box = np.ones((2 * _reach(view) + 1,) * 2, np.uint8)
    apart = [
        np.hypot(*(cv2.dilate(way, box) - cv2.erode(way, box) for way in np.ascontiguousarray(flow.transpose(2, 0, 1))))
        for flow in view.clip.key_flow.forward
    ]
    return view.grid(np.stack(apart)) * view.to_reference > TELLS_PX


def _reach(view: "View") -> int:
    return max(1, round(REACH_PX / view.to_reference))


def near_step(view: "View", frames: range) -> "Tensor":
    """P N: True within `REACH_PX` of a depth step."""
    assert view.depth is not None
    return view.grid(np.stack([trust.near_step(view.depth[0][t], view.depth[1][t], _reach(view)) for t in frames]))
