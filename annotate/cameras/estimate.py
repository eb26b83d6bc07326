"""The schedule of `flow_ba`: from flows to poses, focal length and flags. Everything is in pixels at working size."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from annotate.cameras import bundle, degenerate, epipolar, focal, keyframes, start
from annotate.cameras.bundle import Fit, Problem, Solve, State
from annotate.cameras.degenerate import Evidence
from annotate.flow.pairs import PairFlows

COARSE, FINE = 20, 40
"""Nodes along the long side."""
LITTLE = 1e-4
"""Smoothing once the basin is found: with exact flow 0.002 still moved the focal length by 5 %, this by less than 1 %."""
PRIOR = 0.9
"""Focal length in long sides when nothing is known: 58 degrees."""
STARTS = (0.95, 1.35, 0.7)
"""Focal lengths to start from, in long sides; so that none of them is what makes it work."""
PRIOR_REL_CI = 0.25
"""How sure the prior is, at best: fields of view of 46 to 72 degrees. No surer is what may be seen of a mover."""
GOOD_PX = 0.35
"""Noise of the best start; if there is more, further ones are tried."""
ALIKE_PX = 0.4
"""Noise by which starts are compared: what compression leaves of the flow. By less, a mover seen well beats a room seen badly."""
POOR_AREA = 0.6
"""Of the flow's weight that the best start explains within that noise; if it is less, further starts are tried."""
CLEARLY = 1.05
"""Times as much must a further start explain to be taken."""
DOUBTFUL = 0.75
"""Share of the flow that a solution explains; if the best has less, what it leaves is tried too. Plain clips: .76 and more."""
ROUNDS = 5
"""Of finding anew what such a solution takes for static."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """What is known of the cameras, and how well."""

    world_from_cam: Float64[np.ndarray, "T 4 4"]
    focal_px: float
    focal_source: str
    focal_rel_ci: float | None
    flags: tuple[str, ...]
    evidence: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """The flows between keyframes, before and after the epipolar vote."""

    pairs: PairFlows
    keys: list[int]
    edges: Int64[np.ndarray, "E 2"]
    raw: Problem
    voted: Problem
    device: str
    _turned: dict[float, tuple[State, Fit]] = field(default_factory=dict)

    @property
    def long_side(self) -> int:
        """Pixels."""
        return max(self.pairs.size)

    @cached_property
    def far(self) -> Problem:
        """What edges between keyframes at least 2 apart say."""
        return self.raw.only(degenerate.far(self.raw))

    @property
    def focal_prior(self) -> tuple[float, float]:
        """Of ln f, for the full model: wide, and enough to stop a collapse."""
        return math.log(self.long_side), 0.6

    def turned(self, focal_px: float) -> tuple[State, Fit]:
        """The rotation model at a focal length: solved once, because several starts and the test for rotation share it."""
        if focal_px not in self._turned:
            self._turned[focal_px] = start.turning(self.raw, len(self.keys), focal_px)
        return self._turned[focal_px]


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """A solution, what of the picture it takes for static, and how well it fits."""

    state: State
    fit: Fit
    static: Float[Tensor, "K N"]
    area: float
    """Share of the flow's weight that it explains."""
    profile: focal.Profile | None = None


def estimate(pairs: PairFlows, known_focal: float | None = None, device: str = "cpu") -> Estimate:
    """Cameras of a clip from flow between its frames; `known_focal` in working pixels; bundle adjustment on `device`."""
    prior = known_focal or PRIOR * max(pairs.size)
    if len(pairs.rgb) == 1:
        return _still(1, prior, known_focal, {})
    views = look(pairs, device)
    flow_px, still_border = degenerate.median_flow(views.far), degenerate.still_border(views.far)
    if degenerate.is_static(flow_px, still_border):
        return _still(len(pairs.rgb), prior, known_focal, {"flow_px": flow_px, "still_border": still_border})
    turned, turned_fit = _turning_camera(views, known_focal)
    best = coarse(views, known_focal)
    evidence = weigh(views, turned, best.state, best.fit)
    if degenerate.motion_flag(evidence) == "rotation_only":
        return _turning(views, turned, turned_fit, known_focal, evidence)
    solved = refine(views, best, known_focal is None)
    if known_focal is not None:
        return _moving(views, turned, solved, "given", False)
    weak = focal.is_weak(solved.state, views.raw, solved.fit, best.profile)
    if weak and not focal.is_held(solved.state, views.raw, best.profile):
        solved = refine(views, replace(coarse(views, prior), profile=best.profile), False)
        return _moving(views, turned, solved, "prior", True)
    return _moving(views, turned, replace(solved, profile=bent(views, best)), "self_calibrated", weak)


