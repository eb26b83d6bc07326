"""Matches of still pixels lie on the epipolar lines of the cameras: a test of poses and flow that needs no depth."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from torch import Tensor

    from curate.view import View


class Sampson(Knobs):
    """Root of the Sampson error (x'ᵀFx)² / ((Fx)₁² + (Fx)₂² + (Fᵀx')₁² + (Fᵀx')₂²), in px at 720 wide."""

    sampson_px: Limit | None = Limit(flag_above=0.8, fail_above=1.2)
    """Median over still matches between key frames."""
    sampson_p90_px: Limit | None = Limit(flag_above=5.0)
    """90th percentile."""

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        import torch

        from curate.view import median, present, quantile

        stride = max(view.cycle, default=0)
        cycle = view.cycle.get(stride)
        if cycle is None or view.world_from_cam is None or not len(cycle.forward):
            return {}
        start = torch.arange(len(cycle.forward)) * stride
        fundamental, baseline = fundamentals(view, start, start + stride)
        moves = baseline > 1e-4 * (view.median_depth or float(baseline.max()))
        error = view.to_reference * distance(fundamental, view.uv, view.uv + cycle.forward)
        usable = view.still[start] & cycle.agrees & moves[:, None]
        return present({"sampson_px": median(error[usable]), "sampson_p90_px": quantile(error[usable], 0.9)})


def fundamentals(view: "View", now: "Tensor", then: "Tensor") -> "tuple[Tensor, Tensor]":
    """(P 3 3: F with x'ᵀFx = 0 for x now and x' then, P: lengths of the baselines)."""
    import torch

    from shared import camera

    assert view.world_from_cam is not None
    assert view.intrinsics is not None
    then_from_now = camera.invert(view.world_from_cam[then]) @ view.world_from_cam[now]
    t = then_from_now[:, :3, 3]
    zero = torch.zeros_like(t[:, 0])
    rows = (zero, -t[:, 2], t[:, 1], t[:, 2], zero, -t[:, 0], -t[:, 1], t[:, 0], zero)
    essential = torch.stack(rows, -1).reshape(-1, 3, 3) @ then_from_now[:, :3, :3]
    inverse_now, inverse_then = (_inverse(view.intrinsics[frames]) for frames in (now, then))
    return inverse_then.transpose(1, 2) @ essential @ inverse_now, t.norm(dim=-1)


def distance(fundamental: "Tensor", uv: "Tensor", uv_then: "Tensor") -> "Tensor":
    """P N: root of the Sampson error, in pixels."""
    import torch

    x, y = (torch.nn.functional.pad(points, (0, 1), value=1.0) for points in (uv.expand_as(uv_then), uv_then))
    line, line_back = x @ fundamental.transpose(1, 2), y @ fundamental
    off = (y * line).sum(-1).square()
    return (off / (line[..., :2].square().sum(-1) + line_back[..., :2].square().sum(-1)).clamp(min=1e-300)).sqrt()


def _inverse(intrinsics: "Tensor") -> "Tensor":
    """K⁻¹."""
    import torch

    matrix = torch.zeros(len(intrinsics), 3, 3, dtype=intrinsics.dtype)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = 1 / intrinsics[:, 0], 1 / intrinsics[:, 1], 1.0
    matrix[:, :2, 2] = -intrinsics[:, 2:] / intrinsics[:, :2]
    return matrix
