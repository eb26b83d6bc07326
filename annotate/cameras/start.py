"""From nothing to a first estimate: pure rotation, then depth on top of it; and poses alone, for frames between keyframes."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from annotate.cameras import bundle
from annotate.cameras.bundle import Fit, Problem, Solve, State

TURNING = Solve(iterations=12, translations=False, depths=False, damping=1e-5)
"""The rotation model."""


def turning(problem: Problem, num_keyframes: int, focal: float) -> tuple[State, Fit]:
    """The rotation model: no translation, everything at infinity."""
    return bundle.solve(problem, State.start(problem, num_keyframes, focal, inverse_depth=0.0), TURNING)


def freed(problem: Problem, turned: State, prior: tuple[float, float]) -> tuple[State, Fit]:
    """The rotation model with ln f free, under a prior."""
    return bundle.solve(problem, turned, replace(TURNING, iterations=10, focal=True, focal_prior=prior))


def before_a_plane(problem: Problem, turned: State) -> State:
    """The rotation model's turns, all nodes at one depth. From identity poses instead, long lenses and fast pans fail."""
    return replace(turned, inverse_depth=torch.ones_like(turned.inverse_depth))


def by_parallax(problem: Problem, turned: State) -> State:
    """The same, nodes the nearer the less a mere turn explains them: right where something near keeps pace with the camera."""
    size = bundle.predict(problem, turned)[0].norm(dim=1)
    middle = torch.where(problem.weight > 0.3, size, torch.nan).nanmedian(dim=1, keepdim=True).values
    ratio = (size / middle.nan_to_num(1.0).clamp(min=0.1)).clamp(max=4)
    i, zeros = problem.edges[:, 0], torch.zeros_like(turned.inverse_depth)
    total = zeros.index_add(0, i, problem.weight).clamp(min=1e-9)
    d = bundle.neighbor_mean(zeros.index_add(0, i, problem.weight * ratio) / total, problem.grid).clamp(0.1, 4)
    return replace(turned, inverse_depth=d / d.median())


def resect(
    problem: Problem,
    state: State,
    wanted: Bool[Tensor, " K"],
    sources: Int[Tensor, " S"] | range,
    iterations: int,
    rotation_only: bool = False,
) -> State:
    """Only the wanted poses, against the known depth of the sources; σ renewed each iteration, one for each pose."""
    known = torch.as_tensor(list(sources), device=problem.edges.device)
    part = problem.only(torch.isin(problem.edges[:, 0], known) & wanted[problem.edges[:, 1]])
    where = wanted.nonzero()[:, 0]
    place = torch.cumsum(wanted, 0) - 1
    row = place[part.edges[:, 1]]
    for _ in range(iterations):
        state = _resect_once(part, state, where, row, rotation_only)
    return state


def _resect_once(
    part: Problem, state: State, where: Int[Tensor, " F"], row: Int[Tensor, " E"], rotation_only: bool
) -> State:
    predicted = bundle.predict(part, state)
    size = bundle.dot(predicted[0], predicted[0])
    sigma = _noise_of_each(size.sqrt(), part.weight, row, len(where))
    weight = part.weight * bundle.in_front(predicted) / (1 + size / sigma[row][:, None] ** 2)
    linear = bundle.linearize(part, state, predicted, weight)
    columns = (linear.columns[:, 3:6] if rotation_only else linear.columns[:, :6]).flatten(2)
    count = columns.shape[1]
    normal = columns.new_zeros(len(where), count, count).index_add(0, row, columns @ columns.mT)
    right = (columns @ linear.residual.flatten(1)[..., None])[..., 0]
    gradient = columns.new_zeros(len(where), count).index_add(0, row, right)
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