def look(pairs: PairFlows, device: str = "cpu") -> Views:
    """Keyframes, edges, and the epipolar vote on the coarse grid."""
    keys = keyframes.choose(pairs)
    edges = np.concatenate((keyframes.temporal_edges(pairs, keys), keyframes.loop_edges(pairs, keys)))
    raw = keyframes.make_problem(pairs, keys, edges, COARSE, device)
    agreement, static = epipolar.vote(raw, len(keys))
    return Views(
        pairs=pairs, keys=keys, edges=edges, raw=raw, voted=epipolar.weighted(raw, static, agreement), device=device
    )


def coarse(views: Views, known_focal: float | None) -> Solved:
    """The start that explains the largest area, solved to the end on the coarse grid, and its focal profile.

    Where much stays unexplained, what was found may be a mover: then whatever explains most of the rest is tried too.
    """
    free_focal = known_focal is None
    best = largest(views, _starts(views, known_focal))
    if free_focal and (best.fit.sigma_px > GOOD_PX or _alike(views, best.state) < POOR_AREA):
        best = _clearly_larger(views, best, _further_starts(views))
    best = settled(views, best, free_focal)
    if degenerate.agreeing_share(views.far, best.state, best.fit.sigma_px) < DOUBTFUL:
        best = largest(views, [(best.state, best.fit), *_rest(views, best, known_focal)])
    if not free_focal:
        return best
    return replace(best, profile=focal.profile(epipolar.weighted(views.raw, best.static), best.state, best.fit))


def settled(views: Views, found: Solved, free_focal: bool, tolerance: float = 1e-5) -> Solved:
    """Solved again on what it takes for static."""
    how = Solve(iterations=15, tolerance=tolerance, smoothing=LITTLE)
    if free_focal:
        how = replace(how, focal=True, focal_prior=views.focal_prior)
    return explained(views, *bundle.solve(epipolar.weighted(views.raw, found.static), found.state, how))


def _rest(views: Views, found: Solved, known_focal: float | None) -> Iterator[tuple[State, Fit]]:
    """Two solutions for what another leaves; they start on little, and grow. Without the vote: the same mover may have won it."""
    rest = replace(views, voted=epipolar.weighted(views.raw, 1 - found.static))
    turned, _ = start.turning(rest.voted, len(views.keys), known_focal or STARTS[0] * views.long_side)
    for begin in (start.before_a_plane, start.by_parallax):
        state, fit = _first_solution(rest, begin(rest.voted, turned), known_focal is None)
        one = explained(views, state, fit)
        for _ in range(ROUNDS):
            one = settled(views, one, known_focal is None, 1e-3)
        one = replace(one, static=epipolar.by_residual(views.raw, one.state, ALIKE_PX))
        one = settled(views, one, known_focal is None)
        yield one.state, one.fit


def bent(views: Views, found: Solved) -> focal.Profile:
    """The profile of a coarse solution, knowing what another lens would change."""
    assert found.profile is not None
    problem = epipolar.weighted(views.raw, found.static)
    shift = focal.lens_shift(problem, found.state, found.fit, views.focal_prior)
    return replace(found.profile, least=shift)


