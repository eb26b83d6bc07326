"""Still pixels move as depth and cameras say."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

    from curate.view import View

OFF_PX = 4.0
"""Farther off than this, at 720 wide, is no error of flow between textured pixels."""


class RigidFlow(Knobs):
    """|F - F_rigid(D, K, T)| of still pixels whose flow agrees both ways, in px at 720 wide: labels tell one story."""

    rigid_flow_px: Limit | None = Limit(flag_above=1.0, fail_above=2.0)
    """Median, from frame to frame."""
    rigid_flow_p90_px: Limit | None = Limit(flag_above=5.0)
    """90th percentile."""
    rigid_flow_worst_px: Limit | None = Limit(flag_above=2.0, fail_above=3.2)
    """Median of the worst pair of frames."""
    rigid_key_px: Limit | None = Limit(flag_above=1.2, fail_above=2.2)
    """Median, from key frame to key frame: four times the parallax, so a wrong unit or focal length shows."""
    rigid_outliers: Limit | None = Limit(flag_above=0.05, fail_above=0.1)
    """Share of pixels off by more than 4 px and 5 % of their flow, from key frame to key frame."""
    rigid_patches: Limit | None = Limit(flag_above=0.002, fail_above=0.004)
    """Share of the picture in the middle of 3 x 3 grid points (a twentieth of its side) that are all off so far: movers that the
    mask missed. Flow that is wrong along a silhouette makes no patch, however long the silhouette is."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        from curate.view import median, present, quantile, worst

        scores: dict[str, float | None] = {}
        error, usable = residual(view, 1)
        if error is not None and usable is not None:
            scores["rigid_flow_px"] = median(error[usable])
            scores["rigid_flow_p90_px"] = quantile(error[usable], 0.9)
            scores["rigid_flow_worst_px"] = worst(error, usable)
        error, usable = residual(view, 4)
        if error is not None and usable is not None and usable.any():
            length = view.to_reference * view.cycle[4].forward.norm(dim=-1)
            scores["rigid_key_px"] = median(error[usable])
            off = usable & (error > (0.05 * length).clamp(min=OFF_PX))
            scores["rigid_outliers"] = float(off[usable].double().mean())
            scores["rigid_patches"] = float(_inner(off.unflatten(1, view.grid_shape)).double().mean())
        return present(scores)


def _inner(off: "Bool[Tensor, 'P h w']") -> "Bool[Tensor, 'P h w']":
    """True where all nine points around are; nothing is beyond the picture's edge."""
    import torch.nn.functional as F

    return -F.max_pool2d(-F.pad(off.double(), (1, 1, 1, 1)), 3, stride=1) > 0.5


def residual(view: "View", stride: int) -> "tuple[Tensor, Tensor] | tuple[None, None]":
    """(P N: |F - F_rigid| in px at 720 wide, where it can be had) of the stored flow of this stride."""
    landing = view.landing(stride, every=stride)
    if landing is None or stride not in view.cycle:
        return None, None
    cycle = view.cycle[stride]
    error = view.to_reference * (landing.uv - view.uv - cycle.forward).norm(dim=-1)
    return error, landing.usable & cycle.agrees
