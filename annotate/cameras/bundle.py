"""Dense bundle adjustment on optical flow: poses, one inverse depth a node, one focal length, by Schur complement.

Every keyframe carries the same grid of N nodes. For an edge i -> j and a node x of i, with d its inverse depth,

    Y = R_ij x + t_ij d,   p = (Y1, Y2) / Y3,   residual r = target - (f p + center).

Unknowns per keyframe are (v, w), applied as R <- e^w R, t <- e^w t + v; then one ln f, last. Poses are `cam_from_world` here,
because that is what the update acts on. Pixels are corner-origin.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
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
    """Residuals of every edge and the derivatives of their predictions, both times the roots of their weights.

    Columns are v_j, w_j, ln f; `depth` is that of the node's own d. What pose i does to a point, pose j can undo: J_i = J_j `turn`,
    so that i needs no columns of its own.
    """

    residual: Float[Tensor, "E 2 N"]
    columns: Float[Tensor, "E 7 2 N"]
    depth: Float[Tensor, "E 2 N"]
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
    y = torch.addcmul(rotation @ x, translation[..., None], d[:, None])
    p = y[:, :2] / y[:, 2:].clamp(min=NEAR)
    target = problem.target.transpose(1, 2) - problem.center[:, None]
    return torch.addcmul(target, state.log_focal.exp(), p, value=-1), y


def in_front(predicted: Predicted) -> Bool[Tensor, "E N"]:
    """Of the second camera."""
    return predicted[1][:, 2] >= 0.1


def linearize(problem: Problem, state: State, predicted: Predicted, weight: Float[Tensor, "E N"]) -> Linear:
    """Residuals, and the derivatives of the prediction: with A = (f/z) [1 0 -p1; 0 1 -p2], those of Y times A.

    dY is d v_j + w_j x Y for pose j, t_ij for d, and -R_ij (x1, x2, 0) for ln f, which scales f p besides.
    `predicted`: what `predict` says of this state.
    """
    residual, y = predicted
    rotation, translation = relative(state, problem.edges)
    focal, root = state.log_focal.exp(), weight.sqrt()
    x = rays(problem.nodes, problem.center, focal)
    z = y[:, 2].clamp(min=NEAR)
    p, scale = y[:, :2] / z[:, None], root * focal / z
    scaled_p = scale[:, None] * p

    def seen(motion: Float[Tensor, "E 3 #N"]) -> Float[Tensor, "E 2 N"]:
        return scale[:, None] * motion[:, :2] - scaled_p * motion[:, 2:]

    scaled_d, scaled_y = scale * state.inverse_depth[problem.edges[:, 0]], scale[:, None] * y
    columns = x.new_zeros(len(y), 7, 2, y.shape[2])
    columns[:, 0, 0] = columns[:, 1, 1] = scaled_d
    columns[:, 2] = -scaled_d[:, None] * p
    columns[:, 3] = -scaled_p * y[:, 1:2]
    columns[:, 3, 1] -= scaled_y[:, 2]
    columns[:, 4] = scaled_p * y[:, :1]
    columns[:, 4, 0] += scaled_y[:, 2]
    columns[:, 5, 0], columns[:, 5, 1] = -scaled_y[:, 1], scaled_y[:, 0]
    columns[:, 6] = (root * focal)[:, None] * p - seen(rotation[:, :, :2] @ x[:2])
    return Linear(
        residual=root[:, None] * residual,
        columns=columns,
        depth=seen(translation[..., None]),
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
    residual, _ = predicted
    each = torch.where(in_front(predicted), torch.log1p(dot(residual, residual) / sigma_px**2), BEHIND_COST)
    return float((problem.weight * each).sum() / problem.weight.sum().clamp(min=1e-9))


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixing:
    """Which columns a keyframe's depths are mixed with: its own pose and ln f, then the poses it has edges to.

    Of 29 keyframes a sixth of all: the elimination of depths took a quarter of the time.
    """

    columns: Int[Tensor, "K W"]
    """M, one more than there are, where a keyframe has fewer edges than others."""
    place: Int[Tensor, " E"]
    """Of an edge among those from the same keyframe."""

    @classmethod
    def of(cls, edges: Int[Tensor, "E 2"], num_keys: int) -> "Mixing":
        """W = 7 + 6 times the most edges that a keyframe has."""
        i, j = edges.T
        place = ((i[:, None] == i).tril(-1)).sum(1)
        six, size = torch.arange(6, device=i.device), 6 * num_keys + 1
        others = i.new_full((num_keys, int(place.max()) + 1, 6), size)
        others[i, place] = 6 * j[:, None] + six
        own = 6 * torch.arange(num_keys, device=i.device)[:, None] + six
        return cls(columns=torch.cat((own, own[:, :1] * 0 + size - 1, others.flatten(1)), 1), place=place)


@dataclass(frozen=True, kw_only=True, eq=False)
class Depths:
    """The part of the normal equations that depths have."""

    mixing: Mixing
    mixed: Float[Tensor, "K W N"]
    """Eᵀ, only the rows that `mixing` names."""
    diagonal: Float[Tensor, "K N"]
    gradient: Float[Tensor, "K N"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Normal:
    """Normal equations with the depths eliminable: B x + Eᵀ d = g, E x + C d = g_d."""

    camera: Float[Tensor, "M M"]
    gradient: Float[Tensor, " M"]
    depths: Depths | None
    """None: they stay."""


def normal_equations(
    problem: Problem, state: State, sigma_px: float, mixing: Mixing | None, predicted: Predicted | None = None
) -> Normal:
    """Of the reweighted least squares; M = 6 K + 1 columns, ln f last. Without `mixing` the depths stay."""
    predicted = predicted or predict(problem, state)
    weight = problem.weight * in_front(predicted) / (dot(predicted[0], predicted[0]) + sigma_px**2)
    linear = linearize(problem, state, predicted, weight)
    i, j = problem.edges.T
    size = 6 * len(state.rotation) + 1
    six = torch.arange(6, device=i.device)
    where = torch.cat((6 * i[:, None] + six, 6 * j[:, None] + six, i[:, None] * 0 + size - 1), 1)  # E 13
    both = _both_poses(linear.turn)
    columns = linear.columns.flatten(2)
    blocks = both.mT @ (columns @ columns.mT) @ both
    right = both.mT @ (columns @ linear.residual.flatten(1)[..., None])
    new = linear.residual.new_zeros
    at = where[:, :, None] * size + where[:, None, :]
    return Normal(
        camera=new(size * size).index_add_(0, at.flatten(), blocks.flatten()).view(size, size),
        gradient=new(size).index_add_(0, where.flatten(), right.flatten()),
        depths=None if mixing is None else _of_depths(linear, i, mixing),
    )


def _of_depths(linear: Linear, i: Int[Tensor, " E"], mixing: Mixing) -> Depths:
    num_keys, width = mixing.columns.shape
    new, num_nodes = linear.depth.new_zeros, linear.depth.shape[2]
    products = dot(linear.columns, linear.depth[:, None])
    mixed = new(num_keys, width, num_nodes)
    mixed[:, :6].index_add_(0, i, linear.turn.mT @ products[:, :6])
    mixed[:, 6].index_add_(0, i, products[:, 6])
    mixed[:, 7:].unflatten(1, (-1, 6))[i, mixing.place] = products[:, :6]
    return Depths(
        mixing=mixing,
        mixed=mixed,
        diagonal=new(num_keys, num_nodes).index_add_(0, i, dot(linear.depth, linear.depth)),
        gradient=new(num_keys, num_nodes).index_add_(0, i, dot(linear.depth, linear.residual)),
    )


def _both_poses(turn: Float[Tensor, "E 6 6"]) -> Float[Tensor, "E 7 13"]:
    """Columns v_i, w_i, v_j, w_j, ln f in terms of v_j, w_j, ln f."""
    both = turn.new_zeros(len(turn), 7, 13)
    both[:, :6, :6] = turn
    both[:, torch.arange(6), torch.arange(6, 12)] = 1
    both[:, 6, 12] = 1
    return both


def solve_step(
    normal: Normal, columns: Int[Tensor, " F"], damping: float
) -> tuple[Float[Tensor, " M"], Float[Tensor, "K N"] | None, Float[Tensor, "F F"]]:
    """The step of the free columns and of the depths, and the system it came from (M = B - Σ EᵀE/C)."""
    camera, gradient = (normal.camera, normal.gradient) if normal.depths is None else _eliminated(normal, normal.depths)
    diagonal = normal.camera.diagonal()[columns]
    system = camera[columns][:, columns] + torch.diag(damping * diagonal.clamp(min=1e-3) + 1e-6)
    step = torch.zeros_like(normal.gradient)
    step[columns] = torch.linalg.solve_ex(system, gradient[columns])[0].nan_to_num()
    if normal.depths is None:
        return step, None, system
    depths = normal.depths
    of_rows = F.pad(step, (0, 1))[depths.mixing.columns]
    back = (of_rows[:, None] @ depths.mixed)[:, 0]
    return step, (depths.gradient - back) / depths.diagonal, system


def _eliminated(normal: Normal, depths: Depths) -> tuple[Float[Tensor, "M M"], Float[Tensor, " M"]]:
    """B and g without what the depths take over; one row more holds what is padding."""
    at = depths.mixing.columns
    scaled = -depths.mixed / depths.diagonal[:, None]
    camera, gradient = F.pad(normal.camera, (0, 1, 0, 1)), F.pad(normal.gradient, (0, 1))
    camera.index_put_((at[:, :, None], at[:, None]), scaled @ depths.mixed.mT, accumulate=True)
    gradient.index_put_((at,), (scaled @ depths.gradient[..., None])[..., 0], accumulate=True)
    return camera[:-1, :-1], gradient[:-1]


def neighbor_mean(d: Float[Tensor, "K N"], grid: tuple[int, int]) -> Float[Tensor, "K N"]:
    """3x3 mean on the grid; at the border of those that exist."""
    image = d.view(-1, 1, *grid)
    return torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False).view_as(d)


def solve(problem: Problem, state: State, how: Solve) -> tuple[State, Fit]:
    """Iteratively reweighted Gauss-Newton until the robust cost changes by less than the tolerance."""
    columns = _free_columns(len(state.rotation), how).to(problem.edges.device)
    mixing = Mixing.of(problem.edges, len(state.rotation)) if how.depths else None
    predicted = predict(problem, state)
    sigma = how.sigma_px or _noise(problem, predicted, how.min_sigma_px)
    last, system = _cost(problem, predicted, sigma), None
    for iteration in range(how.iterations):
        if how.sigma_px is None and iteration and iteration % 3 == 0:
            renewed = _noise(problem, predicted, how.min_sigma_px)
            last, sigma = (last if renewed == sigma else _cost(problem, predicted, renewed)), renewed
        normal = _regularized(normal_equations(problem, state, sigma, mixing, predicted), problem, state, how)
        step, depth_step, system = solve_step(normal, columns, how.damping)
        state = _moved(state, step, depth_step, how.rescale)
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
    camera, gradient, depths = normal.camera, normal.gradient, normal.depths
    if how.focal_prior is not None:
        mean, std = how.focal_prior
        camera, gradient = camera.clone(), gradient.clone()
        camera[-1, -1] += 1 / std**2
        gradient[-1] += (mean - state.log_focal) / std**2
    if depths is not None:
        smooth = how.smoothing * depths.diagonal.median()
        away = neighbor_mean(state.inverse_depth, problem.grid) - state.inverse_depth
        depths = replace(depths, diagonal=depths.diagonal + smooth + 1e-6, gradient=depths.gradient + smooth * away)
    return Normal(camera=camera, gradient=gradient, depths=depths)


def _moved(state: State, step: Float[Tensor, " M"], depth_step: Float[Tensor, "K N"] | None, rescale: bool) -> State:
    """The state after a limited step, with the world's free scale fixed."""
    pose = step[:-1].view(-1, 6)
    pose = pose * (0.3 / pose.abs().max().clamp(min=0.3))
    turn = rotate(pose[:, 3:])
    rotation = turn @ state.rotation
    translation = (turn @ state.translation[..., None])[..., 0] + pose[:, :3]
    log_focal = state.log_focal + step[-1].clamp(-0.15, 0.15)
    if depth_step is None:
        return replace(state, rotation=rotation, translation=translation, log_focal=log_focal)
    d = (state.inverse_depth + depth_step.clamp(-0.5, 0.5)).clamp(1e-3, 8)
    scale = d.median() if rescale else d.new_tensor(1.0)
    return State(rotation=rotation, translation=translation * scale, inverse_depth=d / scale, log_focal=log_focal)