def _starts(views: Views, known_focal: float | None) -> Iterator[tuple[State, Fit]]:
    """Several focal lengths before a plane, and one with depth by parallax."""
    ratios = STARTS if known_focal is None else (known_focal / views.long_side,)
    for place, ratio in enumerate(ratios):
        turned, _ = views.turned(ratio * views.long_side)
        yield _first_solution(views, start.before_a_plane(views.raw, turned), known_focal is None)
        if place == 0:
            yield _first_solution(views, start.by_parallax(views.raw, turned), known_focal is None)


def _further_starts(views: Views) -> Iterator[tuple[State, Fit]]:
    """Depth by parallax with the other focal lengths: right where a large mover keeps pace before a long lens."""
    for ratio in STARTS[1:]:
        turned, _ = views.turned(ratio * views.long_side)
        yield _first_solution(views, start.by_parallax(views.raw, turned), True)


def _first_solution(views: Views, state: State, free_focal: bool) -> tuple[State, Fit]:
    state, fit = bundle.solve(views.voted, state, Solve(iterations=25, damping=1e-5, tolerance=1e-3))
    if not free_focal:
        return state, fit
    how = Solve(iterations=8, focal=True, focal_prior=views.focal_prior, tolerance=1e-3, smoothing=LITTLE)
    return bundle.solve(views.voted, state, how)


def largest(views: Views, found: Iterable[tuple[State, Fit]]) -> Solved:
    """The solution that explains most, all measured alike: by its own noise, a poor fit forgives itself."""
    state, fit = max(found, key=lambda one: _alike(views, one[0]))
    return explained(views, state, fit)


def _clearly_larger(views: Views, best: Solved, others: Iterable[tuple[State, Fit]]) -> Solved:
    """The largest of the others, or what there is where they explain hardly more: then neither is known to be better."""
    other = largest(views, others)
    gain = _alike(views, other.state) / max(_alike(views, best.state), 1e-9)
    return other if gain > CLEARLY else best


def _alike(views: Views, state: State) -> float:
    """Share of the flow's weight that a solution explains within the noise that all are given."""
    return area(views, epipolar.by_residual(views.raw, state, ALIKE_PX))


def explained(views: Views, state: State, fit: Fit) -> Solved:
    static = epipolar.by_residual(views.raw, state, fit.sigma_px)
    return Solved(state=state, fit=fit, static=static, area=area(views, static))


def area(views: Views, static: Float[Tensor, "K N"]) -> float:
    """Share of the flow's weight that is static."""
    weight = views.raw.weight
    return float((weight * static[views.raw.edges[:, 0]]).sum() / weight.sum().clamp(min=1e-9))


def refine(views: Views, best: Solved, free_focal: bool) -> Solved:
    """Twice the nodes each way, a few iterations."""
    raw = keyframes.make_problem(views.pairs, views.keys, views.edges, FINE, views.device)
    static = enlarged(best.static, views.raw.grid, raw.grid)
    state = replace(best.state, inverse_depth=enlarged(best.state.inverse_depth, views.raw.grid, raw.grid))
    how = Solve(iterations=6, focal=free_focal, focal_prior=views.focal_prior if free_focal else None, smoothing=LITTLE)
    state, fit = bundle.solve(epipolar.weighted(raw, static), state, how)
    return replace(best, state=state, fit=fit)


def enlarged(values: Float[Tensor, "K n"], grid: tuple[int, int], wanted: tuple[int, int]) -> Float[Tensor, "K N"]:
    """From one node grid to another, bilinearly."""
    image = values.view(-1, 1, *grid)
    return F.interpolate(image, size=wanted, mode="bilinear", align_corners=False).flatten(1)


