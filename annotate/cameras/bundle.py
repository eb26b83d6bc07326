"""Dense bundle adjustment on optical flow: poses, one inverse depth a node, one focal length, by Schur complement.

Every keyframe carries the same grid of N nodes. For an edge i -> j and a node x of i, with d its inverse depth,

    Y = R_ij x + t_ij d,   p = (Y1, Y2) / Y3,   residual r = target - (f p + center).

Unknowns per keyframe are (v, w), applied as R <- e^w R, t <- e^w t + v; then one ln f, last. Poses are `cam_from_world` here,
because that is what the update acts on. Pixels are corner-origin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEAR = 0.05
"""Points closer than this (in units of the median depth) are projected as if they were here."""
BEHIND_COST = 9.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What was seen: for each edge, where the nodes of its first keyframe lie in its second, and how far to trust that."""

    nodes: Float[Tensor, "N 2"]
    grid: tuple[int, int]
    edges: Int[Tensor, "E 2"]
    target: Float[Tensor, "E N 2"]
    weight: Float[Tensor, "E N"]
    size: tuple[int, int]
    """Height and width, pixels."""

    @property
    def center(self) -> Float[Tensor, " 2"]:
        """Principal point."""
        return self.nodes.new_tensor((self.size[1] / 2, self.size[0] / 2))

    def to(self, device: str) -> "Problem":
        """The same on another device; what is solved for follows."""
        moved = {name: getattr(self, name).to(device) for name in ("nodes", "edges", "target", "weight")}
        return replace(self, **moved)

    def only(self, keep: Bool[Tensor, " E"]) -> "Problem":
        """Some of the edges."""
        return replace(self, edges=self.edges[keep], target=self.target[keep], weight=self.weight[keep])


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """What is solved for."""

    rotation: Float[Tensor, "K 3 3"]
    translation: Float[Tensor, "K 3"]
    inverse_depth: Float[Tensor, "K N"]
    log_focal: Float[Tensor, ""]

    @classmethod
    def start(cls, problem: Problem, num_keyframes: int, focal: float, inverse_depth: float = 1.0) -> "State":
        """Identity poses before a plane."""
        num_nodes = len(problem.nodes)
        rotation = torch.eye(3, dtype=torch.float64, device=problem.nodes.device).repeat(num_keyframes, 1, 1)
        return cls(
            rotation=rotation,
            translation=rotation.new_zeros(num_keyframes, 3),
            inverse_depth=rotation.new_full((num_keyframes, num_nodes), inverse_depth),
            log_focal=rotation.new_tensor(focal).log(),
        )

    @property
    def focal(self) -> float:
        """Pixels."""
        return float(self.log_focal.exp())

    def cam_from_world(self) -> Float[Tensor, "K 4 4"]:
        """Poses as matrices."""
        pose = torch.eye(4).to(self.rotation).repeat(len(self.rotation), 1, 1)
        pose[:, :3, :3], pose[:, :3, 3] = self.rotation, self.translation
        return pose


@dataclass(frozen=True, kw_only=True)
class Solve:
    """How to solve. `free` names the keyframes whose pose moves; None: all but the first."""

    iterations: int
    free: Bool[Tensor, " K"] | None = None
    translations: bool = True
    """False: the rotation model; translations stay, and with them depth."""
    depths: bool = True
    focal: bool = False
    focal_prior: tuple[float, float] | None = None
    """Mean and standard deviation of ln f."""
    damping: float = 1e-6
    """Tiny on purpose: the diagonal of B is not that of its Schur complement, and 1e-4 froze the focal length."""
    smoothing: float = 0.002
    """Of inverse depth towards its neighbors. 0.02 biased the focal length by -12 %."""
    tolerance: float = 1e-4
    min_sigma_px: float = 0.15
    sigma_px: float | None = None
    """Fixed noise scale; None: renewed from the residuals every third iteration."""
    rescale: bool = True
    """Divide depths by their median after each iteration (the free scale of the world)."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well it went: noise scale, weighted mean robust cost, and the standard deviation of ln f (0 if it was not free)."""

    sigma_px: float
    cost: float
    focal_std: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """Predictions of every edge and their derivatives: columns v_j, w_j, ln f, then the node's own d.

    What pose i does to a point, pose j can undo: J_i = J_j `turn`, so that i needs no columns of its own.
    """

    residual: Float[Tensor, "E 2 N"]
    columns: Float[Tensor, "E 7 2 N"]
    depth: Float[Tensor, "E 2 N"]
    in_front: Bool[Tensor, "E N"]
    turn: Float[Tensor, "E 6 6"]


