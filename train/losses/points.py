"""L_pc: how far the points are off, in units of the scene and the first camera's frame."""

from jaxtyping import Float
from torch import Tensor

from train.losses.reduce import masked_mean
from train.sample import Batch, Predicted


def loss(predicted: Predicted, batch: Batch) -> Float[Tensor, " B"]:
    """mean |P - P̂|₁ over valid pixels of the key frames; the norm adds the three coordinates."""
    valid = batch.key_valid & batch.has_cameras[:, None, None, None]
    return masked_mean((predicted.points - batch.points).abs().sum(-1), valid)