def weigh(views: Views, turning: State, state: State, fit: Fit) -> Evidence:
    """The numbers the flags are decided on, on the coarse grid."""
    coarse_state = replace(state, inverse_depth=enlarged(state.inverse_depth, _grid(views, state), views.raw.grid))
    far = views.far
    frames = np.array(views.keys)[far.edges.cpu().numpy()]
    _, confidence, error = views.pairs.at_nodes(frames, far.nodes)
    return Evidence(
        flow_px=degenerate.median_flow(far),
        still_border=degenerate.still_border(far),
        confident=float((confidence > 0.5).double().mean()),
        rotation_px=degenerate.median_residual(far, turning),
        full_px=degenerate.median_residual(far, coarse_state),
        spread_px=degenerate.parallax_spread(far, coarse_state),
        agreeing=degenerate.agreeing_share(far, coarse_state, fit.sigma_px),
        turning=degenerate.agreeing_share(far, turning, fit.sigma_px),
        sigma_px=fit.sigma_px,
        cycle_px=float(error.median()),
    )


def _grid(views: Views, state: State) -> tuple[int, int]:
    nodes = state.inverse_depth.shape[1]
    coarse_grid = views.raw.grid
    return coarse_grid if nodes == math.prod(coarse_grid) else keyframes.node_grid(views.pairs.size, FINE)[0]


def infill(
    views: Views, state: State, static: Float[Tensor, "K N"], rotation_only: bool = False
) -> Float64[np.ndarray, "T 4 4"]:
    """Poses of all frames: those between keyframes against the four keyframes around them. World: the first camera."""
    keys, num_frames = views.keys, len(views.pairs.rgb)
    between = [t for t in range(num_frames) if t not in set(keys)]
    everyone = _with_between(state, keys, between)
    if between:
        grid_nodes = FINE if state.inverse_depth.shape[1] > len(views.raw.nodes) else COARSE
        edges = np.array([(k, len(keys) + b) for b, t in enumerate(between) for k in keyframes.around(keys, t)])
        problem = keyframes.make_problem(views.pairs, [*keys, *between], edges, grid_nodes, views.device)
        problem = epipolar.weighted(problem, enlarged(static, views.raw.grid, problem.grid))
        wanted = torch.arange(len(keys) + len(between), device=views.device) >= len(keys)
        everyone = start.resect(problem, everyone, wanted, range(len(keys)), 6, rotation_only)
    order = np.argsort([*keys, *between])
    return world_from_cam(everyone.cam_from_world().cpu().numpy()[order])


def _with_between(state: State, keys: list[int], between: list[int]) -> State:
    """The state with interpolated poses of more frames at its end; their depth is not used."""
    if not between:
        return state
    after = np.searchsorted(keys, between)
    a, b = (torch.from_numpy(k).to(state.rotation.device) for k in (after - 1, after))
    at, middle = state.rotation.new_tensor(keys), state.rotation.new_tensor(between)
    share = ((middle - at[a]) / (at[b] - at[a]))[:, None]
    turn = logarithm(state.rotation[b] @ state.rotation[a].mT)
    rotation = bundle.rotate(share * turn) @ state.rotation[a]
    centers = -(state.rotation.mT @ state.translation[..., None])[..., 0]
    center = centers[a] * (1 - share) + centers[b] * share
    translation = -(rotation @ center[..., None])[..., 0]
    return replace(
        state,
        rotation=torch.cat((state.rotation, rotation)),
        translation=torch.cat((state.translation, translation)),
        inverse_depth=torch.cat((state.inverse_depth, state.inverse_depth[:1].expand(len(between), -1))),
    )


def logarithm(rotation: Float[Tensor, "K 3 3"]) -> Float[Tensor, "K 3"]:
    """The rotation vector of turns below half a circle."""
    skew = (rotation - rotation.mT) / 2
    vector = torch.stack((skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]), -1)
    sine = vector.norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine[:, 0], (rotation.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2)[:, None]
    return torch.where(sine > 1e-9, vector * angle / sine.clamp(min=1e-9), vector)