def cross_matrix(v: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """[v]x, so that [v]x w = v x w."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))


def rotate(w: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation e^[w]x."""
    return torch.linalg.matrix_exp(cross_matrix(w))


def rays(nodes: Float[Tensor, "N 2"], center: Float[Tensor, " 2"], focal: Tensor) -> Float[Tensor, "3 N"]:
    """Directions of the nodes with z = 1."""
    xy = ((nodes - center) / focal).T
    return torch.cat((xy, torch.ones_like(xy[:1])))


def relative(state: State, edges: Int[Tensor, "E 2"]) -> tuple[Float[Tensor, "E 3 3"], Float[Tensor, "E 3"]]:
    """Rotation and translation of target_from_source of each edge."""
    i, j = edges.T
    rotation = state.rotation[j] @ state.rotation[i].transpose(-1, -2)
    translation = state.translation[j] - (rotation @ state.translation[i][..., None])[..., 0]
    return rotation, translation


Predicted = tuple[Float[Tensor, "E 2 N"], Float[Tensor, "E 3 N"]]


def predict(problem: Problem, state: State) -> Predicted:
    """Residuals, and the points in the second camera in units of their depth in the first."""
    rotation, translation = relative(state, problem.edges)
    x = rays(problem.nodes, problem.center, state.log_focal.exp())
    d = state.inverse_depth[problem.edges[:, 0]]
    y = rotation @ x + translation[..., None] * d[:, None]
    p = y[:, :2] / y[:, 2:].clamp(min=NEAR)
    target = problem.target.transpose(1, 2) - problem.center[:, None]
    return target - state.log_focal.exp() * p, y


def linearize(problem: Problem, state: State, predicted: Predicted | None = None) -> Linear:
    """Residuals, and the derivatives of the prediction: with A = (f/z) [1 0 -p1; 0 1 -p2], those of Y times A.

    dY is d v_j + w_j x Y for pose j, t_ij for d, and -R_ij (x1, x2, 0) for ln f, which scales f p besides.
    `predicted`: what `predict` says of this state, where it is known already.
    """
    residual, y = predicted or predict(problem, state)
    rotation, translation = relative(state, problem.edges)
    focal = state.log_focal.exp()
    x = rays(problem.nodes, problem.center, focal)
    d = state.inverse_depth[problem.edges[:, 0]]
    z = y[:, 2].clamp(min=NEAR)
    p, scale = y[:, :2] / z[:, None], focal / z

    def seen(motion: Float[Tensor, "E 3 N"]) -> Float[Tensor, "E 2 N"]:
        return scale[:, None] * (motion[:, :2] - p * motion[:, 2:])

    columns = x.new_zeros(len(y), 7, 2, y.shape[2])
    columns[:, 0, 0] = columns[:, 1, 1] = scale * d
    columns[:, 2] = -(scale * d)[:, None] * p
    turned = torch.stack((-y[:, 1], y[:, 0]), 1)  # e_3 x Y
    columns[:, 3] = scale[:, None] * -p * y[:, 1:2]
    columns[:, 3, 1] -= scale * y[:, 2]
    columns[:, 4] = scale[:, None] * p * y[:, :1]
    columns[:, 4, 0] += scale * y[:, 2]
    columns[:, 5] = scale[:, None] * turned
    columns[:, 6] = focal * p - seen(rotation[:, :, :2] @ x[:2])
    return Linear(
        residual=residual,
        columns=columns,
        depth=seen(translation[:, :, None].expand_as(y)),
        in_front=y[:, 2] >= 0.1,
        turn=_from_first_pose(rotation, translation),
    )


def _from_first_pose(rotation: Float[Tensor, "E 3 3"], translation: Float[Tensor, "E 3"]) -> Float[Tensor, "E 6 6"]:
    """The (v_j, w_j) that moves points as (v_i, w_i) does: w_j = -R w_i, v_j = -R v_i - t x R w_i."""
    turn = rotation.new_zeros(len(rotation), 6, 6)
    turn[:, :3, :3] = turn[:, 3:, 3:] = -rotation
    turn[:, :3, 3:] = -cross_matrix(translation) @ rotation
    return turn


def dot(a: Float[Tensor, "*_ 2 N"], b: Float[Tensor, "*_ 2 N"]) -> Float[Tensor, "*_ N"]:
    """Of pixel vectors; a sum over a dimension of two takes three times as long."""
    return torch.addcmul(a[..., 0, :] * b[..., 0, :], a[..., 1, :], b[..., 1, :])


def noise_scale(problem: Problem, state: State, floor: float = 0.15) -> float:
    """1.2 times the median residual of confident nodes, pixels, within [floor, 4]."""
    return _noise(problem, predict(problem, state), floor)


def _noise(problem: Problem, predicted: Predicted, floor: float) -> float:
    size = dot(predicted[0], predicted[0]).sqrt()
    confident = size[problem.weight > 0.3]
    middle = confident.median() if len(confident) else size.median()
    return float((1.2 * middle).clamp(floor, 4.0))


def cost(problem: Problem, state: State, sigma_px: float) -> float:
    """Weighted mean of the Cauchy cost ln(1 + |r|²/σ²); points behind the camera count 9."""
    return _cost(problem, predict(problem, state), sigma_px)


def _cost(problem: Problem, predicted: Predicted, sigma_px: float) -> float:
    residual, y = predicted
    each = torch.where(y[:, 2] >= 0.1, torch.log1p(dot(residual, residual) / sigma_px**2), BEHIND_COST)
    return float((problem.weight * each).sum() / problem.weight.sum().clamp(min=1e-9))


@dataclass(frozen=True, kw_only=True, eq=False)
class Normal:
    """Normal equations with the depths eliminable: B x + Eᵀ d = g, E x + C d = g_d."""

    camera: Float[Tensor, "M M"]
    mixed: Float[Tensor, "M K N"]
    depth: Float[Tensor, "K N"]
    gradient: Float[Tensor, " M"]
    depth_gradient: Float[Tensor, "K N"]


def normal_equations(problem: Problem, state: State, sigma_px: float, predicted: Predicted | None = None) -> Normal:
    """Of the reweighted least squares; M = 6 K + 1 columns, ln f last."""
    linear = linearize(problem, state, predicted)
    num_keys, num_nodes = state.inverse_depth.shape
    weight = problem.weight / (1 + dot(linear.residual, linear.residual) / sigma_px**2) / sigma_px**2
    weight = (weight * linear.in_front)[:, None]
    i, j = problem.edges.T
    size = 6 * num_keys + 1
    six = torch.arange(6, device=i.device)
    where = torch.cat((6 * i[:, None] + six, 6 * j[:, None] + six, i[:, None] * 0 + size - 1), 1)  # E 13
    both = _both_poses(linear.turn)

    weighted = (linear.columns * weight[:, None]).flatten(2)
    blocks = both.mT @ (weighted @ linear.columns.flatten(2).mT) @ both
    right = both.mT @ (weighted @ linear.residual.flatten(1)[..., None])
    of_depth = both.mT @ dot(weighted.view_as(linear.columns), linear.depth[:, None])
    new = linear.residual.new_zeros
    at = where[:, :, None] * size + where[:, None, :]
    return Normal(
        camera=new(size * size).index_add_(0, at.flatten(), blocks.flatten()).view(size, size),
        mixed=new(size * num_keys, num_nodes)
        .index_add_(0, (where * num_keys + i[:, None]).flatten(), of_depth.flatten(0, 1))
        .view(size, num_keys, num_nodes),
        depth=new(num_keys, num_nodes).index_add_(0, i, weight[:, 0] * dot(linear.depth, linear.depth)),
        gradient=new(size).index_add_(0, where.flatten(), right.flatten()),
        depth_gradient=new(num_keys, num_nodes).index_add_(0, i, weight[:, 0] * dot(linear.depth, linear.residual)),
    )


def _both_poses(turn: Float[Tensor, "E 6 6"]) -> Float[Tensor, "E 7 13"]:
    """Columns v_i, w_i, v_j, w_j, ln f in terms of v_j, w_j, ln f."""
    both = turn.new_zeros(len(turn), 7, 13)
    both[:, :6, :6] = turn
    both[:, torch.arange(6), torch.arange(6, 12)] = 1
    both[:, 6, 12] = 1
    return both


def solve_step(
    normal: Normal,
    columns: Int[Tensor, " F"],
    damping: float,
    depths: bool = True,
    touched: Sequence[Int[Tensor, " _"]] | None = None,
) -> tuple[Float[Tensor, " M"], Float[Tensor, "K N"], Float[Tensor, "F F"]]:
    """The step of the free columns and of the depths, and the system it came from (M = B - Σ EᵀE/C).

    `touched`, of each keyframe: which of the free columns its depths are mixed with (`mixed_with`); None: any.
    """
    camera, gradient = normal.camera[columns][:, columns], normal.gradient[columns]
    diagonal = camera.diagonal().clone()
    blocks = []
    if depths:
        everything = torch.arange(len(columns), device=columns.device)
        for k, depth in enumerate(normal.depth):
            at = everything if touched is None else touched[k]
            mixed = normal.mixed[columns[at], k]
            scaled = mixed / depth
            camera[at[:, None], at] -= scaled @ mixed.T
            gradient[at] -= scaled @ normal.depth_gradient[k]
            blocks.append((at, mixed))
    system = camera + torch.diag(damping * diagonal.clamp(min=1e-3) + 1e-6)
    free = torch.linalg.solve_ex(system, gradient)[0]
    step = normal.gradient.new_zeros(len(normal.gradient))
    step[columns] = free.nan_to_num()
    depth_step = torch.zeros_like(normal.depth_gradient)
    if depths:
        back = torch.stack([free[at] @ mixed for at, mixed in blocks])
        depth_step = (normal.depth_gradient - back) / normal.depth
    return step, depth_step, system


def mixed_with(edges: Int[Tensor, "E 2"], num_keys: int, columns: Int[Tensor, " F"]) -> list[Int[Tensor, " _"]]:
    """Of each keyframe, the places among the free columns of its own pose, of those that it has edges to, and of ln f.

    With 29 keyframes a sixth of all: the elimination of depths took a quarter of the time.
    """
    reached = torch.eye(num_keys + 1, dtype=torch.bool)
    reached[edges[:, 0].cpu(), edges[:, 1].cpu()] = True
    reached[:, -1] = True
    pose = columns.cpu() // 6  # the last column, of ln f, alone belongs to no keyframe
    return [reached[k, pose].nonzero()[:, 0].to(columns.device) for k in range(num_keys)]


def neighbor_mean(d: Float[Tensor, "K N"], grid: tuple[int, int]) -> Float[Tensor, "K N"]:
    """3x3 mean on the grid; at the border of those that exist."""
    image = d.view(-1, 1, *grid)
    return torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False).view_as(d)


