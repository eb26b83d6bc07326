"""A point's depth, carried into a later camera, is the depth stored there."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor

    from curate.view import View


class DepthReprojection(Knobs):
    """Median of max(z'/z, z/z') - 1 over still pixels, k frames later. Hidden points are outliers that a median bears."""

    depth_ratio_1: Limit | None = Limit(flag_above=0.04, fail_above=0.08)
    depth_ratio_4: Limit | None = Limit(flag_above=0.04, fail_above=0.08)
    depth_ratio_8: Limit | None = Limit(flag_above=0.04, fail_above=0.08)
    depth_ratio_worst: Limit | None = Limit(flag_above=0.1, fail_above=0.2)
    """The worst frame's median, one frame later."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        from curate.view import median, present, worst

        scores: dict[str, float | None] = {}
        for stride in (1, 4, 8):
            log_ratio, usable = log_ratios(view, stride, every=max(1, stride // 2))
            if log_ratio is not None and usable is not None:
                error = log_ratio.abs().expm1()
                scores[f"depth_ratio_{stride}"] = median(error[usable])
                if stride == 1:
                    scores["depth_ratio_worst"] = worst(error, usable)
        return present(scores)


def log_ratios(view: "View", stride: int, every: int = 1) -> "tuple[Tensor, Tensor] | tuple[None, None]":
    """(P N: ln of stored over carried depth, where it can be had) of frames 0, every, ... seen `stride` later."""
    import torch

    landing = view.landing(stride, every)
    if landing is None:
        return None, None
    then = torch.arange(0, view.num_frames - stride, every) + stride
    stored = view.depth_at(then, landing.uv)
    usable = landing.usable & (stored > 0)
    if stride in view.cycle and len(view.cycle[stride].agrees) == len(usable):
        usable &= view.cycle[stride].agrees
    return torch.where(usable, stored / landing.z, 1).log(), usable
