"""Which nodes are static, before any camera is known: a vote of every edge by its fundamental matrix.

A near mover's parallax captures plain least squares; counted in pixels, the larger area wins.
"""

from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from annotate.cameras import bundle
from annotate.cameras.bundle import Problem, State

THRESHOLD_PX = 0.6


def vote(problem: Problem, num_keyframes: int) -> tuple[Float[Tensor, "E N"], Float[Tensor, "K N"]]:
    """Agreement 0..1 of each edge's nodes with its epipolar geometry, and how static each keyframe's node is (1: no vote)."""
    agreement = torch.ones_like(problem.weight)
    voted = torch.zeros(len(problem.edges), dtype=torch.bool, device=problem.edges.device)
    for e in range(len(problem.edges)):
        fundamental = _fundamental(problem.nodes, problem.target[e], problem.weight[e])
        if fundamental is not None:
            agreement[e], voted[e] = _agreement(problem.nodes, problem.target[e], fundamental), True
    return agreement, tally(problem.only(voted), agreement[voted], num_keyframes)


def tally(problem: Problem, agreement: Float[Tensor, "E N"], num_keyframes: int) -> Float[Tensor, "K N"]:
    """How static each node is, 0..1, from the agreement of its edges.

    The geometric mean over edges, because one edge that disagrees says more than many short ones that do not; then the mean of its
    neighbors, squared, because things are larger than nodes. Against the plain mean, movers kept half the weight.
    """
    i, weight = problem.edges[:, 0], problem.weight
    zeros = weight.new_zeros(num_keyframes, len(problem.nodes))
    total = zeros.index_add(0, i, weight)
    votes = zeros.index_add(0, i, weight * agreement.clamp(min=0.02).log())
    static = torch.where(total > 0, votes / total.clamp(min=1e-12), 0.0).exp()
    return bundle.neighbor_mean(static, problem.grid) ** 2


def by_residual(problem: Problem, state: State, sigma_px: float) -> Float[Tensor, "K N"]:
    """The same from a solution's own residuals: what it does not explain."""
    size = bundle.predict(problem, state)[0].norm(dim=1)
    return tally(problem, falloff(size, max(0.4, 2 * sigma_px)), len(state.rotation))


def weighted(problem: Problem, static: Float[Tensor, "K N"], agreement: Float[Tensor, "E N"] | None = None) -> Problem:
    """The problem with less weight on what does not move with the rest; never 0, because the vote may be wrong."""
    weight = problem.weight * static[problem.edges[:, 0]].clamp(0.005, 1)
    return replace(problem, weight=weight if agreement is None else weight * agreement.clamp(min=0.02))


def plane_share(problem: Problem, static: Float[Tensor, "K N"]) -> float:
    """How much of what is static one homography explains to 0.6 px, median over edges; 1 is a plane, from which focal lengths are
    read badly however well they fit. Measured: a plane 0.99, every other scene of the tests below 0.65."""
    shares = [
        share
        for (i, _), target, weight in zip(problem.edges.tolist(), problem.target, problem.weight)
        if (share := _plane_share(problem.nodes, target, weight, static[i])) is not None
    ]
    return float(np.median(shares)) if shares else 0.0


def falloff(error: Tensor, width: float) -> Tensor:
    """1 / (1 + (error / width)²)²."""
    return 1 / (1 + (error / width) ** 2) ** 2


def _fundamental(
    nodes: Float[Tensor, "N 2"], target: Float[Tensor, "N 2"], weight: Float[Tensor, " N"]
) -> Float[Tensor, "3 3"] | None:
    confident = weight > 0.3
    here, there = nodes[confident].cpu().numpy(), target[confident].cpu().numpy()
    if len(here) < 60 or np.median(np.linalg.norm(there - here, axis=1)) < 0.3:
        return None
    try:
        found, _ = cv2.findFundamentalMat(here, there, cv2.USAC_MAGSAC, THRESHOLD_PX, 0.999, 3000)
    except cv2.error:  # it asserts where no sample gives a model (OpenCV 5.0), instead of finding none
        return None
    return None if found is None or found.shape != (3, 3) else torch.from_numpy(found).to(nodes)


def _plane_share(
    nodes: Float[Tensor, "N 2"], target: Float[Tensor, "N 2"], weight: Float[Tensor, " N"], static: Float[Tensor, " N"]
) -> float | None:
    confident = weight > 0.3
    here, there, by = (values[confident].cpu().numpy() for values in (nodes, target, static))
    if len(here) < 60:
        return None
    try:
        found, _ = cv2.findHomography(here, there, cv2.USAC_MAGSAC, THRESHOLD_PX, maxIters=2000, confidence=0.999)
    except cv2.error:  # as above
        return None
    if found is None:
        return None
    error = np.linalg.norm(cv2.perspectiveTransform(here[None], found)[0] - there, axis=1)
    return float((by * (error < THRESHOLD_PX)).sum() / max(by.sum(), 1e-9))


def _agreement(
    nodes: Float[Tensor, "N 2"], target: Float[Tensor, "N 2"], fundamental: Float[Tensor, "3 3"]
) -> Float[Tensor, " N"]:
    """By the Sampson distance in pixels."""
    one = torch.ones_like(nodes[:, :1])
    here, there = torch.cat((nodes, one), 1), torch.cat((target, one), 1)
    line_there, line_here = here @ fundamental.T, there @ fundamental
    slope = line_there[:, :2].square().sum(1) + line_here[:, :2].square().sum(1)
    q = (there * line_there).sum(1).abs() / slope.clamp(min=1e-24).sqrt()
    return falloff(q, THRESHOLD_PX)
