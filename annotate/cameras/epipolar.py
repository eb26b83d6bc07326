"""Which nodes are static, before any camera is known: a vote of every edge by its fundamental matrix.

A near mover's parallax captures plain least squares; counted in pixels, the larger area wins.
"""

from dataclasses import replace

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from annotate.cameras.bundle import Problem

THRESHOLD_PX = 0.6


def vote(problem: Problem, num_keyframes: int) -> tuple[Float[Tensor, "E N"], Float[Tensor, "K N"]]:
    """Agreement 0..1 of each edge's nodes with its epipolar geometry, and how static each keyframe's node is (1: no vote)."""
    agreement = torch.ones_like(problem.weight)
    voted = torch.zeros(len(problem.edges), dtype=torch.bool)
    for e in range(len(problem.edges)):
        fundamental = _fundamental(problem.nodes, problem.target[e], problem.weight[e])
        if fundamental is not None:
            agreement[e], voted[e] = _agreement(problem.nodes, problem.target[e], fundamental), True
    i = problem.edges[voted, 0]
    weight = problem.weight[voted]
    zeros = weight.new_zeros(num_keyframes, len(problem.nodes))
    votes, total = zeros.index_add(0, i, weight * agreement[voted]), zeros.index_add(0, i, weight)
    return agreement, torch.where(total > 0, votes / total.clamp(min=1e-12), 1.0)


def weighted_by_vote(problem: Problem, agreement: Float[Tensor, "E N"], static: Float[Tensor, "K N"]) -> Problem:
    """The problem with less weight on what does not move with the rest; never 0, because the vote may be wrong."""
    weight = problem.weight * agreement.clamp(min=0.02) * static[problem.edges[:, 0]].clamp(0.02, 1)
    return replace(problem, weight=weight)


def _fundamental(
    nodes: Float[Tensor, "N 2"], target: Float[Tensor, "N 2"], weight: Float[Tensor, " N"]
) -> Float[Tensor, "3 3"] | None:
    confident = (weight > 0.3).numpy()
    here, there = nodes.numpy()[confident], target.numpy()[confident]
    if len(here) < 60 or np.median(np.linalg.norm(there - here, axis=1)) < 0.3:
        return None
    try:
        found, _ = cv2.findFundamentalMat(here, there, cv2.USAC_MAGSAC, THRESHOLD_PX, 0.999, 3000)
    except cv2.error:  # it asserts where no sample gives a model (OpenCV 5.0), instead of finding none
        return None
    return None if found is None or found.shape != (3, 3) else torch.from_numpy(found)


def _agreement(
    nodes: Float[Tensor, "N 2"], target: Float[Tensor, "N 2"], fundamental: Float[Tensor, "3 3"]
) -> Float[Tensor, " N"]:
    """1 / (1 + (q / 0.6)²)², q the Sampson distance in pixels."""
    one = torch.ones_like(nodes[:, :1])
    here, there = torch.cat((nodes, one), 1), torch.cat((target, one), 1)
    line_there, line_here = here @ fundamental.T, there @ fundamental
    slope = line_there[:, :2].square().sum(1) + line_here[:, :2].square().sum(1)
    q = (there * line_there).sum(1).abs() / slope.clamp(min=1e-24).sqrt()
    return 1 / (1 + (q / THRESHOLD_PX) ** 2) ** 2
