"""Reductions of maps to one number a sample, without indexing by masks (which would wait for the device)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(
    values: Float[Tensor, "B *map"], weight: Float[Tensor, "B *map"] | Bool[Tensor, "B *map"]
) -> Float[Tensor, " B"]:
    """Σ w x / Σ w for each sample; 0, with zero gradient, where no weight is left. Values without weight do not count at all."""
    kept = torch.where(weight > 0, values, torch.zeros((), dtype=values.dtype, device=values.device))
    weight = weight.to(values.dtype)
    total = weight.flatten(1).sum(1)
    return (kept * weight).flatten(1).sum(1) / torch.where(total > 0, total, torch.ones_like(total))


def root_mean(
    squares: Float[Tensor, "B N *map"], weight: Float[Tensor, "B N *map"] | Bool[Tensor, "B N *map"]
) -> Float[Tensor, " B"]:
    """The mean over N maps, those with any weight, of √(Σ w s / Σ w); exactly 0 at 0 and with a finite gradient there.

    A norm for each frame or pair of frames, as the paper writes it, but of means where it has sums, so that a weight depends
    neither on the resolution nor on the number of frames.
    """
    tiny = 1e-12
    each = (masked_mean(squares.flatten(0, 1), weight.flatten(0, 1)) + tiny).sqrt() - tiny**0.5
    counts = (weight > 0).flatten(2).any(2)
    return masked_mean(each.unflatten(0, squares.shape[:2]), counts)
