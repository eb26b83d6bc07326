"""From nothing to a first estimate: pure rotation; keyframe after keyframe; and the frames between keyframes."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from annotate.cameras import bundle
from annotate.cameras.bundle import Fit, Problem, Solve, State
from shared import warp

FIRST = 5
"""Keyframes solved together before the others join one by one."""
WINDOW = 7


def rotation_model(problem: Problem, num_keyframes: int, focal: float, free_focal: bool) -> tuple[State, Fit]:
    """The best turning camera: no translation, everything at infinity."""
    state = State.start(num_keyframes, len(problem.nodes), focal, inverse_depth=0.0)
    how = Solve(iterations=12, translations=False, depths=False, damping=1e-5)
    state, fit = bundle.solve(problem, state, how)
    if not free_focal:
        return state, fit
    prior = (float(torch.tensor(float(max(problem.size))).log()), 0.5)
    return bundle.solve(problem, state, replace(how, iterations=10, focal=True, focal_prior=prior))


def incremental(problem: Problem, num_keyframes: int, focal: float, carried: Problem, min_sigma_px: float) -> State:
    """Keyframe after keyframe from identity poses before a plane. `carried` holds the unweighted edges k -> k - 1."""
    state = State.start(num_keyframes, len(problem.nodes), focal)
    how = Solve(iterations=25, damping=1e-5, min_sigma_px=min_sigma_px)
    state = solve_window(problem, state, 0, min(FIRST, num_keyframes), how)
    for k in range(FIRST, num_keyframes):
        state = _guess(state, k)
        state = resect(problem, state, torch.arange(num_keyframes) == k, range(k - 3, k), iterations=10)
        state = _carry_depth(carried, state, k)
        state = solve_window(problem, state, max(k - WINDOW + 1, 0), k + 1, replace(how, iterations=6))
    return state


def solve_window(problem: Problem, state: State, first: int, end: int, how: Solve) -> State:
    """Only keyframes first..end-1, the others untouched. Later windows keep their first two poses instead of the scale."""
    inside = ((problem.edges >= first) & (problem.edges < end)).all(1)
    part = problem.only(inside)
    part = replace(part, edges=part.edges - first)
    small = _slice(state, first, end)
    if first:
        how = replace(how, free=torch.arange(end - first) > 1, rescale=False)
    small, _ = bundle.solve(part, small, how)
    return _put(state, small, first, end)


def _slice(state: State, first: int, end: int) -> State:
    return replace(
        state,
        rotation=state.rotation[first:end],
        translation=state.translation[first:end],
        inverse_depth=state.inverse_depth[first:end],
    )


def _put(state: State, small: State, first: int, end: int) -> State:
    rotation, translation, d = state.rotation.clone(), state.translation.clone(), state.inverse_depth.clone()
    rotation[first:end], translation[first:end], d[first:end] = (
        small.rotation,
        small.translation,
        small.inverse_depth,
    )
    return replace(state, rotation=rotation, translation=translation, inverse_depth=d, log_focal=small.log_focal)


def _guess(state: State, k: int) -> State:
    """Constant velocity: the last motion once more."""
    rotation, translation = state.rotation.clone(), state.translation.clone()
    turn = rotation[k - 1] @ rotation[k - 2].T
    rotation[k] = turn @ rotation[k - 1]
    translation[k] = turn @ (translation[k - 1] - translation[k - 2]) + translation[k - 1]
    return replace(state, rotation=rotation, translation=translation)


def _carry_depth(carried: Problem, state: State, k: int) -> State:
    """Start depth of keyframe k: what keyframe k - 1 has where the flow leads; the median where flow is doubtful."""
    here = (carried.edges[:, 0] == k).nonzero()[0, 0]
    grid, (height, width) = carried.grid, carried.size
    cell = carried.nodes.new_tensor((grid[1] / width, grid[0] / height))
    target = carried.target[here]
    previous = state.inverse_depth[k - 1].view(1, *grid, 1)
    d = warp.sample(previous, (target * cell)[None])[0, :, 0]
    rotation, translation = bundle.relative(state, torch.tensor([[k - 1, k]]))
    x = bundle.rays(target, carried.center, state.log_focal.exp())
    z = (rotation[0] @ x + translation[0][:, None] * d)[2]
    confident = carried.weight[here] > 0.3
    d = d / z.clamp(min=0.1)
    middle = d[confident].median() if confident.any() else d.new_tensor(1.0)
    inverse_depth = state.inverse_depth.clone()
    inverse_depth[k] = torch.where(confident, d, middle).clamp(1e-3, 8)
    return replace(state, inverse_depth=inverse_depth)


def resect(
    problem: Problem,
    state: State,
    wanted: Bool[Tensor, " K"],
    sources: Int[Tensor, " S"] | range,
    iterations: int,
    rotation_only: bool = False,
) -> State:
    """Only the wanted poses, against the known depth of the sources; σ renewed each iteration, one for each pose."""
    known = torch.as_tensor(list(sources))
    part = problem.only(torch.isin(problem.edges[:, 0], known) & wanted[problem.edges[:, 1]])
    where = wanted.nonzero()[:, 0]
    place = torch.zeros(len(wanted), dtype=torch.long)
    place[where] = torch.arange(len(where))
    row = place[part.edges[:, 1]]
    for _ in range(iterations):
        state = _resect_once(part, state, where, row, rotation_only)
    return state


def _resect_once(
    part: Problem, state: State, where: Int[Tensor, " F"], row: Int[Tensor, " E"], rotation_only: bool
) -> State:
    linear = bundle.linearize(part, state)
    size = linear.residual.square().sum(1)
    sigma = _noise_of_each(size.sqrt(), part.weight, row, len(where))
    weight = part.weight * linear.in_front / (1 + size / sigma[row][:, None] ** 2)
    columns = linear.columns[:, 9:12] if rotation_only else linear.columns[:, 6:12]
    weighted = (columns * weight[:, None, None]).flatten(2)
    count = columns.shape[1]
    normal = weighted.new_zeros(len(where), count, count).index_add(0, row, weighted @ columns.flatten(2).mT)
    right = (weighted @ linear.residual.flatten(1)[..., None])[..., 0]
    gradient = weighted.new_zeros(len(where), count).index_add(0, row, right)
    damping = 1e-4 * normal.diagonal(dim1=1, dim2=2).clamp(min=1e-3)
    step = torch.linalg.solve(normal + torch.diag_embed(damping + 1e-9), gradient)
    if rotation_only:
        step = torch.cat((torch.zeros_like(step), step), 1)
    step = step * (0.3 / step.abs().amax(1, keepdim=True).clamp(min=0.3))
    turn = bundle.rotate(step[:, 3:])
    rotation, translation = state.rotation.clone(), state.translation.clone()
    rotation[where] = turn @ rotation[where]
    translation[where] = (turn @ translation[where][..., None])[..., 0] + step[:, :3]
    return replace(state, rotation=rotation, translation=translation)


def _noise_of_each(
    size: Float[Tensor, "E N"], weight: Float[Tensor, "E N"], row: Int[Tensor, " E"], count: int
) -> Float[Tensor, " F"]:
    """Noise scale of each pose's own edges."""
    sigma = size.new_full((count,), 1.0)
    for f in range(count):
        mine = row == f
        confident = size[mine][weight[mine] > 0.3]
        if len(confident):
            sigma[f] = (1.2 * confident.median()).clamp(0.15, 4)
    return sigma
