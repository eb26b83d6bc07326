"""Flags instead of garbage: what the flow cannot tell about the cameras."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from annotate.cameras import bundle
from annotate.cameras.bundle import Problem, State

STILL_PX = 0.35
"""Flow below is none."""
BORDER = 2
"""Nodes of the coarse grid."""
LEAST_SPREAD_PX = 1.5
"""Of parallax, at a long side of 320."""
UNUSABLE = frozenset({"static_camera", "rotation_only", "poor_fit", "flow_unreliable"})
"""Flags with which no depth can be had from these cameras."""


def is_unusable(flags: str | None) -> bool:
    """Whether any of the comma-joined flags forbids depth."""
    return bool(flags) and not UNUSABLE.isdisjoint(flags.split(","))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The numbers behind the flags, pixels at working size; kept as scores."""

    flow_px: float
    """Median flow of far edges: keyframes at least 2 apart."""
    still_border: float
    """Share of the picture's border that does not flow."""
    confident: float
    """Share of their nodes with confident flow."""
    rotation_px: float
    """Median residual of the pure-rotation model."""
    full_px: float
    spread_px: float
    """90th minus 10th percentile of what translation adds to the prediction."""
    agreeing: float
    """Share of weighted nodes the full model explains."""
    turning: float
    """The same of the rotation model."""
    sigma_px: float
    cycle_px: float
    """Median forward-backward error of the flow."""


def far(problem: Problem) -> Bool[Tensor, " E"]:
    """Edges between keyframes at least 2 apart; all, where there are none."""
    apart = (problem.edges[:, 0] - problem.edges[:, 1]).abs() >= 2
    return apart if apart.any() else torch.ones_like(apart)


def median_residual(problem: Problem, state: State) -> float:
    """Median over edges of each edge's median |r| of confident nodes."""
    size = bundle.predict(problem, state)[0].norm(dim=1)
    return _median_of_medians(size, problem.weight)


def median_flow(problem: Problem) -> float:
    """The same of the flow itself."""
    return _median_of_medians((problem.target - problem.nodes).norm(dim=-1), problem.weight)


def still_border(problem: Problem) -> float:
    """Share of the border's weight whose flow is nothing, 20th percentile over edges; that of its lower half, where that is less.

    Something near can fill most of a picture, but rarely its border. The lower half alone, because a moving camera sees the sky, or
    mountains, stand still. A thing that keeps pace with the camera is seldom at the border at all.
    """
    rows, columns = problem.grid
    row, column = torch.arange(rows)[:, None], torch.arange(columns)[None]
    ring = (row < BORDER) | (row >= rows - BORDER) | (column < BORDER) | (column >= columns - BORDER)
    lower = (ring & (row >= rows / 2)).flatten().to(problem.nodes.device)
    still = (problem.target - problem.nodes).norm(dim=-1) < STILL_PX

    def share(where: Bool[Tensor, " N"]) -> Float[Tensor, " E"]:
        weight = problem.weight[:, where]
        return (weight * still[:, where]).sum(1) / weight.sum(1).clamp(min=1e-9)

    both = torch.minimum(share(ring.flatten().to(lower.device)), share(lower))
    return float(torch.quantile(both, 0.2))


def _median_of_medians(size: Float[Tensor, "E N"], weight: Float[Tensor, "E N"]) -> float:
    confident = torch.where(weight > 0.3, size, torch.nan)
    each = confident.nanmedian(dim=1).values
    middle = each.nanmedian()
    return float(middle) if middle.isfinite() else float(size.median())


def parallax_spread(problem: Problem, state: State) -> float:
    """How unevenly translation moves the picture: 90th minus 10th percentile, median over edges."""
    full, _ = bundle.predict(problem, state)
    turned, _ = bundle.predict(
        problem,
        State(
            rotation=state.rotation,
            translation=torch.zeros_like(state.translation),
            inverse_depth=torch.zeros_like(state.inverse_depth),
            log_focal=state.log_focal,
        ),
    )
    added = (full - turned).norm(dim=1)
    ends = torch.quantile(added, added.new_tensor([0.1, 0.9]), dim=1)
    return float((ends[1] - ends[0]).median())


def agreeing_share(problem: Problem, state: State, sigma_px: float) -> float:
    """Share of the flow's weight within max(1, 4σ) of the full model."""
    size = bundle.predict(problem, state)[0].norm(dim=1)
    near = size < max(1.0, 4 * sigma_px)
    return float((problem.weight * near).sum() / problem.weight.sum().clamp(min=1e-9))


def is_static(flow_px: float, border: float) -> bool:
    """Nothing but movers moves. Measured of the border: still cameras 0.35 and more, moving ones below 0.1."""
    return flow_px < STILL_PX or border > 0.3


def is_plane(share: float) -> bool:
    """What is static lies on one plane: a wrong focal length can fit it as well as the right one."""
    return share > 0.9


def motion_flag(e: Evidence) -> str | None:
    """At most one of static_camera, rotation_only, low_parallax.

    `rotation_only` is wide on purpose: a pixel of parallax is useless for depth. But a large mover that keeps pace turns with the
    camera, and may be half of what is seen.
    """
    if is_static(e.flow_px, e.still_border):
        return "static_camera"
    if e.rotation_px < max(0.45, 2 * e.full_px) and e.rotation_px < 0.8 and e.turning > 0.8 * e.agreeing:
        return "rotation_only"
    # the residual of the rotation model fires on good long-lens clips too; the spread of parallax does not
    return "low_parallax" if e.spread_px < LEAST_SPREAD_PX else None


def fit_flags(e: Evidence) -> list[str]:
    """Why the poses themselves are in doubt."""
    tests = (
        ("poor_fit", e.sigma_px > max(0.3, 3 * e.cycle_px)),
        ("dynamic_dominated", e.agreeing < 0.65),
        ("flow_unreliable", e.confident < 0.35),
    )
    return [flag for flag, fires in tests if fires]
