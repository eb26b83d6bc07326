"""Depth keeps one scale through the clip."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View


class ScaleDrift(Knobs):
    """Standard deviation over frames of the log scale between depth and cameras, chained over steps of four frames."""

    scale_drift: Limit | None = Limit(flag_above=0.05, fail_above=0.09)

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        import torch

        from curate.checks.depth_reprojection import log_ratios

        stride = min(4, view.num_frames - 1)
        log_ratio, usable = log_ratios(view, stride, every=max(stride, 1)) if stride else (None, None)
        if log_ratio is None or usable is None:
            return {}
        steps = [step[seen].median() for step, seen in zip(log_ratio, usable) if int(seen.sum()) >= 50]
        if len(steps) < len(usable):
            return {}  # a link is missing, and with it the scale of what follows
        scale = torch.cat((torch.zeros(1, dtype=torch.float64), torch.stack(steps).cumsum(0)))
        return {"scale_drift": float(scale.std(correction=0))}
