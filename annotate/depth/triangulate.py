"""One inverse depth a node against its neighbors in time, cameras fixed. Pixels at working size, float32."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from annotate.cameras import keyframes
from annotate.cameras.bundle import dot
from annotate.depth import moving, photometric
from annotate.flow.pairs import PairFlows
from shared.clip import Cameras

BLOCK_PX = 2
"""One node for this many pixels each way, at their center."""
FAR = 0.1
"""Of the inverse depth of what is near."""
BEYOND = 3.0
"""Standard deviations below zero from which on an inverse depth is negative: noise alone makes many of what is far so."""
STEPS, SHARP_FROM = 5, 3
"""Gauss-Newton steps, and the first one with the narrower robust kernel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense:
    """Per pixel of the clip."""

    z: Float32[np.ndarray, "T H W"]
    valid: Bool[np.ndarray, "T H W"]
    dynamic: Bool[np.ndarray, "T H W"]
    residual_px: float
    """Median over frames of the median residual of confident nodes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rig:
    """Cameras at working size, as torch."""

    pairs: PairFlows
    world_from_cam: Float[Tensor, "T 4 4"]
    intrinsics: Float[Tensor, "T 4"]
    keys: list[int]
    unit: float
    """What depths are divided by: their median."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """A frame's nodes as its neighbors see them: Y = turned + shift d."""

    turned: Float[Tensor, "J 3 N"]
    shift: Float[Tensor, "J 3 1"]
    focal: Float[Tensor, "J 2 1"]
    target: Float[Tensor, "J 2 N"]
    """Relative to the principal point."""
    weight: Float[Tensor, "J N"]
    in_view: Bool[Tensor, "J N"]
    """The target is on the image."""
    displacement: Float[Tensor, " N"]
    """Median length of the flow."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodes:
    """What a frame's nodes turn out to be."""

    inverse_depth: Float[Tensor, " N"]
    score: Float[Tensor, " N"]
    """Root mean square residual over the neighbors, pixels, each clipped at 10."""
    seen: Bool[Tensor, " N"]
    hidden: Float[Tensor, " N"]
    """Share of the neighbors that should see the node, and do not."""
    sigma_px: float
    curvature: Float[Tensor, " N"]
    """Σ w |∂p/∂d|²: the inverse variance of d per unit of noise."""
    displacement: Float[Tensor, " N"]

    @property
    def sigma(self) -> Float[Tensor, " N"]:
        """Standard deviation of the inverse depth."""
        return self.sigma_px / self.curvature.sqrt().clamp(min=1e-9)


def rig_of(pairs: PairFlows, cameras: Cameras, shape: tuple[int, int, int]) -> Rig:
    """The clip's cameras at the size the flows have."""
    scale = np.array([pairs.size[1] / shape[2], pairs.size[0] / shape[1]])
    rig = Rig(
        pairs=pairs,
        world_from_cam=torch.from_numpy(cameras.world_from_cam),
        intrinsics=torch.from_numpy(cameras.intrinsics * np.tile(scale, 2)).float(),
        keys=keyframes.choose(pairs),
        unit=1.0,
    )
    return replace(rig, unit=median_depth(rig))


def dense(pairs: PairFlows, cameras: Cameras, shape: tuple[int, int, int], max_rel_sigma: float = 0.15) -> Dense:
    """Depth, its validity and what moves, at the clip's size."""
    rig = rig_of(pairs, cameras, shape)
    grid, nodes = half_grid(pairs.size)
    pictures = photometric.halved(pairs.rgb, grid)
    found, steps = [], []
    for t in range(shape[0]):
        views = views_of(rig, t, nodes)
        found.append(triangulate(views))
        steps.append(_steps(rig, t, nodes, views, grid))
    evidence = np.stack([_evidence(rig, t, nodes, one, grid, pictures) for t, one in enumerate(found)])
    evidence[np.stack([keeping_pace(one, grid) for one in found])] = moving.SURE
    votes = moving.voted(evidence, steps)
    z, valid, dynamic = np.zeros(shape, np.float32), np.zeros(shape, bool), np.zeros(shape, bool)
    for t, one in enumerate(found):
        moves = moving.decided(votes[t], pictures[t].rgb) | beyond_infinity(one, grid)
        good = valid_nodes(one, torch.from_numpy(moves).flatten() | odd_nodes(one, grid), max_rel_sigma)
        z[t], valid[t] = _enlarged_depth(one.inverse_depth / rig.unit, good, grid, shape[1:])
        dynamic[t] = _enlarged(moves, grid, shape[1:]) > 0.5
    valid &= ~dynamic
    residual_px = float(np.median([one.sigma_px / 1.2 for one in found]))
    return Dense(z=np.where(valid, z, 0), valid=valid, dynamic=dynamic, residual_px=residual_px)