def solve(problem: Problem, state: State, how: Solve) -> tuple[State, Fit]:
    """Iteratively reweighted Gauss-Newton until the robust cost changes by less than the tolerance."""
    columns = _free_columns(len(state.rotation), how).to(problem.edges.device)
    touched = mixed_with(problem.edges, len(state.rotation), columns)
    predicted = predict(problem, state)
    sigma = how.sigma_px or _noise(problem, predicted, how.min_sigma_px)
    last, system = _cost(problem, predicted, sigma), None
    for iteration in range(how.iterations):
        if how.sigma_px is None and iteration and iteration % 3 == 0:
            renewed = _noise(problem, predicted, how.min_sigma_px)
            last, sigma = (last if renewed == sigma else _cost(problem, predicted, renewed)), renewed
        normal = normal_equations(problem, state, sigma, predicted)
        normal = _regularized(normal, problem, state, how)
        step, depth_step, system = solve_step(normal, columns, how.damping, how.depths, touched)
        state = _moved(state, step, depth_step, how)
        predicted = predict(problem, state)
        now = _cost(problem, predicted, sigma)
        if abs(last - now) < how.tolerance * last:
            break
        last = now
    if how.sigma_px is None:
        sigma = _noise(problem, predicted, how.min_sigma_px)
    std = _last_std(system) if how.focal and system is not None else 0.0
    return state, Fit(sigma_px=sigma, cost=_cost(problem, predicted, sigma), focal_std=std)