def world_from_cam(cam_from_world: Float64[np.ndarray, "T 4 4"]) -> Float64[np.ndarray, "T 4 4"]:
    """Proper rotations, the first camera the world, its pose exactly the identity."""
    u, _, vt = np.linalg.svd(cam_from_world[:, :3, :3])
    poses = np.tile(np.eye(4), (len(cam_from_world), 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = u @ vt, cam_from_world[:, :3, 3]
    out = poses[0] @ np.linalg.inv(poses)
    out[:, 3], out[0] = (0, 0, 0, 1), np.eye(4)
    return out


def _turning_camera(views: Views, known_focal: float | None) -> tuple[State, Fit]:
    """The rotation model with the best focal length it can have."""
    if known_focal is not None:
        return views.turned(known_focal)
    return start.freed(views.raw, views.turned(STARTS[0] * views.long_side)[0], _turning_prior(views))


def _turning_prior(views: Views) -> tuple[float, float]:
    """Of ln f, for the rotation model."""
    return math.log(views.long_side), 0.5


def _moving(views: Views, turned: State, solved: Solved, source: str, weak: bool) -> Estimate:
    """The full model's answer, where its focal length comes from, and every flag that applies."""
    evidence = weigh(views, turned, solved.state, solved.fit)
    flags, plane_share = doubts(views, solved, evidence, source == "given", weak)
    rel_ci = solved.profile.rel_ci if solved.profile else None
    if rel_ci is not None and (source == "prior" or "dynamic_dominated" in flags):
        rel_ci = max(rel_ci, PRIOR_REL_CI)
    return Estimate(
        world_from_cam=infill(views, solved.state, solved.static),
        focal_px=solved.state.focal,
        focal_source=source,
        focal_rel_ci=rel_ci,
        flags=flags,
        evidence=asdict(evidence) | {"keyframes": len(views.keys), "area": solved.area, "plane_share": plane_share},
    )


def doubts(
    views: Views, solved: Solved, evidence: Evidence, focal_known: bool, weak: bool
) -> tuple[tuple[str, ...], float]:
    """The flags of a moving camera, and how much of what is static one plane explains."""
    motion = degenerate.motion_flag(evidence)
    plane_share = epipolar.plane_share(views.far, solved.static)
    lens = solved.profile is not None and solved.profile.least > focal.LENS_SHIFT
    doubtful = weak or (not focal_known and (lens or degenerate.is_plane(plane_share)))
    flags = ([motion] if motion else []) + ["focal_weak"] * doubtful + degenerate.fit_flags(evidence)
    return tuple(flags), plane_share


def _still(num_frames: int, focal_px: float, known: float | None, evidence: Mapping[str, float]) -> Estimate:
    return Estimate(
        world_from_cam=np.tile(np.eye(4), (num_frames, 1, 1)),
        focal_px=focal_px,
        focal_source="given" if known else "prior",
        focal_rel_ci=None,
        flags=("static_camera",),
        evidence=evidence,
    )


def _turning(views: Views, state: State, fit: Fit, known: float | None, evidence: Evidence) -> Estimate:
    """Rotations and focal length of the rotation model, once more without what it does not explain.

    Its own curve, not the full model's, tells how sure f is.
    """
    static = epipolar.by_residual(views.raw, state, fit.sigma_px)
    how = replace(start.TURNING, iterations=10)
    if known is None:
        how = replace(how, focal=True, focal_prior=_turning_prior(views))
    state, fit = bundle.solve(epipolar.weighted(views.raw, static), state, how)
    spread = focal.CORRELATED * fit.focal_std
    if known is None and not focal.is_plausible(state.focal, views.pairs.size):
        prior = PRIOR * views.long_side
        guess = _turning(views, *views.turned(prior), prior, evidence)
        flags = ("rotation_only", "focal_weak")
        return replace(guess, focal_source="prior", focal_rel_ci=PRIOR_REL_CI, flags=flags)
    weak = known is None and spread > 0.1
    poses = infill(views, state, static, rotation_only=True)
    poses[:, :3, 3] = 0
    return Estimate(
        world_from_cam=poses,
        focal_px=state.focal,
        focal_source="given" if known else "self_calibrated",
        focal_rel_ci=None if known else spread,
        flags=("rotation_only",) + ("focal_weak",) * weak,
        evidence=asdict(evidence) | {"keyframes": len(views.keys)},
    )