def without_depth(pairs: PairFlows, cameras: Cameras, shape: tuple[int, int, int]) -> Dense:
    """No depth, but what moves: against a still or turning camera, or against cameras in doubt."""
    nothing = np.zeros(shape, bool)
    flags = cameras.degenerate or ""
    if shape[0] < 2:
        dynamic, residual = nothing, 0.0
    elif "static_camera" in flags or "rotation_only" in flags:
        gap = 4 if "static_camera" in flags else None
        dynamic, residual = _against_turning(pairs, cameras, shape, gap)
    else:
        found = dense(pairs, cameras, shape)
        dynamic, residual = found.dynamic, found.residual_px
    return Dense(z=np.zeros(shape, np.float32), valid=nothing, dynamic=dynamic, residual_px=residual)


def _against_turning(
    pairs: PairFlows, cameras: Cameras, shape: tuple[int, int, int], gap: int | None
) -> tuple[Bool[np.ndarray, "T H W"], float]:
    """What moves more than a world at infinity would."""
    rig = rig_of(pairs, cameras, shape)
    gap = min(gap or max(1, shape[0] // len(rig.keys)), shape[0] - 1)
    grid, nodes = half_grid(pairs.size)
    pictures = photometric.halved(pairs.rgb, grid)
    evidence, steps, residuals = [], [], []
    for t in range(shape[0]):
        others = [j for j in dict.fromkeys((t - 1, t + 1, t - gap, t + gap)) if 0 <= j < shape[0]]
        views = views_of(rig, t, nodes, others)
        found = evaluate(views, torch.zeros(len(nodes)), enough=1)
        steps.append(_steps(rig, t, nodes, views, grid))
        evidence.append(_evidence(rig, t, nodes, found, grid, pictures))
        residuals.append(found.sigma_px / 1.2)
    dynamic = np.zeros(shape, bool)
    for t, votes in enumerate(moving.voted(np.stack(evidence), steps)):
        dynamic[t] = _enlarged(moving.decided(votes, pictures[t].rgb), grid, shape[1:]) > 0.5
    return dynamic, float(np.median(residuals))


def against_depth(
    pairs: PairFlows, cameras: Cameras, z: Float32[np.ndarray, "T H W"], valid: Bool[np.ndarray, "T H W"]
) -> Bool[np.ndarray, "T H W"]:
    """What flows otherwise than a still world of this depth would, to the frames beside: for depth that can be trusted."""
    rig = replace(rig_of(pairs, cameras, z.shape), unit=1.0)
    grid, nodes = half_grid(pairs.size)
    to_clip = nodes.new_tensor((z.shape[2] / pairs.size[1], z.shape[1] / pairs.size[0]))
    column, row = (nodes * to_clip).long().T.numpy()
    dynamic = np.zeros(z.shape, bool)
    for t in range(len(z)):
        others = [j for j in (t - 1, t + 1) if 0 <= j < len(z)]
        known = torch.from_numpy(valid[t, row, column])
        d = torch.where(known, 1 / torch.from_numpy(z[t, row, column]).clamp(min=1e-6), 0.0)
        found = evaluate(views_of(rig, t, nodes, others), d, enough=1)
        odd = known & odd_nodes(found, grid)
        dynamic[t] = _enlarged(odd.numpy(), grid, z.shape[1:]) > 0.5
    return dynamic & valid


def half_grid(size: tuple[int, int]) -> tuple[tuple[int, int], Float[Tensor, "N 2"]]:
    """Nodes at the centers of blocks."""
    grid, nodes = keyframes.node_grid(size, max(size) // BLOCK_PX)
    return grid, nodes.float()


def median_depth(rig: Rig) -> float:
    """In units of the cameras' translations, so that limits on d mean the same for every scale of the world."""
    _, nodes = keyframes.node_grid(rig.pairs.size, 20)
    medians = []
    for t in range(0, len(rig.pairs.rgb), max(1, len(rig.pairs.rgb) // 8)):
        views = views_of(rig, t, nodes.float())
        d = linear(views)[views.weight.sum(0) > 0.5]
        if (positive := d[d > 0]).numel():
            medians.append(float(positive.median()))
    return 1 / float(np.median(medians)) if medians else 1.0


def neighbors(rig: Rig, t: int) -> list[int]:
    """The keyframes around, for depth, and the next frames, where what moves fast can still be followed."""
    near = [j for j in (t - 1, t + 1) if 0 <= j < len(rig.pairs.rgb)]
    return list(dict.fromkeys([*near, *(rig.keys[k] for k in keyframes.around(rig.keys, t))]))


def views_of(rig: Rig, t: int, nodes: Float[Tensor, "N 2"], others: list[int] | None = None) -> Views:
    """What the neighbors of frame t say of its nodes."""
    others = others or neighbors(rig, t)
    flow, confidence, _ = rig.pairs.at_nodes(np.array([(t, j) for j in others], np.int64), nodes)
    other_from_t = (torch.linalg.inv(rig.world_from_cam[others]) @ rig.world_from_cam[t]).float()
    here, there = rig.intrinsics[t], rig.intrinsics[others]
    xy = ((nodes - here[2:]) / here[:2]).T
    u, v = (nodes + flow).unbind(-1)
    height, width = rig.pairs.size
    return Views(
        turned=other_from_t[:, :3, :3] @ torch.cat((xy, torch.ones_like(xy[:1]))),
        shift=other_from_t[:, :3, 3:] / rig.unit,
        focal=there[:, :2, None],
        target=(nodes + flow).mT - there[:, 2:, None],
        weight=confidence,
        in_view=(u > 2) & (u < width - 2) & (v > 2) & (v < height - 2),
        displacement=flow.norm(dim=-1).median(dim=0).values,
    )


def linear(views: Views) -> Float[Tensor, " N"]:
    """Least squares of the target's rays against Y, which is linear in d: a start that asks for no scale."""
    ray = views.target / views.focal
    slope = views.shift[:, :2] - ray * views.shift[:, 2:]
    rest = ray * views.turned[:, 2:] - views.turned[:, :2]
    top = (views.weight * dot(slope, rest)).sum(0)
    return top / (views.weight * dot(slope, slope)).sum(0).clamp(min=1e-12)


def _residual(views: Views, d: Float[Tensor, " N"]) -> tuple[Float[Tensor, "J 2 N"], Float[Tensor, "J 2 N"]]:
    """Residuals and the prediction's derivative by d."""
    y = torch.addcmul(views.turned, views.shift, d)
    nearness = y[:, 2:].clamp(min=0.05).reciprocal()
    seen = y[:, :2] * nearness
    slope = torch.addcmul(views.shift[:, :2], views.shift[:, 2:], seen, value=-1) * (views.focal * nearness)
    return torch.addcmul(views.target, views.focal, seen, value=-1), slope


def triangulate(views: Views) -> Nodes:
    """Robust Gauss-Newton in d alone. Negative inverse depth is allowed: it is evidence of motion."""
    d = linear(views).clamp(-2, 10)
    sigma = 0.0
    for step in range(STEPS):
        residual, slope = _residual(views, d)
        square = dot(residual, residual)
        sigma = _sigma(square, views.weight) if step % 2 == 0 else sigma
        width = (4 if step < SHARP_FROM else 2) * sigma
        weight = views.weight / (1 + square / width**2)
        curvature = (weight * dot(slope, slope)).sum(0)
        gradient = (weight * dot(slope, residual)).sum(0)
        change = gradient / (curvature + 1e-3 * curvature.median() + 1e-9)
        d = (d + change.clamp(-0.5, 0.5)).clamp(-2, 10)
    return evaluate(views, d)


def evaluate(views: Views, d: Float[Tensor, " N"], enough: int = 2) -> Nodes:
    """How well these inverse depths agree with what the neighbors see; `enough` of them must see a node."""
    residual, slope = _residual(views, d)
    square = dot(residual, residual)
    total = views.weight.sum(0).clamp(min=1e-6)
    return Nodes(
        inverse_depth=d,
        score=((views.weight * square.clamp(max=100)).sum(0) / total).sqrt(),
        seen=(views.weight > 0.3).sum(0) >= enough,
        hidden=((views.weight < 0.1) & views.in_view).float().mean(0),
        sigma_px=_sigma(square, views.weight),
        curvature=(views.weight * dot(slope, slope)).sum(0),
        displacement=views.displacement,
    )


def _sigma(square: Float[Tensor, "J N"], weight: Float[Tensor, "J N"]) -> float:
    """1.2 times the median residual of confident nodes, pixels; every fifth node tells it as well as all."""
    confident = square[:, ::5][weight[:, ::5] > 0.3]
    return min(max(1.2 * float(confident.median().sqrt()), 0.25), 4.0) if confident.numel() else 4.0


def _steps(
    rig: Rig, t: int, nodes: Float[Tensor, "N 2"], views: Views, grid: tuple[int, int]
) -> dict[int, Float32[np.ndarray, "h w 3"]]:
    """Flow to the frames beside, which are the first views, in nodes, and its confidence."""
    cell = nodes.new_tensor((rig.pairs.size[1] / grid[1], rig.pairs.size[0] / grid[0]))
    signs = [sign for sign in (-1, 1) if 0 <= t + sign < len(rig.pairs.rgb)]
    steps = {}
    for place, sign in enumerate(signs):
        flow = views.target[place].mT + rig.intrinsics[t + sign, 2:] - nodes
        steps[sign] = torch.cat((flow / cell, views.weight[place][:, None]), 1).view(*grid, 3).numpy()
    return steps


def odd_nodes(found: Nodes, grid: tuple[int, int]) -> Bool[Tensor, " N"]:
    """Where no still point at these inverse depths explains the flow of this frame."""
    threshold = max(0.6, 3 * found.sigma_px) + 0.02 * found.displacement
    odd = found.seen & (_median5(found.score, grid) > threshold)
    return torch.from_numpy(moving.cleaned(odd.view(grid).numpy())).flatten()


def _evidence(
    rig: Rig,
    t: int,
    nodes: Float[Tensor, "N 2"],
    found: Nodes,
    grid: tuple[int, int],
    pictures: list[photometric.Picture],
) -> Float32[np.ndarray, "h w"]:
    """What flow and pictures say of frame t."""
    score = np.where(found.seen, _median5(found.score, grid), 0).reshape(grid).astype(np.float32)
    seen = found.seen.view(grid).numpy()
    beyond = is_beyond(found).view(grid).numpy()
    d = _median5(found.inverse_depth, grid).view(grid).numpy()
    depths = [d]
    if d.any():  # else they stand still, or are taken for infinitely far
        doubtful = odd_nodes(found, grid).view(grid).numpy() | ~seen
        near = cv2.dilate(doubtful.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        depths = photometric.still_depths(d, ~near & (d > 1e-3))
    sides = []
    for sign in (-1, 1):
        others = [j for o in photometric.OFFSETS if 0 <= (j := t + sign * o) < len(pictures)]
        places = photometric.as_tensor(depths)
        sides.append([(pictures[j], _places(rig, t, j, nodes, places, grid)) for j in others])
    like = photometric.likeness(pictures[t], *sides)
    lost = ~seen & (found.hidden > 0).view(grid).numpy()
    return moving.evidence(score, lost, beyond & d.any(), like)


def _places(
    rig: Rig, t: int, j: int, nodes: Float[Tensor, "N 2"], d: Float[Tensor, "D N"], grid: tuple[int, int]
) -> Float[Tensor, "D 2 h w"]:
    """Where frame j sees the nodes of frame t at these inverse depths, in nodes."""
    cell = nodes.new_tensor((rig.pairs.size[1] / grid[1], rig.pairs.size[0] / grid[0]))
    here, there = rig.intrinsics[t], rig.intrinsics[j] / cell.repeat(2)
    j_from_t = (torch.linalg.inv(rig.world_from_cam[j]) @ rig.world_from_cam[t]).float()
    xy = ((nodes - here[2:]) / here[:2]).T
    turned = j_from_t[:3, :3] @ torch.cat((xy, torch.ones_like(xy[:1])))
    return photometric.places_in(turned, j_from_t[:3, 3:] / rig.unit, there, d).view(-1, 2, *grid)


def beyond_infinity(found: Nodes, grid: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """No still point is farther, however well it fits."""
    return moving.cleaned(is_beyond(found).view(grid).numpy())


def is_beyond(found: Nodes) -> Bool[Tensor, " N"]:
    """The inverse depth is negative, and known well enough to say so."""
    return found.seen & (found.inverse_depth < -BEYOND * found.sigma)


def keeping_pace(found: Nodes, grid: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """What flows as if it were far away, and yet hides what is near: a thing that moves along with the camera.

    Regions known to be far whose surroundings vanish behind them; sky and landscape vanish behind their surroundings instead.
    """
    d = _median5(found.inverse_depth, grid)
    near = torch.quantile(d[found.seen], 0.75) if found.seen.any() else d.new_tensor(0.0)
    known = found.seen & (found.sigma < FAR / 2 * near)
    far = moving.cleaned((known & (d.abs() < FAR * near)).view(grid).numpy()).astype(np.uint8)
    hidden = found.hidden.view(grid).numpy()
    count, label = cv2.connectedComponents(far)
    pace = np.zeros(grid, bool)
    for part in range(1, count):
        inside = (label == part).astype(np.uint8)
        outer = (cv2.dilate(inside, moving.disk(9)) > 0) & (inside == 0)
        inner = (inside > 0) & (cv2.erode(inside, moving.disk(9)) == 0)
        if inside.sum() > 30 and outer.any() and hidden[outer].mean() > 1.5 * hidden[inner].mean() + 0.05:
            pace |= inside > 0
    return pace


def _median5(values: Float[Tensor, " N"], grid: tuple[int, int]) -> Float[Tensor, " N"]:
    return torch.from_numpy(cv2.medianBlur(values.view(grid).numpy(), 5)).flatten()


def valid_nodes(found: Nodes, odd: Bool[Tensor, " N"], max_rel_sigma: float) -> Bool[Tensor, " N"]:
    """Seen, not odd, in front, and known to within `max_rel_sigma`."""
    d = found.inverse_depth
    certain = found.sigma < max_rel_sigma * d
    return found.seen & ~odd & (d > 0.01) & certain


def _enlarged(values: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> Float32[np.ndarray, "H W"]:
    image = values.reshape(grid).astype(np.float32)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def _enlarged_depth(
    inverse_depth: Float[Tensor, " N"], good: Bool[Tensor, " N"], grid: tuple[int, int], size: tuple[int, int]
) -> tuple[Float32[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """z of every pixel between valid nodes; nodes that are not valid lend nothing."""
    smooth = cv2.medianBlur(inverse_depth.view(grid).numpy(), 3)
    weight = good.numpy().astype(np.float32)
    share = _enlarged(weight, grid, size)
    d = _enlarged(smooth.flatten() * weight, grid, size) / np.maximum(share, 1e-6)
    valid = (share > 0.5) & (d > 0)
    return np.where(valid, 1 / np.where(valid, d, 1), 0).astype(np.float32), valid
