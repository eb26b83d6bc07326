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
    squares: Float[Tensor, "B *map"], weight: Float[Tensor, "B *map"] | Bool[Tensor, "B *map"]
) -> Float[Tensor, " B"]:
    """√(Σ w s / Σ w) for each sample, exactly 0 at 0 and with a finite gradient there.

    The root of a mean, not of a sum as the paper writes it, so that a weight does not depend on the resolution.
    """
    tiny = 1e-12
    return (masked_mean(squares, weight) + tiny).sqrt() - tiny**0.5
