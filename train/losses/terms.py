"""The sums of the losses: one number a sample for every term that is switched on, unweighted, under a stable name."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from train.losses import (
    Decoding,
    Regularizing,
    SelfSupervision,
    Term,
    cameras,
    depth,
    mask,
    points,
    regularizers,
    scene_flow,
    self_supervision,
)
from train.noise import Noise
from train.sample import Batch, Predicted

Terms = dict[str, Tensor]
Summing = TypeVar("Summing", bound=Callable[..., Any])


def in_full_precision(terms: Summing) -> Summing:
    """Whatever the networks compute in: poses that were multiplied in half precision would put every surface elsewhere."""

    @wraps(terms)
    def exact(knobs: Any, predicted: Predicted, *rest: Any) -> Any:
        with torch.autocast(predicted.depth.device.type, enabled=False):
            return terms(knobs, predicted, *rest)

    return cast(Summing, exact)


@in_full_precision
def decoding(knobs: Decoding, predicted: Predicted, batch: Batch) -> Terms:
    """L_dpt, term by term (equation 2)."""
    terms: Terms = {}
    if knobs.depth:
        terms["depth"] = depth.loss(predicted, batch)
    if knobs.points:
        terms["points"] = points.loss(predicted, batch)
    if knobs.cameras:
        terms["cameras"] = cameras.loss(predicted, batch, knobs.cameras.huber_delta)
    if knobs.mask:
        terms["mask"] = mask.loss(predicted, batch)
    if knobs.scene_flow:
        terms["scene_flow"] = scene_flow.loss(predicted, batch, knobs.scene_flow.foreground)
    return terms


@in_full_precision
def regularizing(knobs: Regularizing, predicted: Predicted, batch: Batch, noise: Noise) -> Terms:
    """L_reg, term by term (equation 3)."""
    terms: Terms = {}
    if knobs.depth_consistency:
        pairs = some_pairs(predicted, noise, knobs.depth_consistency.num_random_pairs)
        gap = knobs.depth_consistency.max_depth_gap
        terms["depth_consistency"] = regularizers.depth_consistency(predicted, batch, pairs, gap)
    if knobs.smooth_flow:
        terms["smooth_flow"] = regularizers.smooth_flow(predicted, batch.dynamic & batch.scene_flow_valid)
    return terms


@in_full_precision
def self_supervising(knobs: SelfSupervision, predicted: Predicted, batch: Batch) -> Terms:
    """Without labels of depth, points or scene flow, term by term."""
    terms: Terms = {}
    if knobs.reprojection:
        delta = knobs.reprojection.huber_delta_diagonals
        terms["reprojection"] = self_supervision.reprojection(predicted, batch, delta)
    if knobs.static_depth:
        terms["static_depth"] = self_supervision.static_depth(predicted, batch)
    if knobs.agreement:
        terms["agreement"] = self_supervision.agreement(predicted, batch)
    if knobs.mask:
        terms["mask"] = mask.loss(predicted, batch)
    if knobs.smooth_flow:
        moving = F.pad(self_supervision.sure(batch), (0, 0, 0, 0, 0, 1)) & batch.dynamic
        terms["smooth_flow"] = regularizers.smooth_flow(predicted, moving)
    return terms


def weighted(knobs: Decoding | Regularizing | SelfSupervision, terms: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
    """Σ weight · term for each sample."""
    weights: dict[str, float] = {name: term.weight for name, term in knobs if isinstance(term, Term)}
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum(0)


def some_pairs(predicted: Predicted, noise: Noise, num_random: int) -> Tensor:
    """Neighboring key frames, and random pairs of different ones, for each sample: `B N 2`."""
    batch_size, num_frames = predicted.depth.shape[:2]
    pairs = regularizers.neighbors(num_frames, batch_size, predicted.depth.device)
    first = noise.integers("pair_first", num_frames, (num_random,), predicted.depth)
    step = noise.integers("pair_step", num_frames - 1, (num_random,), predicted.depth) + 1
    return torch.cat((pairs, torch.stack((first, (first + step) % num_frames), dim=-1)), dim=1)