def _last_std(system: Float[Tensor, "F F"]) -> float:
    """Standard deviation of the last unknown; infinite where the system does not hold it."""
    last = torch.zeros_like(system[0])
    last[-1] = 1
    variance = float(torch.linalg.solve_ex(system, last)[0][-1])
    return math.sqrt(variance) if 0 <= variance < math.inf else math.inf


def _free_columns(num_keys: int, how: Solve) -> Int[Tensor, " F"]:
    free = how.free if how.free is not None else torch.arange(num_keys) > 0
    pose = free[:, None].repeat(1, 6)
    pose[:, :3] &= how.translations
    return torch.cat((pose.flatten(), torch.tensor([how.focal]))).nonzero()[:, 0]


def _regularized(normal: Normal, problem: Problem, state: State, how: Solve) -> Normal:
    """With the prior on the focal length, and the smoothing of inverse depth."""
    camera, gradient = normal.camera, normal.gradient
    if how.focal_prior is not None:
        mean, std = how.focal_prior
        camera, gradient = camera.clone(), gradient.clone()
        camera[-1, -1] += 1 / std**2
        gradient[-1] += (mean - state.log_focal) / std**2
    smooth = how.smoothing * normal.depth.median()
    away = neighbor_mean(state.inverse_depth, problem.grid) - state.inverse_depth
    return replace(
        normal,
        camera=camera,
        gradient=gradient,
        depth=normal.depth + smooth + 1e-6,
        depth_gradient=normal.depth_gradient + smooth * away,
    )


def _moved(state: State, step: Float[Tensor, " M"], depth_step: Float[Tensor, "K N"], how: Solve) -> State:
    """The state after a limited step, with the world's free scale fixed."""
    pose = step[:-1].view(-1, 6)
    pose = pose * (0.3 / pose.abs().max().clamp(min=0.3))
    turn = rotate(pose[:, 3:])
    rotation = turn @ state.rotation
    translation = (turn @ state.translation[..., None])[..., 0] + pose[:, :3]
    log_focal = state.log_focal + step[-1].clamp(-0.15, 0.15)
    if not how.depths:
        return replace(state, rotation=rotation, translation=translation, log_focal=log_focal)
    d = (state.inverse_depth + depth_step.clamp(-0.5, 0.5)).clamp(1e-3, 8)
    scale = d.median() if how.rescale else d.new_tensor(1.0)
    return State(rotation=rotation, translation=translation * scale, inverse_depth=d / scale, log_focal=log_focal)
